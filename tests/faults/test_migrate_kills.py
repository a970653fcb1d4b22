"""A move whose launcher is killed, again and again, ends as one that nobody disturbed."""

import json
import random
import shutil

import pytest

from tests.support import corpus, moving
from tests.support import sshd as sshd_parts
from tests.support.moving import RUN, contents, ended

pytestmark = [pytest.mark.sshd, pytest.mark.skipif(bool(sshd_parts.MISSING), reason=sshd_parts.MISSING or "-")]

STEPS = "check environment data stop save send verify smoke continue report".split()  # noqa: SIM905
SEED = ("call:6", "before:data", "after:save", "call:9", "before:send", "before:continue")
"""In the doctor's questions; between work and word; with the source dying, too; while files go up; after the start."""


@pytest.fixture
def hosts(tmp_path):
    with moving.servers(tmp_path) as (old, new):
        made = moving.Hosts(tmp_path, old, new)
        made.old_server = old
        try:
            yield made
        finally:
            moving.end_all(made.new_root)


def campaign(hosts, forker, tmp_path, *, before, after, kills):
    """Move with ``after`` ranks what ran with ``before``, killed at each place in turn; then look at everything."""
    moving.stopped_run(hosts.old_root, forker, ranks=before)
    whole = moving.uninterrupted(tmp_path / "whole", forker)
    untouched = contents(hosts.old_root)
    (hosts.old_root / "dataset" / "sft_mini_512.jsonl").unlink()
    del untouched["dataset/sft_mini_512.jsonl"]
    command = ("migrate", "old", "new", "--nproc", str(after), "--json")
    done: set[str] = set()
    died = 0
    for where in kills:
        killed = hosts.killed_at(where, *command)
        assert killed.returncode in (-9, 0), (where, killed.stderr)
        died += killed.returncode == -9
        assert "Traceback" not in killed.stderr
        now = set(hosts.steps_done())
        assert done <= now | {"report"}, f"{where} undid {done - now}"
        done = now
        if where == "after:save":
            hosts.old_server.stop()
    assert died >= len(kills) - 1
    last = hosts.launch(*command)
    assert last.returncode == 0, last.stderr
    report = json.loads(last.stdout)
    assert (report["run_id"], report["attempt"], report["moved"]) == (RUN, 2, [RUN])
    ended(hosts.run_dir, 2)
    assert contents(hosts.old_root) == untouched, "the source stays as it was"
    same_end(hosts, whole, untouched, after=after)
    again = hosts.launch(*command)
    assert again.returncode == 0 and json.loads(again.stdout) == report
    assert sorted(p.name for p in (hosts.run_dir / "attempts").iterdir()) == ["1", "2"]
    return report


def same_end(hosts, whole, source, *, after):
    """Everything is on the target once, and the losses are those of a run that was never moved."""
    losses = corpus.metrics(hosts.run_dir)
    assert [row["step"] for row in losses] == [row["step"] for row in whole]
    assert [row["loss"] for row in losses] == pytest.approx([row["loss"] for row in whole], rel=1e-6)
    assert [row["lr"] for row in losses] == pytest.approx([row["lr"] for row in whole], rel=1e-12)
    assert json.loads((hosts.run_dir / "env.json").read_bytes())["nproc"] == after
    found = contents(hosts.new_root)
    for name, digest in source.items():
        if name.startswith("dataset/") and name.endswith(".jsonl"):
            assert found[name] == digest
        if name.startswith("out/tokenizer/") or "/attempts/1/" in name:
            assert found[name] == digest
    assert "dataset/notes.txt" not in found
    spec = json.loads((hosts.run_dir / "spec.json").read_bytes())
    assert str(hosts.old_root) not in json.dumps(spec) and str(hosts.new_root) in json.dumps(spec)
    assert (hosts.run_dir / "spec.json").stat().st_mode & 0o777 == 0o444
    (move,) = json.loads((hosts.run_dir / "moved.json").read_bytes())["moves"]
    assert move["from"] == "old" and str(hosts.old_root) in json.dumps(move["spec"])
    assert (hosts.run_dir / "export" / "pretrain_64.pth").samefile(hosts.new_root / "out" / "pretrain_64.pth")
    leftovers = [p for p in hosts.new_root.rglob("*") if ".migrate" in p.parts or p.name.startswith(".tmp-")]
    assert leftovers == []
    spool = hosts.home / ".migrate" / "old.to.new" / "spool"
    assert [p for p in spool.rglob("*") if p.is_file() and p.name != "lock"] == []


def test_a_move_killed_at_seven_places_goes_on_without_the_source_and_repeats_nothing(hosts, forker, tmp_path):
    report = campaign(hosts, forker, tmp_path, before=2, after=1, kills=SEED)
    assert report["before"]["nproc"] == 2 and report["after"]["nproc"] == 1
    assert report["before"]["samples_per_step"] == report["after"]["samples_per_step"]
    assert report["after"]["epoch_cost"] > 0 and report["smoke"]["losses"][2] > 0


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_move_killed_after_each_step_and_inside_each(hosts, forker, tmp_path):
    kills = [place for step in STEPS for place in (f"before:{step}", f"after:{step}")]
    campaign(hosts, forker, tmp_path, before=1, after=2, kills=kills)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_move_killed_at_random_commands(tmp_path, forker):
    rng = random.Random(6)
    for number in range(4):
        folder = tmp_path / str(number)
        with moving.servers(folder) as (old, new):
            hosts = moving.Hosts(folder, old, new)
            hosts.old_server = old
            try:
                kills = [f"call:{rng.randrange(3, 60)}" for _ in range(12)]
                campaign(hosts, forker, folder, before=1, after=2, kills=kills)
            finally:
                moving.end_all(hosts.new_root)
        shutil.rmtree(folder)
