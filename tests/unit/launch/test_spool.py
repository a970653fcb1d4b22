"""Packed layers: whatever the engine's archive looks like, what travels unpacks to the very layers of the image."""

import gzip
import hashlib
import io
import json
import random
import subprocess
import tarfile
import threading
import time

import pytest

from launch.environment.engine import Image, parse_image
from launch.environment.packing import AHEAD, Ahead, Packed
from launch.environment.spool import Spool, archive
from launch.errors import LaunchError

NOISE = random.Random(2)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Saved:
    """What `docker save` gives on a laptop, in blocks."""

    def __init__(self, members: dict[str, bytes], *, cut_at: int | None = None) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in members.items():
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        self._data, self.asked = buffer.getvalue()[:cut_at], 0

    def stream(self, argv):
        self.asked += 1
        yield from (self._data[at : at + 70_000] for at in range(0, len(self._data), 70_000))


LAYERS = [NOISE.randbytes(50_000) + bytes(5 << 20), b"words " * 900_000, b"tiny"]
CONFIG = json.dumps({"rootfs": {"diff_ids": [digest(layer) for layer in LAYERS]}}).encode()
WANTED = {digest(layer): None for layer in LAYERS}


def classic(kind: type[Saved] = Saved) -> Saved:
    members = {f"{n}/layer.tar": layer for n, layer in enumerate(LAYERS)}
    return kind({**members, f"{digest(CONFIG)[7:]}.json": CONFIG, "manifest.json": b"[]"})


def by_manifest() -> tuple[Saved, str]:
    """An archive of the other kind of store: layers as a registry gave them, the image named by its manifest."""
    blobs = [gzip.compress(LAYERS[0], mtime=0), LAYERS[1], gzip.compress(LAYERS[2], mtime=0), CONFIG]
    told = {"config": {"digest": digest(CONFIG)}, "layers": [{"digest": digest(blob)} for blob in blobs[:3]]}
    manifest = json.dumps(told).encode()
    index = json.dumps({"manifests": [{"digest": "sha256:0"}, {"digest": digest(manifest)}]}).encode()
    named = {f"blobs/sha256/{digest(data)[7:]}": data for data in (*blobs, manifest, index)}
    return Saved(named), digest(index)


