"""Disks of a host: room, inodes, and which of them die when the host is given back. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from launch.doctor.check import Check, amount, ok, unfit, warn
from launch.doctor.probe import Answers
from launch.facts import BRIEF_S, HostFacts

LEAST_BYTES, ROOMY_BYTES = 2_000_000_000, 20_000_000_000
"""Below the first a run cannot even save; below the second an environment and a few checkpoints do not fit."""
LEAST_INODES, ROOMY_INODES = 2_000, 60_000
"""An environment has tens of thousands of files."""
NETWORK = re.compile(r"nfs\d?|cifs|smb\d?|ceph|lustre|beegfs|gpfs|glusterfs|fuse\..*|wekafs|efs|afs|9p|virtiofs")
MEMORY = ("tmpfs", "ramfs")
REAL = re.compile(r"ext[234]|xfs|btrfs|zfs|f2fs|overlay|apfs|hfs|bcachefs|jfs|reiserfs|" + NETWORK.pattern)
NOT_FOR_DATA = re.compile(
    r"/(proc|sys|dev|run|etc|boot|snap|usr|lib|var/lib/(docker|containerd|kubelet|snapd)|System)(/|$)"
)
PLACES = {
    "/root/autodl-tmp": (True, "AutoDL's data disk: not in a saved image, gone when the instance is released"),
    "/root/autodl-fs": (False, "AutoDL's file storage: outlives instances of its region"),
    "/root/autodl-pub": (False, "AutoDL's public data, read-only"),
    "/workspace": (True, "a pod's volume, by its name: gone with the pod unless it is a network volume"),
}


@dataclass(frozen=True, kw_only=True)
class Disk:
    """One mounted file system. Inodes are None where it does not count them."""

    path: str
    device: str
    kind: str
    free_bytes: int
    total_bytes: int
    free_inodes: int | None
    readonly: bool

    def holds(self, path: str) -> bool:
        """Whether the path lies below the mount point."""
        return self.path == "/" or path == self.path or path.startswith(f"{self.path}/")


def read(told: Answers) -> list[Disk]:
    """Every file system that ``df`` tells of, the one mounted last where a path is told twice."""
    mounts = {}
    for line in told.all("mount"):
        if len(words := line.split()) >= 4:
            mounts[words[1].replace("\\040", " ")] = (words[2], words[3].split(","))
    inodes = {path: free for _, _, free, path in map(_df, told.all("inodes")) if path}
    disks = {}
    for device, total, free, path in map(_df, told.all("disk")):
        if path:
            kind, options = mounts.get(path, ("unknown", []))
            disks[path] = Disk(
                path=path,
                device=device,
                kind=kind,
                free_bytes=free * 1024,
                total_bytes=total * 1024,
                free_inodes=inodes[path] if inodes.get(path) or total == 0 else None,
                readonly="ro" in options,
            )
    return list(disks.values())


def _df(line: str) -> tuple[str, int, int, str]:
    # "filesystem blocks used available capacity% mount": both names may hold spaces
    match = re.fullmatch(r"(.+?)\s+(\d+)\s+\d+\s+(-?\d+)\s+\S+%\s+(/.*)", line)
    return (match[1], int(match[2]), max(0, int(match[3])), match[4]) if match else ("", 0, 0, "")


def fate(disk: Disk, facts: HostFacts, *, rented: bool, virtual: bool) -> tuple[bool | None, str]:
    """Whether what lies there is lost when the host is given back (None: not known), and how that is known."""
    if disk.kind in MEMORY:
        return True, "memory: lost at the next reboot"
    if place := next((said for path, said in PLACES.items() if disk.path == path), None):
        return place
    if NETWORK.fullmatch(disk.kind):
        return False, f"network storage by its type, {disk.kind}"
    if not rented:
        return None, "nothing in launch.toml says that this host is rented"
    if facts.in_container:
        if disk.path == "/":
            return True, "the container's own layer: ends with the instance; a saved image keeps it"
        return True, "a local disk of a container: providers delete it with the instance"
    if disk.path == "/":
        return True, "the system disk of a rented machine: usually deleted with it"
    return None, "a volume of a virtual machine may outlive it" if virtual else "a second disk of a rented machine"


def judge(told: Answers, facts: HostFacts, *, host: str, rented: bool, virtual: bool) -> list[Check]:
    """A line for the disk of the root, and one for every other that is for data."""
    disks = read(told)
    home = max((disk for disk in disks if disk.holds(facts.root)), key=lambda disk: len(disk.path), default=None)
    if home is None:
        return [_untold(told, facts)]
    wanted = [disk for disk in disks if disk is not home and _is_for_data(disk, home)]
    larger = max(
        (d for d in wanted if not d.readonly and not NETWORK.fullmatch(d.kind)),
        key=lambda d: d.free_bytes,
        default=None,
    )
    checks = []
    for disk in (home, *wanted):
        dies, how = fate(disk, facts, rented=rented, virtual=virtual)
        lost = {True: "lost on release", False: "kept on release", None: "on release: not known"}[dies]
        inodes = "inodes not counted" if disk.free_inodes is None else f"{disk.free_inodes} inodes free"
        said = f"{amount(disk.free_bytes)} of {amount(disk.total_bytes)} free, {inodes}; {lost} ({how})"
        name = f"disk {disk.path}"
        checks.append(_root(name, said, disk, facts, host=host, larger=larger) if disk is home else ok(name, said))
    return checks


def _untold(told: Answers, facts: HostFacts) -> Check:
    room = "" if facts.free_bytes is None else f"; {amount(facts.free_bytes)} free where {facts.root} lies"
    if "df" not in told.all("silent"):
        return warn("disk", f"`df` tells nothing{room}", f"look at {facts.root} by hand")
    said = f"df did not answer in {BRIEF_S} s: a network mount whose server is gone is the likely cause{room}"
    remedy = "find the mount (`cat /proc/mounts`) and let it go: `umount -f -l PATH`"
    if facts.free_bytes is not None and facts.free_bytes < LEAST_BYTES:
        return unfit("disk", said, f"free space there; {remedy}")
    return warn("disk", said, remedy)


def _is_for_data(disk: Disk, home: Disk) -> bool:
    known = disk.path in PLACES or disk.path == "/" or not NOT_FOR_DATA.match(disk.path)
    return known and bool(REAL.fullmatch(disk.kind)) and (disk.device != home.device or disk.path == "/")


def _root(name: str, said: str, disk: Disk, facts: HostFacts, *, host: str, larger: Disk | None) -> Check:
    said = f"holds the root {facts.root}: {said}"
    roomier = larger is not None and larger.free_bytes > 2 * disk.free_bytes
    move = (
        f'set root = "{larger.path.rstrip("/")}/minimind" for {host}' if larger and roomier else f"free space on {host}"
    )
    if disk.readonly:
        return unfit(name, f"{said}; mounted read-only", f'set root = "PATH" for {host} to a disk that can be written')
    if disk.free_bytes < LEAST_BYTES:
        return unfit(name, said, move)
    if disk.free_inodes is not None and disk.free_inodes < LEAST_INODES:
        return unfit(
            name, said, f"remove files, not bytes: an old environment below {facts.root}/env has tens of thousands"
        )
    if disk.free_bytes < ROOMY_BYTES:
        return warn(name, said, move)
    if disk.free_inodes is not None and disk.free_inodes < ROOMY_INODES:
        return warn(name, said, "an environment has tens of thousands of files: use another disk, or python = PATH")
    if disk.kind in MEMORY:
        return warn(name, said, f'set root = "PATH" for {host} to a disk: a reboot empties this')
    if roomier and disk.path == "/" and facts.in_container:
        return warn(name, said, f"{move}: the system disk of a container is small")
    return ok(name, said)


def shared_memory(told: Answers) -> int | None:
    """The size of /dev/shm in bytes; None where there is none."""
    return next((disk.total_bytes for disk in read(told) if disk.path == "/dev/shm"), None)  # noqa: S108
