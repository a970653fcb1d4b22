"""`launch run` with the docker executor, by ssh: two ranks in a container without a network, pushed weights, an end."""

import json
import os

import pytest

from tests.support import launching
from tests.support.docker import docker
from tests.support.launching import LONG, TRAIN, log_of, rows, run_dirs, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.sshd]


@pytest.fixture
def home(tmp_path, sshd, training_image):
    made = launching.make_home(tmp_path, sshd, extra=f'image = "{training_image}"\n')
    yield made
    for run_dir in run_dirs(made):
        names = docker("ps", "--all", "--quiet", "--filter", f"label=org.minimind.run_id={run_dir.name}").stdout
        if names.split():
            docker("rm", "--force", *names.split())


def test_auto_picks_docker_and_two_ranks_train_without_a_network(home):
    done = home.launch(
        "run", "pretrain", "--host", "gpu8", "--nproc", "2", "--", *TRAIN, "--max_steps", "1", timeout=200
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = run_dirs(home)
    assert done.stdout == log_of(run_dir).read_text()
    (row,) = rows(home)
    assert (row["state"], row["executor"], row["nproc"]) == ("SUCCEEDED", "docker", 2)
    weights = home.root / "out" / "pretrain_64.pth"
    assert weights.stat().st_uid == os.getuid()
    handle = json.loads((run_dir / "handle.json").read_bytes())
    told = json.loads(docker("inspect", handle["container"]).stdout)[0]
    assert told["HostConfig"]["NetworkMode"] == "none" and told["HostConfig"]["CapDrop"] == ["ALL"]
    assert told["Config"]["User"] == f"{os.getuid()}:{os.getgid()}"
    assert told["Image"] == json.loads((run_dir / "spec.json").read_bytes())["image_digest"]


def test_a_container_is_stopped_with_a_save_and_resumed(home):
    started = home.launch("run", "pretrain", "--host", "gpu8", "--detach", "--", *LONG, timeout=200)
    assert started.returncode == 0, started.stderr
    run_dir = home.root / "runs" / started.stdout.strip()
    wait_for(lambda: launching.steps_of(run_dir) >= 1)
    stopped = home.launch("stop", "last", "--json", timeout=200)
    assert json.loads(stopped.stdout)["state"] == "STOPPED", stopped.stderr
    resumed = home.launch("resume", "last", "--detach", "--json", timeout=200)
    assert resumed.returncode == 0, resumed.stderr
    step = json.loads(stopped.stdout)["last_step"]
    wait_for(lambda: launching.steps_of(run_dir) > step)
    assert [(row["state"], row["attempt"]) for row in rows(home)] == [("RUNNING", 2)]
    assert home.launch("stop", "--now", "last").returncode == 0
    assert [row["state"] for row in rows(home)] == ["STOPPED"]


def test_an_image_of_other_code_is_no_image(home):
    text = (home.home / "launch.toml").read_text()
    (home.home / "launch.toml").write_text(text.replace("minimind-launch:cpu", "minimind-launch:nowhere"))
    done = home.launch("run", "pretrain", "--host", "gpu8", "--", *TRAIN)
    assert done.returncode == 5 and "make image" in done.stderr
    assert not home.root.exists()
