"""The trainers asked from the laptop: flags checked in a process of its own, a host's plan read with distrust."""

import os
import resource

import pytest

from launch.errors import Exit, LaunchError
from launch.runs.forecast import FlagCheck, lines
from minimind.catalog import CATALOG
from tests.conftest import ROOT


def check(stage, *words, package=ROOT / "minimind"):
    return FlagCheck(stage, words, package=package, environ=dict(os.environ)).result()


@pytest.mark.parametrize("stage", CATALOG)
def test_paths_are_parsed_and_not_looked_for(stage):
    assert check(stage, "--data_path", "/on/the/host.jsonl", "--save_dir=~/out") is None


def test_a_wrong_flag_is_the_trainers_own_paragraph_with_exit_code_2():
    with pytest.raises(LaunchError) as refused:
        check("pretrain", "--learning-rat", "1")
    assert refused.value.code is Exit.USAGE and "--learning-rate" in refused.value.remedy
    with pytest.raises(LaunchError) as refused:
        check("lora", "--hidden_size", "64", "--lora_rank", "100")
    assert "64 x 64" in refused.value.why


def test_an_option_of_launch_behind_the_dashes_is_sent_before_them():
    with pytest.raises(LaunchError) as refused:
        check("pretrain", "--nproc=2")
    assert refused.value.remedy == "--nproc=2 is an option of launch itself: put it before --"


def test_trainers_that_cannot_be_asked_stop_nothing(tmp_path):
    (tmp_path / "minimind").mkdir()
    (tmp_path / "minimind" / "__init__.py").write_text("raise RuntimeError")
    assert check("pretrain", "--nonsense", package=tmp_path / "minimind") is None


def test_a_folder_of_that_name_where_the_user_stands_is_not_taken_for_the_trainers(tmp_path, monkeypatch):
    (tmp_path / "minimind").mkdir()  # a checkout of the original, say
    (tmp_path / "minimind" / "__init__.py").write_text("raise SystemExit('wrong package')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LaunchError):
        check("pretrain", "--nonsense")


def test_help_is_given_back():
    assert "--beta" in (check("dpo", "--help") or "")


@pytest.mark.parametrize("odd", [{}, {"lines": 3}, {"warnings": {}, "lines": []}, {"warnings": ["w"]}])
def test_what_a_host_says_instead_of_a_plan_is_shown_as_nothing(odd):
    assert lines(odd) == []


def test_the_check_costs_a_start_of_python_and_little_more():
    def spent_s():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    began_s = spent_s()
    check("pretrain", "--epochs", "1")
    assert spent_s() - began_s < 0.5  # about 0.1 s; a trainer's imports would be 3 s
