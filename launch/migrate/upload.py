"""Giving a host names: each content travels once and goes on where it ended; a name appears for a verified one only."""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from launch.argv import migrate as argv
from launch.argv import ship
from launch.errors import Exit, LaunchError
from launch.migrate.cargo import Item
from launch.sync.listing import hashes
from launch.transport import Result, Transport
from launch.voice import Voice
from minimind.durable import sha256_file

SMALL_BYTES = 1 << 20
PACK_BYTES = 8 << 20
PACK_FILES = 500
BUSY_S = 15.0
"""What a killed launcher left on the host notices within seconds that nobody sends any more."""


class Upload:
    """One host's names below ``root`` (absolute there)."""

    def __init__(self, transport: Transport, root: str, voice: Voice) -> None:
        self._transport, self._voice = transport, voice
        self._folder = f"{root}/{argv.FOLDER}"

    def there(self, items: Sequence[Item]) -> list[str | None]:
        """The sha256 of what the host has under each name now; None where it has nothing."""
        return hashes(self._transport, "/", [("all", item.target) for item in items])

    def across(
        self, items: Sequence[Item], there: Sequence[str | None], carry: Callable[[Item, Callable[[int], None]], bool]
    ) -> list[str | None]:
        """Give names to what ``carry`` brings into the folder by another way; ``there`` as it is after that.

        Raises:
            LaunchError: as :meth:`bring` does.
        """
        now = list(there)
        missing = [
            (item, at) for at, (item, digest) in enumerate(zip(items, there, strict=True)) if digest != item.sha256
        ]
        large = _by_content(item for item, _ in missing if item.length_bytes > SMALL_BYTES)
        label = f"{len(large)} large files -> {self._transport.host.name}"
        with self._voice.moving(label, sum(some[0].length_bytes for some in large)) as moved:
            try:
                for some in sorted(large, key=lambda some: some[0].length_bytes):
                    if carry(some[0], moved):
                        self._place(_hows(some))
                        for item, at in missing:
                            if item.sha256 == some[0].sha256:
                                now[at] = item.sha256
            except LaunchError as error:
                raise self._broken(error) from error
        return now

    def bring(self, items: Sequence[Item], there: Sequence[str | None] | None = None) -> int:
        """Send what the host has not got, and give it its names; returns the bytes that travelled.

        ``there`` is what :meth:`there` said a moment ago.

        Raises:
            LaunchError: INCOMPLETE when the link broke, HOST_NOT_READY for want of room, NOT_VERIFIED when a file here
                is not what it was.
        """
        missing = [
            item for item, digest in zip(items, there or self.there(items), strict=True) if digest != item.sha256
        ]
        contents = _by_content(missing)
        small = [some for some in contents if some[0].length_bytes <= SMALL_BYTES]
        large = [some for some in contents if some[0].length_bytes > SMALL_BYTES]
        total_bytes = sum(some[0].length_bytes for some in contents)
        if not missing:
            return 0
        sent_bytes = 0
        with self._voice.moving(f"{len(missing)} files -> {self._transport.host.name}", total_bytes) as moved:
            try:
                for pack in _packs(small):
                    sent_bytes += self._pack(pack, moved)
                for some in sorted(large, key=lambda some: some[0].length_bytes):
                    sent_bytes += self._one(some, moved)
            except LaunchError as error:
                raise self._broken(error) from error
        return sent_bytes

    def _pack(self, contents: Sequence[Sequence[Item]], moved: Callable[[int], None]) -> int:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for some in contents:
                data = some[0].content()
                if hashlib.sha256(data).hexdigest() != some[0].sha256:
                    raise self._changed(some[0])
                member = tarfile.TarInfo(some[0].sha256)
                member.size, member.mode = len(data), 0o600
                tar.addfile(member, io.BytesIO(data))
        data = buffer.getvalue()
        name = hashlib.sha256(data).hexdigest()
        begun = self._begun(name, lambda length: hashlib.sha256(data[:length]).hexdigest(), len(data))

        def send(offset: int) -> Result:
            words = ship.receive(self._folder, name, offset=offset, length=len(data), digest=name)
            return self._transport.run(words, stdin=data[offset:], check=False)

        sent_bytes = self._receive(name, len(data), begun, send, contents[0][0])
        self._place([how for some in contents for how in _hows(some)], pack=name)
        moved(sum(some[0].length_bytes for some in contents))
        return sent_bytes

    def _one(self, some: Sequence[Item], moved: Callable[[int], None]) -> int:
        first = some[0]
        local = first.local
        if local is None or not local.is_file() or local.stat().st_size != first.length_bytes:
            raise self._changed(first)
        begun = self._begun(first.sha256, lambda length: sha256_file(local, length_bytes=length), first.length_bytes)
        moved(begun)

        def send(offset: int) -> Result:
            words = ship.receive(
                self._folder, first.sha256, offset=offset, length=first.length_bytes, digest=first.sha256
            )
            return self._transport.feed(words, local, offset=offset, on_bytes=moved)

        sent_bytes = self._receive(first.sha256, first.length_bytes, begun, send, first)
        self._place(_hows(some))
        return sent_bytes

    def _begun(self, name: str, prefix: Callable[[int], str], length_bytes: int) -> int:
        """How much of a content has come; 0 when that is other bytes."""
        come, digest = arrived(self._transport, self._folder, name)
        return come if 0 < come <= length_bytes and prefix(come) == digest else 0

    def _receive(self, name: str, length: int, begun: int, send: Callable[[int], Result], item: Item) -> int:
        deadline = time.monotonic() + BUSY_S
        while (result := send(begun)).code == ship.BUSY and time.monotonic() < deadline:
            time.sleep(0.5)
        if result.code == 0:
            return length - begun
        if result.code == ship.OFFSET_DIFFERS and begun:  # what a killed launcher left there was still arriving
            return self._receive(name, length, 0, send, item)
        if result.code == ship.BUSY:
            raise LaunchError(
                f"somebody else sends to {self._transport.host.name}",
                why=f"the lock in {self._folder} is held there",
                remedy="wait for it, then run the same command again",
                code=Exit.REFUSED,
            )
        if result.code in (ship.TORN, ship.OFFSET_DIFFERS):
            raise self._changed(item)
        raise self._unstored(result)

    def _place(self, names: Iterable[tuple[str, Item]], *, pack: str = "") -> None:
        lines = "".join(f"{how}\n{item.mode}\n{item.sha256}\n{item.target}\n" for how, item in names)
        result = self._transport.run(argv.place(self._folder, pack=pack), stdin=lines.encode(), check=False)
        if result.code:
            raise self._unstored(result)

    def _unstored(self, result: Result) -> LaunchError:
        name = self._transport.host.name
        return LaunchError(
            f"{name} could not store what was sent",
            why=result.stderr.decode("utf-8", "replace").strip()[-400:] or f"it ended with exit code {result.code}",
            remedy=f"make room and permissions below its root on {name}, then run the same command again",
            code=Exit.HOST_NOT_READY,
        )

    def _changed(self, item: Item) -> LaunchError:
        return LaunchError(
            f"{item.local or item.target} is not what was verified",
            why="its copy here was changed since it came from its host, or other bytes arrived than were sent",
            remedy="say the same with --again: what is missing is brought home once more",
            code=Exit.NOT_VERIFIED,
        )

    def _broken(self, error: LaunchError) -> LaunchError:
        if error.code != Exit.UNREACHABLE:
            return error
        return LaunchError(
            f"the copy to {self._transport.host.name} is not complete",
            why=f"{error.what}: {error.why}",
            remedy="run the same command again: it goes on where it stopped",
            code=Exit.INCOMPLETE,
        )


def arrived(transport: Transport, folder: str, name: str) -> tuple[int, str]:
    """How many bytes of a content lie in a host's folder of parts, and their sha256; 0 where nothing has come."""
    told = transport.read(argv.parts(folder), stdin=f"{name}\n".encode()).text.split()
    return (int(told[1]), told[2]) if len(told) == 3 and told[0] == name and told[1].isdecimal() else (0, "")


def _by_content(items: Iterable[Item]) -> list[list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.sha256, []).append(item)
    return list(found.values())


def _hows(some: Sequence[Item]) -> list[tuple[str, Item]]:
    """A log must not be one file with another of the same bytes: it grows in place."""
    shared = [item for item in some if item.shared] or [some[0]]
    return [("link" if item in shared else "copy", item) for item in some]


def _packs(contents: Iterable[Sequence[Item]]) -> Iterator[list[Sequence[Item]]]:
    pack: list[Sequence[Item]] = []
    total_bytes = 0
    for some in contents:
        if pack and (total_bytes + some[0].length_bytes > PACK_BYTES or len(pack) == PACK_FILES):
            yield pack
            pack, total_bytes = [], 0
        pack.append(some)
        total_bytes += some[0].length_bytes
    if pack:
        yield pack
