"""Targets found by special tokens are those found by the places of tokens, whatever a conversation holds."""

import json
import random
import shutil

import numpy as np
import pytest
import tokenizers

from minimind import tokenizer
from minimind.answers import Answers
from minimind.documents import IN_TAG, TARGET, Encoder, Rendering, _flags, _marked
from minimind.turns import Turns
from tests.support import corpus
from tests.support.corpus import turn

PIECES = [
    "a", "hello", " hello", "北京", "。", "\n", "\n\n", " ", "\t", "\r\n", "\u3000", "\x85", "\x1c", "\u200b", "é",
    "e\u0301", "🙂", "'s", "12", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>assistant\n",
    "<|im_end|>\n", "<|im_start|>user\n", "<|im_", "assistant\n", "<think>",
]  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer.load(corpus.make(tmp_path_factory.mktemp("turns")) / "out" / "tokenizer")


def talk(rng):
    text = lambda: "".join(rng.choices(PIECES, k=rng.randrange(6)))  # noqa: E731
    roles = rng.choice([["user", "assistant"], ["system", "user", "assistant"], ["assistant", "user", "assistant"]])
    return [turn(role, text()) for role in roles * rng.randrange(1, 3)]


def test_two_thousand_random_conversations_have_the_same_targets_both_ways(words):
    rng, turns, sure = random.Random(11), Turns(words), 0
    for _ in range(2000):
        text, spans = Answers(words).rendered(talk(rng))
        encoding = words.backend.encode(text, add_special_tokens=False)
        ids, expected = np.array(encoding.ids), _flags(text, encoding.offsets, spans) & 1
        found = turns.find(text, spans, ids)
        if found is not None:
            sure += 1
            assert np.array_equal(_marked(len(ids), found), expected), (text, spans)
    assert sure > 600


THOUGHTS = "('<think>\\n\\n</think>\\n\\n' if m['role'] == 'assistant' else '')"
CONTENTS = {
    "own headers": "m['content']",
    "stripped": "m['content'].strip()",
    "thoughts": f"{THOUGHTS} + m['content'].split('</think>')[-1]",
}


def with_template(words, folder, template):
    """The tokenizer with another chat template, in which thoughts are tokens of their own, as in minimind3."""
    shutil.copytree(words.folder, folder)
    config, backend = folder / "tokenizer_config.json", tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    each = f"{{{{ '<|im_start|>' + m['role'] + '\\n' + {CONTENTS[template]} + '<|im_end|>\\n' }}}}"
    text = f"{{% for m in messages %}}{each}{{% endfor %}}"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": text}))
    if template == "thoughts":
        backend.add_tokens([tokenizers.AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
        backend.save(str(folder / "tokenizer.json"))
    return tokenizer.load(folder)


@pytest.mark.parametrize("template", ["minimind2", *CONTENTS])
def test_spans_from_one_rendering_are_those_of_rendering_every_beginning(words, tmp_path, template):
    if template != "minimind2":
        words = with_template(words, tmp_path / "words", template)
    rng, answers, sure = random.Random(12), Answers(words), 0
    at_once = answers.by_messages if template == "minimind2" else answers.by_turns
    for _ in range(600):
        messages = talk(rng)
        text, spans = answers.rendered(messages)
        assert text == words.render(messages) and spans == answers.by_prefixes(text, messages)
        sure += at_once(text, messages) is not None
    assert sure > (500 if template == "minimind2" else 100)  # elsewhere those without special tokens in what was said


def test_a_conversation_whose_template_writes_thoughts_is_rendered_once_and_its_tags_are_known(words, tmp_path):
    words = with_template(words, tmp_path / "words", "thoughts")
    encoder, rng, rendered = Encoder(words, "chat", Rendering()), random.Random(13), []
    talks = [[turn("user", "q"), turn("assistant", f"{rng.random()}<think>a</think>{rng.random()}")] for _ in range(50)]
    real, words.render = words.render, lambda *args, **more: rendered.append(1) or real(*args, **more)
    encoded = encoder.encode(1, [json.dumps({"conversations": talk}).encode() for talk in talks])
    assert len(rendered) <= len(talks) + 2  # and twice to learn what the template does
    ends = np.cumsum(encoded.lengths)
    for talk, first, last in zip(talks, [0, *ends], ends, strict=False):
        text, spans = encoder._answers.rendered(talk)
        encoding = words.backend.encode(text, add_special_tokens=False)
        assert encoding.ids == encoded.ids[first:last].tolist()
        assert np.array_equal(_flags(text, encoding.offsets, spans), encoded.targets[first:last])
    assert set(encoded.targets.tolist()) == {0, TARGET, TARGET | IN_TAG}


def test_a_plain_conversation_is_known_without_places_and_a_line_break_first_is_not(words):
    turns = Turns(words)
    for answer, known in (("yes", True), ("", True), ("\nyes", False), (" yes", False)):
        text, spans = Answers(words).rendered([turn("user", "a"), turn("assistant", answer)])
        assert (turns.find(text, spans, np.array(words.encode(text))) is not None) is known, answer


def test_lines_of_both_sorts_come_back_in_their_order(words):
    talks = [
        [turn("user", "q"), turn("assistant", answer)] for answer in ("one", "\ntwo", "<think>x</think>three", "four")
    ]
    raw = [json.dumps({"conversations": talk}).encode() for talk in talks]
    encoded = Encoder(words, "chat", Rendering()).encode(1, raw)
    ends = np.cumsum(encoded.lengths)
    texts = [
        words.decode(encoded.ids[a:b].tolist(), skip_special=False) for a, b in zip([0, *ends], ends, strict=False)
    ]
    assert texts == [Answers(words).rendered(talk)[0] for talk in talks]


@pytest.mark.parametrize("change", ["normalizer", "post_processor", "prefix_space", "lstrip"])
def test_a_tokenizer_that_cuts_in_another_way_is_not_trusted(words, tmp_path, change):
    told = json.loads((words.folder / "tokenizer.json").read_text())
    if change == "normalizer":
        told["normalizer"] = {"type": "NFC"}
    elif change == "post_processor":
        told["post_processor"] = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        }
    elif change == "prefix_space":
        told["pre_tokenizer"]["add_prefix_space"] = True
    else:
        told["added_tokens"][1]["lstrip"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    (tmp_path / "tokenizer_config.json").write_bytes((words.folder / "tokenizer_config.json").read_bytes())
    assert Turns(words).usable and not Turns(tokenizer.load(tmp_path)).usable
