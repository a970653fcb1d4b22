"""`make image-check`: everything of ours is made anew each time, and held against the image that is in use."""

import json

import pytest

from tests.support.image_build import archive, compare, recipe
from tests.support.played_engine import Played


@pytest.fixture
def played(tmp_path, monkeypatch):
    engine = Played(tmp_path)
    monkeypatch.setattr(recipe, "collect_wheels", lambda *_: None)
    monkeypatch.setattr(recipe, "revision", lambda: "c0ffee")
    return engine


@pytest.fixture
def wheels(monkeypatch):
    """The folders that our wheel was made in, and what it holds from the first call on."""
    made, contents = [], [b"one"]

    def build_wheel(dist):
        made.append(dist)
        dist.mkdir()
        (dist / "x-1-py3-none-any.whl").write_bytes(contents[min(len(made), len(contents)) - 1])
        return dist / "x-1-py3-none-any.whl"

    monkeypatch.setattr(compare, "build_wheel", build_wheel)
    return made, contents


def load(played: Played, wheel: bytes = b"one") -> None:
    """Give the engine the image as `make image` would."""
    played.wheel.write_bytes(wheel)
    made = played.recipe()
    folder = played.folder / "loaded"
    folder.mkdir()
    layers = {label: made.make(label, folder) for label in made.keys}
    config = made.config({label: layer.diff_id for label, layer in layers.items()})
    archive.load(made.client, config, made.tag, {layer.diff_id: layer for layer in layers.values()})


def test_each_round_makes_our_wheel_anew_and_installs_that(played, wheels, capsys):
    assert compare.check(played.recipe()) == 0
    one, two = wheels[0]
    assert one != two and not one.exists()
    assert "image:cpu is not here: not compared" in capsys.readouterr().out
    mounted = [word for call in played.calls("create") for word in call if word.endswith(":/wheels:ro")]
    assert mounted.count(f"{one}:/wheels:ro") == mounted.count(f"{two}:/wheels:ro") == 1


def test_a_wheel_that_comes_out_otherwise_fails_the_check_by_name(played, wheels, capsys):
    wheels[1].append(b"two")
    assert compare.check(played.recipe()) == 8
    assert "label org.minimind.inputs: " in capsys.readouterr().out


def test_the_image_that_carries_the_tag_is_compared_when_it_is_of_this_tree(played, wheels, capsys):
    load(played)
    assert compare.check(played.recipe()) == 0
    told = capsys.readouterr().out
    assert f"compared with image:cpu, {played.images()['image:cpu']['Id']}" in told and "bit for bit" in told


def test_an_image_of_this_tree_with_other_files_fails_the_check_file_by_file(played, wheels, capsys):
    played.tree({"minimind/file": b"2", "minimind/left over": b""})
    load(played)
    played.tree({"minimind/file": b"1"})
    assert compare.check(played.recipe()) == 8
    told = capsys.readouterr().out
    assert "opt/minimind/file: content" in told and "opt/minimind/left over: only in the second" in told


def test_an_image_of_this_tree_with_another_setting_fails_the_check(played, wheels, capsys):
    load(played)
    images = played.images()
    images["image:cpu"]["Id"] = "sha256:other"
    images["image:cpu"]["Config"]["Cmd"] = ["sh"]
    played.holds(**images)
    assert compare.check(played.recipe()) == 8
    assert "settings: " in capsys.readouterr().out


@pytest.mark.parametrize("ours", ["another", "c0ffee-dirty"])
def test_an_image_of_another_tree_is_not_compared(played, wheels, monkeypatch, capsys, ours):
    monkeypatch.setattr(recipe, "revision", lambda: "c0ffee" if ours == "another" else ours)
    load(played, wheel=b"of other files")
    monkeypatch.setattr(recipe, "revision", lambda: ours)
    assert compare.check(played.recipe()) == 0
    assert "image:cpu is of another tree: not compared with it" in capsys.readouterr().out


def test_nothing_of_a_bases_own_settings_is_in_a_configuration(played):
    made = played.recipe()
    config = json.loads(made.config(dict.fromkeys(made.keys, "sha256:1")))["config"]
    assert config.keys() == {"User", "Env", "Entrypoint", "WorkingDir", "Labels", "Healthcheck"}
    labels = config["Labels"]
    names = ("name", "digest")
    assert [labels[f"org.opencontainers.image.base.{name}"] for name in names] == ["b", "sha256:b"]
