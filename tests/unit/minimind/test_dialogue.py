"""The words around a model: templates by what the weights are, what fits, thoughts, stops, control characters."""

import dataclasses
import os
import pathlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minimind import tokenizer
from minimind.config import ModelConfig, UsageError
from minimind.dialogue import Speaker, Splitter, TextStream, readable, speaker, split, visible
from minimind.rundir import RunError
from tests.support import serving

ORIGINALS = pathlib.Path(os.environ.get("MINIMIND_TOKENIZERS", "/nowhere"))  # folders of the original's tokenizers


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer.load(serving.words(tmp_path_factory.mktemp("words")))


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    return tokenizer.load(serving.words(tmp_path_factory.mktemp("thinking"), template=serving.THINKING))


def config(arch="minimind2", positions=32768) -> ModelConfig:
    made = ModelConfig.for_arch(arch, hidden_size=64, num_hidden_layers=1, vocab_size=300)
    return dataclasses.replace(made, max_position_embeddings=positions)


def pushed(text: str, cuts: list[int], opened: str = "") -> tuple[str, str]:
    splitter, parts = Splitter(opened), {"thought": "", "answer": ""}
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        for kind, part in splitter.push(text[start:end], last=end == len(text)):
            parts[kind] += part
    return parts["thought"], parts["answer"]


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("plain", "", ("", "plain")),
        (" <b>no tag</b> ", "", ("", " <b>no tag</b> ")),
        ("<think>a\nb</think><answer>c</answer>", "", ("a\nb", "c")),
        ("\n<think>\na\n</think>\n<answer>\nc\n</answer>\n", "", ("a", "c")),
        ("<answer>c</answer>", "", ("", "c")),
        ("a\n</think>\n\nc", "<think>\n", ("a", "c")),
        ("c", "<think>\n\n</think>\n\n", ("", "c")),
        ("<think>\n\n</think>\n\nc", "", ("", "c")),
        ("never closed </thin", "<think>\n", ("never closed </thin", "")),
        ("say <think>x</think>", "", ("", "say <think>x</think>")),
        ("<think>a</think>b <answer>c", "", ("a", "b <answer>c")),
        ("<thi", "", ("", "<thi")),
        ("", "", ("", "")),
    ],
)
def test_thoughts_and_answer_come_apart_however_the_text_is_cut(text, opened, expected):
    assert split(text, opened) == expected
    for cut in range(len(text) + 1):
        assert pushed(text, [cut], opened) == expected
    assert pushed(text, list(range(1, len(text))), opened) == expected


def test_a_page_shows_thoughts_as_a_quotation_and_no_control_character():
    assert readable("<think>a\nb</think><answer>c\x1b[2J</answer>") == "> a\n> b\n\nc\\x1b[2J"


@pytest.mark.parametrize("bad", ["\x1b]0;title\x07", "\x9b31m", "a\rb", "\x08", "\u202eabc", "\x00", "\x7f", "\u2066x"])
def test_nothing_that_commands_a_terminal_comes_through(bad):
    shown = visible(f"天空\n\t{bad}é")
    assert shown.startswith("天空\n\t") and shown.endswith("é") and "\\" in shown
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\u202e\u2066" for c in shown)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="ab 今天é😀", min_size=1, max_size=24),
    stops=st.lists(st.text(alphabet="ab 今天", min_size=1, max_size=4), max_size=3),
)
@example(text=" aa", stops=["a", " aa"])  # two tokens: " aa" would begin earlier, and is not complete when "a" is
@example(text="bab", stops=["ab", "b", "ba"])
def test_text_comes_whole_and_ends_before_the_stop_string_that_is_complete_first(words, text, stops):
    stream, shown = TextStream(words, stops), []
    for token in words.encode(text):
        shown.append(stream.push(token))
    shown.append(stream.close())
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert "".join(shown) == (text[: min(ends)[1]] if ends else text) and stream.stopped == bool(ends)


def test_bytes_that_are_no_text_come_out_at_the_end_and_do_not_stop_it(words):
    token = words.backend.token_to_id("ä")  # the byte 0xe4 alone begins a character of three
    stream = TextStream(words)
    assert stream.push(token) == ""
    assert stream.push(words.encode("a")[0]) == "\ufffda"
    assert stream.push(token) == "" and stream.close() == "\ufffd"


