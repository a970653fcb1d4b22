"""A second Docker engine on this machine, as a host's own: other images, another disk, named in sshd's environment."""

import contextlib
import io
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time

DOCKERD = shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
MISSING = (
    "needs root, dockerd and unshare for a second engine"
    if DOCKERD is None or shutil.which("unshare") is None or os.geteuid() != 0
    else ""
)


class Engine:
    """A running dockerd in a network namespace of its own: one in ours would take docker0 away from the first."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.process = folder, None
        self.socket = f"unix://{folder}/s"
        self.start()

    def start(self) -> None:
        namespace = re.sub("[^A-Za-z0-9]", "", self.folder.name) + "x"  # mkdtemp ends some names with "_"
        options = ("--bridge=none", "--iptables=false", "--ip-masq=false", "--containerd-namespace", namespace)
        places = ("--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/x", "-p", f"{self.folder}/pid")
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--net", DOCKERD, *places, "-H", self.socket, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while self.docker("version", check=False).returncode:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("dockerd did not start: " + (self.folder / "log").read_text()[-2000:])
            time.sleep(0.1)

    def docker(self, *arguments: str, check: bool = True, **options) -> subprocess.CompletedProcess:
        """Run a client against it."""
        options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL} | options
        return subprocess.run(["docker", "-H", self.socket, *arguments], check=check, timeout=600, **options)

    def image_id(self, reference: str) -> str | None:
        """The id of an image; None when it has none of that name."""
        found = self.docker("image", "inspect", "--format", "{{.Id}}", reference, check=False)
        return found.stdout.strip() if found.returncode == 0 else None

    def empty(self) -> None:
        """Remove every image."""
        listed = self.docker("image", "ls", "--all", "--quiet", "--no-trunc").stdout.split()
        if listed:
            self.docker("rmi", "--force", *set(listed))

    def stop(self, *, kill: bool = False) -> None:
        """End it; ``kill`` without a chance to tidy up."""
        if kill:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)
        self.process.terminate()
        self.process.wait(30)
        for pid in (self.folder / "x" / "containerd").glob("*.pid"):  # what a killed one leaves
            with contextlib.suppress(ProcessLookupError, ValueError):
                while True:
                    os.kill(int(pid.read_text()), signal.SIGKILL)
                    time.sleep(0.05)
            pid.unlink()
        (self.folder / "pid").unlink(missing_ok=True)


@contextlib.contextmanager
def engine(disk: str | None = None):
    """A second engine, empty, perhaps with a disk of this size; everything of it is gone afterwards."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="mmfar"))  # short: a socket's path has 107 bytes
    started = None
    try:
        if disk:
            (folder / "data").mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={disk}", "tmpfs", folder / "data"], check=True)
        started = Engine(folder)
        yield started
    finally:
        if started is not None:
            started.stop()
        for line in reversed(pathlib.Path("/proc/mounts").read_text().splitlines()):
            if (mount := line.split()[1]).startswith(str(folder)):
                subprocess.run(["umount", mount], check=False)
        shutil.rmtree(folder, ignore_errors=True)


ENDS_AT_ONCE = bytes.fromhex(
    "7f454c46020101000000000000000000 02003e0001000000 7800400000000000 4000000000000000 0000000000000000"
    "00000000 4000 3800 0100 000000000000 01000000 05000000 0000000000000000 0000400000000000 0000400000000000"
    "8100000000000000 8100000000000000 0010000000000000 b83c000000 31ff 0f05"
)
"""A program for Linux on amd64 that needs nothing and calls exit(0)."""
OWN = secrets.token_hex(4)


def own(name: str) -> str:
    """The name, for this worker alone: all of them have one engine here, and remove what they made."""
    return f"{name}-{OWN}"


def as_made_here() -> dict[str, str]:
    """The labels of an image that was made from the code and the lock of this tree."""
    from minimind.durable import sha256_file, tree_hash
    from tests.support.corpus import ROOT

    return {
        "org.minimind.code": tree_hash(ROOT / "minimind"),
        "org.minimind.lock": sha256_file(ROOT / "envs" / "cpu.lock"),
    }


def image(reference: str, layers: list[dict[str, bytes]], *, labels: dict[str, str] | None = None) -> str:
    """Load an image of these files into the engine here; its id. Nothing in it can run."""
    import hashlib

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:

        def add(target: tarfile.TarFile, name: str, data: bytes) -> None:
            header = tarfile.TarInfo(name)
            header.size, header.mode = len(data), 0o755
            target.addfile(header, io.BytesIO(data))

        diff_ids = []
        for files in layers:
            layer = io.BytesIO()
            with tarfile.open(fileobj=layer, mode="w") as inner:
                for name, data in files.items():
                    add(inner, name, data)
            diff_ids.append(hashlib.sha256(layer.getvalue()).hexdigest())
            add(tar, f"{diff_ids[-1]}.tar", layer.getvalue())
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "created": "2026-01-01T00:00:00Z",
                "config": {"Labels": {"made.by": OWN, **(labels or {})}},
                "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "test"} for _ in layers],
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in diff_ids]},
            }
        ).encode()
        digest = hashlib.sha256(config).hexdigest()
        manifest = [{"Config": "c.json", "RepoTags": [reference], "Layers": [f"{name}.tar" for name in diff_ids]}]
        add(tar, "c.json", config)
        add(tar, "manifest.json", json.dumps(manifest).encode())
    subprocess.run(["docker", "load", "--quiet"], input=archive.getvalue(), check=True, stdout=subprocess.DEVNULL)
    return f"sha256:{digest}"
