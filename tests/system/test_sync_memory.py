"""What a verified sync hashed is not read again while nobody touched it, and is read again as soon as somebody did."""

import json
import os
import pathlib
import subprocess
import time

import pytest

from launch.sync import memory, sync_out
from launch.sync.listing import RemoteFile, hashes
from launch.sync.memory import Memory
from launch.sync.scripts import HASH
from launch.transport import connect
from tests.support.syncing import RUN, Quiet, make_run, put, sums_hold, tools, tree


class Counting:
    """A transport that keeps which paths it was asked to hash."""

    def __init__(self, inner):
        self._inner, self.host, self.asked = inner, inner.host, []

    def read(self, argv, **options):
        if HASH in argv:
            self.asked += options["stdin"].decode().splitlines()[1::2]
        return self._inner.read(argv, **options)

    def __getattr__(self, name):
        return getattr(self._inner, name)


class Home:
    """A laptop whose host ``local`` has a trained model; ``sync`` tells what was fetched, hashed there, hashed here."""

    def __init__(self, folder, monkeypatch):
        from launch.inventory import load

        put(folder / "launch.toml", b"")
        self.home, self.root = folder, folder / "local"
        self.inventory = load(None, cwd=folder, environ={})
        make_run(self.root, RUN, "rlhf_512.pth", os.urandom(50_000))
        put(self.root / "out" / "back\\slash 'q' (1).json", b"{}")
        self.read_here = []
        real = memory.sha256_file
        monkeypatch.setattr(memory, "sha256_file", lambda path: self.read_here.append(path) or real(path))

    def sync(self, **options):
        self.read_here.clear()
        with connect(self.inventory.host("local"), self.inventory) as transport:
            counting = Counting(transport)
            report = sync_out(
                counting,
                self.inventory,
                folder=self.home,
                run_id=None,
                voice=Quiet(),
                now_utc="20260101T000000Z",
                **options,
            )
        return [file.path for file in report.fetched], set(counting.asked), {str(p) for p in self.read_here}


@pytest.fixture
def calm(tmp_path, monkeypatch):
    """Everything was synced once, long after it was written."""
    home = Home(tmp_path, monkeypatch)
    monkeypatch.setattr(memory, "SETTLED_S", -5.0)  # two clocks' worth: what was written just now counts as settled
    monkeypatch.setattr(memory, "TICK_S", -5.0)
    for path in home.root.rglob("*"):
        os.utime(path, (1_700_000_000.5, 1_700_000_000.5))
    home.sync()
    return home


def test_a_second_sync_reads_no_file_on_either_side(calm):
    assert calm.sync() == ([], set(), set())
    assert tree(calm.home) == tree(calm.root) and sums_hold(calm.home)


def test_asked_for_it_hashes_everything_anew_and_finds_what_no_time_tells(calm):
    fetched, asked, read = calm.sync(fresh=True)
    assert fetched == [] and len(asked) >= len(tree(calm.root)) - 1 and len(read) == len(tree(calm.home))
    assert calm.sync() == ([], set(), set())
    seen = calm.home / ".sync" / "seen.json"
    told = seen.read_text()
    for digest in tree(calm.root).values():
        told = told.replace(digest, "0" * 64)
    seen.write_text(told)
    assert calm.sync(fresh=True)[0] == []  # and so the memory is right again
    assert calm.sync() == ([], set(), set())


def test_a_file_of_the_host_with_other_bytes_and_the_same_length_and_time_is_hashed_again(calm):
    target = calm.root / "out" / "rlhf_512.pth"
    before = target.stat()
    with open(target, "r+b") as file:
        file.write(b"other bytes")
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    fetched, asked, _ = calm.sync()
    assert "out/rlhf_512.pth" in fetched and asked
    assert tree(calm.home) == tree(calm.root) and sums_hold(calm.home)


def test_a_file_at_home_with_other_bytes_and_the_same_length_and_time_is_brought_again(calm):
    target = calm.home / "out" / "rlhf_512.pth"
    before = target.stat()
    with open(target, "r+b") as file:
        file.write(b"other bytes")
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    fetched, asked, read = calm.sync()
    assert (fetched, asked, read) == (["out/rlhf_512.pth"], set(), {str(target)})
    assert tree(calm.home) == tree(calm.root) and sums_hold(calm.home)


