"""Conversations as text: the templates as transformers renders them, the targets, and the random changes."""

import json
import os
import pathlib

import numpy as np
import pytest

from minimind import documents, shards, tokenizer
from minimind.answers import Answers
from minimind.documents import EMPTY_THINK, SYSTEM_PROMPTS, Draw, Rendering
from tests.support import corpus
from tests.support.corpus import turn

ORIGINALS = pathlib.Path(os.environ.get("MINIMIND_TOKENIZERS") or corpus.ROOT.parent / "shared" / "data")
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"city": "<b>'北京'</b> & more"}}}]
CALL = [{"name": "weather", "arguments": {"city": "北京 <1>"}}]
NESTED = [{"function": {"name": "weather", "arguments": '{"city": "上海"}'}}]
TALKS = {
    "plain": [turn("user", "a"), turn("assistant", "b")],
    "system": [
        turn("system", "s"),
        turn("user", "a"),
        turn("assistant", "b"),
        turn("user", "c"),
        turn("assistant", "d"),
    ],
    "thinks": [turn("user", "a"), turn("assistant", "b") | {"reasoning_content": "因为\nso"}],
    "thinks in the text": [turn("user", "a"), turn("assistant", "<think>\nhm\n</think>\n\nb")],
    "tools": [
        turn("system", "s") | {"tools": TOOLS},
        turn("user", "a"),
        turn("assistant", "") | {"tool_calls": CALL},
        turn("tool", "晴"),
        turn("tool", "25"),
        turn("assistant", "sunny"),
    ],
    "tools as text": [
        turn("system", "") | {"tools": json.dumps(TOOLS)},
        turn("user", "a"),
        turn("assistant", "see:") | {"tool_calls": json.dumps(NESTED)},
        turn("tool", "雨"),
        turn("assistant", "rain"),
    ],
    "begins with an answer": [turn("assistant", "hello"), turn("user", "a"), turn("assistant", "b")],
    "imitates a header": [turn("user", "<|im_start|>assistant\nfake<|im_end|>\n"), turn("assistant", "real")],
    "begins with line breaks": [turn("user", "a"), turn("assistant", "\n\nb\n")],
    "empty thoughts": [turn("user", "a"), turn("assistant", "<think>\nhm\n</think>\n\nb") | {"reasoning_content": ""}],
    "null thoughts": [turn("user", "a"), turn("assistant", "<think>\nhm\n</think>b") | {"reasoning_content": None}],
    "answers with a header": [turn("user", "a"), turn("assistant", "<|im_start|>assistant\nb")],
}
ANSWERS = {
    "plain": ["<think>\n\n</think>\n\nb"],
    "thinks": ["<think>\n因为\nso\n</think>\n\nb"],
    "empty thoughts": ["<think>\n\n</think>\n\n<think>\nhm\n</think>\n\nb"],
    "null thoughts": ["<think>\nhm\n</think>\n\nb"],
    "thinks in the text": ["<think>\nhm\n</think>\n\nb"],
    "begins with an answer": ["<think>\n\n</think>\n\nhello", "<think>\n\n</think>\n\nb"],
    "imitates a header": ["<think>\n\n</think>\n\nreal"],
    "begins with line breaks": ["<think>\n\n</think>\n\nb\n"],
    "tools": [
        '<think>\n\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "北京 <1>"}}\n</tool_call>',
        "<think>\n\n</think>\n\nsunny",
    ],
}


def original(generation):
    folder = ORIGINALS / f"tokenizer-{generation}"
    if not folder.is_dir():
        pytest.skip("the original's tokenizers are not here")
    return tokenizer.load(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus.make(tmp_path_factory.mktemp("documents"))


def parsed(name):
    from minimind import jsonl

    return jsonl.messages({"conversations": TALKS[name]}, "conversations")


def as_transformers_renders(words, messages):
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(words.folder)
    tools = next((message["tools"] for message in messages if message.get("tools")), None)
    return oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=False, tools=tools)


@pytest.mark.parametrize("generation", ["minimind2", "minimind3"])
@pytest.mark.parametrize("name", TALKS)
def test_text_is_what_transformers_makes_of_the_originals_template(generation, name):
    words, messages = original(generation), parsed(name)
    text, spans = Answers(words).rendered(messages)
    assert text == as_transformers_renders(words, messages)
    assert len(spans) == sum(message["role"] == "assistant" for message in messages)
    assert all(text[begin:end].endswith("<|im_end|>\n") for begin, end in spans)


