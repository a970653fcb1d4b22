"""What the user types for a run, and what `last`, names and beginnings of ids mean."""

import dataclasses

from launch.runs.find import latest, matches
from launch.runs.observe import Run
from minimind.rundir import RunState, State

STATE = RunState(state=State.SUCCEEDED)


def run(run_id: str, name: str | None = None) -> Run:
    return Run(run_id=run_id, host="h", run_dir=f"/r/runs/{run_id}", state=STATE, spec={"name": name})


RUNS = [
    run("20260102-030405-dpo-aaaa", "x"),
    run("20260102-030405-dpo-aabb"),
    run("20260103-000000-pretrain-0001", "x"),
    run("20260101-000000-pretrain-0002", "20260103-000000-pretrain-0001"),
]


def ids(wanted: str) -> list[str]:
    return [found.run_id[-4:] for found in matches(RUNS, wanted)]


def test_an_id_is_itself_even_where_another_run_has_it_as_its_name():
    assert ids("20260103-000000-pretrain-0001") == ["0001"]


def test_last_is_the_newest_of_all_and_a_name_its_newest_run():
    assert ids("last") == ["0001"]
    assert ids("x") == ["0001"]


def test_a_beginning_means_every_run_that_begins_so():
    assert ids("20260101") == ["0002"]
    assert ids("20260102-03") == ["aaaa", "aabb"]
    assert ids("2027") == [] and ids("") == []


def test_of_a_run_that_lies_on_two_hosts_the_one_with_more_attempts_is_meant():
    left = dataclasses.replace(RUNS[0], host="old", state=RunState(state=State.STOPPED, attempt=1))
    gone_on = dataclasses.replace(RUNS[0], host="new", state=RunState(state=State.RUNNING, attempt=2))
    for wanted in (left.run_id, "last", "x", "2026"):
        assert matches(latest([left, gone_on]), wanted) == [gone_on]
    undecided = [left, dataclasses.replace(left, host="new")]
    for wanted in (left.run_id, "last", "x"):
        assert matches(latest(undecided), wanted) == undecided


def test_the_root_is_found_from_the_run_directory():
    assert RUNS[0].root == "/r"
