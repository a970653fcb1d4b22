"""``python -m minimind <stage> [flags]``, alone or under torchrun; and the uses of weights."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path

from minimind.process import PR_SET_PDEATHSIG, leave, prctl

USES = {
    "chat": ("minimind.generate", "chat"),
    "eval": ("minimind.evaluate", "evaluate"),
    "export": ("minimind.export", "export"),
    "plan": ("minimind.plan", "plan"),
    "serve": ("minimind.serve", "serve"),
}
"""Use -> module and function, imported when it is asked for."""
HELP = """usage: python -m minimind <stage> [flags]      train (also under torchrun -m minimind …)
       python -m minimind <use> [flags]        use what was trained

stages: {stages}
uses:   {uses}

`python -m minimind <stage> --help` shows each flag with its unit and default.
"""


def _join_supervisor() -> None:
    """Under the supervisor this rank dies with torchrun and writes its own log file."""
    attempt, rank = os.environ.get("MINIMIND_ATTEMPT"), os.environ.get("RANK")
    if attempt is None or rank is None:
        return
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    log = Path(os.environ["MINIMIND_RUN_DIR"]) / "attempts" / attempt / f"log.rank{rank}.txt"
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _asked_of_rank(run_dir: Path) -> list[str]:
    """What the run's spec asks for, as if it stood on the command line: torchrun would parse it as its own there."""
    from minimind.rundir import RunDir, RunSpec

    spec = RunSpec.from_json(RunDir(run_dir).spec.read_bytes())
    return [spec.stage, *spec.flags, "--run_dir", str(run_dir)]


def main(argv: list[str]) -> int:
    """Run a stage or a use; returns the exit code."""
    from minimind.catalog import CATALOG

    if argv[:1] == ["rank"]:  # one of torchrun's, under a supervisor
        argv = _asked_of_rank(Path(argv[1]))
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(HELP.format(stages=" ".join(CATALOG), uses=" ".join(USES)), end="")
        return 0
    if name not in CATALOG and name not in USES:
        print(HELP.format(stages=" ".join(CATALOG), uses=" ".join(USES)), end="", file=sys.stderr)
        print(f"\nerror: there is no stage or use {name!r}", file=sys.stderr)
        return 2
    _join_supervisor()
    from minimind.attempt import PeerFailed, report
    from minimind.rundir import RunError

    try:
        return _dispatch(name, argv[1:])
    except (RunError, PeerFailed) as error:
        code = report(error)
        # torchrun answers a failed rank with a page of its own; where all ranks left together exit.json says it all
        return 0 if "MINIMIND_ATTEMPT" in os.environ and error.agreed else code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        return report(error)


def _dispatch(name: str, argv: list[str]) -> int:
    if name in USES:
        module, function = USES[name]
        return int(getattr(importlib.import_module(module), function)(argv))
    from minimind.attempt import record_early
    from minimind.config import UsageError
    from minimind.flags import parse

    try:
        config = parse(name, argv)
    except UsageError as error:
        record_early(error)
        raise
    if name == "tokenizer":
        from minimind.train_tokenizer import train_tokenizer

        train_tokenizer(config, argv)
    else:
        from minimind.loop import train
        from minimind.stages import make

        train(make(name, config), config, argv)
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
