"""The command line as users and scripts know it: commands, options, defaults. Changing this is a decision."""

import ast
import os
import pathlib
import subprocess
import sys

import click
import pytest

from launch.cli import COMMANDS, cli

FROZEN = {
    "init": {},
    "host": {},
    "hosts": {"--json": False},
    "doctor": {"HOST": None, "--deep": False, "--nproc": None, "--json": False},
    "secrets": {},
    "run": {
        "STAGE": None,
        "--host": ("local",),
        "--nproc": "auto",
        "--name": None,
        "--data": None,
        "--dry-run": False,
        "--detach": False,
        "--json": False,
        "TRAINER_FLAGS": None,
    },
    "ps": {"--host": None, "--all": False, "--json": False},
    "logs": {"RUN": None, "-f --follow": False, "--rank": None, "--attempt": None, "--host": None, "--json": False},
    "stop": {"RUN": None, "--timeout": 330.0, "--now": False, "--host": None, "--json": False},
    "resume": {"RUN": None, "--host": None, "--nproc": None, "--detach": False, "--json": False},
    "sync-out": {
        "RUN": None,
        "--host": None,
        "--to": None,
        "--watch": False,
        "--without-weights": False,
        "--checksum": False,
        "--dry-run": False,
        "--json": False,
    },
    "versions": {"VERSION": None, "--folder": None, "--keep": None, "--json": False},
    "restore": {"VERSION": None, "PATHS": None, "--folder": None, "--to": None, "--json": False},
    "release-check": {"HOST": None, "--to": None, "--without-weights": False, "--json": False},
    "release": {"HOST": None, "--to": None, "--without-weights": False, "--dry-run": False, "--json": False},
    "migrate": {
        "SOURCE": None,
        "TARGET": None,
        "--run": None,
        "--nproc": None,
        "--wait": False,
        "--again": False,
        "--dry-run": False,
        "--json": False,
        "TRAINER_FLAGS": None,
    },
    "ship-image": {"HOSTS": None, "--all": False, "--image": None, "--dry-run": False, "--json": False},
    "image verify": {"HOST": None, "--sbom": None, "--json": False},
    "image list": {"HOST": None, "--json": False},
    "image prune": {"HOST": None, "--yes": False, "--json": False},
    "env check": {"HOST": None, "--json": False},
    "env list": {"HOST": None, "--json": False},
    "env prune": {"HOST": None, "--yes": False, "--json": False},
}
STAGES = ["tokenizer", "pretrain", "full_sft", "dpo", "lora"]
ROOT = pathlib.Path(__file__).parents[3]


GROUPS = {
    "host add": {
        "NAME": None,
        **dict.fromkeys(("--ssh", "--fingerprint", "--root", "--executor", "--gpus", "--price-per-hour"), None),
        **dict.fromkeys(("--currency", "--release-command", "--identity-file", "--python", "--image"), None),
        "--replace-key": False,
        "--install-key": False,
    },
    "host forget": {"NAME": None, "--force": False},
    "secrets check": {"HOST": None, "--json": False},
}


def command(name: str) -> click.Command:
    found: click.Command | None = cli
    for word in name.split():
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), word)
    assert found is not None
    return found


def surface(name: str) -> dict[str, object]:
    found = {}
    for parameter in command(name).params:
        is_option = isinstance(parameter, click.Option)
        key = " ".join(parameter.opts) if is_option else (parameter.name or "").upper()
        default = parameter.get_default(click.Context(command(name))) if is_option else None
        given = isinstance(default, str | int | float | list | tuple)  # newer versions of click have a mark for "none"
        found[key] = (tuple(default) if isinstance(default, list) else default) if given else None
    return found


@pytest.mark.parametrize("name", [*FROZEN, *GROUPS])
def test_a_command_keeps_its_options_and_defaults(name):
    assert surface(name) == (FROZEN | GROUPS)[name]


def test_no_command_is_lost():
    assert {name.split()[0] for name in FROZEN} <= COMMANDS.keys()


def test_the_stages_of_run_are_those_of_the_catalog_in_their_order():
    (stage,) = (parameter for parameter in command("run").params if parameter.name == "stage")
    assert list(stage.type.choices)[: len(STAGES)] == STAGES


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_in_the_help_is_the_commands_own(name):
    summary = COMMANDS[name][1]
    assert summary.endswith(".") and len(summary) < 80
    assert command(name).get_short_help_str(200)


def test_help_loads_click_and_nothing_of_ours():
    probe = (
        "import sys, contextlib, io\nfrom launch.cli import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()): cli.main(['--help'], standalone_mode=False)\n"
        "print([name for name in sys.modules if name.startswith(('launch.', 'minimind', 'rich', 'fabric'))])"
    )
    loaded = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted(ast.literal_eval(loaded)) == ["launch.cli", "launch.cli.commands"]  # and these import click alone


def test_shell_completion_knows_commands_and_stages():
    def complete(words: str, cword: int) -> str:
        environ = {**os.environ, "_LAUNCH_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(cword)}
        asked = [sys.executable, "-m", "launch"]
        return subprocess.run(asked, cwd=ROOT, env=environ, capture_output=True, text=True, check=False).stdout

    assert complete("launch resu", 1).split() == ["plain,resume"]
    assert "plain,full_sft" in complete("launch run f", 2).split()


def test_an_unknown_command_is_told_the_nearest():
    done = subprocess.run(
        [sys.executable, "-m", "launch", "rseume"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Did you mean 'resume'" in done.stderr


def test_a_fault_of_our_own_is_exit_1_with_a_file_and_no_traceback(tmp_path):
    probe = (
        "import launch.cli, launch.cli.ps as ps\n"
        "def fall(*_, **__): raise RuntimeError('a bug')\n"
        "ps.ps.callback = fall\nlaunch.cli.main(['ps'])"
    )
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (crash,) = (tmp_path / "minimind-launch").iterdir()
    assert str(crash) in done.stderr and "RuntimeError: a bug" in crash.read_text()
