"""Who holds a run name: a claim counts while its run lives, or for two minutes when it never came to be."""

import json

import pytest

from launch.errors import Exit, LaunchError
from launch.inventory import Host
from launch.runs import names
from launch.transport import DryTransport
from launch.transport.local import LocalTransport
from minimind.rundir import RunSpec, new_run_id


@pytest.fixture
def transport(tmp_path):
    return LocalTransport(Host(name="here", ssh=None, root=str(tmp_path)))


def claim(transport, run_id: str, name: str = "x") -> int:
    return names.claim(transport, transport.host.root, name, run_id, owner="me@laptop", pid=7)


def run_id() -> str:
    return new_run_id("dpo", now_utc="20260102-030405")


def end(transport, run: str) -> None:
    """A run directory whose first attempt has ended."""
    folder = f"{transport.host.root}/runs/{run}"
    spec = RunSpec(run_id=run, stage="dpo", flags=[], nproc=1, executor="venv")
    transport.publish(f"{folder}/spec.json", spec.to_json())
    transport.publish(f"{folder}/attempts/1/exit.json", b'{"code": 1, "reason": "trainer_error"}')


def test_a_name_is_held_by_a_run_that_is_about_to_start_and_the_refusal_says_by_whom(transport):
    first = run_id()
    assert claim(transport, first) == 1
    with pytest.raises(LaunchError) as refused:
        claim(transport, run_id())
    assert refused.value.code is Exit.REFUSED
    assert first in refused.value.what and "me@laptop" in refused.value.why and "7" in refused.value.why
    assert claim(transport, run_id(), "x.1") == 1, "a name with a number in it is another name"


def test_a_name_whose_run_has_ended_is_free_for_the_next_number(transport):
    first = run_id()
    claim(transport, first)
    end(transport, first)
    assert claim(transport, run_id()) == 2


def test_a_claim_whose_launcher_died_before_the_run_holds_for_two_minutes_of_the_hosts_clock(transport, tmp_path):
    claim(transport, run_id())
    path = tmp_path / "names" / "x.1"
    told = json.loads(path.read_text())
    assert told.keys() == {"run_id", "owner", "pid", "time"}
    path.write_text(json.dumps({**told, "time": told["time"] - names.UNSTARTED_HOLDS_S + 30}))
    with pytest.raises(LaunchError):
        claim(transport, run_id())
    path.write_text(json.dumps({**told, "time": told["time"] - names.UNSTARTED_HOLDS_S - 30}))
    assert claim(transport, run_id()) == 2


def test_a_name_is_let_go_when_its_run_could_not_be_started(transport, tmp_path):
    number = claim(transport, run_id())
    names.release(transport, str(tmp_path), "x", after=number, owner="me@laptop", pid=7)
    assert claim(transport, run_id()) == number + 2


def test_a_torn_claim_keeps_its_number_and_holds_nothing(transport, tmp_path):
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "x.3").write_text('{"run_')
    assert claim(transport, run_id()) == 4


def test_the_run_itself_may_claim_its_name_again(transport):
    mine = run_id()
    claim(transport, mine)
    assert claim(transport, mine) == 2


def test_on_paper_nothing_is_claimed(transport, tmp_path):
    record = []
    assert claim(DryTransport(transport, record), run_id()) == 1
    assert len(record) == 1 and not (tmp_path / "names").exists()
