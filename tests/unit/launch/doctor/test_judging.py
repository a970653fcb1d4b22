"""What the doctor thinks of what a host told: every verdict, from text alone."""

import dataclasses
import xml.etree.ElementTree as ElementTree

import pytest

from launch import facts
from launch.doctor import Target, Verdict, built_for, disks, gpus, judge, probe, system
from launch.inventory import Host
from tests.support.nvidia import BROKEN, CARDS, lines

BASE = """clock=1700000000.5
root=/root/autodl-tmp/minimind
home=/root
now=1700000000
system=Linux
arch=x86_64
user=root
uid=0
gid=0
cpus=64
in_container=1
rsync=1
python=3.12.3 /opt/conda/bin/python
encoding=utf-8
virt=docker
hypervisor=1
pci_gpus=0
rsync_version=rsync  version 3.5.2  protocol version 32
disk=Filesystem     1024-blocks      Used Available Capacity Mounted on
disk=overlay           31457280   1048576  30408704       4% /
disk=/dev/nvme0n1    524288000  10485760 513802240       2% /root/autodl-tmp
disk=shm                67108864         0  67108864       0% /dev/shm
disk=nas:/share     1048576000      1000 1048575000       1% /root/autodl-fs
inodes=Filesystem       Inodes   IUsed    IFree IUse% Mounted on
inodes=overlay         2000000   10000  1990000    1% /
inodes=/dev/nvme0n1   30000000     100 29999900    1% /root/autodl-tmp
inodes=nas:/share       200000  199000     1000   99% /root/autodl-fs
mount=overlay / overlay rw,relatime 0 0
mount=/dev/nvme0n1 /root/autodl-tmp ext4 rw,relatime 0 0
mount=shm /dev/shm tmpfs rw,nosuid 0 0
mount=nas:/share /root/autodl-fs nfs4 rw 0 0
nofile=1048576 1048576
memlock=64 64
ram=527000000
net=index yes https://pypi.org/simple/
net=hub yes https://huggingface.co
"""
CLOCK = system.Clock(asked_at=1700000000.0, heard_at=1700000001.0)
HOST = Host(name="gpu8", ssh="root@gpu8:22", root="/root/autodl-tmp/minimind")


def look(*more, without=(), host=HOST, cuda=(13, 0), others=(), clock=CLOCK, labels=""):
    kept = "".join(line for line in BASE.splitlines(keepends=True) if not line.startswith(tuple(without) or ("\0",)))
    text = kept + "\n".join(more) + "\n"
    checks = judge(probe.parse(text), facts.parse(text), host, clock=clock, cuda=cuda, others=others, labels=labels)
    assert all((check.remedy is None) == (check.verdict is Verdict.OK) for check in checks)
    return {check.name: check for check in checks}


def verdict(checks, name):
    return str(checks[name].verdict)


def test_what_did_not_answer_is_named_with_the_likely_cause():
    checks = look("df=/dev/nvme0n1 524288000 10485760 513802240 2% /root/autodl-tmp", "silent=df", without=["disk="])
    assert checks["disk"].found.startswith("df did not answer in 10 s: a network mount whose server is gone")
    assert "526.1 GB free" in checks["disk"].found and verdict(checks, "disk") == "warn"
    assert checks["shm"].found == "not told"
    checks = look("df=x 524288000 10485760 1024 2% /", "silent=df", "silent=docker", without=["disk="])
    assert verdict(checks, "disk") == "unfit" and checks["probe docker"].found == "docker did not answer in 10 s"


def test_a_clock_that_tells_no_time_is_a_warning():
    checks = look("clock=abc", "now=abc", without=["clock=", "now="])
    assert checks["clock"].found == "its `date` tells no time" and verdict(checks, "clock") == "warn"


@pytest.mark.parametrize("kind", ["4090", "8x4090", "A100", "H100"])
def test_sound_cards_are_ok(kind):
    card = CARDS[kind]
    ElementTree.fromstring("\n".join(line for line in card.xml().splitlines() if "DOCTYPE" not in line))
    checks = look(*lines(card), f"pci_gpus={card.count}", "kernel_log=1")
    assert {str(check.verdict) for name, check in checks.items() if name.startswith(("gpu", "driver", "topo"))} == {
        "ok"
    }
    assert f"{card.count} x {card.name}" in checks["gpus"].found
    assert ("topology" in checks) is (card.count > 1)
    assert ("ECC: 0 uncorrectable" in checks["gpu health"].found) is card.ecc


