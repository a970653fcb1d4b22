"""What can be wrong with a line, each named with its file, its number and why."""

import json

import pytest

from minimind import jsonl
from minimind.rundir import Reason, RunError

GOOD = b'{"text": "hello"}'
CHAT = {"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def chat(**changes):
    return json.dumps({**CHAT, **changes}).encode()


def read(path, parse, **kwargs):
    return [value for _, value in jsonl.parse_lines(path, parse, **{"skip_bad_lines": 0, **kwargs})]


def conversation(line):
    return jsonl.messages(line, "conversations")


BAD = {
    "broken JSON": (b'{"text": "a"', jsonl.pretrain_text, "broken JSON at column"),
    "NUL byte": (b'{"text": "a\0"}', jsonl.pretrain_text, "NUL byte"),
    "NUL escape": (b'{"text": "a\\u0000"}', jsonl.pretrain_text, "NUL character"),
    "not UTF-8": (b'{"text": "\xff"}', jsonl.pretrain_text, "not UTF-8 (byte 11)"),
    "lone surrogate": (b'{"text": "a\\ud800"}', jsonl.pretrain_text, "surrogate"),
    "10 MB line": (b'{"text": "' + b"a" * 10_000_000 + b'"}', jsonl.pretrain_text, "longer than 8 MiB"),
    "deep nesting": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", jsonl.pretrain_text, "nested"),
    "wrong type": (b'{"text": 5}', jsonl.pretrain_text, '"text" is a int'),
    "not an object": (b"[1]", jsonl.pretrain_text, "it is a list"),
    "missing key": (b'{"txt": "a"}', jsonl.pretrain_text, '"text" is missing'),
    "empty text": (b'{"text": "  "}', jsonl.pretrain_text, "empty"),
    "duplicate key": (b'{"text": "a", "text": "b"}', jsonl.pretrain_text, "'text' stands twice"),
    "empty list": (chat(conversations=[]), conversation, "empty list"),
    "unknown role": (chat(conversations=[{"role": "boss", "content": "a"}]), conversation, "unknown role 'boss'"),
    "unhashable role": (chat(conversations=[{"role": [], "content": "a"}]), conversation, "unknown role"),
    "turn without content": (chat(conversations=[{"role": "user"}]), conversation, 'lacks "content"'),
    "turn of another type": (chat(conversations=["a"]), conversation, "turn 1"),
    "content of another type": (chat(conversations=[{"role": "user", "content": None}]), conversation, "NoneType"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_refused_and_named_with_file_line_and_why(kind, tmp_path):
    raw, parse, why = BAD[kind]
    good = GOOD if parse is jsonl.pretrain_text else chat()
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join([good] * 16 + [raw] + [good] * 3) + b"\n")
    with pytest.raises(RunError) as refused:
        read(path, parse)
    assert "data.jsonl:17: " in refused.value.why and why in refused.value.why
    assert refused.value.reason is Reason.DATA_INVALID and "--skip_bad_lines 1" in refused.value.remedy
    faults = jsonl.Faults()
    assert len(read(path, parse, skip_bad_lines=1, faults=faults)) == 19
    assert [fault.line for fault in faults.named] == [17] and faults.bad == 1


def test_a_byte_order_mark_before_the_first_line_is_no_part_of_it(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n')
    assert [found for _, found in jsonl.parse_lines(path, jsonl.pretrain_text, skip_bad_lines=0)] == ["a", "b"]
    path.write_bytes(b'\xef\xbb\xbf{"text": "' + b"a" * jsonl.MAX_LINE_BYTES + b'"}\n')
    with pytest.raises(RunError) as refused:
        list(jsonl.parse_lines(path, jsonl.pretrain_text, skip_bad_lines=0))
    assert "longer than 8 MiB" in refused.value.why
    path.write_bytes(b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n')
    with pytest.raises(RunError, match="bad lines"):
        list(jsonl.parse_lines(path, jsonl.pretrain_text, skip_bad_lines=0))


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_line_that_breaks_off_is_broken_at_its_end(end, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "a"' + end, newline="")
    with pytest.raises(RunError) as refused:
        list(jsonl.parse_lines(tmp_path / "data.jsonl", jsonl.pretrain_text, skip_bad_lines=0))
    assert "data.jsonl:1: broken JSON at column 13" in refused.value.why


def test_blank_lines_are_passed_over_and_recorded(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + b"\n\n  \n" + GOOD)
    faults = jsonl.Faults()
    assert read(path, jsonl.pretrain_text, faults=faults) == ["hello", "hello"]
    assert (faults.bad, faults.blank) == (0, 2)


def test_one_more_bad_line_than_tolerated_is_refused(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"no\n" * 3 + GOOD)
    assert read(path, jsonl.pretrain_text, skip_bad_lines=3) == ["hello"]
    with pytest.raises(RunError, match="3"):
        read(path, jsonl.pretrain_text, skip_bad_lines=2)


def test_a_file_that_is_missing_or_a_folder_is_data_missing(tmp_path):
    for path in (tmp_path / "no.jsonl", tmp_path):
        with pytest.raises(RunError) as refused:
            read(path, jsonl.pretrain_text)
        assert refused.value.reason is Reason.DATA_MISSING
