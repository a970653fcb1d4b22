"""What every executor promises, asked of each of them: one suite."""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys

import pytest

from launch import facts
from launch.errors import Exit, LaunchError
from launch.executors import EXECUTORS, Attempt, Environment
from launch.inventory import Host
from launch.runs.observe import observe
from launch.transport import DryTransport
from launch.transport.local import LocalTransport
from minimind.rundir import RunSpec, State, new_run_id
from tests.conftest import ROOT
from tests.support import corpus
from tests.support.docker import docker
from tests.support.launching import LONG, TRAIN, wait_for


class Bench:
    """One executor on this machine with a root of its own."""

    def __init__(self, executor, root, environment):
        self.executor, self.root, self.environment = executor, root, environment
        self.transport = LocalTransport(Host(name="here", ssh=None, root=str(root)))
        self.facts = facts.parse(self.transport.read(facts.probe(str(root), None)).text)

    def prepare(self, *flags: str, nproc: int = 2) -> Attempt:
        spec = RunSpec(
            run_id=new_run_id("pretrain", now_utc="20260102-030405"),
            stage="pretrain",
            flags=["--save_dir", f"{self.root}/out", "--tokenizer", f"{self.root}/out/tokenizer", *flags],
            nproc=nproc,
            executor=self.executor.name,
        )
        run_dir = f"{self.root}/runs/{spec.run_id}"
        self.transport.publish(f"{run_dir}/spec.json", spec.to_json(), mode=0o444)
        return Attempt(
            run_id=spec.run_id,
            run_dir=run_dir,
            root=str(self.root),
            number=1,
            spec_nproc=nproc,
            nproc=None,
            environment=self.environment,
        )

    def start(self, attempt, transport=None):
        return self.executor.start(transport or self.transport, self.facts, attempt)

    def seen(self, attempt):
        return observe(self.transport, root=str(self.root), run_id=attempt.run_id)[0]


@pytest.fixture(scope="module", params=["venv", pytest.param("docker", marks=pytest.mark.docker)])
def bench(request, tmp_path_factory):
    root = corpus.make(tmp_path_factory.mktemp(f"{request.param} root"))
    if request.param == "docker":
        tag = request.getfixturevalue("training_image")
        image_id = docker("image", "inspect", "--format", "{{.Id}}", tag).stdout.strip()
        environment = Environment(image_id=image_id)
    else:
        environment = Environment(python=sys.executable, pythonpath=str(ROOT))
    made = Bench(EXECUTORS[request.param], root, environment)
    yield made
    for run in observe(made.transport, root=str(root)):
        made.executor.stop(made.transport, run.run_id, run.handle)
        if request.param == "docker":
            docker("rm", "--force", f"minimind-{run.run_id}-a1", check=False)


@pytest.fixture(scope="module")
def alive(bench):
    """A run that trains for as long as it is let."""
    attempt = bench.prepare("--data_path", f"{bench.root}/dataset/pretrain_hq.jsonl", *LONG)
    with LocalTransport(bench.transport.host) as first:
        handle = bench.start(attempt, first)
    return attempt, handle


def test_a_started_run_outlives_the_connection_and_its_handle_is_on_the_host(bench, alive):
    attempt, handle = alive
    with open(f"{attempt.run_dir}/handle.json") as file:
        assert json.load(file) == dict(handle)
    assert handle["attempt"] == 1 and handle["nproc"] == 2
    assert bench.executor.status(bench.transport, {attempt.run_id: handle}) == {attempt.run_id: True}
    wait_for(lambda: bench.seen(attempt).state.state is State.RUNNING)


def test_a_second_start_is_refused_and_harms_nothing(bench, alive):
    attempt, handle = alive
    with pytest.raises(LaunchError) as refused:
        bench.start(attempt)
    assert refused.value.code is Exit.REFUSED
    assert bench.executor.status(bench.transport, {attempt.run_id: handle}) == {attempt.run_id: True}


def test_many_runs_are_asked_for_in_one_command(bench, alive):
    attempt, handle = alive
    ended = {**handle, "pid": 2**22 + 1, "start_time": "1"}
    calls = []
    counting = LocalTransport(bench.transport.host)
    start = counting.start
    counting.start = lambda argv, stdin: calls.append(argv) or start(argv, stdin)
    handles = {attempt.run_id: handle, "20200101-000000-dpo-0000": ended, "20200101-000000-dpo-0001": {}}
    assert list(bench.executor.status(counting, handles).values()) == [True, False, False]
    assert len(calls) == 1


