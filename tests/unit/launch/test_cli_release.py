"""What `launch release` prints around the check and the release_command, which are both stand-ins here."""

import contextlib
import json
import pathlib

import pytest

from launch import cli
from launch.cli import release
from launch.errors import Exit
from launch.release import Findings, Gap

GAP = Gap(path="out/a.pth", why="there is no copy here", repair="launch sync-out")


@pytest.fixture
def rented(tmp_path, monkeypatch):
    """Runs a command line about a host whose check finds these gaps; gives the exit code."""
    toml = '[hosts.gpu8]\nssh = "me@gpu8"\nrelease_command = "give back"\n'
    (tmp_path / "launch.toml").write_text(toml)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(release, "connect", lambda *_: contextlib.nullcontext())

    def run(*words, gaps=()):
        found = Findings(
            host="gpu8", root="/r", folder=pathlib.Path("home"), files=3, bytes=9, gaps=gaps, runs=(), elsewhere=()
        )
        monkeypatch.setattr(release, "check", lambda *_, **__: found)
        return cli._invoke(["release", "gpu8", *words])

    return run


@pytest.mark.parametrize(("gaps", "code"), [((), Exit.OK), ((GAP,), Exit.REFUSED)])
def test_a_dry_run_prints_one_json_document_also_when_it_refuses(rented, capsys, gaps, code):
    assert rented("--dry-run", "--json", gaps=gaps) == code
    told = json.loads(capsys.readouterr().out)
    assert (told["ready"], told["files"], told["release_command"]) == (not gaps, 3, "give back")


def test_an_interrupted_release_command_does_not_promise_that_anything_goes_on(rented, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(release, "give_back", interrupted)
    assert rented() == Exit.INTERRUPTED
    said = capsys.readouterr().err
    assert "the host may be gone" in said and "provider's console" in said and "goes on" not in said
