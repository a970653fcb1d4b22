"""An environment on a host that was whole and is no more: seen at the next visit, named, and made anew."""

import json
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

from launch.environment import virtual
from launch.runs import start
from launch.transport import connect
from minimind.durable import sha256_file
from tests import conftest
from tests.support import launching
from tests.support import sshd as sshd_parts
from tests.support.launching import LONG, rows

pytestmark = pytest.mark.sshd
VENV = 'executor = "venv"\n'


def place(home) -> pathlib.Path:
    """Where the host's environment of this version lies."""
    with connect(home.host, home.inventory) as there:
        found = start.look(there)
    if found.python_version[:2] != sys.version_info[:2]:
        pytest.skip(f"the host's Python is {found.python_version}, and this environment is of another")
    marker = virtual.marker(sha256_file(virtual.locks(conftest.ROOT / "envs")[0]))
    return pathlib.Path(found.expand(marker)).parent


@pytest.fixture
def whole(tmp_path, sshd):
    """A home, and an environment on its host with the packages of this one: names that link to them."""
    home = launching.make_home(tmp_path, sshd, extra=VENV)
    folder = place(home)
    folder.parent.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", folder], check=True)
    (packages,) = (folder / "lib").glob("python3*/site-packages")
    import torch

    site = pathlib.Path(torch.__file__).parents[1]
    for path in site.iterdir():
        if path.name == "torch":
            shutil.copytree(
                path, packages / path.name, copy_function=lambda one, two: pathlib.Path(two).symlink_to(one)
            )
        else:
            (packages / path.name).symlink_to(path)
    (folder / "share").symlink_to(pathlib.Path(sys.prefix) / "share")  # manual pages
    for script in (pathlib.Path(sys.prefix) / "bin").iterdir():
        if not (there := folder / "bin" / script.name).is_symlink() and not there.exists():
            there.symlink_to(script)
    (folder / ".complete").write_text("{}")
    return home, folder


def test_missing_and_cut_files_are_named_and_what_is_advised_brings_a_new_environment(whole):
    home, folder = whole
    right = home.launch("env", "check", "gpu8")
    assert right.returncode == 0 and "all as cpu.lock says" in right.stderr, right.stdout + right.stderr
    (torch,) = (folder / "lib").glob("python3*/site-packages/torch")
    files = sum(path.is_symlink() for path in (torch / "nn").rglob("*") if "__pycache__" not in path.parts)
    shutil.rmtree(torch / "nn")
    (torch / "functional.py").unlink()
    (torch / "functional.py").write_text("# cut")
    done = home.launch("env", "check", "gpu8", "--json")
    (drift,) = json.loads(done.stdout)["drifts"]
    assert done.returncode == 5 and drift["package"] == "torch"
    assert drift["why"].startswith(f"{files} of its files missing, 1 of another size: torch/nn/__init__.py, ")
    said = home.launch("env", "check", "gpu8").stderr
    advised = said.partition("remedy: on gpu8: ")[2].partition(";")[0]
    assert shlex.split(advised) == ["rm", str(folder / ".complete")]
    subprocess.run(["sh", "-c", advised], check=True)
    assert "launch run STAGE --host gpu8" in home.launch("env", "check", "gpu8").stderr
    plan = home.launch("run", "tokenizer", "--host", "gpu8", "--dry-run")
    assert plan.returncode == 0 and f"--venv {folder} " in plan.stdout, plan.stderr


def test_an_interpreter_that_is_gone_is_seen_at_the_next_visit(whole):
    home, folder = whole
    args = ("run", "tokenizer", "--host", "gpu8", "--dry-run")
    assert "--venv" not in home.launch(*args).stdout
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to("/nowhere/python3")
    assert f"--venv {folder} " in home.launch(*args).stdout
    assert "does not start" in home.launch("env", "check", "gpu8").stderr


def test_an_environment_that_says_nothing_of_itself_is_one_paragraph(whole):
    home, folder = whole
    python = folder / "bin" / "python"
    target = python.resolve()
    for said in ("", "echo Welcome"):
        python.unlink()
        python.write_text(f'#!/bin/sh\ncase "$*" in *" -S "*) exec {shlex.quote(str(target))} "$@" ;; esac\n{said}\n')
        python.chmod(0o755)
        done = home.launch("env", "check", "gpu8")
        assert done.returncode == 5, done.stderr
        assert "did not say what is in it\n  why: " in done.stderr and "\n  remedy: " in done.stderr


@pytest.fixture
def talking_home(tmp_path):
    """A host whose shell says something before every command, as an `echo` in ~/.bashrc lets it."""
    talk = 'ForceCommand echo Welcome to the machine; echo; eval "$SSH_ORIGINAL_COMMAND"'
    server = sshd_parts.start(tmp_path / "server", options=talk)
    yield launching.make_home(tmp_path, server, extra=f'{VENV}python = "{sys.executable}"\n')
    server.stop()


def test_what_start_files_of_the_shell_print_does_no_harm_to_environments(talking_home):
    done = talking_home.launch("env", "check", "gpu8")
    assert done.returncode == 0 and "all as cpu.lock says" in done.stderr, done.stdout + done.stderr
    (talking_home.root / "code" / ("a" * 16)).mkdir(parents=True)
    pruned = talking_home.launch("env", "prune", "gpu8", "--yes", "--json")
    assert [row["name"] for row in json.loads(pruned.stdout)] == [f"code/{'a' * 16}"], pruned.stderr


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_run_and_a_resume_make_a_damaged_environment_anew(tmp_path, sshd):
    home = launching.make_home(tmp_path, sshd, extra=VENV)
    args = ("run", "tokenizer", "--host", "gpu8", "--", "--vocab_size", "300")
    folder = place(home)
    assert home.launch(*args, timeout=800).returncode == 0
    (folder / "bin" / "python").unlink()
    again = home.launch(*args, timeout=800)
    assert again.returncode == 0 and "making the environment" in again.stderr, again.stderr
    assert home.launch("env", "check", "gpu8").returncode == 0

    try:
        long = home.launch("run", "pretrain", "--host", "gpu8", "--detach", "--", *LONG, timeout=300)
        assert long.returncode == 0, long.stderr
        launching.wait_for(lambda: [row for row in rows(home) if row["state"] == "RUNNING"])
        run = long.stdout.split()[0]
        assert home.launch("stop", run).returncode == 0
        shutil.rmtree(folder / "bin")
        resumed = home.launch("resume", run, "--detach", timeout=800)
        assert resumed.returncode == 0 and "making the environment" in resumed.stderr, resumed.stderr
        launching.wait_for(lambda: [row for row in rows(home) if row["state"] == "RUNNING"])
        (folder / "bin" / "python").unlink()
        beside = home.launch(*args, timeout=800)  # the environment is made anew below the run that lives in it
        assert beside.returncode == 0 and "making the environment" in beside.stderr, beside.stderr
        assert [row["run_id"] for row in rows(home) if row["state"] == "RUNNING"] == [run]
        assert home.launch("stop", run, timeout=300).returncode == 0
    finally:
        launching.end_all(home)
    assert home.launch("env", "check", "gpu8").returncode == 0
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]