def test_another_process_under_the_same_number_is_not_the_run(bench, alive):
    attempt, handle = alive
    if handle["kind"] == "docker":
        pytest.skip("a container is known by its labels")
    for wrong in ({"start_time": "1"}, {"boot_id": "another boot"}):
        assert not bench.executor.status(bench.transport, {attempt.run_id: {**handle, **wrong}})[attempt.run_id]


def test_on_paper_nothing_starts(bench):
    attempt = bench.prepare()
    record = []
    bench.start(attempt, DryTransport(bench.transport, record))
    assert record and record[0].verb == "run"
    assert bench.seen(attempt).state.state is State.PREPARED
    assert not os.path.exists(f"{attempt.run_dir}/attempts")


def test_a_new_run_gets_its_spec_before_it_starts_and_only_whole(bench):
    attempt = bench.prepare("--data_path", "nowhere.jsonl", nproc=1)
    spec = pathlib.Path(attempt.run_dir, "spec.json")
    text = spec.read_bytes()
    spec.unlink()
    new = dataclasses.replace(attempt, spec_json=text)
    cut = LocalTransport(bench.transport.host)
    run = cut.run
    cut.run = lambda argv, **options: run(argv, **options | {"stdin": text[:-1]})
    with pytest.raises(LaunchError):
        bench.start(new, cut)
    assert not spec.exists()
    bench.start(new)
    assert spec.read_bytes() == text and spec.stat().st_mode & 0o777 == 0o444
    bench.executor.stop(bench.transport, attempt.run_id, bench.seen(attempt).handle)


def test_a_run_that_fails_at_once_says_why_and_is_not_alive(bench):
    attempt = bench.prepare("--data_path", f"{bench.root}/dataset/nowhere.jsonl", "--max_steps", "1", nproc=1)
    handle = bench.start(attempt)
    failed = wait_for(lambda: (run := bench.seen(attempt)).state.state.ended and run)
    assert (failed.state.state, failed.state.reason) == (State.FAILED, "data_missing")
    assert "nowhere.jsonl" in failed.said["what"] + failed.said["why"] and failed.said["remedy"]
    wait_for(lambda: not bench.executor.status(bench.transport, {attempt.run_id: handle})[attempt.run_id])


def test_what_cannot_start_is_said_and_leaves_nothing_behind(bench):
    attempt = bench.prepare()
    nothing = Environment(python="/nowhere/python", pythonpath="/nowhere", image_id="sha256:" + "0" * 64)
    broken = Bench(bench.executor, bench.root, nothing)
    with pytest.raises(LaunchError) as failed:
        broken.start(Attempt(**{**attempt.__dict__, "environment": nothing}))
    assert failed.value.code is Exit.HOST_NOT_READY and failed.value.why
    assert bench.seen(attempt).state.state is State.PREPARED
    if bench.executor.name == "docker":
        assert docker("ps", "--all", "--quiet", "--filter", f"name={attempt.run_id}").stdout == ""


def test_stop_ends_it_with_everything_below_it(bench, alive):
    attempt, handle = alive
    wait_for(lambda: bench.seen(attempt).state.state is State.RUNNING)
    assert _trainers(attempt), "two ranks are at work"
    bench.executor.stop(bench.transport, attempt.run_id, handle)
    wait_for(lambda: not bench.executor.status(bench.transport, {attempt.run_id: handle})[attempt.run_id])
    wait_for(lambda: not _trainers(attempt), timeout_s=20)
    ended = bench.seen(attempt)
    assert ended.state.state is State.STOPPED and ended.state.last_step == _last_step(attempt) > 0
    assert "steps since then are lost" in ended.said["why"]
    bench.executor.stop(bench.transport, attempt.run_id, handle)  # ended already is no error


def _last_step(attempt) -> int:
    return corpus.metrics(pathlib.Path(attempt.run_dir))[-1]["step"]


def _trainers(attempt) -> list[str]:
    """Processes of this machine that work on the run, containers' included."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdecimal():
                with open(f"/proc/{entry}/cmdline") as file:
                    if attempt.run_dir in file.read():
                        found.append(entry)
    return found


def test_a_use_of_the_trainers_runs_in_the_attempts_environment_and_leaves_nothing(bench):
    attempt = bench.prepare()
    words = ["plan", "pretrain", "--json", "--", "--data_path", f"{bench.root}/dataset/pretrain_hq.jsonl", *TRAIN]
    words += ["--tokenizer", f"{bench.root}/out/tokenizer", "--run_dir", attempt.run_dir]
    result = bench.transport.run(bench.executor.use(bench.facts, attempt, words))
    assert json.loads(result.stdout)["data"]["samples"] == 24
    assert os.listdir(attempt.run_dir) == ["spec.json"]
    assert attempt.run_id not in (bench.executor.status(bench.transport, {}) or {})
