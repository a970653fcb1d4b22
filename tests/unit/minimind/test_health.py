"""The engine's health check."""

import os
import pathlib

from minimind.health import late_s, supervised


def test_the_run_directory_is_found_on_the_supervisors_command_line(tmp_path):
    processes = {"1": ["init", "--", "python"], "7": ["python", "-m", "minimind.supervise", "--run_dir", "/r"]}
    for pid, words in processes.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_bytes("\0".join([*words, ""]).encode())
    assert supervised(tmp_path) == pathlib.Path("/r")
    (tmp_path / "7" / "cmdline").unlink()
    assert supervised(tmp_path) is None


def test_a_run_that_stopped_beating_is_late(tmp_path):
    assert late_s(tmp_path, now=0.0) == float("inf")
    (tmp_path / "beat.json").touch()
    os.utime(tmp_path / "beat.json", (1000, 1000))
    assert late_s(tmp_path, now=1070.0) == 70.0
