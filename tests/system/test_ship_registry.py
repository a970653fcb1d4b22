"""`launch ship-image` through a real registry: pushed here, pulled there by digest, compared; and what goes wrong."""

import json
import os
import pathlib
import secrets
import shutil

import pytest

from tests import conftest
from tests.support import corpus, sshd
from tests.support import engine as engines
from tests.support import registry as registries
from tests.support.docker import docker, engine_available

pytestmark = [pytest.mark.docker, pytest.mark.sshd]
NAME = engines.own("minimind-test-registry")
BASE = {"etc/base": secrets.token_bytes(3 << 20)}
PASSWORD = secrets.token_urlsafe(20)
SECRET = "REGISTRY_PASSWORD"

WRAPPER = """#!/bin/sh
# notes down what docker was asked and with what environment; does as it is told by a file named after the verb, once
{{ echo "$@"; env; }} >>"$0.asked"
if [ -e "$0.$1" ]; then . "$0.$1"; fi
exec {docker} "$@"
"""


@pytest.fixture(scope="module")
def far():
    missing = engines.MISSING or sshd.MISSING or registries.MISSING
    if missing or not engine_available():
        pytest.skip(missing or "no Docker engine answers")
    with engines.engine() as started:
        yield started


def wrapper(folder: pathlib.Path) -> pathlib.Path:
    script = folder / "docker"
    script.write_text(WRAPPER.format(docker=shutil.which("docker")))
    script.chmod(0o755)
    return script


def once(script: pathlib.Path, verb: str, shell: str) -> None:
    """Make the next ``docker VERB`` of a wrapper go wrong."""
    script.with_name(f"docker.{verb}").write_text(f'rm -f "$0.$1"\n{shell}\n')


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    return wrapper(tmp_path_factory.mktemp("there"))


@pytest.fixture(scope="module")
def server(far, there, tmp_path_factory):
    options = f'SetEnv DOCKER_HOST={far.socket} "PATH={there.parent}:{os.environ["PATH"]}"'
    started = sshd.start(tmp_path_factory.mktemp("far") / "server", options=options)
    yield started
    started.stop()


@pytest.fixture
def registry(far, tmp_path):
    started = registries.Registry(tmp_path / "r", int((far.folder / "pid").read_text()))
    yield started
    started.close()


@pytest.fixture
def guarded(far, tmp_path):
    pid = int((far.folder / "pid").read_text())
    started = registries.Registry(tmp_path / "g", pid, user="robot", password=PASSWORD)
    yield started
    started.close()


@pytest.fixture(autouse=True)
def images():
    first = engines.image(f"{NAME}:1", [BASE, {"code": b"one" * 1000}], labels=engines.as_made_here())
    second = engines.image(f"{NAME}:2", [BASE, {"code": b"two" * 1000}])
    yield first, second
    for image_id in (first, second):
        docker("rmi", "--force", image_id, check=False)


def make(tmp_path, server, far, address: str, extra: str = ""):
    far.empty()
    made = conftest.make_ssh_home(tmp_path / "home", server, extra=f'registry = "{address}/me"\n{extra}')
    made.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    return made


def ship(home, reference: str, *more: str):
    return home.launch("ship-image", "gpu8", "--image", reference, "--json", *more)


def test_an_image_is_pushed_and_pulled_by_digest_and_only_new_layers_travel(tmp_path, server, far, registry, images):
    home = make(tmp_path, server, far, registry.address)
    asked = ship(home, f"{NAME}:1", "--dry-run")
    assert asked.returncode == 0 and "has 0 of its 2 layers" in asked.stderr, asked.stderr
    assert registry.blobs() == [] and far.image_id(f"{NAME}:1") is None
    first = ship(home, f"{NAME}:1")
    assert first.returncode == 0, first.stderr
    (row,) = json.loads(first.stdout)
    assert row["pulled"].startswith(f"{registry.address}/me/{NAME}@sha256:") and row["sent_bytes"] == 0
    assert far.image_id(f"{NAME}:1") == images[0]
    kept = set(registry.blobs())
    second = ship(home, f"{NAME}:2")
    assert second.returncode == 0 and json.loads(second.stdout)[0]["layers_sent"] == 1, second.stderr
    assert far.image_id(f"{NAME}:2") == images[1]
    new_bytes = sum(path.stat().st_size for path in set(registry.blobs()) - kept)
    assert 0 < new_bytes < len(BASE["etc/base"]) / 100
    assert not (home.root / "images").exists()
    assert "has" in ship(home, f"{NAME}:2").stderr


