"""Looking into and rewriting the trainer's flags, in each way a person writes them."""

import pytest

from launch.flags import is_on, value_of, with_value, without


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], None),
        (["--hidden_size", "64"], "64"),
        (["--hidden-size", "64"], "64"),
        (["--hidden_size=64"], "64"),
        (["--hidden-size="], ""),
        (["--hidden_size", "1", "--x", "--hidden-size=2"], "2"),
        (["--hidden_size", "--x", "3"], ""),
        (["--hidden_size_of", "3"], None),
        (["--learning_rate", "-1", "--hidden_size", "-2"], "-2"),
    ],
)
def test_a_value_is_found_however_it_is_written(words, value):
    assert value_of(words, "hidden_size") == value


@pytest.mark.parametrize(
    ("words", "on"),
    [
        ([], False),
        (["--use_moe"], True),
        (["--use-moe", "1"], True),
        (["--use_moe=true"], True),
        (["--use_moe", "0"], False),
        (["--use_moe=False"], False),
        (["--use_moe", "--no-use_moe"], False),
        (["--no_use_moe", "--use_moe", "--x"], True),
    ],
)
def test_a_switch_is_on_or_off_as_its_last_mention_says(words, on):
    assert is_on(words, "use_moe") is on


def test_a_flag_is_replaced_in_its_place_and_every_older_mention_goes():
    words = ["--a", "1", "--data-path", "x", "--b", "--data_path=y", "--c", "2"]
    assert with_value(words, "data_path", "/z") == ["--a", "1", "--data_path", "/z", "--b", "--c", "2"]
    assert with_value(["--a", "1"], "data_path", "/z") == ["--data_path", "/z", "--a", "1"]


def test_removing_a_flag_takes_its_value_but_not_the_next_flag():
    assert without(["--x", "--y", "1", "--x=2", "--x", "3"], "x") == ["--y", "1"]
