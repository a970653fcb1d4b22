"""NVIDIA's driver and the cards' capability, held against what will train there. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from launch.doctor.check import Check, ok, unfit, warn
from launch.doctor.probe import Answers

MINIMUM_DRIVER = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}
"""CUDA major version -> the oldest Linux driver for all of its minor versions (CUDA compatibility guide of NVIDIA)."""
MINIMUM_CAPABILITY = {12: (5, 0), 13: (7, 5)}
"""CUDA major version -> the oldest compute capability it compiles for: 13 dropped Maxwell, Pascal and Volta."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What trains there and what it was built for; ``cuda`` is None for one that uses no GPU.

    ``driver`` is the oldest that it works with, None for CUDA's own rule.
    """

    what: str
    cuda: tuple[int, int] | None
    driver: tuple[int, ...] | None = None


def read_labels(what: str, told: str) -> Built | None:
    """An image's labels of CUDA and driver, as the probe tells them; None when they say nothing."""
    if told.split() == ["none"]:
        return Built(what=what, cuda=None)
    if match := re.fullmatch(r"(\d{1,3})\.(\d{1,3}) (\d[\d.]{,30})?.*", told.strip() + " "):
        driver = tuple(int(part) for part in (match[3] or "").split(".") if part)
        return Built(what=what, cuda=(int(match[1]), int(match[2])), driver=driver or None)
    return None


def judge(found: str, told: Answers, built: Built | None) -> list[Check]:
    """Whether the driver found is new enough, and the cards are."""
    return [_driver(found, built), *_capability(told, built.cuda if built else None)]


def _driver(found: str, built: Built | None) -> Check:
    version = tuple(int(part) for part in found.split(".") if part.isdecimal())
    if built is None:
        return ok("driver", found)
    if built.cuda is None:
        return warn(
            "driver",
            f"{found}, and {built.what} is built without CUDA",
            "make image FLAVOUR=cuda, and name it with image for this host",
        )
    needed = built.driver or MINIMUM_DRIVER.get(built.cuda[0])
    if needed is None:
        return ok("driver", found)
    said = f"{built.what} is built for CUDA {built.cuda[0]}.{built.cuda[1]}"
    if version < needed:
        least = ".".join(f"{part:02}" for part in needed)
        return unfit("driver", f"{found}, and {said}", f"install driver {least} or newer, or rent with a newer image")
    return ok("driver", f"{found}, new enough: {said}")


def _capability(told: Answers, cuda: tuple[int, int] | None) -> list[Check]:
    found = [
        tuple(map(int, line.split("."))) for line in told.all("capability") if re.fullmatch(r"\d+\.\d+", line.strip())
    ]
    least = MINIMUM_CAPABILITY.get(cuda[0]) if cuda else None
    if not found or least is None or cuda is None or min(found) >= least:
        return []
    lowest = ".".join(map(str, min(found)))
    return [
        unfit(
            "capability",
            f"compute capability {lowest}; CUDA {cuda[0]} needs {least[0]}.{least[1]}",
            "set python = PATH of an interpreter whose torch still supports this GPU, or take another GPU",
        )
    ]
