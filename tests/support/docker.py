"""Docker for tests: is there an engine, and the training image, built once however many workers ask."""

import functools
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


@functools.cache
def engine_available() -> bool:
    """Whether a docker client on PATH reaches an engine that answers."""
    if shutil.which("docker") is None:
        return False
    try:
        command = ["docker", "version", "--format", "{{.Server.Version}}"]
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def docker(*arguments: str, check: bool = True, timeout_s: float = 120, **options) -> subprocess.CompletedProcess:
    """Run the docker client."""
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL} | options
    return subprocess.run(["docker", *arguments], check=check, timeout=timeout_s, **options)


@pytest.fixture(scope="session")
def training_image() -> str:
    """The tag of the CPU image of this very tree; docker/build.py holds a lock and returns at once when it is there."""
    if not engine_available():
        pytest.skip("no Docker engine answers")
    built = subprocess.run(
        [sys.executable, "docker/build.py", "cpu"], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if built.returncode:
        pytest.fail(
            f"docker/build.py cpu: exit code {built.returncode}\n{built.stdout[-2000:]}\n{built.stderr[-2000:]}"
        )
    return "minimind-launch:cpu"


def as_me() -> list[str]:
    """Options that make a container write files as whoever runs the tests."""
    return ["--user", f"{os.getuid()}:{os.getgid()}"]