@pytest.mark.parametrize(
    ("name", "sidecar", "raw", "adapted", "plain"),
    [
        ("pretrain_512.pth", {}, None, False, True),
        ("full_sft_512.pth", {}, None, False, False),
        ("reason_512.pth", {}, None, False, False),
        ("mine.pth", {"stage": "pretrain"}, None, False, True),
        ("pretrain_512.pth", {"stage": "full_sft"}, None, False, False),
        ("pretrain_512.pth", {}, False, False, False),
        ("full_sft_512.pth", {"stage": "full_sft"}, True, False, True),
        ("pretrain_512.pth", {"stage": "pretrain"}, None, True, False),
    ],
)
def test_the_template_follows_what_the_weights_are_and_the_flag_decides(words, name, sidecar, raw, adapted, plain):
    found, said = speaker(words, config(), pathlib.Path(name), sidecar, raw=raw, think=False, adapted=adapted)
    assert found.raw is plain and ("plain text" in said) == plain


def test_plain_text_begins_as_the_generation_was_trained(words):
    ids = words.encode("今天")
    assert Speaker(words=words, config=config("minimind2"), raw=True).continued("今天") == ids
    assert Speaker(words=words, config=config("minimind3"), raw=True).continued("今天") == [words.bos_id, *ids]


def test_thinking_is_refused_where_no_template_opens_it_and_opened_where_one_does(words, thinking):
    for raw, tokens in ((False, words), (True, thinking)):
        with pytest.raises(UsageError, match="cannot be told to think"):
            speaker(tokens, config(), pathlib.Path("x.pth"), {}, raw=raw, think=True, adapted=False)
    asked = [{"role": "user", "content": "a"}]
    assert Speaker(words=thinking, config=config(), raw=False, think=True).asked(asked)[1] == "<think>\n"
    assert Speaker(words=thinking, config=config(), raw=False).asked(asked)[1] == "<think>\n\n</think>\n\n"
    assert Speaker(words=words, config=config(), raw=False).asked(asked)[1] == ""


def test_the_oldest_pairs_go_whole_when_the_positions_do_not_hold_them(words):
    past = [(f"question {n} " + "今天" * 20, f"answer {n}") for n in range(6)]
    talk = Speaker(words=words, config=config(positions=400), raw=False)
    ids, _, dropped = talk.fitted("be kind", past, "and now?", room=64)
    text = words.decode(ids, skip_special=False)
    assert len(ids) <= 400 - 64 and 0 < dropped < 6
    assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n") and "and now?" in text
    for n in range(6):
        assert (f"question {n} " in text) == (f"answer {n}" in text) == (n >= dropped)
    longer, _, _ = talk.fitted("be kind", past[dropped - 1 :], "and now?", room=1)
    assert len(longer) > 400 - 64  # no more was dropped than had to be
    with pytest.raises(RunError, match="too long"):
        talk.fitted(None, past, "今天" * 300, room=64)


@pytest.mark.skipif(
    not (ORIGINALS / "tokenizer-minimind3").is_dir(), reason="MINIMIND_TOKENIZERS names no folder of the original's"
)
def test_the_originals_templates_open_an_answer_as_they_were_trained():
    asked = [{"role": "user", "content": "你好"}]
    new, old = (tokenizer.load(ORIGINALS / f"tokenizer-{arch}") for arch in ("minimind3", "minimind2"))
    assert new.can_think and not old.can_think
    begun = "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    assert (
        new.prompt(asked) == begun + "<think>\n\n</think>\n\n" and new.prompt(asked, think=True) == begun + "<think>\n"
    )
    assert old.prompt(asked) == "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n" + begun
    # what was thought is told again in the next turn's prompt
    past = [*asked, {"role": "assistant", "content": "<think>\nhm\n</think>\n\n好"}, *asked]
    assert "<|im_start|>assistant\n<think>\nhm\n</think>\n\n好<|im_end|>\n" in new.prompt(past)
