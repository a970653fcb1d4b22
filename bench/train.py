"""How much faster does ours train than the original's way on the same samples, from the same weights, to the same loss?

Alternates a plain loop (transformers, rows padded to max_seq_len, a label for every position, torch's AdamW) with
`python -m minimind <stage>`, in processes of their own. Both start from one file and take the same samples in the same
order; the losses of the last step must agree to 1e-4. Tokens a second count real tokens, from the start of the first
step, so the reference pass of dpo is inside. dpo at 512x8 may take half of the plain way's memory. Lengths are
log-normal; `full` rows leave no padding to save.
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

AGREE = 1e-4
DPO_MEMORY = 0.5
"""Largest share of the plain way's resident memory at batch 4 x 1024."""
SIZES = {"512x8": (512, 8), "64x2": (64, 2)}
RATES = {"pretrain": 5e-4, "full_sft": 1e-4, "dpo": 1e-5, "lora": 1e-3}
BETA = 0.1


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison: stage, size, lengths, steps; ``least`` is the ratio that must be reached."""

    stage: str
    size: str
    median: float
    sigma: float
    max_seq_len: int
    batch_size: int
    steps: int
    epochs: int = 1
    least: float

    @property
    def name(self) -> str:
        return f"{self.stage} {self.size}{' full' if self.sigma == 0 else ''}"


def cases() -> list[Case]:
    """Stages and sizes of the promise; the small model takes more samples, for its steps are short."""
    made = []
    for size, batch, steps in (("512x8", 8, 3), ("64x2", 32, 8)):
        texts, chats = {"median": 115, "sigma": 0.85}, {"median": 272, "sigma": 0.5}
        common = {"size": size, "batch_size": batch, "steps": steps}
        pairs = common | {"batch_size": 4, "steps": 2 * max(2, steps // 2), "epochs": 2}
        made += [
            Case(stage="pretrain", **texts, max_seq_len=512, least=3.0, **common),
            Case(stage="full_sft", **chats, max_seq_len=512, least=1.8, **common),
            Case(stage="dpo", **chats, max_seq_len=1024, least=3.0, **pairs),
            Case(stage="lora", **texts, max_seq_len=512, least=3.0, **common),
            Case(stage="pretrain", median=4096, sigma=0, max_seq_len=512, least=1.0, **common),
        ]
    return made


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one process did."""

    seconds: float
    loss: float
    peak_bytes: int


