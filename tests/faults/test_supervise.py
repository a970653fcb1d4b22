"""The supervisor with a real torchrun: endings, locks, logs, stopping, dying."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from minimind.rundir import Reason, RunDir, RunFiles, RunSpec, State, derive
from tests.support import corpus
from tests.support.corpus import TINY

STAGE = ("--from_weight", "base", "--batch_size", "4", "--accumulation_steps", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = corpus.make(tmp_path_factory.mktemp("supervise"))
    corpus.train_here(made, "pretrain", *TINY, "--epochs", "1", run="base")
    (made / "out" / "pretrain_64.pth").rename(made / "out" / "base_64.pth")
    return made


def prepare(folder, name, *flags, stage="pretrain", nproc=1) -> RunDir:
    run = RunDir(folder / "runs" / name)
    run.root.mkdir(parents=True)
    spec = RunSpec(run_id=name, stage=stage, flags=[*TINY, *STAGE, *flags], nproc=nproc, executor="venv")
    run.spec.write_bytes(spec.to_json())
    return run


def supervise(folder, run, *flags, **kwargs) -> subprocess.Popen:
    command = [sys.executable, "-m", "minimind.supervise", "--run_dir", str(run.root), *flags]
    return subprocess.Popen(
        command, cwd=folder, env=corpus.environ(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, **kwargs
    )


def state(run, *, alive=False):
    return derive(RunFiles.read(run.root), alive, time.time())


def wait_for(condition, *, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ranks_of(run) -> list[int]:
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(run.root).encode() in words and b"minimind" in words and b"minimind.agent" not in words:
                found.append(int(folder.name))
    return found


def test_two_ranks_succeed_with_weights_logs_and_every_file_of_the_contract(folder):
    run = prepare(folder, "good", "--save_interval", "100", "--max_steps", "5", nproc=2)
    assert supervise(folder, run).wait(120) == 0
    assert state(run).state is State.SUCCEEDED, "a save_interval beyond the last step leaves weights as well"
    assert (folder / "out" / "pretrain_64.pth").stat().st_ino == (run.export / "pretrain_64.pth").stat().st_ino
    attempt = run.attempt(1)
    log, rank0 = (attempt / "log.txt").read_text(), (attempt / "log.rank0.txt").read_text()
    assert rank0 and rank0 in log and (attempt / "log.rank1.txt").exists()
    for path in (
        run.env,
        run.beat,
        run.metrics,
        run.lock / "owner.json",
        attempt / "outcome.json",
        attempt / "exit.json",
    ):
        assert path.exists(), path
        assert path.stat().st_mode & 0o077 == 0, path
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=run.export, capture_output=True, check=False)
    assert done.returncode == 0


def test_a_run_that_could_write_no_weights_is_failed_no_weights(folder):
    # a package on the path whose trainer says "done" and leaves nothing, as the original's save_interval did
    fake = folder / "forgetful" / "minimind"
    shutil.copytree(corpus.ROOT / "minimind", fake)
    (fake / "checkpoint.py").write_text(
        (fake / "checkpoint.py")
        .read_text()
        .replace("    write_sums(run.export)\n", "    weights.unlink()\n    return weights\n")
    )
    run = prepare(folder, "forgetful-run", "--max_steps", "1")
    command = [sys.executable, "-m", "minimind.supervise", "--run_dir", str(run.root)]
    done = subprocess.run(
        command,
        cwd=folder,
        env=corpus.environ(PYTHONPATH=str(fake.parent)),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert json.loads((run.attempt(1) / "outcome.json").read_text())["status"] == "done"
    assert done.returncode == 6
    assert (state(run).state, state(run).reason) == (State.FAILED, Reason.NO_WEIGHTS)


def test_a_broken_line_17_fails_as_data_invalid_with_a_paragraph_and_no_traceback(folder):
    path = folder / "dataset" / "broken.jsonl"
    path.write_text("".join('{"text": "hello"}\n' if n != 17 else '{"text": \n' for n in range(1, 25)))
    run = prepare(folder, "broken", "--data_path", str(path), nproc=2)
    assert supervise(folder, run).wait(120) == 6
    found = state(run)
    ended = json.loads((run.attempt(1) / "exit.json").read_text())
    assert (found.state, found.reason) == (State.FAILED, Reason.DATA_INVALID)
    assert "broken.jsonl:17:" in ended["why"] and ended["what"] and ended["remedy"]
    assert "Traceback" not in (run.attempt(1) / "log.txt").read_text()
    assert not run.checkpoints.exists() and not run.export.exists()


@pytest.mark.soak  # tests/faults/test_weights.py names shapes, the broken line above takes the same way to exit.json
def test_weights_of_another_shape_fail_as_data_invalid_and_say_what_differs(folder):
    run = prepare(folder, "shape", "--hidden_size", "128", "--from_weight", "out/base_64.pth")
    assert supervise(folder, run).wait(120) == 6
    ended = json.loads((run.attempt(1) / "exit.json").read_text())
    assert ended["reason"] == Reason.DATA_INVALID and "(400, 64)" in ended["why"] and "(400, 128)" in ended["why"]


@pytest.mark.parametrize("victim", ["rank", "supervisor"])
def test_kill_9_leaves_no_process_behind(folder, victim):
    kill_9(folder, victim)


def kill_9(folder, victim) -> RunDir:
    run = prepare(folder, f"killed-{victim}-{time.monotonic_ns()}", "--epochs", "400", "--save_interval", "5", nproc=2)
    child = supervise(folder, run)
    wait_for(lambda: run.checkpoint_steps())
    ranks = ranks_of(run)
    assert len(ranks) == 2
    os.kill(ranks[1] if victim == "rank" else child.pid, signal.SIGKILL)
    child.wait(60)
    wait_for(lambda: not any(alive(pid) for pid in ranks), timeout_s=60)
    found = state(run)
    assert found.state is (State.FAILED if victim == "rank" else State.LOST)
    if victim == "rank":
        assert found.reason is Reason.SIGNAL and "rank 1 was ended by SIGKILL" in _ending(run)["what"]
    return run


@pytest.mark.soak  # tests/faults/test_kills.py resumes what was killed, tests/system/test_run_ssh.py by `launch resume`
@pytest.mark.parametrize("victim", ["rank", "supervisor"])
def test_a_run_whose_rank_or_supervisor_was_killed_resumes(folder, victim):
    run = kill_9(folder, victim)
    again = supervise(folder, run)
    while again.poll() is not None or not run.attempt(2).exists():  # torchrun holds the lock until it is gone, too
        if again.poll() == 9:
            again = supervise(folder, run)
        time.sleep(0.05)
    wait_for(lambda: run.attempt(2).exists() and "resuming after step" in _log(run, 2))
    again.terminate()
    assert again.wait(60) == 0 and state(run).state is State.STOPPED


def _ending(run):
    return json.loads((run.attempt(1) / "exit.json").read_text())


def test_words_that_torchrun_would_take_for_its_own_reach_the_trainer_and_are_refused_by_it(folder):
    run = prepare(folder, "words", "--nproc", "2", "--log", "x", "--r", "3", "--m")
    assert supervise(folder, run).wait(120) == 6
    said = _ending(run)
    assert said["reason"] == Reason.TRAINER_ERROR and "does not understand its flags" in said["what"]
    assert "--nproc 2 --log x --r 3 --m" in said["why"]
    assert "usage: " not in _log(run, 1)


def test_a_rank_that_leaves_without_a_word_is_a_trainer_error_and_no_signal(folder):
    fake = folder / "mute" / "minimind"
    shutil.copytree(corpus.ROOT / "minimind", fake)
    told = (fake / "loop.py").read_text()
    mute = "    if attempt.rank == 1:\n        import os\n\n        os._exit(3)\n    with attempt:"
    assert told.count("    with attempt:") == 1
    (fake / "loop.py").write_text(told.replace("    with attempt:", mute))
    run = prepare(folder, "mute-run", nproc=2)
    command = [sys.executable, "-m", "minimind.supervise", "--run_dir", str(run.root)]
    environ = corpus.environ(PYTHONPATH=str(fake.parent))
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, timeout=120, check=False)
    said = _ending(run)
    assert done.returncode == 6 and said["reason"] == Reason.TRAINER_ERROR
    assert said["what"] == "rank 1 ended with exit code 3 and did not say why"
    assert said["why"].endswith("attempts/1/log.rank1.txt")


def _log(run, attempt):
    path = run.attempt(attempt) / "log.txt"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("how", ["signal", pytest.param("file", marks=pytest.mark.soak)])  # `launch stop` writes it
def test_sigterm_saves_and_stops_and_the_stop_file_does_the_same(folder, how):
    run = prepare(folder, f"stop-{how}", "--epochs", "400", nproc=2)
    child = supervise(folder, run)
    wait_for(lambda: run.metrics.exists() and run.metrics.read_bytes().count(b"\n") > 3)
    child.terminate() if how == "signal" else run.stop.touch()
    assert child.wait(60) == 0
    found = state(run)
    assert found.state is State.STOPPED and run.checkpoint_steps() == [found.last_step]


def test_detach_prints_the_handle_lives_on_and_a_second_one_is_refused(folder):
    run = prepare(folder, "detached", "--epochs", "400")
    first = supervise(folder, run, "--detach")
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 0
    handle = json.loads(out)
    assert handle == json.loads(run.handle.read_text()) and handle["attempt"] == 1 and alive(handle["pid"])
    second = supervise(folder, run, "--detach")
    _, told = second.communicate(timeout=60)
    assert second.returncode == 9 and str(handle["pid"]).encode() in told and b"Traceback" not in told
    assert not run.attempt(2).exists()
    wait_for(lambda: state(run, alive=True).state is State.RUNNING)
    run.stop.touch()
    wait_for(lambda: state(run).state is State.STOPPED)
    wait_for(lambda: not alive(handle["pid"]))


def test_a_folder_without_a_spec_is_refused_in_one_paragraph(folder, tmp_path):
    for flags in ((), ("--detach",)):
        child = supervise(folder, RunDir(tmp_path), *flags)
        _, told = child.communicate(timeout=60)
        assert child.returncode == 3 and b"no run directory" in told and b"Traceback" not in told


def test_any_other_first_argument_is_run_instead(folder):
    done = subprocess.run(
        [sys.executable, "-m", "minimind.supervise", sys.executable, "-c", "print('hello')"],
        env=corpus.environ(),
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"hello\n"