def test_the_same_bytes_with_a_newer_time_are_hashed_and_not_fetched(calm):
    os.utime(calm.root / "out" / "rlhf_512.pth")
    fetched, asked, _ = calm.sync()
    assert fetched == [] and asked


def test_what_was_written_just_before_it_was_hashed_is_hashed_again(calm, monkeypatch):
    monkeypatch.setattr(memory, "SETTLED_S", 10.0)
    put(calm.root / "out" / "new_512.pth", b"new")
    calm.sync()
    assert calm.sync()[1] == {"out/new_512.pth"}


def test_a_torn_or_forged_memory_costs_time_and_nothing_else(calm):
    seen = calm.home / ".sync" / "seen.json"
    for junk in (b"{", b'{"hosts": {}, "home": {"a": 1}}'):
        seen.write_bytes(junk)
        fetched, asked, _ = calm.sync()
        assert fetched == [] and asked
    assert calm.sync() == ([], set(), set())


@pytest.mark.parametrize("stamp", ["5 - 1.0 1.0", "5 1.2 1.0 -", "5 1.2 2026-01-01T10:00:00 -", "", "5 1.2 1.0 1e9"])
def test_a_host_that_cannot_tell_inode_and_times_is_never_taken_at_its_word(tmp_path, stamp):
    known = Memory(tmp_path, "gpu8")
    known.saw([RemoteFile(path="out/a", length_bytes=5, identity="x", stamp=stamp, sha256="0" * 64)], by_s=1e9)
    known.save()
    assert known.far(RemoteFile(path="out/a", length_bytes=5, identity="x", stamp=stamp)) is None


def test_one_host_is_not_taken_for_another(tmp_path):
    file = RemoteFile(path="out/a", length_bytes=5, identity="x", stamp="5 1.2 1.0 1.0", sha256="0" * 64)
    (tmp_path / ".sync").mkdir()
    first = Memory(tmp_path, "gpu8 root@a /root")
    first.saw([file], by_s=1e9)
    (tmp_path / ".sync" / "seen.json").touch()
    first.save()
    assert Memory(tmp_path, "gpu8 root@a /root").far(file) == file.sha256
    assert Memory(tmp_path, "gpu8 root@b /root").far(file) is None
    assert Memory(tmp_path, "gpu8 root@a /root", fresh=True).far(file) is None


def test_a_later_writer_leaves_another_time_than_the_one_that_a_copy_got(calm):
    """However soon after the copy: the copy's own time is the host's, long past."""
    assert (calm.home / "out" / "rlhf_512.pth").stat().st_mtime == 1_700_000_000.5
    assert time.time() - 1_700_000_000.5 > memory.TICK_S


@pytest.mark.parametrize("programs", [("sha256sum", "head"), ("sha256sum", "head", "openssl"), ("sha256sum", "tail")])
def test_hashes_keep_their_order_whatever_is_missing_or_strangely_named(tmp_path, programs):
    names = [f"{number} 'x' \"y\" \\n *[a-z] $(id).json" for number in range(230)]
    for name in names:
        put(tmp_path / "files" / name, name.encode())
    os.mkfifo(tmp_path / "files" / "pipe")
    os.mkdir(tmp_path / "files" / "folder")
    wanted = [*names[:150], "gone", "pipe", "folder", *names[150:]]
    path = tools(tmp_path / "bin", "sh", *programs)

    class Here:
        host = None

        def read(self, argv, *, stdin):
            told = subprocess.run(argv, input=stdin, env={"PATH": path, "LC_ALL": "C"}, capture_output=True, check=True)
            return type("Told", (), {"stdout": told.stdout})

    told = hashes(Here(), str(tmp_path / "files"), [("all", name) for name in wanted])
    expected = tree_of(tmp_path / "files", wanted)
    assert told == [expected.get(name) for name in wanted]


def tree_of(folder: pathlib.Path, names):
    import hashlib

    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names if (folder / n).is_file()}


def test_the_memory_is_written_for_this_user_only(calm):
    seen = calm.home / ".sync" / "seen.json"
    assert seen.stat().st_mode & 0o077 == 0 and json.loads(seen.read_bytes())["home"]
