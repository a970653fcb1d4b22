"""torchrun, told nothing but how many ranks: a run's own words never meet torchrun's parser.

``python -m minimind.agent N`` with MINIMIND_RUN_DIR and MINIMIND_ATTEMPT set starts N ranks, each of which reads its
stage and flags from spec.json (``python -m minimind rank RUN_DIR``). How ranks failed goes to ``ranks.json``: torchrun
itself ends with 1 whether a rank left with a code or was killed.
"""

from __future__ import annotations

import os
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from minimind.durable import publish, to_json
from minimind.rundir import RunDir


def words(run_dir: str, *, nproc: int) -> list[str]:
    """Arguments of torchrun: one host, loopback rendezvous on a free port, no restarts."""
    return [
        *("--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(nproc)),
        *("-m", "minimind", "rank", run_dir),
    ]


def main(nproc: int) -> int:
    """Start the ranks and wait for them; returns the exit code."""
    run_dir = os.environ["MINIMIND_RUN_DIR"]
    try:
        torchrun(words(run_dir, nproc=nproc))
    except ChildFailedError as error:
        failed = sorted(error.failures.items(), key=lambda item: (item[1].timestamp, item[0]))
        told = [{"rank": rank, "code": failure.exitcode, "pid": failure.pid} for rank, failure in failed]
        publish(RunDir(run_dir).attempt(int(os.environ["MINIMIND_ATTEMPT"])) / "ranks.json", to_json(told))
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
