"""sync-out and sync-in on a real sshd and a real rsync: what arrives is whole, verified, and inside the folder."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading

import pytest

from launch.errors import Exit, LaunchError
from launch.sync import courier, store
from tests.support.launching import start, wait_for
from tests.support.syncing import (
    OTHER,
    RUN,
    Quiet,
    behind_wire,
    direct,
    gathered,
    make_run,
    put,
    sums_hold,
    tree,
)
from tests.support.syncing import tools as make_tools

pytestmark = pytest.mark.sshd


@pytest.fixture
def far(ssh_home):
    """A host with two runs and their weights."""
    make_run(ssh_home.root, RUN, "rlhf_512.pth", os.urandom(6_000_000))
    make_run(ssh_home.root, OTHER, "full_sft_512.pth", os.urandom(50_000))
    put(ssh_home.root / "out" / "tokenizer" / "tokenizer.json", b"{}")
    return ssh_home


def out(home, *args, code=0, **kwargs):
    result = home.launch("sync-out", *args, **kwargs)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def report(home, *args):
    return json.loads(out(home, "--json", *args).stdout)


def test_everything_comes_home_and_the_checksums_say_so(far):
    out(far)
    assert tree(far.home) == tree(far.root)
    assert sums_hold(far.home)
    manifest = json.loads((far.home / "manifest.json").read_text())
    assert (manifest["host"], manifest["root"]) == ("gpu8", str(far.root))
    assert {file["path"]: file["sha256"] for file in manifest["files"]} == tree(far.root)
    assert list((far.home / ".sync").glob("*.part")) == []
    assert not (far.home / ".previous").exists()


def test_a_file_under_two_names_travels_once_and_editing_one_of_them_here_leaves_the_other(far):
    put(far.root / "out" / "copied.pth", (far.root / "out" / "full_sft_512.pth").read_bytes())
    told = report(far)
    assert told["fetched_bytes"] < 6_100_000
    names = [path for top in ("out", "runs") for path in (far.home / top).rglob("*") if path.is_file()]
    assert len({path.stat().st_ino for path in names}) == len(names)
    with open(far.home / "out" / "rlhf_512.pth", "r+b") as file:
        file.write(b"edited")
    exported = far.home / "runs" / RUN / "export" / "rlhf_512.pth"
    assert exported.read_bytes() == (far.root / "out" / "rlhf_512.pth").read_bytes()


def test_a_kept_version_shares_nothing_with_what_replaced_it(far):
    out(far)
    target = far.home / "out" / "full_sft_512.pth"
    before = target.read_bytes()
    for number in range(2):  # twice in one second: two versions all the same
        put(far.root / "out" / "full_sft_512.pth", f"trained anew {number}".encode())
        out(far)
    with open(target, "r+b") as file:
        file.write(b"edited here")
    kept = sorted((far.home / ".previous").rglob("out/full_sft_512.pth"))
    assert [path.read_bytes() for path in kept] == [before, b"trained anew 0"]
    assert all(path.stat().st_nlink == 1 for path in [*kept, target])


def test_the_command_to_check_again_works_as_it_is_printed(far, tmp_path):
    folder = tmp_path / "it's $(touch pwned) my folder"
    result = out(far, "--to", str(folder))
    command = result.stderr.rpartition("Check again: ")[2]
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True).returncode == 0
    assert not (tmp_path / "pwned").exists()


def test_a_second_sync_moves_nothing(far):
    out(far)
    told = report(far)
    assert (told["fetched"], told["fetched_bytes"]) == ([], 0)
    assert sums_hold(far.home)


def test_one_run_brings_its_directory_and_its_weights_only(far, tmp_path):
    told = report(far, RUN, "--to", str(tmp_path / "to"))
    names = {file["path"] for file in told["files"]}
    assert names == {name for name in tree(far.root) if RUN in name} | {"out/rlhf_512.pth"}
    assert sums_hold(tmp_path / "to")


def test_the_checksums_of_earlier_syncs_stay_while_their_files_do(far):
    out(far, OTHER)
    out(far, RUN)
    names = store.read_sums(far.home / "SHA256SUMS")
    assert {"out/full_sft_512.pth", "out/rlhf_512.pth"} <= set(names)
    (far.home / "out" / "full_sft_512.pth").unlink()
    (far.home / "runs" / OTHER / "metrics.jsonl").write_text("edited by hand")
    result = out(far, RUN)
    assert f"runs/{OTHER}/metrics.jsonl was changed" in result.stderr
    assert sums_hold(far.home)
    assert "out/full_sft_512.pth" not in store.read_sums(far.home / "SHA256SUMS")


def test_what_is_replaced_is_kept(far):
    put(far.home / "out" / "rlhf_512.pth", b"mine, and the only copy")
    out(far)
    kept = list((far.home / ".previous").rglob("rlhf_512.pth"))
    assert [path.read_bytes() for path in kept] == [b"mine, and the only copy"]
    assert tree(far.home) == tree(far.root)


def test_a_log_that_only_grew_replaces_its_beginning_and_nothing_is_kept(far):
    out(far)
    with open(far.root / "runs" / RUN / "metrics.jsonl", "a") as file:
        file.write('{"step": 2}\n')
    out(far)
    assert tree(far.home) == tree(far.root)
    assert not (far.home / ".previous").exists()


def test_a_stale_file_of_the_same_length_and_time_is_replaced(far):
    out(far)
    theirs, ours = far.root / "out" / "full_sft_512.pth", far.home / "out" / "full_sft_512.pth"
    os.utime(ours, (1, 1))
    ours_data = bytearray(ours.read_bytes())
    ours_data[0] ^= 1
    ours.unlink()
    ours.write_bytes(ours_data)
    shutil.copystat(theirs, ours)
    out(far)
    assert ours.read_bytes() == theirs.read_bytes()
    assert sums_hold(far.home)


def test_a_dry_run_says_what_and_how_much_and_writes_nothing(far):
    before = sorted(far.home.rglob("*"))
    result = out(far, "--dry-run")
    assert sorted(far.home.rglob("*")) == before
    assert "6000000 out/rlhf_512.pth" in result.stdout
    assert "nothing was changed" in result.stderr


def test_names_with_spaces_quotes_and_backslashes_come_home(far):
    for name in ("a b.pth", "$(touch pwned).pth", "it's.pth", "back\\slash.pth", "-n.pth", "权重.pth", "*.pth"):
        put(far.root / "out" / name, name.encode() * 10)
    put(far.root / "out" / "big $(id) 'q' 名.pth", os.urandom(courier.RSYNC_FROM_BYTES + 1))
    out(far)
    assert tree(far.home) == tree(far.root)
    assert sums_hold(far.home)


def test_hostile_names_links_and_pipes_stay_where_they_are(far, tmp_path):
    evil = far.root / "out"
    put(evil / "new\nline.pth")
    put(evil / "\x1b[2Jclear.pth")
    put(evil / "\u202egnp.pth")
    os.close(os.open(os.fsencode(evil) + b"/not\xffutf8.pth", os.O_CREAT))
    secret = put(tmp_path / "secret", b"not for the host's owner to choose")
    os.symlink(secret, evil / "link.pth")
    os.symlink("/", evil / "slash")
    os.mkfifo(evil / "pipe.pth")
    put(evil / ".tmp-0123", b"half")
    put(evil / ".rlhf_512.pth.77.abcd.tmp", b"half")
    expected = tree(far.root)
    result = out(far)
    assert "\x1b" not in result.stderr
    assert "\u202e" not in result.stderr
    assert result.stderr.count("left on gpu8") == 9
    ordinary = {name: digest for name, digest in expected.items() if name.isascii() and name.isprintable()}
    for name in ("out/link.pth", "out/.tmp-0123", "out/.rlhf_512.pth.77.abcd.tmp"):
        ordinary.pop(name, None)
    assert tree(far.home) == ordinary
    assert sums_hold(far.home)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/outside",
        "out/../../outside",
        "runs",
        "out/",
        "out//x",
        "out/./x",
        ".sync/lock",
        "SHA256SUMS",
    ],
)
def test_a_host_that_lies_about_names_writes_nowhere_else(name):
    from launch.sync.listing import parse

    listing = parse(b"f 1 - - - " + name.encode() + b"\0f 1 - - - out/fine\0end\0", ["out", "runs"])
    assert [file.path for file in listing.files] == ["out/fine"]
    assert len(listing.odd) == 1


@pytest.mark.parametrize("told", [b"", b"f 1 - - - a\0", b"f 1 - - - a\0en", b"f 1 - - - end\0", b"end\0f 1 - - - a"])
def test_a_list_that_is_cut_off_is_never_taken_for_the_whole(told):
    from launch.sync.listing import parse

    with pytest.raises(LaunchError, match="cut off") as caught:
        parse(told, ["out", "runs"])
    assert caught.value.code == Exit.INCOMPLETE


def test_a_host_with_failed_runs_only_is_brought_home_and_is_an_error_until_told_that_it_is_none(ssh_home):
    put(ssh_home.root / "runs" / RUN / "attempts" / "1" / "log.txt", b"out of memory\n")
    put(ssh_home.root / "runs" / RUN / "ckpt" / "step-00000001" / "model.pth")
    result = out(ssh_home, code=Exit.NOT_VERIFIED)
    assert "no weights" in result.stderr and "--without-weights" in result.stderr
    assert tree(ssh_home.home) == tree(ssh_home.root)
    assert not (ssh_home.home / "SHA256SUMS").exists() and not (ssh_home.home / "manifest.json").exists()
    told = out(ssh_home, "--without-weights", "--json")
    assert "NO WEIGHTS on gpu8" in told.stderr and json.loads(told.stdout)["weights"] is False
    assert sums_hold(ssh_home.home)


def test_a_host_without_any_file_is_an_error_whatever_is_said(ssh_home):
    (ssh_home.root / "out").mkdir(parents=True)
    assert "no weights" in out(ssh_home, "--without-weights", code=Exit.NOT_VERIFIED).stderr


def test_a_host_without_the_root_is_an_error_that_says_so(ssh_home):
    assert "there is no folder" in out(ssh_home, code=Exit.NOT_VERIFIED).stderr


def test_a_copy_that_cannot_fit_is_refused_before_it_begins(far):
    huge = far.root / "out" / "huge.pth"
    with open(huge, "wb") as file:
        file.truncate(shutil.disk_usage(far.home).total * 2)
    before = sorted(far.home.rglob("*"))
    result = out(far, code=Exit.HOST_NOT_READY)
    assert "the copy needs" in result.stderr
    assert sorted(far.home.rglob("*")) == before


def test_the_local_host_is_brought_home_too_but_not_onto_itself(far):
    make_run(far.home / "local", RUN, "rlhf_512.pth", b"trained here")
    out(far, "--host", "local")
    assert (far.home / "out" / "rlhf_512.pth").read_bytes() == b"trained here"
    assert sums_hold(far.home)
    for folder in ("local", "local/out/deeper"):
        assert "onto itself" in out(far, "--host", "local", "--to", folder, code=Exit.USAGE).stderr


def test_with_several_hosts_one_must_be_named(far):
    with open(far.home / "launch.toml", "a") as file:
        file.write('[hosts.other]\nssh = "other"\n')
    assert "--host NAME" in out(far, code=Exit.USAGE).stderr


def test_a_folder_here_is_never_replaced_by_a_file(far):
    (far.home / "out" / "rlhf_512.pth").mkdir(parents=True)
    assert "is a folder here" in out(far, code=Exit.REFUSED).stderr


def test_two_at_once_into_one_folder_do_not_mix(far, monkeypatch):
    monkeypatch.setattr(store, "LOCK_WAIT_S", 0.2)
    with store.Store(far.home, stamp="x").locked(), pytest.raises(LaunchError, match="another sync-out") as caught:
        direct(far)
    assert caught.value.code == Exit.REFUSED
    assert not (far.home / "SHA256SUMS").exists()


class Meddling(Quiet):
    """Changes the host's files just when the copy begins."""

    def __init__(self, change, times):
        super().__init__()
        self._change, self._times = change, times

    def moving(self, label, total_bytes):
        if self._times:
            self._times -= 1
            self._change()
        return super().moving(label, total_bytes)


