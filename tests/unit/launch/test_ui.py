"""Logs on a terminal: what a host may print there, however the bytes are cut."""

import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.ui import JsonLines, LogWriter, clean, table


def shown(*chunks: bytes, terminal: bool = True) -> bytes:
    out = io.BytesIO()
    writer = LogWriter(out, terminal=terminal)
    for chunk in chunks:
        writer(chunk)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "left"),
    [
        ("plain 你好 é\ttab\r\n".encode(), "plain 你好 é\ttab\r\n".encode()),
        (b"\x1b[1;31mred\x1b[0m", b"\x1b[1;31mred\x1b[0m"),
        (b"a\x1b[2J\x1b[Hb", b"ab"),
        (b"a\x1b]0;title\x07b", b"ab"),
        (b"a\x1b]52;c;Zm9v\x1b\\b", b"ab"),
        (b"a\x1bPq#0\x1b\\b", b"ab"),
        (b"bell\x07 back\x08 null\x00 delete\x7f", b"bell back null delete"),
        ("c1 \x9b2Jx".encode(), b"c1 2Jx"),
        (b"a\x1bcb", b"ab"),
    ],
)
def test_a_terminal_gets_text_and_colour_and_nothing_that_moves_or_sets_it(data, left):
    assert shown(data) == left


@given(st.binary(max_size=60), st.integers(0, 60))
def test_how_the_bytes_are_cut_does_not_matter_and_no_escape_but_colour_gets_through(data, cut):
    parts = shown(data[:cut], data[cut:], b"\n")
    assert parts == shown(data, b"\n")
    assert all(re.match(rb"\[[0-9;:]*m", sequence) for sequence in parts.split(b"\x1b")[1:])


def test_a_pipe_gets_every_byte():
    everything = bytes(range(256)) + b"\x1b[2J"
    assert shown(everything[:100], everything[100:], terminal=False) == everything


def test_an_endless_sequence_is_not_held_back_for_ever():
    assert len(clean(b"\x1b]" + b"x" * 5000)[1]) <= 64


def test_a_cell_is_one_line_whatever_another_launcher_wrote_there(capsys):
    table(("name", "state"), [("two\nlines\tand\x1b[2J", "RUNNING"), ("plain", "LOST")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "two\\nlines\\tand\\x1b[2J" in lines[1]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"))), st.integers(0, 200))
def test_a_log_as_json_has_an_object_a_line_however_the_bytes_are_cut(lines, cut):
    data, out = "\n".join(lines).encode(), io.BytesIO()
    writer = JsonLines(out, run_id="x", rank=None)
    writer(data[:cut])
    writer(data[cut:])
    writer.close()
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    expected = lines if lines and lines[-1] else lines[:-1]
    assert told == [{"run_id": "x", "rank": None, "line": line} for line in expected]
