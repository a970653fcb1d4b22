"""A trace is looked at, a training is wanted: a disk without room for both keeps the training, and says so."""

import contextlib
import os
import shutil
import subprocess
import time

import pytest
from torch.profiler import profile

from minimind import tracing
from minimind.durable import is_disk_full
from minimind.efficiency import Account
from tests.support import corpus
from tests.support.corpus import TINY

FLAGS = (*TINY, "--batch_size", "3", "--accumulation_steps", "1", "--from_weight", "none", "--max_steps", "8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus.make(tmp_path_factory.mktemp("tracing"))


@contextlib.contextmanager
def small_disk(place, *, size):
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)  # the profiler may still have a file there open


def test_a_disk_that_a_trace_fills_is_told_and_keeps_its_room_for_the_checkpoint(folder, capsys):
    with small_disk(folder / "runs" / "full", size="3000k") as disk:
        lines = corpus.train_here(folder, "pretrain", *FLAGS, "--profile", run="full")
        told = capsys.readouterr().out
        assert len(lines) == 8 and (disk / "ckpt" / "step-00000008" / "SHA256SUMS").exists()
        assert not list((disk / "profile").iterdir())
    assert "warning: the trace could not be written" in told and "the disk is full: the trace needs more than" in told


def test_a_trace_that_only_just_fits_does_not_take_the_room_of_the_next_checkpoint(folder, capsys):
    plain = corpus.train_here(folder, "pretrain", *FLAGS, "--profile", run="roomy")
    (trace,) = (folder / "runs" / "roomy" / "profile").iterdir()
    capsys.readouterr()
    with small_disk(folder / "runs" / "tight", size=f"{trace.stat().st_size // 1024 + 900}k") as disk:
        lines = corpus.train_here(folder, "pretrain", *FLAGS, "--profile", run="tight")
        told = capsys.readouterr().out
        assert (disk / "ckpt" / "step-00000008" / "SHA256SUMS").exists() and not list((disk / "profile").iterdir())
    assert [line["loss"] for line in lines] == [line["loss"] for line in plain]
    assert "bytes are free beside the trace of" in told and "training goes on" in told


def test_no_checkpoint_is_on_its_way_while_a_trace_is_written(folder, monkeypatch):
    before, export = [], profile.export_chrome_trace
    run = folder / "runs" / "busy"

    def look(self, path):
        before.append([path.name for path in (run / "ckpt").iterdir()])
        export(self, path)

    monkeypatch.setattr(profile, "export_chrome_trace", look)
    flags = (*FLAGS[:-1], "12", "--save_interval", "1", "--profile")
    corpus.train_here(folder, "pretrain", *flags, run="busy")
    (names,) = before
    assert "step-00000007" in names and not any(name.endswith(".tmp") for name in names)


def test_what_a_killed_attempt_left_of_a_trace_is_removed_by_the_next(folder):
    left = folder / "runs" / "left" / "profile" / ".trace.tmp"
    left.mkdir(parents=True)
    (left / "steps.json.tmp").write_bytes(bytes(100))
    corpus.train_here(folder, "pretrain", *FLAGS, "--profile", run="left")
    assert [path.name for path in left.parent.iterdir()] == ["steps-00000004-00000008.json"]


def test_a_profiler_that_writes_nothing_on_a_disk_with_room_is_told_as_that(tmp_path):
    with pytest.raises(OSError, match="did not say why") as refused:
        tracing._refuse(tmp_path / "trace.json", needed_bytes=0)
    assert not is_disk_full(refused.value)


def test_a_trace_that_takes_the_room_of_what_is_to_come_is_a_full_disk(tmp_path):
    (tmp_path / "trace.json").write_text("{}")
    tracing._refuse(tmp_path / "trace.json", needed_bytes=1)
    with pytest.raises(OSError, match="the disk is full") as refused:
        tracing._refuse(tmp_path / "trace.json", needed_bytes=shutil.disk_usage(tmp_path).total + 1)
    assert is_disk_full(refused.value)


def test_writing_a_trace_is_no_step_s_time(folder, monkeypatch):
    export, settle, settled = profile.export_chrome_trace, Account.settle, []

    def slow(self, path):
        time.sleep(3)
        export(self, path)

    def seen(self, **times):
        before = self.spent.seconds
        settle(self, **times)
        settled.append((times["trace_s"], self.spent.seconds - before))

    monkeypatch.setattr(profile, "export_chrome_trace", slow)
    monkeypatch.setattr(Account, "settle", seen)
    lines = corpus.train_here(folder, "pretrain", *FLAGS, "--profile", run="slow")
    assert settled[7][0] > 3 and max(seconds for _, seconds in settled) < 2
    assert min(line["tokens"] / line["tokens_per_s"] for line in lines) < 2
    assert max(line["tokens"] / line["tokens_per_s"] for line in lines) < 2


SLOW_READER = """
import os, time
from minimind.feed import Feed
take = Feed.take
def slow(self, number):
    if os.environ["RANK"] == "1":
        time.sleep(0.4)
    return take(self, number)
Feed.take = slow
"""


def test_waiting_for_a_rank_that_reads_slowly_is_not_waiting_for_data(forker, folder):
    flags = (*FLAGS[:-1], "4", "--parallel", "fsdp")
    forker.start(folder, "pretrain", *flags, run="shards", nproc=2, before=SLOW_READER)
    assert forker.wait() == [0, 0], forker.log.read_text()
    lines = corpus.metrics(folder / "runs" / "shards")
    assert all(line["tokens"] / line["tokens_per_s"] > 0.3 for line in lines[1:]), "each step waits for rank 1"
    assert all(line["data_wait_s"] < 0.2 for line in lines[1:]), [line["data_wait_s"] for line in lines]
