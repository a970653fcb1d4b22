"""`launch run` with the docker executor, by ssh: two ranks in a container without a network, pushed weights, an end."""

import hashlib
import json
import os
import sys

import pytest
import torch

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
    assert told["HostConfig"]["SecurityOpt"] == ["no-new-privileges"] and told["HostConfig"]["ShmSize"] == 2 << 30
    assert told["HostConfig"]["LogConfig"] == {"Type": "json-file", "Config": {"max-file": "2", "max-size": "10m"}}
    assert told["HostConfig"]["Privileged"] is False and told["HostConfig"]["RestartPolicy"]["Name"] in ("", "no")
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in [home.root, *home.root.rglob("*")]}
    assert owners == {(os.getuid(), os.getgid())}
    assert told["Image"] == json.loads((run_dir / "spec.json").read_bytes())["image_digest"]


def test_a_container_is_stopped_with_a_save_and_resumed(home):
    started = home.launch("run", "pretrain", "--host", "gpu8", "--detach", "--", *LONG, timeout=200)
    assert started.returncode == 0, started.stderr
    run_dir = home.root / "runs" / started.stdout.strip()
    wait_for(lambda: launching.steps_of(run_dir) >= 1)
    stopped = home.launch("stop", "last", "--json", timeout=200)
    assert json.loads(stopped.stdout)["state"] == "STOPPED", stopped.stderr
    label = f"label=org.minimind.run_id={run_dir.name}"
    wait_for(lambda: docker("ps", "--quiet", "--filter", label).stdout == "", timeout_s=10)
    resumed = home.launch("resume", "last", "--detach", "--json", timeout=200)
    assert resumed.returncode == 0, resumed.stderr
    step = json.loads(stopped.stdout)["last_step"]
    wait_for(lambda: launching.steps_of(run_dir) > step)
    assert [(row["state"], row["attempt"]) for row in rows(home)] == [("RUNNING", 2)]
    assert home.launch("stop", "--now", "last").returncode == 0
    assert [row["state"] for row in rows(home)] == ["STOPPED"]


def test_a_container_and_a_virtual_environment_train_the_same_bits(home):
    toml = home.home / "launch.toml"
    bare = toml.read_text().replace("[hosts.gpu8]", "[hosts.bare]").replace(str(home.root), f"{home.root}-bare")
    _, _, table = bare.partition("[hosts.bare]")
    table = "\n".join(line for line in table.splitlines() if not line.startswith(("image", "executor", "python")))
    extra = f'executor = "venv"\npython = "{sys.executable}"\n'
    toml.write_text(f"{toml.read_text()}\n[hosts.bare]\n{table.strip()}\n{extra}")
    runs = {}
    for host, root in (("gpu8", home.root), ("bare", home.root.with_name(f"{home.root.name}-bare"))):
        steps = ("--batch_size", "4", "--accumulation_steps", "1", "--max_steps", "4", "--seed", "11")
        done = home.launch("run", "pretrain", "--host", host, "--nproc", "1", "--", *TRAIN, *steps, timeout=200)
        assert done.returncode == 0, done.stderr
        (run_dir,) = (root / "runs").iterdir()
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        kept = [(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in lines]
        weights = torch.load(root / "out" / "pretrain_64.pth", weights_only=True)
        bits = {
            name: hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
            for name, tensor in weights.items()
        }
        runs[json.loads((run_dir / "spec.json").read_bytes())["executor"]] = kept, bits
    assert len(runs["docker"][0]) == 4 and runs["docker"][1]
    assert runs["docker"] == runs["venv"]


def test_an_image_of_other_code_is_no_image(home):
    text = (home.home / "launch.toml").read_text()
    (home.home / "launch.toml").write_text(text.replace("minimind-launch:cpu", "minimind-launch:nowhere"))
    done = home.launch("run", "pretrain", "--host", "gpu8", "--", *TRAIN)
    assert done.returncode == 5 and "make image" in done.stderr
    assert not home.root.exists()
