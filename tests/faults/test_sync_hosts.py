"""sync-out while hosts and clocks misbehave: a boot in between, clocks an hour off, an interface down, two at once."""

import contextlib
import os
import shutil
import subprocess
import time

import pytest

from launch.errors import Exit
from launch.sync import generations, packing, sync_out
from launch.sync.store import Store
from launch.transport import connect
from minimind.durable import sha256_file
from tests.conftest import make_ssh_home
from tests.faults.test_sync_faults import BLOCK_BYTES, far_netns, still  # noqa: F401 (a fixture)
from tests.support import sshd as sshd_parts
from tests.support.launching import start, wait_for
from tests.support.syncing import RUN, Quiet, behind_wire, direct, gathered, make_run, put, sums_hold, tree

pytestmark = pytest.mark.sshd


def test_a_host_that_was_booted_in_between_is_gone_on_with_from_the_same_byte(tmp_path):
    server = sshd_parts.start(tmp_path / "server")
    home, wire = behind_wire(tmp_path, server)
    try:
        make_run(home.root, RUN, "rlhf_512.pth", os.urandom(12_000_000))
        put(home.home / "out" / "rlhf_512.pth", b"an older one")
        wire.arm(5_000_000)
        process = start(home, "sync-out")
        wait_for(wire.stopped.is_set)
        still(home)
        server.stop()
        wire.cut()
        wire.go_on()
        _, stderr = process.communicate(timeout=120)
        assert process.returncode in (Exit.INCOMPLETE, Exit.UNREACHABLE) and b"Traceback" not in stderr, stderr
        have = gathered(home)
        assert have > 2_000_000
        down = home.launch("sync-out")
        assert down.returncode == Exit.UNREACHABLE and "remedy:" in down.stderr
        subprocess.run(["cp", "-a", home.root, home.root.with_name("again")], check=True)  # other inodes, other ctimes
        shutil.rmtree(home.root)
        home.root.with_name("again").rename(home.root)
        server.start_again()
        relayed = wire.relayed_bytes
        assert home.launch("sync-out").returncode == 0
        assert wire.relayed_bytes - relayed < 12_000_000 * 1.01 - have + BLOCK_BYTES
        assert tree(home.home) == tree(home.root) and sums_hold(home.home)
        assert [p.read_bytes() for p in (home.home / ".previous").rglob("*.pth")] == [b"an older one"]
    finally:
        wire.close()
        with contextlib.suppress(ProcessLookupError):
            server.stop()


@pytest.mark.parametrize("off_s", [-3600, 3600])
def test_a_hosts_clock_an_hour_off_hides_no_change(ssh_home, tmp_path, monkeypatch, off_s):
    bin_folder = tmp_path / "bin"
    put(bin_folder / "date", f"#!/bin/sh\necho $(($({shutil.which('date')} +%s) + {off_s}))\n".encode()).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    inventory = ssh_home.inventory
    host = inventory.host("local")  # this machine, with another clock
    root = make_run(ssh_home.home / "local", RUN, "rlhf_512.pth", os.urandom(50_000)).parent.parent
    target = root / "out" / "rlhf_512.pth"
    for number in range(3):
        with open(target, "r+b") as file:  # in place, of the same length, and shown as of the same time
            file.write(b"%d" % number)
        os.utime(target, (time.time() + off_s, 1_900_000_000))
        with connect(host, inventory) as transport:
            options = {"run_id": None, "voice": Quiet(), "now_utc": "20260101T000000Z"}
            sync_out(transport, inventory, folder=ssh_home.home, **options)
        assert tree(ssh_home.home) == tree(root) and sums_hold(ssh_home.home)


def test_a_laptops_clock_that_is_set_back_makes_no_old_version_the_newest(tmp_path):
    for number in range(13):
        store = Store(tmp_path, stamp="20260101T120000Z" if number == 0 else "20260101T110000Z")
        weights = put(tmp_path / "out" / "rlhf_512.pth", b"trained anew %d" % number)
        file = {"path": "out/rlhf_512.pth", "sha256": sha256_file(weights), "bytes": weights.stat().st_size}
        with store.locked():
            generations.record(store, host="gpu8", run_id=None, files=[file])
    versions = [generation.version for generation in generations.read(tmp_path)]
    assert versions == ["20260101T120000Z", *(f"20260101T120000Z-{n:03}" for n in range(2, 14))]
    with store.locked():
        dropped, _ = generations.let_go(store, 1)
    assert dropped == versions[:-1]
    assert weights.read_bytes() == b"trained anew 12"