def test_a_file_that_changed_meanwhile_is_looked_at_once_more(far):
    target = far.root / "out" / "full_sft_512.pth"

    def change():
        target.write_bytes(os.urandom(50_000))  # in place: under both of its names

    direct(far, voice=Meddling(change, 1))
    assert tree(far.home) == tree(far.root)
    assert sums_hold(far.home)


def test_a_file_that_shrank_or_went_away_meanwhile_stops_nothing(far):
    big, small = far.root / "out" / "rlhf_512.pth", far.root / "out" / "tokenizer" / "tokenizer.json"

    def change():
        os.truncate(big, 5)
        small.unlink()

    direct(far, voice=Meddling(change, 1))
    assert tree(far.home) == tree(far.root)
    assert sums_hold(far.home)


def test_a_file_that_never_holds_still_is_named_and_not_published(far):
    target = far.root / "out" / "full_sft_512.pth"

    def change():
        target.write_bytes(os.urandom(50_000))  # in place: under both of its names

    with pytest.raises(LaunchError, match=r"out/full_sft_512\.pth") as caught:
        direct(far, voice=Meddling(change, 9))
    assert caught.value.code == Exit.NOT_VERIFIED
    assert not (far.home / "out" / "full_sft_512.pth").exists()
    assert not (far.home / "SHA256SUMS").exists()


