"""A real OpenSSH server on a free loopback port, with host keys and user keys of its own."""

import contextlib
import dataclasses
import getpass
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

BINARY = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
MISSING = "needs an OpenSSH server" if BINARY is None or shutil.which("ssh-keygen") is None else ""


def make_key(path: pathlib.Path, kind: str = "ed25519") -> pathlib.Path:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path], check=True)
    return path


def fingerprint(public_key: pathlib.Path) -> str:
    told = subprocess.run(["ssh-keygen", "-lf", public_key], check=True, capture_output=True, text=True).stdout
    return told.split()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclasses.dataclass
class Sshd:
    """A running server. ``user_key`` is let in; ``address`` is what goes into launch.toml."""

    folder: pathlib.Path
    port: int
    user_key: pathlib.Path
    host_keys: dict[str, pathlib.Path]
    process: subprocess.Popen
    listens_at: str = "127.0.0.1"
    user: str = dataclasses.field(default_factory=getpass.getuser)

    @property
    def address(self) -> str:
        return f"{self.user}@127.0.0.1:{self.port}"

    def known_hosts(self, kind: str = "ed25519") -> str:
        name, key = self.host_keys[kind].with_suffix(".pub").read_text().split()[:2]
        return f"[127.0.0.1]:{self.port} {name} {key}\n"

    def fingerprint(self, kind: str = "ed25519") -> str:
        return fingerprint(self.host_keys[kind].with_suffix(".pub"))

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def sessions(self) -> list[int]:
        """Process ids of the connections being served."""
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def cut(self) -> None:
        """Drop every connection at once, as a dying link would."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        self.cut()
        self.process.terminate()
        self.process.wait(10)

    def start_again(self) -> None:
        """After stop(): the same server on the same port, as after a boot."""
        with open(self.folder / "log", "ab") as log:
            command = [BINARY, "-D", "-e", "-f", self.folder / "sshd_config"]
            self.process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((self.listens_at, self.port), 1) as trial:
                if trial.recv(4) == b"SSH-":
                    return
            time.sleep(0.02)
        raise RuntimeError("sshd did not start again: " + self.log())


def start(
    folder: pathlib.Path,
    *,
    options: str = "",
    address: str = "127.0.0.1",
    netns: str = "",
    within: tuple[str, ...] = (),
) -> Sshd:
    """Start one, ``within`` what becomes it in the end.

    Of an option that is given twice sshd takes the first, so ``options`` override what stands here.
    """
    folder.mkdir(mode=0o700, parents=True)
    pathlib.Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None
    user_key = make_key(folder / "user_key")
    host_keys = {kind: make_key(folder / f"host_{kind}", kind) for kind in ("ed25519", "ecdsa")}
    authorized = folder / "authorized_keys"
    authorized.write_text(user_key.with_suffix(".pub").read_text())
    for _ in range(5):  # another process may take the port between the look and the bind
        port = free_port()
        config = folder / "sshd_config"
        config.write_text(
            f"{options}\nListenAddress {address}\nPort {port}\nPidFile none\nUsePAM no\nStrictModes no\n"
            "PermitRootLogin yes\n"
            f"AuthorizedKeysFile {authorized}\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"MaxSessions 64\nMaxStartups 100\n" + "".join(f"HostKey {key}\n" for key in host_keys.values())
        )
        with open(folder / "log", "wb") as log:
            command = [*(("ip", "netns", "exec", netns) if netns else ()), *within, BINARY, "-D", "-e", "-f", config]
            process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 15
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((address, port), 1) as trial:
                if trial.recv(4) == b"SSH-":
                    return Sshd(folder, port, user_key, host_keys, process, address)
            time.sleep(0.02)
        process.kill()
        process.wait()
    raise RuntimeError("sshd did not start: " + (folder / "log").read_text())
