"""GPUs: what ``nvidia-smi`` says in its machine-readable forms, and what to think of it. Pure."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from launch.doctor import driver
from launch.doctor.check import Check, ok, unfit, warn
from launch.doctor.probe import Answers

NO_DRIVER, NO_DEVICE, NO_LIBRARY, GPU_LOST, MISMATCH = 9, 6, 12, 15, 18
"""Exit codes of nvidia-smi: those of the NVML library."""
XID_BROKEN = {
    48: "double-bit memory error",
    64: "a row could not be remapped",
    79: "fell off the bus",
    95: "uncontained",
}
IN_USE_MIB = 1024
"""A context that nobody uses takes some hundred MiB; more than this is somebody's work."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as ``nvidia-smi -q -x`` describes it. Counts are None where the card does not keep them."""

    name: str
    memory_mib: int
    used_mib: int
    pids: tuple[int, ...]
    uncorrectable: int | None
    remap_pending: bool
    remap_failed: bool
    slowed_down: tuple[str, ...]
    mig: bool


@dataclass(frozen=True, kw_only=True)
class Smi:
    """``nvidia-smi -q -x``: its exit code, the driver, the GPUs; ``code`` is None where there is no such program."""

    code: int | None
    driver: str
    gpus: tuple[Gpu, ...]


def read_smi(lines: Sequence[str]) -> Smi:
    """Read the XML and the ``code N`` after it. What is not XML is a failure that its exit code explains."""
    if not lines:
        return Smi(code=None, driver="", gpus=())
    code = int(match[1]) if (match := re.fullmatch(r"code (\d+)", lines[-1])) else 1
    text = "\n".join(line for line in lines[:-1] if not line.startswith("<!DOCTYPE"))
    if "<!" in text:  # entities could grow without end, and nvidia-smi defines none
        return Smi(code=code or 1, driver="", gpus=())
    try:
        log = ElementTree.fromstring(text)  # noqa: S314 -- see above
    except ElementTree.ParseError:
        return Smi(code=code or 1, driver="", gpus=())
    version = log.findtext("driver_version", "").strip()
    return Smi(code=code, driver=version, gpus=tuple(_gpu(element) for element in log.iter("gpu")))


def _gpu(gpu: ElementTree.Element) -> Gpu:
    reasons = (
        element for tag in ("clocks_event_reasons", "clocks_throttle_reasons") for element in gpu.iterfind(f"{tag}/*")
    )
    slow = {r.tag.rpartition("_reason_")[2] for r in reasons if (r.text or "").strip() == "Active"}
    return Gpu(
        name=gpu.findtext("product_name", "unknown GPU").strip(),
        memory_mib=_mib(gpu, "fb_memory_usage/total") or 0,
        used_mib=_mib(gpu, "fb_memory_usage/used") or 0,
        pids=tuple(
            int(pid.text) for pid in gpu.iterfind("processes/process_info/pid") if pid.text and pid.text.isdecimal()
        ),
        uncorrectable=_uncorrectable(gpu),
        remap_pending=_says(gpu, "remapped_rows/remapped_row_pending")
        or _says(gpu, "retired_pages/pending_retirement"),
        remap_failed=_says(gpu, "remapped_rows/remapped_row_failure"),
        slowed_down=tuple(sorted(slow & {"hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown"})),
        mig=gpu.findtext("mig_mode/current_mig", "").strip() == "Enabled",
    )


def _mib(gpu: ElementTree.Element, path: str) -> int | None:
    match = re.match(r"(\d+) MiB", gpu.findtext(path, "").strip())
    return int(match[1]) if match else None


def _says(gpu: ElementTree.Element, path: str) -> bool:
    return gpu.findtext(path, "").strip() == "Yes"


