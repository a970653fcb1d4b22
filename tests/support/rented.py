"""A rented GPU host as such hosts are: a container with sshd, torch and no Docker inside."""

import contextlib
import functools
import pathlib
import subprocess
import time
import uuid

from tests.support.docker import docker
from tests.support.sshd import Sshd, make_key

DOCKERFILE = """
FROM {image}
USER root
RUN apt-get update && apt-get install --yes --no-install-recommends openssh-server && mkdir -p /run/sshd
ENTRYPOINT []
"""
PYTHON = "/opt/minimind/bin/python"


@functools.cache
def image(training_image: str) -> tuple[str, str]:
    """The tag of an image with sshd on top of the training image, or "" and why there is none."""
    tag = "minimind-test-rented:latest"
    text = DOCKERFILE.format(image=training_image)
    built = docker("build", "--network", "host", "--tag", tag, "-", input=text, stdin=None, check=False, timeout_s=280)
    return (tag, "") if built.returncode == 0 else ("", (built.stderr.strip().splitlines() or ["it said nothing"])[-1])


@contextlib.contextmanager
def container(folder: pathlib.Path, tag: str):
    """Run one; gives it as a server like any other. Its root is /root/data, on no disk of ours."""
    folder.mkdir(parents=True)
    user_key, host_key = make_key(folder / "user_key"), make_key(folder / "host_ed25519")
    name = f"minimind-rented-{uuid.uuid4().hex[:8]}"
    serve = "/usr/sbin/sshd -D -e -o UsePAM=no -o PermitRootLogin=yes -o StrictModes=no -h /etc/ssh/key"
    script = (
        'cat >/etc/ssh/key && chmod 600 /etc/ssh/key && mkdir -p /root/.ssh && echo "$1" >/root/.ssh/authorized_keys'
    )
    command = ["sh", "-c", f"{script} && touch /ready && exec {serve}", "sh", user_key.with_suffix(".pub").read_text()]
    options = ("--interactive", "--user", "0:0", "--publish", "127.0.0.1::22", "--name", name)
    with open(host_key) as key:
        process = subprocess.Popen(
            ["docker", "run", "--rm", *options, tag, *command], stdin=key, stderr=subprocess.DEVNULL
        )
    try:
        port = _port(name)
        yield _Rented(folder, port, user_key, {"ed25519": host_key}, process)
    finally:
        docker("rm", "--force", name, check=False)
        process.wait(30)


class _Rented(Sshd):
    @property
    def address(self) -> str:
        return f"root@127.0.0.1:{self.port}"


def _port(name: str) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        told = docker("port", name, "22/tcp", check=False).stdout.strip()
        if told and docker("exec", name, "test", "-e", "/ready", check=False).returncode == 0:
            return int(told.splitlines()[0].rpartition(":")[2])
        time.sleep(0.1)
    raise RuntimeError(f"{name} did not come up")
