"""Getting the bytes of a host's files into parts at home, and believing only their hash."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launch.argv import rsync
from launch.errors import Exit, LaunchError
from launch.inventory import Inventory
from launch.sync import archive, packing
from launch.sync.lanes import Lanes, Once
from launch.sync.listing import RemoteFile
from launch.sync.scripts import ARCHIVE
from launch.sync.store import Store
from launch.transport import Transport, ssh_command, ssh_destination
from launch.voice import Voice
from minimind.durable import sha256_file

RSYNC_FROM_BYTES = 4 << 20
SMALL_BYTES = 1 << 20
BATCH_BYTES = 8 << 20
BATCH_FILES = 500
MEMBER_BYTES = 8 << 10
"""What an archive may say of a file beside its bytes."""
LARGE_LANES = 2
"""Large files at once: while one is greeted by the host's sshd, the other fills the line."""
FSYNCS = 8
"""At once: a disk answers several in the time of one."""


class Courier:
    """Brings files of one host; ``root`` is absolute there."""

    def __init__(self, transport: Transport, inventory: Inventory, root: str, store: Store, voice: Voice) -> None:
        self._transport, self._root, self._store, self._voice = transport, root, store, voice
        self._inventory = inventory
        self._ssh: list[str] | None = None
        self._pack = False

    def bring(
        self, files: Sequence[RemoteFile], on_bytes: Callable[[int], None]
    ) -> Generator[list[tuple[RemoteFile, bool]], None, None]:
        """The files in groups, each file with whether its part now holds exactly its bytes.

        One file a hash, please. What is fetched meanwhile are other files. Close the generator: then nothing is.
        """
        lanes = Lanes[list[RemoteFile]]()
        on_bytes = lanes.watched(on_bytes)
        whole = [file for file in files if file.length_bytes and not self._lacking(file)]  # by an earlier attempt
        small = [file for file in files if file.length_bytes <= SMALL_BYTES and not self._store.part_bytes(file.sha256)]
        large = sorted(set(files) - {*whole, *small}, key=lambda file: file.length_bytes)
        ways: list[Iterable[list[RemoteFile]]] = [_batches(whole), self._small(small, on_bytes)]
        waiting = queue.SimpleQueue[RemoteFile]()
        for file in large:
            waiting.put(file)
        choice = Once(lambda: self._choose(large, on_bytes))
        ways += [self._large(waiting, choice, on_bytes) for _ in large[:LARGE_LANES]]
        with contextlib.closing(lanes.run(ways)) as fetched, ThreadPoolExecutor(FSYNCS) as pool:
            for group in fetched:
                yield list(zip(group, pool.map(self._verify, group), strict=True))

    def _small(self, files: Sequence[RemoteFile], on_bytes: Callable[[int], None]) -> Iterator[list[RemoteFile]]:
        for batch in _batches(files):
            self._fetch_small(batch, on_bytes)
            yield batch

    def _large(
        self, waiting: queue.SimpleQueue[RemoteFile], choice: Once, on_bytes: Callable[[int], None]
    ) -> Iterator[list[RemoteFile]]:
        choice.made()
        while not waiting.empty():
            with contextlib.suppress(queue.Empty):
                file = waiting.get_nowait()
                self._fetch_if_there(file, on_bytes)
                yield [file]

    def _choose(self, large: Sequence[RemoteFile], on_bytes: Callable[[int], None]) -> None:
        """How the large ones travel, the largest one last: by rsync where both sides have it, packed if that pays."""
        host = self._transport.host
        if host.ssh is None or max(map(self._lacking, large)) < RSYNC_FROM_BYTES or not shutil.which("rsync"):
            return
        theirs = self._transport.read(["rsync", "--version"], check=False)
        if theirs.code:
            return
        self._ssh = ssh_command(host, self._inventory)
        ours = subprocess.run(["rsync", "--version"], capture_output=True, stdin=subprocess.DEVNULL, check=False)
        can_pack = b"zstd" in theirs.stdout and b"zstd" in ours.stdout
        if can_pack and sum(map(self._lacking, large)) >= packing.FROM_BYTES:
            self._measure(large[-1], on_bytes)

    def _lacking(self, file: RemoteFile) -> int:
        return file.length_bytes - self._store.part_bytes(file.sha256)

    def _measure(self, file: RemoteFile, on_bytes: Callable[[int], None]) -> None:
        """Decide about packing by the next bytes of a file: how fast they come, and how much they shrink."""
        part, have = self._store.part(file.sha256), self._store.part_bytes(file.sha256)
        if have >= file.length_bytes or part.is_symlink():
            return
        meter = packing.Meter(on_bytes)
        with contextlib.suppress(LaunchError):  # whatever is wrong shows when the file is fetched
            until = min(have + packing.SAMPLE_BYTES, file.length_bytes)
            self._transport.fetch(f"{self._root}/{file.path}", part, offset=have, length=until, on_bytes=meter)
            with open(part, "rb") as sample:
                sample.seek(have)
                share, bytes_per_s = packing.shrinks_to(sample.read()), meter.bytes_per_s
            self._pack = packing.pays(share, bytes_per_s)
            told = f"the link carries {bytes_per_s / 1e6:.0f} MB/s, a sample shrinks to {share:.0%}"
            self._voice.say(f"{told}: sending {'packed by zstd' if self._pack else 'as it is'}")

    def _verify(self, file: RemoteFile) -> bool:
        part = self._store.part(file.sha256)
        plain = part.is_file() and not part.is_symlink() and part.stat().st_size == file.length_bytes
        whole = plain and sha256_file(part) == file.sha256
        if whole:
            with open(part, "rb") as written:
                os.fsync(written.fileno())
        if not whole:
            part.unlink(missing_ok=True)
        return whole

    def _fetch_small(self, files: Sequence[RemoteFile], on_bytes: Callable[[int], None]) -> None:
        """Many files for the price of one question, as an archive; those that are not in it are asked for one by one.

        What streams in is written at once: a link that breaks costs the file that it broke in, and no more.
        """
        waiting = {file.path: file for file in files if file.length_bytes}
        for file in files:
            os.close(_private(self._store.part(file.sha256)))
        with contextlib.closing(self._archive(tuple(waiting))) as stream:
            most_bytes = sum(file.length_bytes + MEMBER_BYTES for file in files) + SMALL_BYTES
            for name, chunks in archive.members(stream, most_bytes):
                if name in waiting:
                    self._write(waiting.pop(name), chunks, on_bytes)
        for file in waiting.values():
            self._fetch_if_there(file, on_bytes)

    def _write(self, file: RemoteFile, chunks: Iterable[bytes], on_bytes: Callable[[int], None]) -> None:
        left_bytes = file.length_bytes
        with open(_private(self._store.part(file.sha256)), "wb") as part:
            for chunk in chunks:
                wanted = chunk[:left_bytes]
                part.write(wanted)
                on_bytes(len(wanted))
                left_bytes -= len(wanted)

    def _archive(self, paths: Sequence[str]) -> Generator[bytes, None, None]:
        stdin = "".join(f"{path}\n" for path in paths).encode()
        try:
            if stdin:
                yield from self._transport.stream(["sh", "-c", ARCHIVE, "sh", self._root], stdin=stdin)
        except LaunchError as error:
            if error.code == Exit.UNREACHABLE:
                raise  # else a file could not be read: its hash will tell

    def _fetch_if_there(self, file: RemoteFile, on_bytes: Callable[[int], None]) -> None:
        try:
            self._fetch(file, on_bytes)
        except LaunchError as error:
            if error.code != Exit.NOT_VERIFIED:
                raise  # else it became shorter: the part cannot match

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

    def _rsync(self, file: RemoteFile, part: Path, on_bytes: Callable[[int], None]) -> None:
        argv = rsync.append(
            ssh=self._ssh or [],
            destination=ssh_destination(self._transport.host),
            remote=f"{self._root}/{file.path}",
            part=str(part.absolute()),
            pack=self._pack,
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
