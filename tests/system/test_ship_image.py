"""`launch ship-image` to a second real engine: only what it lacks travels, cut shipments go on, lies are told apart."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import random
import secrets
import shutil
import signal
import subprocess

import pytest

from launch.environment.engine import parse_image
from launch.errors import Exit, LaunchError
from tests import conftest
from tests.support import corpus, launching, sshd
from tests.support import engine as engines
from tests.support.docker import docker, engine_available
from tests.support.wire import Wire

pytestmark = [pytest.mark.docker, pytest.mark.sshd]
NAME = engines.own("minimind-test-ship")
BASE = {"etc/base": secrets.token_bytes(6 << 20), "etc/text": b"the same words again and again\n" * 100_000}
PROTOCOL_BYTES = 256 << 10
"""At most what passes the wire before the first piece, and what is still on its way into a file."""
BASE_BYTES = sum(map(len, BASE.values()))


@pytest.fixture(scope="module")
def far():
    if engines.MISSING or sshd.MISSING:
        pytest.skip(engines.MISSING or sshd.MISSING)
    if not engine_available():
        pytest.skip("no Docker engine answers")
    with engines.engine() as started:
        yield started


WRAPPER = """#!/bin/sh
# the host's docker: does as it is told by the file `fault`, once
if [ "$1" = load ] && [ -e "$0.fault" ]; then . "$0.fault"; fi
exec {docker} "$@"
"""


@dataclasses.dataclass
class Faults:
    """Makes the next `docker load` on the host go wrong."""

    script: pathlib.Path

    def next_load(self, shell: str) -> None:
        self.script.with_name("docker.fault").write_text(f'rm -f "$0.fault"\n{shell}\n')


def make_wrapper(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "docker"
    script.write_text(WRAPPER.format(docker=shutil.which("docker")))
    script.chmod(0o755)
    return script


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(make_wrapper(tmp_path_factory.mktemp("wrapper")))


@pytest.fixture(scope="module")
def server(far, faults, tmp_path_factory):
    path = f"{faults.script.parent}:{os.environ['PATH']}"
    options = f'SetEnv DOCKER_HOST={far.socket} "PATH={path}"'
    started = sshd.start(tmp_path_factory.mktemp("far") / "server", options=options)
    yield started
    started.stop()


@pytest.fixture
def images():
    """Two images that share their base; the second has other code."""
    first = engines.image(f"{NAME}:1", [BASE, {"code": b"one" * 1000}])
    second = engines.image(f"{NAME}:2", [BASE, {"code": b"two" * 1000}])
    yield first, second
    docker("rmi", "--force", f"{NAME}:1", f"{NAME}:2", check=False)


@pytest.fixture
def home(tmp_path, server, far):
    far.empty()
    made = conftest.make_ssh_home(tmp_path, server)
    made.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    return made


def ship(home, reference: str, *more: str):
    return home.launch("ship-image", "gpu8", "--image", reference, "--json", *more)


def test_the_second_image_costs_only_its_own_layer(home, far, images):
    asked = ship(home, f"{NAME}:1", "--dry-run")
    assert asked.returncode == 0 and "gpu8 has 0 of its 2 layers, 9.4 MB before packing" in asked.stderr, asked.stderr
    assert far.image_id(f"{NAME}:1") is None and not home.root.exists()
    first = ship(home, f"{NAME}:1")
    assert first.returncode == 0, first.stderr
    (row,) = json.loads(first.stdout)
    assert (row["layers"], row["layers_sent"]) == (2, 2) and row["sent_bytes"] > 6 << 20
    assert far.image_id(f"{NAME}:1") == images[0]
    second = ship(home, f"{NAME}:2")
    (row,) = json.loads(second.stdout)
    assert row["layers_sent"] == 1 and row["sent_bytes"] < BASE_BYTES / 100
    assert far.image_id(f"{NAME}:2") == images[1]
    again = ship(home, f"{NAME}:2")
    assert again.returncode == 0 and json.loads(again.stdout)[0]["sent_bytes"] == 0
    assert [path.name for path in (home.root / "images").iterdir()] == ["lock"]


def give_first(far) -> None:
    """The first image is on the host already."""
    far.docker("load", "--quiet", input=docker("save", f"{NAME}:1", text=False).stdout, text=False, stdin=None)


def start_behind(wire: Wire, home, *args: str) -> subprocess.Popen:
    """Run launch with the host's port replaced by the wire's."""
    known, config = home.home / "launch.known_hosts", home.home / "launch.toml"
    before = known.read_text(), config.read_text()
    known.write_text(before[0] + before[0].replace(f":{home.sshd.port}", f":{wire.port}"))
    config.write_text(before[1].replace(f":{home.sshd.port}", f":{wire.port}"))
    process = launching.start(home, *args)
    assert wire.stopped.wait(60), process.communicate()
    known.write_text(before[0]), config.write_text(before[1])
    return process


def arrived_bytes(home) -> int:
    """What lies on the host of the pieces, once nothing comes any more."""
    launching.wait_for(lambda: not home.sshd.sessions())
    return stored_bytes(home)


def stored_bytes(home) -> int:
    return sum(path.stat().st_size for path in (home.root / "images").glob("*"))


def cut_and_repeat(home, far, image_id: str, *, offset: int, side: str) -> None:
    wire = Wire(home.sshd.port, stop_after_bytes=offset, count_client=True)
    process = start_behind(wire, home, "ship-image", "gpu8", "--image", f"{NAME}:1")
    launching.wait_for(lambda: stored_bytes(home) >= offset - PROTOCOL_BYTES)  # what passed the wire is written down
    if side == "laptop":
        os.killpg(process.pid, signal.SIGKILL)
        wire.cut()
    else:
        home.sshd.cut()
        wire.cut()
        assert process.wait(60) == 4
    process.communicate()
    assert far.image_id(f"{NAME}:1") is None
    there = arrived_bytes(home)
    done = ship(home, f"{NAME}:1")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["resumed_bytes"] == there and there >= offset - PROTOCOL_BYTES
    assert far.image_id(f"{NAME}:1") == image_id


@pytest.mark.parametrize("side", ["laptop", pytest.param("host", marks=pytest.mark.soak)])
def test_a_killed_shipment_goes_on_where_it_ended(home, far, images, side):
    cut_and_repeat(home, far, images[0], offset=random.Random(side).randrange(1 << 20, 6 << 20), side=side)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_killed_anywhere_it_goes_on(home, far, images, seed):
    chance = random.Random(seed)
    cut_and_repeat(
        home, far, images[0], offset=chance.randrange(30_000, 6 << 20), side=chance.choice(["laptop", "host"])
    )


def test_an_engine_that_dies_while_it_loads_is_told_and_nothing_is_sent_twice(home, far, images, faults):
    die = f'{{ head -c 3000000; sleep 0.2; kill -9 $(cat {far.folder}/pid); }} | {shutil.which("docker")} "$@"; exit'
    faults.next_load(die)
    done = ship(home, f"{NAME}:1")
    assert done.returncode == 5 and "engine of gpu8 does not answer" in done.stderr, done.stderr
    far.stop()
    far.start()
    assert far.image_id(f"{NAME}:1") is None
    for piece in (home.root / "images").glob("*.*"):  # as if it had died just before it gave the last names
        piece.rename(f"{piece}.part")
    again = ship(home, f"{NAME}:1")
    assert again.returncode == 0 and json.loads(again.stdout)[0]["sent_bytes"] == 0, again.stderr
    assert far.image_id(f"{NAME}:1") == images[0]


def test_an_engine_that_wants_every_layer_gets_every_layer(home, far, images, faults):
    give_first(far)
    faults.next_load("cat >/dev/null; echo no such layer >&2; exit 1")
    done = ship(home, f"{NAME}:2")
    assert done.returncode == 0 and "does not take a part of an image; sending all of it" in done.stderr
    assert json.loads(done.stdout)[0]["layers_sent"] == 2
    assert far.image_id(f"{NAME}:2") == images[1]


@pytest.mark.parametrize("reference", ["--help", "sha256:0123", "x@sha256:1", ""])
def test_what_is_no_name_of_an_image_is_said_to(home, reference):
    done = home.launch("ship-image", "gpu8", f"--image={reference}")
    assert done.returncode == Exit.INVALID and "is no name of an image" in done.stderr, done.stderr


def test_a_name_without_a_tag_means_latest_as_everywhere(home, far):
    image_id = engines.image(f"{NAME}:latest", [{"code": b"latest"}])
    try:
        done = ship(home, NAME)
        assert done.returncode == 0 and far.image_id(f"{NAME}:latest") == image_id, done.stderr
    finally:
        docker("rmi", "--force", image_id, check=False)


def test_a_refused_archive_is_told_with_the_engines_own_words(home, far, images, faults):
    faults.next_load('head -c 3000000 | "$0" load --quiet; exit 1')
    done = ship(home, f"{NAME}:1")
    assert done.returncode == 5 and "did not load the image" in done.stderr and "unexpected EOF" in done.stderr
    assert far.image_id(f"{NAME}:1") is None


def test_another_image_at_the_end_is_reported(home, far, images, faults):
    give_first(far)
    faults.next_load(f'cat >/dev/null; "$0" tag {NAME}:1 {NAME}:2; exit 0')
    done = ship(home, f"{NAME}:2")
    assert done.returncode == 8 and images[0] in done.stderr and images[1] in done.stderr


def test_a_host_without_zstd_is_sent_gzip(tmp_path, far, images):
    far.empty()
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in (*pathlib.Path("/bin").iterdir(), pathlib.Path(shutil.which("docker"))):
        if "zstd" not in tool.name and not (tools / tool.name).exists():
            (tools / tool.name).symlink_to(tool)
    server = sshd.start(tmp_path / "server", options=f'SetEnv DOCKER_HOST={far.socket} "PATH={tools}"')
    try:
        home = conftest.make_ssh_home(tmp_path, server)
        home.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
        done = ship(home, f"{NAME}:1")
        assert done.returncode == 0, done.stderr
        kinds = {path.suffix for path in (tmp_path / "cache" / "minimind-launch" / "layers").iterdir()}
        assert ".gz" in kinds and ".zst" not in kinds
        assert far.image_id(f"{NAME}:1") == images[0]
    finally:
        server.stop()


@pytest.mark.soak  # test_while_an_engine_loads_nobody_takes_the_pieces_away meets the same lock
def test_two_shipments_to_one_host_do_not_mix(home, images):
    (home.root / "images").mkdir(parents=True)
    with open(home.root / "images" / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = ship(home, f"{NAME}:1")
    assert done.returncode == 9 and "another launch is shipping to gpu8" in done.stderr


def test_too_little_space_is_told_before_anything_is_sent(home, images):
    home.root.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", home.root], check=True)
    try:
        done = ship(home, f"{NAME}:1")
        assert (
            done.returncode == 5 and "0.02 GB free for the pieces" in done.stderr and "nothing was sent" in done.stderr
        )
        assert not (home.root / "images").exists()
    finally:
        subprocess.run(["umount", home.root], check=True)


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: str):
    """A disk of its own for a folder; gives where to put what fills it up."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder / "filler"
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_while_pieces_come_is_told_and_what_came_is_kept(home, far, images):
    with small_disk(home.root, "120m") as filler:
        wire = Wire(home.sshd.port, stop_after_bytes=3 << 20, count_client=True)
        process = start_behind(wire, home, "ship-image", "gpu8", "--image", f"{NAME}:1")
        launching.wait_for(lambda: stored_bytes(home) >= (3 << 20) - PROTOCOL_BYTES)
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        wire.go_on()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 5 and b"the image could not be brought to gpu8" in said, said
        assert b"make room" in said and far.image_id(f"{NAME}:1") is None
        filler.unlink()
        wire.close()
        done = ship(home, f"{NAME}:1")
        assert done.returncode == 0 and json.loads(done.stdout)[0]["resumed_bytes"] > 2 << 20, done.stderr
        assert far.image_id(f"{NAME}:1") == images[0]


