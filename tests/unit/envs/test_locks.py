"""The locks: complete, hashed, the same everywhere, naming no machine."""

import re

import pytest

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
