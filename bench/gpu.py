"""How near to the limit of a GPU does a training step come: tokens/s, TFLOP/s, MFU, memory, where the time goes?

Trains both presets on texts with log-normal lengths (median 115 tokens), in processes of their own: as it is, with
blocks compiled, with passes that fill the memory, with padded rows, and by each way of attending to packed documents.
Figures are of the steps after the first ten. MFU is by the model's own FLOP count (minimind/flops.py): padding and
logits that nobody needs count for nothing. A last run of each size is traced, and the kernels that take most of the
time are named. Fails below 50 % MFU on an RTX 4090 and
35 % on an H100, by the best way of each size. Without a GPU nothing is measured; `--device cpu` tries the bench.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections import Counter

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench.parts import lengths  # noqa: E402

WARM_UP = 10
LEAST_MFU = {"NVIDIA GeForce RTX 4090": 0.50, "NVIDIA H100": 0.35}
SIZES = {"512x8": "minimind2", "768x8": "minimind3"}
WAYS = {
    "as it is": [],
    "compiled": ["--use_compile"],
    "memory filled": ["--max_tokens_per_batch", "auto"],
    "both": ["--use_compile", "--max_tokens_per_batch", "auto"],
    "padded": ["--no-pack"],
    "varlen": [],
    "flex": [],
    "batched": [],
}
ATTENTION = {"varlen": "varlen", "flex": "flex", "batched": ""}
"""Ways that may attend in one way only; ``batched`` is what is used where neither of the others works."""


def train(folder: pathlib.Path, size: str, way: str, options: argparse.Namespace, *more: str) -> dict[str, float]:
    """One training; medians of its metrics after the warm-up, and the peak of the GPU's memory."""
    hidden, layers = size.split("x")
    run_dir = folder / "runs" / "-".join([size, way.replace(" ", "-"), *(word.strip("-") for word in more)])
    flags = ["--arch", SIZES.get(size, "minimind2"), "--hidden_size", hidden, "--num_hidden_layers", layers]
    flags += ["--data_path", folder / "data.jsonl", "--save_dir", folder / "out", "--run_dir", run_dir]
    flags += ["--from_weight", "none", "--max_seq_len", "512", "--save_interval", "1000000", "--log_interval", "100"]
    flags += ["--batch_size", options.batch_size, "--accumulation_steps", "1", "--max_steps", options.steps]
    flags += ["--device", options.device, *WAYS[way], *more]
    if options.dtype:
        flags += ["--dtype", options.dtype]
    command = [sys.executable, "-m", "bench.parts.watched", "pretrain", *map(str, flags)]
    done = subprocess.run(
        command,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            **({"BENCH_ATTENTION": ATTENTION[way]} if way in ATTENTION else {}),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"failed": done.returncode, "said": (done.stdout + done.stderr)[-600:]}
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()][WARM_UP:]
    passed_s = lines[-1]["time"] - lines[0]["time"]
    found = {
        "tokens_per_s": sum(line["tokens"] for line in lines[1:]) / passed_s,
        "data_wait": sum(line["data_wait_s"] for line in lines[1:]) / passed_s,
        **json.loads((run_dir / "watched.json").read_text()),
    }
    if all("mfu" in line for line in lines):
        found["mfu"] = statistics.median(line["mfu"] for line in lines)
    return found


def kernels(folder: pathlib.Path, size: str, way: str) -> list[tuple[str, float]]:
    """Shares of the traced time of the eight heaviest kernels."""
    (trace,) = (folder / "runs" / f"{size}-{way.replace(' ', '-')}-profile" / "profile").iterdir()
    spent: Counter[str] = Counter()
    for event in json.loads(trace.read_text())["traceEvents"]:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            spent[str(event["name"]).split("<")[0][:70]] += event["dur"]
    return [(name, micros / spent.total()) for name, micros in spent.most_common(8)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="hidden size x layers")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), help="what is tried")
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    parser.add_argument("--batch-size", type=int, default=256, help="samples a step")
    parser.add_argument("--dtype", help="else what the trainer takes by itself")
    parser.add_argument("--device", default="cuda", help="`cpu` tries the bench")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    import torch

    from minimind.flops import peak_flops

    if options.steps < WARM_UP + 2:
        parser.error(f"--steps must be at least {WARM_UP + 2}: the first {WARM_UP} are not measured")
    if not options.device.startswith("cuda"):  # a CPU refuses to fill its memory
        options.ways = [way for way in options.ways if "auto" not in WAYS[way]]
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("not measured: no CUDA device", file=sys.stderr)
        return 0
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    limit = next((least for name, least in LEAST_MFU.items() if device.startswith(name)), None)
    found, failed = {"device": device, "rows": []}, False
    with tempfile.TemporaryDirectory(prefix="mm") as name:
        folder = pathlib.Path(name)
        lengths.tokenizer(folder / "out" / "tokenizer")
        drawn = lengths.lengths(options.steps * options.batch_size, 115, 0.85, most=512, seed=7)
        lengths.write(folder / "data.jsonl", "text", drawn)
        for size in options.sizes:
            rows = {way: train(folder, size, way, options) for way in options.ways}
            good = {way: row for way, row in rows.items() if "failed" not in row}
            for way, row in rows.items():
                found["rows"].append({"size": size, "way": way, **row})
                if not options.json:
                    print_row(size, way, row, peak_flops(device, row.get("dtype") or "bfloat16"))
            failed |= len(good) < len(rows)
            if not good:
                continue
            best = max(good, key=lambda way: good[way]["tokens_per_s"])
            if limit is not None and good[best].get("mfu", 0.0) < limit:
                failed = True
                print(f"FAILED {size}: MFU {good[best].get('mfu', 0.0):.1%} is below {limit:.0%}", file=sys.stderr)
            if options.device.startswith("cuda") and "failed" not in train(folder, size, best, options, "--profile"):
                found[f"kernels {size}"] = kernels(folder, size, best)
                for kernel, share in found[f"kernels {size}"] if not options.json else ():
                    print(f"    {share:6.1%} {kernel}", flush=True)
    if options.json:
        print(json.dumps(found))
    return int(failed)


def print_row(size: str, way: str, row: dict, peak: float | None) -> None:
    if "failed" in row:
        print(f"{size} {way:<14} FAILED with {row['failed']}: {row['said']}", flush=True)
        return
    mfu = f"{row['mfu']:6.1%} MFU" if "mfu" in row else "MFU unknown"
    tera = f"{row['mfu'] * peak / 1e12:7.1f} TFLOP/s" if "mfu" in row and peak else "  unknown peak"
    attention = f", attention {row['attention']}" if row.get("attention") else ""
    print(
        f"{size} {way:<14} {row['tokens_per_s']:12,.0f} tokens/s {tera} {mfu}  GPU memory {row['gpu_bytes'] / 1e9:6.2f}"
        f" GB, main memory {row['peak_bytes'] / 1e9:5.2f} GB, waiting for data {row['data_wait']:.1%}{attention}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