def arrived(pieces: list[Packed]) -> dict[str, bytes]:
    """What the host's engine gets to read."""
    tools = {"zst": ["zstd", "-dcq"], "gz": ["gzip", "-dc"], "raw": ["cat"]}
    data = b"".join(
        subprocess.run(tools[piece.kind], input=piece.path.read_bytes(), capture_output=True, check=True).stdout
        for piece in pieces
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


@pytest.mark.parametrize("kind", ["zst", "gz", "raw"])
@pytest.mark.parametrize("chunk_bytes", [1 << 20, 64 << 20])
def test_what_travels_is_the_image_whatever_it_is_cut_into(tmp_path, kind, chunk_bytes):
    spool, laptop = Spool(tmp_path, chunk_bytes=chunk_bytes), classic()
    chunks = list(spool.pack(laptop, digest(CONFIG), WANTED, kind=kind, whole=True))
    assert (len(chunks) > 10) is (chunk_bytes == 1 << 20)
    pieces = archive(spool.config(digest(CONFIG)), "a:b", [spool.layer(name, kind) for name in WANTED], spool)
    found = arrived(pieces)
    assert [found[f"{name[7:]}.tar"] for name in WANTED] == LAYERS
    assert found[f"{digest(CONFIG)[7:]}.json"] == CONFIG
    assert {chunk.name for chunk in chunks} <= {piece.name for piece in pieces}
    assert [c.name for c in spool.pack(laptop, digest(CONFIG), WANTED, kind=kind, whole=True)] and laptop.asked == 1


def test_an_image_that_is_named_by_its_manifest_is_packed_from_its_compressed_layers(tmp_path):
    laptop, name = by_manifest()
    spool = Spool(tmp_path)
    list(spool.pack(laptop, name, WANTED, kind="zst", whole=True))
    assert spool.config(name) == CONFIG
    found = arrived(archive(spool.config(name), "a:b", [spool.layer(layer, "zst") for layer in WANTED], spool))
    assert [found[f"{layer[7:]}.tar"] for layer in WANTED] == LAYERS


def test_a_chunk_that_a_power_cut_spoiled_is_packed_anew(tmp_path):
    list(Spool(tmp_path).pack(classic(), digest(CONFIG), WANTED, kind="zst", whole=True))
    spoilt = max(tmp_path.glob("*.zst"), key=lambda path: path.stat().st_size)
    spoilt.write_bytes(bytes(spoilt.stat().st_size))
    spool, laptop = Spool(tmp_path), classic()
    list(spool.pack(laptop, digest(CONFIG), WANTED, kind="zst", whole=True))
    found = arrived(archive(CONFIG, "a:b", [spool.layer(name, "zst") for name in WANTED], spool))
    assert [found[f"{name[7:]}.tar"] for name in WANTED] == LAYERS and laptop.asked == 1


def test_a_layer_that_nobody_asked_for_is_not_given_and_not_kept(tmp_path):
    spool, asked = Spool(tmp_path, chunk_bytes=1 << 20), {digest(LAYERS[1]): len(LAYERS[1])}
    given = list(spool.pack(classic(), digest(CONFIG), asked, kind="zst", whole=False))
    assert {chunk.name for chunk in given} == {chunk.name for chunk in spool.layer(digest(LAYERS[1]), "zst")}
    assert spool.layer(digest(LAYERS[0]), "zst") is None
    kept = {path.name.split(".")[0] for path in tmp_path.glob("*.zst")} | {p.stem for p in tmp_path.glob("*.raw")}
    assert len(kept) == len({chunk.path for chunk in given})


def test_an_archive_that_ends_early_or_holds_other_bytes_is_told(tmp_path):
    members = {"0/layer.tar": LAYERS[0], "c.json": CONFIG}
    with pytest.raises(LaunchError, match="could not be packed"):
        list(Spool(tmp_path / "1").pack(Saved(members, cut_at=1 << 20), digest(CONFIG), WANTED, kind="gz", whole=True))
    with pytest.raises(LaunchError, match="does not give away"):
        list(Spool(tmp_path / "2").pack(Saved(members), digest(CONFIG), WANTED, kind="gz", whole=True))


def test_trouble_while_packing_ahead_reaches_whoever_sends_and_leaving_ends_the_packing():
    made = []

    def source(count, *, then=None):
        for number in range(count):
            made.append(number)
            yield number
        if then:
            raise then

    with pytest.raises(OSError, match="full"), Ahead(source(2, then=OSError("full"))) as items:
        assert [next(iter(items)), next(iter(items))] == [0, 1]
        next(iter(items))
    made.clear()
    with Ahead(source(1000)) as items:
        assert next(iter(items)) == 0
    time.sleep(0.2)
    assert len(made) <= AHEAD + 3


def test_the_first_chunk_leaves_before_the_engine_has_given_the_rest(tmp_path):
    left = threading.Event()

    class Slow(Saved):
        def stream(self, argv):
            for number, block in enumerate(super().stream(argv)):
                if number * 70_000 > 3 << 20:
                    assert left.wait(20), "nothing was sent while the archive was still coming"
                yield block

    chunks = Spool(tmp_path, chunk_bytes=1 << 20).pack(classic(Slow), digest(CONFIG), WANTED, kind="zst", whole=True)
    with Ahead(chunks) as made:
        given = [left.set() or chunk for chunk in made]
    assert len(given) > 10


def image(**changes) -> Image:
    told = {"id": "sha256:c", "bytes": 1, "layers": ("sha256:1",), "labels": {"a": "b"}, "platform": "linux/amd64"}
    return Image(**told | {"settings": {"User": "me"}} | changes)


def test_one_image_in_two_kinds_of_store_is_one_and_another_is_another():
    there = image(id="sha256:m", by_manifest=True)
    assert image().is_same(there) and there.is_same(image()) and image().is_same(image())
    for change in (
        {"layers": ("sha256:2",)},
        {"settings": {"User": "root"}},
        {"labels": {}},
        {"platform": "linux/arm"},
    ):
        assert not image().is_same(image(id="sha256:m", by_manifest=True, **change))
    assert not image().is_same(image(id="sha256:d"))  # in one kind of store the id is the image
    assert not image(layers=()).is_same(image(id="sha256:m", layers=(), by_manifest=True))


def test_an_engine_that_names_images_by_manifest_is_known_by_what_it_says():
    config = '{"User":"me","Env":["A=b"],"Labels":{"x":"y"},"Hostname":"","Cmd":null}'
    text = '"sha256:m"\n7\n["sha256:1"]\n{}\n{}\nlinux/amd64'
    found = parse_image(text.format(config, '["r/x@sha256:m"]'))
    assert found.by_manifest and found.labels == {"x": "y"} and found.settings == {"User": "me", "Env": ["A=b"]}
    assert not parse_image(text.format(config, '["r/x@sha256:other"]')).by_manifest
    assert not parse_image(text.format("null", "null")).by_manifest
