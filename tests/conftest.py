"""Fixtures made of real parts: an sshd of our own, and a home folder whose launch.toml points to it."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

from launch.inventory import Host, Inventory, load
from tests.support import sshd as sshd_parts
from tests.support.docker import training_image  # noqa: F401 (a fixture)
from tests.support.forker import forker  # noqa: F401 (a fixture)
from tests.support.launcher import launcher

ROOT = pathlib.Path(__file__).parent.parent

# Hundreds of short processes: where Python may keep no bytecode each would compile its imports anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    """A server shared by the tests of one worker; a test that breaks it starts its own."""
    if sshd_parts.MISSING:
        pytest.skip(sshd_parts.MISSING)
    server = sshd_parts.start(tmp_path_factory.mktemp("sshd") / "server")
    yield server
    server.stop()


@dataclasses.dataclass
class SshHome:
    """A laptop's folder and, elsewhere, the root of the host ``gpu8`` that its launch.toml names."""

    home: pathlib.Path
    root: pathlib.Path
    sshd: sshd_parts.Sshd
    environ: dict
    apart: bool = False
    """Whether each call starts an interpreter of its own: for tests that look at the process itself."""

    @property
    def inventory(self) -> Inventory:
        return load(None, cwd=self.home, environ=self.environ)

    @property
    def host(self) -> Host:
        return self.inventory.host("gpu8")

    def launch(self, *args: str, check: bool = False, **kwargs) -> subprocess.CompletedProcess:
        """Run the real command line in the home folder."""
        if not (self.apart or check or kwargs.keys() - {"timeout"}):
            return launcher().run(*args, cwd=self.home, environ=self.environ, timeout_s=kwargs.get("timeout", 120))
        return subprocess.run(
            [sys.executable, "-m", "launch", *args],
            cwd=self.home,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=kwargs.pop("timeout", 120),
            stdin=subprocess.DEVNULL,
            check=check,
            **kwargs,
        )


def make_ssh_home(folder: pathlib.Path, server: sshd_parts.Sshd, *, extra: str = "") -> SshHome:
    home, root = folder / "laptop home", folder / "far" / "root"
    home.mkdir(parents=True)
    (home / "launch.toml").write_text(
        f'[hosts.gpu8]\nssh = "{server.address}"\nroot = "{root}"\nidentity_file = "{server.user_key}"\n{extra}'
    )
    (home / "launch.known_hosts").write_text(server.known_hosts())
    config = home / "ssh_config"
    config.write_text("")
    kept = {key: value for key, value in os.environ.items() if key not in ("LAUNCH_INVENTORY", "SSH_AUTH_SOCK")}
    environ = {**kept, "LAUNCH_SSH_CONFIG": str(config), "PYTHONPATH": str(ROOT)}
    return SshHome(home, root, server, environ)


@pytest.fixture
def ssh_home(tmp_path, sshd):
    return make_ssh_home(tmp_path, sshd)