def test_topologies_are_told_by_pairs_and_network_cards_do_not_count():
    assert "28 pairs NV18" in look(*lines(CARDS["H100"]))["topology"].found
    assert gpus.read_topology(CARDS["8x4090"].topology().splitlines(), 8) == {"SYS": 16, "PHB": 12}


def test_a_driver_older_than_the_environments_cuda_is_unfit():
    old = dataclasses.replace(CARDS["A100"], driver="550.127.08")
    assert verdict(look(*lines(old)), "driver") == "unfit"
    assert "580.65.06" in look(*lines(old))["driver"].remedy
    assert verdict(look(*lines(old), cuda=(12, 4)), "driver") == "ok"
    assert verdict(look(*lines(dataclasses.replace(old, driver="580.65.06"))), "driver") == "ok"
    own = dataclasses.replace(HOST, python="/opt/conda/bin/python")
    assert verdict(look(*lines(old), host=own), "driver") == "ok"


def test_a_card_that_the_environment_no_longer_compiles_for_is_unfit():
    assert verdict(look(*lines(CARDS["V100"])), "capability") == "unfit"
    assert "capability" not in look(*lines(CARDS["V100"]), cuda=(12, 8))


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ((*(f"smi={line}" for line in BROKEN.splitlines()), "smi=code 9", "pci_gpus=1"), "no driver"),
        (("smi=Failed to initialize NVML: Driver/library version mismatch", "smi=code 18", "pci_gpus=1"), "differ"),
        (("smi=Unable to determine the device handle", "smi=code 15", "pci_gpus=8"), "fell off"),
        (("pci_gpus=2",), "no nvidia-smi"),
        (("smi=<nvidia_smi_log>", "smi=code 0", "pci_gpus=1"), "told of no GPU"),
        (("smi=code 124", "pci_gpus=1"), "code 124"),
    ],
)
def test_gpus_that_do_not_answer_are_unfit_by_exit_code(told, expected):
    checks = look(*told, without=("pci_gpus=",))
    assert verdict(checks, "gpus") == "unfit" and expected in checks["gpus"].found


def test_no_gpu_is_as_good_as_what_was_expected():
    assert verdict(look(), "gpus") == "warn"
    assert verdict(look("smi=No devices were found", "smi=code 6"), "gpus") == "warn"
    assert verdict(look(host=dataclasses.replace(HOST, gpus=0)), "gpus") == "ok"
    assert verdict(look(host=dataclasses.replace(HOST, gpus=8)), "gpus") == "unfit"
    assert verdict(look(*lines(CARDS["4090"]), host=dataclasses.replace(HOST, gpus=2)), "gpus") == "unfit"


@pytest.mark.parametrize(
    ("change", "more", "expected"),
    [
        ({"uncorrectable": 2}, (), "unfit"),
        ({"failed": "Yes"}, (), "unfit"),
        ({"pending": "Yes"}, (), "warn"),
        ({"slowdown": "Active"}, (), "warn"),
        (
            {},
            ("kernel_log=1", "xid=[ 1.0] NVRM: Xid (PCI:0000:3b:00): 79, pid=77, GPU has fallen off the bus."),
            "unfit",
        ),
        ({}, ("kernel_log=1", "xid=[ 1.0] NVRM: Xid (PCI:0000:3b:00): 31, pid=77, name=python"), "warn"),
    ],
)
def test_faults_of_memory_heat_and_bus_are_seen(change, more, expected):
    assert verdict(look(*lines(dataclasses.replace(CARDS["A100"], **change)), *more), "gpu health") == expected


def test_processes_of_others_are_told_from_our_runs():
    busy = dataclasses.replace(CARDS["H100"], pids=(4242,), used_mib=9000)
    assert (
        verdict(look(*lines(busy)), "gpu processes") == "warn" and "4242" in look(*lines(busy))["gpu processes"].found
    )
    assert verdict(look(*lines(busy), "our_pid=4242"), "gpu processes") == "ok"
    assert verdict(look(*lines(dataclasses.replace(busy, used_mib=60000))), "gpu processes") == "unfit"
    unseen = dataclasses.replace(busy, pids=())  # a container does not see the processes of another
    assert verdict(look(*lines(unseen)), "gpu processes") == "warn"


