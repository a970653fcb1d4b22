"""How fast do lines become tokens, in how much memory, and how soon does a training start on a large file?

Side by side in one run: the original's way (one call of a transformers tokenizer a line, in one thread, padded to
max_seq_len; for conversations its chat template and its loss mask too) and ours (shards on all cores, each line once).
The sentences made here come again and again, which suits whatever remembers words: `--paragraphs FILE` takes the text
of a file instead (paragraphs with an empty line between), each paragraph once. `--gigabytes 2` makes a file of two
million lines, tokenises it while the resident memory of all processes is watched, and measures the start. Fails when a
ratio, the memory or the start is outside of its limit; no ratio is asked of a file's text.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from demo import data as demo  # noqa: E402

RATIOS, START_S, RSS_BYTES = {"text": 5.0, "chat": 5.0}, 2.0, 500e6
LENGTH = 512
OURS = """
import pathlib, sys, time
from minimind import shards, tokenizer
path, kind, words = pathlib.Path(sys.argv[1]), sys.argv[2], tokenizer.load(pathlib.Path(sys.argv[3]))
if __name__ == "__main__":
    began = time.perf_counter()
    say = lambda text: print(text, file=sys.stderr, flush=True)
    data = shards.load(path, kind, words, fallback=path.parent, say=say)
    made = time.perf_counter() - began
    lengths, counts = data.lengths(512), data.target_counts(512)
    print(made, time.perf_counter() - began, data.samples, int(lengths.sum()), int(counts.sum()))
"""


def lines_of(path: pathlib.Path, kind: str) -> list[dict]:
    """A file's paragraphs as texts, or as conversations of about 1 KB, each paragraph once."""
    paragraphs = [text.strip() for text in path.read_text().split("\n\n") if text.strip()]
    if kind == "text":
        return [{"text": text} for text in paragraphs]
    made: list[dict] = []
    turns: list[dict] = []
    for question, answer in zip(paragraphs[::2], paragraphs[1::2], strict=False):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if sum(len(turn["content"].encode()) for turn in turns) > 900:
            made.append({"conversations": turns})
            turns = []
    return made


def make_lines(kind: str, lines: int, seed: int) -> list[dict]:
    """Texts whose lengths are log-normal around 115 tokens, conversations around 270."""
    rng = random.Random(seed)
    sets = demo.build(demo.read_texts())
    texts = [line["text"] for line in sets["pretrain_hq.jsonl"]]
    talks = [line["conversations"] for line in sets["sft_mini_512.jsonl"]]
    made = []
    for _ in range(lines):
        count = max(1, round(rng.lognormvariate(0.9, 0.6)))
        if kind == "text":
            made.append({"text": "\n".join(rng.choice(texts) for _ in range(count))})
        else:
            made.append({"conversations": [turn for _ in range(2 * count) for turn in rng.choice(talks)]})
    return made


def write(path: pathlib.Path, lines: list[dict], repeats: int = 1) -> None:
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    with open(path, "wb") as file:
        for _ in range(repeats):
            file.write(data)


