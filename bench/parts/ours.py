"""`python -m minimind …` that also says what its metrics do not: peak memory, and the pass before the first step.

Both stand in ``peak.json`` of the run directory.
"""

import json
import pathlib
import resource
import sys
import time

from minimind.__main__ import main
from minimind.stages.dpo import Dpo

before_s = 0.0
begin = Dpo.begin


def timed(self: Dpo, *args: object) -> None:
    """The reference pass, with its time kept."""
    global before_s
    start = time.perf_counter()
    begin(self, *args)
    before_s = time.perf_counter() - start


if __name__ == "__main__":
    Dpo.begin = timed
    code = main(sys.argv[1:])
    run_dir = pathlib.Path(sys.argv[sys.argv.index("--run_dir") + 1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (run_dir / "peak.json").write_text(json.dumps({"peak_bytes": peak, "before_s": before_s}))
    sys.exit(code)