@pytest.mark.soak
def test_an_engines_disk_that_fills_up_while_it_loads_is_told_and_nothing_is_sent_twice(tmp_path, images):
    fault = Faults(make_wrapper(tmp_path / "bin"))
    with engines.engine(disk="150m") as far:
        path = f"{fault.script.parent}:{os.environ['PATH']}"
        server = sshd.start(tmp_path / "server", options=f'SetEnv DOCKER_HOST={far.socket} "PATH={path}"')
        try:
            home = conftest.make_ssh_home(tmp_path, server)
            home.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
            filler = far.folder / "data" / "filler"
            fault.next_load(f'dd if=/dev/zero of={filler} bs=64k 2>/dev/null; "$0" "$@"; exit')
            done = ship(home, f"{NAME}:1")
            assert done.returncode == 5 and "the engine of gpu8 did not load the image" in done.stderr, done.stderr
            assert "no space left on device" in done.stderr and far.image_id(f"{NAME}:1") is None
            filler.unlink()
            again = ship(home, f"{NAME}:1")
            assert again.returncode == 0 and json.loads(again.stdout)[0]["sent_bytes"] == 0, again.stderr
            assert far.image_id(f"{NAME}:1") == images[0]
        finally:
            server.stop()


def test_a_run_whose_image_does_not_arrive_starts_nothing(home, far, faults):
    image_id = engines.image(f"{NAME}:run", [BASE, {"code": b"run"}], labels=engines.as_made_here())
    toml = home.home / "launch.toml"
    toml.write_text(f'{toml.read_text()}image = "{NAME}:run"\n')
    corpus.make(home.home, samples=8)
    try:
        faults.next_load('head -c 3000000 | "$0" load --quiet; exit 1')
        done = home.launch("run", "pretrain", "--host", "gpu8", "--detach")
        assert done.returncode == 5 and "did not load the image" in done.stderr, done.stderr
        assert "MB before packing" in done.stderr  # it said what the shipment costs
        assert not (home.root / "runs").exists() and far.docker("ps", "--all", "--quiet").stdout == ""
    finally:
        docker("rmi", "--force", image_id, check=False)