def _uncorrectable(gpu: ElementTree.Element) -> int | None:
    """Errors since the last reset that ECC could not repair, over every kind of memory that is counted."""
    counters = [element for element in gpu.iterfind("ecc_errors/volatile//*") if "uncorrectable" in element.tag]
    counters += gpu.findall("ecc_errors/volatile/double_bit/total")
    texts = [(counter.text or "").strip() for counter in counters if not len(counter)]
    counts = [int(text) for text in texts if text.isdecimal()]
    return sum(counts) if counts else None


def judge(told: Answers, *, expected: int | None, built: driver.Built | None, is_local: bool) -> list[Check]:
    """Every line about GPUs. ``expected`` is launch.toml's number, ``built`` what will train there."""
    smi = read_smi(told.all("smi"))
    pci = int(told.number("pci_gpus") or 0)
    if smi.code != 0 or not smi.gpus:
        return [_none(smi, pci=pci, expected=expected, is_local=is_local)]
    return [
        _models(smi, expected=expected),
        *driver.judge(smi.driver, told, built),
        _health(smi, told),
        *_topology(told.all("topo"), len(smi.gpus)),
        _processes(smi, {int(pid) for pid in told.all("our_pid") if pid.isdecimal()}),
    ]


def _none(smi: Smi, *, pci: int, expected: int | None, is_local: bool) -> Check:
    reload = "reboot the machine; if that does not help, install the driver anew"
    match smi.code:
        case None | 0 | 6 if not pci:
            if expected == 0 or (is_local and not expected):
                return ok("gpus", "none: training runs on the CPU")
            if expected:
                return unfit(
                    "gpus", f"none, and launch.toml says {expected}", "see in the provider's console what was rented"
                )
            return warn("gpus", "none: training runs on the CPU", "if that is meant, set gpus = 0 for this host")
        case None:
            return unfit("gpus", f"{pci} on the PCI bus, but no nvidia-smi", "install NVIDIA's driver there")
        case 9 | 12:
            found = "nvidia-smi finds no driver" if smi.code == NO_DRIVER else "nvidia-smi finds no NVML library"
            return unfit("gpus", f"{found} (its exit code {smi.code})", reload)
        case 15:
            return unfit(
                "gpus", "a GPU fell off the bus (exit code 15 of nvidia-smi)", "reboot, or ask for another machine"
            )
        case 18:
            return unfit("gpus", "the driver and its library differ (exit code 18 of nvidia-smi)", "reboot the machine")
    return unfit("gpus", f"nvidia-smi ended with code {smi.code} and told of no GPU", reload)


def _models(smi: Smi, *, expected: int | None) -> Check:
    kinds = Counter((gpu.name, gpu.memory_mib) for gpu in smi.gpus)
    found = ", ".join(f"{count} x {name}, {mib / 1024:.0f} GiB each" for (name, mib), count in kinds.items())
    if expected is not None and expected > len(smi.gpus):
        return unfit(
            "gpus", f"{found}; launch.toml says {expected}", "see which is missing, or correct gpus in launch.toml"
        )
    if any(gpu.mig for gpu in smi.gpus):
        return warn(
            "gpus", f"{found}; MIG is on", "a process sees one slice only: switch MIG off to train on whole GPUs"
        )
    if len(kinds) > 1:
        return warn("gpus", f"{found}: not alike", "the slowest sets the pace; take --nproc for the alike ones only")
    return ok("gpus", found)


