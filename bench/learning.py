"""Does every stage learn something on the demo's data? Prints before and after on held-out lines, and fails where not.

A tiny model goes through all stages. Held-out: statements, phrasings and pairs of the demo's data that no stage trains
on. Each number is compared with a threshold that stands beside it.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from demo import data as demo  # noqa: E402
from demo.run import HIDDEN_SIZE, JOBS, MODEL, NPROC, VOCABULARY, Job  # noqa: E402

NAME = re.compile("小启|Xiaoqi")
THOUGHT = re.compile(r"\s*<think>.+</think>\s*<answer>.+</answer>\s*", re.DOTALL)
MORE_JOBS = (
    Job(stage="reason", data="r1_mix_1024.jsonl", epochs=2, batch_size=8, learning_rate=2e-3),
    Job(stage="distillation", data="sft_mini_512.jsonl", epochs=1, batch_size=8, learning_rate=2e-3),
)
EXTRA = {
    "distillation": (
        "--data_path",
        "dataset/sft_mini_512.jsonl",
        "--from_weight",
        "pretrain",
        "--teacher_hidden_size",
        str(HIDDEN_SIZE),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """What a stage must reach on lines it has not trained on."""

    number: str
    held_out: str
    before: str | None  # weights; None: random ones
    after: str
    adapter: str | None = None
    least: float | None = None
    most: float | None = None

    def met(self, before: float, after: float) -> bool:
        """Whether the number moved the right way and far enough."""
        if self.least is not None:
            return after > before and after >= self.least
        return after < before and after <= (self.most or 0)

    @property
    def limit(self) -> str:
        """The threshold in words."""
        return f"at least {self.least}" if self.least is not None else f"at most {self.most}"


GOALS = {
    "pretrain": (Goal(number="loss", held_out="pretrain", before=None, after="pretrain", most=4.0),),
    "full_sft": (Goal(number="loss", held_out="sft", before="pretrain", after="full_sft", most=1.5),),
    "dpo": (Goal(number="accuracy", held_out="dpo", before="full_sft", after="rlhf", least=0.9),),
    "lora": (
        Goal(
            number="name", held_out="identity", before="full_sft", after="full_sft", adapter="lora_identity", least=0.6
        ),
    ),
    "reason": (
        Goal(number="loss", held_out="reason", before="rlhf", after="reason", most=2.0),
        Goal(number="tags", held_out="reason", before="rlhf", after="reason", least=0.9),
    ),
    "distillation": (Goal(number="loss", held_out="sft", before="pretrain", after="full_dist", most=2.6),),
}
WORDS = {
    "loss": "held-out loss, nats a target",
    "accuracy": "held-out pairs ranked rightly",
    "name": "held-out phrasings answered with the name",
    "tags": "held-out answers within their tags",
}


def train(folder: pathlib.Path, job: Job, max_steps: int | None) -> float:
    """Train one stage by its command, as one process does what the demo's two do; returns the seconds."""
    flags = [*job.flags(), "--accumulation_steps", str(NPROC), *EXTRA.get(job.stage, ())]
    flags += ["--max_steps", str(max_steps)] if max_steps else []
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "minimind", job.stage, *flags, "--run_dir", f"runs/{job.stage}"],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{job.stage} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.monotonic() - began


def measured(folder: pathlib.Path, goal: Goal, weight: str | None, adapter: str | None) -> float:
    """One number of some weights on held-out lines."""
    import torch

    from minimind import checkpoint, evaluate, lora, shards, tokenizer
    from minimind.config import ModelConfig
    from minimind.model import MiniMind
    from minimind.sampling import Sampling, generate_all

    words = tokenizer.load(folder / "out" / "tokenizer")
    if weight is None:
        torch.manual_seed(42)
        size = {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": int(MODEL[3]), "vocab_size": words.vocab_size}
        model = MiniMind(ModelConfig.for_arch("minimind2", **size))
    else:
        model = checkpoint.load_model(folder / "out" / f"{weight}_{HIDDEN_SIZE}.pth", "cpu")
    if adapter:
        lora.apply(model, folder / "out" / "lora" / f"{adapter}_{HIDDEN_SIZE}.pth")
    model.eval()
    path = folder / "dataset" / f"held_out_{goal.held_out}.jsonl"
    if goal.number in ("loss", "accuracy"):
        data = shards.load(path, evaluate.kind_of(path), words, fallback=folder, say=lambda text: None)
        return float(evaluate.measure(model, data, max_seq_len=512)[goal.number])
    wanted = NAME.search if goal.number == "name" else THOUGHT.fullmatch
    asked = [json.loads(line)["conversations"][:1] for line in path.read_text().splitlines()][:30]
    likeliest = Sampling(max_new_tokens=160, stop_ids=frozenset({words.eos_id}), temperature=0.0)
    prompts = [words.encode(words.prompt(ask)) for ask in asked]
    answers = [words.decode(ids) for ids in generate_all(model, prompts, likeliest)]
    return sum(wanted(answer) is not None for answer in answers) / len(answers)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="*", default=list(GOALS), choices=list(GOALS), help="which, in their order")
    parser.add_argument(
        "--folder", type=pathlib.Path, help="work here and keep it; weights there are not trained again"
    )
    parser.add_argument("--max_steps", type=int, help="steps of each stage, for a look; thresholds stay")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    rows, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or pathlib.Path(temporary)
        demo.write(folder / "dataset")
        if not (folder / "out" / "tokenizer").is_dir():
            _tokenizer(folder)
        for job in [*JOBS, *MORE_JOBS]:
            if job.stage not in options.stages:
                continue
            befores = [measured(folder, goal, goal.before, None) for goal in GOALS[job.stage]]
            seconds = train(folder, job, options.max_steps)
            for goal, before in zip(GOALS[job.stage], befores, strict=True):
                after = measured(folder, goal, goal.after, goal.adapter)
                met = goal.met(before, after)
                row = {"stage": job.stage, "number": WORDS[goal.number], "before": before, "after": after}
                rows.append({**row, "limit": goal.limit, "met": met, "train_s": seconds})
                if not options.json:
                    verdict = "ok" if met else "FAILED"
                    print(
                        f"{job.stage:12} {WORDS[goal.number]:42} {before:7.3f} -> {after:6.3f}  ({goal.limit})  "
                        f"{verdict}  {seconds:.0f} s",
                        flush=True,
                    )
    if options.json:
        print(json.dumps({"rows": rows, "seconds": time.monotonic() - began}))
    else:
        print(f"{time.monotonic() - began:.0f} s in all")
    return 0 if all(row["met"] for row in rows) else 1


def _tokenizer(folder: pathlib.Path) -> None:
    from minimind import tokenizer

    texts = [json.loads(line)["text"] for line in (folder / "dataset" / "pretrain_hq.jsonl").read_text().splitlines()]
    (folder / "out" / "tokenizer").mkdir(parents=True)
    tokenizer.train(iter(texts), folder / "out" / "tokenizer", vocab_size=VOCABULARY)


if __name__ == "__main__":
    sys.exit(main())
