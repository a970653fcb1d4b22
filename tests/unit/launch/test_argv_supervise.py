"""Commands around the supervisor: their words, and what their scripts do on this machine."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from launch.argv import install, supervise
from minimind.process import start_time
from tests.support.launching import wait_for


def test_the_supervisor_is_started_with_the_code_and_nothing_else_in_its_way():
    words = supervise.start(python="/p y", pythonpath="/c", run_dir="/r", nproc=None)
    assert words == [
        *("env", "PYTHONSAFEPATH=1", "PYTHONPATH=/c", "/p y", "-m", "minimind.supervise"),
        *("--run_dir", "/r", "--detach"),
    ]
    assert supervise.start(python="p", pythonpath="/c", run_dir="/r", nproc=3)[-2:] == ["--nproc", "3"]


def test_an_environment_is_made_by_the_installer():
    made = {"python": "p", "script": "/i.py", "folder": "/e", "lock": "/l", "log": "/log"}
    words = install.venv(**made, pip_wheel=None, wheels=None)
    assert words[4:] == ["/log", "p", "/i.py", "--venv", "/e", "--lock", "/l"]
    offline = install.venv(**made, pip_wheel="/pip.whl", wheels="/w")
    assert offline[len(words) :] == ["--pip-wheel", "/pip.whl", "--wheels", "/w", "--offline"]


def test_living_processes_are_told_with_their_start_and_the_dead_are_not():
    dead = subprocess.Popen(["true"])
    dead.wait()
    words = supervise.alive([os.getpid(), dead.pid])
    boot_id, *lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == [f"{os.getpid()} {start_time(os.getpid())}"]
    if sys.platform == "linux":
        assert boot_id == pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_zombie_is_dead():
    with subprocess.Popen(["true"]) as zombie:
        wait_for(lambda: " Z " in _stat(zombie.pid), timeout_s=20)
        told = subprocess.run(supervise.alive([zombie.pid]), capture_output=True, text=True, check=True).stdout
    assert str(zombie.pid) not in told.split()


def _stat(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/stat").read_text()


def test_kill_ends_grandchildren_in_sessions_of_their_own_and_nobody_of_another_start():
    child = "subprocess.Popen(['sleep', '300'], start_new_session=True)"
    script = f"import signal, subprocess; signal.signal(3, signal.SIG_DFL); {child}; print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "up\n"
        (child,) = pathlib.Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        subprocess.run(supervise.kill(pid=parent.pid, start_time="1"), check=True)
        assert parent.poll() is None
        subprocess.run(supervise.kill(pid=parent.pid, start_time=start_time(parent.pid)), check=True)
        assert parent.wait(20) == -signal.SIGQUIT
    wait_for(lambda: not pathlib.Path(f"/proc/{child}").exists() or " Z " in _stat(int(child)), timeout_s=20)


@pytest.mark.parametrize("sent", [b"{}", b"{}\nmore"])
def test_a_spec_that_does_not_come_whole_starts_nothing(tmp_path, sent):
    run_dir = tmp_path / "runs" / "a run"
    words = supervise.after_spec(["touch", str(tmp_path / "started")], run_dir=str(run_dir), length_bytes=3)
    assert subprocess.run(words, input=sent).returncode == 74
    assert not (run_dir / "spec.json").exists() and not (tmp_path / "started").exists()
    assert subprocess.run(words, input=b"{}\n").returncode == 0
    assert (run_dir / "spec.json").read_bytes() == b"{}\n" and (tmp_path / "started").exists()


def test_an_unpacked_folder_is_whole_or_absent_and_a_second_one_does_no_harm(tmp_path):
    from launch.environment.code import pack

    package = tmp_path / "minimind"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    archive, final = pack(package), tmp_path / "code" / "h"
    for _ in range(2):
        subprocess.run(install.unpack(str(final)), input=archive, check=True)
    assert subprocess.run(install.unpack(str(tmp_path / "code" / "torn")), input=archive[:700]).returncode
    assert [p.relative_to(final).as_posix() for p in final.rglob("*.py")] == ["minimind/a.py"]
    assert not (tmp_path / "code" / "torn").exists()
    assert pack(package) == archive
