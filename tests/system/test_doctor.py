"""`launch doctor` on a real sshd whose PATH has an nvidia-smi of ours: exit codes, one remote call, cleaning up."""

import contextlib
import dataclasses
import fcntl
import http.server
import json
import os
import pathlib
import pty
import struct
import subprocess
import sys
import termios
import threading

import pytest

from tests import conftest
from tests.support import launching, nvidia
from tests.support import sshd as parts
from tests.support.launching import AS_IT_IS

pytestmark = pytest.mark.sshd


class Index(http.server.BaseHTTPRequestHandler):
    """Answers every question with 404, as an index does that has no such page: that is an answer."""

    def do_HEAD(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def rented(tmp_path_factory):
    """A server and the folder that is first on its PATH; its index is here too."""
    if parts.MISSING:
        pytest.skip(parts.MISSING)
    folder = tmp_path_factory.mktemp("rented")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as index:
        threading.Thread(target=index.serve_forever, daemon=True).start()
        url = f"http://user:word@127.0.0.1:{index.server_port}"
        there = f"PATH={folder / 'bin'}:{os.environ['PATH']} PIP_INDEX_URL={url}/simple HF_ENDPOINT=http://127.0.0.1:9"
        server = parts.start(folder / "server", options=f"SetEnv {there}\nLogLevel VERBOSE")
        yield server, folder / "bin"
        server.stop()
        index.shutdown()


@pytest.fixture
def home(tmp_path, rented):
    nvidia.install(rented[1], nvidia.CARDS["8x4090"])
    return conftest.make_ssh_home(tmp_path, rented[0], extra=AS_IT_IS)


def report(home, *args, code=0):
    done = home.launch("doctor", "gpu8", "--json", *args, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    (told,) = json.loads(done.stdout)
    return told, {check["name"]: check for check in told["checks"]}


def test_eight_cards_are_found_in_one_remote_call_that_changes_nothing(home, rented):
    before = rented[0].log().count("Starting session")
    told, checks = report(home)
    assert rented[0].log().count("Starting session") == before + 1
    assert checks["gpus"]["found"].startswith("8 x NVIDIA GeForce RTX 4090")
    assert checks["topology"]["verdict"] == checks["driver"]["verdict"] == "ok"
    assert checks["clock"]["verdict"] == "ok" and checks["rsync"]["found"]
    assert checks["index"]["verdict"] == "ok" and "word" not in checks["index"]["found"]
    assert checks["hub"]["verdict"] == "warn"
    assert told["verdict"] == "warn" and not home.root.exists()


def test_a_broken_driver_is_unfit_and_exit_5(home, rented):
    nvidia.install(rented[1], says=nvidia.BROKEN, code=9)
    told, checks = report(home, code=5)
    assert told["verdict"] == "unfit" and "exit code 9" in checks["gpus"]["found"] and checks["gpus"]["remedy"]


def test_a_run_of_ours_on_a_gpu_is_none_of_others(home, rented):
    ours = subprocess.Popen(["sh", "-c", "sleep 60; :", f"{home.root}/runs/20260101-000000-dpo-0000"])
    foreign = subprocess.Popen(["sleep", "60"])
    try:
        card = dataclasses.replace(nvidia.CARDS["H100"], pids=(ours.pid, foreign.pid), used_mib=3000)
        nvidia.install(rented[1], card)
        line = report(home)[1]["gpu processes"]
        assert line["verdict"] == "warn" and f"1 of others ({foreign.pid})" in line["found"]
    finally:
        for process in (ours, foreign):
            process.kill()
            process.wait()


def test_hosts_that_cannot_be_asked_are_exit_4_and_the_others_are_shown_all_the_same(home):
    gone = f'[hosts.gone]\nssh = "root@127.0.0.1:{parts.free_port()}"\n'
    with open(home.home / "launch.toml", "a") as file:
        file.write(gone)
    done = home.launch("doctor", "--json")
    assert done.returncode == 4, done.stderr
    told = {row["host"]: row for row in json.loads(done.stdout)}
    assert told.keys() == {"gpu8", "gone", "local"}
    assert told["gone"]["verdict"] == "unreachable" and told["gone"]["error"]["remedy"]
    between = {check["name"]: check for check in told["gpu8"]["checks"]}["to gone"]
    assert between["verdict"] == "warn"


def test_eighty_columns_are_enough_and_no_color_is_respected(home):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environ = {key: value for key, value in home.environ.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", "doctor", "gpu8"],
        cwd=home.home,
        env={**environ, "NO_COLOR": "1", "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):
        while data := os.read(ours, 65536):
            shown += data
    process.wait(60)
    os.close(ours)
    lines = shown.decode().splitlines()
    assert len(lines) > 20 and max(map(len, lines)) <= 80, shown.decode()
    assert "\x1b" not in shown.decode()


def test_deep_runs_an_all_reduce_and_writes_and_leaves_nothing_behind(home, rented):
    nvidia.install(rented[1], says="No devices were found\n", code=6)
    told, checks = report(home, "--deep")
    assert checks["gpus"]["verdict"] == "warn" and "CPU" in checks["gpus"]["found"]
    assert "2 ranks on cpu, sums right" in checks["all-reduce"]["found"], told
    assert "fsync" in checks["disk test"]["found"]
    assert not home.root.exists()


def test_deep_in_an_environment_without_torch_is_unfit_and_cleans_up_too(home, rented, tmp_path):
    nvidia.install(rented[1], says="", code=6)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    toml = home.home / "launch.toml"
    toml.write_text(toml.read_text().replace(sys.executable, str(tmp_path / "bare/bin/python")))
    home.root.mkdir(parents=True)
    (home.root / "mine").write_text("kept")
    _, checks = report(home, "--deep", code=5)
    assert checks["all-reduce"]["verdict"] == "unfit" and "torch" in checks["all-reduce"]["found"]
    assert launching.tree(home.root).keys() == {str(home.root), str(home.root / "mine")}


@pytest.mark.soak
@pytest.mark.docker
def test_deep_computes_in_the_image_where_runs_do(tmp_path, sshd, training_image):
    home = conftest.make_ssh_home(tmp_path, sshd, extra=f'executor = "docker"\nimage = "{training_image}"\n')
    _, checks = report(home, "--deep")
    assert "2 ranks on cpu, sums right" in checks["all-reduce"]["found"]
    assert not pathlib.Path(home.root).exists()
