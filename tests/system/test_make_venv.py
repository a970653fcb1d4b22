"""Making an environment over ssh where it is not plain sailing: no index, no space. Small wheels, a real sshd."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from launch.environment.virtual import MakeVenv
from launch.errors import LaunchError
from launch.runs import start
from launch.transport import connect
from tests import conftest
from tests.support import sshd as sshd_parts
from tests.unit.envs.parts import SCRIPT, Shop, sha256, wheel

pytestmark = pytest.mark.sshd
NAME = f"{'a' * 16}-cp3-linux"
CAN_MOUNT = os.geteuid() == 0 and shutil.which("mount") is not None
NO_INDEX = "SetEnv PIP_NO_INDEX=1 PIP_CONFIG_FILE=/dev/null"


class Voice:
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def moving(self, label: str, total_bytes: int):
        self.said.append(label)
        return contextlib.nullcontext(lambda _bytes: None)


@dataclasses.dataclass
class Far:
    """A host without an index, a shop on the laptop, and what makes the one from the other."""

    home: conftest.SshHome
    shop: Shop
    voice: Voice

    def make(self, **facts) -> pathlib.Path:
        with connect(self.home.host, self.home.inventory) as there:
            found = start.look(there)
            if found.python_version[:2] != sys.version_info[:2]:
                pytest.skip(f"the host's Python is {found.python_version}: wheels of this one are not for it")
            task = MakeVenv(
                folder=f"{found.root}/env/{NAME}",
                lock=self.shop.lock,
                facts=dataclasses.replace(found, **facts),
                envs=SCRIPT.parent,
                cache=self.shop.folder / "cache",
            )
            task.do(there, there, self.voice)
        return pathlib.Path(task.folder)


@pytest.fixture
def far(tmp_path, monkeypatch):
    yield from begin(tmp_path, monkeypatch, NO_INDEX)


@pytest.fixture
def far_with_wheels(tmp_path, monkeypatch):
    yield from begin(tmp_path, monkeypatch, f"{NO_INDEX} PIP_FIND_LINKS={tmp_path / 'shop' / 'wheels'}")


def begin(tmp_path, monkeypatch, options):
    server = sshd_parts.start(tmp_path / "server", options=options)
    home, shop = conftest.make_ssh_home(tmp_path, server), Shop(tmp_path / "shop")
    for name, value in (("NO_INDEX", "1"), ("CONFIG_FILE", "/dev/null"), ("FIND_LINKS", str(shop.wheels))):
        monkeypatch.setenv(f"PIP_{name}", value)
    yield Far(home, shop, Voice())
    server.stop()


def enlarge(shop: Shop) -> None:
    """A package of 8 MB."""
    large = wheel(shop.wheels, "small", "1.0", body=f"x = '{'x' * 8_000_000}'\n")
    text = re.sub(r"(small==1.0 .*\n *--hash=sha256:)\w+", rf"\g<1>{sha256(large)}", shop.lock.read_text())
    shop.lock.write_text(text)


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, options: str):
    folder.mkdir(parents=True)
    if not CAN_MOUNT or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]).returncode:
        pytest.skip("needs to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_wheels_of_the_laptop_leave_the_host_when_the_environment_is_whole(far):
    folder = far.make(free_bytes=None)
    assert any("sending wheels from here" in line for line in far.voice.said)
    said = subprocess.run(
        [folder / "bin" / "python", "-c", "import small, torch; print(torch.__version__)"], capture_output=True
    )
    assert said.stdout == b"9.9.9+cpu\n"
    assert sorted(path.name for path in folder.parent.iterdir()) == [NAME, f"{NAME}.lock"]


def test_a_disk_that_is_known_to_be_too_small_gets_nothing(far):
    with pytest.raises(LaunchError, match=r"has 0\.30 GB free, the environment needs 1\.00 GB") as caught:
        far.make(free_bytes=300_000_000)
    assert caught.value.code == 5 and "root" in caught.value.remedy
    assert not (far.home.root / "env").exists()


def test_wheels_are_not_sent_where_there_is_no_room_for_them_too(far):
    with (far.shop.wheels / "torch-9.9.9+cpu-cp399-cp399-any.whl").open("wb") as large:
        large.truncate(1 << 30)
    with pytest.raises(LaunchError, match="free, the environment needs") as caught:
        far.make(free_bytes=1_000_000_000)
    assert "of wheels" in caught.value.why
    assert [path.name for path in (far.home.root / "env").iterdir()] == [f"{NAME}.lock"]


@pytest.mark.parametrize("fixture", [pytest.param("far_with_wheels", marks=pytest.mark.soak), "far"])
def test_a_disk_that_fills_up_is_called_that_and_what_was_half_made_is_gone(fixture, request):
    far = request.getfixturevalue(fixture)
    enlarge(far.shop)
    with small_disk(far.home.root, "size=6m"):
        with pytest.raises(LaunchError) as caught:
            far.make(free_bytes=None)
        error = caught.value
        assert error.code == 5 and "No space left on device" in error.why and "index" not in str(error)
        if fixture == "far_with_wheels":
            assert error.what.startswith("a disk of gpu8 became full") and "launch env prune gpu8" in error.remedy
            assert not any("sending wheels" in line for line in far.voice.said), "no other source could help"
        else:
            assert "make room" in error.remedy
        assert [path.name for path in (far.home.root / "env").iterdir()] == [f"{NAME}.lock"]


def test_a_full_disk_of_the_laptop_is_not_taken_for_the_hosts(far):
    enlarge(far.shop)
    with small_disk(far.shop.folder / "cache", "size=2m"):
        with pytest.raises(LaunchError, match="a disk of this machine became full") as caught:
            far.make(free_bytes=None)
        assert caught.value.code == 5 and "XDG_CACHE_HOME" in caught.value.remedy
    assert [path.name for path in (far.home.root / "env").iterdir()] == [f"{NAME}.lock"]


def test_a_run_on_a_small_disk_is_refused_with_what_it_needs_before_anything_is_made(tmp_path, sshd):
    home = conftest.make_ssh_home(tmp_path, sshd, extra='executor = "venv"\n')
    (home.home / "text.jsonl").write_text('{"text": "some words"}\n' * 200)
    with small_disk(home.root, "size=300m"):
        args = ("run", "tokenizer", "--host", "gpu8", "--data", "text.jsonl")
        for more in (("--dry-run",), ()):
            done = home.launch(*args, *more)
            assert done.returncode == 5, done.stderr
            assert "GB free, the environment needs 1.00 GB\n  why: " in done.stderr and "\n  remedy: " in done.stderr
        assert not (home.root / "env").exists() and not (home.root / "runs").exists()
