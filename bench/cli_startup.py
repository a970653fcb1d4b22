"""What does `launch --help` cost over a bare click program? Prints both and the ratio; more than 2x is a failure."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
BARE = "import click\n\n\n@click.group()\ndef cli():\n    '''Bare.'''\n\n\ncli()\n"
LIMIT = 2.0


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=environ)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="how often each is started")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bare = pathlib.Path(folder) / "bare.py"
        bare.write_text(BARE)
        commands = {
            "bare_click_s": [sys.executable, str(bare), "--help"],
            "launch_s": [sys.executable, "-m", "launch", "--help"],
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.repeats + 1):  # in turns, so that a busy moment hits both
            for name, command in commands.items():
                taken[name].append(seconds(command))
    medians = {name: statistics.median(values[1:]) for name, values in taken.items()}
    ratio = medians["launch_s"] / medians["bare_click_s"]
    if options.json:
        print(json.dumps({**medians, "ratio": ratio, "limit": LIMIT}))
    else:
        print(f"a bare click program   {medians['bare_click_s'] * 1000:7.1f} ms")
        print(f"launch --help          {medians['launch_s'] * 1000:7.1f} ms")
        print(f"ratio                  {ratio:7.2f}    (at most {LIMIT})")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