@pytest.mark.parametrize(
    "other", [pytest.param("org.minimind.code", marks=pytest.mark.soak), "org.minimind.lock", "layers"]
)
def test_a_run_takes_no_image_of_the_right_name_that_was_made_from_something_else(home, far, other):
    labels, reference = engines.as_made_here(), f"{NAME}:ours"
    theirs = labels if other == "layers" else labels | {other: "deadbeef"}
    engines.image(reference, [BASE, {"code": b"theirs"}], labels=theirs)
    far.docker("load", "--quiet", input=docker("save", reference, text=False).stdout, text=False, stdin=None)
    docker("rmi", "--force", reference)
    toml = home.home / "launch.toml"
    toml.write_text(f'{toml.read_text()}image = "{reference}"\n')
    corpus.make(home.home, samples=8)
    run = ("run", "pretrain", "--host", "gpu8", "--detach", "--dry-run")
    if other != "layers":
        refused = home.launch(*run)
        assert refused.returncode == 5 and "other code or another lock" in refused.stderr, refused.stderr
    image_id = engines.image(reference, [BASE, {"code": b"ours"}], labels=labels)
    try:
        told = home.launch(*run)
        assert told.returncode == 0 and f"shipping {reference}" in told.stderr, told.stderr
        assert ship(home, reference).returncode == 0
        assert far.image_id(reference) == image_id
        assert f"shipping {reference}" not in home.launch(*run).stderr
    finally:
        docker("rmi", "--force", image_id, check=False)


