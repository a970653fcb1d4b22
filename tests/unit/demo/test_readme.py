"""Commands that the READMEs and guides show are parsed by the programs that they call."""

import re
import shlex
from pathlib import Path

import click
import pytest

from launch.cli import cli
from minimind import flags as command_line
from minimind.catalog import CATALOG

ROOT = Path(__file__).parents[3]
PAGES = [
    *(ROOT / name for name in ("README.md", "README.zh-CN.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
    *sorted((ROOT / "docs" / "concepts").glob("*.md")),
    *sorted((ROOT / "demo").glob("*.md")),
]
PAGES = [page for page in PAGES if page.name != "LOG.md"]
PROGRAMS = ("launch ", "make ", "python -m minimind ")


def commands(text):
    """Every command shown in plain code blocks and in running text, unless an ellipsis says that it is partial."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [part for block in blocks for line in block.splitlines() for part in line.split(" && ")]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    shown = [c.strip() for c in (*lines, *inline) if "…" not in c]
    return [c for c in shown if c.startswith(PROGRAMS) or (c.startswith("torchrun ") and "-m minimind" in c)]


SHOWN = sorted({(page.relative_to(ROOT).as_posix(), c) for page in PAGES for c in commands(page.read_text())})


def check_trainer(words):
    stage, flags = words[0], words[1:]
    if stage in ("chat", "eval", "serve"):
        generate, evaluate, serve = (
            pytest.importorskip(f"minimind.{name}") for name in ("generate", "evaluate", "serve")
        )
        uses = {"chat": generate.ChatConfig, "eval": evaluate.EvalConfig, "serve": serve.ServeConfig}
        parser = command_line.Parser(allow_abbrev=False)
        command_line.add_fields(parser, uses[stage], {})
        parser.parse_args(flags)
    elif "--help" in flags:
        assert stage in CATALOG
    else:
        command_line.parse(stage, flags)


def check_launch(words):
    """Parse as click does, without invoking anything."""
    command: click.Command = cli
    ctx = cli.make_context("launch", list(words))
    while isinstance(command, click.Group):
        rest = [*ctx._protected_args, *ctx.args]
        name, found, rest = command.resolve_command(ctx, rest)
        assert found is not None, f"no command {name}"
        bare = not rest  # "`launch stop` asks the run to …" names a command, and need not say which run
        command, ctx = found, found.make_context(name, rest, parent=ctx, resilient_parsing=bare)
    if words[0] == "run" and "--" in words:
        check_trainer([words[1], *words[words.index("--") + 1 :]])


@pytest.mark.parametrize(("page", "command"), SHOWN)
def test_a_command_shown_in_the_docs_is_understood(page, command):
    words = shlex.split(command)
    try:
        if words[0] == "launch":
            check_launch(words[1:])
        elif words[0] == "make":
            targets = re.findall(r"^([\w.-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert [w for w in words[1:] if "=" not in w and w not in targets] == []
        else:
            check_trainer(words[words.index("minimind") + 1 :])
    except SystemExit as leave:
        assert leave.code == 0, f"{page}: {command}"
    except click.ClickException as error:
        pytest.fail(f"{page}: {command}: {error.format_message()}")


def test_the_pages_show_commands_at_all():
    assert len(SHOWN) > 30
    assert {page for page, _ in SHOWN} >= {"README.md", "README.zh-CN.md", "docs/guides/first-run.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_between_pages_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_both_readmes_show_the_same_commands():
    english, chinese = (commands((ROOT / name).read_text()) for name in ("README.md", "README.zh-CN.md"))
    assert sorted(set(english)) == sorted(set(chinese))


def test_every_exit_code_stands_in_the_readmes():
    from launch.errors import Exit

    for name in ("README.md", "README.zh-CN.md", "docs/troubleshooting.md"):
        shown = set(re.findall(r"^\| (\d+) \|", (ROOT / name).read_text(), re.MULTILINE))
        missing = {str(int(code)) for code in Exit} - shown
        assert missing <= ({"0"} if "trouble" in name else set()), name
