"""`make demo` on this machine: the real launcher, supervisor and trainers, with a few steps a stage."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ("pretrain", "full_sft", "dpo", "lora")


def demo(*words, timeout_s):
    environ = {key: value for key, value in os.environ.items() if not key.startswith("LAUNCH_")}
    command = [sys.executable, str(ROOT / "demo" / "run.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environ, check=False)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, demo("--quick", "--to", str(folder), timeout_s=540)


@pytest.mark.soak  # `.ci/run` makes the whole demo, which fails unless each of its parts works
@pytest.mark.timeout(600)
def test_the_demo_goes_from_text_to_an_answer_with_no_inventory(quick):
    folder, done = quick
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder / "launch.toml").exists()
    for stage in STAGES:
        assert re.search(rf"^  {stage} +3 steps, loss \d+\.\d+ -> \d+\.\d+, \d+ s$", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_what_came_home_passes_sha256sum_and_every_run_succeeded(quick):
    folder, _ = quick
    home = folder / "home"
    assert (home / "out" / "full_sft_192.pth").stat().st_size > 1_000_000
    assert (home / "out" / "lora" / "lora_identity_192.pth").exists()
    check = subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=home, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    command = [sys.executable, "-m", "launch", "ps", "--all", "--json"]
    runs = json.loads(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)
    assert sorted(run["stage"] for run in runs) == sorted(("tokenizer", *STAGES))
    assert {run["state"] for run in runs} == {"SUCCEEDED"}


def test_a_folder_that_is_not_the_demos_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    done = demo("--to", str(tmp_path), timeout_s=60)
    assert done.returncode == 9
    assert "why:" in done.stdout and "remedy:" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_step_that_fails_shows_the_launchers_paragraph_and_ends_with_its_code(tmp_path):
    (tmp_path / ".made-by-make-demo").touch()
    (tmp_path / "launch.toml").write_text("[hosts.gpu8\n")
    done = demo("--keep", "--quick", "--to", str(tmp_path), timeout_s=60)
    assert done.returncode == 3
    assert "launch.toml" in done.stdout and "why:" in done.stdout and "remedy:" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
