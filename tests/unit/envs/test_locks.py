"""The locks: complete, hashed, the same everywhere, naming no machine."""

import re
import tomllib

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

from tests.unit.envs.parts import ROOT, install

LOCKS = ("cpu.lock", "cuda.lock", "dev.lock", "build.lock", "tools.lock")
ENTRY = re.compile(
    r"^([a-z0-9][a-z0-9._-]*)==([^ ;\\]+)(?: ; ([^\\]+?))? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M
)


def text_of(lock: str) -> str:
    return (ROOT / "envs" / lock).read_text()


def entries(lock: str) -> dict[tuple[str, str], str]:
    """(package, version) -> marker."""
    return {(name, version): marker for name, version, marker, _ in ENTRY.findall(text_of(lock))}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_is_pinned_and_hashed(lock):
    left = [line for line in ENTRY.sub("", text_of(lock)).splitlines() if line and not line.startswith("#")]
    assert entries(lock) and not left


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_names_a_machine_or_an_index(lock):
    assert not re.search(r"://|--(index|extra|find|trusted)|(^|[\s=])/\w", text_of(lock))


def test_the_cpu_lock_can_never_bring_a_cuda_build():
    assert not [name for name, _ in entries("cpu.lock") if re.match(r"nvidia-|cuda-|triton", name)]
    wheels = install.Lock.parse(text_of("cpu.lock")).torch_wheels
    assert wheels and all("+cpu" in name or "macosx" in name for name in wheels)
    stanza = re.search(r"^torch==.*\n((?:    --hash.*\n)+)", text_of("cpu.lock"), re.M)[1]
    assert set(re.findall(r"sha256:(\w+)", stanza)) == set(wheels.values())


def test_both_flavours_are_one_runtime():
    cpu, cuda = entries("cpu.lock"), entries("cuda.lock")
    assert cpu.keys() <= cuda.keys()
    assert {name.split("-")[0] for name, _ in cuda.keys() - cpu.keys()} == {"cuda", "nvidia", "triton"}


def test_every_cpu_dependency_of_torch_is_locked():
    names = {name for name, _ in entries("cpu.lock")}
    assert {"filelock", "typing-extensions", "setuptools", "sympy", "networkx", "jinja2", "fsspec", "mpmath"} <= names


def test_dev_comes_on_top_and_repeats_nothing():
    assert not {name for name, _ in entries("dev.lock")} & {name for name, _ in entries("cpu.lock")}


def ranges(*extras: str) -> list[Requirement]:
    """What pyproject.toml allows, for the distribution and its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = (line for extra in extras for line in project["optional-dependencies"][extra])
    return [Requirement(line) for line in (*project["dependencies"], *optional)]


def pinned(lock: str, python: str) -> dict[str, set[str]]:
    """Package -> the versions that a lock gives this Python on Linux."""
    there = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    there |= {"platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython"}
    found: dict[str, set[str]] = {}
    for (name, version), marker in entries(lock).items():
        if not marker or Marker(marker).evaluate(there):
            found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize(
    ("locks", "extras"),
    [
        (["cpu.lock"], ["train", "track", "serve"]),
        (["cuda.lock"], ["train", "track", "serve"]),
        (["cpu.lock", "dev.lock"], ["dev"]),
    ],
)
def test_a_lock_pins_all_that_pyproject_asks_for_within_its_range(locks, extras, python):
    found = {name: versions for lock in locks for name, versions in pinned(lock, python).items()}
    for requirement in ranges(*extras):
        (version,) = found[requirement.name]
        assert requirement.specifier.contains(version), (requirement, version)


@pytest.mark.parametrize("lock", ["cpu", "cuda"])
def test_both_locks_have_the_torch_that_is_pinned_by_hand(lock):
    by_hand = Requirement(re.search(r"^torch.*", (ROOT / "envs" / "cpu.in").read_text(), re.M)[0])
    (version,) = pinned(f"{lock}.lock", "3.11")["torch"]
    assert by_hand.specifier.contains(version) and [s.operator for s in by_hand.specifier] == ["=="]
