"""What a moved run's spec says on the other host, which files move, and which run goes on."""

import dataclasses
import json
from pathlib import Path

import pytest

from launch.errors import Exit, LaunchError
from launch.executors import Environment
from launch.migrate import cargo, move
from launch.runs.observe import Run
from launch.sync.listing import RemoteFile
from minimind.rundir import RunSpec, RunState, State

OLD, NEW = "/root/autodl-tmp/minimind", "/data/mm"


def item(path: str, sha256: str = "ab" * 32) -> dict:
    return {"path": path, "sha256": sha256, "bytes": 3}


def spec(*flags: str, inputs: tuple[dict, ...] = ()) -> RunSpec:
    return RunSpec(
        run_id="20260101-120000-dpo-abcd",
        stage="dpo",
        flags=list(flags),
        nproc=1,
        executor="docker",
        image_digest="sha256:1",
        inputs=list(inputs),
    )


def rebased(*flags: str, inputs: tuple[dict, ...] = ()) -> cargo.Rebased:
    return cargo.rebase(spec(*flags, inputs=inputs), OLD, NEW)


def test_paths_below_the_root_are_below_the_other_root_and_nothing_else_changes():
    found = rebased(
        *("--save_dir", f"{OLD}/out", "--data-path", f"{OLD}/dataset/dpo.jsonl", f"--tokenizer={OLD}/out/tokenizer"),
        *("--from_weight", "full_sft", "--beta", "0.1"),
        inputs=(item(f"{OLD}/dataset/dpo.jsonl"), item(f"{OLD}/out/full_sft_512.pth")),
    )
    assert found.spec.flags == [
        *("--save_dir", f"{NEW}/out", "--data_path", f"{NEW}/dataset/dpo.jsonl", "--tokenizer", f"{NEW}/out/tokenizer"),
        *("--from_weight", "full_sft", "--beta", "0.1"),
    ]
    assert [one["path"] for one in found.spec.inputs] == [f"{NEW}/dataset/dpo.jsonl", f"{NEW}/out/full_sft_512.pth"]
    assert found.reads == (cargo.Read(source=f"{OLD}/dataset/dpo.jsonl", target=f"{NEW}/dataset/dpo.jsonl"),)


def test_a_root_that_only_begins_alike_is_another_one():
    found = rebased("--data_path", f"{OLD}-2/x.jsonl", inputs=(item(f"{OLD}-2/x.jsonl"),))
    assert found.spec.flags == ["--data_path", f"{NEW}/inputs/{'ab' * 6}/x.jsonl"]
    assert found.reads == (cargo.Read(source=f"{OLD}-2/x.jsonl", target=f"{NEW}/inputs/{'ab' * 6}/x.jsonl"),)


def test_a_folder_outside_the_root_moves_as_one_with_its_files():
    files = tuple(item(f"/opt/tok/{name}", digest * 64) for name, digest in (("tokenizer.json", "1"), ("c.json", "2")))
    found = rebased("--tokenizer", "/opt/tok", inputs=files)
    (folder,) = found.spec.flags[1:]
    assert folder.startswith(f"{NEW}/inputs/") and folder.endswith("/tok")
    assert [read.target for read in found.reads] == [f"{folder}/tokenizer.json", f"{folder}/c.json"]
    assert [one["path"] for one in found.spec.inputs] == [f"{folder}/tokenizer.json", f"{folder}/c.json"]


def test_an_out_elsewhere_becomes_the_out_of_the_root_and_its_weights_are_still_read():
    found = rebased("--save_dir", "/big/out", inputs=(item("/big/out/full_sft_512.pth"),))
    assert found.spec.flags == ["--save_dir", f"{NEW}/out"]
    assert found.reads == (cargo.Read(source="/big/out/full_sft_512.pth", target=f"{NEW}/out/full_sft_512.pth"),)


def test_executor_environment_and_code_are_those_of_the_target_and_the_rest_stays():
    before = spec("--beta", "0.2")
    environment = Environment(python="/p", lock_hash="l", code_hash="c")
    after = cargo.at_home_on(before, executor="venv", environment=environment, commit="k", dirty_hash=None)
    changed = {f.name for f in dataclasses.fields(RunSpec) if getattr(before, f.name) != getattr(after, f.name)}
    assert changed == {"executor", "image_digest", "lock_hash", "code_hash", "commit"}
    assert (after.executor, after.image_digest, after.lock_hash, after.code_hash) == ("venv", None, "l", "c")


