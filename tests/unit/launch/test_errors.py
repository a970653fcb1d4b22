import pytest

from launch.errors import Exit, LaunchError, printable


def test_the_exit_codes_are_those_of_the_contract():
    assert {code.name: code.value for code in Exit} == {
        "OK": 0,
        "BUG": 1,
        "USAGE": 2,
        "INVALID": 3,
        "UNREACHABLE": 4,
        "HOST_NOT_READY": 5,
        "RUN_FAILED": 6,
        "RUN_LOST": 7,
        "NOT_VERIFIED": 8,
        "REFUSED": 9,
        "INCOMPLETE": 10,
        "INTERRUPTED": 130,
    }


def test_an_error_says_what_why_and_remedy():
    error = LaunchError("it broke", why="it was old", remedy="buy a new one", code=Exit.BUG)
    assert str(error) == "it broke\n  why: it was old\n  remedy: buy a new one"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, 中文 é 🙂\n\tindented", "plain, 中文 é 🙂\n\tindented"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\rb\x07\x00\x9b", "a\\x0db\\x07\\x00\\x9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u2028b", "a\\u2028b"),
        ("\udcff", "\\udcff"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_text_from_a_host_cannot_steer_the_terminal(text, shown):
    assert printable(text) == shown


def test_no_part_of_an_error_can_steer_the_terminal():
    error = LaunchError("\x1b]0;w\x07", why="\x1b[1m", remedy="\x1bc", code=Exit.BUG)
    assert "\x1b" not in str(error) + error.what + error.why + error.remedy
