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
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
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
    more: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        """The trainer's flags."""
        said = f"--epochs {self.epochs} --batch_size {self.batch_size} --learning_rate {self.learning_rate}"
        return [*MODEL, "--accumulation_steps", "1", *said.split(), *self.more]

    def steps(self, lines: int) -> int:
        """Optimizer steps over data of so many lines: batches of each pass, shared out among the ranks."""
        return self.epochs * math.ceil(math.ceil(lines / self.batch_size) / NPROC)


JOBS = (
    Job(stage="pretrain", data="pretrain_hq.jsonl", epochs=3, batch_size=8, learning_rate=3e-3),
    Job(stage="full_sft", data="sft_mini_512.jsonl", epochs=5, batch_size=8, learning_rate=2e-3),
    Job(stage="dpo", data="dpo.jsonl", epochs=1, batch_size=8, learning_rate=5e-4, more=("--beta", "2")),
    Job(stage="lora", data="lora_identity.jsonl", epochs=12, batch_size=4, learning_rate=5e-3),
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
        found = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        mark, empty = self.folder / MARK, self.folder / "launch.toml"
        if found and mark not in found:
            raise Failed(
                f"{self.folder} is not the demo's\n  why: it lacks {MARK}, which the demo leaves in its own folder\n"
                "  remedy: move it away, or name another folder with --to",
                REFUSED,
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
        above = next((p for p in self.folder.parents if (p / empty.name).is_file()), None)
        if above and not empty.exists():
            self.say(f"{above / empty.name} is left alone: an empty one in {self.shown(self.folder)} hides it")
            empty.write_text("# empty: the demo uses the built-in host `local`\n")
        if self.run_dirs("*"):
            runs = json.loads(self.launch("ps", "--host", "local", "--json", name="ps"))
            alive = [run["run_id"] for run in runs if not State(run["state"]).ended and run["state"] != State.PREPARED]
            if alive:
                raise Failed(
                    f"a run of an earlier demo is still alive: {alive[0]}\n  why: removing its files would break it\n"
                    f"  remedy: cd {self.shown(self.folder)} && launch stop {alive[0]}",
                    REFUSED,
                )
        old = [path for path in found if path not in (mark, empty)]
        if old and not keep:
            self.say(
                f"removing what an earlier demo left in {self.shown(self.folder)}: {', '.join(p.name for p in old)}"
            )
            for path in old:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def shown(self, path: Path) -> str:
        """A path as short as it can be typed from here."""
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

    def launch(self, *words: str, name: str, watch: Callable[[], None] | None = None) -> str:
        """One call of the real command line."""
        return self.command([sys.executable, "-m", "launch", *words], name=name, watch=watch)

    def command(self, argv: Sequence[str], *, name: str, watch: Callable[[], None] | None = None) -> str:
        """Run something in the demo's folder, keeping what it prints in ``logs/``; returns its stdout.

        Raises:
            Failed: with what it said, when it fails.
        """
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        with open(logs / f"{name}.out", "wb") as out, open(logs / f"{name}.err", "wb") as err:
            process = subprocess.Popen(
                argv, cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        try:
            while watch and process.poll() is None:
                watch()
                time.sleep(POLL_S)
            code = process.wait()
        except KeyboardInterrupt:  # it got the signal too: let it say how to return to a run that goes on
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            said = self.words(name, "err")
            raise Failed(f"interrupted\n{said}\n(there: cd {self.shown(self.folder)})", INTERRUPTED) from None
        if code:
            said = self.words(name, "err") or self.words(name, "out")
            raise Failed(f"{said}\n(all of it: {self.shown(logs)}/{name}.*)", code)
        return self.words(name, "out")

    def words(self, name: str, kind: str) -> str:
        """What a command printed."""
        return (self.folder / "logs" / f"{name}.{kind}").read_text(encoding="utf-8", errors="replace").strip()

    def train(self, job: Job) -> None:
        """Run one stage, with a bar on a terminal and one line elsewhere."""
        lines = len((self.folder / "dataset" / job.data).read_bytes().splitlines())
        flags = [*job.flags(), *(("--max_steps", str(QUICK_STEPS)) if self.quick else ())]
        total = QUICK_STEPS if self.quick else job.steps(lines)
        words = ["run", job.stage, "--host", "local", "--nproc", str(1 if self.quick else NPROC), "--", *flags]
        self.say(f"$ launch {shlex.join(words)}")
        before, began = self.run_dirs(job.stage), time.monotonic()

        def watch(*, final: bool = False) -> None:
            new = sorted(self.run_dirs(job.stage) - before)
            metrics = read_metrics(new[-1] / "metrics.jsonl") if new else []
            self.draw(job.stage, metrics, total, time.monotonic() - began, final=final)

        self.launch(*words, name=job.stage, watch=watch if self.live else None)
        watch(final=True)

    def run_dirs(self, stage: str) -> set[Path]:
        """Run directories of a stage."""
        return set((self.folder / "local" / "runs").glob(f"*-{stage}-*"))

    def draw(self, stage: str, metrics: list[dict[str, Any]], total: int, seconds: float, *, final: bool) -> None:
        """One line: how far a stage is."""
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
        self.say(textwrap.indent(made, "  "))
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
        answer = self.command([sys.executable, *words], name="chat")
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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl; none when it is not there yet."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


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
