"""`python -m minimind …` that also writes ``watched.json`` in the run directory: peaks of memory, the way of attending,
and the type that was computed in.

``BENCH_ATTENTION`` names the only way of attending that may be chosen; empty leaves the usual one.
"""

import json
import os
import pathlib
import resource
import sys

import torch

from minimind import loop, probe
from minimind.__main__ import main


def noted(choose, chosen: list):
    """The same, its answers written down."""

    def and_note(*arguments):
        chosen.append(choose(*arguments))
        return chosen[-1]

    return and_note


if __name__ == "__main__":
    if "BENCH_ATTENTION" in os.environ:
        probe.PREFERRED = tuple(os.environ["BENCH_ATTENTION"].split())
    chosen: list[str | None] = []
    probe.choose = noted(probe.choose, chosen)
    types: list[str] = []
    loop.computed_in = noted(loop.computed_in, types)
    code = main(sys.argv[1:])
    run_dir = pathlib.Path(sys.argv[sys.argv.index("--run_dir") + 1])
    told = {
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0,
        "dtype": types[0] if types else None,
        "attention": chosen[0] if chosen else None,
    }
    (run_dir / "watched.json").write_text(json.dumps(told))
    sys.exit(code)
