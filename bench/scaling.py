"""What do more ranks give, and what stops it first?

Measured here: the same optimizer steps (same samples, same global batch) by 1, 2 and 4 gloo ranks, with the bytes that
each step reduces. Ranks share the machine's cores, so more ranks than cores cannot gain; the column says what is lost.

Computed: a step's time on machines that are not here, from their data sheets. A rank computes 6 FLOPs per weight and
token at the stated share of its peak; gradients (4 bytes a weight) are reduced once a step, in buckets, beside the last
micro-batch's backward pass. Bytes move as in a ring, latency is a tree's: 2 log2 n hops for each bucket. What the
backward pass does not hide is added to the step, and so is the wait for the rank that has the most tokens, whose texts
are drawn as above and dealt out as the trainer does it.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench.parts import lengths  # noqa: E402
from minimind.passes import deal  # noqa: E402

STEPS, BATCH, MICRO_BATCHES = 8, 8, 4
CORPUS_LINES = 1_400_000
"""About as many as pretrain_hq.jsonl has."""


def measure(ranks: int, folder: pathlib.Path) -> dict[str, float]:
    """Real tokens/s of ``ranks`` gloo ranks over STEPS - 1 steps after the first."""
    run_dir = folder / "runs" / str(ranks)
    threads = max(1, (os.cpu_count() or 1) // ranks)
    flags = ["--hidden_size", "64", "--num_hidden_layers", "2", "--data_path", folder / "data.jsonl"]
    flags += ["--save_dir", folder / "out", "--run_dir", run_dir, "--from_weight", folder / "start.pth"]
    flags += ["--batch_size", BATCH, "--accumulation_steps", MICRO_BATCHES // ranks, "--max_steps", STEPS]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node"]
    before = looped_bytes()
    done = subprocess.run(
        [sys.executable, *torchrun, str(ranks), "-m", "minimind", "pretrain", *map(str, flags)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    seconds = lines[-1]["time"] - lines[0]["time"]
    return {
        "tokens_per_s": sum(line["tokens"] for line in lines[1:]) / seconds,
        "loss": lines[-1]["loss"],
        "sent_bytes": (looped_bytes() - before) / STEPS / ranks,
    }


def looped_bytes() -> int:
    """What the machine has sent to itself so far; ranks meet there, and the start of a run is in it."""
    return int(pathlib.Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A group of GPUs on paper."""

    name: str
    gpus: int
    peak_flops: float
    """bf16, dense, of one GPU."""
    mfu: float
    """Share of the peak that one GPU reaches alone."""
    bus_bytes_per_s: float
    """What the ring moves at its narrowest link, each way."""
    hop_s: float
    """Latency of one hop."""


RTX4090, H100 = 165.2e12, 989e12
PCIE, NVLINK, ETHERNET = 20e9, 400e9, 50e9
MACHINES = (
    Machine(name="8x4090 PCIe", gpus=8, peak_flops=RTX4090, mfu=0.5, bus_bytes_per_s=PCIE, hop_s=10e-6),
    Machine(name="8xH100 NVLink", gpus=8, peak_flops=H100, mfu=0.35, bus_bytes_per_s=NVLINK, hop_s=5e-6),
    Machine(name="4 nodes, 32xH100", gpus=32, peak_flops=H100, mfu=0.35, bus_bytes_per_s=ETHERNET, hop_s=20e-6),
    Machine(name="128xH100", gpus=128, peak_flops=H100, mfu=0.35, bus_bytes_per_s=ETHERNET, hop_s=20e-6),
    Machine(name="1024xH100", gpus=1024, peak_flops=H100, mfu=0.35, bus_bytes_per_s=ETHERNET, hop_s=20e-6),
)


def efficiency(
    machine: Machine, *, weights: float, tokens: int, micro_batches: int, bucket_bytes: float, overlap: bool, sync: bool
) -> float:
    """Share of one GPU's rate that each GPU of the machine keeps.

    Args:
        machine: the GPUs.
        weights: trained weights.
        tokens: real tokens of one micro-batch of one rank.
        micro_batches: of one rank in a step.
        bucket_bytes: gradients reduced at a time.
        overlap: reduce while the backward pass still computes.
        sync: reduce in every micro-batch instead of the last one only.
    """
    compute_s = 6 * weights * tokens / (machine.peak_flops * machine.mfu)  # of one micro-batch
    gradient_bytes = 4 * weights
    buckets = max(1, math.ceil(gradient_bytes / bucket_bytes))
    moved_bytes = gradient_bytes * 2 * (machine.gpus - 1) / machine.gpus
    ring_s = moved_bytes / machine.bus_bytes_per_s + buckets * 2 * math.ceil(math.log2(machine.gpus)) * machine.hop_s
    hidden_s = compute_s * 2 / 3 * (buckets - 1) / buckets if overlap else 0.0  # the last bucket has nothing beside it
    reductions = micro_batches if sync else 1
    step_s = micro_batches * compute_s + reductions * max(ring_s / buckets, ring_s - hidden_s)
    return micro_batches * compute_s / step_s