def test_mig_and_unlike_cards_are_warned_of():
    assert verdict(look(*lines(dataclasses.replace(CARDS["A100"], mig="Enabled"))), "gpus") == "warn"


ENGINE = 'docker={{"ServerVersion":"28.2.2","Runtimes":{{{}}}}}'


@pytest.mark.parametrize(
    ("more", "expected", "said"),
    [
        ((ENGINE.format('"nvidia":{}'),), "ok", "--gpus"),
        ((ENGINE.format('"runc":{}'), "gpus_option=1"), "ok", "--gpus"),
        ((ENGINE.format('"runc":{}'), "cdi=/etc/cdi/nvidia.yaml"), "unfit", "CDI only"),
        ((ENGINE.format('"runc":{}'),), "unfit", "no way for GPUs"),
    ],
)
def test_the_way_of_gpus_into_containers(more, expected, said):
    checks = look(*lines(CARDS["4090"]), *more)
    assert verdict(checks, "docker") == expected and said in checks["docker"].found


def test_the_driver_is_held_against_what_the_image_says_that_it_needs():
    engine = ENGINE.format('"nvidia":{}')
    old = lines(dataclasses.replace(CARDS["A100"], driver="550.127.08"))
    there = look(*old, engine, "image=13.0 580.65.06")["driver"]
    assert there.verdict is Verdict.UNFIT and "the image there is built for CUDA 13.0" in there.found
    assert "580.65.06" in there.remedy
    assert verdict(look(*old, engine, "image=12.8 525.60.13"), "driver") == "ok"
    assert verdict(look(*old, engine, "image=12.8 560.28.03"), "driver") == "unfit"  # its own word, not CUDA's rule
    assert verdict(look(*old, engine, "image=", labels="12.8 525.60.13"), "driver") == "ok"
    here = look(*old, engine, labels="13.0 580.65.06")["driver"]
    assert here.verdict is Verdict.UNFIT and "the image here" in here.found
    assert verdict(look(*old, engine, "image=none "), "driver") == "warn"
    assert verdict(look(*old, engine, "image=<no value> x"), "driver") == "unfit"  # says nothing: the lock counts
    venv = dataclasses.replace(HOST, executor="venv")
    assert "the environment" in look(*old, engine, "image=12.8 525.60.13", host=venv)["driver"].found


def test_no_engine_matters_only_to_who_asks_for_one():
    assert verdict(look(), "docker") == "ok"
    checks = look(host=dataclasses.replace(HOST, executor="docker"))
    assert verdict(checks, "docker") == "unfit" and "executor" not in checks


def test_which_disk_dies_on_release_and_how_that_is_known():
    checks = look()
    assert "lost on release (AutoDL's data disk" in checks["disk /root/autodl-tmp"].found
    assert "lost on release (the container's own layer" in checks["disk /"].found
    assert "kept on release" in checks["disk /root/autodl-fs"].found
    assert "disk /dev/shm" not in checks


@pytest.mark.parametrize(
    ("disk", "inodes", "mount", "expected"),
    [
        ("524288000 1 1000000 99%", "30000000 1 29999900 1%", "ext4 rw", "unfit"),
        ("524288000 1 10000000 98%", "30000000 1 29999900 1%", "ext4 rw", "warn"),
        ("524288000 1 513802240 1%", "300000 1 1500 99%", "ext4 rw", "unfit"),
        ("524288000 1 513802240 1%", "300000 1 30000 90%", "ext4 rw", "warn"),
        ("524288000 1 513802240 1%", "0 0 0 -", "btrfs rw", "ok"),
        ("524288000 1 513802240 1%", "30000000 1 29999900 1%", "ext4 ro", "unfit"),
        ("524288000 1 513802240 1%", "30000000 1 29999900 1%", "tmpfs rw", "warn"),
    ],
)
def test_the_disk_of_the_root_needs_room_inodes_and_permission(disk, inodes, mount, expected):
    checks = look(
        f"disk=/dev/x {disk} /root/autodl-tmp",
        f"inodes=/dev/x {inodes} /root/autodl-tmp",
        f"mount=/dev/x /root/autodl-tmp {mount},relatime 0 0",
        without=("disk=/dev/nvme", "inodes=/dev/nvme", "mount=/dev/nvme"),
    )
    assert verdict(checks, "disk /root/autodl-tmp") == expected


