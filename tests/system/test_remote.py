"""sync-out to a remote of rclone: a second copy with a SHA256SUMS of its own, believed only by sha256."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys

import pytest

from launch import sync
from launch.errors import Exit, LaunchError
from launch.inventory import load
from launch.sync.remote import Remote
from launch.transport import connect
from tests.support.launching import wait_for
from tests.support.sshd import free_port
from tests.support.syncing import RUN, Quiet, make_run, put, sums_hold, tools, tree

pytestmark = pytest.mark.timeout(240)
S3 = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


class Shelf:
    """A laptop with a trained model on ``local``, and a remote whose files lie in ``folder`` of this machine."""

    def __init__(self, home, name, folder, environ):
        self.home, self.name, self.folder, self.environ = home, name, folder, environ
        self.inventory = load(None, cwd=home, environ=environ)
        self.voice = Quiet()
        self.root = home / "local"

    def bring(self, *, now_utc="20260101T000000Z", **options):
        with connect(self.inventory.host("local"), self.inventory) as transport:
            report = sync.sync_out(
                transport, self.inventory, folder=self.home, run_id=None, voice=self.voice, now_utc=now_utc
            )
        return sync.mirror(report, self.name, voice=self.voice, now_utc=now_utc, **options)


def server_of(kind):
    """The first rclone on PATH that can serve it; the one that is tested, the first of all, need not."""
    for folder in os.get_exec_path():
        if binary := shutil.which("rclone", path=folder):
            asked = subprocess.run([binary, "serve", kind, "--help"], capture_output=True, text=True, timeout=30)
            if f"rclone serve {kind}" in asked.stdout:
                return binary
    pytest.skip(f"no rclone here can serve {kind}")


@contextlib.contextmanager
def serving(kind, folder, *options):
    """`rclone serve` on a free port; tells the port."""
    port = free_port()
    command = [server_of(kind), "serve", kind, folder, "--addr", f"127.0.0.1:{port}", *options]
    log = folder.with_name("serve.log")
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        wait_for(lambda: process.poll() is not None or str(port).encode() in log.read_bytes())
        assert process.poll() is None, log.read_text()
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["disk", "webdav", "s3"])
def shelf(request, tmp_path, monkeypatch):
    """Told hashes (disk), no hashes at all (webdav), and a bucket with keys."""
    if shutil.which("rclone") is None:
        pytest.skip("needs rclone")
    home, served = tmp_path / "home", tmp_path / "served"
    home.mkdir()
    (served / "bucket").mkdir(parents=True)
    make_run(home / "local", RUN, "rlhf_512.pth", os.urandom(300_000))
    put(home / "local" / "out" / "a b" / "权重 'q' #1.json", b"{}")
    put(home / "launch.toml", b"")
    config = put(tmp_path / "rclone.conf", f"[disk]\ntype = alias\nremote = {served}\n".encode())
    monkeypatch.setenv("RCLONE_CONFIG", str(config))
    with contextlib.ExitStack() as stack:
        if request.param == "webdav":
            port = stack.enter_context(serving("webdav", served))
            config.write_text(f"[webdav]\ntype = webdav\nurl = http://127.0.0.1:{port}\nvendor = other\n")
        elif request.param == "s3":
            port = stack.enter_context(serving("s3", served, "--auth-key", "key,secret"))
            config.write_text(
                f"[s3]\ntype = s3\nprovider = Other\nenv_auth = true\nendpoint = http://127.0.0.1:{port}\n"
            )
            monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)  # rclone 1.60 refuses to start where that is set
            for name, value in S3.items():
                monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONPATH", os.getcwd())
        yield Shelf(home, f"{request.param}:bucket/deep", served / "bucket" / "deep", dict(os.environ))


def test_everything_gets_there_verified_and_later_only_what_differs_while_the_old_is_kept(shelf):
    first = shelf.bring()
    assert {file.path for file in first.sent} == set(tree(shelf.root))
    assert tree(shelf.folder) == tree(shelf.root) and sums_hold(shelf.folder)
    manifest = json.loads((shelf.folder / "manifest.json").read_text())
    assert {file["path"]: file["sha256"] for file in manifest["files"]} == tree(shelf.root)
    assert shelf.bring().sent == ()
    before = (shelf.folder / "out" / "rlhf_512.pth").read_bytes()
    put(shelf.root / "out" / "new_512.pth", b"trained anew")
    os.unlink(shelf.root / "out" / "rlhf_512.pth")
    put(shelf.root / "out" / "rlhf_512.pth", os.urandom(len(before)))
    spec = f"runs/{RUN}/spec.json"
    zeros = bytes((shelf.root / spec).stat().st_size)
    subprocess.run(["rclone", "rcat", f"{shelf.name}/{spec}"], input=zeros, check=True, timeout=30)
    told = shelf.bring(now_utc="20260102T000000Z")
    assert {file.path for file in told.sent} == {"out/new_512.pth", "out/rlhf_512.pth", spec}
    assert tree(shelf.folder) == tree(shelf.root) and sums_hold(shelf.folder)
    assert [path.read_bytes() for path in (shelf.folder / ".previous").rglob("rlhf_512.pth")] == [before]
    assert not list((shelf.folder / ".sync").rglob("*.pth"))


@pytest.mark.parametrize("shelf", ["webdav"], indirect=True)
def test_bytes_that_were_changed_under_way_get_no_name_there(shelf, tmp_path, monkeypatch):
    real, fake = shutil.which("rclone"), tmp_path / "bin"
    fake.mkdir()
    incoming = shelf.folder / ".sync" / "incoming" / "out" / "rlhf_512.pth"
    script = (
        f'#!/bin/sh\n{real} "$@"; code=$?\n[ "$1" != copy ] || printf X | dd of="{incoming}" conv=notrunc 2>/dev/null\n'
    )
    put(fake / "rclone", f"{script}exit $code\n".encode()).chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    with pytest.raises(LaunchError, match=r"out/rlhf_512\.pth") as caught:
        shelf.bring()
    assert caught.value.code == Exit.NOT_VERIFIED
    assert tree(shelf.folder) == {} and not (shelf.folder / "SHA256SUMS").exists()
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(":")[2])
    shelf.bring()
    assert tree(shelf.folder) == tree(shelf.root) and sums_hold(shelf.folder)


@pytest.mark.parametrize("shelf", ["webdav"], indirect=True)
def test_a_store_that_is_gone_is_said_and_leaves_home_whole(shelf, monkeypatch, tmp_path):
    config = put(tmp_path / "gone.conf", b"[webdav]\ntype = webdav\nurl = http://127.0.0.1:1\nvendor = other\n")
    monkeypatch.setenv("RCLONE_CONFIG", str(config))
    monkeypatch.setenv("RCLONE_RETRIES", "1")
    monkeypatch.setenv("RCLONE_LOW_LEVEL_RETRIES", "1")
    with pytest.raises(LaunchError) as caught:
        shelf.bring()
    assert caught.value.code in (Exit.HOST_NOT_READY, Exit.INCOMPLETE) and "refused" in caught.value.why
    assert sums_hold(shelf.home)


@pytest.mark.parametrize("shelf", ["disk"], indirect=True)
def test_the_command_sends_and_a_dry_run_only_says_what(shelf):
    launch = functools.partial(
        subprocess.run, cwd=shelf.home, env=dict(os.environ), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    argv = [sys.executable, "-m", "launch", "sync-out", "--host", "local", "--to", f"rclone:{shelf.name}"]
    dry = launch([*argv, "--dry-run"])
    assert dry.returncode == 0 and f"would send {len(tree(shelf.root))} files" in dry.stderr, dry.stderr
    assert not shelf.folder.exists() and not (shelf.home / "out").exists()
    done = launch([*argv, "--json"])
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["remote"]["sent"]) == len(tree(shelf.root))
    assert tree(shelf.folder) == tree(shelf.home) == tree(shelf.root) and sums_hold(shelf.folder)
    with pytest.raises(LaunchError, match="rclone") as unknown:
        Remote("unknown:x")
    assert unknown.value.code == Exit.HOST_NOT_READY and unknown.value.why


def test_a_name_without_a_remote_is_a_usage_error():
    with pytest.raises(LaunchError, match="names no remote") as caught:
        sync.remote_of("rclone:nowhere")
    assert caught.value.code == Exit.USAGE
    assert sync.remote_of("rclone:s3:bucket/x") == "s3:bucket/x" and sync.remote_of("folder") is None


def test_without_rclone_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", "sh"))
    with pytest.raises(LaunchError, match="cannot be reached") as caught:
        Remote("s3:bucket")
    assert caught.value.code == Exit.HOST_NOT_READY and "install" in caught.value.remedy
