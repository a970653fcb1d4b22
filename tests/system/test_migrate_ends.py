"""`launch migrate` between ends of other kinds: hosts that train in containers, and this machine."""

import dataclasses
import json

import pytest

from launch.errors import Exit, LaunchError
from launch.migrate.survey import refuse_without_room
from tests.support import corpus, ends, launching, moving
from tests.support import engine as engines
from tests.support import sshd as sshd_parts
from tests.support.docker import docker
from tests.support.ends import End, make_between, make_own_image  # noqa: F401 (fixtures)
from tests.support.moving import RUN, contents, ended, launcher, two  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.sshd, pytest.mark.skipif(bool(sshd_parts.MISSING), reason=sshd_parts.MISSING or "-")]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, forker):
    """A root with a stopped run of one rank, to be copied; and the losses of the run that nobody stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    moving.stopped_run(folder / "root", forker, ranks=1)
    return folder / "root", moving.uninterrupted(folder / "whole", forker, ranks=1)


def command(hosts, *more):
    return ("migrate", *hosts.names, "--nproc", "1", "--json", *more)


def moved(hosts, whole):
    """Move to the end: the run is on the target, its losses are those of a run that was never moved. The report."""
    done = hosts.launch(*command(hosts))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["run_id"], report["attempt"], report["moved"]) == (RUN, 2, [RUN])
    ended(hosts.run_dir, 2)
    rows = corpus.metrics(hosts.run_dir)
    assert [row["step"] for row in rows] == [row["step"] for row in whole]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in whole], rel=1e-6)
    spec = ends.spec_of(hosts.new_root)
    assert f"{hosts.old_root}/" not in json.dumps(spec) and str(hosts.new_root) in json.dumps(spec)
    assert not (hosts.new_root / ".migrate").exists()
    return report


def image_id(reference):
    return docker("image", "inspect", "--format", "{{.Id}}", reference).stdout.strip()


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_a_run_moves_into_a_container_though_its_launcher_is_killed_in_the_trial_and_as_the_container_starts(
    two,  # noqa: F811
    stopped,
    between,
    own_image,
):
    old, new = End("old", two[0]), End("new", two[1], lines=ends.containers(own_image))
    with between(old, new) as hosts:
        moving.copy_root(stopped[0], hosts.old_root)
        before = contents(hosts.old_root)
        for where in ("in:smoke:8", "in:continue:7"):
            killed = hosts.launch(*command(hosts), where=where)
            assert killed.returncode == -9, killed.stderr
        report = moved(hosts, stopped[1])
        spec = ends.spec_of(hosts.new_root)
        assert (spec["executor"], spec["image_digest"]) == ("docker", image_id(own_image))
        assert report["environment"]["image"] == spec["image_digest"]
        assert report["before"]["samples_per_step"] == report["after"]["samples_per_step"] == 4
        label = "label=org.minimind.run_id"
        left = docker("ps", "--all", "--filter", f"{label}={RUN}", "--format", "{{.Names}}").stdout.split()
        assert left == [f"minimind-{RUN}-a2"]
        trials = docker("ps", "--all", "--filter", "name=minimind-", "--format", "{{.Names}} {{.Mounts}}").stdout
        assert [line for line in trials.splitlines() if str(hosts.new_root) in line and RUN not in line] == []
        assert contents(hosts.old_root) == before


@pytest.mark.docker
def test_a_dry_run_from_container_to_container_counts_no_image_that_is_there_and_makes_no_container(
    two,  # noqa: F811
    stopped,
    between,
    own_image,
):
    lines = ends.containers(own_image)
    with between(End("old", two[0], lines=lines), End("new", two[1], lines=lines)) as hosts:
        moving.copy_root(stopped[0], hosts.old_root)
        ends.respec(hosts.old_root, executor="docker", image_digest=image_id(own_image))
        before = launching.tree(hosts.home, hosts.old_root, hosts.new_root)
        dry = hosts.launch(*command(hosts), "--dry-run")
        assert dry.returncode == 0, dry.stderr
        plan = json.loads(dry.stdout)
        assert "docker: it is there" in {step["what"] for step in plan["steps"]}
        assert plan["moved"] == [RUN] and plan["send_bytes"] < 10 << 20
        assert launching.tree(hosts.home, hosts.old_root, hosts.new_root) == before


@pytest.mark.docker
@pytest.mark.skipif(bool(engines.MISSING), reason=engines.MISSING or "-")
def test_a_dry_run_counts_the_layers_that_an_engine_lacks(two, stopped, between, own_image, tmp_path):  # noqa: F811
    with engines.engine() as second:
        server = sshd_parts.start(tmp_path / "server", options=f"SetEnv DOCKER_HOST={second.socket}")
        try:
            with between(End("old", two[0]), End("new", server, lines=ends.containers(own_image))) as hosts:
                moving.copy_root(stopped[0], hosts.old_root)
                dry = hosts.launch(*command(hosts), "--dry-run")
        finally:
            server.stop()
    assert dry.returncode == 0, dry.stderr
    plan = json.loads(dry.stdout)
    shipped = next(step["bytes"] for step in plan["steps"] if step["name"] == "environment")
    assert 100 << 20 < shipped < plan["send_bytes"] and plan["before"]["nproc"] == 1


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_run_of_this_machine_whose_root_is_the_home_folder_moves_and_nothing_here_is_copied(two, stopped, between):  # noqa: F811
    with between(End("local", root="."), End("new", two[1])) as hosts:
        moving.copy_root(stopped[0], hosts.old_root)
        before = launching.tree(hosts.home)
        dry = hosts.launch(*command(hosts), "--dry-run")
        assert dry.returncode == 0, dry.stderr
        assert json.loads(dry.stdout)["home_bytes"] == 0 and launching.tree(hosts.home) == before
        killed = hosts.launch(*command(hosts), where="in:send:3")
        assert killed.returncode == -9, killed.stderr
        report = moved(hosts, stopped[1])
        assert report["fetched_bytes"] == 0 and report["release"] is None
        after = {name: found for name, found in launching.tree(hosts.home).items() if "/.migrate" not in name}
        del before[str(hosts.home)], after[str(hosts.home)]
        assert after == before


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_run_moves_home_into_the_root_of_this_machine(two, stopped, between):  # noqa: F811
    with between(End("old", two[0]), End("local")) as hosts:
        moving.copy_root(stopped[0], hosts.old_root)
        dry = hosts.launch(*command(hosts), "--dry-run")
        assert dry.returncode == 0, dry.stderr
        killed = hosts.launch(*command(hosts), where="before:continue")
        assert killed.returncode == -9, killed.stderr
        moved(hosts, stopped[1])
        ready = hosts.launch("release-check", "old")
        assert ready.returncode == 0, ready.stderr


def test_the_folder_of_the_copies_is_no_root_to_move_to(two, stopped, between):  # noqa: F811
    with between(End("old", two[0]), End("local", root=".")) as hosts:
        moving.copy_root(stopped[0], hosts.old_root)
        for more in ((), ("--dry-run",)):
            refused = hosts.launch(*command(hosts), *more)
            assert refused.returncode == Exit.REFUSED and 'root = "local"' in refused.stderr, refused.stderr
        assert not (hosts.home / "runs").exists()


def test_what_comes_home_is_counted_with_what_goes_on_there_where_both_are_one_disk(two, stopped, between):  # noqa: F811
    with between(End("old", two[0]), End("local")) as hosts:
        moving.copy_root(stopped[0], hosts.old_root)
        with moving.in_process(hosts) as (move, found):
            least = found.room_bytes + found.home_bytes + found.data_home_bytes
            assert least > found.room_bytes
            refuse_without_room(move, freed(found, least))
            with pytest.raises(LaunchError, match="local has"):
                refuse_without_room(move, freed(found, least - 1))


def freed(found, free_bytes):
    return dataclasses.replace(found, facts=dataclasses.replace(found.facts, free_bytes=free_bytes))
