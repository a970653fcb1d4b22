"""The two ends of a move, each of any kind: behind an sshd, with a Docker engine, or this machine."""

import contextlib
import dataclasses
import functools
import json
import pathlib

import pytest

from tests import conftest
from tests.support import engine, launching, moving
from tests.support.docker import docker, engine_available
from tests.support.moving import RUN


@dataclasses.dataclass(frozen=True)
class End:
    """A host as launch.toml has it; without a ``server`` it is this machine, and ``root`` "." is the folder at home."""

    name: str
    server: object = None
    root: str = ""
    lines: str = launching.AS_IT_IS


def containers(image: str) -> str:
    """The lines of a host that trains in containers."""
    return f'executor = "docker"\nimage = "{image}"\n'


class Ends(moving.Hosts):
    """A home whose launch.toml names the two; a root that is not given lies in ``folder``."""

    def __init__(self, folder: pathlib.Path, launcher, old: End, new: End) -> None:
        self.launcher, self.names = launcher, (old.name, new.name)
        server = old.server or new.server
        ssh_home = conftest.make_ssh_home(folder, server)
        self.home, self.environ = ssh_home.home, {**ssh_home.environ, "OMP_NUM_THREADS": "1"}
        roots, text, known = [], "", ""
        for end, name in ((old, "old"), (new, "new")):
            root = end.root or str(folder / name / "root")
            roots.append(self.home / root)  # an absolute one stays what it is
            text += f'[hosts.{end.name}]\nroot = "{root}"\n{end.lines}\n'
            if end.server:
                text += f'ssh = "{end.server.address}"\nidentity_file = "{end.server.user_key}"\n'
                known += end.server.known_hosts()
        self.old_root, self.new_root = roots
        (self.home / "launch.toml").write_text(text)
        (self.home / "launch.known_hosts").write_text(known)

    def end_all(self) -> None:
        """Kill what runs at either end, and remove the containers of its runs."""
        for root in (self.old_root, self.new_root):
            moving.end_all(root)
            for run_dir in root.glob("runs/*") if engine_available() else ():
                remove_containers(docker, f"label=org.minimind.run_id={run_dir.name}")


def remove_containers(client, which: str) -> None:
    """Those that a filter names."""
    if found := client("ps", "--all", "--quiet", "--filter", which).stdout.split():
        client("rm", "--force", *found)


def respec(root: pathlib.Path, **changes) -> None:
    """The run's spec.json as another executor would have it."""
    path = root / "runs" / RUN / "spec.json"
    told = {**json.loads(path.read_bytes()), **changes}
    path.chmod(0o600)
    path.write_text(json.dumps(told))
    path.chmod(0o444)


def spec_of(root: pathlib.Path) -> dict:
    return json.loads((root / "runs" / RUN / "spec.json").read_bytes())


@contextlib.contextmanager
def started(*args):
    """The two ends, and nothing of them afterwards."""
    made = Ends(*args)
    try:
        yield made
    finally:
        made.end_all()


@pytest.fixture(scope="module", name="own_image")
def make_own_image(training_image):
    """The training image under a name of this worker: another checkout may make the common one anew meanwhile."""
    name = f"{engine.own('minimind-test-ends')}:cpu"
    docker("tag", training_image, name)
    yield name
    docker("rmi", name, check=False)


@pytest.fixture(name="between")
def make_between(tmp_path, launcher):
    """Makes a home with two ends."""
    return functools.partial(started, tmp_path, launcher)
