"""Tokens made once: the same however they are made, whole or absent, and never of another content than the file's."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import threading
import time
import tracemalloc

import numpy as np
import pytest

from minimind import documents, shard_folder, shards, tokenise, tokenizer
from minimind.rundir import Reason, RunError
from tests.support import corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus.make(tmp_path_factory.mktemp("shards"), samples=40)


@pytest.fixture(scope="module")
def words(folder):
    return tokenizer.load(folder / "out" / "tokenizer")


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", mounted], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield mounted
    subprocess.run(["umount", mounted], check=True)


def load(path, kind, words, said=None, **kwargs):
    say = said.append if said is not None else lambda text: None
    return shards.load(path, kind, words, **{"fallback": path.parent / "unused", "say": say, **kwargs})


def arrays(data):
    return {name: np.asarray(getattr(data, name)).tolist() for name in ("ids", *tokenise.ARRAYS)}


@pytest.mark.parametrize(("kind", "name"), [("chat", "sft_mini_512"), ("pair", "dpo"), ("wrapped", "pretrain_hq")])
def test_worker_processes_make_the_same_tokens_in_the_same_order(kind, name, folder, words, tmp_path, monkeypatch):
    lines = (folder / "dataset" / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"".join([*lines[:9], b"\n", b"no\n", *lines[9:]]))
    alone = load(path, kind, words, skip_bad_lines=1)
    monkeypatch.setattr(tokenise, "BYTES_PER_WORKER", path.stat().st_size // 2)
    monkeypatch.setattr(tokenise, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    pools = []
    made = tokenise._pool
    monkeypatch.setattr(tokenise, "_pool", lambda *given: pools.append(made(*given)) or pools[-1])
    other = tmp_path / "again.jsonl"
    other.write_bytes(path.read_bytes())
    together = load(other, kind, words, skip_bad_lines=1)
    assert len(pools) == 1 and arrays(together) == arrays(alone)
    assert together.meta == alone.meta and together.meta["named"][0]["line"] == 11


def test_each_sample_knows_its_line_in_the_file(words, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "a b"}\n\nno\n{"text": "c d"}\n')
    data = load(path, "text", words, skip_bad_lines=1)
    assert data.lines.tolist() == [1, 4]
    assert data.remarks("data.jsonl", 512)[-1].startswith(
        "passed over 1 bad and 1 blank lines of data.jsonl: data.jsonl:3"
    )


def test_answers_that_are_missing_or_lie_beyond_the_cut_are_counted_and_named(words, tmp_path):
    asked, long = corpus.turn("user", "天气"), corpus.turn("user", "学习 模型 " * 200)
    answer = corpus.turn("assistant", "hello")
    talks = [[asked, answer], [asked], [long, answer], [asked, corpus.turn("assistant", "学习 " * 400)]]
    path = corpus.write_jsonl(tmp_path / "data.jsonl", [{"conversations": talk} for talk in talks])
    data = load(path, "chat", words)
    told = " | ".join(data.remarks("data.jsonl", 100))
    assert "2 texts are longer than 100 tokens" in told
    assert "1 samples have no answer and add nothing: data.jsonl:2" in told
    assert "begins only behind the first 100 tokens and add nothing: data.jsonl:3" in told
    assert (data.target_counts(100) > 0).tolist() == [True, False, False, True]


def test_counts_of_a_cut_text_are_those_of_its_tokens(folder, words):
    for name, kind in (("sft_mini_512", "chat"), ("dpo", "pair"), ("pretrain_hq", "text")):
        data = load(folder / "dataset" / f"{name}.jsonl", kind, words)
        ends = zip(data.offsets[:-1], data.offsets[1:], strict=True)
        spans = [(int(begin), int(end)) for begin, end in ends]
        for length in (2, 7, 30, 512):
            plain = [int((data.targets[b + 1 : min(e, b + length)] & shards.TARGET).sum()) for b, e in spans]
            assert data.target_counts(length).tolist() == plain


def test_counting_the_targets_of_few_cut_texts_takes_no_memory_for_those_between(tmp_path):
    whole = np.full(200_000, 100)
    whole[[0, -1]] = 2000
    offsets = np.concatenate(([0], np.cumsum(whole)))
    flags = np.zeros(offsets[-1], np.uint8)
    flags[:700], flags[-3:] = shards.TARGET, shards.TARGET
    none = np.zeros(0)
    data = shards.Shards(
        folder=tmp_path, kind="chat", ids=none, targets=flags, offsets=offsets, lines=none, meta={},
        counts=np.full(200_000, 3, np.int32),
    )  # fmt: skip
    tracemalloc.start()
    counts = data.target_counts(512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (counts[0], counts[-1], counts[1:-1].min(), counts.max()) == (511, 0, 3, 511)
    assert peak < 20e6 and data.target_counts(512) is counts


def test_the_hash_of_an_unchanged_file_is_remembered_and_of_a_changed_one_computed(words, tmp_path, monkeypatch):
    path = corpus.write_jsonl(tmp_path / "data.jsonl", corpus.texts(4))
    load(path, "text", words)
    home = tmp_path / "data.jsonl.shards"
    assert not list(home.glob("content-*.json"))  # it has just been written, and could change within the same tick
    monkeypatch.setattr(shard_folder, "SETTLED_S", -60.0)
    first = load(path, "text", words)
    (note,) = home.glob("content-*.json")
    wrong = json.loads(note.read_text()) | {"sha256": "0" * 64}
    note.write_text(json.dumps(wrong))
    assert load(path, "text", words).folder.name.startswith("0" * 16)  # so the file was not read
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"hello", b"world"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    again = load(path, "text", words)
    assert again.meta["file"] not in ("0" * 64, first.meta["file"])
    assert again.ids.tolist() != first.ids.tolist()


def test_tokens_of_an_earlier_content_are_removed_unless_somebody_reads_them(words, tmp_path):
    path = corpus.write_jsonl(tmp_path / "data.jsonl", corpus.texts(4))
    read = load(path, "text", words)
    held = read.folder
    expected = read.ids.tolist()
    path.write_text(path.read_text() + '{"text": "more"}\n')
    second = load(path, "text", words).folder  # nobody reads it any more after this line
    assert held.is_dir() and read.ids.tolist() == expected
    del read
    path.write_text(path.read_text() + '{"text": "and more"}\n')
    said = []
    third = load(path, "text", words, said).folder
    assert third.is_dir() and not held.exists() and not second.exists()
    assert sum("removing" in text for text in said) == 2


def test_whoever_comes_second_waits_and_says_for_whom(words, tmp_path):
    path = corpus.write_jsonl(tmp_path / "data.jsonl", corpus.texts(4))
    home = tmp_path / "data.jsonl.shards"
    home.mkdir()
    said, found = [], []
    with open(home / "lock", "w") as lock:
        lock.write("process 4711 on elsewhere\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lambda: found.append(load(path, "text", words, said)))
        waiting.start()
        until = time.monotonic() + 60
        while not said and time.monotonic() < until:
            time.sleep(0.05)
        assert said == [f"process 4711 on elsewhere is tokenising into {home}; waiting for it"] and not found
    waiting.join(60)
    assert found[0].samples == 4


def test_a_file_that_changes_while_it_is_tokenised_is_refused(words, tmp_path):
    path = corpus.write_jsonl(tmp_path / "data.jsonl", corpus.texts(4))

    def change(text):
        with open(path, "a") as file:
            file.write('{"text": "more"}\n')

    with pytest.raises(RunError, match="changed while") as refused:
        shards.load(path, "text", words, fallback=tmp_path, say=change)
    assert refused.value.reason is Reason.DATA_INVALID
    assert load(path, "text", words).samples == 5


def test_what_a_dead_builder_left_is_never_used_and_is_removed(words, tmp_path):
    path = corpus.write_jsonl(tmp_path / "data.jsonl", corpus.texts(4))
    home = tmp_path / "data.jsonl.shards"
    for name in (".other-content.1.tmp", ".another.999999.tmp"):
        (home / name).mkdir(parents=True)
        (home / name / "ids.bin").write_bytes(b"half")
    whole = load(path, "text", words)
    assert whole.samples == 4 and not list(home.glob(".*.tmp"))
    (whole.folder / "meta.json").unlink()  # as if it had been copied here in part
    assert load(path, "text", words).ids.tolist() == whole.ids.tolist()


def test_progress_is_said_with_rate_and_time_left(words, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenise, "SAID_EVERY_S", 0.0)
    monkeypatch.setattr(tokenise, "CHUNK_BYTES", 2000)
    said = []
    load(corpus.write_jsonl(tmp_path / "data.jsonl", corpus.texts(100)), "text", words, said)
    assert len(said) > 3 and all("lines/s" in text and text.endswith("s left") for text in said[1:])


def test_a_full_disk_is_told_with_free_and_needed_and_leaves_nothing(words, disk):
    path = corpus.write_jsonl(disk / "data.jsonl", corpus.texts(2500))
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - (64 << 10)))
    with pytest.raises(RunError, match="disk became full") as refused:
        load(path, "text", words)
    assert refused.value.reason is Reason.DISK_FULL
    assert "MB free" in refused.value.why and "need about" in refused.value.why
    assert [p.name for p in (disk / "data.jsonl.shards").iterdir()] == ["lock"]


def test_a_read_only_disk_with_finished_shards_is_used_as_it_is(words, disk, tmp_path):
    path = corpus.write_jsonl(disk / "data.jsonl", corpus.texts(20))
    made = load(path, "text", words).ids.tolist()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    said = []
    found = load(path, "text", words, said, fallback=tmp_path / "elsewhere")
    assert found.ids.tolist() == made and not said and found.folder.is_relative_to(disk)
    other = load(path, "wrapped", words, said, fallback=tmp_path / "elsewhere")
    assert other.folder.is_relative_to(tmp_path / "elsewhere") and other.samples == 20
    with contextlib.suppress(RunError):
        del found, other


def test_a_file_on_a_read_only_disk_is_hashed_once(words, disk, tmp_path, monkeypatch):
    path = corpus.write_jsonl(disk / "data.jsonl", corpus.texts(20))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    monkeypatch.setattr(shard_folder, "SETTLED_S", -60.0)
    hashed = []
    real = shard_folder.sha256_file
    monkeypatch.setattr(shard_folder, "sha256_file", lambda path: hashed.append(path) or real(path))
    first = load(path, "text", words, fallback=tmp_path / "run" / "shards")
    again = load(path, "text", words, fallback=tmp_path / "run" / "shards")
    assert first.folder == again.folder and first.folder.is_relative_to(tmp_path) and hashed == [path]


def test_nowhere_to_keep_tokens_is_a_paragraph(words, disk):
    path = corpus.write_jsonl(disk / "data.jsonl", corpus.texts(2))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(RunError, match="cannot be kept anywhere"):
        load(path, "text", words, fallback=disk / "no")


def test_a_text_of_megabytes_keeps_its_beginning_in_bounded_memory_and_is_told(words, tmp_path):
    long = "天气 hello " * 100_000
    talk = [
        corpus.turn("user", "a"),
        corpus.turn("assistant", long),
        corpus.turn("user", "b"),
        corpus.turn("assistant", "c"),
    ]
    path = corpus.write_jsonl(tmp_path / "data.jsonl", [{"conversations": talk}])
    short = corpus.write_jsonl(
        tmp_path / "short.jsonl", [{"conversations": [talk[0], corpus.turn("assistant", "天气 " * 9)]}]
    )
    data, other = load(path, "chat", words), load(short, "chat", words)
    assert len(words.decode(data.ids.tolist(), skip_special=False)) == documents.KEPT_CHARS
    assert data.targets[-1] == shards.TARGET and data.counts[0] > 50_000
    assert "1 texts are longer than 262,144 characters" in " ".join(data.remarks("data.jsonl", 1 << 20))
    assert not other.meta["shortened"]


def test_finding_shards_writes_nothing_and_gives_what_loading_would_reuse(words, tmp_path):
    path = corpus.write_jsonl(tmp_path / "data.jsonl", corpus.texts(4))
    find = {"fallback": tmp_path / "unused"}
    assert shards.find(path, "text", words, **find) is None and [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]
    made = load(path, "text", words)
    before = sorted(tmp_path.rglob("*"))
    found = shards.find(path, "text", words, **find)
    assert found.folder == made.folder and shards.find(path, "wrapped", words, **find) is None
    assert sorted(tmp_path.rglob("*")) == before
