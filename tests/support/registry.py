"""A real registry on loopback, in this network and, by the same port, in the one of a second engine."""

import contextlib
import ctypes
import os
import pathlib
import shutil
import socket
import subprocess
import threading
import time

from tests.support.sshd import free_port

BINARY = shutil.which("docker-registry")
MISSING = "needs the program docker-registry (Debian: apt install docker-registry)" if BINARY is None else ""
CLONE_NEWNET = 0x40000000
CONFIG = """
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}
http: {{net: unix, addr: {folder}/s}}
"""
AUTH = "auth: {{htpasswd: {{realm: tests, path: {folder}/users}}}}\n"


class Registry:
    """Answers on 127.0.0.1:``port``; engines take what is on loopback without a certificate."""

    def __init__(self, folder: pathlib.Path, engine_pid: int, *, user: str = "", password: str = "") -> None:
        folder.mkdir(parents=True)
        self.folder, self.port, self.process = folder, free_port(), None
        text = CONFIG + (AUTH if user else "")
        (folder / "config.yml").write_text(text.format(folder=folder))
        if user:
            import bcrypt

            hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
            (folder / "users").write_text(f"{user}:{hashed}\n")
        self._doors = [self._listen(None), self._listen(engine_pid)]
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        (self.folder / "s").unlink(missing_ok=True)
        with open(self.folder / "log", "ab") as log:
            command = [BINARY, "serve", self.folder / "config.yml"]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not (self.folder / "s").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("docker-registry did not start: " + (self.folder / "log").read_text()[-1000:])
            time.sleep(0.05)

    def stop(self) -> None:
        """End it; its ports answer nothing any more."""
        self.process.terminate()
        self.process.wait(30)

    def close(self) -> None:
        self.stop()
        for door in self._doors:
            door.close()

    def blobs(self) -> list[pathlib.Path]:
        """Everything that it keeps, by what it is called there."""
        return [path for path in (self.folder / "data").rglob("data") if "blobs" in path.parts]

    def _listen(self, pid: int | None) -> socket.socket:
        """A port, made in the network of a process: a socket stays in the one that it was made in."""
        made: list[socket.socket] = []

        def work() -> None:
            if pid is not None:
                with open(f"/proc/{pid}/ns/net") as network:
                    if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            made.append(socket.create_server(("127.0.0.1", self.port)))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        threading.Thread(target=self._accept, args=(made[0],), daemon=True).start()
        return made[0]

    def _accept(self, door: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = door.accept()
                server = socket.socket(socket.AF_UNIX)
                try:
                    server.connect(os.fspath(self.folder / "s"))
                except OSError:
                    client.close()
                    continue
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=_copy, args=(one, other), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