def balance(ranks: int, micro_batches: int, *, by_tokens: bool) -> float:
    """Share of a step in which ranks compute and do not wait for the one with the most tokens."""
    kept = []
    for seed in range(max(2, 64 // ranks)):
        drawn = lengths.lengths(micro_batches * ranks * 32, 115, 0.85, most=512, seed=seed).reshape(micro_batches, -1)
        if by_tokens:
            loads = sum(np.array([tokens[mine].sum() for mine in deal(tokens, ranks)]) for tokens in drawn)
        else:
            loads = drawn.reshape(micro_batches, ranks, 32).sum((0, 2))
        kept.append(float(loads.mean() / loads.max()))
    return sum(kept) / len(kept)


def simulate() -> list[dict]:
    """The table of machines, with what each measure is worth there."""
    rows = []
    even = {(m.gpus, n): balance(m.gpus, n, by_tokens=True) for m in MACHINES for n in (1, 8)}
    by_texts = {m.gpus: balance(m.gpus, 8, by_tokens=False) for m in MACHINES}
    for name, weights in (("512x8, 26M", 25.8e6), ("768x16, 104M", 104e6)):
        for machine in MACHINES:
            share, one = even[machine.gpus, 8], even[machine.gpus, 1]
            base = {"weights": weights, "tokens": 32 * 159, "micro_batches": 8, "bucket_bytes": 25e6}
            best = efficiency(machine, **base, overlap=True, sync=False)
            rows.append(
                {
                    "model": name,
                    "machine": machine.name,
                    "efficiency": best * share,
                    "speedup": best * share * machine.gpus,
                    "dealt_by_texts": best * by_texts[machine.gpus],
                    "without_overlap": share * efficiency(machine, **base, overlap=False, sync=False),
                    "reducing_each_micro_batch": share * efficiency(machine, **base, overlap=True, sync=True),
                    "one_bucket": share
                    * efficiency(machine, **(base | {"bucket_bytes": 1e12}), overlap=True, sync=False),
                    "buckets_of_1_mb": share
                    * efficiency(machine, **(base | {"bucket_bytes": 1e6}), overlap=True, sync=False),
                    "one_micro_batch": one
                    * efficiency(machine, **(base | {"micro_batches": 1}), overlap=True, sync=False),
                    "samples_per_step": 32 * 8 * machine.gpus,
                }
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mm") as name:
        folder = pathlib.Path(name)
        lengths.tokenizer(folder / "out" / "tokenizer")
        drawn = lengths.lengths(STEPS * BATCH * MICRO_BATCHES, 115, 0.85, most=512, seed=7)
        lengths.write(folder / "data.jsonl", "text", drawn)
        lengths.weights(folder / "start.pth", hidden_size=64, layers=2)
        measured = {ranks: measure(ranks, folder) for ranks in (1, 2, 4)}
    weights = 64 * lengths.VOCABULARY + 2 * (64 * 64 * 2 + 64 * 16 * 2 + 3 * 64 * 192) + 5 * 64
    found = {"cores": os.cpu_count(), "measured": measured, "on_paper": simulate()}
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"64x2 on gloo, {os.cpu_count()} cores, {BATCH * MICRO_BATCHES} samples a step:")
    alone = measured[1]
    for ranks, row in measured.items():
        moved = 4 * weights * 2 * (ranks - 1) / ranks
        print(
            f"  {ranks} ranks  {row['tokens_per_s']:8,.0f} tokens/s"
            f"  {row['tokens_per_s'] / alone['tokens_per_s']:.2f}x"
            f"  {row['sent_bytes'] / 1e6:.1f} MB sent by each rank a step ({moved / 1e6:.1f} in a ring)"
            f"  last loss {row['loss']:.6f}"
        )
    agree = all(math.isclose(row["loss"], alone["loss"], rel_tol=1e-5) for row in measured.values())
    print(f"  losses {'agree' if agree else 'DIFFER'} (1e-5)\n")
    print("on paper, 8 micro-batches of 32 texts (159 tokens each) a rank and step: efficiency")
    head = (
        "all of ours",
        "speedup",
        "by texts",
        "no overlap",
        "every micro",
        "one bucket",
        "1 MB",
        "1 micro",
        "samples/step",
    )
    print(f"  {'':31}" + "".join(f"{word:>13}" for word in head))
    for row in found["on_paper"]:
        shares = ("efficiency", "speedup", "dealt_by_texts", "without_overlap", "reducing_each_micro_batch")
        shares += ("one_bucket", "buckets_of_1_mb", "one_micro_batch")
        shown = "".join(f"{row[k]:12.1f}x" if k == "speedup" else f"{row[k]:13.1%}" for k in shares)
        print(f"  {row['model']:13} {row['machine']:17}{shown}{row['samples_per_step']:13,}")
    small = {row["machine"]: row for row in found["on_paper"] if row["model"].startswith("512x8")}
    most = small["1024xH100"]
    steps = CORPUS_LINES / most["samples_per_step"]
    print(
        "\nWhat stops first is the batch, not the wire. With no_sync and overlap 1,024 GPUs keep"
        f"\n{most['efficiency']:.0%}, but a step then takes {most['samples_per_step']:,} texts: {CORPUS_LINES:,} lines"
        f"\nare {steps:.0f} steps, too few to learn from; with one micro-batch a step (an eighth of the texts)"
        f"\n{most['one_micro_batch']:.0%} is left. 8 GPUs give {small['8x4090 PCIe']['speedup']:.1f}x to one run of a"
        "\nmodel this small; more of them belong to several runs at once (a sweep)."
    )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