def test_a_part_that_was_damaged_is_fetched_anew(far):
    data = (far.root / "out" / "rlhf_512.pth").read_bytes()
    parts = store.Store(far.home, stamp="x")
    (far.home / ".sync").mkdir()
    parts.part(hashlib.sha256(data).hexdigest()).write_bytes(b"\0" * 1_000_000)
    out(far)
    assert tree(far.home) == tree(far.root)


def test_a_log_that_grows_during_the_copy_comes_as_it_was_when_listed(far):
    log = far.root / "runs" / RUN / "attempts" / "1" / "log.txt"
    stop = threading.Event()

    def write():
        with open(log, "ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"another line\n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        direct(far)
    finally:
        stop.set()
        writer.join()
    assert log.read_bytes().startswith((far.home / log.relative_to(far.root)).read_bytes())
    assert sums_hold(far.home)


@pytest.fixture(params=["rsync", "fetch"])
def slow(request, tmp_path, sshd, monkeypatch):
    """A host behind a relay that stops in the middle of a 24 MB file; with rsync, or on a laptop without it."""
    if request.param == "rsync" and shutil.which("rsync") is None:
        pytest.skip("needs rsync")
    home, wire = behind_wire(tmp_path, sshd, stop_after_bytes=10_000_000)
    tools = tmp_path / "tools"
    home.environ["PATH"] = make_tools(tools, "sh", "env", "ssh")
    if request.param == "rsync":
        (tools / "rsync").write_text(f'#!/bin/sh\n: >"{tools}/used"\nexec {shutil.which("rsync")} "$@"\n')
        (tools / "rsync").chmod(0o755)
    make_run(home.root, RUN, "rlhf_512.pth", os.urandom(24_000_000))
    put(home.home / "out" / "rlhf_512.pth", b"an older one")
    yield home, wire
    wire.close()
    assert (tools / "used").exists() == (request.param == "rsync")


@pytest.mark.parametrize("cause", ["killed", pytest.param("interrupted", marks=pytest.mark.soak), "cut"])
def test_a_copy_that_ends_in_mid_file_leaves_no_half_and_goes_on_from_there(slow, cause):
    home, wire = slow
    process = start(home, "sync-out")
    assert wire.stopped.wait(120)
    wait_for(lambda: gathered(home) > 4_000_000)
    assert process.poll() is None
    if cause == "killed":
        process.kill()
    elif cause == "interrupted":
        process.send_signal(signal.SIGINT)
    else:
        wire.cut()
    _, stderr = process.communicate(timeout=60)
    if cause != "killed":
        assert b"Traceback" not in stderr
        assert process.returncode == {"interrupted": Exit.INTERRUPTED, "cut": Exit.INCOMPLETE}[cause], stderr
    before = gathered(home)
    assert 4_000_000 < before < 24_000_000
    assert (home.home / "out" / "rlhf_512.pth").read_bytes() == b"an older one"
    assert not (home.home / "SHA256SUMS").exists()
    wire.go_on()
    relayed = wire.relayed_bytes
    result = home.launch("sync-out", timeout=120)
    assert result.returncode == 0, result.stderr
    assert tree(home.home) == tree(home.root)
    assert wire.relayed_bytes - relayed < 24_000_000 - before + 3_000_000
    assert sums_hold(home.home)


def test_data_weights_and_tokenizer_are_pushed_once(ssh_home):
    home, root = ssh_home.home, ssh_home.root
    for name in ("dataset/a.jsonl", "out/full_sft_512.pth", "out/lora/lora_x_512.pth", "out/tokenizer/tokenizer.json"):
        put(home / name, os.urandom(1000))
    put(home / "out" / "notes.txt")
    first = json.loads(ssh_home.launch("sync-in", "--json", check=True).stdout)
    assert [push["host_had"] for push in first] == ["absent"] * 4
    sent = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert sent == {name: (home / name).read_bytes() for name in sent}
    assert len(sent) == 4
    second = json.loads(ssh_home.launch("sync-in", "--json", check=True).stdout)
    assert [push["host_had"] for push in second] == ["same"] * 4


def test_a_push_never_replaces_other_bytes_unless_told_to(ssh_home):
    put(ssh_home.home / "dataset" / "new.jsonl", b"new")
    put(ssh_home.home / "out" / "rlhf_512.pth", b"the laptop's")
    theirs = put(ssh_home.root / "out" / "rlhf_512.pth", b"the host's")
    result = ssh_home.launch("sync-in")
    assert result.returncode == Exit.REFUSED
    assert "rlhf_512.pth" in result.stderr
    assert theirs.read_bytes() == b"the host's"
    assert not (ssh_home.root / "dataset").exists()
    assert ssh_home.launch("sync-in", "--overwrite").returncode == 0
    assert theirs.read_bytes() == b"the laptop's"


def test_a_dry_push_sends_nothing(ssh_home):
    put(ssh_home.home / "dataset" / "new.jsonl", b"new")
    result = ssh_home.launch("sync-in", "--dry-run", check=True)
    assert "would copy 1 of 1 files, 3 bytes" in result.stderr
    assert not ssh_home.root.exists()


def test_a_host_that_chatters_at_login_is_told_what_to_do():
    from launch.sync.listing import hashes
    from launch.transport import Result

    class Chatty:
        host = type("H", (), {"name": "gpu8", "ssh": "root@gpu8"})

        def read(self, *args, **kwargs):
            return Result(0, b"Welcome to gpu8!\n" + b"a" * 64 + b"\n", b"")

    with pytest.raises(LaunchError, match="answered") as caught:
        hashes(Chatty(), "/", [("all", "x")])
    assert caught.value.code == Exit.HOST_NOT_READY


def test_the_portable_listing_agrees_with_that_of_gnu_find(far, tmp_path):
    from launch.sync.listing import parse
    from launch.sync.scripts import LIST

    fake = tmp_path / "bin"
    fake.mkdir()
    find = shutil.which("find")
    (fake / "find").write_text(f'#!/bin/sh\ncase "$*" in *-printf*) exit 1;; esac\nexec {find} "$@"\n')
    (fake / "find").chmod(0o755)
    os.symlink("x", far.root / "out" / "link.pth")
    listed = []
    for path in (os.environ["PATH"], f"{fake}:{os.environ['PATH']}"):
        argv = ["sh", "-c", LIST, "sh", str(far.root), "-H", "out", "runs", "nothing"]
        data = subprocess.run(argv, env={"PATH": path, "LC_ALL": "C"}, capture_output=True, check=True).stdout
        listing = parse(data, ["out", "runs"])
        files = sorted((file.path, file.length_bytes) for file in listing.files)
        listed.append((files, [odd.name for odd in listing.odd]))
    assert listed[0] == listed[1]
    assert len(listed[0][0]) == len(tree(far.root))
