"""What ship-image gives to an engine, given to containerd itself, where engines of the other kind keep their images."""

import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from launch.environment.spool import Spool, archive
from launch.inventory import Host
from launch.transport.local import LocalTransport
from tests.support import engine as engines
from tests.support.docker import docker, engine_available

NAME = "docker.io/library/minimind-test-store"
MISSING = [tool for tool in ("containerd", "ctr") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(
        bool(MISSING) or os.geteuid() != 0, reason=f"needs root and {' '.join(MISSING) or 'containerd'}"
    ),
]
CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{folder}/s"
[ttrpc]
  address = "{folder}/t"
"""


@pytest.fixture
def ctr():
    """A containerd of its own; gives a function that asks it."""
    folder = Path(tempfile.mkdtemp(prefix="mmctr"))  # short: a socket's path has 107 bytes
    (folder / "config.toml").write_text(CONFIG.format(folder=folder))
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(["containerd", "-c", folder / "config.toml"], stdout=log, stderr=log)

    def ask(*words: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run(["ctr", "-a", folder / "s", *words], capture_output=True, timeout=60, **options)

    try:
        deadline = time.monotonic() + 30
        while ask("version").returncode:
            assert time.monotonic() < deadline and process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield ask
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_whole_shipment_is_taken_under_our_configuration_and_a_part_is_refused(ctr, tmp_path):
    if not engine_available():
        pytest.skip("no Docker engine answers")
    image_id = engines.image(f"{NAME}:1", [{"a": random.Random(4).randbytes(3 << 20)}, {"b": b"x" * 100}])
    try:
        layers = json.loads(docker("image", "inspect", image_id).stdout)[0]["RootFS"]["Layers"]
        laptop, spool = LocalTransport(Host(name="local", ssh=None, root="/")), Spool(tmp_path / "spool")
        list(spool.pack(laptop, image_id, dict.fromkeys(layers), kind="raw", whole=True))
    finally:
        docker("rmi", "--force", image_id, check=False)
    config, packed = spool.config(image_id), [spool.layer(layer, "raw") for layer in layers]

    def give(reference: str, parts: list) -> int:
        data = b"".join(piece.path.read_bytes() for piece in archive(config, reference, parts, spool))
        return ctr("images", "import", "--no-unpack", "-", input=data).returncode

    assert give(f"{NAME}:1", packed) == 0
    assert give(f"{NAME}:2", [None, packed[1]]) != 0  # so ship-image sends all of it to such an engine
    (line,) = (line.split() for line in ctr("images", "ls").stdout.decode().splitlines() if line.startswith(NAME))
    manifest = json.loads(ctr("content", "get", line[2]).stdout)
    assert line[0] == f"{NAME}:1" and line[2] != image_id  # the name of the image there ...
    assert manifest["config"]["digest"] == image_id  # ... is another digest than what names it here
    assert [layer["digest"] for layer in manifest["layers"]] == layers
