"""What `launch migrate` does not do: one place twice, a run that cannot go on there, a move that has ended."""

import json

import pytest

from launch.errors import Exit, LaunchError
from launch.migrate import cargo, carry_out, place
from launch.sync.listing import list_files
from launch.sync.trip import records
from minimind.rundir import RunSpec
from tests.support import launching, moving
from tests.support import sshd as sshd_parts
from tests.support.moving import RUN, contents, launcher, two  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.sshd, pytest.mark.skipif(bool(sshd_parts.MISSING), reason=sshd_parts.MISSING or "-")]


@pytest.fixture
def hosts(tmp_path, two, launcher):  # noqa: F811
    """Two hosts; the old one has what a stopped run leaves, as far as a look at it goes."""
    made = moving.Hosts(tmp_path, *two, launcher)
    run_dir = made.old_root / "runs" / RUN
    spec = RunSpec(run_id=RUN, stage="pretrain", flags=[], nproc=1, executor="venv")
    for name, data in (
        ("spec.json", spec.to_json()),
        ("metrics.jsonl", b'{"step": 8, "loss": 1.0}\n'),
        ("attempts/1/exit.json", b'{"stopped": true}'),
        ("ckpt/step-00000008/rank-0.pt", b"state"),
    ):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_bytes(data)
    (made.old_root / "out").mkdir()
    return made


def everything(hosts):
    return {**launching.tree(hosts.home), **launching.tree(hosts.old_root), **launching.tree(hosts.new_root)}


def broken(told: dict, **changes) -> bytes:
    return json.dumps({**told, **changes}).encode()


@pytest.mark.parametrize(
    "text",
    [
        lambda told: broken(told)[:-9],
        lambda told: broken(told, run_id="20260101-120000-pretrain-ffff"),
        lambda told: broken(told, more="\ud800"),
        lambda told: broken(told, secret_names=[7]),
        lambda told: broken(told, stage=[]),
    ],
    ids=["cut off", "of another run", "not to be written", "numbers for names", "a list for a stage"],
)
def test_an_unfinished_run_with_a_broken_spec_stops_the_move_before_anything_is_sent(hosts, text):
    path = hosts.old_root / "runs" / RUN / "spec.json"
    data = text(json.loads(path.read_bytes()))
    path.write_bytes(data)
    before = everything(hosts)
    with pytest.raises(LaunchError, match=f"{RUN} cannot be moved") as refused, moving.in_process(hosts):
        pass
    assert refused.value.code == Exit.INVALID and f"move the folder of {RUN} out of runs/" in refused.value.remedy
    assert everything(hosts) == before
    with pytest.raises(LaunchError) as late:
        cargo.spec_of(data, RUN)  # what the send says
    assert str(late.value).partition("none:")[0] == str(refused.value).partition("none:")[0]


def ended_move(move, files):
    """The journal of a move that brought these home."""
    move.journal.begin(move.asked.to_dict(), now_utc="20260101T000000Z", again=False)
    move.journal.record("check", {"source_root": move.source_root})
    move.journal.record("save", {"files": records(files)})
    move.journal.record("report", {"files": 3, "ended_at": "20260101T000100Z"})


def test_a_move_that_ended_shows_its_report_again_and_refuses_when_the_source_has_made_more_since(hosts):
    with moving.in_process(hosts) as (move, _), move.journal.locked():
        ended_move(move, list_files(move.source, move.source_root, ["out", "runs"]).files)
        before = everything(hosts)
        assert carry_out(move) == move.journal.facts("report")
        assert "ended at 20260101T000100Z" in move.voice.said[0] and "--again" in move.voice.said[0]
        assert (
            "nothing was looked at on new" in move.voice.said[0] and "by their names and lengths" in move.voice.said[1]
        )
        assert not any("done before" in text for text in move.voice.said) and everything(hosts) == before
        other = hosts.old_root / "runs" / "20260102-120000-pretrain-abcd"
        for path, name in (
            (hosts.old_root / "out" / "dpo_64.pth", "out/dpo_64.pth"),
            (other / "spec.json", other.name),
            (hosts.old_root / "runs" / RUN / "metrics.jsonl", RUN),
        ):
            had = path.read_bytes() if path.exists() else None
            path.parent.mkdir(exist_ok=True)
            path.write_bytes((had or b"") + b"{}\n")
            with pytest.raises(LaunchError) as refused:
                carry_out(move)
            assert refused.value.code == Exit.REFUSED and "--again" in refused.value.remedy
            assert refused.value.what == f"old has what this move does not know: {name}"
            path.unlink() if had is None else path.write_bytes(had)
        assert carry_out(move)["files"] == 3


def test_two_hosts_that_are_one_folder_are_refused_before_anything_changes(hosts):
    config = hosts.home / "launch.toml"
    link = hosts.old_root.with_name("link")
    link.symlink_to(hosts.old_root)
    config.write_text(config.read_text().replace(str(hosts.new_root), str(link)))
    before = everything(hosts)
    dry = hosts.launch("migrate", "old", "new", "--dry-run")
    assert dry.returncode == Exit.REFUSED and "old and new are the same place" in dry.stderr, dry.stderr
    assert everything(hosts) == before
    source = contents(hosts.old_root)
    refused = hosts.launch("migrate", "old", "new")
    assert refused.returncode == Exit.REFUSED and "are one folder" in refused.stderr, refused.stderr
    assert contents(hosts.old_root) == source and not (hosts.old_root / ".migrate").exists()
    assert hosts.steps_done() == [] and not (hosts.home / "runs").exists()


def test_a_root_that_is_another_folder_is_told_from_the_source_and_nothing_of_the_look_stays(hosts):
    hosts.new_root.mkdir(parents=True)
    with moving.in_process(hosts) as (move, _):
        place.refuse_one(move)
        place.refuse_one_by_looking(move)
    assert list(hosts.new_root.iterdir()) == []
