"""Drift from a lock: every kind has its name, and what belongs there is none."""

import json
import subprocess
import sys

import pytest

from launch.environment import audit
from launch.environment.proof import differences, packages

LOCK = """\
deprecated==1.3.1 ; python_full_version < '3.12' \\
    --hash=sha256:00
deprecated==3.0.1 ; python_full_version >= '3.12' \\
    --hash=sha256:00
h11==0.16.0 \\
    --hash=sha256:00
# torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl sha256:00
torch==2.13.0 \\
    --hash=sha256:00
typing-extensions==4.16.0 \\
    --hash=sha256:00
winonly==1.0 ; sys_platform == 'win32' \\
    --hash=sha256:00
"""
RIGHT = {
    "Deprecated": ["1.3.1"],
    "h11": ["0.16.0"],
    "torch": ["2.13.0+cpu"],
    "typing_extensions": ["4.16.0"],
    "pip": ["1"],
    "minimind-launch": ["0.1"],
}


def told(installed: dict[str, list[str]]) -> dict:
    """What the probe says on this interpreter, with other packages."""
    done = subprocess.run([sys.executable, "-c", audit.PROBE], capture_output=True, text=True, check=True)
    markers = json.loads(done.stdout)["markers"] | {"python_full_version": "3.11.2", "sys_platform": "linux"}
    return {"packages": installed, "markers": markers}


def drift(changes: dict[str, list[str]], *, tolerated: dict[str, str] | None = None) -> list[tuple[str, str]]:
    installed = {name: versions for name, versions in (RIGHT | changes).items() if versions}
    return [(d.package, d.why) for d in audit.compare(LOCK, told(installed), tolerated=tolerated or {})]


def test_what_the_lock_says_is_no_drift():
    assert drift({}) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"h11": []}, ("h11", "missing")),
        ({"h11": ["0.15.0"]}, ("h11", "another version")),
        ({"Deprecated": ["3.0.1"]}, ("deprecated", "another version")),
        ({"h11": ["0.16.0", "0.15.0"]}, ("h11", "there more than once")),
        ({"extra_thing": ["1"]}, ("extra-thing", "not in the lock")),
        ({"torch": ["2.13.0"]}, ("torch", "not the CPU build")),
        ({"winonly": ["1.0"]}, ("winonly", "not in the lock")),
    ],
)
def test_a_drift_is_named(changes, named):
    assert drift(changes) == [named]


def test_what_tools_bring_on_top_is_tolerated_at_its_version_only():
    assert drift({"pytest": ["9.0"]}, tolerated={"pytest": "9.0"}) == []
    assert drift({"pytest": ["8.0"]}, tolerated={"pytest": "9.0"}) == [("pytest", "not in the lock")]


def test_another_image_is_told_by_layer_label_and_package():
    one = ("sha256:1", ("sha256:a", "sha256:b"), {"lock": "x", "same": "s"})
    two = ("sha256:2", ("sha256:a",), {"lock": "y", "same": "s"})
    assert [d.what for d in differences(one, two)] == ["image id", "layer 1", "lock"]
    assert differences(one, one) == []
    bill = {"components": [{"name": "h11", "version": "1", "purl": "pkg:pypi/h11@1"}, {"name": "libc", "version": "2"}]}
    assert packages(bill, {"h11": ["1"]}) == []
    assert [(d.what, d.here, d.there) for d in packages(bill, {"H11": ["2"], "new": ["3"]})] == [
        ("package h11", "1", "2"),
        ("package new", None, "3"),
    ]
