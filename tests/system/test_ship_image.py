"""`launch ship-image` to a second real engine: only what it lacks travels, cut shipments go on, lies are told apart."""

import json
import random
import signal
import time

import pytest

from tests import conftest
from tests.support import engine as engines
from tests.support import launching, sshd
from tests.support.docker import docker, engine_available

pytestmark = [pytest.mark.docker, pytest.mark.sshd]
NAME = "minimind-test-ship"
NOISE = random.Random(5)
BASE = {"etc/base": NOISE.randbytes(6 << 20), "etc/text": b"the same words again and again\n" * 100_000}
BASE_BYTES = sum(map(len, BASE.values()))


@pytest.fixture(scope="module")
def far():
    if engines.MISSING or sshd.MISSING:
        pytest.skip(engines.MISSING or sshd.MISSING)
    if not engine_available():
        pytest.skip("no Docker engine answers")
    with engines.engine() as started:
        yield started


@pytest.fixture(scope="module")
def server(far, tmp_path_factory):
    started = sshd.start(tmp_path_factory.mktemp("far") / "server", options=f"SetEnv DOCKER_HOST={far.socket}")
    yield started
    started.stop()


@pytest.fixture
def images():
    """Two images that share their base; the second has other code."""
    first = engines.image(f"{NAME}:1", [BASE, {"code": b"one" * 1000}])
    second = engines.image(f"{NAME}:2", [BASE, {"code": b"two" * 1000}])
    yield first, second
    docker("rmi", "--force", f"{NAME}:1", f"{NAME}:2", check=False)


@pytest.fixture
def home(tmp_path, server, far):
    far.empty()
    made = conftest.make_ssh_home(tmp_path, server)
    made.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    return made


def ship(home, reference: str, *more: str):
    return home.launch("ship-image", "gpu8", "--image", reference, "--json", *more)


def test_the_second_image_costs_only_its_own_layer(home, far, images):
    first = ship(home, f"{NAME}:1")
    assert first.returncode == 0, first.stderr
    (row,) = json.loads(first.stdout)
    assert (row["layers"], row["layers_sent"]) == (2, 2) and row["sent_bytes"] > 6 << 20
    assert far.image_id(f"{NAME}:1") == images[0]
    second = ship(home, f"{NAME}:2")
    (row,) = json.loads(second.stdout)
    assert row["layers_sent"] == 1 and row["sent_bytes"] < BASE_BYTES / 100
    assert far.image_id(f"{NAME}:2") == images[1]
    again = ship(home, f"{NAME}:2")
    assert again.returncode == 0 and json.loads(again.stdout)[0]["sent_bytes"] == 0
    assert [path.name for path in (home.root / "images").iterdir()] == ["lock"]


def test_a_dry_run_says_what_it_would_cost_and_changes_nothing(home, far, images):
    done = ship(home, f"{NAME}:1", "--dry-run")
    assert done.returncode == 0 and "gpu8 has 0 of its 2 layers, 9.4 MB before packing" in done.stderr
    assert far.image_id(f"{NAME}:1") is None and not home.root.exists()
