"""What `launch run` refuses, with the documented exit code and one paragraph, and what a dry run leaves: nothing."""

import json

import pytest

from tests.support import launching
from tests.support.launching import TRAIN, tree


@pytest.fixture
def home(tmp_path, sshd):
    return launching.make_home(tmp_path, sshd)


@pytest.mark.sshd
@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("pretrian",), 2, "Did you mean 'pretrain'"),
        (("pretrain", "--nproc", "0"), 2, "--nproc"),
        (("pretrain", "--nproc", "two"), 2, "--nproc"),
        (("pretrain", "--host", "a", "--host", "b"), 2, "one host for now"),
        (("pretrain", "--name", "last"), 2, "--name"),
        (("pretrain", "--hidden_size", "64"), 2, "come after --"),
        (("pretrain", "--", "--run_dir", "x"), 2, "launch resume"),
        (("pretrain", "--", "--epoch", "3"), 2, "did you mean --epochs?"),
        (("pretrain", "--", "--epochs", "three"), 2, "invalid int value"),
        (("pretrain", "--host", "gpu8", "--", "--nproc", "2"), 2, "put it before --"),
        (("dpo", "--", "--data_path", ""), 2, "--data_path"),
        (("full_sft", "--", "--from_weight"), 2, "--from_weight"),
        (("pretrain", "--data", "x", "--", "--data-path=y"), 2, "give one"),
        (("pretrain", "--host", "gpu9"), 3, "gpu8"),
        (("pretrain", "--host", "gpu8", "--data", "nowhere.jsonl"), 3, "nowhere.jsonl"),
        (("dpo", "--host", "gpu8"), 3, "full_sft_512.pth"),
        (("dpo", "--host", "gpu8", "--", "--hidden-size=64"), 3, "full_sft_64.pth"),
        (("full_sft", "--host", "gpu8", "--", "--from_weight", "gone.pth"), 3, "gone.pth"),
        (("pretrain", "--host", "gpu8", "--", "--tokenizer", "no/where"), 3, "no/where"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_code_before_anything_is_made(home, args, code, told):
    before = tree(home.home, home.root)
    done = home.launch("run", *args)
    assert done.returncode == code, done.stderr
    assert told in done.stderr and "Traceback" not in done.stderr
    assert code == 2 or ("why:" in done.stderr and "remedy:" in done.stderr)
    assert done.stdout == ""
    assert tree(home.home, home.root) == before


@pytest.mark.sshd
def test_missing_weights_name_both_places_and_the_stage_that_writes_them(home):
    done = home.launch("run", "full_sft", "--host", "gpu8", "--", *TRAIN)
    assert done.returncode == 3
    assert f"gpu8:{home.root}/out/pretrain_64.pth" in done.stderr
    assert str(home.home / "out" / "pretrain_64.pth") in done.stderr
    assert "launch run pretrain --host gpu8" in done.stderr


@pytest.mark.sshd
def test_a_dry_run_shows_every_step_and_changes_nothing_anywhere(home):
    data = home.home / "dataset" / "pretrain_hq.jsonl"
    before = tree(home.home, home.root)
    args = ("run", "pretrain", "--host", "gpu8", "--name", "n", "--dry-run")
    shown = home.launch(*args, "--", *TRAIN)
    assert shown.returncode == 0, shown.stderr
    assert f"{data} -> {home.root}/dataset/pretrain_hq.jsonl ({data.stat().st_size} bytes)" in shown.stdout
    assert "minimind.supervise" in shown.stdout and "spec.json" in shown.stdout and "n.1" in shown.stdout

    told = json.loads(home.launch(*args, "--json", "--", *TRAIN, check=True).stdout)
    assert told["spec"]["stage"] == "pretrain" and told["spec"]["flags"][-len(TRAIN) :] == list(TRAIN)
    sent = {step["path"]: step["length_bytes"] for step in told["steps"] if step["verb"] == "send"}
    assert sent[f"{home.root}/dataset/pretrain_hq.jsonl"] == data.stat().st_size
    assert len(sent) == 3
    assert tree(home.home, home.root) == before


@pytest.mark.sshd
def test_an_explicit_file_goes_to_inputs_and_the_flag_follows_it(home):
    (home.home / "mine.jsonl").write_text('{"text": "x"}\n')
    run = ("run", "pretrain", "--host", "gpu8", "--dry-run", "--json", "--data", "mine.jsonl", "--", *TRAIN)
    spec = json.loads(home.launch(*run, check=True).stdout)["spec"]
    path = next(item["path"] for item in spec["inputs"] if item["path"].endswith("mine.jsonl"))
    assert path.startswith(f"{home.root}/inputs/")
    assert spec["flags"][spec["flags"].index("--data_path") + 1] == path


def test_the_local_host_reads_a_named_file_where_it_lies(tmp_path):
    home = launching.local_home(tmp_path)
    spec = json.loads(home.launch("run", "pretrain", "--dry-run", "--json", "--", *TRAIN, check=True).stdout)["spec"]
    assert f"{home.home}/dataset/pretrain_hq.jsonl" in spec["flags"]
    assert not (home.home / "local").exists()


@pytest.mark.sshd
def test_an_unreachable_host_is_unknown_and_the_exit_code_says_so_while_the_others_are_shown(home):
    with open(home.home / "launch.toml", "a") as file:
        file.write('\n[hosts.gone]\nssh = "nobody@127.0.0.1:1"\n')
    assert home.launch("logs", "last").returncode == 4
    (home.root / "runs" / "20260101-120000-dpo-abcd").mkdir(parents=True)
    for args in (("ps", "--json"), ("ps", "--host", "gone", "--json")):
        seen = home.launch(*args)
        assert seen.returncode == 4
        assert ("gone", "UNKNOWN") in [(row["host"], row["state"]) for row in json.loads(seen.stdout)]
        assert "gone is UNKNOWN" in seen.stderr and "remedy:" in seen.stderr
    assert "20260101-120000-dpo-abcd" in home.launch("ps").stdout
    hosts = home.launch("hosts", "--json")
    assert hosts.returncode == 4
    assert {row["host"]: row["reachable"] for row in json.loads(hosts.stdout)} == {
        "gpu8": True,
        "gone": False,
        "local": True,
    }
    assert "gone is UNKNOWN" in hosts.stderr


def test_help_behind_the_dashes_is_the_stages_help(tmp_path):
    home = launching.local_home(tmp_path)
    done = home.launch("run", "dpo", "--", "--help")
    assert done.returncode == 0, done.stderr
    assert "--beta" in done.stdout and "strength of the pull" in done.stdout
    assert not (home.home / "local").exists()


@pytest.mark.sshd
def test_what_the_host_knows_will_fail_is_refused_before_a_run_is_made(home):
    (home.home / "asked.jsonl").write_text('{"conversations": [{"role": "user", "content": "hello"}]}\n')
    scratch = ("--from_weight", "none")
    done = home.launch("run", "full_sft", "--host", "gpu8", "--data", "asked.jsonl", "--", *TRAIN, *scratch)
    assert done.returncode == 5, done.stderr
    assert "learned from" in done.stderr and "why:" in done.stderr and "remedy:" in done.stderr
    huge = ("--hidden_size", "65536", "--num_hidden_layers", "4000")
    done = home.launch("run", "pretrain", "--host", "gpu8", "--name", "big", "--", *huge)
    assert done.returncode == 5 and "one checkpoint and the final weights need" in done.stderr
    assert not (home.root / "runs").exists() and not (home.root / "names").exists()


@pytest.mark.sshd
def test_a_start_shows_the_plan_with_its_warnings_first_and_a_dry_run_shows_it_once_it_costs_no_byte(home):
    words = ("--", *TRAIN, "--max_steps", "1")
    started = home.launch("run", "pretrain", "--host", "gpu8", "--nproc", "2", *words)
    assert started.returncode == 0, started.stderr
    warning = started.stderr.index("warning: save_interval 100 exceeds the 1 steps of this run")
    assert warning < started.stderr.index("pretrain (minimind2): 24 samples") < started.stderr.index("memory: about")
    before = tree(home.home, home.root)
    dry = json.loads(home.launch("run", "pretrain", "--host", "gpu8", "--dry-run", "--json", *words, check=True).stdout)
    assert dry["plan"]["steps"]["last"] == 1 and dry["plan"]["data"]["samples"] == 24
    shown = home.launch("run", "pretrain", "--host", "gpu8", "--dry-run", *words, check=True).stdout
    assert "pretrain (minimind2): 24 samples" in shown
    assert tree(home.home, home.root) == before


def test_a_dry_run_never_says_that_it_does_what_it_does_not(home):
    shown = home.launch("run", "pretrain", "--host", "gpu8", "--dry-run", "--", *TRAIN)
    assert shown.returncode == 0, shown.stderr
    sayings = [line for line in shown.stderr.splitlines() if "code" in line or "->" in line]
    assert sayings and all(line.startswith("dry run, not done: ") for line in sayings)


def test_an_empty_inventory_option_is_usage_and_a_folder_of_that_name_is_said(tmp_path):
    home = launching.local_home(tmp_path)
    empty = home.launch("--inventory", "", "ps")
    assert empty.returncode == 2 and "empty" in empty.stderr
    (home.home / "launch.toml").mkdir()
    folder = home.launch("ps")
    assert folder.returncode == 3 and "it is a folder" in folder.stderr and "remedy:" in folder.stderr
