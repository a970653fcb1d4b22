"""Layers: the same files give the same bytes, and other files are named."""

import hashlib
import io
import json
import tarfile

from tests.support.image_build import archive, layers, recipe


def stream(members: list[tuple[str, bytes | None]], *, time_s: int = 0, owner: str = "") -> io.BytesIO:
    """A tar as `docker cp` prints it; None is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.mtime, header.uname = time_s, owner
            header.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            header.mode = 0o1777 if data is None else 0o644
            header.size = len(data or b"")
            tar.addfile(header, io.BytesIO(data or b""))
    buffer.seek(0)
    return buffer


FILES = [("app", None), ("app/b", b"two"), ("app/a", b"one")]


def test_order_time_and_names_of_owners_do_not_reach_a_layer(tmp_path):
    one = layers.write(tmp_path / "1", [("/opt", stream(FILES))])
    two = layers.write(tmp_path / "2", [("/opt", stream([FILES[0], FILES[2], FILES[1]], time_s=77, owner="me"))])
    assert one.diff_id == two.diff_id == f"sha256:{hashlib.sha256((tmp_path / '1').read_bytes()).hexdigest()}"
    assert one.bytes == (tmp_path / "1").stat().st_size


def test_folders_above_are_there_and_may_be_entered(tmp_path):
    layers.write(tmp_path / "1", [("/home/x", stream([("y", None)])), ("/etc", stream([("passwd", b"me")]))])
    with open(tmp_path / "1", "rb") as file:
        found = layers.contents(file)
    assert list(found) == ["etc", "etc/passwd", "home", "home/x", "home/x/y"]
    assert [found[name][1] for name in ("home", "home/x", "home/x/y")] == [0o755, 0o755, 0o1777]


def test_a_difference_is_named_file_by_file(tmp_path):
    others = [("app", None), ("app/b", b"TWO"), ("app/c", b"three")]
    for name, members in (("1", FILES), ("2", others)):
        layers.write(tmp_path / name, [("/opt", stream(members))])
    with open(tmp_path / "1", "rb") as one, open(tmp_path / "2", "rb") as two:
        told = layers.differences(layers.contents(one), layers.contents(two))
    assert told == ["opt/app/a: only in the first", "opt/app/b: content", "opt/app/c: only in the second"]


def test_a_configuration_is_the_same_bytes_whatever_the_order_of_labels():
    base = archive.Base(
        name="b", diff_ids=("sha256:0",), architecture="amd64", os="linux", variant="", digest="sha256:b"
    )
    steps = [archive.Step(diff_id="sha256:1", told="one")]
    one = archive.configuration(base, steps, {"a": "1", "b": "2"}, created="2026-01-01T00:00:00Z")
    two = archive.configuration(base, steps, {"b": "2", "a": "1"}, created="2026-01-01T00:00:00Z")
    assert one == two and archive.diff_ids(one) == ["sha256:0", "sha256:1"]
    assert len(json.loads(one)["history"]) == 2


def test_an_image_is_known_in_both_kinds_of_store_and_another_is_not():
    base = archive.Base(
        name="b", diff_ids=("sha256:0",), architecture="amd64", os="linux", variant="", digest="sha256:b"
    )
    steps = [archive.Step(diff_id="sha256:1", told="one")]
    config = archive.configuration(base, steps, {"a": "1"}, created="2026-01-01T00:00:00Z")
    there = json.loads(config)
    told = {"Config": there["config"], "RootFS": {"Layers": there["rootfs"]["diff_ids"]}, "RepoDigests": []}
    assert archive.is_it(told | {"Id": archive.image_id(config)}, config)
    by_manifest = told | {"Id": "sha256:m", "RepoDigests": ["minimind-launch@sha256:m"]}
    assert archive.is_it(by_manifest, config)
    assert not archive.is_it(None, config) and not archive.is_it(told | {"Id": "sha256:m"}, config)
    assert not archive.is_it(by_manifest | {"RootFS": {"Layers": ["sha256:0"]}}, config)
    assert not archive.is_it(by_manifest | {"Config": told["Config"] | {"User": "root"}}, config)


def test_an_images_time_is_the_one_that_is_given_else_the_commits():
    assert recipe.created({"SOURCE_DATE_EPOCH": "86400"}) == "1970-01-02T00:00:00Z"
    assert recipe.created({}) == recipe.created({}) and recipe.created({}) > "2020"
