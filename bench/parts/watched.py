"""`python -m minimind …` that also says the peaks of main and GPU memory, in ``watched.json`` of the run directory."""

import json
import pathlib
import resource
import sys

import torch

from minimind.__main__ import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    run_dir = pathlib.Path(sys.argv[sys.argv.index("--run_dir") + 1])
    told = {
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0,
    }
    (run_dir / "watched.json").write_text(json.dumps(told))
    sys.exit(code)
