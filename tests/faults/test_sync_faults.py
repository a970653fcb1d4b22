"""sync-out while things break: kills at random bytes, cut links, full disks, files that are written meanwhile."""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from launch.errors import Exit, LaunchError
from launch.sync import courier, trip
from tests.conftest import make_ssh_home
from tests.support import sshd as sshd_parts
from tests.support.launching import start, wait_for
from tests.support.syncing import (
    RUN,
    behind_wire,
    direct,
    gathered,
    make_run,
    put,
    sums_hold,
    tools,
    tree,
)

pytestmark = pytest.mark.sshd
BLOCK_BYTES = courier.SMALL_BYTES
WEIGHTS_BYTES = 12_000_000


@pytest.fixture
def wired(tmp_path, sshd):
    home, wire = behind_wire(tmp_path, sshd)
    make_run(home.root, RUN, "rlhf_512.pth", os.urandom(WEIGHTS_BYTES))
    for number in range(40):
        put(home.root / "out" / "tokenizer" / f"part-{number}.json", os.urandom(20_000))
    put(home.home / "out" / "rlhf_512.pth", b"an older one")
    yield home, wire
    wire.close()


def still(home):
    """Wait until what arrived is written."""
    before, since = -1, time.monotonic()
    while time.monotonic() - since < 0.3:
        if (now := gathered(home)) != before:
            before, since = now, time.monotonic()
        time.sleep(0.03)
    return before


def sync_killed(home, wire, server, *, after_bytes, side):
    """Start a sync-out and kill one side after so many bytes; tells whether it was in the middle of the parts."""
    wire.arm(after_bytes)
    process = start(home, "sync-out")
    wait_for(wire.stopped.is_set)
    have = still(home)
    if side == "laptop":
        os.kill(process.pid, signal.SIGKILL)
    else:
        server.cut()
    wire.cut()
    wire.go_on()
    _, stderr = process.communicate(timeout=60)
    if side == "host":
        assert process.returncode in (Exit.INCOMPLETE, Exit.UNREACHABLE), stderr
        assert b"Traceback" not in stderr
    return have > 0


