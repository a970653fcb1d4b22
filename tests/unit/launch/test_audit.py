"""Drift from a lock: every kind has its name, and what belongs there is none."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from launch.environment import audit, virtual
from launch.environment.proof import differences, packages
from launch.errors import LaunchError
from launch.transport.base import Result
from tests.unit.envs.parts import ROOT, Shop

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


def test_files_that_are_missing_or_of_another_size_are_named_with_their_package(tmp_path):
    shop = Shop(tmp_path)
    assert shop.install(*shop.offline()).returncode == 0
    (packages,) = (shop.venv / "lib").glob("python3*/site-packages")
    assert damage(shop) == {}
    (shop.venv / "bin" / "small-says").write_text("#!/elsewhere/python\n")  # its size changed with its first line
    with open(packages / "small-1.0.dist-info" / "RECORD", "a") as record:
        record.write("../../../bin/small-says,sha256=x,999\n__pycache__/small.cpython-399.pyc,,\n")
    assert damage(shop) == {}
    (packages / "small.py").unlink()
    (packages / "torch.py").write_text("# cut")
    assert damage(shop) == {"small": [1, 0, ["small.py"]], "torch": [0, 1, ["torch.py"]]}


def damage(shop) -> dict:
    command = [shop.venv / "bin" / "python", "-c", audit.PROBE]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["damage"]


def test_a_package_says_how_many_of_its_files_and_the_first_of_them():
    said = {"damage": {"H11": [2000, 1, ["h11/a.py", "h11/b.py", "h11/c.py"]], "pip": [1, 0, ["pip/x.py"]]}}
    (named,) = audit.compare(LOCK, told(RIGHT) | said, tolerated={})
    assert (named.package, named.why) == (
        "h11",
        "2000 of its files missing, 1 of another size: h11/a.py, h11/b.py, h11/c.py, …",
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", "said nothing"),
        ("Welcome", "answered 'Welcome'"),
        ("[]\n5", "answered '5'"),
        ('{"packages": 1, "markers": {}}', "answered"),
    ],
)
def test_an_answer_that_is_none_is_one_paragraph(said, told):
    with pytest.raises(LaunchError, match="did not say what is in it") as caught:
        audit.inside(site(said), ["/far/bin/python", "-c", audit.PROBE])
    assert caught.value.code == 5 and told in caught.value.why
    assert caught.value.remedy.endswith("/far/bin/python -c 'print(1)'")


def test_what_start_files_print_around_the_answer_does_no_harm():
    answer = json.dumps({"packages": {"h11": ["1"]}, "markers": {}})
    assert audit.inside(site(f"Welcome\n{{}}\n{answer}\n42\n"), [])["packages"] == {"h11": ["1"]}


def site(said: str):
    """A host whose every command prints this."""
    transport = SimpleNamespace(run=lambda argv: Result(0, said.encode(), b""))
    return SimpleNamespace(transport=transport, host=SimpleNamespace(name="gpu8"))


def test_what_an_environment_needs_on_the_disk_is_near_what_this_one_takes():
    markers = told({})["markers"] | {"python_full_version": platform.python_version()}
    wanted = audit.locked((ROOT / "envs" / "cpu.lock").read_text(), markers)
    files = (
        path.locate()
        for found in importlib.metadata.distributions()
        if audit.canonical(found.name) in wanted
        for path in found.files or ()
    )
    taken_bytes = sum(path.stat().st_size for path in files if path.is_file())
    assert 0.8 * taken_bytes < virtual.ROOM_BYTES["cpu.lock"] < 1.25 * taken_bytes


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