def originals_way(kind: str, lines: list[dict], folder: pathlib.Path) -> tuple[float, float]:
    """Seconds, and seconds of a core, for these lines as the original makes them, for one epoch, in one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    header = words("<|im_start|>assistant", add_special_tokens=False).input_ids
    end = words("<|im_end|>", add_special_tokens=False).input_ids
    began, worked = time.perf_counter(), time.process_time()
    for line in lines:
        if kind == "text":
            words(line["text"], max_length=LENGTH, padding="max_length", truncation=True, return_tensors="pt")
            continue
        prompt = words.apply_chat_template(line["conversations"], tokenize=False, add_generation_prompt=False)
        ids = words(prompt, max_length=LENGTH, padding="max_length", truncation=True).input_ids
        mask, at = [0] * len(ids), 0
        while at < len(ids):  # the tokens behind each header through the end token
            if ids[at : at + len(header)] == header:
                start = stop = at + len(header)
                while stop < len(ids) and ids[stop : stop + len(end)] != end:
                    stop += 1
                mask[start + 1 : stop + len(end) + 1] = [1] * (min(stop + len(end) + 1, len(ids)) - start - 1)
                at = stop + len(end)
            else:
                at += 1
    return time.perf_counter() - began, time.process_time() - worked


def resident(pid: int) -> int:
    """Bytes of main memory of a process and its children; pages that they share count for each of them."""
    total = 0
    try:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                total += int(line.split()[1]) * 1024
        for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += resident(int(child))
    except OSError:
        pass
    return total


def ours(kind: str, path: pathlib.Path, folder: pathlib.Path) -> tuple[list[float], int, float]:
    """[seconds to the shards, to the counts too, samples, …], the peak of resident memory, seconds of cores."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = folder / "ours.py"
    script.write_text(OURS)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    environ.pop("TOKENIZERS_PARALLELISM", None)
    command = [sys.executable, str(script), str(path), kind, str(folder)]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.1)
    said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"the tokenising failed with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [float(word) for word in said.split()], peak, worked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=40_000, help="lines of each kind for the comparison")
    parser.add_argument("--repeats", type=int, default=3, help="how often each way is measured, in turns")
    parser.add_argument("--gigabytes", type=float, default=0.0, help="also tokenise a file of this size")
    parser.add_argument("--paragraphs", type=pathlib.Path, help="take the lines from this text")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="folder; default: one of 6400 entries is trained")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    from minimind import tokenizer

    found, failed = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if options.tokenizer:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                (folder / file).write_bytes((options.tokenizer / file).read_bytes())
        else:
            texts = [line["text"] for line in demo.build(demo.read_texts())["pretrain_hq.jsonl"]]
            tokenizer.train(iter(texts), folder, vocab_size=6400)
        for kind in ("text", "chat"):
            lines = (
                lines_of(options.paragraphs, kind) if options.paragraphs else make_lines(kind, options.lines, seed=1)
            )
            path = folder / f"{kind}.jsonl"
            write(path, lines)
            size = path.stat().st_size
            plain, here, plain_core, here_core = [], [], [], []
            for _ in range(options.repeats):
                some = lines[: max(1, len(lines) // 10)]
                seconds, worked = originals_way(kind, some, folder)
                plain.append(len(some) / seconds)
                plain_core.append(worked / len(some))
                for old in (folder / f"{kind}.jsonl.shards").glob("*"):
                    subprocess.run(["rm", "-rf", str(old)], check=True)
                (seconds, *_), peak, worked = ours(kind, path, folder)
                here_core.append(worked / len(lines))
                here.append(len(lines) / seconds)
            a, b = statistics.median(plain), statistics.median(here)
            found[kind] = {
                "original_lines_per_s": a,
                "ours_lines_per_s": b,
                "original_mb_per_s": a * size / len(lines) / 1e6,
                "ours_mb_per_s": b * size / len(lines) / 1e6,
                "ratio": b / a,
                "original_core_us_per_line": statistics.median(plain_core) * 1e6,
                "ours_core_us_per_line": statistics.median(here_core) * 1e6,
                "peak_rss_mb": peak / 1e6,
            }
            if b / a < RATIOS[kind] and not options.paragraphs:
                failed.append(f"{kind}: {b / a:.1f}x is below {RATIOS[kind]}x")
        if options.gigabytes:
            lines = make_lines("text", 20_000, seed=2)
            path = folder / "large.jsonl"
            write(path, lines)
            repeats = max(1, round(options.gigabytes * 1e9 / path.stat().st_size))
            write(path, lines, repeats)
            (seconds, *_), peak, _ = ours("text", path, folder)
            time.sleep(2.5)  # so that the file counts as settled and its hash is remembered
            ours("text", path, folder)
            (_, start_s, samples, tokens, _), *_ = ours("text", path, folder)
            found["large"] = {
                "gigabytes": path.stat().st_size / 1e9,
                "lines": samples,
                "tokens": tokens,
                "seconds": seconds,
                "mb_per_s": path.stat().st_size / seconds / 1e6,
                "peak_rss_mb": peak / 1e6,
                "start_s": start_s,
            }
            if peak > RSS_BYTES:
                failed.append(f"memory: {peak / 1e6:.0f} MB is above {RSS_BYTES / 1e6:.0f} MB")
            if start_s > START_S:
                failed.append(f"start: {start_s:.2f} s is above {START_S} s")
    if options.json:
        print(json.dumps({**found, "cores": len(os.sched_getaffinity(0)), "failed": failed}))
    else:
        print(f"{len(os.sched_getaffinity(0))} cores; lines/s (MB/s)")
        for kind in ("text", "chat"):
            one = found[kind]
            print(
                f"{kind:5} original {one['original_lines_per_s']:8,.0f} ({one['original_mb_per_s']:5.1f})   "
                f"ours {one['ours_lines_per_s']:8,.0f} ({one['ours_mb_per_s']:5.1f})   "
                f"ratio {one['ratio']:5.1f} (at least {RATIOS[kind]})   peak RSS {one['peak_rss_mb']:,.0f} MB\n"
                f"      core time a line: original {one['original_core_us_per_line']:,.0f} us, "
                f"ours {one['ours_core_us_per_line']:,.0f} us (start of the processes included)"
            )
        if large := found.get("large"):
            print(
                f"large {large['gigabytes']:.2f} GB, {large['lines']:,.0f} lines in {large['seconds']:,.0f} s, "
                f"{large['mb_per_s']:.1f} MB/s, peak RSS {large['peak_rss_mb']:,.0f} MB of all processes "
                f"(at most 500); start once made {large['start_s']:.2f} s (at most {START_S})"
            )
        for text in failed:
            print(f"FAILED {text}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