def campaign(home, wire, tmp_path, *, kills, seed):
    rng = random.Random(seed)
    without_rsync = tools(tmp_path / "tools", "sh", "ssh")
    with_rsync = home.environ["PATH"]
    size = WEIGHTS_BYTES + 40 * 20_000
    previous = (home.home / "out" / "rlhf_512.pth").read_bytes()
    in_the_middle = 0
    for number in range(kills):
        home.environ["PATH"] = rng.choice([with_rsync, without_rsync])
        left_bytes = size - gathered(home) - sum((home.home / name).stat().st_size for name in tree(home.home))
        after_bytes = rng.randrange(2_000, max(5_000, 2 * left_bytes // (kills - number + 1)))  # never enough to finish
        side = rng.choice(["laptop", "host"])
        in_the_middle += sync_killed(home, wire, home.sshd, after_bytes=after_bytes, side=side)
        for name, digest in tree(home.home).items():
            whole = tree(home.root)
            assert digest == whole[name] or (home.home / name).read_bytes() == previous, f"torn after kill {number}"
        assert not (home.home / "SHA256SUMS").exists()
    wire.arm(1 << 40)
    home.environ["PATH"] = with_rsync
    last = home.launch("sync-out")
    assert last.returncode == 0, last.stderr
    relayed = wire.relayed_bytes
    assert home.launch("sync-out").returncode == 0
    talk_bytes = wire.relayed_bytes - relayed  # what a sync says when no file moves
    attempts = number + 2
    sent_again = relayed - size * 1.01 - attempts * 3 * talk_bytes
    assert sent_again < attempts * BLOCK_BYTES, (sent_again, attempts, talk_bytes)
    assert in_the_middle >= attempts // 3
    assert tree(home.home) == tree(home.root) and sums_hold(home.home)
    kept = [path.read_bytes() for path in (home.home / ".previous").rglob("rlhf_512.pth")]
    assert kept == [previous]


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_kills_of_either_side_at_random_bytes_tear_nothing_and_cost_less_than_a_block_each(wired, tmp_path):
    campaign(*wired, tmp_path, kills=5, seed=6)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_fifty_kills_of_either_side_at_random_bytes(wired, tmp_path):
    campaign(*wired, tmp_path, kills=50, seed=50)


def rewriting(home, times):
    """A thread that writes one file in place again and again, slowly, each time all of one byte; how often it did."""
    target = home.root / "out" / "full_sft_512.pth"
    put(target, b"\0" * 300_000)
    count = [0]

    def work():
        for number in range(1, times + 1):
            with open(target, "r+b", buffering=0) as file:
                for _ in range(30):
                    file.write(bytes([number % 256]) * 10_000)
                    time.sleep(0.002)
            count[0] = number
            time.sleep(0.05)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, count, target


def rewritten(home, times):
    thread, count, target = rewriting(home, times)
    ended = []
    while thread.is_alive():
        try:
            direct(home)
            ended.append(Exit.OK)
        except LaunchError as error:
            assert error.code == Exit.NOT_VERIFIED and "out/full_sft_512.pth" in error.what
            ended.append(error.code)
        arrived = home.home / "out" / "full_sft_512.pth"
        if arrived.exists():
            assert len(set(arrived.read_bytes())) == 1, "half of one, half of another"
    thread.join()
    assert count == [times] and ended
    direct(home)
    assert (home.home / "out" / "full_sft_512.pth").read_bytes() == target.read_bytes()
    assert sums_hold(home.home)


def test_a_file_rewritten_in_place_during_copies_never_arrives_as_a_mixture(ssh_home):
    make_run(ssh_home.root, RUN, "rlhf_512.pth", os.urandom(50_000))
    rewritten(ssh_home, 12)


@pytest.mark.soak
def test_a_file_rewritten_in_place_a_hundred_times_never_arrives_as_a_mixture(ssh_home):
    make_run(ssh_home.root, RUN, "rlhf_512.pth", os.urandom(50_000))
    rewritten(ssh_home, 100)


@pytest.fixture
def small_disk(tmp_path):
    """A folder of 24 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs to mount a small disk")
    folder = tmp_path / "small disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_at_home_that_fills_up_during_the_copy_tears_nothing_and_the_next_one_goes_on(wired, small_disk):
    home, wire = wired
    put(small_disk / "out" / "rlhf_512.pth", b"an older one")
    wire.arm(3_000_000)
    process = start(home, "sync-out", "--to", str(small_disk))
    wait_for(wire.stopped.is_set)
    fill = small_disk / "somebody else's"
    with open(fill, "wb") as file:
        while shutil.disk_usage(small_disk).free > 2_000_000:
            file.write(bytes(500_000))
            file.flush()
    wire.go_on()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == Exit.HOST_NOT_READY, stderr
    assert b"remedy:" in stderr and b"Traceback" not in stderr
    assert (small_disk / "out" / "rlhf_512.pth").read_bytes() == b"an older one"
    assert not (small_disk / "SHA256SUMS").exists()
    fill.unlink()
    assert sum(path.stat().st_size for path in (small_disk / ".sync").glob("*.part")) > 500_000
    assert home.launch("sync-out", "--to", str(small_disk)).returncode == 0
    assert tree(small_disk) == tree(home.root) and sums_hold(small_disk)


def test_old_and_new_must_both_fit_before_anything_moves(ssh_home, small_disk):
    make_run(ssh_home.root, RUN, "rlhf_512.pth", os.urandom(9_000_000))
    put(ssh_home.root / "runs" / RUN / "export" / "rlhf_512.pth", os.urandom(9_000_000))
    for top in ("out", f"runs/{RUN}/export"):  # same lengths: only the bytes are others
        put(small_disk / top / "rlhf_512.pth", os.urandom(9_000_000))
    before = tree(small_disk)
    result = ssh_home.launch("sync-out", "--to", str(small_disk))
    assert result.returncode == Exit.HOST_NOT_READY and "the copy needs" in result.stderr
    assert tree(small_disk) == before and not list((small_disk / ".sync").glob("*"))


def test_a_full_disk_on_the_host_is_said_and_leaves_no_half_there(tmp_path, sshd, small_disk):
    home = make_ssh_home(tmp_path, sshd)
    toml = home.home / "launch.toml"
    toml.write_text(toml.read_text().replace(str(home.root), str(small_disk)))
    put(home.home / "out" / "rlhf_512.pth", os.urandom(45_000_000))
    result = home.launch("sync-in")
    assert result.returncode == Exit.HOST_NOT_READY and "No space left" in result.stderr
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_a_host_with_nothing_but_sh_tail_tar_and_sha256sum_is_brought_home(tmp_path):
    bare = tools(tmp_path / "bare", "sh", "tail", "tar", "sha256sum")
    server = sshd_parts.start(tmp_path / "server", options=f"SetEnv PATH={bare}")
    try:
        home = make_ssh_home(tmp_path, server)
        make_run(home.root, RUN, "rlhf 权重 'q'.pth", os.urandom(6_000_000))
        put(home.root / "out" / "back\\slash *.json", b"{}")
        put(home.root / "out" / ".hidden" / "x.json", b"")
        os.symlink("/etc/passwd", home.root / "out" / "link.pth")
        os.symlink(".", home.root / "out" / "loop")
        os.mkfifo(home.root / "out" / "pipe.pth")
        put(home.root / "out" / "new\nline.pth")
        expected = {name: digest for name, digest in tree(home.root).items() if "link" not in name and "\n" not in name}
        expected = {name: digest for name, digest in expected.items() if not name.startswith("out/loop/")}
        result = home.launch("sync-out", "--json")
        assert result.returncode == 0, result.stderr
        assert tree(home.home) == expected and sums_hold(home.home)
        odd = {item["name"]: item["why"] for item in json.loads(result.stdout)["left_alone"]}
        assert odd["out/link.pth"] == odd["out/loop"] == "a link" and odd["out/pipe.pth"] == "no regular file"
        assert len(odd) == 4
        again = json.loads(home.launch("sync-out", "--json").stdout)
        assert again["fetched"] == []
    finally:
        server.stop()


def test_a_link_in_the_place_of_a_finished_part_never_gets_the_files_name(ssh_home, tmp_path):
    planted = tmp_path / "planted"
    data = os.urandom(len(str(planted)))  # a link is as long as what it leads to
    planted.write_bytes(data)
    make_run(ssh_home.root, RUN, "rlhf_512.pth", data)
    (ssh_home.home / ".sync").mkdir(mode=0o700)
    (ssh_home.home / ".sync" / f"{hashlib.sha256(data).hexdigest()}.part").symlink_to(planted)
    assert ssh_home.launch("sync-out").returncode == 0
    arrived = ssh_home.home / "out" / "rlhf_512.pth"
    assert not arrived.is_symlink() and arrived.read_bytes() == data
    assert planted.read_bytes() == data and sums_hold(ssh_home.home)


def test_parts_that_an_earlier_attempt_finished_are_named_together_and_not_fetched_again(ssh_home, monkeypatch):
    make_run(ssh_home.root, RUN, "rlhf_512.pth", os.urandom(50_000))
    (ssh_home.home / ".sync").mkdir(mode=0o700)
    for number in range(120):
        data = os.urandom(3_000)
        put(ssh_home.root / "out" / "parts" / f"{number}.json", data)
        put(ssh_home.home / ".sync" / f"{hashlib.sha256(data).hexdigest()}.part", data)
    asked, fetched = [], []
    monkeypatch.setattr(trip, "list_again", lambda *a, real=trip.list_again: asked.append(1) or real(*a))
    small = courier.Courier._fetch_small
    monkeypatch.setattr(
        courier.Courier, "_fetch_small", lambda self, files, on: fetched.extend(files) or small(self, files, on)
    )
    direct(ssh_home)
    assert tree(ssh_home.home) == tree(ssh_home.root) and sums_hold(ssh_home.home)
    assert not [file for file in fetched if "/parts/" in file.path] and len(asked) < 8


def test_hostile_things_stay_on_the_host_and_nothing_of_the_laptop_goes_there(ssh_home, tmp_path, monkeypatch):
    make_run(ssh_home.root, RUN, "rlhf_512.pth", b"weights")
    evil, planted = ssh_home.root / "out", tmp_path / "laptop secret"
    put(planted, b"of the laptop")
    os.symlink(planted, evil / "secret.pth")
    os.symlink("loop", evil / "loop")
    os.symlink("..", evil / "up")
    monkeypatch.chdir(evil)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.pth")
    if os.geteuid() == 0:
        os.mknod(evil / "device.pth", 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero: a reader would never end
    put(evil / f"{'0' * 64}.part", b"named like a part of ours")
    put(evil / ".sync" / "lock", b"named like our lock")
    result = ssh_home.launch("sync-out", "--json")
    assert result.returncode == 0, result.stderr
    odd = [item["name"] for item in json.loads(result.stdout)["left_alone"]]
    assert {"out/secret.pth", "out/loop", "out/up", "out/socket.pth"} <= set(odd)
    assert (ssh_home.home / "out" / f"{'0' * 64}.part").read_bytes() == b"named like a part of ours"
    plain = {path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()}
    assert {path for path in plain if b"of the laptop" in path.read_bytes()[:100]} == {planted}


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_files_come_home(ssh_home):
    make_run(ssh_home.root, RUN, "rlhf_512.pth", b"weights")
    for number in range(100_000):
        put(ssh_home.root / "out" / "many" / str(number % 100) / f"{number}.json", str(number).encode())
    assert ssh_home.launch("sync-out", timeout=1500).returncode == 0
    assert len(tree(ssh_home.home)) == len(tree(ssh_home.root))
    assert sums_hold(ssh_home.home)


@pytest.fixture
def far_netns(tmp_path):
    """An sshd in a network namespace of its own, and the name of the interface that leads there."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and ip")
    name = f"mm{os.getpid() % 100000}"
    commands = [
        f"ip netns add {name}",
        f"ip link add {name}a type veth peer name {name}b netns {name}",
        f"ip addr add 10.231.7.1/30 dev {name}a",
        f"ip link set {name}a up",
        f"ip -n {name} addr add 10.231.7.2/30 dev {name}b",
        f"ip -n {name} link set {name}b up",
    ]
    try:
        for command in commands:
            if subprocess.run(command.split(), check=False, capture_output=True).returncode:
                pytest.skip(f"not allowed here: {command}")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", f"{name}a"], check=False, capture_output=True)


@pytest.mark.soak
@pytest.mark.parametrize("down_s", [5, 90])
def test_an_interface_that_goes_down_in_mid_copy_costs_nothing_or_a_rerun(tmp_path, far_netns, down_s):
    server = sshd_parts.start(tmp_path / "server", address="10.231.7.2", netns=far_netns)
    try:
        home = make_ssh_home(tmp_path, server)
        for name in ("launch.toml", "launch.known_hosts"):
            path = home.home / name
            path.write_text(path.read_text().replace("127.0.0.1", server.listens_at))
        make_run(home.root, RUN, "rlhf_512.pth", os.urandom(400_000_000))
        process = start(home, "sync-out")
        wait_for(lambda: gathered(home) > 20_000_000)
        subprocess.run(["ip", "link", "set", f"{far_netns}a", "down"], check=True)
        before = still(home)
        assert before < 400_000_000
        time.sleep(down_s)
        subprocess.run(["ip", "link", "set", f"{far_netns}a", "up"], check=True)
        _, stderr = process.communicate(timeout=240)
        assert process.returncode in ((0,) if down_s < 30 else (0, Exit.INCOMPLETE, Exit.UNREACHABLE)), stderr
        assert gathered(home) >= before or process.returncode == 0
        assert home.launch("sync-out", timeout=240).returncode == 0
        assert tree(home.home) == tree(home.root) and sums_hold(home.home)
    finally:
        server.stop()