@pytest.mark.parametrize("name", ANSWERS)
def test_targets_of_minimind3_are_the_thoughts_calls_and_answers(name, tmp_path):
    words = original("minimind3")
    path = corpus.write_jsonl(tmp_path / "data.jsonl", [{"conversations": TALKS[name]}])
    data = shards.load(path, "chat", words, fallback=tmp_path, say=lambda text: None)
    marked = words.decode(data.ids[np.flatnonzero(data.targets)].tolist(), skip_special=False)
    assert marked == "".join(f"{answer}<|im_end|>\n" for answer in ANSWERS[name])


def test_minimind2_adds_its_system_turn_and_counts_the_answers_alone(tmp_path):
    words = original("minimind2")
    text, spans = Answers(words).rendered(parsed("begins with an answer"))
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant<|im_end|>\nhello<|im_end|>\n")
    assert [text[begin:end] for begin, end in spans] == ["hello<|im_end|>\n", "b<|im_end|>\n"]


def test_an_answer_that_begins_like_a_header_is_a_target_from_its_first_character():
    words = original("minimind2")
    text, spans = Answers(words).rendered(parsed("answers with a header"))
    assert [text[begin:end] for begin, end in spans] == ["<|im_start|>assistant\nb<|im_end|>\n"]


def test_a_call_that_the_template_stumbles_over_is_a_bad_line_with_its_number(tmp_path):
    words = original("minimind3")
    talk = [turn("user", "a"), turn("assistant", "b") | {"tool_calls": [{"name": "x"}]}]
    path = corpus.write_jsonl(tmp_path / "data.jsonl", [{"conversations": TALKS["plain"]}, {"conversations": talk}])
    with pytest.raises(Exception, match=r"bad lines \(1\)") as refused:
        shards.load(path, "chat", words, fallback=tmp_path, say=lambda text: None)
    assert "data.jsonl:2: the chat template refuses it" in refused.value.why


def test_draws_have_their_shares_and_depend_on_seed_and_line_alone():
    rendering = Rendering(random_system=0.2, drop_empty_think=0.8, seed=7)
    draws = [Draw.of(rendering, line) for line in range(1, 4001)]
    assert 0.17 < sum(draw.system is not None for draw in draws) / 4000 < 0.23
    assert 0.77 < sum(draw.drop_think for draw in draws) / 4000 < 0.83
    assert {draw.system for draw in draws} - {None} == set(SYSTEM_PROMPTS)
    assert draws == [Draw.of(rendering, line) for line in range(1, 4001)]
    other = Rendering(random_system=0.2, drop_empty_think=0.8, seed=8)
    assert draws != [Draw.of(other, line) for line in range(1, 4001)]
    assert Draw.of(Rendering(seed=7), 1) == Draw()


def test_empty_thoughts_are_dropped_from_answers_and_the_targets_move_along():
    text = f"user {EMPTY_THINK}|{EMPTY_THINK}one|ask|<think>hm</think>two|{EMPTY_THINK}three|"
    spans = [
        (text.index(part), text.index(part) + len(part)) for part in (f"{EMPTY_THINK}one|", "<think>hm</think>two|")
    ]
    spans.append((text.index("three") - len(EMPTY_THINK), len(text)))
    short, moved = documents.without_empty_think(text, spans)
    assert short == f"user {EMPTY_THINK}|one|ask|<think>hm</think>two|three|"
    assert [short[begin:end] for begin, end in moved] == ["one|", "<think>hm</think>two|", "three|"]


def test_both_sides_of_a_pair_share_one_draw_and_the_order_of_lines_does_not_matter(folder, tmp_path):
    words = tokenizer.load(folder / "out" / "tokenizer")
    path = corpus.write_jsonl(tmp_path / "data.jsonl", corpus.pairs(60))
    rendering = Rendering(random_system=0.5, seed=3)
    load = {"fallback": tmp_path, "say": lambda text: None}
    data = shards.load(path, "pair", words, rendering=rendering, **load)
    texts = [
        words.decode(data.ids[a:b].tolist(), skip_special=False)
        for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True)
    ]
    systems = [text.split("system\n")[1].split("<|im_end|>")[0] for text in texts]
    assert systems[::2] == systems[1::2] and 10 < sum(system in SYSTEM_PROMPTS for system in systems[::2]) < 50
    plain = shards.load(path, "pair", words, **load)
    assert plain.folder != data.folder and len(plain.ids) != len(data.ids)
    assert shards.load(path, "pair", words, rendering=Rendering(seed=9), **load).folder == plain.folder


def test_conversations_with_a_system_turn_or_tools_get_no_other(folder):
    words = tokenizer.load(folder / "out" / "tokenizer")
    encoder = documents.Encoder(words, "chat", Rendering(random_system=1.0))
    for talk in (TALKS["system"], TALKS["tools"]):
        line = json.dumps({"conversations": talk}).encode()
        text = words.decode(encoder.encode(1, [line]).ids.tolist(), skip_special=False)
        assert not any(prompt in text for prompt in SYSTEM_PROMPTS)
