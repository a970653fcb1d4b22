"""What is kept of a move: published whole, one launcher at a time, and never mixed with another request."""

import json

import pytest

from launch.errors import Exit, LaunchError
from launch.migrate.journal import Journal

ASKED = {"from": "a /r", "to": "b /r", "nproc": 8}


def begun(home):
    journal = Journal(home, "a", "b")
    with journal.locked():
        journal.begin(ASKED, now_utc="20260101T000000Z", again=False)
    return journal


def test_reading_makes_nothing(tmp_path):
    assert "check" not in Journal(tmp_path, "a", "b")
    assert list(tmp_path.iterdir()) == []


def test_what_was_recorded_is_known_to_the_next_launcher_and_can_be_forgotten(tmp_path):
    journal = begun(tmp_path)
    journal.record("check", {"x": 1})
    journal.record("data", {})
    journal.sending({"/r/out/x": "1"})
    journal.stopping(["r1"])
    journal.stopping(["r1", "r2"])
    journal.intend(run_id="r1", attempt=2)
    later = Journal(tmp_path, "a", "b")
    assert later.facts("check") == {"x": 1} and "data" in later and later.sent == {"/r/out/x": "1"}
    assert later.stopped == ["r1", "r2"] and later.intent == {"run_id": "r1", "attempt": 2}
    later.forget("data", "never")
    assert "data" not in Journal(tmp_path, "a", "b") and "check" in Journal(tmp_path, "a", "b")


def test_two_launchers_do_not_do_the_same_move(tmp_path):
    begun(tmp_path)
    with Journal(tmp_path, "a", "b").locked(), pytest.raises(LaunchError) as refused:
        Journal(tmp_path, "a", "b").locked().__enter__()
    assert refused.value.code == Exit.REFUSED
    with Journal(tmp_path, "a", "b").locked(), Journal(tmp_path, "b", "a").locked():
        pass


def test_another_request_is_refused_and_a_new_move_keeps_the_old_one_aside(tmp_path):
    journal = begun(tmp_path)
    journal.record("check", {})
    journal.sending({"/r/out/x": "1"})
    with pytest.raises(LaunchError) as refused:
        journal.begin({**ASKED, "nproc": 4}, now_utc="20260102T000000Z", again=False)
    assert refused.value.code == Exit.REFUSED and "nproc 8" in refused.value.why
    journal.begin({**ASKED, "nproc": 4}, now_utc="20260102T000000Z", again=True)
    assert "check" not in journal and journal.sent == {"/r/out/x": "1"} and journal.began_at == "20260102T000000Z"
    aside = json.loads((journal.folder / "state-20260101T000000Z.json").read_bytes())
    assert "check" in aside["steps"]


def test_a_journal_that_was_edited_into_nonsense_is_said(tmp_path):
    journal = begun(tmp_path)
    (journal.folder / "state.json").write_text("{")
    with pytest.raises(LaunchError) as refused:
        Journal(tmp_path, "a", "b")
    assert refused.value.code == Exit.INVALID and "move it away" in refused.value.remedy


def test_a_new_move_knows_that_a_key_of_the_one_before_may_still_open_the_target(tmp_path):
    journal = begun(tmp_path)
    journal.bridging(True)
    journal.begin(ASKED, now_utc="20260102T000000Z", again=True)
    assert journal.bridged and Journal(tmp_path, "a", "b").bridged


def test_a_host_that_has_another_address_now_is_another_request_and_an_older_journal_is_taken_up(tmp_path):
    journal = begun(tmp_path)  # by a launch that wrote no addresses down
    at = {**ASKED, "from_ssh": "root@a:1", "to_ssh": "root@b:2"}
    journal.begin(at, now_utc="20260102T000000Z", again=False)
    assert journal.began_at == "20260101T000000Z"
    journal.begin(at, now_utc="20260102T000000Z", again=False)
    for key in ("from_ssh", "to_ssh"):
        with pytest.raises(LaunchError) as refused:
            Journal(tmp_path, "a", "b").begin({**at, key: "root@c:3"}, now_utc="20260102T000000Z", again=False)
        assert refused.value.code == Exit.REFUSED and at[key] in refused.value.why
