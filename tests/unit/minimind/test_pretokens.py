"""Pre-tokens met before give the very tokens of the tokenizers library, whatever a text holds."""

import json
import random
import re

import numpy as np
import pytest

from minimind import pretokens, tokenizer
from minimind.documents import Encoder, Rendering
from minimind.pretokens import Pretokens
from tests.support import corpus

PIECES = [
    "a", "hello", " hello", "北京", "人工智能是", "。", "，", "\n", "\n\n", " ", "  ", "\t", "\r\n", "\u3000", "\x85",
    "\x1c", "\u200b", "\u180e", "é", "e\u0301", "ǆ", "²", "٣", "Ⅷ", "½", "🙂", "👍🏽", "𝒜", "𠀀", "ꯍ", "\ue000",
    "\uffff", "'s", "'S", " 're", "don't", "12", " 3.14", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_",
    "|>", "<", "<<|im_end|>>", "_", "__init__", "x" * 60, "()", " ==", "한국어", "हिन्दी", "عربي",
]  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer.load(corpus.make(tmp_path_factory.mktemp("pretokens")) / "out" / "tokenizer")


def test_every_character_that_is_held_for_certain_is_cut_as_the_library_cuts_it(words):
    cut, uncertain = pretokens.patterns()
    sure = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000 and not uncertain.search(chr(code))]
    assert len(sure) > 50_000 and all(char in sure for char in "a1 \n。北🙂é٣")
    by_library = words.backend.pre_tokenizer.pre_tokenize_str
    for around in ("a{}", "1{}", "!{}", " {}", "{} ", "a{}a", "{}{}"):
        for first in range(0, len(sure), 2000):
            text = "中!1".join(around.replace("{}", char) for char in sure[first : first + 2000])
            assert cut.findall(text) == [text[a:b] for _, (a, b) in by_library(text)], (around, first)


def test_random_texts_have_the_library_s_ids_while_it_remembers_and_forgets(words, monkeypatch):
    monkeypatch.setattr(pretokens, "KEPT", 60)
    rng, ours = random.Random(5), Pretokens(words, np.uint16)
    for _ in range(60):
        texts = ["".join(rng.choices(PIECES, k=rng.randrange(12))) for _ in range(30)]
        expected = [one.ids for one in words.backend.encode_batch(texts, add_special_tokens=False)]
        assert [ids.tolist() for ids in ours.encode(texts)] == expected
        assert len(ours._ids) <= 61 + len(words.backend.get_added_tokens_decoder())
    assert ours.usable and not any(len(part) > pretokens.LONGEST for part in ours._ids)


def test_a_library_that_cuts_in_another_way_is_noticed_and_has_its_way(words, monkeypatch):
    other = re.compile(r"(?s:.)"), re.compile("(?!)")
    monkeypatch.setattr(pretokens, "patterns", lambda: other)
    ours, texts = Pretokens(words, np.uint16), ["the people of the country", "what is the time?"]
    assert ours.usable and len(words.encode(texts[0])) < len(texts[0])
    assert [ids.tolist() for ids in ours.encode(texts)] == [words.encode(text) for text in texts]
    assert not ours.usable
    assert [ids.tolist() for ids in ours.encode(texts[1:])] == [words.encode(texts[1])]


@pytest.mark.parametrize("kind", ["text", "wrapped", "chat", "pair"])
def test_a_process_with_one_core_makes_the_arrays_of_one_with_many(words, kind):
    rng = random.Random(6)
    text = lambda: "".join(rng.choices(PIECES, k=rng.randrange(1, 12)))  # noqa: E731
    talk = lambda: [{"role": role, "content": text()} for role in ("user", "assistant") * rng.randrange(1, 4)]  # noqa: E731
    make = {"chat": lambda: {"conversations": talk()}, "pair": lambda: {"chosen": talk(), "rejected": talk()}}
    raw = [json.dumps(make.get(kind, lambda: {"text": text()})()).encode() for _ in range(200)]
    both = [Encoder(words, kind, Rendering(), alone=alone).encode(1, raw) for alone in (False, True)]
    for name in ("ids", "targets", "lengths", "counts", "lines"):
        one, other = (getattr(encoded, name) for encoded in both)
        assert one.dtype == other.dtype and np.array_equal(one, other), name
    assert len(both[0].lines) > 150


@pytest.mark.parametrize(
    "change", ["normalizer", "post_processor", "no_regex", "dropout", "lstrip", "another token", "unigram"]
)
def test_a_tokenizer_that_does_more_than_cut_and_merge_is_left_to_the_library(words, tmp_path, change):
    told = json.loads((words.folder / "tokenizer.json").read_text())
    added = told["added_tokens"]
    if change == "normalizer":
        told["normalizer"] = {"type": "NFC"}
    elif change == "post_processor":
        told["post_processor"] = {**told["pre_tokenizer"]}
    elif change == "no_regex":
        told["pre_tokenizer"]["use_regex"] = False
    elif change == "dropout":
        told["model"]["dropout"] = 0.1
    elif change == "lstrip":
        added[1]["lstrip"] = True
    elif change == "another token":
        added.append({**added[0], "id": len(told["model"]["vocab"]), "content": "im_st"})
    else:
        vocabulary = [[token["content"], 0.0] for token in added] + [[char, -1.0] for char in "helo wrd"]
        told["model"] = {"type": "Unigram", "unk_id": 0, "vocab": vocabulary}
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    (tmp_path / "tokenizer_config.json").write_bytes((words.folder / "tokenizer_config.json").read_bytes())
    other = tokenizer.load(tmp_path)
    ours = Pretokens(other, np.uint16)
    assert Pretokens(words, np.uint16).usable and not ours.usable
    if change != "dropout":
        assert ours.encode(["hello world"])[0].tolist() == other.encode("hello world")
