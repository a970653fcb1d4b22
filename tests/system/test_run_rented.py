"""A rented host is a container without Docker: auto picks venv there, and all comes over one ssh port."""

import pytest

from tests import conftest
from tests.support import corpus, rented
from tests.support.launching import TRAIN

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


def test_auto_picks_venv_in_a_container_that_runs_sshd_and_two_ranks_train_there(tmp_path, training_image):
    tag, why = rented.image(training_image)
    if not tag:
        pytest.skip(f"an image with sshd cannot be built here: {why}")
    with rented.container(tmp_path / "server", tag) as server:
        home = conftest.make_ssh_home(tmp_path, server, extra=f'python = "{rented.PYTHON}"\n')
        corpus.make(home.home)
        toml = home.home / "launch.toml"
        toml.write_text(toml.read_text().replace(f'root = "{home.root}"', 'root = "~/data"'))
        done = home.launch(
            *("run", "pretrain", "--host", "gpu8", "--nproc", "2", "--", *TRAIN, "--max_steps", "1"), timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert "2 rank(s), venv" in done.stderr
        assert "wrote /root/data/out/pretrain_64.pth" in done.stdout
        shown = home.launch("ps")
        assert "SUCCEEDED" in shown.stdout
