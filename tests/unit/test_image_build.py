"""A build that cannot be: said in a paragraph, nothing left behind, and no list of contents that is another image's."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.support.image_build import archive, build, compare, recipe, sbom
from tests.support.played_engine import Played


@pytest.fixture
def played(tmp_path, monkeypatch):
    engine = Played(tmp_path)
    monkeypatch.setattr(recipe, "collect_wheels", lambda *_: None)
    monkeypatch.setattr(recipe, "revision", lambda: "c0ffee")
    monkeypatch.setattr(build, "choose_client", lambda: os.fspath(engine.client))
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build.Recipe, "of", lambda *_: engine.recipe())
    monkeypatch.setattr(compare, "build_wheel", lambda dist: engine.wheel)
    return engine


def main(monkeypatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["build.py", "cpu", *options])
    return build.main()


@contextlib.contextmanager
def small_disk(folder: pathlib.Path):
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs to be allowed to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def bill_of(played) -> str | None:
    path = played.image / sbom.FILE
    return json.loads(path.read_text())["metadata"]["component"]["version"] if path.exists() else None


@pytest.mark.timeout(60)
@pytest.mark.parametrize("options", [(), ("--check",)])
def test_a_full_disk_is_said_at_once_and_nothing_is_left_behind(played, monkeypatch, capsys, options):
    played.tree({"minimind/file": bytes(4 << 20)})
    with small_disk(played.image):
        (played.image / "dist").mkdir()
        played.wheel.write_bytes(b"a wheel")
        assert main(monkeypatch, *options) == 5
        assert [path.name for path in played.image.iterdir()] == ["dist"]
    told = capsys.readouterr().err
    assert told.startswith("there is no room left for the image's layers\n  why: ") and "\n  remedy: make room" in told
    assert "Traceback" not in told
    assert played.calls("create") and played.calls("rm") == [["rm", "--force", "--volumes", "c1"]]


def test_a_disk_that_cannot_hold_the_layers_is_refused_before_anything_is_installed(played, monkeypatch, capsys):
    with zipfile.ZipFile(played.image / "wheelhouse" / "large-1-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("large", bytes(3000))
    monkeypatch.setattr(recipe.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9000, 3001, 5999))
    assert main(monkeypatch) == 5
    assert capsys.readouterr().err.startswith("there is no room for the image's layers\n  why: they need more than")
    assert not played.calls("create")
    monkeypatch.setattr(recipe.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9000, 3000, 6000))
    assert main(monkeypatch) == 0


def test_copies_are_taken_one_after_the_other(played, monkeypatch):
    played.tree({"minimind/file": bytes(1 << 20)})  # more than a pipe holds
    assert main(monkeypatch) == 0
    assert [call[1].partition(":")[2] for call in played.calls("cp")] == [
        *("/opt/minimind", "/etc/group", "/etc/passwd", "/home/minimind"),
        "/opt/minimind",
    ]


@pytest.mark.parametrize("refuses", [{"load": "no, says the engine", "save": "and nothing out"}, {"load": "no"}])
def test_an_engine_that_takes_no_image_is_quoted(played, monkeypatch, capsys, refuses):
    played.holds(**{"base:1": {"Id": "sha256:x", "RootFS": {"Layers": ["sha256:0"]}}})
    played.tell(refuses=refuses)
    assert main(monkeypatch) == 5
    told = capsys.readouterr()
    assert f"the engine wants every layer: {refuses['load']}" in told.out
    assert told.err.startswith("the engine did not load the image\n") and "remedy" in told.err
    assert f"why: {refuses.get('save', refuses['load'])}" in told.err and "Traceback" not in told.err
    assert sorted(path.name for path in played.image.iterdir()) == ["dist", "wheelhouse"]


def test_an_archive_that_is_cut_is_refused_and_not_a_traceback(tmp_path):
    client = tmp_path / "docker"
    client.write_text("#!/bin/sh\necho no archive\n")
    client.chmod(0o755)
    with pytest.raises(archive.Refused, match="no archive"):
        archive.saved_layers(os.fspath(client), "base:1", tmp_path)


def test_a_refused_image_leaves_the_list_of_the_one_that_is_there(played, monkeypatch):
    assert main(monkeypatch) == 0
    before = bill_of(played)
    played.wheel.write_bytes(b"another wheel")
    played.tell(refuses={"load": "no", "save": "no"})
    assert main(monkeypatch) == 5
    assert bill_of(played) == before == played.images()["image:cpu"]["Id"]


def test_a_list_of_another_image_never_stands_beside_a_new_one(played, monkeypatch):
    assert main(monkeypatch) == 0
    before = bill_of(played)
    played.wheel.write_bytes(b"another wheel")
    played.tell(refuses={"run": "the base tells nothing"})
    assert main(monkeypatch) == 5
    assert bill_of(played) == before == played.images()["image:cpu"]["Id"]
    played.tell(refuses={})
    assert main(monkeypatch) == 0
    assert (played.folder / "bill at load").read_text() == "False"
    assert bill_of(played) == played.images()["image:cpu"]["Id"] != before
    assert not [path.name for path in played.image.iterdir() if path.name.startswith(".")]


def test_a_list_that_is_gone_is_written_again_without_loading(played, monkeypatch, capsys):
    assert main(monkeypatch) == 0
    (played.image / sbom.FILE).unlink()
    assert main(monkeypatch) == 0
    assert bill_of(played) == played.images()["image:cpu"]["Id"] and len(played.calls("load")) == 1
    capsys.readouterr()
    assert main(monkeypatch) == 0 and "is up to date" in capsys.readouterr().out


def test_a_base_is_never_asked_through_its_own_entry_point_or_user(played, monkeypatch):
    assert main(monkeypatch) == 0
    calls = [*played.calls("create"), *played.calls("run")]
    assert len(calls) == 3
    for call in calls:
        image = call.index("base:1")
        assert call[call.index("--entrypoint") + 1] == "sh" and call.index("--entrypoint") < image
        assert call[call.index("--user") + 1] == "0:0" and call.index("--user") < image


@pytest.mark.parametrize("packages", ["", "dash\t0.5\tamd64\n"])
def test_a_base_without_packages_is_told_in_the_output_and_in_the_list(played, monkeypatch, capsys, packages):
    played.tell(packages=packages)
    assert main(monkeypatch) == 0
    found = json.loads((played.image / sbom.FILE).read_text())
    assert ("has no dpkg" in capsys.readouterr().out) == (not packages)
    assert ("compositions" in found) == (not packages)
    assert [c["name"] for c in found["components"] if c["purl"].startswith("pkg:deb")] == (["dash"] if packages else [])


@pytest.mark.parametrize("time", ["abc", "-1", "1.5", "9" * 20])
def test_a_time_that_is_none_is_a_wrong_use(monkeypatch, capsys, time):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", time)
    monkeypatch.setattr(build, "choose_client", lambda: "/nowhere/docker")
    assert main(monkeypatch) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"SOURCE_DATE_EPOCH is '{time}'\n  why: ") and "\n  remedy: " in told
