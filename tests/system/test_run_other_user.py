"""`launch run` with the docker executor for an ssh user that is not root: whatever the run writes is his."""

import grp
import json
import os
import pathlib
import shutil
import tempfile

import pytest

from tests.support import launching
from tests.support import sshd as sshd_parts
from tests.support.docker import docker
from tests.support.launching import TRAIN, rows, run_dirs

NAME, ID = "mmother", 4567
SOCKET = pathlib.Path("/var/run/docker.sock")
BIND = 'mount --bind "$1" /etc/passwd && mount --bind "$2" /etc/group && shift 2 && exec "$@"'
pytestmark = [
    pytest.mark.docker,
    pytest.mark.sshd,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can let in another user"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare"),
    pytest.mark.skipif(not SOCKET.exists(), reason="needs the engine's socket in its usual place"),
]


@pytest.fixture
def home(training_image):
    """A host whose user is known to its sshd alone: passwd and group are others in that mount namespace."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="mmother"))
    folder.chmod(0o755)
    users, groups, far = folder / "passwd", folder / "group", folder / "far"
    users.write_text(pathlib.Path("/etc/passwd").read_text() + f"{NAME}:*:{ID}:{ID}::{folder}/home:/bin/sh\n")
    may_use_engine = grp.getgrgid(SOCKET.stat().st_gid).gr_name
    lines = pathlib.Path("/etc/group").read_text().splitlines()
    added = [f"{line.rstrip(',')}{'' if line.endswith(':') else ','}{NAME}" for line in lines]
    both = zip(lines, added, strict=True)
    chosen = [new if old.startswith(f"{may_use_engine}:") else old for old, new in both]
    groups.write_text("\n".join([*chosen, f"{NAME}:x:{ID}:", ""]))
    for path in (folder / "home", far):
        path.mkdir()
        os.chown(path, ID, ID)
    within = ("unshare", "--mount", "sh", "-c", BIND, "sh", str(users), str(groups))
    server = sshd_parts.start(folder / "server", within=within)
    server.user = NAME
    server.folder.chmod(0o755)  # he reads authorized_keys there
    made = launching.make_home(folder, server, extra=f'image = "{training_image}"\n')
    yield made
    server.stop()
    for run_dir in run_dirs(made):
        names = docker("ps", "--all", "--quiet", "--filter", f"label=org.minimind.run_id={run_dir.name}").stdout
        if names.split():
            docker("rm", "--force", *names.split())
    shutil.rmtree(folder)


def test_every_file_of_a_run_belongs_to_the_user_of_ssh(home):
    done = home.launch("run", "pretrain", "--host", "gpu8", "--", *TRAIN, "--max_steps", "2", timeout=200)
    assert done.returncode == 0, done.stderr
    (row,) = rows(home)
    assert (row["state"], row["executor"]) == ("SUCCEEDED", "docker")
    (run_dir,) = run_dirs(home)
    handle = json.loads((run_dir / "handle.json").read_bytes())
    told = json.loads(docker("inspect", handle["container"]).stdout)[0]
    assert told["Config"]["User"] == f"{ID}:{ID}" and told["HostConfig"]["CapDrop"] == ["ALL"]
    assert (home.root / "out" / "pretrain_64.pth").exists()
    paths = [home.root.parent, *home.root.parent.rglob("*")]
    others = {str(path): (path.lstat().st_uid, path.lstat().st_gid) for path in paths}
    assert len(others) > 10 and not {path: owner for path, owner in others.items() if owner != (ID, ID)}
