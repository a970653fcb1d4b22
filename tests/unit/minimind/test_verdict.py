"""How an attempt ended, judged from what its processes left; and what is left when one could not even begin."""

import errno
import json
import os
import pathlib
import signal

import pytest

from minimind import supervise
from minimind.attempt import Attempt
from minimind.durable import to_json
from minimind.rundir import Reason, RunDir, RunError, RunFiles, RunSpec, State, derive
from minimind.verdict import judge
from tests.support import corpus


def judged(folder: pathlib.Path, code: int, *, killed_for_memory=False, gave_up=False, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"{name}.json").write_bytes(to_json(value))
    return judge(folder, folder / "export", code, killed_for_memory=killed_for_memory, gave_up=gave_up)


def test_a_rank_that_left_with_a_code_and_no_word_is_a_trainer_error_that_names_it_and_its_log(tmp_path):
    said = judged(tmp_path / "run" / "attempts" / "1", 1, ranks=[{"rank": 1, "code": 3, "pid": 7}])
    assert (said["reason"], said["rank"]) == (Reason.TRAINER_ERROR, 1)
    assert "rank 1" in said["what"] and "exit code 3" in said["what"] and "log.rank1.txt" in said["why"]
    assert said["remedy"]


@pytest.mark.parametrize("code", [1, 2])
def test_a_torchrun_that_ended_before_any_rank_is_no_signal(tmp_path, code):
    said = judged(tmp_path / "run" / "attempts" / "1", code)
    assert said["reason"] == Reason.TRAINER_ERROR and "log.txt" in said["why"] and said["code"] == code


def test_only_what_a_signal_ended_is_signal(tmp_path):
    folder = tmp_path / "run" / "attempts" / "1"
    assert judged(folder, -9)["reason"] == Reason.SIGNAL
    assert judged(folder, 1, gave_up=True)["reason"] == Reason.SIGNAL
    said = judged(folder, 1, ranks=[{"rank": 0, "code": -11, "pid": 7}])
    assert said["reason"] == Reason.SIGNAL and "rank 0 was ended by SIGSEGV" in said["what"]
    peer = {
        "reason": "trainer_error",
        "what": "connection closed by peer",
        "why": "",
        "remedy": "",
        "time": 1,
        "rank": 1,
    }
    killed = [{"rank": 0, "code": -9, "pid": 7}, {"rank": 1, "code": 6, "pid": 8}]
    assert judged(folder, 1, ranks=killed, **{"error.rank1": peer})["what"].startswith("rank 0 was ended by SIGKILL")
    both = [{"rank": 0, "code": 6, "pid": 8, "time": 100}, {"rank": 1, "code": -9, "pid": 7, "time": 100}]
    assert judged(folder, 1, ranks=both)["what"].startswith("rank 1 was ended by SIGKILL")
    known = {**peer, "reason": "disk_full", "what": "full"}
    assert judged(folder, 1, ranks=killed, **{"error.rank1": known})["what"] == "full"
    assert judged(folder, 1, killed_for_memory=True)["reason"] == Reason.OOM_KILLED


@pytest.mark.parametrize(("code", "after_s"), [(-15, 0), (-9, 30), (-6, 1)])
def test_what_torchrun_does_to_the_others_is_not_why_the_run_ended(tmp_path, code, after_s):
    ranks = [{"rank": 1, "code": 3, "pid": 7, "time": 100}, {"rank": 0, "code": code, "pid": 8, "time": 100 + after_s}]
    said = judged(tmp_path / "run" / "attempts" / "1", 1, ranks=ranks)
    assert (said["reason"], said["rank"]) == (Reason.TRAINER_ERROR, 1)


@pytest.mark.parametrize("odd", [b"[", b"{}", b"[1, null]", b"[]"])
def test_odd_files_of_a_dying_torchrun_are_read_as_nothing(tmp_path, odd):
    folder = tmp_path / "run" / "attempts" / "1"
    folder.mkdir(parents=True)
    (folder / "ranks.json").write_bytes(odd)
    assert judged(folder, 1)["reason"] == Reason.TRAINER_ERROR


@pytest.fixture
def run(tmp_path):
    made = RunDir(tmp_path / "20260102-030405-pretrain-abcd")
    made.root.mkdir()
    spec = RunSpec(run_id=made.root.name, stage="pretrain", flags=[], nproc=1, executor="venv")
    made.spec.write_bytes(spec.to_json())
    yield made
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def ending(run):
    return json.loads((run.attempt(1) / "exit.json").read_bytes())


def test_a_file_that_the_supervisor_cannot_write_ends_the_run_with_a_reason(run):
    run.env.mkdir()  # nothing can be published over a folder
    assert supervise.Supervisor(run.root).run() == 6
    assert ending(run)["reason"] == Reason.TRAINER_ERROR and "env.json" in ending(run)["what"]
    assert state_of(run).state is State.FAILED


def state_of(run):
    return derive(RunFiles.read(run.root), False, 0.0)


def test_on_a_disk_that_is_full_exit_json_is_written_over_its_reserve(run, monkeypatch):
    def full(path, data, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    supervisor = supervise.Supervisor(run.root)
    monkeypatch.setattr(supervise, "publish", full)
    assert supervisor.run() == 6
    assert ending(run)["reason"] == Reason.DISK_FULL and "free space" in ending(run)["remedy"]
    assert [path.name for path in run.attempt(1).iterdir()] == ["exit.json"]


def test_an_attempt_without_room_for_its_reserve_leaves_no_attempt_and_says_so(run, monkeypatch, capsys):
    def full(path, data, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(supervise, "publish", full)
    assert supervise.main(["--run_dir", str(run.root)]) == 6
    told = capsys.readouterr().err
    assert "full" in told and "remedy:" in told and "Traceback" not in told
    assert run.last_attempt() == 0 and state_of(run).state is State.PREPARED


@pytest.mark.parametrize(
    "places",
    [
        {"run_dir": pathlib.Path("/etc/passwd"), "save_dir": pathlib.Path("out")},
        {"run_dir": None, "save_dir": pathlib.Path("/dev/null/x/out")},
        {"run_dir": pathlib.Path("/proc/nowhere/run"), "save_dir": pathlib.Path("out")},
    ],
)
def test_a_run_directory_that_cannot_be_made_is_one_paragraph(places):
    with pytest.raises(RunError) as refused:
        Attempt("pretrain", [], **places)
    assert "cannot be used" in refused.value.what and "--run_dir" in refused.value.remedy


def test_a_hand_run_that_could_not_begin_leaves_no_folder(tmp_path, monkeypatch):
    def full(path, data, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("minimind.attempt.publish", full)
    with pytest.raises(RunError) as refused:
        Attempt("pretrain", [], run_dir=None, save_dir=tmp_path / "out")
    assert refused.value.reason == Reason.DISK_FULL
    assert list(tmp_path.iterdir()) == []


def test_a_hand_run_that_is_interrupted_before_its_first_step_says_so_in_its_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), Attempt("pretrain", [], run_dir=tmp_path / "r", save_dir=tmp_path):
        raise KeyboardInterrupt
    assert ending(RunDir(tmp_path / "r"))["reason"] == Reason.SIGNAL


def test_weights_that_would_have_nowhere_to_go_are_told_before_the_first_step(tmp_path):
    folder = corpus.make(tmp_path)
    (folder / "taken").write_text("")
    with pytest.raises(RunError, match="cannot take the weights"):
        corpus.train_here(folder, "pretrain", *corpus.TINY, "--save_dir", "taken", run="r")
    assert not (folder / "runs" / "r" / "metrics.jsonl").exists()