def test_while_an_engine_loads_nobody_takes_the_pieces_away(home, far, images, faults, tmp_path):
    go_on = tmp_path / "go on"
    faults.next_load(f"while [ ! -e '{go_on}' ]; do sleep 0.1; done")
    first = launching.start(home, "ship-image", "gpu8", "--image", f"{NAME}:1", "--json")
    pieces = home.root / "images"
    launching.wait_for(lambda: not (faults.script.with_name("docker.fault")).exists())
    there = sorted(path.name for path in pieces.iterdir())
    pruned = home.launch("env", "prune", "gpu8", "--yes")
    assert "removed 0" in pruned.stderr, pruned.stderr
    second = ship(home, f"{NAME}:1")
    assert second.returncode == 9 and "another launch is shipping to gpu8" in second.stderr, second.stderr
    assert sorted(path.name for path in pieces.iterdir()) == there
    go_on.touch()
    _, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    assert far.image_id(f"{NAME}:1") == images[0] and [path.name for path in pieces.iterdir()] == ["lock"]


@pytest.mark.parametrize("said", ["", "[]", "one line", '"sha256:1"\n12\nnull\n[]\nnull\nlinux/amd64\nmore'])
def test_an_engine_that_answers_something_else_is_said_to(said):
    with pytest.raises(LaunchError, match="says what no engine says") as caught:
        parse_image(said)
    assert caught.value.code == Exit.HOST_NOT_READY


