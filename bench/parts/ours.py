"""`python -m minimind …` that also says how much memory it took at most, in ``peak.json`` of its run directory."""

import json
import pathlib
import resource
import sys

from minimind.__main__ import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    run_dir = pathlib.Path(sys.argv[sys.argv.index("--run_dir") + 1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (run_dir / "peak.json").write_text(json.dumps({"peak_bytes": peak}))
    sys.exit(code)
