"""Numbers of each step: one line in metrics.jsonl always, the console by interval, Weights & Biases on request.

A tracker that is missing, fails or dies is said once and never stops training (:mod:`minimind.tracker`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self

from minimind.tracker import Tracker


class Metrics:
    """Rank 0's record of a run."""

    def __init__(self, path: Path, *, log_interval: int, total_steps: int, steps_per_epoch: int, epochs: int) -> None:
        self.file = open(  # noqa: SIM115
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0
        )
        self.log_interval, self.total_steps = log_interval, total_steps
        self.steps_per_epoch, self.epochs = steps_per_epoch, epochs
        self.tracker: Tracker | None = None
        self.started: tuple[float, int] | None = None
        if path.stat().st_size and path.read_bytes()[-1:] != b"\n":
            self.file.write(b"\n")  # a line cut by a kill stays unterminated for readers, ours begins on a new one

    def track(self, *, project: str, stage: str, run_id: str, config: dict[str, Any], folder: Path) -> None:
        """Also log to Weights & Biases, offline where there is no key; a resume goes on under the same ``run_id``."""
        label = {"full_sft": "Full-SFT", "dpo": "DPO", "lora": "LoRA"}.get(stage, stage.capitalize())
        name = (
            f"MiniMind-{label}-Epoch-{config['epochs']}-BatchSize-{config['batch_size']}"
            f"-LearningRate-{config['learning_rate']}"
        )
        self.tracker = Tracker(project=project, name=name, run_id=run_id, config=config, folder=folder)

    def log(self, line: dict[str, Any]) -> None:
        """Record one step."""
        self.file.write((json.dumps(line) + "\n").encode())
        step = line["step"]
        now = (line["time"], step)
        self.started = self.started or now
        if step % self.log_interval == 0 or step == self.total_steps or step == 1:
            seen = step - self.started[1]  # after the first step of an attempt nothing is known of the next ones
            left_s = (now[0] - self.started[0]) / seen * (self.total_steps - step) if seen else 0.0
            left = f" left {left_s:,.0f} s" if seen else ""
            extra = "".join(f" {key} {line[key]:.3f}" for key in ("margin", "accuracy") if key in line)
            loss, norm = (float("nan") if line[key] is None else line[key] for key in ("loss", "grad_norm"))
            print(
                f"step {step}/{self.total_steps} epoch {line['epoch']}/{self.epochs} loss {loss:.4f}{extra} "
                f"lr {line['lr']:.3e} grad_norm {norm:.3f} {line['tokens_per_s']:,.0f} tokens/s{left}",
                flush=True,
            )
            if self.tracker is not None:
                self.tracker.log({key: value for key, value in line.items() if key != "time"})

    def sync(self) -> None:
        """Let the lines so far survive a power cut."""
        os.fsync(self.file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.file.close()
        if self.tracker is not None:
            self.tracker.close(failed=kind is not None)
