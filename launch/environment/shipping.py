"""Bringing an image to a host's engine: what it lacks, packed, piece by piece, verified, loaded, compared.

Pieces lie on the host under the names of their contents until the engine has them: a shipment that was cut goes on
where it ended. An engine that insists on layers it has already gets all of them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from launch.argv import images, ship
from launch.environment.engine import FarSide, Image, layer_sizes, look, parse_image
from launch.environment.spool import Packed, Spool, archive
from launch.errors import Exit, LaunchError, printable
from launch.transport import DryTransport, Transport
from launch.voice import Voice

SLACK_BYTES = 64 << 20
COPIES = 2
"""Of the unpacked layers while an engine loads: its own copy of the archive, and what becomes of it."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a shipment did."""

    layers: int
    layers_sent: int
    sent_bytes: int
    resumed_bytes: int
    packed_bytes: int
    seconds: float


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
        far = look(transport, self.folder, ())
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
        self._compare(transport)
        return replace(report, seconds=time.monotonic() - began_s)

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
        began_s = time.monotonic()
        wanted = dict(zip(self.image.layers[have:], sizes[have:], strict=True))
        kind = next((kind for kind, tool in (("zst", "zstd"), ("gz", "gzip")) if tool in far.tools), "raw")
        if kind == "zst" and laptop.read(["zstd", "--version"], check=False).code:
            kind = "gz" if "gzip" in far.tools else "raw"
        self.spool.fill(laptop, self.image.id, wanted, kind=kind)
        layers = [self.spool.layer(diff_id, kind) if n >= have else None for n, diff_id in enumerate(self.image.layers)]
        pieces = archive(self.spool.config(self.image.id) or b"", self.reference, layers, self.spool)
        far = look(transport, self.folder, {piece.name for piece in pieces})
        begun = {piece.name: _begun(piece, far.pieces.get(piece.name)) for piece in pieces}
        left_bytes = sum(piece.bytes - begun[piece.name] for piece in pieces)
        self._check_space(transport.host.name, far, left_bytes, sum(layer.plain_bytes for layer in layers if layer))
        sent_bytes = 0
        with voice.moving(f"{self.reference} -> {transport.host.name}", left_bytes) as moved:
            for piece in pieces:
                sent_bytes += self._send(transport, piece, begun[piece.name], moved)
        took_s = time.monotonic() - began_s
        rate = f" at {sent_bytes / took_s / 1e6:.1f} MB/s with packing" if sent_bytes > SLACK_BYTES else ""
        voice.say(f"sent {sent_bytes} bytes in {took_s:.1f} s{rate}; {transport.host.name} is loading them")
        result = transport.run(ship.load(self.folder, [(piece.kind, piece.name) for piece in pieces]), check=False)
        if result.code:
            self._is_there(transport)
            raise _RefusedArchive(result.stderr.decode(errors="replace").strip()[-400:])
        transport.run(ship.forget(self.folder, {piece.name for piece in pieces}), check=False)
        for piece in pieces:
            if piece.kind == "raw" and piece not in layers:
                piece.path.unlink(missing_ok=True)
        return self._report(
            have, began_s, sent_bytes=sent_bytes, resumed_bytes=sum(begun.values()), packed_bytes=left_bytes
        )

    def _report(
        self, have: int, began_s: float, *, sent_bytes: int = 0, resumed_bytes: int = 0, packed_bytes: int = 0
    ) -> Report:
        return Report(
            layers=len(self.image.layers),
            layers_sent=len(self.image.layers) - have,
            sent_bytes=sent_bytes,
            resumed_bytes=resumed_bytes,
            packed_bytes=packed_bytes,
            seconds=time.monotonic() - began_s,
        )

    def _send(self, transport: Transport, piece: Packed, begun: int, moved: Callable[[int], None]) -> int:
        """Send what is left of a piece, once more from its beginning when what had come is not what it should be.

        Nothing may be left: then this gives the piece its name, which a killed shipment may have owed it.
        """
        sent_bytes = 0
        for offset in (begun, 0):
            argv = ship.receive(self.folder, piece.name, offset=offset, length=piece.bytes, digest=piece.sha256)
            result = transport.feed(argv, piece.path, offset=offset, on_bytes=moved)
            sent_bytes += piece.bytes - offset
            if result.code == 0:
                return sent_bytes
            if result.code not in (ship.TORN, ship.OFFSET_DIFFERS):
                break
        name, busy, torn = (
            transport.host.name,
            result.code == ship.BUSY,
            result.code in (ship.TORN, ship.OFFSET_DIFFERS),
        )
        said = result.stderr.decode(errors="replace").strip()[-400:]
        raise LaunchError(
            f"another launch is shipping to {name}" if busy else f"the image could not be brought to {name}",
            why="it holds the lock of the pieces there"
            if busy
            else "other bytes arrived than were sent, twice"
            if torn
            else said or f"{self.folder} could not be written",
            remedy="wait for it, then run this again"
            if busy
            else "run this again"
            if torn
            else f"make room and permissions for {self.folder} on {name}, then run this again; nothing is sent twice",
            code=Exit.REFUSED if busy else Exit.NOT_VERIFIED if torn else Exit.HOST_NOT_READY,
        )

    def _check_space(self, name: str, far: FarSide, left_bytes: int, plain_bytes: int) -> None:
        needs = (
            (
                far.folder_free_bytes,
                left_bytes + SLACK_BYTES,
                f"the pieces in {self.folder}",
                "set root to a larger disk",
            ),
            (far.engine_free_bytes, COPIES * plain_bytes + SLACK_BYTES, "its engine", "launch image prune"),
        )
        for free, needed, what, remedy in needs:
            if free is not None and free < needed:
                raise LaunchError(
                    f"{name} has {free / 1e9:.2f} GB free for {what}, the image needs {needed / 1e9:.2f} GB",
                    why=f"{self.reference} is unpacked there, and the engine holds it {COPIES} times while it loads",
                    remedy=f"{remedy}, or free space on {name}, then run this again; nothing was sent",
                    code=Exit.HOST_NOT_READY,
                )

    def _is_there(self, transport: Transport) -> None:
        """A load that failed because the engine went away is another trouble than one that it refused."""
        look(transport, self.folder, ())

    def _unloaded(self, name: str, refused: _RefusedArchive) -> LaunchError:
        return LaunchError(
            f"the engine of {name} did not load the image",
            why=printable(str(refused)) or "it gave no reason",
            remedy=f"see `docker info` and the disk on {name}, then run this again; nothing is sent twice",
            code=Exit.HOST_NOT_READY,
        )

    def _compare(self, transport: Transport) -> None:
        result = transport.read(images.image(self.reference), check=False)
        there = parse_image(result.text) if result.code == 0 else None
        if there is None or there.id != self.image.id:
            raise LaunchError(
                f"the image that arrived on {transport.host.name} is not the one that was sent",
                why=f"its engine has {there.id if there else 'no image'} as {self.reference}, not {self.image.id}",
                remedy="run the same command again; an engine with another image store may need `make image` there",
                code=Exit.NOT_VERIFIED,
            )


def _begun(piece: Packed, told: tuple[int, str] | None) -> int:
    """How many of a piece's bytes have come, by their hash; 0 when they are others."""
    if told is None or not 0 < told[0] <= piece.bytes:
        return 0
    digest = hashlib.sha256()
    left = told[0]
    with open(piece.path, "rb") as file:
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return told[0] if digest.hexdigest() == told[1] else 0
