"""Can this machine train? ``python -m minimind.selftest disk FOLDER`` and, under torchrun, ``allreduce``.

Both print JSON. The disk test needs the standard library alone. Nothing stays behind.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from minimind.process import leave

WRITE_BYTES = 256 << 20
BLOCK_BYTES = 4 << 20
SYNCS = 32
ELEMENTS = 1 << 22
REPEATS = 10


def disk(folder: Path) -> dict[str, float]:
    """Write a file with fsync at its end, then small ones with an fsync each.

    Returns:
        ``write_bytes_per_s``, ``fsync_median_s``, ``fsync_max_s``.
    """
    block = os.urandom(BLOCK_BYTES)  # not zeros: some disks compress
    with tempfile.TemporaryDirectory(dir=folder, prefix=".selftest-") as place:
        begun = time.perf_counter()
        with open(Path(place) / "large", "wb") as file:
            for _ in range(WRITE_BYTES // BLOCK_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        took_s = time.perf_counter() - begun
        taken = []
        with open(Path(place) / "small", "wb") as file:
            for _ in range(SYNCS):
                begun = time.perf_counter()
                file.write(block[:4096])
                file.flush()
                os.fsync(file.fileno())
                taken.append(time.perf_counter() - begun)
    return {
        "write_bytes_per_s": WRITE_BYTES / took_s,
        "fsync_median_s": statistics.median(taken),
        "fsync_max_s": max(taken),
    }


def allreduce() -> dict[str, float | int | str] | None:
    """Sum a tensor over the ranks until it is warm, check the sum, then time it.

    Returns:
        on rank 0: ``ranks``, ``device``, ``bytes_per_s`` (bus bandwidth: what each rank sends, 2 (N - 1) / N of the
        tensor a call, as in the tests of NCCL); None on the others.

    Raises:
        RuntimeError: when a sum is wrong.
    """
    import torch
    import torch.distributed as dist

    from minimind.dist import world

    with world("auto") as w:
        tensor = torch.empty(ELEMENTS, dtype=torch.float32, device=w.device)  # (ELEMENTS,)
        for _ in range(2):
            tensor.fill_(w.rank + 1)
            if w.size > 1:
                dist.all_reduce(tensor)
            expected = w.size * (w.size + 1) / 2
            if not bool((tensor == expected).all()):
                raise RuntimeError(f"rank {w.rank}: the sum over {w.size} ranks is wrong")
        if w.device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(REPEATS):
            if w.size > 1:
                dist.all_reduce(tensor)
        if w.device.type == "cuda":
            torch.cuda.synchronize()
        took_s = (time.perf_counter() - began) / REPEATS
        sent_bytes = 2 * (w.size - 1) / w.size * tensor.numel() * tensor.element_size()
        return {"ranks": w.size, "device": w.device.type, "bytes_per_s": sent_bytes / took_s} if w.leader else None


def main(argv: list[str]) -> int:
    """Run one test and print what it found."""
    said = (
        disk(Path(argv[1])) if argv[:1] == ["disk"] and len(argv) == 2 else allreduce() if argv == ["allreduce"] else {}
    )
    if said == {}:
        print("usage: python -m minimind.selftest disk FOLDER | allreduce", file=sys.stderr)
        return 2
    if said is not None:
        print(json.dumps(said), flush=True)
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