def test_the_password_is_in_no_command_environment_or_file_and_nothing_of_the_login_stays(
    tmp_path, server, far, guarded, there, images
):
    home = make(tmp_path, server, far, guarded.address, f'registry_user = "robot"\nregistry_secret = "{SECRET}"\n')
    (home.home / "launch.secrets").write_text(f"{SECRET}={PASSWORD}\n")
    (home.home / "launch.secrets").chmod(0o600)
    (tmp_path / "here").mkdir()
    here = wrapper(tmp_path / "here")
    home.environ["PATH"] = f"{here.parent}:{home.environ['PATH']}"
    done = ship(home, f"{NAME}:1")
    assert done.returncode == 0, done.stderr
    assert far.image_id(f"{NAME}:1") == images[0]
    for script in (here, there):
        noted = script.with_name("docker.asked").read_text()
        assert "login --username robot --password-stdin" in noted and PASSWORD not in noted
    assert PASSWORD not in done.stdout + done.stderr
    assert not list(pathlib.Path("/dev/shm").glob("minimind-login-*"))
    own = pathlib.Path.home() / ".docker" / "config.json"
    assert not own.exists() or guarded.address not in own.read_text()


def test_a_wrong_password_and_a_missing_login_are_told(tmp_path, server, far, guarded):
    home = make(tmp_path, server, far, guarded.address, f'registry_user = "robot"\nregistry_secret = "{SECRET}"\n')
    absent = ship(home, f"{NAME}:1")
    assert absent.returncode == 3 and f"the secret {SECRET} was not found" in absent.stderr
    home.environ[SECRET] = "not-the-password"
    wrong = ship(home, f"{NAME}:1")
    assert wrong.returncode == 5 and f"{guarded.address} does not let robot in" in wrong.stderr, wrong.stderr
    assert "registry_secret" in wrong.stderr and "not-the-password" not in wrong.stderr
    home = make(tmp_path / "2", server, far, guarded.address)
    nobody = ship(home, f"{NAME}:1")
    assert nobody.returncode == 5 and "wants a login from this machine" in nobody.stderr, nobody.stderr
    assert far.image_id(f"{NAME}:1") is None and guarded.blobs() == []


def test_a_registry_that_is_not_there_is_told_and_nothing_is_changed(tmp_path, server, far, registry):
    home = make(tmp_path, server, far, registry.address)
    registry.stop()
    done = ship(home, f"{NAME}:1")
    assert done.returncode == 5, done.stderr
    assert f"the registry {registry.address} cannot be reached from this machine" in done.stderr, done.stderr
    assert "why:" in done.stderr and "remedy:" in done.stderr
    assert far.image_id(f"{NAME}:1") is None


def test_a_registry_that_dies_before_the_host_pulls_is_told_and_a_second_try_ends_well(
    tmp_path, server, far, registry, there, images
):
    home = make(tmp_path, server, far, registry.address)
    once(there, "pull", f"kill {registry.process.pid}; sleep 1")
    done = ship(home, f"{NAME}:1")
    registry.process.wait(10)
    assert done.returncode == 5 and "cannot be reached from gpu8" in done.stderr, done.stderr
    registry.start()
    again = ship(home, f"{NAME}:1")
    assert again.returncode == 0, again.stderr
    assert far.image_id(f"{NAME}:1") == images[0]


def test_other_bytes_under_the_digest_are_refused_and_get_no_name(tmp_path, server, far, registry, there):
    home = make(tmp_path, server, far, registry.address)
    manifests = f"find {registry.folder}/data/docker/registry/v2/blobs -name data -size -4k"
    once(there, "pull", f"{manifests} -exec sed -i s/sha256:/sha256:f/ {{}} +")
    done = ship(home, f"{NAME}:1")
    assert done.returncode == 5 and f"gpu8 did not get the image from {registry.address}" in done.stderr, done.stderr
    assert "why:" in done.stderr and far.image_id(f"{NAME}:1") is None


def test_another_image_at_the_end_is_not_taken_for_it(tmp_path, server, far, registry, there, images):
    home = make(tmp_path, server, far, registry.address)
    other = docker("save", f"{NAME}:2", text=False).stdout
    far.docker("load", "--quiet", input=other, text=False, stdin=None)
    once(there, "tag", f'exec {shutil.which("docker")} tag {NAME}:2 "$3"')
    done = ship(home, f"{NAME}:1")
    assert done.returncode == 8 and images[0] in done.stderr and images[1] in done.stderr, done.stderr


def test_a_run_that_needs_the_image_says_how_it_would_come(tmp_path, server, far, registry):
    home = make(tmp_path, server, far, registry.address, f'image = "{NAME}:1"\n')
    corpus.make(home.home, samples=8)
    done = home.launch("run", "pretrain", "--host", "gpu8", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"pushing {NAME}:1" in done.stderr and f"{registry.address}/me/{NAME}" in done.stdout
    assert registry.blobs() == []
