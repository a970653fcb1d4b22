"""A move whose launcher is killed, again and again, ends as one that nobody disturbed."""

import contextlib
import json
import random
import shutil

import pytest

from tests.support import corpus, moving
from tests.support import sshd as sshd_parts
from tests.support.moving import RUN, contents, ended, launcher  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.sshd, pytest.mark.skipif(bool(sshd_parts.MISSING), reason=sshd_parts.MISSING or "-")]

STEPS = "check environment data stop save send verify smoke continue report".split()  # noqa: SIM905
SEED = ("in:data:18", "before:data", "in:save:4", "after:save", "in:send:5", "before:continue")
"""After ``save`` the source dies, too; ``before:continue`` is after the start of what goes on."""


@contextlib.contextmanager
def two_hosts(folder, launcher):  # noqa: F811
    with moving.servers(folder) as (old, new):
        hosts = moving.Hosts(folder, old, new, launcher)
        try:
            yield hosts
        finally:
            moving.end_all(hosts.new_root)


def command(after):
    return ("migrate", "old", "new", "--nproc", str(after), "--json")


def prepare(hosts, forker, folder, *, before):
    """The stopped run, a data set that home lacks, and the losses of the run that nobody stopped."""
    moving.stopped_run(hosts.old_root, forker, ranks=before)
    corpus.write_jsonl(hosts.old_root / "dataset" / "only_there.jsonl", corpus.texts(30, seed=9))
    (hosts.old_root / "dataset" / "goes_straight_there.jsonl").write_bytes(random.Random(3).randbytes(9 << 20))
    return moving.uninterrupted(folder / "whole", forker, ranks=before)


def campaign(hosts, whole, *, after, kills):
    """Move, killed at each place in turn; then look at everything. Returns the report."""
    untouched = contents(hosts.old_root)
    done: set[str] = set()
    for where in kills:
        killed = hosts.launch(*command(after), where=where)
        assert killed.returncode == -9, (where, killed.returncode, killed.stderr)
        assert "Traceback" not in killed.stderr
        now = set(hosts.steps_done())
        assert done <= now, f"{where} undid {done - now}"
        done = now
        if where == "after:save":
            hosts.old.stop()
        if where.startswith("in:send"):
            shutil.rmtree(hosts.new_root / "code")  # the environment has to be made again, and asks the source nothing
    last = hosts.launch(*command(after))
    assert last.returncode == 0, last.stderr
    report = json.loads(last.stdout)
    assert (report["run_id"], report["attempt"], report["moved"]) == (RUN, 2, [RUN])
    ended(hosts.run_dir, 2)
    assert contents(hosts.old_root) == untouched, "the source stays as it was"
    same_end(hosts, whole, untouched, after=after)
    again = hosts.launch(*command(after))
    assert again.returncode == 0 and json.loads(again.stdout) == report
    alive = hosts.old.process.poll() is None
    assert ("by their names and lengths" if alive else "cannot be told") in again.stderr, again.stderr
    shown = hosts.launch(*command(after)[:-1])
    assert shown.returncode == 0 and f"ended at {report['ended_at']}" in shown.stderr
    assert not any(claim in shown.stderr for claim in ("are, verified", "launch release", "done before"))
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
        data = name.startswith("dataset/") and name.endswith(".jsonl")
        if data or name.startswith("out/tokenizer/") or "/attempts/1/" in name:
            assert found[name] == digest
    assert "dataset/notes.txt" not in found
    spec = json.loads((hosts.run_dir / "spec.json").read_bytes())
    assert str(hosts.old_root) not in json.dumps(spec) and str(hosts.new_root) in json.dumps(spec)
    assert (hosts.run_dir / "spec.json").stat().st_mode & 0o777 == 0o444
    (move,) = json.loads((hosts.run_dir / "moved.json").read_bytes())["moves"]
    assert move["from"] == "old" and str(hosts.old_root) in json.dumps(move["spec"])
    assert (hosts.run_dir / "export" / "pretrain_64.pth").samefile(hosts.new_root / "out" / "pretrain_64.pth")
    assert [p for p in hosts.new_root.rglob("*") if ".migrate" in p.parts or p.name.startswith(".tmp-")] == []
    spool = hosts.home / ".migrate" / "old.to.new" / "spool"
    assert [p for p in spool.rglob("*") if p.is_file() and p.name != "lock"] == []


def lasting(root):
    """Every name that a move and its run leave, and the bytes of the weights that came of it."""
    found = {
        name: digest if name == "out/pretrain_64.pth" else ""
        for name, digest in contents(root).items()
        if "/attempts/" not in name and "/content-" not in name  # named by the data's path, another one there
    }
    assert found["out/pretrain_64.pth"]
    return found


@pytest.mark.timeout(900)  # it starts torch six times: on a busy machine that is slow, and no fault
def test_a_move_killed_at_five_places_goes_on_without_the_source_and_repeats_nothing(forker, launcher, tmp_path):  # noqa: F811
    with two_hosts(tmp_path, launcher) as hosts:
        whole = prepare(hosts, forker, tmp_path, before=2)
        report = campaign(hosts, whole, after=1, kills=SEED)
    assert report["before"]["nproc"] == 2 and report["after"]["nproc"] == 1
    assert report["before"]["samples_per_step"] == report["after"]["samples_per_step"]
    assert report["after"]["epoch_cost"] > 0 and report["smoke"]["losses"][2] > 0


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_move_killed_after_each_step_and_inside_each(forker, launcher, tmp_path):  # noqa: F811
    rng = random.Random(6)
    told = tmp_path / "calls.json"
    with two_hosts(tmp_path / "undisturbed", launcher) as hosts:
        whole = prepare(hosts, forker, tmp_path / "undisturbed", before=1)
        assert hosts.launch(*command(2), where=f"count:{told}").returncode == 0
        ended(hosts.run_dir, 2)
        same_end(hosts, whole, contents(hosts.old_root), after=2)
        undisturbed = lasting(hosts.new_root)
    calls = json.loads(told.read_bytes())
    kills = []
    for step in STEPS:
        inside = {1, calls[step], rng.randint(1, calls[step])} if calls.get(step) else set()
        kills += [*(f"in:{step}:{number}" for number in sorted(inside)), f"before:{step}", f"after:{step}"]
    kills = [where for where in kills if where not in ("after:report",)]
    with two_hosts(tmp_path / "killed", launcher) as hosts:
        whole = prepare(hosts, forker, tmp_path / "killed", before=1)
        campaign(hosts, whole, after=2, kills=kills)
        assert lasting(hosts.new_root) == undisturbed
