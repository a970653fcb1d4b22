"""One trainer, one seed, one machine: a container and an environment of the same lock learn the same, bit for bit."""

import json
import sys

import pytest

from tests.support import launching
from tests.support.docker import docker
from tests.support.launching import TRAIN, run_dirs

pytestmark = [pytest.mark.docker, pytest.mark.sshd]


def losses(folder, server, extra: str) -> list[tuple[str, str]]:
    home = launching.make_home(folder, server, extra=extra)
    done = home.launch(
        "run", "pretrain", "--host", "gpu8", "--nproc", "1", "--", *TRAIN, "--max_steps", "3", timeout=200
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = run_dirs(home)
    names = docker("ps", "--all", "--quiet", "--filter", f"label=org.minimind.run_id={run_dir.name}").stdout.split()
    if names:
        docker("rm", "--force", *names)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"].hex(), row["grad_norm"].hex()) for row in rows]


def test_losses_and_gradients_are_the_same_in_a_container_and_beside_it(tmp_path, sshd, training_image):
    inside = losses(tmp_path / "docker", sshd, f'executor = "docker"\nimage = "{training_image}"\n')
    beside = losses(tmp_path / "venv", sshd, f'executor = "venv"\npython = "{sys.executable}"\n')
    assert len(inside) == 3 and inside == beside
