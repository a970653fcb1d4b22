"""Tokenising that is killed, raced for, or given more lines than memory: nothing half is used, nothing grows."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from minimind import shards, tokenizer
from tests.support import corpus

TOKENISE = """
import os, pathlib, sys
from minimind import shards, tokenise, tokenizer
path, words, workers, chunk_bytes = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
os.sched_getaffinity = lambda pid: set(range(workers))
tokenise.BYTES_PER_WORKER, tokenise.CHUNK_BYTES = 1, chunk_bytes
say = lambda text: print(text, flush=True)
if __name__ == "__main__":
    data = shards.load(path, "text", tokenizer.load(pathlib.Path(words)), fallback=path.parent, say=say)
    peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print("samples", data.samples, "peak_kb", peak[0])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus.make(tmp_path_factory.mktemp("shards"))


def start(folder, path, *, workers, chunk_bytes=512 << 10):
    script = folder / "tokenise_apart.py"
    script.write_text(TOKENISE)
    words = folder / "out" / "tokenizer"
    return subprocess.Popen(
        [sys.executable, str(script), str(path), str(words), str(workers), str(chunk_bytes)],
        env=corpus.environ(TOKENIZERS_PARALLELISM="false"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(found, *, seconds=90):
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return value


def children(pid):
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_killed_in_the_middle_nothing_half_is_used_and_its_workers_die_with_it(folder, tmp_path):
    path = corpus.write_jsonl(tmp_path / "data.jsonl", corpus.texts(12_000))
    home = tmp_path / "data.jsonl.shards"
    process = start(folder, path, workers=2, chunk_bytes=4000)
    written = wait_for(lambda: [p for p in home.glob(".*.tmp/ids.bin") if p.stat().st_size])
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert len(workers) >= 2 and written[0].exists() and not list(home.glob("*/meta.json"))
    wait_for(lambda: not any(runs(pid) for pid in workers))
    words = tokenizer.load(folder / "out" / "tokenizer")
    data = shards.load(path, "text", words, fallback=tmp_path, say=lambda text: None)
    assert data.samples == 12_000 and not list(home.glob(".*.tmp"))
    last = json.loads(path.read_text().splitlines()[-1])["text"]
    assert words.decode(data.ids[data.offsets[-2] : data.offsets[-1]].tolist()) == last


def test_a_worker_killed_by_the_system_is_a_paragraph_and_not_a_hang(folder, tmp_path):
    path = corpus.write_jsonl(tmp_path / "data.jsonl", corpus.texts(12_000))
    process = start(folder, path, workers=2, chunk_bytes=4000)
    home = tmp_path / "data.jsonl.shards"
    wait_for(lambda: [p for p in home.glob(".*.tmp/ids.bin") if p.stat().st_size])
    for pid in children(process.pid):
        if b"spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
            break
    said, _ = process.communicate(timeout=90)
    assert process.returncode and "a process that tokenised" in said and "lack of memory" in said
    assert [p.name for p in home.iterdir()] == ["lock"]


def test_of_two_that_begin_at_once_one_makes_the_tokens_and_both_use_them(folder, tmp_path):
    path = corpus.write_jsonl(tmp_path / "data.jsonl", corpus.texts(3000))
    both = [start(folder, path, workers=1) for _ in range(2)]
    said = [process.communicate(timeout=90)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum(text.count("tokenising /") for text in said) == 1
    assert all("samples 3000" in text for text in said)


def test_memory_does_not_grow_with_the_number_of_lines(folder, tmp_path):
    peaks = []
    for lines in (20_000, 140_000):
        path = tmp_path / f"{lines}.jsonl"
        path.write_bytes(b'{"text": "hello world"}\n' * lines)
        process = start(folder, path, workers=1, chunk_bytes=64 << 10)
        said, _ = process.communicate(timeout=120)
        assert f"samples {lines}" in said, said
        peaks.append(int(said.split()[-1]))
    # what a list of offsets alone would take for the lines between is 120,000 x 36 bytes = 4.3 MB; the mapped
    # arrays are read back at the end and count only where touched
    assert peaks[1] - peaks[0] < 3_000, peaks
