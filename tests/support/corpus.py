"""Small data sets, a tokenizer and the trainer as a function, for tests that need something real to learn from."""

import contextlib
import json
import os
import pathlib
import random
import subprocess
import sys

WORDS = "今天 天气 很好 我们 学习 模型 训练 语言 数据 机器 hello world the cat sat on a mat and learned".split()  # noqa: SIM905
TINY = ("--hidden_size", "64", "--num_hidden_layers", "2")
ROOT = pathlib.Path(__file__).parents[2]


def phrase(rng: random.Random, least: int, most: int) -> str:
    return "".join(rng.choice(WORDS) + rng.choice(("", " ")) for _ in range(rng.randint(least, most)))


def write_jsonl(path: pathlib.Path, lines) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def texts(samples: int, *, seed: int = 0, least: int = 5, most: int = 40) -> list[dict]:
    rng = random.Random(seed)
    return [{"text": phrase(rng, least, most)} for _ in range(samples)]


def conversations(samples: int, *, seed: int = 1, turns: int = 2) -> list[dict]:
    rng = random.Random(seed)
    made = []
    for _ in range(samples):
        messages = [turn("system", phrase(rng, 2, 5))] if rng.random() < 0.3 else []
        for _ in range(rng.randint(1, turns)):
            messages += [turn("user", phrase(rng, 2, 9)), turn("assistant", phrase(rng, 2, 12))]
        made.append({"conversations": messages})
    return made


def pairs(samples: int, *, seed: int = 2) -> list[dict]:
    rng = random.Random(seed)
    made = []
    for _ in range(samples):
        asked = turn("user", phrase(rng, 2, 9))
        sides = {side: [asked, turn("assistant", phrase(rng, 2, 12))] for side in ("chosen", "rejected")}
        made.append(sides)
    return made


def make(folder: pathlib.Path, *, samples: int = 24, vocab_size: int = 400) -> pathlib.Path:
    """dataset/ under the original's names and out/tokenizer/, in ``folder``."""
    from minimind import tokenizer

    data = folder / "dataset"
    lines = texts(samples)
    write_jsonl(data / "pretrain_hq.jsonl", lines)
    write_jsonl(data / "sft_mini_512.jsonl", conversations(samples))
    write_jsonl(data / "lora_identity.jsonl", conversations(samples, seed=5))
    write_jsonl(data / "dpo.jsonl", pairs(samples))
    (folder / "out" / "tokenizer").mkdir(parents=True)
    tokenizer.train((line["text"] for line in lines), folder / "out" / "tokenizer", vocab_size=vocab_size)
    return folder


def metrics(run_dir: pathlib.Path) -> list[dict]:
    """metrics.jsonl as its readers take it: the last value of a step wins, an unterminated last line is ignored."""
    by_step = {}
    for line in (run_dir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            by_step[json.loads(line)["step"]] = json.loads(line)
    return [by_step[step] for step in sorted(by_step)]


def train_here(folder: pathlib.Path, stage: str, *flags: str, run: str) -> list[dict]:
    """Train in this process with ``folder`` as the working directory; returns the metrics."""
    from minimind import flags as command_line
    from minimind import loop, stages

    argv = [*flags, "--run_dir", f"runs/{run}"]
    with contextlib.chdir(folder):
        parsed = command_line.parse(stage, argv)
        loop.train(stages.make(stage, parsed), parsed, argv)
    return metrics(folder / "runs" / run)


def command(stage: str, *flags: str, nproc: int = 0) -> list[str]:
    """The command that trains: alone, or under torchrun with ``nproc`` ranks."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)] if nproc else []
    return [sys.executable, *torchrun, "-m", "minimind", stage, *flags]


def environ(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **more}


def train_apart(folder: pathlib.Path, stage: str, *flags: str, run: str, nproc: int = 0, check: bool = True):
    """Train in processes of their own; returns the finished process."""
    done = subprocess.run(
        command(stage, *flags, "--run_dir", f"runs/{run}", nproc=nproc),
        cwd=folder,
        env=environ(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def original_tokenizers() -> dict[str, pathlib.Path]:
    """MiniMind's own tokenizers by generation, where this machine has them (MINIMIND_DATA, or beside the checkout)."""
    for folder in (os.environ.get("MINIMIND_DATA"), ROOT.parent / "shared" / "data"):
        found = {arch: pathlib.Path(folder or "-") / f"tokenizer-{arch}" for arch in ("minimind2", "minimind3")}
        if all((path / "tokenizer.json").is_file() for path in found.values()):
            return found
    return {}


def random_weights(
    path: pathlib.Path, arch: str, *, vocab_size: int, use_moe: bool = False, seed: int = 1, dtype="half"
):
    """A weights file of a small model whose every number counts (norms and adapters' bases included)."""
    import torch

    from minimind.config import ModelConfig
    from minimind.model import MiniMind

    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": vocab_size, "use_moe": use_moe}
    model = MiniMind(ModelConfig.for_arch(arch, **sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: getattr(value, dtype)() for name, value in model.state_dict().items()}, path)
    return path
