"""`launch env` and `launch image` on real hosts: what is there, what is needed, what goes."""

import contextlib
import json
import os

import pytest

from launch.environment import virtual
from minimind.durable import sha256_file, tree_hash
from tests import conftest
from tests.support import engine as engines
from tests.support import sshd as sshd_parts
from tests.support.docker import docker

ROOT = conftest.ROOT
NAME = engines.own("minimind-test-tidy")
pytestmark = pytest.mark.sshd


def run_dir(root, run_id: str, **spec) -> None:
    folder = root / "runs" / run_id
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({"run_id": run_id, "stage": "pretrain", "executor": "venv", **spec}))


def rows(done) -> dict[str, dict]:
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_only_what_neither_this_version_nor_an_unfinished_run_needs_is_removed(ssh_home):
    now = sha256_file(virtual.locks(ROOT / "envs")[0])
    old, older, code = "a" * 64, "b" * 64, tree_hash(ROOT / "minimind")
    for value in (now, old, older):
        folder = ssh_home.root / "env" / value[:16]
        folder.mkdir(parents=True)
        (folder / ".complete").write_text("{}")
    (ssh_home.root / "env" / f"{'c' * 16}.from").mkdir()
    os.utime(ssh_home.root / "env" / f"{'c' * 16}.from", (1, 1))
    for value in (code, old):
        (ssh_home.root / "code" / value[:16]).mkdir(parents=True)
    (ssh_home.root / "weights").mkdir()
    run_dir(ssh_home.root, "20260101-000000-pretrain-abcd", lock_hash=old, code_hash=code)
    listed = rows(ssh_home.launch("env", "list", "gpu8", "--json"))
    assert listed[f"env/{now[:16]}"]["kept_for"] == ["this version"]
    assert listed[f"env/{old[:16]}"]["kept_for"] == ["20260101-000000-pretrain-abcd"]
    assert not listed[f"env/{'c' * 16}.from"]["whole"]
    before = sorted(ssh_home.root.rglob("*"))
    unneeded = {f"env/{older[:16]}", f"env/{'c' * 16}.from", f"code/{old[:16]}"}
    assert rows(ssh_home.launch("env", "prune", "gpu8", "--json")).keys() == unneeded
    assert sorted(ssh_home.root.rglob("*")) == before
    assert rows(ssh_home.launch("env", "prune", "gpu8", "--yes", "--json")).keys() == unneeded
    assert not [name for name in unneeded if (ssh_home.root / name).exists()]
    assert rows(ssh_home.launch("env", "list", "gpu8", "--json")).keys() == listed.keys() - unneeded
    assert (ssh_home.root / "weights").is_dir()


@pytest.mark.docker
@pytest.mark.skipif(bool(engines.MISSING or sshd_parts.MISSING), reason=engines.MISSING or sshd_parts.MISSING)
def test_images_of_unfinished_runs_and_named_ones_stay(tmp_path):
    with engines.engine() as far:
        server = sshd_parts.start(tmp_path / "server", options=f"SetEnv DOCKER_HOST={far.socket}")
        try:
            home = conftest.make_ssh_home(tmp_path, server, extra=f'image = "{NAME}:now"\n')
            labels = {"org.minimind.code": "x"}
            ids = {}
            for name in ("now", "run", "old", "used"):
                files = {"f": name.encode(), "end": engines.ENDS_AT_ONCE}
                ids[name] = engines.image(f"{NAME}:{name}", [files], labels=labels)
            archive = docker("save", *(f"{NAME}:{name}" for name in ids), text=False).stdout
            far.docker("load", input=archive, text=False, stdin=None)
            docker("rmi", "--force", *(f"{NAME}:{name}" for name in ids))
            run_dir(home.root, "20260101-000000-pretrain-abcd", image_digest=ids["run"], executor="docker")
            ran = ("--network", "none", "--label", "org.minimind.run_id=20260101-000000-dpo-0000")
            far.docker("run", *ran, f"{NAME}:old", "/end")  # a run that succeeded leaves its container
            far.docker("tag", f"{NAME}:old", f"{NAME}:another-name")
            far.docker("run", "--network", "none", "--name", "mine", f"{NAME}:used", "/end")  # somebody's own
            listed = rows(home.launch("image", "list", "gpu8", "--json"))
            assert listed.keys() == set(ids.values()) and listed[ids["used"]]["kept_for"] == ["container mine"]
            assert rows(home.launch("image", "prune", "gpu8", "--json")).keys() == {ids["old"]}
            assert far.image_id(f"{NAME}:old") == ids["old"]
            done = home.launch("image", "prune", "gpu8", "--yes", "--json")
            assert rows(done).keys() == {ids["old"]}, done.stderr
            left = {name: far.image_id(f"{NAME}:{name}") for name in ids}
            assert left == ids | {"old": None} and far.image_id(ids["old"]) is None
        finally:
            server.stop()


