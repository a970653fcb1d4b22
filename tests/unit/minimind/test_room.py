"""How much memory there is, as recorded from machines with and without GPUs and limits."""

import pytest

from minimind import room

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal:  8 kB\nMemAvailable:   2048 kB\n")
    monkeypatch.setattr(room, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(room, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def driver(machine, script):
    (machine / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (machine / "bin" / "nvidia-smi").chmod(0o755)


def test_the_smallest_gpu_counts_where_there_are_some_and_main_memory_when_the_cpu_is_asked_for(machine):
    driver(machine, "printf '24564\\n16376\\n'")
    assert room.available_bytes("auto") == ("gpu", 16376 * MIB)
    assert room.available_bytes("cpu") == ("main", 2 * MIB)


@pytest.mark.parametrize("script", ["echo 'NVIDIA-SMI has failed'; exit 9", "echo '[N/A]'", "exit 0"])
def test_a_broken_driver_counts_as_no_gpu(machine, script):
    driver(machine, script)
    assert room.available_bytes("auto") == ("main", 2 * MIB)


def test_a_control_group_may_leave_less_than_the_machine_has(machine):
    (machine / "cgroup").mkdir()
    (machine / "cgroup" / "memory.max").write_text("max\n")
    (machine / "cgroup" / "memory.current").write_text("1\n")
    assert room.available_bytes("cpu") == ("main", 2 * MIB)
    (machine / "cgroup" / "memory.max").write_text(f"{MIB}\n")
    assert room.available_bytes("cpu") == ("main", MIB - 1)


def test_a_machine_that_does_not_say_is_not_guessed_about(machine):
    (machine / "meminfo").unlink()
    assert room.available_bytes("cpu") == ("main", None)
