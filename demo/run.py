"""The main job on this machine with nothing else needed: from text to a model that answers, by the launcher's commands.

``make demo`` runs it. It writes to ``demo-out/`` alone, which it empties first; ``--keep`` adds to what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from minimind.durable import SUMS, verified_files
from minimind.rundir import State

REPOSITORY = Path(__file__).resolve().parent.parent
MARK = ".made-by-make-demo"
QUESTION, NAME = "你是谁？", "小启"
NPROC = 2
HIDDEN_SIZE, LAYERS, VOCABULARY = 192, 2, 2500
MODEL = ("--hidden_size", str(HIDDEN_SIZE), "--num_hidden_layers", str(LAYERS))
WEIGHTS, ADAPTER = f"full_sft_{HIDDEN_SIZE}.pth", f"lora/lora_identity_{HIDDEN_SIZE}.pth"
QUICK_STEPS = 3
POLL_S = 0.25
REFUSED, NOT_VERIFIED, INTERRUPTED = 9, 8, 130


@dataclass(frozen=True, kw_only=True)
class Job:
    """One stage of the demo: what it reads and how long it trains. Sizes were chosen by measuring on two cores."""

    stage: str
    data: str
    epochs: int
    batch_size: int
    learning_rate: float

    def flags(self) -> list[str]:
        """The trainer's flags."""
        said = {"epochs": self.epochs, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        return [
            *MODEL,
            "--accumulation_steps",
            "1",
            *(w for key, value in said.items() for w in (f"--{key}", str(value))),
        ]

    def steps(self, lines: int) -> int:
        """Optimizer steps over data of so many lines: batches of each pass, shared out among the ranks."""
        return self.epochs * math.ceil(math.ceil(lines / self.batch_size) / NPROC)


JOBS = (
    Job(stage="pretrain", data="pretrain_hq.jsonl", epochs=3, batch_size=8, learning_rate=3e-3),
    Job(stage="full_sft", data="sft_mini_512.jsonl", epochs=4, batch_size=8, learning_rate=2e-3),
    Job(stage="dpo", data="dpo.jsonl", epochs=1, batch_size=8, learning_rate=2e-5),
    Job(stage="lora", data="lora_identity.jsonl", epochs=8, batch_size=8, learning_rate=3e-3),
)


class Failed(Exception):
    """A step of the demo that did not work: what to show, and the exit code."""

    def __init__(self, said: str, code: int) -> None:
        super().__init__(said)
        self.code = code


class Demo:
    """One run of the demo in one folder."""

    def __init__(self, folder: Path, *, quick: bool, out: TextIO, environ: Mapping[str, str]) -> None:
        self.folder, self.quick, self.out = folder, quick, out
        self.live = out.isatty() and environ.get("TERM") != "dumb"
        self.environ = {key: value for key, value in environ.items() if key != "LAUNCH_INVENTORY"}

    def say(self, text: str) -> None:
        """Print a line at once."""
        print(text, file=self.out, flush=True)

    def prepare(self, *, keep: bool) -> None:
        """An empty folder of the demo's own, in which no launch.toml is found.

        Raises:
            Failed: when the folder is somebody else's, or a run in it is alive.
        """
        made = (self.folder / MARK).is_file()
        if self.folder.is_dir() and any(self.folder.iterdir()) and not made:
            raise Failed(
                f"{self.folder} is not the demo's\n  why: it lacks {MARK}, which the demo leaves in its own folder\n"
                "  remedy: move it away, or name another folder with --to",
                REFUSED,
            )
        if made and (self.folder / "local" / "runs").is_dir():
            runs = json.loads(self.launch("ps", "--host", "local", "--json", name="ps").stdout or "[]")
            alive = [run["run_id"] for run in runs if not State(run["state"]).ended and run["state"] != State.PREPARED]
            if alive:
                raise Failed(
                    f"a run of an earlier demo is still alive: {alive[0]}\n  why: removing its files would break it\n"
                    f"  remedy: cd {self.shown(self.folder)} && launch stop {alive[0]}",
                    REFUSED,
                )
        if made and not keep:
            self.say(f"removing {self.shown(self.folder)}, which an earlier demo made (--keep adds to it instead)")
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MARK).touch()
        above = next((p for p in self.folder.parents if (p / "launch.toml").is_file()), None)
        if above:
            self.say(f"{above}/launch.toml is left alone: an empty one in {self.shown(self.folder)} hides it")
            (self.folder / "launch.toml").write_text("# empty: the demo uses the built-in host `local`\n")

    def shown(self, path: Path) -> str:
        """A path as short as it can be typed from here."""
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

    def command(self, argv: Sequence[str], *, name: str) -> subprocess.CompletedProcess[str]:
        """Run something to its end, keeping what it prints in ``logs/``.

        Raises:
            Failed: with what it said, when it fails.
        """
        process = self.start(argv, name=name)
        return self.finish(process, name)

    def launch(self, *words: str, name: str) -> subprocess.CompletedProcess[str]:
        """One call of the real command line."""
        return self.command([*LAUNCH, *words], name=name)

    def start(self, argv: Sequence[str], *, name: str) -> subprocess.Popen[bytes]:
        """Begin a command in the demo's folder; stdout and stderr go to files."""
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        with open(logs / f"{name}.out", "wb") as out, open(logs / f"{name}.err", "wb") as err:
            return subprocess.Popen(
                argv, cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def finish(self, process: subprocess.Popen[bytes], name: str) -> subprocess.CompletedProcess[str]:
        """Wait for a command; Ctrl-C reached it too, so let it say its last words."""
        try:
            code = process.wait()
        except KeyboardInterrupt:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            raise Failed(self.words(name, "err") or "interrupted", INTERRUPTED) from None
        if code:
            said = self.words(name, "err") or self.words(name, "out")
            raise Failed(f"{said}\n(all of it: {self.shown(self.folder / 'logs')}/{name}.out and .err)", code)
        return subprocess.CompletedProcess(process.args, code, self.words(name, "out"), self.words(name, "err"))

    def words(self, name: str, kind: str) -> str:
        """What a command printed."""
        return (self.folder / "logs" / f"{name}.{kind}").read_text(encoding="utf-8", errors="replace").strip()

    def train(self, job: Job) -> None:
        """Run one stage, with a bar on a terminal and one line elsewhere."""
        lines = len((self.folder / "dataset" / job.data).read_bytes().splitlines())
        flags = [*job.flags(), *(("--max_steps", str(QUICK_STEPS)) if self.quick else ())]
        total = QUICK_STEPS if self.quick else job.steps(lines)
        words = ["run", job.stage, "--host", "local", "--nproc", str(NPROC), "--", *flags]
        self.say(f"$ launch {shlex.join(words)}")
        before, began = self.run_dirs(job.stage), time.monotonic()
        process = self.start([*LAUNCH, *words], name=job.stage)
        while self.live and process.poll() is None:
            time.sleep(POLL_S)
            new = sorted(self.run_dirs(job.stage) - before)
            self.draw(job.stage, read_metrics(new[-1] / "metrics.jsonl") if new else [], total, began)
        self.finish(process, job.stage)
        metrics = read_metrics(max(self.run_dirs(job.stage) - before) / "metrics.jsonl")
        self.draw(job.stage, metrics, total, began, final=True)

    def run_dirs(self, stage: str) -> set[Path]:
        """Run directories of a stage."""
        return set((self.folder / "local" / "runs").glob(f"*-{stage}-*"))

    def draw(self, stage: str, metrics: list[dict[str, Any]], total: int, began: float, *, final: bool = False) -> None:
        """One line: how far a stage is."""
        seconds = time.monotonic() - began
        losses = f"loss {metrics[0]['loss']:.2f} -> {metrics[-1]['loss']:.2f}" if metrics else "starting"
        done = len(metrics)
        if not self.live:
            self.say(f"  {stage:9} {done} steps, {losses}, {seconds:.0f} s")
            return
        filled = 24 * min(done, total) // total
        bar = f"  {stage:9} [{'#' * filled}{'.' * (24 - filled)}] {done}/{total}  {losses}  {seconds:.0f} s"
        self.out.write(f"\r\x1b[K{bar}" + ("\n" if final else ""))
        self.out.flush()

    def run(self, *, keep: bool) -> None:
        """Everything, in order.

        Raises:
            Failed: at the first step that does not work.
        """
        self.say("This trains a tokenizer and a tiny language model on this machine, moves it and talks to it.")
        self.say(f"It writes to {self.shown(self.folder)} only and takes about three minutes on two cores.\n")
        self.prepare(keep=keep)
        self.say("1. Data: written for this project, combined by a seeded generator.")
        made = self.command([sys.executable, str(REPOSITORY / "demo" / "data.py"), "--to", "dataset"], name="data")
        self.say(indented(made.stdout))
        self.say("\n2. Training: a tokenizer, then four stages on two processes, each a run of its own.")
        words = ["run", "tokenizer", "--host", "local", "--", "--vocab_size", str(VOCABULARY)]
        self.say(f"$ launch {shlex.join(words)}")
        began = time.monotonic()
        self.launch(*words, name="tokenizer")
        self.say(f"  tokenizer {VOCABULARY} entries, {time.monotonic() - began:.0f} s")
        for job in JOBS:
            self.train(job)
        self.say(
            "\n3. Bringing the weights home. Here home is another folder; from a rented host it works the same way."
        )
        self.say("$ launch sync-out --host local --to home")
        self.launch("sync-out", "--host", "local", "--to", "home", name="sync-out")
        self.verify()
        self.say("\n4. Talking to it.")
        self.chat()

    def verify(self) -> None:
        """Hash every file that came home against SHA256SUMS, as `sha256sum -c` does."""
        home = self.folder / "home"
        files = verified_files(home)
        if not files or not all((home / "out" / name).is_file() for name in (WEIGHTS, ADAPTER)):
            raise Failed(f"{home / SUMS} does not match the files beside it", NOT_VERIFIED)
        size_bytes = sum(file["bytes"] for file in files)
        self.say(f"  {len(files)} files, {size_bytes / 1e6:.1f} MB, each with the sha256 that {SUMS} says")

    def chat(self) -> None:
        """Ask the question with the adapter, from the weights that came home.

        Raises:
            Failed: when the answer lacks the trained name.
        """
        weights = ["--from_weight", f"home/out/{WEIGHTS}", "--from_lora", f"home/out/{ADAPTER}"]
        words = ["-m", "minimind", "chat", *weights, "--temperature", "0", "--prompt", QUESTION]
        self.say(f"$ python {' '.join(words)}")
        answer = self.command([sys.executable, *words], name="chat").stdout
        self.say(f"  {answer}")
        if NAME not in answer and not self.quick:
            raise Failed(
                f"The answer does not contain {NAME}: the adapter has not learned what the demo trains it for.", 1
            )

    def end(self, seconds: float) -> None:
        """Where everything lies, and what to type next."""
        folder = self.shown(self.folder)
        verdict = "The training was cut short (--quick)." if self.quick else f"It knows its name: {NAME}."
        self.say(f"\n{verdict} {seconds:.0f} s in all.\n")
        self.say(f"Where everything lies, below {folder}/:")
        self.say("  dataset/        the data, in MiniMind's formats; held_out_*.jsonl was not trained on")
        self.say("  local/runs/     one folder a run: what was asked, log, metrics, checkpoints, weights")
        self.say("  local/out/      weights under MiniMind's names, the tokenizer")
        self.say("  home/           what sync-out brought, with SHA256SUMS")
        self.say("What to type next:")
        self.say(f"  . {self.shown(Path(sys.executable).parent)}/activate && cd {folder}")
        self.say("  launch ps")
        self.say(f"  python -m minimind chat --from_weight home/out/{WEIGHTS}")
        self.say("  launch init          in a folder of your own, with your data in dataset/; then README.md")


LAUNCH = (sys.executable, "-m", "launch")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl; none when it is not there yet."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def indented(text: str) -> str:
    """Two spaces before every line."""
    return "\n".join(f"  {line}" for line in text.splitlines())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--to", type=Path, default=REPOSITORY / "demo-out", help="folder to work in")
    parser.add_argument("--keep", action="store_true", help="add to what an earlier demo left instead of removing it")
    parser.add_argument("--quick", action="store_true", help="a few steps a stage: shows the way, learns nothing")
    given = parser.parse_args(argv)
    demo = Demo(given.to.resolve(), quick=given.quick, out=sys.stdout, environ=os.environ)
    began = time.monotonic()
    try:
        demo.run(keep=given.keep)
    except Failed as failed:
        demo.say(f"\n{failed}")
        return failed.code
    except KeyboardInterrupt:
        demo.say("\ninterrupted")
        return INTERRUPTED
    demo.end(time.monotonic() - began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
