"""Hosts with runs to bring home, and what to check afterwards."""

import contextlib
import hashlib
import os
import shutil
import subprocess

from launch.sync import sync_out
from launch.transport import connect
from tests.conftest import make_ssh_home
from tests.support.wire import Wire

RUN = "20260101-120000-dpo-abcd"
OTHER = "20260102-120000-full_sft-0123"


class Quiet:
    """A voice that keeps what it was told."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    def moving(self, label, total_bytes):
        return contextlib.nullcontext(lambda count: None)


def put(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def make_run(root, run_id, weights, data):
    run = root / "runs" / run_id
    exported = put(run / "export" / weights, data)
    put(run / "spec.json", b'{"run_id": "%s"}' % run_id.encode())
    put(run / "metrics.jsonl", b'{"step": 1}\n')
    put(run / "attempts" / "1" / "log.txt", b"one\ntwo\n")
    out = root / "out" / weights
    out.parent.mkdir(parents=True, exist_ok=True)
    os.link(exported, out)
    return run


def tree(folder):
    """Every published file and its hash; not the bookkeeping."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for top in ("out", "runs")
        for p in (folder / top).rglob("*")
        if p.is_file()
    }


def sums_hold(folder):
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    return done.returncode == 0


def direct(home, *, run_id=None, voice=None, folder=None, now_utc="20260101T000000Z"):
    """sync-out in this process, where a test can reach in."""
    with connect(home.host, home.inventory) as transport:
        return sync_out(
            transport,
            home.inventory,
            folder=folder or home.home,
            run_id=run_id,
            voice=voice or Quiet(),
            now_utc=now_utc,
        )


def gathered(home):
    """Bytes in parts."""
    total = 0
    for path in (home.home / ".sync").glob("*.part"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def behind_wire(folder, sshd, *, stop_after_bytes=None):
    """A home whose host lies behind a relay, and the relay."""
    wire = Wire(sshd.port, stop_after_bytes=stop_after_bytes)
    home = make_ssh_home(folder, sshd)
    for name in ("launch.toml", "launch.known_hosts"):
        path = home.home / name
        path.write_text(path.read_text().replace(str(sshd.port), str(wire.port)))
    return home, wire


def tools(folder, *names):
    """A folder for PATH with these programs and no others."""
    folder.mkdir()
    for name in names:
        os.symlink(shutil.which(name), folder / name)
    return str(folder)
