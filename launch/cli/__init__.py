"""The command line. Commands are loaded when they are called: `launch --help` costs what a bare click program costs."""

from __future__ import annotations

import os
import sys

import click

from launch.cli.commands import COMMANDS


class Lazy(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command."""
        if name not in COMMANDS:
            return None
        import importlib

        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table's own lines, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest command when there is none of that name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


def _given(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty: give the path of a launch.toml, or leave the option away")
    return value


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--inventory", metavar="PATH", callback=_given, help="The launch.toml to use.  [env: LAUNCH_INVENTORY]")
@click.version_option(package_name="minimind-launch", prog_name="launch")
def cli(inventory: str | None) -> None:
    """Train MiniMind on any host, and bring the results home.

    Without any launch.toml there is the host `local`. Data goes to stdout, talk to stderr.
    """


def main(argv: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    try:
        code = _invoke(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # `launch logs | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    sys.exit(code)


def _invoke(argv: list[str] | None) -> int:
    try:
        result = cli.main(argv, prog_name="launch", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what was started on a host goes on: launch ps", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return 2
    except BrokenPipeError:
        raise
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    from launch.errors import LaunchError

    if isinstance(error, LaunchError):
        from launch.ui import paragraph

        paragraph(error)
        return int(error.code)
    from launch.cli.crash import report

    return report(error)
