"""`launch migrate` on two real hosts: a plan that changes nothing, refusals before anything moves, the next stage."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import threading

import pytest

from launch.errors import Exit, LaunchError
from launch.migrate.finish import Continue
from launch.migrate.prepare import Stop
from launch.migrate.survey import refuse_without_room
from tests.support import corpus, launching, moving
from tests.support import sshd as sshd_parts
from tests.support.moving import RUN, contents, ended, launcher, two  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.sshd, pytest.mark.skipif(bool(sshd_parts.MISSING), reason=sshd_parts.MISSING or "-")]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, forker):
    """A root with a stopped run of two ranks; to be copied."""
    root = tmp_path_factory.mktemp("stopped") / "root"
    moving.stopped_run(root, forker, ranks=2)
    return root


@pytest.fixture
def hosts(tmp_path, two, stopped, launcher):  # noqa: F811
    made = moving.Hosts(tmp_path, *two, launcher)
    moving.copy_root(stopped, made.old_root)
    yield made
    moving.end_all(made.new_root)


def everything(hosts):
    return {**launching.tree(hosts.home), **launching.tree(hosts.old_root), **launching.tree(hosts.new_root)}


def test_a_dry_run_tells_bytes_time_and_money_and_leaves_three_trees_as_they_were(hosts):
    before = everything(hosts)
    dry = hosts.launch("migrate", "old", "new", "--nproc", "3", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    assert everything(hosts) == before and not hosts.new_root.exists()
    plan = json.loads(dry.stdout)
    assert [step["name"] for step in plan["steps"]] == [
        *("check", "environment", "data", "stop", "save", "send", "verify", "smoke", "continue", "report")
    ]
    data_bytes = sum(p.stat().st_size for p in (hosts.old_root / "dataset").glob("*.jsonl"))
    size = {step["name"]: step["bytes"] for step in plan["steps"]}
    assert size["data"] == 2 * data_bytes  # down, as home has none of it, and up
    checkpoints = sum(p.stat().st_size for p in (hosts.old_root / "runs").rglob("*.pt"))
    assert checkpoints < size["send"] < 2 * checkpoints
    assert plan["send_bytes"] == size["send"] + data_bytes and plan["moved"] == [RUN]
    assert f"{RUN} goes on with 3 rank(s)" in {step["what"] for step in plan["steps"]}
    assert plan["down_bytes_per_s"] > 0 and plan["seconds"] >= 0 and set(plan["cost"]) == {"CNY"}
    assert plan["before"]["nproc"] == 2 and plan["after"]["nproc"] == 3
    assert plan["before"]["samples_per_step"] == plan["after"]["samples_per_step"] == 8
    assert plan["before"]["epoch_cost"] > 0 and plan["after"]["epoch_s"] is None


def test_a_target_without_room_is_refused_before_anything_moves(hosts, tmp_path):
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("needs to mount a small disk")
    hosts.new_root.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", hosts.new_root], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        source = contents(hosts.old_root)
        refused = hosts.launch("migrate", "old", "new")
        assert refused.returncode == Exit.HOST_NOT_READY
        assert "disk" in refused.stderr and "remedy:" in refused.stderr
        assert list(hosts.new_root.iterdir()) == [] and contents(hosts.old_root) == source
        assert not (hosts.home / "runs").exists() and hosts.steps_done() == []
        dry = hosts.launch("migrate", "old", "new", "--dry-run")
        assert dry.returncode == Exit.HOST_NOT_READY and "in the way: new" in dry.stderr
    finally:
        subprocess.run(["umount", hosts.new_root], check=True)


def test_room_is_what_travels_and_two_checkpoints_on_either_side(hosts):
    with moving.in_process(hosts) as (move, found):
        largest = max(
            sum(p.stat().st_size for p in folder.iterdir())
            for folder in (hosts.old_root / "runs" / RUN / "ckpt").iterdir()
        )
        assert found.room_bytes == found.send_bytes + 2 * largest + (256 << 20)
        refuse_without_room(move, found)
        for free, refused in ((found.room_bytes, False), (found.room_bytes - 1, True)):
            less = dataclasses.replace(found, facts=dataclasses.replace(found.facts, free_bytes=free))
            if refused:
                with pytest.raises(LaunchError, match="new has") as error:
                    refuse_without_room(move, less)
                assert error.value.code == Exit.HOST_NOT_READY and "nothing was moved" in error.value.remedy
            else:
                refuse_without_room(move, less)
        with pytest.raises(LaunchError) as error:
            refuse_without_room(move, dataclasses.replace(found, home_bytes=1 << 60))
        assert str(hosts.home) in error.value.what


def test_what_the_target_has_of_its_own_is_not_replaced(hosts):
    (hosts.new_root / "out" / "tokenizer").mkdir(parents=True)
    own = hosts.new_root / "out" / "tokenizer" / "tokenizer.json"
    own.write_text("{}")
    before = everything(hosts)
    with pytest.raises(LaunchError, match=r"out/tokenizer/tokenizer\.json") as refused, moving.in_process(hosts):
        pass
    assert refused.value.code == Exit.REFUSED and "only copy" in refused.value.why
    assert everything(hosts) == before


def test_a_source_that_goes_away_in_the_middle_is_said_with_the_step(tmp_path, stopped, launcher):  # noqa: F811
    with moving.servers(tmp_path) as (old, new):
        hosts = moving.Hosts(tmp_path, old, new, launcher)
        moving.copy_root(stopped, hosts.old_root)
        assert hosts.launch("migrate", "old", "new", where="after:data").returncode == -9
        sent = contents(hosts.new_root / "dataset")
        old.stop()
        lost = hosts.launch("migrate", "old", "new")
        assert lost.returncode == Exit.UNREACHABLE, lost.stderr
        assert "goes on with stop" in lost.stderr and "Traceback" not in lost.stderr
        assert hosts.steps_done() == ["check", "environment", "data"]
        assert contents(hosts.new_root / "dataset") == sent and not (hosts.new_root / "runs").exists()


def test_hosts_that_are_one_place_and_flags_without_a_stage_are_wrong_usage(hosts):
    same = hosts.launch("migrate", "old", "old")
    assert same.returncode == Exit.USAGE and "same place" in same.stderr
    flags = hosts.launch("migrate", "old", "new", "--", "--epochs", "2")
    assert flags.returncode == Exit.USAGE and "--run STAGE" in flags.stderr
    unknown = hosts.launch("migrate", "old", "elsewhere")
    assert unknown.returncode == Exit.INVALID


def test_a_start_that_shows_late_is_found_and_neither_repeated_nor_forgotten(hosts):
    with moving.in_process(hosts) as (move, _), move.journal.locked():
        moving.copy_root(hosts.old_root, hosts.new_root)
        (hosts.run_dir / "attempts" / "2").mkdir()  # of a launcher that was killed as it sent the start
        move.journal.begin(move.asked.to_dict(), now_utc="20260101T000000Z", again=False)
        move.journal.intend(run_id=RUN, attempt=1)
        step = Continue(move)
        assert not step.done(), "else nobody would write down which run goes on"
        before = contents(hosts.new_root)
        found = step.run()
        assert (found["run_id"], found["attempt"]) == (RUN, 2)
        assert contents(hosts.new_root) == before


def test_a_stage_is_started_once_and_its_run_is_known_before_it_starts(hosts):
    moving.copy_root(hosts.old_root, hosts.new_root)
    words = (*corpus.TINY, "--from_weight", "none", "--epochs", "1000000")
    with moving.in_process(hosts, stage="full_sft", flags=words) as (move, found), move.journal.locked():
        assert found.goes_on is None and found.moved == (RUN,)
        move.journal.begin(move.asked.to_dict(), now_utc="20260101T000000Z", again=False)
        first = Continue(move).run()
        assert move.journal.intent == {"run_id": first["run_id"], "attempt": 0} and first["attempt"] == 1
        run_dir = hosts.new_root / "runs" / first["run_id"]
        spec = json.loads((run_dir / "spec.json").read_bytes())
        assert (spec["run_id"], spec["stage"], spec["nproc"]) == (first["run_id"], "full_sft", 1)
        assert Continue(move).run() == first
        moving.end_all(hosts.new_root)
    assert sorted(p.name for p in (hosts.new_root / "runs").iterdir()) == sorted([RUN, first["run_id"]])
    assert [p.name for p in (run_dir / "attempts").iterdir()] == ["1"]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_next_stage_starts_on_the_target_from_the_weights_that_were_moved(hosts, forker):
    flags = json.loads((hosts.old_root / "runs" / RUN / "spec.json").read_bytes())["flags"]
    forker.train(hosts.old_root, "pretrain", *flags, run=RUN, nproc=2)  # to its end
    weights = (hosts.old_root / "out" / "pretrain_64.pth").read_bytes()
    command = ("migrate", "old", "new", "--run", "full_sft", "--nproc", "2", "--json", "--", *corpus.TINY)
    assert hosts.launch(*command, where="before:continue").returncode == -9
    moved = hosts.launch(*command)
    assert moved.returncode == 0, moved.stderr
    report = json.loads(moved.stdout)
    assert report["moved"] == [] and report["stay"] == [RUN]
    (run_dir,) = (hosts.new_root / "runs").iterdir()
    assert report["run_id"] == run_dir.name and "full_sft" in run_dir.name
    ended(run_dir, 1)
    assert json.loads((run_dir / "attempts" / "1" / "exit.json").read_bytes())["reason"] is None
    assert (hosts.new_root / "out" / "pretrain_64.pth").read_bytes() == weights
    assert (hosts.new_root / "out" / "full_sft_64.pth").is_file()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_commands_mean_the_host_on_which_a_moved_run_went_on(hosts):
    command = ("migrate", "old", "new", "--nproc", "1")
    assert hosts.launch(*command).returncode == 0
    ready = hosts.launch("release-check", "old")
    assert ready.returncode == 0, ready.stderr
    ended(hosts.run_dir, 2)
    once_more = hosts.launch(*command, "--again")
    assert once_more.returncode == Exit.REFUSED and "has gone on on new" in once_more.stderr
    other = hosts.launch("migrate", "old", "new", "--nproc", "2")
    assert other.returncode == Exit.REFUSED and "--again" in other.stderr
    row = json.loads(hosts.launch("stop", RUN, "--json").stdout)
    assert (row["host"], row["attempt"]) == ("new", 2)
    back = hosts.launch("resume", RUN, "--host", "old", "--detach", "--json")
    assert back.returncode == 0 and json.loads(back.stdout)["host"] == "old", back.stderr
    assert hosts.launch("stop", RUN, "--host", "old", "--now").returncode == 0
    home = hosts.launch("sync-out", "--host", "new")
    assert home.returncode == 0, home.stderr


def test_waiting_lets_a_run_end_by_itself(hosts):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:  # lives until its stdin is closed
        stat = pathlib.Path(f"/proc/{process.pid}/stat").read_text()
        handle = {"pid": process.pid, "start_time": stat.rpartition(") ")[2].split()[19], "attempt": 2}
        run_dir = hosts.old_root / "runs" / RUN
        (run_dir / "handle.json").write_text(json.dumps(handle))
        (run_dir / "stop").unlink()  # of the attempt before
        with moving.in_process(hosts, wait=True) as (move, found):
            assert [run.run_id for run in found.alive] == [RUN] and found.goes_on is None and found.moved == ()

            def end():
                launching.wait_for(lambda: move.voice.said)
                process.stdin.close()
                process.wait()

            ender = threading.Thread(target=end)
            ender.start()
            assert Stop(move).run() == {"stopped": []}
            ender.join()
            assert f"{RUN} is at step" in move.voice.said[0]
    assert not (run_dir / "stop").exists()
