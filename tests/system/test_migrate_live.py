"""`launch migrate` while the run trains: from and to containers, another engine, this machine, a rented host."""

import contextlib
import json

import pytest

from tests.support import corpus, ends, launching, moving, rented
from tests.support import engine as engines
from tests.support import sshd as sshd_parts
from tests.support.ends import End, make_between, make_own_image  # noqa: F401 (fixtures)
from tests.support.moving import launcher  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.soak, pytest.mark.docker, pytest.mark.sshd, pytest.mark.timeout(1800)]
FLAGS = (*moving.FLAGS, "--lr_schedule", "constant", "--epochs", "1000000", "--save_interval", "1000000")
THREADS = "import os, torch; torch.set_num_threads(os.cpu_count())"
"""As a supervisor gives one rank: another number adds up in another order."""


@contextlib.contextmanager
def end(kind, name, folder, image):
    """An end of that kind, and what it takes."""
    with contextlib.ExitStack() as stack:

        def server(options=""):
            started = sshd_parts.start(folder / f"{name}-server", options=options)
            stack.callback(started.stop)
            return started

        if kind == "local":
            yield End("local")
        elif kind == "venv":
            yield End(name, server())
        elif kind == "docker":
            yield End(name, server(), lines=ends.containers(image))
        elif kind == "another engine":
            if engines.MISSING:
                pytest.skip(engines.MISSING)
            second = stack.enter_context(engines.engine())
            yield End(name, server(f"SetEnv DOCKER_HOST={second.socket}"), lines=ends.containers(image))
            ends.remove_containers(second.docker, "name=minimind-")
        else:
            tag, why = rented.image(image)
            if not tag:
                pytest.skip(f"an image with sshd cannot be built here: {why}")
            far = stack.enter_context(rented.container(folder / f"{name}-server", tag))
            yield End(name, far, root="/root/data", lines=f'python = "{rented.PYTHON}"\n')


@pytest.mark.parametrize(
    ("kinds", "executor"),
    [
        (("docker", "venv"), "venv"),
        (("docker", "another engine"), "docker"),
        (("local", "docker"), "docker"),
        (("docker", "local"), "venv"),
        (("venv", "rented"), "venv"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value,
)
def test_a_run_that_trains_is_stopped_and_goes_on_at_the_other_end(
    kinds, executor, tmp_path, forker, between, own_image
):
    if sshd_parts.MISSING:
        pytest.skip(sshd_parts.MISSING)
    with contextlib.ExitStack() as stack:
        old, new = (
            stack.enter_context(end(kind, name, tmp_path, own_image))
            for kind, name in zip(kinds, ("old", "new"), strict=True)
        )
        hosts = stack.enter_context(between(old, new))
        hosts.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
        del hosts.environ["OMP_NUM_THREADS"]
        corpus.make(hosts.home)
        begun = hosts.launch("run", "pretrain", "--host", old.name, "--nproc", "1", "--detach", "--", *FLAGS)
        assert begun.returncode == 0, begun.stderr
        run_id = begun.stdout.strip()
        launching.wait_for(lambda: launching.steps_of(hosts.old_root / "runs" / run_id) > 20)
        dry = hosts.launch("migrate", *hosts.names, "--nproc", "1", "--json", "--dry-run")
        assert dry.returncode == 0, dry.stderr
        shipped = json.loads(dry.stdout)["steps"][1]["bytes"]
        assert (shipped > 100 << 20) == (kinds[1] == "another engine")
        done = hosts.launch("migrate", *hosts.names, "--nproc", "1", "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["run_id"], report["attempt"], report["moved"]) == (run_id, 2, [run_id])
        before = corpus.metrics(hosts.home / "runs" / run_id)[-1]["step"]
        launching.wait_for(lambda: now(hosts, new.name)["last_step"] > before + 20)
        ended = hosts.launch("stop", run_id, "--host", new.name, "--json")
        assert ended.returncode == 0 and json.loads(ended.stdout)["state"] == "STOPPED", ended.stderr
        home = hosts.launch("sync-out", "--host", new.name, "--without-weights")
        assert home.returncode == 0, home.stderr
        rows = corpus.metrics(hosts.home / "runs" / run_id)
        spec = json.loads((hosts.home / "runs" / run_id / "spec.json").read_bytes())
    assert spec["executor"] == executor and (spec["image_digest"] is not None) == (executor == "docker")
    for left in (hosts.old_root, *((hosts.home,) if new.server else ())):
        assert str(left) not in json.dumps(spec)
    folder = corpus.make(tmp_path / "whole")
    forker.start(folder, "pretrain", *FLAGS, "--max_steps", str(len(rows)), run="whole", before=THREADS)
    assert not any(forker.wait()), forker.log.read_text()
    whole = corpus.metrics(folder / "runs" / "whole")
    assert [row["step"] for row in rows] == [row["step"] for row in whole]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in whole], rel=1e-6)


def now(hosts, name):
    (row,) = json.loads(hosts.launch("ps", "--all", "--host", name, "--json").stdout)
    return row
