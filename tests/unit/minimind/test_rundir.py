"""derive() over every prefix of what gets written, and over everything that can end a run."""

import itertools
import json
import time

import pytest

from minimind.durable import publish, sha256_file, verified_files, write_sums
from minimind.rundir import RUN_ID, Reason, RunDir, RunFiles, RunSpec, State, derive, new_run_id

NOW = 1_800_000_000.0
WEIGHTS = {"path": "full_sft_64.pth", "sha256": "0" * 64, "bytes": 5}


def beat(**more):
    return {"time": NOW, "attempt": 1, "last_step": 3, "training": True, "boot_id": "b", **more}


STORY = [
    # what is written, in order, by a run that succeeds
    ("spec.json", {"run_id": "r"}),
    ("handle.json", {"kind": "process", "attempt": 1, "boot_id": "b"}),
    ("attempts/1/log.txt", "…"),
    ("beat.json", beat(training=False, last_step=0)),
    ("env.json", {"torch": "2"}),
    ("metrics.jsonl", "{}\n"),
    ("beat.json", beat()),
    ("ckpt/step-00000003/SHA256SUMS", "x"),
    ("export/full_sft_64.pth", "fiveb"),
    ("export/SHA256SUMS", "x"),
    ("attempts/1/outcome.json", {"status": "done", "last_step": 3}),
    ("attempts/1/exit.json", {"code": 0, "reason": None, "weights": [WEIGHTS]}),
]


def read(story):
    files, sizes = {}, {}
    for name, content in story:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        sizes[name] = len(data)
        if name.endswith(".json"):
            files[name] = data
    return RunFiles.parse(files, sizes=sizes)


@pytest.mark.parametrize("alive", [True, False, None])
@pytest.mark.parametrize("cut", range(len(STORY)))
def test_a_run_cut_after_any_write_is_never_called_succeeded(cut, alive):
    found = derive(read(STORY[:cut]), alive, NOW, boot_id="b")
    assert found.state is not State.SUCCEEDED
    if alive is False and cut:
        assert found.state is (State.PREPARED if cut == 1 else State.LOST)


def test_the_whole_story_has_succeeded_whatever_is_alive():
    assert all(derive(read(STORY), alive, NOW).state is State.SUCCEEDED for alive in (True, False, None))


@pytest.mark.parametrize(
    "missing", [name for name, _ in STORY if name.startswith(("export/full", "attempts/1/o", "attempts/1/e"))]
)
def test_without_any_one_proof_it_has_not_succeeded(missing):
    left = [(name, content) for name, content in STORY if name != missing]
    assert derive(read(left), False, NOW).state is not State.SUCCEEDED


