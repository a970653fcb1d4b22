"""sync-out --watch: checkpoints come home while the run goes on, and the end of the run is the end of the watch."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from launch.runs.watch import watch
from launch.sync import Rounds
from launch.transport import connect
from tests.support.launching import wait_for
from tests.support.syncing import RUN, Quiet, behind_wire, put, sums_hold, tree

pytestmark = pytest.mark.sshd


@pytest.fixture
def training(tmp_path, sshd):
    """A run that lives as long as a process of ours, behind a relay."""
    home, wire = behind_wire(tmp_path, sshd)
    run = home.root / "runs" / RUN
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()[19]
    boot_id = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    put(run / "spec.json", json.dumps({"run_id": RUN, "stage": "dpo", "flags": [], "nproc": 1}).encode())
    handle = {"kind": "venv", "pid": process.pid, "start_time": start, "boot_id": boot_id, "attempt": 1, "nproc": 1}
    put(run / "handle.json", json.dumps(handle).encode())
    put(run / "metrics.jsonl", b'{"step": 1}\n')
    put(run / "attempts" / "1" / "log.txt", b"one\n")
    yield home, wire, run, process
    process.stdin.close()
    process.wait()
    wire.close()


def checkpoint(run, step):
    """Made aside and renamed, as trainers do; a half-made one beside it."""
    aside = run / "ckpt" / f".step-{step:08d}.77.tmp"
    put(aside / "model.pth", os.urandom(200_000))
    put(aside / "state.json", b"{}")
    put(aside / "SHA256SUMS", b"")
    aside.rename(run / "ckpt" / f"step-{step:08d}")
    put(run / "ckpt" / f".step-{step + 1:08d}.77.tmp" / "model.pth", b"half")


def test_checkpoints_come_home_while_it_runs_and_its_end_ends_the_watch_across_a_cut_link(training):
    home, wire, run, process = training
    voice, reports = Quiet(), []
    transport = connect(home.host, home.inventory)

    def work():
        rounds = Rounds(home.inventory, home.home, RUN, voice)
        again = lambda: connect(home.host, home.inventory)  # noqa: E731
        options = {"now_utc": lambda: "20260101T000000Z", "interval_s": 0.2}
        reports.append(watch(again, transport, home.inventory, rounds, voice, **options))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    first, second = (home.home / "runs" / RUN / "ckpt" / f"step-{step:08d}" / "model.pth" for step in (10, 20))
    checkpoint(run, 10)
    wait_for(lambda: (home.home / "SHA256SUMS").exists())
    assert first.read_bytes() == (run / "ckpt" / "step-00000010" / "model.pth").read_bytes()
    assert sums_hold(home.home) and thread.is_alive()
    wire.cut()
    checkpoint(run, 20)
    wait_for(second.exists)
    wait_for(lambda: any("is back" in said for said in voice.said))
    assert thread.is_alive()
    put(run / "export" / "rlhf_512.pth", b"weights at the end")
    put(run / "attempts" / "1" / "exit.json", b'{"code": 1, "reason": "trainer_error"}')
    process.stdin.close()
    process.wait()
    thread.join(60)
    assert len(reports) == 1 and not thread.is_alive()
    half = {name for name in tree(home.root) if ".tmp/" in name}
    assert half and tree(home.home) == {n: d for n, d in tree(home.root).items() if n not in half}
    assert sums_hold(home.home)


def test_the_command_ends_with_a_run_that_has_ended_and_a_checkpoint_is_enough(training):
    home, _, run, process = training
    checkpoint(run, 10)
    process.stdin.close()
    process.wait()
    done = home.launch("sync-out", RUN, "--watch", "--json")
    assert done.returncode == 0, done.stderr
    assert f"runs/{RUN}/ckpt/step-00000010/model.pth" in json.loads(done.stdout)["fetched"]
    assert sums_hold(home.home)
    with contextlib.suppress(OSError):
        process.stdin.close()
    assert home.launch("sync-out", "--watch", "--dry-run").returncode == 2
