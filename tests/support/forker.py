"""Trainers that start fast: a process that has imported everything once forks them, alone or as ranks of one group.

They are real processes with their own pids, run the real command line and can be killed; only the import is shared.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

from tests.support import corpus


class Forker:
    """Starts and reaps trainers."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=corpus.ROOT,
            env=corpus.environ(),
        )

    def _ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self, folder: pathlib.Path, stage: str, *flags: str, run: str, nproc: int = 0, before: str = ""
    ) -> list[int]:
        """Pids of the ranks; ``nproc`` 0 is one process without a group. ``before`` is Python that each runs first."""
        self.log = pathlib.Path(tempfile.mkdtemp(dir=folder)) / "log.txt"
        argv = [stage, *flags, "--run_dir", f"runs/{run}"]
        return self._ask(folder=str(folder), argv=argv, nproc=nproc, log=str(self.log), before=before)

    def wait(self) -> list[int]:
        """Exit codes of what was started, negative for signals."""
        return self._ask(wait=True)

    def train(self, folder: pathlib.Path, stage: str, *flags: str, run: str, nproc: int = 0) -> list[dict]:
        """Train to the end; returns the metrics."""
        self.start(folder, stage, *flags, run=run, nproc=nproc)
        codes = self.wait()
        assert not any(codes), (codes, self.log.read_text())
        return corpus.metrics(folder / "runs" / run)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture(scope="session")
def forker():
    """One for all tests of a worker: importing torch costs more than most trainings here."""
    made = Forker()
    yield made
    made.close()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rank(request: dict, rank: int, port: int) -> None:
    code = 99
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(request["folder"])
        if size := request["nproc"]:
            group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            os.environ.update({key: str(value) for key, value in group.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        exec(request["before"], {})
        from minimind.__main__ import main

        code = main(request["argv"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def serve() -> None:
    import torch._dynamo  # every optimiser's first step imports it
    import torch.distributed.checkpoint.state_dict
    import torch.distributed.fsdp  # noqa: F401

    import minimind.flags
    import minimind.loop
    import minimind.stages  # noqa: F401

    pids: list[int] = []
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        else:
            port, pids = _free_port(), []
            for rank in range(max(1, request["nproc"])):
                if not (pid := os.fork()):
                    _rank(request, rank, port)
                pids.append(pid)
            answer = pids
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