def test_a_root_on_the_small_system_disk_is_told_where_the_large_one_is():
    checks = look("root=/root/minimind", without=("root=",), host=dataclasses.replace(HOST, root="~/minimind"))
    assert verdict(checks, "disk /") == "warn"
    assert 'root = "/root/autodl-tmp/minimind"' in checks["disk /"].remedy


def test_a_mount_point_with_a_space_is_one_path():
    told = probe.parse("disk=/dev/sdb 100 1 99 1% /mnt/my disk\nmount=/dev/sdb /mnt/my\\040disk xfs rw 0 0\n")
    assert [(disk.path, disk.kind) for disk in disks.read(told)] == [("/mnt/my disk", "xfs")]


@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        ("1700000000.5", "ok"),
        ("1700000003.0", "ok"),
        ("1700003600.0", "warn"),
        ("1690000000.0", "unfit"),
        ("%s.%N", "ok"),
    ],
)
def test_a_clock_that_is_off(clock, expected):
    assert verdict(look(f"clock={clock}", without=("clock=",)), "clock") == expected


@pytest.mark.parametrize(
    ("without", "more", "name", "expected"),
    [
        ("nofile=", "nofile=256 4096", "limits", "unfit"),
        ("nofile=", "nofile=1024 1048576", "limits", "warn"),
        ("x=", "infiniband=mlx5_0", "limits", "warn"),
        ("rsync_version=", "rsync_version=rsync  version 3.2.7  protocol version 31", "rsync", "warn"),
        ("rsync_version=", "rsync_version=openrsync: protocol version 29", "rsync", "warn"),
        ("rsync=", "x=", "rsync", "ok"),
        ("python=", "python=3.10.2 /usr/bin/python3", "python", "unfit"),
        ("python=", "python=", "python", "unfit"),
        ("encoding=", "encoding=ascii", "locale", "warn"),
        ("ram=", "ram=2000000", "memory", "warn"),
        ("x=", "ram_limit=1073741824", "memory", "warn"),
        ("x=", "ram_limit=max", "memory", "ok"),
        ("net=index", "net=index no https://pypi.org/simple/", "index", "warn"),
        ("net=", "x=", "index", "warn"),
    ],
)
def test_what_is_small_old_or_missing(without, more, name, expected):
    assert verdict(look(more, without=(without,)), name) == expected


def test_little_shared_memory_matters_to_many_ranks_outside_of_docker():
    small = ("disk=shm 65536 0 65536 0% /dev/shm", *lines(CARDS["H100"]))
    assert verdict(look(*small, without=("disk=shm",)), "shm") == "warn"
    assert verdict(look(*small, ENGINE.format('"nvidia":{}'), without=("disk=shm",)), "shm") == "ok"


def test_hosts_that_reach_one_another():
    others = [Target(name="near", address="10.0.0.2", port=22), Target(name="far", address="10.0.0.3", port=2222)]
    checks = look("net=near 3", "net=far - 111", others=others)
    assert verdict(checks, "to near") == "ok" and verdict(checks, "to far") == "warn"


def test_a_host_that_lies_can_only_spoil_its_own_report():
    hostile = [
        "smi=<!DOCTYPE x [<!ENTITY a 'aaaa'>]>",
        "smi=<x>&a;</x>",
        "smi=code 0",
        "disk=\x1b[2J",
        "net=index",
        "mount=",
    ]
    checks = look(
        *hostile,
        "nofile=many",
        "memlock=x",
        "ram_limit=²",
        "pci_gpus=" + "9" * 5000,
        "smi=<a><!ENTITY",
        "ram=x",
        "cpu_max=1 0",
        "our_pid=x",
        without=("nofile=", "ram="),
    )
    assert checks["gpus"].verdict is not Verdict.OK


def test_the_lock_says_what_the_environment_is_built_for(tmp_path):
    lock = tmp_path / "cuda.lock"
    lock.write_text("nvidia-cublas==13.1.1.3\nnvidia-cuda-runtime==13.0.96 ; sys_platform == 'linux' \\\n")
    assert built_for(lock) == (13, 0)
    assert built_for(tmp_path / "none") is None
