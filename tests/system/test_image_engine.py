"""Builds on the real engine that the usual base and an empty disk do not show."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import time

import pytest

from tests.support.docker import docker, engine_available
from tests.support.engine import own
from tests.support.image_build import archive, bases, build, container, engine, recipe, sbom

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(not engine_available(), reason="no Docker engine answers"),
]
HUGE = "#!/bin/sh\nmkdir -p /opt/minimind /home/minimind\nhead -c 60000000 /dev/zero >/opt/minimind/zeros\n"


@pytest.fixture(scope="module")
def client():
    return engine.choose_client()


@pytest.fixture(scope="module")
def base(client):
    return bases.choose_base(client, None)


@pytest.fixture
def odd_base(client, base):
    """The usual base with all that an image can bring along to surprise whoever builds on it."""
    told = bases.describe_base(client, base)
    settings = {
        "Entrypoint": ["echo", "banner"],
        "Cmd": ["more"],
        "User": "nobody",
        "OnBuild": ["RUN false"],
        "WorkingDir": "/nowhere",
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "PIP_TARGET=/surprise", "PYTHONHOME=/surprise"],
    }
    rootfs = {"type": "layers", "diff_ids": list(told.diff_ids)}
    config = {"architecture": told.architecture, "os": told.os, "config": settings, "rootfs": rootfs}
    name = f"{own('mmodd')}:1"
    archive.load(client, json.dumps(config).encode(), name, {})
    yield name
    docker("rmi", "--force", name)


@pytest.fixture
def made(client, odd_base, tmp_path, training_image):
    """What is made on the odd base, apart from the image that others use; the layer of the wheels is known."""
    (tmp_path / "wheelhouse").symlink_to(recipe.ROOT / "build" / "image" / "cpu" / "wheelhouse")
    usual = recipe.Recipe.of(client, "cpu", odd_base, folder=tmp_path)
    mine = dataclasses.replace(usual, tag=f"{own('mmodd')}:image")
    yield mine
    docker("rmi", "--force", mine.tag)


def test_what_a_base_starts_by_itself_reaches_neither_the_image_nor_its_list(made, odd_base):
    build.build_image(made)
    told = json.loads(docker("image", "inspect", made.tag).stdout)[0]
    assert told["Config"]["Entrypoint"] == ["python", "-m", "minimind.supervise"] and not told["Config"]["Cmd"]
    assert (told["Config"]["User"], told["Config"]["WorkingDir"]) == ("minimind", "/home/minimind")
    assert not told["Config"]["OnBuild"] and "surprise" not in json.dumps(told["Config"])
    assert told["Config"]["Labels"]["org.opencontainers.image.base.name"] == odd_base
    assert told["Config"]["Labels"]["org.opencontainers.image.base.digest"].startswith("sha256:")
    bill = json.loads((made.folder / sbom.FILE).read_text())
    assert bill["metadata"]["component"]["version"] == told["Id"] and "compositions" not in bill
    assert {"libc6", "dash"} <= {c["name"] for c in bill["components"] if c["purl"].startswith("pkg:deb/")}


def test_a_layer_made_on_an_odd_base_is_the_one_made_on_the_usual(made, training_image, tmp_path):
    (tmp_path / "anew").mkdir()
    layer = made.make(recipe.CODE_LABEL, tmp_path / "anew")
    told = json.loads(docker("image", "inspect", training_image).stdout)[0]
    assert layer.diff_id == told["RootFS"]["Layers"][-1]


def test_an_image_of_ones_own_as_the_guide_makes_it_trains_with_the_same_code(training_image, tmp_path):
    guide = (recipe.ROOT / "docs" / "guides" / "images.md").read_text()
    text = guide.partition("```dockerfile\n")[2].partition("```")[0]
    (tmp_path / "Dockerfile").write_text(text.replace("minimind-launch:cpu", training_image))
    (tmp_path / "certificates.crt").write_text("none")
    name = f"{own('mmmine')}:1"
    try:
        docker("build", "--tag", name, str(tmp_path))
        made, ours = (json.loads(docker("image", "inspect", image).stdout)[0] for image in (name, training_image))
        same = ("User", "Entrypoint", "Labels", "Env")
        assert [made["Config"][key] for key in same] == [ours["Config"][key] for key in same]
        assert (
            "pretrain" in docker("run", "--rm", "--network", "none", name, "python", "-m", "minimind", "--help").stdout
        )
    finally:
        docker("rmi", "--force", name, check=False)


def test_a_base_without_dpkg_lists_nothing_and_one_that_does_not_start_is_an_error(client, base):
    name = f"{own('mmbare')}:1"
    made = docker("create", "--entrypoint", "sh", base, "-c", "rm /usr/bin/dpkg-query").stdout.strip()
    try:
        docker("start", "--attach", made)
        docker("commit", made, name)
        assert "libc6" in container.packages(client, base)
        assert container.packages(client, name) == ""
    finally:
        docker("rm", "--force", made)
        docker("rmi", "--force", name, check=False)
    with pytest.raises(engine.CannotBuild, match="does not tell its packages"):
        container.packages(client, f"{own('mmnone')}:1")


def test_the_engine_says_nothing_of_a_registry_that_does_not_answer_and_is_not_waited_for(client):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun_s = time.monotonic()
        name = f"127.0.0.1:{silent.getsockname()[1]}/python@sha256:{'0' * 64}"
        assert bases.pull(client, name, answer_timeout_s=2) == "no registry answered within 2 s"
    assert time.monotonic() - begun_s < 10


@pytest.mark.timeout(120)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_fills_up_ends_the_copying_and_leaves_no_container(client, base, tmp_path):
    disk, wheels, script = tmp_path / "disk", tmp_path / "wheels", tmp_path / "script"
    script.write_text(HUGE)
    for folder in (disk, wheels):
        folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    begun_s = time.monotonic()
    try:
        with pytest.raises(OSError, match="No space left"):
            paths = ["/opt/minimind", "/etc/group", "/etc/passwd", "/home/minimind"]
            target = pathlib.Path(disk, "layer.tar")
            container.installed(client, base, "x", wheels=wheels, paths=paths, script=script, target=target)
        assert sum(path.stat().st_size for path in disk.iterdir()) == 0
    finally:
        subprocess.run(["umount", disk], check=True)
    assert time.monotonic() - begun_s < 60
    assert docker("ps", "--all", "--quiet", "--filter", f"volume={wheels}").stdout == ""