def test_two_syncs_at_once_into_one_folder_end_in_one_whole_copy(ssh_home):
    make_run(ssh_home.root, RUN, "rlhf_512.pth", os.urandom(9_000_000))
    for number in range(30):
        put(ssh_home.root / "out" / "parts" / f"{number}.json", os.urandom(1000))
    put(ssh_home.home / "out" / "rlhf_512.pth", b"an older one")
    both = [start(ssh_home, "sync-out") for _ in range(2)]
    ended = []
    for process in both:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode in (0, Exit.REFUSED) and b"Traceback" not in stderr, stderr
        ended.append(process.returncode)
    assert 0 in ended
    assert tree(ssh_home.home) == tree(ssh_home.root) and sums_hold(ssh_home.home)
    assert [p.read_bytes() for p in (ssh_home.home / ".previous").rglob("*.pth")] == [b"an older one"]


def test_an_interface_that_goes_down_for_seconds_in_mid_copy_costs_nothing(tmp_path, far_netns):  # noqa: F811
    server = sshd_parts.start(tmp_path / "server", address="10.231.7.2", netns=far_netns)
    try:
        slow = f"ip netns exec {far_netns} tc qdisc add dev {far_netns}b root tbf rate 80mbit burst 256kb latency 200ms"
        if shutil.which("tc") is None or subprocess.run(slow.split(), check=False, capture_output=True).returncode:
            pytest.skip("needs tc")
        home = make_ssh_home(tmp_path, server)
        for name in ("launch.toml", "launch.known_hosts"):
            path = home.home / name
            path.write_text(path.read_text().replace("127.0.0.1", server.listens_at))
        make_run(home.root, RUN, "rlhf_512.pth", os.urandom(20_000_000))
        process = start(home, "sync-out")
        wait_for(lambda: gathered(home) > 4_000_000)
        subprocess.run(["ip", "link", "set", f"{far_netns}a", "down"], check=True)
        assert still(home) < 20_000_000 and process.poll() is None
        time.sleep(1)
        subprocess.run(["ip", "link", "set", f"{far_netns}a", "up"], check=True)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert tree(home.home) == tree(home.root) and sums_hold(home.home)
    finally:
        server.stop()


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
@pytest.mark.parametrize("shrinks", [True, False])
def test_what_shrinks_is_sent_packed_over_a_slow_link_and_other_bytes_as_they_are(tmp_path, sshd, monkeypatch, shrinks):
    told = subprocess.run(["rsync", "--version"], capture_output=True, check=True).stdout
    if b"zstd" not in told:
        pytest.skip("this rsync knows no zstd")
    monkeypatch.setattr(packing, "ZSTD_BYTES_PER_S", 1e12)  # so that even loopback is slow
    home, wire = behind_wire(tmp_path, sshd)
    try:
        data = b"%032d" % 7 * 1_250_000 if shrinks else os.urandom(40_000_000)
        make_run(home.root, RUN, "rlhf_512.pth", data)
        voice = Quiet()
        direct(home, voice=voice)
        assert any(("packed by zstd" if shrinks else "as it is") in said for said in voice.said), voice.said
        assert (wire.relayed_bytes < 10_000_000) == shrinks
        assert tree(home.home) == tree(home.root) and sums_hold(home.home)
    finally:
        wire.close()


def test_packing_pays_only_where_the_link_is_slower_than_it_and_the_bytes_shrink():
    assert packing.pays(0.9, 25e6) and packing.pays(0.5, 125e6)
    assert not packing.pays(0.98, 25e6)  # as good as nothing
    assert not packing.pays(0.5, 400e6)  # one core packs more slowly than that
    assert packing.shrinks_to(bytes(100_000)) < 0.01 and packing.shrinks_to(os.urandom(100_000)) > 0.99
    assert packing.shrinks_to(b"") == 1.0