@pytest.mark.soak  # tests/unit/launch/test_spool.py cuts layers into chunks
def test_a_layer_of_many_chunks_arrives_whole_and_a_cut_repeats_none_that_was_sent(home, far):
    """Its chunks leave while the later ones are packed; those that came before the cut are not sent again."""
    noise = random.Random(3)
    parts = [noise.randbytes(2 << 20) + bytes(63 << 20) for _ in range(2)]
    image_id = engines.image(f"{NAME}:long", [{"long": b"".join(parts)}])
    try:
        wire = Wire(home.sshd.port, stop_after_bytes=3 << 20, count_client=True)
        process = start_behind(wire, home, "ship-image", "gpu8", "--image", f"{NAME}:long")
        launching.wait_for(lambda: stored_bytes(home) >= (3 << 20) - PROTOCOL_BYTES)
        os.killpg(process.pid, signal.SIGKILL)
        wire.cut()
        process.communicate()
        there = arrived_bytes(home)
        assert list((home.root / "images").glob("*.zst")) and list((home.root / "images").glob("*.part"))
        done = ship(home, f"{NAME}:long")
        assert done.returncode == 0 and json.loads(done.stdout)[0]["resumed_bytes"] == there, done.stderr
        assert far.image_id(f"{NAME}:long") == image_id
    finally:
        docker("rmi", "--force", image_id, check=False)


def test_all_ships_to_every_host_that_has_an_engine_and_one_that_is_gone_stops_no_other(home, far, images, tmp_path):
    bare = sshd.start(tmp_path / "bare", options="SetEnv DOCKER_HOST=unix:///nowhere")
    try:
        toml, known = home.home / "launch.toml", home.home / "launch.known_hosts"
        hosts = {"gone": f"root@127.0.0.1:{sshd.free_port()}", "bare": bare.address}
        more = (
            f'[hosts.{name}]\nssh = "{address}"\nidentity_file = "{bare.user_key}"\nroot = "{tmp_path / name}"\n'
            for name, address in hosts.items()
        )
        toml.write_text("".join(more) + toml.read_text())
        known.write_text(known.read_text() + bare.known_hosts())
        done = home.launch("ship-image", "--all", "--image", f"{NAME}:1", "--json", timeout=300)
    finally:
        bare.stop()
    told = {row["host"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 4 and told.keys() == {"gone", "bare", "gpu8"}, done.stderr
    assert "error" in told["gone"] and told["bare"]["skipped"] and told["gpu8"]["layers_sent"] == 2
    assert far.image_id(f"{NAME}:1") == images[0]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_run_brings_the_image_that_its_host_lacks_and_trains_in_it(home, far, training_image):
    toml = home.home / "launch.toml"
    toml.write_text(f'{toml.read_text()}image = "{training_image}"\n')
    corpus.make(home.home, samples=8)
    words = ("run", "pretrain", "--host", "gpu8", "--", *launching.TRAIN, "--max_steps", "1")
    done = home.launch(*words, timeout=1500)
    assert done.returncode == 0 and "shipping minimind-launch:cpu" in done.stderr, done.stderr
    (run_dir,) = launching.run_dirs(home)
    assert json.loads((run_dir / "spec.json").read_bytes())["image_digest"] == far.image_id(training_image)
    again = home.launch(*words, timeout=300)
    assert again.returncode == 0 and "shipping" not in again.stderr


def test_no_image_and_no_engine_are_told(home, tmp_path, faults):
    done = ship(home, f"{NAME}:none")
    assert done.returncode == 5 and "make image" in done.stderr
    assert home.launch("ship-image", "local").returncode == 2
    assert home.launch("ship-image").returncode == 2