class Bench:
    """Files of one case and the two ways to train on them."""

    def __init__(self, case: Case, folder: pathlib.Path, *, threads: int) -> None:
        self.case, self.folder, self.threads = case, folder, threads
        kind = {"pretrain": "text", "dpo": "pair"}.get(case.stage, "chat")
        samples = case.batch_size * case.steps // case.epochs
        drawn = lengths.lengths(samples, case.median, case.sigma, most=case.max_seq_len, seed=7)
        self.tokenizer = lengths.tokenizer(folder / "out" / "tokenizer")
        self.data = lengths.write(folder / "data.jsonl", kind, drawn)
        hidden, layers = SIZES[case.size]
        self.weights = lengths.weights(folder / "start.pth", hidden_size=hidden, layers=layers)
        self.flags = ["--hidden_size", str(hidden), "--num_hidden_layers", str(layers)]
        self.adapter = folder / "adapter.pth"
        if case.stage == "lora":
            lengths.adapter(self.adapter, self.weights)
        self.runs = 0

    def environ(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(self.threads)}

    def plain(self) -> Result:
        """The original's way."""
        case = self.case
        spec = {
            "stage": case.stage,
            "max_seq_len": case.max_seq_len,
            "batch_size": case.batch_size,
            "epochs": case.epochs,
            "steps": case.steps,
            "seed": 42,
            "threads": self.threads,
            "beta": BETA,
            "learning_rate": RATES[case.stage],
            "arch": "minimind2",
            "adapter": str(self.adapter),
            "tokenizer": str(self.tokenizer),
            "data": str(self.data),
            "weights": str(self.weights),
        }
        found = json.loads(self.run("-m", "bench.parts.plain", json.dumps(spec)))
        return Result(
            seconds=found["marks"][-1] - found["start"], loss=found["losses"][-1], peak_bytes=found["peak_bytes"]
        )

    def ours(self) -> Result:
        """This project's trainer, as a person starts it."""
        case = self.case
        self.runs += 1
        run_dir = self.folder / "runs" / str(self.runs)
        flags = [*self.flags, "--data_path", self.data, "--save_dir", self.folder / "out", "--run_dir", run_dir]
        flags += ["--from_weight", self.weights, "--max_seq_len", case.max_seq_len, "--batch_size", case.batch_size]
        flags += ["--epochs", case.epochs, "--learning_rate", RATES[case.stage], "--accumulation_steps", 1]
        flags += ["--from_lora", self.adapter] if case.stage == "lora" else []
        for kept in self.folder.glob("data.jsonl.shards/*/reference-*"):
            kept.unlink()
        self.run("-m", "bench.parts.ours", case.stage, *map(str, flags))
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == case.steps, f"{len(lines)} steps instead of {case.steps}"
        peak = json.loads((run_dir / "peak.json").read_text())
        self.tokens = sum(line["tokens"] for line in lines)
        self.targets = sum(line["targets"] for line in lines)
        return Result(
            seconds=peak["before_s"]
            + lines[-1]["time"]
            - lines[0]["time"]
            + lines[0]["tokens"] / lines[0]["tokens_per_s"],
            loss=lines[-1]["loss"],
            peak_bytes=peak["peak_bytes"],
        )

    def run(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=self.environ(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return done.stdout


def compare(case: Case, *, repeats: int, threads: int) -> dict:
    """Medians of alternating runs of one case."""
    with tempfile.TemporaryDirectory(prefix="mm") as folder:
        bench = Bench(case, pathlib.Path(folder), threads=threads)
        plain, ours = [], []
        for _ in range(repeats):
            plain.append(bench.plain())
            ours.append(bench.ours())
        sides = 2 if case.stage == "dpo" else 1
        row_tokens = case.batch_size * case.steps * sides * case.max_seq_len
        plain_s, ours_s = (statistics.median(run.seconds for run in runs) for runs in (plain, ours))
        return {
            "case": case.name,
            "fill_padded": bench.tokens / row_tokens,
            "plain_tokens_per_s": bench.tokens / plain_s,
            "ours_tokens_per_s": bench.tokens / ours_s,
            "ours_targets_per_s": bench.targets / ours_s,
            "plain_peak_bytes": max(run.peak_bytes for run in plain),
            "ours_peak_bytes": max(run.peak_bytes for run in ours),
            "plain_loss": plain[-1].loss,
            "ours_loss": ours[-1].loss,
            "ratio": statistics.median(p.seconds / o.seconds for p, o in zip(plain, ours, strict=True)),
            "least": case.least,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="alternating runs of each")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="OpenMP threads of both")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    failed, found = False, []
    for case in cases():
        if options.only not in case.name:
            continue
        row = compare(case, repeats=options.repeats, threads=options.threads)
        found.append(row)
        agree = abs(row["plain_loss"] - row["ours_loss"]) < AGREE
        light = row["case"] != "dpo 512x8" or row["ours_peak_bytes"] <= DPO_MEMORY * row["plain_peak_bytes"]
        good = row["ratio"] >= row["least"] and agree and light
        failed |= not good
        if not options.json:
            print(
                f"{row['case']:18} fill {row['fill_padded']:4.0%}  tokens/s {row['plain_tokens_per_s']:8,.0f} plain "
                f"{row['ours_tokens_per_s']:8,.0f} ours ({row['ours_targets_per_s']:,.0f} targets/s)  "
                f"ratio {row['ratio']:.2f} (limit {row['least']})  RSS {row['plain_peak_bytes'] / 1e6:,.0f} "
                f"{row['ours_peak_bytes'] / 1e6:,.0f} MB  loss {row['plain_loss']:.6f} {row['ours_loss']:.6f}"
                f"{'' if good else '  FAILED'}",
                flush=True,
            )
    if options.json:
        print(json.dumps(found))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
