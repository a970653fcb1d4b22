"""Getting the bytes of a host's files into parts at home, and believing only their hash."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path

from launch.argv import rsync
from launch.errors import Exit, LaunchError
from launch.inventory import Inventory
from launch.sync.listing import RemoteFile
from launch.sync.scripts import BATCH
from launch.sync.store import Store
from launch.transport import Transport, ssh_command, ssh_destination
from minimind.durable import sha256_file

RSYNC_FROM_BYTES = 4 << 20
SMALL_BYTES = 1 << 20
BATCH_BYTES = 8 << 20
BATCH_FILES = 500


class Courier:
    """Brings files of one host; ``root`` is absolute there."""

    def __init__(self, transport: Transport, inventory: Inventory, root: str, store: Store) -> None:
        self._transport, self._root, self._store = transport, root, store
        self._ssh: list[str] | None = None
        host = transport.host
        if host.ssh is not None and shutil.which("rsync"):
            has_rsync = transport.read(["sh", "-c", "command -v rsync"], check=False).code == 0
            self._ssh = ssh_command(host, inventory) if has_rsync else None

    def bring(
        self, files: Sequence[RemoteFile], on_bytes: Callable[[int], None]
    ) -> Iterator[list[tuple[RemoteFile, bool]]]:
        """The files in groups, small ones first, each with whether its part now holds exactly its bytes.

        One file a hash, please. Every group is to be published before the next one is asked for.
        """
        small = [file for file in files if file.length_bytes <= SMALL_BYTES and not self._store.part_bytes(file.sha256)]
        for batch in _batches(small):
            self._fetch_small(batch, on_bytes)
            yield [(file, self._verify(file)) for file in batch]
        for file in sorted(set(files) - set(small), key=lambda file: file.length_bytes):
            try:
                self._fetch(file, on_bytes)
            except LaunchError as error:
                if error.code != Exit.NOT_VERIFIED:
                    raise  # else it became shorter: the part cannot match
            yield [(file, self._verify(file))]

    def _verify(self, file: RemoteFile) -> bool:
        part = self._store.part(file.sha256)
        whole = part.is_file() and part.stat().st_size == file.length_bytes and sha256_file(part) == file.sha256
        if not whole:
            part.unlink(missing_ok=True)
        return whole

    def _fetch_small(self, files: Sequence[RemoteFile], on_bytes: Callable[[int], None]) -> None:
        """Many files for the price of one question. Where one changed its length, the hashes tell for all after it.

        What streams in is written at once: a link that breaks costs the file that it broke in, and no more.
        """
        stdin = b"".join(f"{file.length_bytes}\n{file.path}\n".encode() for file in files if file.length_bytes)
        with contextlib.closing(self._streamed(stdin)) as stream:
            held = b""
            for file in files:
                wanted = file.length_bytes
                with open(_private(self._store.part(file.sha256)), "wb") as part:
                    while wanted and (held := held or next(stream, b"")):
                        on_bytes(len(held[:wanted]))
                        part.write(held[:wanted])
                        wanted, held = wanted - len(held[:wanted]), held[wanted:]
                    part.flush()
                    os.fsync(part.fileno())

    def _streamed(self, stdin: bytes) -> Generator[bytes, None, None]:
        try:
            if stdin:
                yield from self._transport.stream(["sh", "-c", BATCH, "sh", self._root], stdin=stdin)
        except LaunchError as error:
            if error.code == Exit.UNREACHABLE:
                raise  # else a file could not be read: its hash will tell

    def _fetch(self, file: RemoteFile, on_bytes: Callable[[int], None]) -> None:
        part = self._store.part(file.sha256)
        have = self._store.part_bytes(file.sha256)
        if have > file.length_bytes or part.is_symlink():
            part.unlink()
            have = 0
        os.close(_private(part))
        if self._ssh is not None and not file.grows and file.length_bytes - have >= RSYNC_FROM_BYTES:
            self._rsync(file, part, on_bytes)
            have = part.stat().st_size
        if have < file.length_bytes:  # also what rsync could not do: openrsync, a banner, a broken pipe
            remote = f"{self._root}/{file.path}"
            self._transport.fetch(remote, part, offset=have, length=file.length_bytes, on_bytes=on_bytes)
        with open(part, "rb") as written:
            os.fsync(written.fileno())

    def _rsync(self, file: RemoteFile, part: Path, on_bytes: Callable[[int], None]) -> None:
        argv = rsync.append(
            ssh=self._ssh or [],
            destination=ssh_destination(self._transport.host),
            remote=f"{self._root}/{file.path}",
            part=str(part.absolute()),
        )
        lock = () if self._store.lock_fd is None else (self._store.lock_fd,)
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
            pass_fds=lock,
        )
        seen = part.stat().st_size
        try:
            for _ in _output(process):
                now = min(part.stat().st_size, file.length_bytes + 1)
                on_bytes(max(0, now - seen))
                seen = max(seen, now)
                if now > file.length_bytes:  # a host that sends more than it listed fills no disk of ours
                    break
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _output(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What it says, or nothing for half a second; until it ends."""
    if process.stdout is None:
        return
    with process.stdout as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], 0.5)
            said = os.read(pipe.fileno(), 1 << 16) if ready else b""
            yield said
            if ready and not said:
                return


def _private(part: Path) -> int:
    return os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _batches(files: Iterable[RemoteFile]) -> Iterator[list[RemoteFile]]:
    batch: list[RemoteFile] = []
    total_bytes = 0
    for file in files:
        if batch and (total_bytes + file.length_bytes > BATCH_BYTES or len(batch) == BATCH_FILES):
            yield batch
            batch, total_bytes = [], 0
        batch.append(file)
        total_bytes += file.length_bytes
    if batch:
        yield batch
