"""What killed calls left on a host is listed and goes; what a living one works on stays."""

import fcntl
import json
import os
import pathlib
import time

import pytest

from launch.environment import virtual
from minimind.durable import sha256_file
from tests import conftest

pytestmark = pytest.mark.sshd
OLD, NOW = "a" * 16, sha256_file(virtual.locks(conftest.ROOT / "envs")[0])[:16]
HOUR_S = 3600


def leave(root: pathlib.Path, name: str, *, old: bool = True) -> str:
    """A folder with something in it, last changed an hour ago."""
    folder = root / name / "lib"
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(b"x" * 9000)
    if old:
        for path in (folder / "x", folder, folder.parent):
            os.utime(path, (time.time() - HOUR_S,) * 2)
    return name


def rows(done) -> dict[str, dict]:
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_everything_that_a_killed_call_left_is_listed_as_half_made_and_removed(ssh_home):
    names = {
        leave(ssh_home.root, name)
        for name in (
            f"env/.making-{NOW}-cp311-linux-x86_64.0123abcd",
            f"env/{NOW}-cp311-linux-x86_64.from-0123abcd",
            f"env/{NOW}-cp311-linux-x86_64.from",
            f"env/.making-{OLD}.0123abcd.old",
            "code/.tmp-Ab3dEf",
        )
    }
    listed = rows(ssh_home.launch("env", "list", "gpu8", "--json"))
    assert listed.keys() == names
    assert not [row for row in listed.values() if row["kept_for"] or (row["whole"] and row["kind"] == "environment")]
    assert rows(ssh_home.launch("env", "prune", "gpu8", "--yes", "--json")).keys() == names
    assert not [name for name in names if (ssh_home.root / name).exists()]


def test_what_a_living_call_works_on_is_called_that_and_stays(ssh_home):
    held = f"{NOW}-cp311-linux-x86_64"
    names = {
        leave(ssh_home.root, f"env/.making-{held}.0123abcd"),
        leave(ssh_home.root, f"env/{held}.from-0123abcd"),
        leave(ssh_home.root, f"env/{OLD}.from-0123abcd", old=False),
        leave(ssh_home.root, "code/.tmp-Ab3dEf", old=False),
    }
    with open(ssh_home.root / "env" / f"{held}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        listed = rows(ssh_home.launch("env", "list", "gpu8", "--json"))
        assert {name: row["kept_for"] for name, row in listed.items()} == {name: ["being made"] for name in names}
        assert rows(ssh_home.launch("env", "prune", "gpu8", "--yes", "--json")) == {}
    assert all((ssh_home.root / name).exists() for name in names)
    freed = {f"env/.making-{held}.0123abcd", f"env/{held}.from-0123abcd"}
    assert rows(ssh_home.launch("env", "prune", "gpu8", "--yes", "--json")).keys() == freed


def test_an_environment_that_waits_to_be_put_back_is_kept_for_whoever_needs_it(ssh_home):
    name = leave(ssh_home.root, f"env/.making-{NOW}-cp311-linux-x86_64.0123abcd.old")
    listed = rows(ssh_home.launch("env", "list", "gpu8", "--json"))
    assert listed[name]["kept_for"] == ["this version"]
    leave(ssh_home.root, f"env/{NOW}-cp311-linux-x86_64")
    assert rows(ssh_home.launch("env", "prune", "gpu8", "--json")).keys() == {name}
