"""Everything about a host but its GPUs and disks. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from launch.doctor import disks
from launch.doctor.check import Check, amount, ok, unfit, warn
from launch.doctor.probe import Answers, Target
from launch.facts import BRIEF_S, HostFacts, docker_info
from launch.inventory import Host

SAFE_RSYNC = (3, 5, 0)
"""Fixes 33 faults, one of them critical, that a hostile far side can use against either end (NEWS of rsync 3.5.0)."""
CLOCK_WARN_S, CLOCK_UNFIT_S = 5.0, 86400.0
"""Certificates of an index fail when the clock is a day off; seconds make logs of two machines hard to compare."""
LEAST_FILES, GOOD_FILES = 1024, 4096
SHM_BYTES_PER_RANK = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Clock:
    """When it was here as the host told its time: between two moments, seconds since the epoch."""

    asked_at: float
    heard_at: float


def judge(
    told: Answers, facts: HostFacts, host: Host, *, clock: Clock, targets: Sequence[Target], executor: str, ranks: int
) -> list[Check]:
    """Every line but those about GPUs and disks; ``executor`` is what a run would use, ``ranks`` its processes."""
    return [
        _ssh(host, facts, clock),
        _clock(told, facts, clock),
        _machine(told, facts),
        _memory(told),
        _docker(told, facts, host, executor),
        _shm(told, executor, ranks),
        _limits(told),
        _rsync(told, facts, host),
        _python(facts, host, executor),
        _encoding(told),
        *_network(told, targets),
        *_silent(told),
    ]


def _ssh(host: Host, facts: HostFacts, clock: Clock) -> Check:
    if host.ssh is None:
        return ok("ssh", f"this machine, as {facts.user}")
    return ok("ssh", f"in as {facts.user}, first answer after {(clock.heard_at - clock.asked_at) * 1000:.0f} ms")


def _clock(told: Answers, facts: HostFacts, clock: Clock) -> Check:
    there = told.number("clock") or facts.now
    if there is None:
        return warn("clock", "its `date` tells no time", "log in and see what `date +%s` prints")
    middle, half = (clock.heard_at + clock.asked_at) / 2, (clock.heard_at - clock.asked_at) / 2
    half += 0.0 if "." in told.one("clock") else 1.0  # a clock told in whole seconds
    off = there - middle
    if abs(off) <= half:
        return ok("clock", f"as here, within {half:.1f} s")
    said = f"{abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} this machine"
    remedy = "let it ask a time server (chrony, systemd-timesyncd); in a container the provider must"
    if abs(off) > CLOCK_UNFIT_S:
        return unfit("clock", said, remedy)
    return warn("clock", said, remedy) if abs(off) > CLOCK_WARN_S else ok("clock", said)


def is_virtual(told: Answers) -> bool:
    """Whether a hypervisor is below."""
    return bool(told.one("hypervisor")) or told.one("virt") not in ("", "none")


def _machine(told: Answers, facts: HostFacts) -> Check:
    kind = "a container" if facts.in_container else "a virtual machine" if is_virtual(told) else "a machine"
    virt = told.one("virt")
    return ok(
        "machine",
        f"{kind}{f' ({virt})' if virt not in ('', 'none') else ''}, {facts.system} {facts.arch}, {facts.cpus} CPUs",
    )


def _memory(told: Answers) -> Check:
    total = int(told.number("ram") or 0) * 1024
    limits = [int(limit) for limit in told.all("ram_limit") if limit.isdecimal()]
    usable = min([total, *(limit for limit in limits if 0 < limit < total)])
    quota = re.fullmatch(r"(\d+) ([1-9]\d*)", told.one("cpu_max"))
    cpus = f", a quota of {int(quota[1]) / int(quota[2]):.1f} CPUs" if quota else ""
    if not total:
        return ok("memory", "not told")
    said = f"{amount(usable)}{f' of {amount(total)} (a limit of its cgroup)' if usable < total else ''}{cpus}"
    if usable < 3_000_000_000:
        return warn("memory", said, "torch alone takes most of that: take a larger machine, or --nproc 1")
    return ok("memory", said)


def _docker(told: Answers, facts: HostFacts, host: Host, executor: str) -> Check:
    if not facts.docker_usable:
        why = "in a container there is none" if facts.in_container else "no engine answers this user"
        if host.executor == "docker":
            return unfit(
                "docker", why, f'start it, add the user to its group, or set executor = "venv" for {host.name}'
            )
        return ok("docker", f"{why}: runs use a virtual environment")
    info = docker_info(told.one("docker"))
    found = f"engine {info.get('ServerVersion')}"
    if not (facts.gpus or int(told.number("pci_gpus") or 0)):
        return ok("docker", found)
    if facts.docker_has_nvidia:
        return ok("docker", f"{found}, GPUs by --gpus")
    cdi = "GPUs by CDI only" if told.one("cdi") else "no way for GPUs into a container"
    remedy = f'install nvidia-container-toolkit, or set executor = "venv" for {host.name}'
    return (
        unfit("docker", f"{found}, {cdi}", remedy)
        if executor == "docker"
        else ok("docker", f"{found}, {cdi}; not used")
    )


def _shm(told: Answers, executor: str, ranks: int) -> Check:
    size = disks.shared_memory(told)
    if size is None:
        return ok("shm", "not told" if "df" in told.all("silent") else "no /dev/shm")
    if executor == "docker":
        return ok("shm", f"{amount(size)}; containers of launch get their own")
    if ranks > 1 and size < SHM_BYTES_PER_RANK * ranks:
        remedy = (
            "mount it larger (mount -o remount,size=8G /dev/shm, docker run --shm-size), or export NCCL_SHM_DISABLE=1"
        )
        return warn("shm", f"{amount(size)} for {ranks} ranks", remedy)
    return ok("shm", amount(size))


def _limits(told: Answers) -> Check:
    soft, hard = [*told.one("nofile").split(), "", ""][:2]
    memlock = [*told.one("memlock").split(), ""][0]
    locked = amount(int(memlock) * 1024) if memlock.isdecimal() else memlock
    said = f"{soft or '?'} open files (at most {hard or '?'}), {locked or '?'} of locked memory"
    if soft.isdecimal() and int(soft) < GOOD_FILES:
        remedy = "raise it: `ulimit -n 65536` in the login shell's profile, or LimitNOFILE= of its service"
        return (unfit if int(soft) < LEAST_FILES else warn)("limits", said, remedy)
    if told.all("infiniband") and memlock not in ("", "unlimited"):
        return warn("limits", f"{said}; InfiniBand is there", "set memlock to unlimited in /etc/security/limits.conf")
    return ok("limits", said)


def _rsync(told: Answers, facts: HostFacts, host: Host) -> Check:
    least = ".".join(map(str, SAFE_RSYNC))
    if not facts.rsync:
        return ok("rsync", "none: files are copied over the plain connection")
    match = re.search(r"version v?(\d+)\.(\d+)\.(\d+)", told.one("rsync_version"))
    if match is None:
        return warn("rsync", "of a kind that does not tell its version", f"install rsync {least} or newer")
    version = tuple(int(part) for part in match.groups())
    package = told.one("rsync_package")
    found = ".".join(match.groups()) + (f" (package {package})" if package else "")
    if version >= SAFE_RSYNC:
        return ok("rsync", found)
    said = f"{found}: older than {least}, which closes holes that the other side can use"
    where = "this machine" if host.ssh is None else host.name
    return warn("rsync", said, f"bring it up to date on {where}; a distribution may have repaired an older number")


def _python(facts: HostFacts, host: Host, executor: str) -> Check:
    if facts.python_version is None or facts.python is None:
        if executor == "docker":
            return ok("python", "none; runs use the image's")
        return unfit(
            "python", f"{host.python} does not run" if host.python else "none", "install Python 3.11 or newer there"
        )
    found = f"{'.'.join(map(str, facts.python_version))} at {facts.python}"
    if facts.python_ready or executor == "docker":
        return ok("python", found)
    remedy = f"install Python 3.11 or newer (apt, conda, uv), or set python = PATH for {host.name}"
    return unfit("python", f"{found}: older than 3.11", remedy)


def _encoding(told: Answers) -> Check:
    encoding = told.one("encoding")
    if not encoding:
        return ok("locale", "not told")
    if encoding.lower() == "utf-8":
        return ok("locale", "file names are UTF-8")
    return warn("locale", f"file names are {encoding}", "export PYTHONUTF8=1 in the login shell's profile")


def _silent(told: Answers) -> list[Check]:
    """What had to be ended, but for ``df``, of which the disks tell."""
    remedy = "log in and see what it waits for"
    names = sorted(set(told.all("silent")) - {"df", ""})
    return [warn(f"probe {name}", f"{name} did not answer in {BRIEF_S} s", remedy) for name in names]


def _network(told: Answers, targets: Sequence[Target]) -> list[Check]:
    answers = told.words("net")
    checks = []
    for name, without in (
        ("index", "launch sends packages from here instead; or set PIP_INDEX_URL on the host to a mirror"),
        ("hub", "nothing, unless you download there: then set HF_ENDPOINT on the host to a mirror"),
    ):
        match answers.get(name):
            case ["yes", url]:
                checks.append(ok(name, f"{url} answers"))
            case ["no", url]:
                checks.append(warn(name, f"{url} does not answer", without))
            case _:
                checks.append(warn(name, "not tried: no answer from Python there within 10 s", without))
    for target in targets:
        match answers.get(target.name):
            case [time_ms] if time_ms.isdecimal():
                checks.append(ok(f"to {target.name}", f"{target.address} port {target.port} answers in {time_ms} ms"))
            case _:
                said = f"{target.address} port {target.port} cannot be reached from there"
                checks.append(
                    warn(f"to {target.name}", said, "nothing: copies between the two go through this machine")
                )
    return checks
