"""`launch` that starts fast: a process that has imported it once forks it for each call.

Each call is a process of its own with its own environment, folder, arguments and exit code; only imports are shared.
A test that looks at the process itself (its environment, its memory, signals) starts `python -m launch` instead.
"""

import atexit
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).parents[2]
HEADER_BYTES = 8
IMPORTED = (
    *("launch.cli", "launch.crash", "launch.transport.ssh", "launch.runs.start", "launch.runs.control", "launch.sync"),
    *("launch.sync.home", "launch.release.check", "launch.cli.run", "launch.cli.sync", "launch.cli.following", "rich"),
    *("launch.environment", "launch.doctor", "launch.weights", "launch.runs.watch"),
)


class Launcher:
    """The process that forks; it ends with this one."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="launcher-")
        self.address = f"{self.folder.name}/socket"
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.launcher", self.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environ,
        )
        assert self.process.stdout.readline() == b"ready\n"
        atexit.register(self.close)

    def run(
        self, *args: str, cwd: pathlib.Path, environ: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess:
        """What :func:`subprocess.run` would return of `python -m launch`."""
        request = json.dumps({"argv": args, "cwd": str(cwd), "environ": dict(environ)}).encode()
        with (
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            socket.socket(socket.AF_UNIX) as line,
        ):
            line.connect(self.address)
            socket.send_fds(line, [len(request).to_bytes(HEADER_BYTES, "big")], [out.fileno(), err.fileno()])
            line.sendall(request)
            pid = int(_exactly(line, HEADER_BYTES))
            line.settimeout(timeout_s)
            try:
                code = int(_exactly(line, HEADER_BYTES))
            except TimeoutError as error:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(args, timeout_s) from error
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode().replace("\r\n", "\n"))
        return subprocess.CompletedProcess(["launch", *args], code, *texts)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.folder.cleanup()


_made: Launcher | None = None


def launcher() -> Launcher:
    """This process's one."""
    global _made
    if _made is None:
        _made = Launcher()
    return _made


def _exactly(line: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = line.recv(length - len(data))
        assert more, "the launcher's parent ended"
        data += more
    return data


def _number(value: int) -> bytes:
    return str(value).rjust(HEADER_BYTES).encode()


def _be_launch(request: dict, out: int, err: int) -> None:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, target in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
            os.dup2(number, target)
        os.closerange(3, 64)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environ"])
        sys.argv = ["launch", *request["argv"]]
        from launch.cli import main

        main()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _answer(line: socket.socket) -> None:
    """One call, in a process that waits for it and tells its code."""
    header, (out, err), _, _ = socket.recv_fds(line, HEADER_BYTES, 2)
    request = json.loads(_exactly(line, int.from_bytes(header, "big")))
    if not (pid := os.fork()):
        _be_launch(request, out, err)
    line.sendall(_number(pid))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        line.sendall(_number(code))


def serve(address: str) -> None:
    import importlib
    import select

    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever answers is nobody's to wait for
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(64)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            line, _ = listening.accept()
            with line:
                if not os.fork():
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    listening.close()
                    try:
                        _answer(line)
                    finally:
                        os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
