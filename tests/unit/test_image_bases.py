"""The base: the pinned one wherever it can be had, and always said which."""

import os
import shutil
import time

import pytest

from tests.support.image_build import bases, engine
from tests.support.played_engine import Played

HERE = {"RootFS": {"Layers": ["sha256:0"]}, "Architecture": "amd64", "Os": "linux"}


@pytest.fixture
def played(tmp_path):
    return Played(tmp_path)


def choose(played: Played, wanted: str | None = None) -> str:
    return bases.choose_base(os.fspath(played.client), wanted)


def test_the_pinned_base_is_taken_where_it_is_without_asking_a_registry(played):
    played.holds(**{bases.DEFAULT_BASE: HERE, bases.LOCAL_BASE: HERE})
    assert choose(played) == bases.DEFAULT_BASE and not played.calls("pull")


def test_the_pinned_base_is_pulled_although_one_was_made_here(played):
    played.holds(**{bases.LOCAL_BASE: HERE})
    assert choose(played) == bases.DEFAULT_BASE
    assert bases.DEFAULT_BASE in played.images()


def test_the_one_made_here_is_taken_where_no_registry_gives_the_pinned_one_and_that_is_said(played, capsys):
    played.holds(**{bases.LOCAL_BASE: HERE})
    played.tell(refuses={"pull": "no such host"})
    assert choose(played) == bases.LOCAL_BASE
    assert "it was not to be had: no such host" in capsys.readouterr().out
    assert len(played.calls("pull")) == 1


def test_a_registry_that_does_not_answer_is_given_up(played):
    played.tell(silent_s=60)
    begun_s = time.monotonic()
    refused = bases.pull(os.fspath(played.client), bases.DEFAULT_BASE, answer_timeout_s=0.5)
    assert refused == "no registry answered within 0.5 s" and time.monotonic() - begun_s < 10
    assert bases.ANSWER_TIMEOUT_S <= 10


def test_a_named_base_has_no_stand_in(played, monkeypatch):
    played.holds(**{bases.LOCAL_BASE: HERE})
    played.tell(refuses={"pull": "denied"})
    with pytest.raises(engine.CannotBuild, match="why: denied"):
        choose(played, "mine:1")


def test_without_any_base_the_way_to_one_is_told(played, monkeypatch):
    played.tell(refuses={"pull": "denied"})
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(engine.CannotBuild, match="make base-image"):
        choose(played)


@pytest.mark.parametrize(
    ("name", "known", "digest"),
    [
        ("python:3@sha256:p", ["other@sha256:o", "python@sha256:q"], "sha256:p"),
        ("python:3", ["other@sha256:o", "python@sha256:q"], "sha256:q"),
        ("h:5000/python", ["python@sha256:o", "h:5000/python@sha256:q"], "sha256:q"),
        ("mine:1", ["h:5000/mine@sha256:o"], "sha256:0"),
        (bases.LOCAL_BASE, ["minimind-base@sha256:of a manifest"], "sha256:0"),
    ],
)
def test_a_digest_says_which_base_it_was_whatever_else_the_engine_calls_it(name, known, digest):
    assert bases.digest_of(name, known, ["sha256:0"]) == digest


def test_layers_are_named_together_as_oci_does():
    two = "sha256:970a948bffa8de94d6e22d747ba8c95030e6e546909f98f54e99a13005e173a8"
    assert bases.chain_id(["sha256:a"]) == "sha256:a" and bases.chain_id(["sha256:a", "sha256:b"]) == two
    assert bases.chain_id(["sha256:a", "sha256:b", "sha256:c"]) == bases.chain_id([two, "sha256:c"]) != two


def test_the_digest_and_the_name_are_what_the_image_tells(played):
    played.holds(**{bases.DEFAULT_BASE: HERE})
    base = bases.describe_base(os.fspath(played.client), bases.DEFAULT_BASE)
    assert (base.name, f"{base.name}@{base.digest}") == ("python:3.11-slim-bookworm", bases.DEFAULT_BASE)
