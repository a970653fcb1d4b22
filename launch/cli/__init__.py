"""The command line. Commands are loaded when they are called: `launch --help` costs what a bare click program costs."""

from __future__ import annotations

import os
import sys

import click

COMMANDS = {
    "init": ("launch.cli.init:init", "Write an annotated launch.toml into this folder."),
    "host": ("launch.cli.host:host", "Add or forget a host of launch.toml."),
    "hosts": ("launch.cli.hosts:hosts", "Show every host, whether it answers, and what it is."),
    "doctor": ("launch.cli.doctor:doctor", "Say whether hosts are fit to train, and what to do where not."),
    "secrets": ("launch.cli.secrets:secrets", "Show which secrets are found, and whether one lies around."),
    "run": ("launch.cli.run:run", "Start a run of a training stage and follow it."),
    "ps": ("launch.cli.ps:ps", "Show the runs of every host."),
    "logs": ("launch.cli.logs:logs", "Print a run's log."),
    "stop": ("launch.cli.stop:stop", "Let a run save and leave."),
    "resume": ("launch.cli.resume:resume", "Go on with a run from its last checkpoint."),
    "sync-out": ("launch.cli.sync:sync_out", "Bring weights and runs home, verified."),
    "sync-in": ("launch.cli.sync:sync_in", "Send data, weights and the tokenizer to a host that lacks them."),
}
"""Name -> where it is, and its line in the help."""


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


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--inventory", metavar="PATH", help="The launch.toml to use.  [env: LAUNCH_INVENTORY]")
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