def test_what_speaks_of_a_process_and_runs_that_are_done_stay_at_home():
    run = "runs/20260101-120000-dpo-abcd"
    names = [
        *("out/x_512.pth", f"{run}/metrics.jsonl", f"{run}/export/x_512.pth", f"{run}/ckpt/step-00000001/state.json"),
        *(f"{run}/handle.json", f"{run}/beat.json", f"{run}/stop", f"{run}/lock/held", f"{run}/spec.json"),
        *(f"{run}/moved.json", "runs/20260101-120000-dpo-abcde/metrics.jsonl"),
    ]
    files = [{"path": name, "sha256": "0" * 64, "bytes": 1} for name in names]
    found = cargo.of_home(files, Path("/home"), NEW, ["20260101-120000-dpo-abcd"])
    assert [one.target.removeprefix(f"{NEW}/") for one in found] == names[:4]
    assert [one.shared for one in found] == [True, False, True, False]
    assert found[0].local == Path("/home/out/x_512.pth")


def test_each_move_adds_to_the_history_and_a_torn_one_is_no_reason_to_fail():
    told = {"source": "a", "source_root": OLD, "at_utc": "20260101T000000Z", "spec": b'{"run_id": "x"}'}
    first = cargo.history(b"", **told)
    second = cargo.history(first, **{**told, "source": "b"})
    assert [one["from"] for one in json.loads(second)["moves"]] == ["a", "b"]
    assert len(json.loads(cargo.history(b'{"mo', **told))["moves"]) == 1


def run(run_id: str, state: State) -> Run:
    return Run(run_id=run_id, host="old", run_dir=f"{OLD}/runs/{run_id}", state=RunState(state=state))


def checkpoint(run_id: str) -> RemoteFile:
    return RemoteFile(path=f"runs/{run_id}/ckpt/step-00000001/state.json", length_bytes=1, identity=run_id)


A, B, C = (f"2026010{day}-120000-dpo-abcd" for day in (1, 2, 3))


def test_unfinished_is_what_is_alive_or_has_a_checkpoint_and_did_not_succeed():
    states = {A: State.SUCCEEDED, B: State.FAILED, C: State.RUNNING}
    runs = [run(run_id, state) for run_id, state in states.items()]
    assert [one.run_id for one in move.unfinished(runs, [checkpoint(A), checkpoint(B)])] == [B, C]
    assert [one.run_id for one in move.unfinished(runs, [])] == [C]
    assert move.unfinished([run(A, State.PREPARED)], [checkpoint(A)]) == []


@pytest.mark.parametrize(
    ("moved", "stopped", "expected"),
    [
        ([A, B], [A], A),
        ([A, B], [], None),  # C is newer, and done: an old failure is not taken up again by itself
        ([A, C], [], C),
        ([], [], None),
        ([A], [B], None),  # B ended by itself while it was asked to stop
    ],
)
def test_the_run_that_was_stopped_goes_on_else_the_newest_of_all(moved, stopped, expected):
    runs = [run(run_id, State.STOPPED) for run_id in (A, B, C)]
    assert move.goes_on(runs, moved, stopped) == expected


def test_a_file_that_is_read_twice_moves_once():
    twice = (item("/w/full_sft_512.pth"), item("/w/full_sft_512.pth"))
    found = rebased("--from_weight", "/w/full_sft_512.pth", "--teacher_weight", "/w/full_sft_512.pth", inputs=twice)
    assert len(found.reads) == 1 and len(found.spec.inputs) == 2


def test_a_path_with_dots_leads_out_of_neither_root():
    found = rebased("--data_path", f"{OLD}/../../etc/x.jsonl", inputs=(item(f"{OLD}/../../etc/x.jsonl"),))
    (read,) = found.reads
    assert read == cargo.Read(source="/root/etc/x.jsonl", target=f"{NEW}/inputs/{'ab' * 6}/x.jsonl")
    assert found.spec.flags == ["--data_path", read.target]


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "mine_bitcoin"},
        {"nproc": "many"},
        {"inputs": [{"path": "/x"}]},
        {"inputs": [{"path": "/x\n/y", "sha256": "0", "bytes": 1}]},
        {"inputs": "all"},
        {"flags": ["--data_path", 3]},
        {"flags": "--data_path"},
        {"flags": ["--data_path", "/x\x1b[2J"]},
    ],
)
def test_a_spec_that_launch_cannot_have_written_is_refused_by_the_name_of_its_run(change):
    with pytest.raises(LaunchError, match="20260101-120000-dpo-abcd cannot be moved") as refused:
        cargo.rebase(dataclasses.replace(spec(), **change), OLD, NEW)
    assert refused.value.code == Exit.INVALID
