"""The kinds of bad lines in each kind of file: named with file, line and why, counted, tolerated to a number."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minimind import shards, tokenise, tokenizer, train_tokenizer
from minimind.documents import Encoder, Rendering
from minimind.rundir import Reason, RunError
from tests.support import corpus
from tests.support.corpus import turn


def bare(value) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


TALK = [turn("user", "a"), turn("assistant", "b")]
GOOD = {"text": bare({"text": "hello"}), "chat": bare({"conversations": TALK})}
GOOD["pair"] = bare({"chosen": TALK, "rejected": [turn("user", "a"), turn("assistant", "c")]})
KEY = {"text": "text", "chat": "conversations", "pair": "rejected"}


def with_value(kind, value, *, key=None):
    return {**json.loads(GOOD[kind]), key or KEY[kind]: value}


def everywhere(kind):
    """What can be wrong with any line."""
    good = GOOD[kind]
    return {
        "broken JSON": (good[:-2], "broken JSON at column"),
        "NUL": (good[:-1] + b"\0}", "NUL byte"),
        "NUL as an escape": (good.replace(b"a" if kind != "text" else b"h", b"\\u0000", 1), "NUL|broken|missing"),
        "non-UTF-8": (good[:-3] + b"\xff" + good[-3:], "not UTF-8"),
        "10 MB line": (good[:-1] + b" " * 10_000_000 + b"}", "longer than 8 MiB"),
        "deep nesting": (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"," + good[1:], "nested"),
        "long number": (b'{"x": ' + b"1" * 5000 + b"," + good[1:], "number that is too long"),
        "not an object": (b"[1]", "it is a list"),
        "wrong type": (bare(with_value(kind, 5)), "is a int"),
        "missing key": (bare({"other": 1}), "is missing"),
        "duplicate key": (b'{"x": 1, "x": 2,' + good[1:], "'x' stands twice"),
    }


def of_conversations(kind):
    """What can be wrong with turns."""
    surrogate = bare(with_value(kind, [turn("user", "a"), turn("assistant", "S")])).replace(b'"S"', b'"\\ud800"')
    return {
        "lone surrogate": (surrogate, "surrogate"),
        "empty text": (bare(with_value(kind, [turn("user", "a"), turn("assistant", " ")])), "turn 2 .* is empty"),
        "empty list": (bare(with_value(kind, [])), "empty list"),
        "unknown role": (bare(with_value(kind, [turn("boss", "a")])), "unknown role 'boss'"),
        "a role of a megabyte": (bare(with_value(kind, [turn("b" * 1_000_000, "a")])), "unknown role 'bbb"),
        "tools that are no objects": (
            bare(with_value(kind, [turn("user", "a") | {"tools": "[1]"}])),
            "list of objects",
        ),
        "broken tool_calls": (bare(with_value(kind, [turn("user", "a") | {"tool_calls": "[{"}])), "broken JSON"),
    }


BAD = {("text", name): case for name, case in everywhere("text").items()}
BAD |= {
    ("text", "lone surrogate"): (b'{"text": "a\\udc00"}', "surrogate"),
    ("text", "empty text"): (b'{"text": " "}', "empty"),
}
for _kind in ("chat", "pair"):
    BAD |= {(_kind, name): case for name, case in (everywhere(_kind) | of_conversations(_kind)).items()}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer.load(corpus.make(tmp_path_factory.mktemp("bad")) / "out" / "tokenizer")


@pytest.mark.parametrize(("kind", "name"), BAD)
def test_a_bad_line_is_refused_with_count_place_and_reason_and_tolerated_when_told(
    kind, name, words, tmp_path, monkeypatch
):
    monkeypatch.setattr(tokenise, "BYTES_PER_WORKER", 1 << 40)  # no processes for two long lines
    raw, why = BAD[kind, name]
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join([GOOD[kind]] * 3 + [raw] + [GOOD[kind]] * 2 + [raw]) + b"\n")
    load = {"fallback": tmp_path, "say": lambda text: None}
    for tolerated in (0, 1):
        with pytest.raises(RunError, match=r"bad lines \(2\)") as refused:
            shards.load(path, kind, words, skip_bad_lines=tolerated, **load)
        assert refused.value.reason is Reason.DATA_INVALID and refused.value.remedy.endswith("--skip_bad_lines 2")
        places = refused.value.why.split("; ")
        assert [place.split(": ")[0] for place in places] == ["data.jsonl:4", "data.jsonl:7"]
        assert len(refused.value.why) < 400
        assert re.search(why, places[0]), places[0]
    data = shards.load(path, kind, words, skip_bad_lines=2, **load)
    assert data.samples == 5 and data.meta["bad_lines"] == 2
    assert "passed over 2 bad and 0 blank lines" in data.remarks("data.jsonl", 512)[-1]


def test_of_many_bad_lines_the_first_are_named_and_all_counted(words, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD["text"] + b"\n" + b"no\n" * 345)
    with pytest.raises(RunError, match=r"\(345\)") as refused:
        shards.load(path, "text", words, fallback=tmp_path, skip_bad_lines=344)
    assert refused.value.why.count("data.jsonl:") == 20 and refused.value.why.endswith("and 325 more")


def test_the_tokenizer_stage_refuses_and_tolerates_the_same(tmp_path, capsys):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join([GOOD["text"], b"no", b"", GOOD["chat"]]))
    with pytest.raises(RunError, match=r"bad lines \(1\)") as refused:
        list(train_tokenizer._read(path, skip_bad_lines=0))
    assert "data.jsonl:2: broken JSON" in refused.value.why
    assert list(train_tokenizer._read(path, skip_bad_lines=1)) == ["hello", "a", "b"]
    assert "passed over 1 bad and 1 blank lines of data.jsonl: data.jsonl:2" in capsys.readouterr().out


def test_a_pair_of_equal_sides_is_kept(words, tmp_path):
    path = corpus.write_jsonl(tmp_path / "data.jsonl", [{"chosen": TALK, "rejected": TALK}])
    data = shards.load(path, "pair", words, fallback=tmp_path)
    assert data.samples == 1 and data.offsets[1] * 2 == data.offsets[2]


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
message = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool", "boss"]),
        "content": st.text(max_size=30) | any_json,
    },
    optional={"tools": any_json, "tool_calls": any_json, "reasoning_content": any_json},
)
line = (
    st.binary(max_size=60)
    | any_json.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {}, optional={key: st.lists(message, max_size=4) for key in ("conversations", "chosen", "rejected")}
    ).map(lambda value: json.dumps(value).encode())
    | st.text(st.characters(codec=None), max_size=30).map(lambda text: json.dumps({"text": text}).encode())
)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(lines=st.lists(line, min_size=1, max_size=4), kind=st.sampled_from(["text", "wrapped", "chat", "pair"]))
def test_whatever_a_line_holds_it_is_tokens_or_a_named_fault(lines, kind, words):
    rendering = Rendering(random_system=0.5, drop_empty_think=0.5)
    encoded = Encoder(words, kind, rendering).encode(1, lines)
    blank_or_bad = encoded.faults.bad + encoded.faults.blank
    assert len(encoded.lines) + blank_or_bad == len(lines)
    assert encoded.lengths.sum() == len(encoded.ids) == len(encoded.targets)
    assert all(fault.why and len(fault.why) < 500 for fault in encoded.faults.named)
