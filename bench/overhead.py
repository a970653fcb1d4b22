"""What share of a step is neither forward, backward nor optimiser?

Trains a 64x2 model at batch 32 with a line on the console for each step, in processes of their own, and puts clocks
around the loss (forward), the backward pass, the clipping and the optimiser. What is left of the time from the end of
one update to the end of the next is the loop's: reading samples, sums, metrics, console, beats, and saves where asked
for. A second row saves every few steps; a third accumulates, so that a step has many passes.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench.parts import lengths  # noqa: E402
from bench.parts.timed import PARTS  # noqa: E402

LIMIT = 0.03
MEDIAN, SIGMA, MAX_SEQ_LEN = 115, 0.85, 512


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to run; ``limit`` is the share that the loop may take."""

    name: str
    stage: str = "pretrain"
    hidden_size: int = 64
    layers: int = 2
    batch_size: int = 32
    accumulation: int = 1
    save_interval: int = 10_000
    steps: int = 20
    limit: float | None = None


CASES = (
    Case(name="64x2, log each step", limit=LIMIT),
    Case(name="64x2, save every 4", save_interval=4),
    Case(name="64x2, batch 4 x 8", batch_size=4, accumulation=8, limit=LIMIT),
    Case(name="512x8, save every 2", hidden_size=512, layers=8, batch_size=4, steps=9, save_interval=2),
)


def measure(case: Case, folder: pathlib.Path, *, number: int, threads: int, clock: str) -> dict[str, float]:
    """Seconds of each part and of whole steps, summed over the steps after the warm-up."""
    run_dir = folder / "runs" / str(number)
    flags = ["--hidden_size", case.hidden_size, "--num_hidden_layers", case.layers, "--batch_size", case.batch_size]
    flags += ["--data_path", folder / "data.jsonl", "--save_dir", folder / "out", "--run_dir", run_dir]
    flags += ["--accumulation_steps", case.accumulation, "--from_weight", "none", "--max_seq_len", MAX_SEQ_LEN]
    flags += ["--log_interval", 1, "--save_interval", case.save_interval, "--max_steps", case.steps]
    done = subprocess.run(
        [sys.executable, "-m", "bench.parts.timed", case.stage, *map(str, flags)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "TIMED_CLOCK": clock},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    steps = json.loads((run_dir / "timed.json").read_text())
    return {part: sum(step[part] for step in steps) / len(steps) for part in (*PARTS, "period")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, in turns")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="OpenMP threads")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: of the training thread, for a busy machine"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found, failed = [], False
    for case in (case for case in CASES if options.only in case.name):
        with tempfile.TemporaryDirectory(prefix="mm") as name:
            folder = pathlib.Path(name)
            lengths.tokenizer(folder / "out" / "tokenizer")
            samples = case.batch_size * case.accumulation * case.steps
            drawn = lengths.lengths(samples, MEDIAN, SIGMA, most=MAX_SEQ_LEN, seed=7)
            lengths.write(folder / "data.jsonl", "text", drawn)
            runs = [
                measure(case, folder, number=n, threads=options.threads, clock=options.clock)
                for n in range(options.repeats)
            ]
        shares = [1 - sum(run[part] for part in PARTS) / run["period"] for run in runs]
        middle = sorted(runs, key=lambda run: run["period"])[len(runs) // 2]
        row = {"case": case.name, "loop_share": statistics.median(shares), "of": shares, "seconds": middle}
        found.append(row)
        over = case.limit is not None and row["loop_share"] >= case.limit
        failed |= over
        if not options.json:
            parts = " ".join(f"{part} {middle[part] * 1e3:.1f}" for part in PARTS)
            loop = statistics.median(share * run["period"] for share, run in zip(shares, runs, strict=True))
            print(
                f"{case.name:20} loop {row['loop_share']:6.2%} of a step ({min(shares):.2%} to {max(shares):.2%}), "
                f"{loop * 1e3:.2f} ms; step {middle['period'] * 1e3:.1f} ms: {parts}"
                f"{'' if case.limit is None else f' (limit {case.limit:.0%})'}{'  FAILED' if over else ''}",
                flush=True,
            )
    if options.json:
        print(json.dumps(found))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