def _health(smi: Smi, told: Answers) -> Check:
    another = "reset or reboot it and look again; if it stays, ask for another machine"
    xids = Counter(int(match[1]) for line in told.all("xid") if (match := re.search(r"Xid \([^)]*\): (\d+)", line)))
    counted = [gpu.uncorrectable for gpu in smi.gpus if gpu.uncorrectable is not None]
    ecc = f"ECC: {sum(counted)} uncorrectable" if counted else "ECC: not counted by this model"
    log = "Xid: none" if told.one("kernel_log") else "Xid: the kernel's log is not readable here"
    if any(gpu.remap_failed for gpu in smi.gpus):
        return unfit(
            "gpu health", "a row of memory could not be remapped", "ask for another machine: this GPU is worn out"
        )
    if broken := {number: XID_BROKEN[number] for number in xids if number in XID_BROKEN}:
        said = ", ".join(f"Xid {number} ({what})" for number, what in broken.items())
        return unfit("gpu health", f"the kernel's log has {said}", another)
    if sum(counted):
        return unfit("gpu health", ecc, another)
    if any(gpu.remap_pending for gpu in smi.gpus):
        return warn("gpu health", f"{ecc}; repairs of memory wait for a reset", "reset or reboot it before a long run")
    if slow := sorted({reason for gpu in smi.gpus for reason in gpu.slowed_down}):
        return warn(
            "gpu health", f"slowed down: {', '.join(slow)}", "it is too hot or short of power: ask the provider"
        )
    if xids:
        said = ", ".join(f"{number} ({count} x)" for number, count in sorted(xids.items()))
        return warn("gpu health", f"{ecc}; Xid: {said}", "mostly faults of programs; look them up if runs die")
    return ok("gpu health", f"{ecc}; {log}")


def read_topology(lines: Sequence[str], gpus: int) -> Counter[str]:
    """How pairs of GPUs are joined: NV18, PIX, PXB, PHB, NODE or SYS, with the number of pairs."""
    pairs: Counter[str] = Counter()
    for line in lines:
        cells = re.sub(r"\x1b\[[0-9;]*m", "", line).split()
        if (
            not cells
            or not (own := re.fullmatch(r"GPU(\d+)", cells[0]))
            or len(cells) < 2
            or cells[1].startswith("GPU")
        ):
            continue
        columns = cells[1 : gpus + 1]  # network cards follow
        pairs.update(cell for cell in columns[int(own[1]) + 1 :] if re.fullmatch(r"NV\d+|PIX|PXB|PHB|NODE|SYS", cell))
    return pairs


def _topology(lines: Sequence[str], gpus: int) -> list[Check]:
    if gpus < 2:
        return []
    pairs = read_topology(lines, gpus)
    if not pairs:
        return [warn("topology", "`nvidia-smi topo -m` tells nothing", "measure it: launch doctor --deep")]
    means = {
        "SYS": "across sockets",
        "NODE": "within a socket",
        "PHB": "through the CPU",
        "PXB": "bridges",
        "PIX": "one bridge",
    }
    said = ", ".join(
        f"{count} pairs {kind}" + ("" if kind.startswith("NV") else f" ({means[kind]})")
        for kind, count in pairs.most_common()
    )
    joined = (
        "NVLink"
        if all(kind.startswith("NV") for kind in pairs)
        else "PCIe"
        if not any(k.startswith("NV") for k in pairs)
        else "mixed"
    )
    return [ok("topology", f"{joined}: {said}")]


def _processes(smi: Smi, ours: set[int]) -> Check:
    foreign = {pid for gpu in smi.gpus for pid in gpu.pids} - ours
    busy = [gpu for gpu in smi.gpus if gpu.used_mib > IN_USE_MIB and not set(gpu.pids) & ours]
    full = [gpu for gpu in busy if gpu.used_mib > gpu.memory_mib / 2]
    used = f"{sum(gpu.used_mib for gpu in smi.gpus) / 1024:.1f} GiB in use"
    end = "end it if it is yours; else ask the provider for GPUs of your own"
    if foreign:
        said = f"{len(foreign)} of others ({', '.join(map(str, sorted(foreign)[:8]))}), {used}"
        return (unfit if full else warn)("gpu processes", said, end)
    if busy:
        return (unfit if full else warn)("gpu processes", f"{used} by processes that cannot be seen from here", end)
    count = len({pid for gpu in smi.gpus for pid in gpu.pids})
    return ok("gpu processes", f"{count} of runs of launch" if count else "none")