@pytest.mark.parametrize("name", [n for n, c in STORY if n.endswith(".json") and isinstance(c, dict)])
def test_half_a_json_file_counts_as_absent(name):
    files = {n: json.dumps(c).encode() for n, c in STORY if isinstance(c, dict)}
    sizes = {n: 5 for n, _ in STORY}
    files[name] = files[name][: len(files[name]) // 2]
    state = derive(RunFiles.parse(files, sizes=sizes), False, NOW).state
    assert state is State.SUCCEEDED if "attempts" not in name else state is not State.SUCCEEDED


def test_done_with_weights_of_another_length_is_no_weights():
    story = [*STORY[:-4], ("export/full_sft_64.pth", "cut"), *STORY[-3:]]
    found = derive(read(story), False, NOW)
    assert (found.state, found.reason) == (State.FAILED, Reason.NO_WEIGHTS)


@pytest.mark.parametrize("weights", [[], None])
def test_done_without_verified_weights_is_no_weights(weights):
    story = [*STORY[:-1], ("attempts/1/exit.json", {"code": 0, "reason": None, "weights": weights})]
    found = derive(read(story), False, NOW)
    assert (found.state, found.reason) == (State.FAILED, Reason.NO_WEIGHTS)


@pytest.mark.parametrize("reason", list(Reason))
def test_the_supervisors_reason_is_the_reason(reason):
    story = [*STORY[:-1], ("attempts/1/exit.json", {"code": 1, "reason": reason})]
    assert derive(read(story), False, NOW).reason is reason


def test_a_clean_stop_is_stopped_and_an_unclean_one_is_failed():
    outcome = ("attempts/1/outcome.json", {"status": "stopped", "last_step": 2})
    for code, state in ((0, State.STOPPED), (1, State.FAILED)):
        story = [*STORY[:-2], outcome, ("attempts/1/exit.json", {"code": code, "reason": None})]
        assert derive(read(story), False, NOW).state is state


def test_a_beat_that_is_too_old_is_stalled_on_the_hosts_clock():
    assert derive(read(STORY[:7]), True, NOW + 59).state is State.RUNNING
    assert derive(read(STORY[:7]), True, NOW + 61).state is State.STALLED


def test_alive_before_training_is_starting():
    assert derive(read(STORY[:2]), True, NOW).state is State.STARTING
    assert derive(read(STORY[:5]), True, NOW).state is State.STARTING


def test_gone_without_exit_is_lost_and_after_another_boot_says_so():
    assert derive(read(STORY[:8]), False, NOW, boot_id="b").reason is None
    found = derive(read(STORY[:8]), False, NOW, boot_id="another")
    assert (found.state, found.reason) == (State.LOST, Reason.HOST_REBOOTED)


def test_a_resumed_run_is_starting_at_once_and_not_what_its_last_attempt_was():
    story = [*STORY, ("handle.json", {"kind": "process", "attempt": 2})]
    assert derive(read(story), True, NOW).state is State.STARTING
    assert derive(read(story), False, NOW).state is State.LOST


def test_publish_shows_readers_the_old_bytes_or_the_new_ones_and_leaves_nothing_behind(tmp_path):
    target = tmp_path / "a.json"
    publish(target, b"old")
    with pytest.raises(TypeError):
        publish(target, "text is not bytes")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]
    publish(target, b"new")
    assert target.read_bytes() == b"new" and target.stat().st_mode & 0o777 == 0o600


def test_sums_are_what_sha256sum_writes_and_any_flipped_byte_is_seen(tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "a b.pth").write_bytes(b"weights")
    write_sums(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text() == f"{sha256_file(tmp_path / 'lora' / 'a b.pth')}  lora/a b.pth\n"
    assert verified_files(tmp_path)[0]["bytes"] == 7
    (tmp_path / "lora" / "a b.pth").write_bytes(b"weighty")
    assert verified_files(tmp_path) is None


def test_run_ids_have_the_documented_form_and_do_not_repeat():
    made = {new_run_id("full_sft", now_utc="20260101-000000") for _ in range(50)}
    assert len(made) > 45 and all(RUN_ID.fullmatch(run_id) for run_id in made)


def test_a_spec_survives_the_round_trip_and_a_newer_versions_keys():
    spec = RunSpec(run_id="r", stage="dpo", flags=["--beta", "0.2"], nproc=8, executor="docker")
    raw = json.loads(spec.to_json()) | {"of_a_newer_version": 1}
    assert RunSpec.from_json(json.dumps(raw).encode()) == spec


def test_checkpoints_still_being_built_are_not_listed(tmp_path):
    run = RunDir(tmp_path)
    for name in ("step-00000004", "step-00000002", ".step-00000006.1.tmp", "step-6"):
        (run.checkpoints / name).mkdir(parents=True)
    assert run.checkpoint_steps() == [2, 4]


def test_every_order_of_two_writes_reads_without_error():
    for pair in itertools.permutations(STORY, 2):
        derive(read(pair), False, time.time())


@pytest.mark.parametrize("odd", ["abc", [1], {"a": 1}, None, 1e300, True])
def test_odd_values_in_one_runs_files_are_no_fault_of_ours(odd):
    story = [
        ("handle.json", {"attempt": odd}),
        ("beat.json", {"time": odd, "attempt": 1, "last_step": odd}),
        ("attempts/1/outcome.json", {"status": "done", "last_step": odd}),
        ("attempts/1/exit.json", {"code": 0, "weights": [odd], "reason": None}),
    ]
    for cut in range(len(story) + 1):
        for alive in (True, False, None):
            assert derive(read(story[:cut]), alive, NOW).state is not State.SUCCEEDED
