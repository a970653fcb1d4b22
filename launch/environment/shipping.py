"""Bringing an image to a host's engine: what it lacks, packed, piece by piece, verified, loaded, compared.

Pieces lie on the host under the names of their contents until the engine has them: a shipment that was cut goes on
where it ended. They leave while the next ones are still being packed. An engine that insists on layers it has already
gets all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from launch.argv import images, ship
from launch.environment.engine import ANSWERS_S, FarSide, Image, layer_sizes, look, packed_as, parse_image
from launch.environment.packing import Ahead, Packed
from launch.environment.spool import Spool, archive
from launch.errors import Exit, LaunchError, printable
from launch.transport import DryTransport, Result, Transport
from launch.voice import Voice
from minimind.durable import sha256_file

SLACK_BYTES = 64 << 20
BUSY_S = 5.0
COPIES = 2
"""Of the unpacked layers while an engine loads: its own copy of the archive, and what becomes of it."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a shipment did. ``arrived_id`` is the image's id on the host, whose store may form it in another way.

    ``pulled`` is what the host took from a registry; no bytes went over the connection then.
    """

    arrived_id: str
    layers: int
    layers_sent: int
    sent_bytes: int
    resumed_bytes: int
    packed_bytes: int
    seconds: float
    pulled: str | None = None


class _RefusedArchive(Exception):
    """The engine answers, and did not take the archive; says why."""


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """One image on its way to one host; ``folder`` is for its pieces there, ``spool`` for packed layers here."""

    image: Image
    reference: str
    folder: str
    spool: Spool

    def do(self, transport: Transport, laptop: Transport, voice: Voice) -> Report:
        """Bring it, or say what that would take when the transports are dry.

        Raises:
            LaunchError: HOST_NOT_READY for want of space or of an engine, REFUSED while another ships there,
                NOT_VERIFIED when other bytes arrive or the engine ends up with another image.
        """
        began_s, name = time.monotonic(), transport.host.name
        far = look(transport, self.folder)
        have, sizes = far.has(self.image.layers), layer_sizes(laptop, self.image)
        voice.say(self._cost(name, have, sizes))
        if isinstance(transport, DryTransport):
            transport.run(ship.load(self.folder, [("layer", digest) for digest in self.image.layers[have:]]))
            return self._report(have, began_s)
        try:
            report = self._bring(transport, laptop, far, have, sizes, voice)
        except _RefusedArchive as refused:
            if not have:
                raise self._unloaded(name, refused) from refused
            voice.say(f"the engine of {name} does not take a part of an image; sending all of it")
            try:
                report = self._bring(transport, laptop, far, 0, sizes, voice)
            except _RefusedArchive as again:
                raise self._unloaded(name, again) from again
        arrived = compare(transport, self.image, self.reference)
        return replace(report, arrived_id=arrived.id, seconds=time.monotonic() - began_s)

    def missing_bytes(self, transport: Transport, laptop: Transport) -> int:
        """The unpacked bytes that the host lacks; changes nothing.

        Raises:
            LaunchError: HOST_NOT_READY when they would find no room.
        """
        far, sizes = look(transport, self.folder, pieces=True), layer_sizes(laptop, self.image)
        have = far.has(self.image.layers)
        wanted = dict(zip(self.image.layers[have:], sizes[have:], strict=True))
        return self._check_space(transport.host.name, far, wanted, packed_as(far, laptop))

    def _cost(self, name: str, have: int, sizes: Sequence[int | None]) -> str:
        missing = sizes[have:]
        known = sum(size or 0 for size in missing)
        cost = f"{known / 1e6:.1f} MB before packing" if None not in missing else "layers of unknown size"
        there = f"{name} has {have} of its {len(sizes)} layers"
        return f"shipping {self.reference} ({self.image.bytes / 1e9:.2f} GB): {there}, {cost} to send"

    def _bring(
        self,
        transport: Transport,
        laptop: Transport,
        far: FarSide,
        have: int,
        sizes: Sequence[int | None],
        voice: Voice,
    ) -> Report:
        began_s, name = time.monotonic(), transport.host.name
        wanted = dict(zip(self.image.layers[have:], sizes[have:], strict=True))
        kind = packed_as(far, laptop)
        far = look(transport, self.folder, pieces=True)
        plain_bytes = self._check_space(name, far, wanted, kind)
        sent: dict[str, tuple[int, int]] = {}
        chunks = self.spool.pack(laptop, self.image.id, wanted, kind=kind, whole=have == 0)
        with (
            voice.moving(f"{self.reference} -> {name}, as it is unpacked", plain_bytes) as moved,
            Ahead(chunks) as made,
        ):
            for piece in made:
                self._bring_piece(transport, piece, far, moved, sent)
            layers = [
                self.spool.layer(digest, kind) if n >= have else None for n, digest in enumerate(self.image.layers)
            ]
            pieces = archive(self.spool.config(self.image.id) or b"", self.reference, layers, self.spool)
            for piece in pieces:
                self._bring_piece(transport, piece, far, moved, sent)
        sent_bytes, resumed_bytes = (sum(counts) for counts in zip(*sent.values(), strict=True))
        took_s = time.monotonic() - began_s
        rate = f" at {sent_bytes / took_s / 1e6:.1f} MB/s with packing" if sent_bytes > SLACK_BYTES else ""
        voice.say(f"sent {sent_bytes} bytes in {took_s:.1f} s{rate}; {name} is loading them")
        load = ship.load(self.folder, [(piece.kind, piece.name) for piece in pieces])
        result = _when_free(lambda: transport.run(load, check=False))
        if result.code == ship.BUSY:
            raise self._busy(name)
        if result.code:
            self._is_there(transport)
            raise _RefusedArchive(result.stderr.decode(errors="replace").strip()[-400:])
        transport.run(ship.forget(self.folder, {piece.name for piece in pieces}), check=False)
        of_layers = {chunk.name for layer in layers for chunk in layer or ()}
        for piece in pieces:
            if piece.name not in of_layers:
                piece.path.unlink(missing_ok=True)
        packed_bytes = sum({piece.name: piece.bytes for piece in pieces}.values())
        return self._report(
            have, began_s, sent_bytes=sent_bytes, resumed_bytes=resumed_bytes, packed_bytes=packed_bytes
        )

    def _report(
        self, have: int, began_s: float, *, sent_bytes: int = 0, resumed_bytes: int = 0, packed_bytes: int = 0
    ) -> Report:
        return Report(
            arrived_id=self.image.id,
            layers=len(self.image.layers),
            layers_sent=len(self.image.layers) - have,
            sent_bytes=sent_bytes,
            resumed_bytes=resumed_bytes,
            packed_bytes=packed_bytes,
            seconds=time.monotonic() - began_s,
        )

    def _bring_piece(
        self,
        transport: Transport,
        piece: Packed,
        far: FarSide,
        moved: Callable[[int], None],
        sent: dict[str, tuple[int, int]],
    ) -> None:
        """Send a piece, unless that was done; notes (sent, resumed) bytes of it."""
        if piece.name in sent:
            return
        begun = _begun(piece, far.pieces.get(piece.name))
        expands = piece.plain_bytes / max(1, piece.bytes)
        moved(int(begun * expands))
        sent[piece.name] = self._send(transport, piece, begun, lambda count: moved(int(count * expands))), begun

    def _send(self, transport: Transport, piece: Packed, begun: int, moved: Callable[[int], None]) -> int:
        """Send what is left of a piece, once more from its beginning when what had come is not what it should be.

        Nothing may be left: then this gives the piece its name, which a killed shipment may have owed it.
        """
        sent_bytes = 0
        for offset in (begun, 0):
            argv = ship.receive(self.folder, piece.name, offset=offset, length=piece.bytes, digest=piece.sha256)
            result = _when_free(lambda: transport.feed(argv, piece.path, offset=offset, on_bytes=moved))  # noqa: B023
            sent_bytes += piece.bytes - offset
            if result.code == 0:
                return sent_bytes
            if result.code not in (ship.TORN, ship.OFFSET_DIFFERS):
                break
        name, torn = transport.host.name, result.code in (ship.TORN, ship.OFFSET_DIFFERS)
        if result.code == ship.BUSY:
            raise self._busy(name)
        said = result.stderr.decode(errors="replace").strip()[-400:]
        raise LaunchError(
            f"the image could not be brought to {name}",
            why="other bytes arrived than were sent, twice" if torn else said or f"{self.folder} could not be written",
            remedy="run this again"
            if torn
            else f"make room and permissions for {self.folder} on {name}, then run this again; nothing is sent twice",
            code=Exit.NOT_VERIFIED if torn else Exit.HOST_NOT_READY,
        )

    def _busy(self, name: str) -> LaunchError:
        return LaunchError(
            f"another launch is shipping to {name}",
            why="it holds the lock of the pieces there, or what it sent is being loaded",
            remedy="wait for it, then run this again",
            code=Exit.REFUSED,
        )

    def _check_space(self, name: str, far: FarSide, wanted: Mapping[str, int | None], kind: str) -> int:
        """The unpacked bytes to bring. What is not packed yet is counted as if it did not shrink.

        Raises:
            LaunchError: HOST_NOT_READY when the pieces or the engine would find no room.
        """
        packed_bytes = plain_bytes = 0
        for diff_id, length_bytes in wanted.items():
            chunks = self.spool.layer(diff_id, kind)
            known = self.image.bytes if length_bytes is None else length_bytes  # unknown is unknown for every layer
            packed_bytes += known if chunks is None else sum(chunk.bytes for chunk in chunks)
            plain_bytes += known if chunks is None else sum(chunk.plain_bytes for chunk in chunks)
            if length_bytes is None and chunks is None:
                break
        packed_bytes = max(0, packed_bytes - sum(count for count, _ in far.pieces.values()))
        pieces = f"the pieces in {self.folder}"
        check_room(name, far.folder_free_bytes, packed_bytes, self.reference, place=pieces)
        check_room(name, far.engine_free_bytes, COPIES * plain_bytes, self.reference, place="its engine")
        return plain_bytes

    def _is_there(self, transport: Transport) -> None:
        """A load that failed because the engine went away is another trouble than one that it refused."""
        look(transport, self.folder)

    def _unloaded(self, name: str, refused: _RefusedArchive) -> LaunchError:
        return LaunchError(
            f"the engine of {name} did not load the image",
            why=printable(str(refused)) or "it gave no reason",
            remedy=f"see `docker info` and the disk on {name}, then run this again; nothing is sent twice",
            code=Exit.HOST_NOT_READY,
        )


def _when_free(attempt: Callable[[], Result]) -> Result:
    """What a killed launcher left at work on the host holds the lock for a while."""
    deadline = time.monotonic() + BUSY_S
    while (result := attempt()).code == ship.BUSY and time.monotonic() < deadline:
        time.sleep(0.5)
    return result


def check_room(name: str, free_bytes: int | None, needed_bytes: int, reference: str, *, place: str) -> None:
    """See whether a place on a host has room, where that is known.

    Raises:
        LaunchError: HOST_NOT_READY when it has not.
    """
    needed_bytes += SLACK_BYTES
    if free_bytes is not None and free_bytes < needed_bytes:
        remedy = "launch image prune" if place == "its engine" else "set root to a larger disk"
        raise LaunchError(
            f"{name} has {free_bytes / 1e9:.2f} GB free for {place}, the image needs {needed_bytes / 1e9:.2f} GB",
            why=f"{reference} is unpacked there, and the engine holds it {COPIES} times while it loads",
            remedy=f"{remedy}, or free space on {name}, then run this again; nothing was sent",
            code=Exit.HOST_NOT_READY,
        )


def compare(transport: Transport, image: Image, reference: str) -> Image:
    """The image of that name on the host, which must be this one.

    Raises:
        LaunchError: NOT_VERIFIED when it is another, or there is none.
    """
    result = transport.read(images.image(reference), check=False, timeout_s=ANSWERS_S)
    there = parse_image(result.text) if result.code == 0 else None
    if there is not None and there.is_same(image):
        return there
    raise LaunchError(
        f"the image that arrived on {transport.host.name} is not the one that was sent",
        why=f"its engine has {there.id if there else 'no image'} as {reference}, not {image.id}",
        remedy="run the same command again; if it stays, remove that image there or make it there: `make image`",
        code=Exit.NOT_VERIFIED,
    )


def _begun(piece: Packed, told: tuple[int, str] | None) -> int:
    """How many of a piece's bytes have come, by their hash; 0 when they are others."""
    if told is None or not 0 < told[0] <= piece.bytes:
        return 0
    return told[0] if sha256_file(piece.path, length_bytes=told[0]) == told[1] else 0