@pytest.mark.docker
@pytest.mark.skipif(bool(engines.MISSING or sshd_parts.MISSING), reason=engines.MISSING or sshd_parts.MISSING)
def test_packed_layers_of_images_that_are_gone_and_wheels_of_older_locks_leave_this_machine(tmp_path, ssh_home):
    from launch.environment.spool import Spool
    from launch.inventory import Host
    from launch.transport.local import LocalTransport

    cache = tmp_path / "cache"
    ssh_home.environ["XDG_CACHE_HOME"] = str(cache)
    folder = cache / "minimind-launch" / "layers"
    labels = {"org.minimind.code": "x"}
    shared = {"same": b"s" * 5000}
    ids = {n: engines.image(f"{NAME}:{n}", [shared, {"f": n.encode() * 9000}], labels=labels) for n in ("here", "gone")}
    with engines.engine() as mine, contextlib.ExitStack() as stack:
        stack.callback(docker, "rmi", "--force", *ids.values(), check=False)
        here = LocalTransport(Host(name="local", ssh=None, root="/"))
        layers = {n: json.loads(docker("image", "inspect", i).stdout)[0]["RootFS"]["Layers"] for n, i in ids.items()}
        for name, image_id in ids.items():
            list(Spool(folder).pack(here, image_id, dict.fromkeys(layers[name]), kind="raw", whole=True))
        mine.docker("load", input=docker("save", f"{NAME}:here", text=False).stdout, text=False, stdin=None)
        mine.docker("tag", ids["here"], "minimind-launch:cpu")
        ssh_home.environ["DOCKER_HOST"] = mine.socket
        left = folder / f"{'1' * 64}.raw"
        left.write_bytes(b"of a killed one")
        os.utime(left, (1, 1))
        (folder / f"{'2' * 64}.raw").write_bytes(b"being packed now")
        locks = {"now": sha256_file(virtual.locks(ROOT / "envs")[0])[:16], "old": "a" * 16}
        for name in locks.values():
            (cache / "minimind-launch" / "wheels" / name).mkdir(parents=True)
        packed = {row["name"]: row for row in rows(ssh_home.launch("image", "prune", "--json")).values()}
        assert packed.keys() == {layers["gone"][1], "1 files"} and left.exists()
        assert rows(ssh_home.launch("image", "prune", "--yes", "--json")).keys() == packed.keys()
        spool = Spool(folder)
        assert all(spool.layer(layer, "raw") for layer in layers["here"]) and not spool.layer(layers["gone"][1], "raw")
        assert not left.exists() and (folder / f"{'2' * 64}.raw").exists()
        assert len(list(folder.glob("*.raw"))) == 3, "two chunks of what is here, one that is being packed"
        assert rows(ssh_home.launch("env", "prune", "--yes", "--json")).keys() >= {locks["old"]}
        assert [path.name for path in (cache / "minimind-launch" / "wheels").iterdir()] == [locks["now"]]


@pytest.fixture
def drifted(training_image):
    """The training image with one package gone, one of another version and one too many."""
    spoil = (
        "cd /opt/minimind/lib/python3*/site-packages && rm -rf h11-*.dist-info && mkdir odd-1.dist-info && "
        "printf 'Metadata-Version: 2.1\\nName: odd\\nVersion: 1\\n' >odd-1.dist-info/METADATA && "
        "sed -i 's/^Version: .*/Version: 0.1/' idna-*.dist-info/METADATA"
    )
    container = docker(
        "run", "--detach", "--user", "0", "--entrypoint", "sh", training_image, "-c", spoil
    ).stdout.strip()
    docker("wait", container)
    docker("commit", container, f"{NAME}:cpu")
    docker("rm", container)
    yield f"{NAME}:cpu"
    docker("rmi", "--force", f"{NAME}:cpu")


@pytest.mark.docker
def test_drift_in_an_image_is_named_and_another_image_is_not_verified(tmp_path, sshd, drifted, training_image):
    home = conftest.make_ssh_home(tmp_path, sshd, extra=f'image = "{drifted}"\n')
    done = home.launch("env", "check", "gpu8", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 5 and told["lock"] == "cpu.lock"
    assert [(d["package"], d["why"]) for d in told["drifts"]] == [
        ("h11", "missing"),
        ("idna", "another version"),
        ("odd", "not in the lock"),
    ]
    bill = ROOT / "build" / "image" / "cpu" / "sbom.cdx.json"
    other = home.launch("image", "verify", "gpu8", "--sbom", str(bill), "--json")
    what = [difference["what"] for difference in json.loads(other.stdout)["differences"]]
    assert other.returncode == 8 and what == ["image id", "layer 3"]

    text = (home.home / "launch.toml").read_text().replace(drifted, training_image)
    (home.home / "launch.toml").write_text(text)
    same = home.launch("image", "verify", "gpu8", "--sbom", str(bill))
    assert same.returncode == 0 and "is the same" in same.stderr, same.stdout + same.stderr
    right = home.launch("env", "check", "gpu8")
    assert right.returncode == 0 and "all as cpu.lock says" in right.stderr, right.stdout


def test_an_interpreter_that_launch_toml_names_is_held_against_the_lock(tmp_path, sshd):
    import sys

    home = conftest.make_ssh_home(tmp_path, sshd, extra=f'executor = "venv"\npython = "{sys.executable}"\n')
    done = home.launch("env", "check", "gpu8")
    assert done.returncode == 0 and "all as cpu.lock says" in done.stderr, done.stdout + done.stderr


def test_a_host_without_an_environment_is_told_how_to_get_one(tmp_path, sshd):
    home = conftest.make_ssh_home(tmp_path, sshd, extra='executor = "venv"\n')
    done = home.launch("env", "check", "gpu8")
    assert done.returncode == 5 and "launch run STAGE --host gpu8" in done.stderr
