"""eval's numbers against the same sums by transformers."""

import json
import math
import shutil
import subprocess

import pytest
import torch

from minimind import evaluate
from minimind.rundir import Reason, RunError
from tests.golden.test_training import Words, folder, lines_of, llama  # noqa: F401


def told(capsys, *flags):
    assert evaluate.evaluate(list(flags)) == 0
    return json.loads(capsys.readouterr().out)


def test_held_out_loss_and_perplexity_equal_those_of_a_plain_loop(folder, capsys):  # noqa: F811
    words, model = Words(folder), llama(folder, "base_64.pth").eval()
    total, count = 0.0, 0
    for line in lines_of(folder, "sft_mini_512.jsonl"):
        ids, mask = words.row(words.chat(line["conversations"]), 200, answers=True)
        with torch.no_grad():
            per_token = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        picked = per_token.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        total -= float((picked * torch.tensor(mask[1:])).sum())
        count += sum(mask[1:])
    weights = ("--from_weight", str(folder / "out" / "base_64.pth"))
    found = told(
        capsys, *weights, "--data_path", str(folder / "dataset" / "sft_mini_512.jsonl"), "--max_seq_len", "200"
    )
    assert found["targets"] == count and found["loss"] == pytest.approx(total / count, abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5) and found["kind"] == "chat"


def test_preference_accuracy_counts_the_pairs_whose_chosen_side_is_likelier(folder, capsys):  # noqa: F811
    words, model = Words(folder), llama(folder, "base_64.pth").eval()
    wins = []
    for line in lines_of(folder, "dpo.jsonl"):
        sums = []
        for side in ("chosen", "rejected"):
            ids, mask = words.row(words.chat(line[side]), 200, answers=True)
            with torch.no_grad():
                log_probs = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
            picked = log_probs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            sums.append(float((picked * torch.tensor(mask[1:])).sum()))
        wins.append(sums[0] > sums[1])
    weights = ("--from_weight", str(folder / "out" / "base_64.pth"))
    found = told(capsys, *weights, "--data_path", str(folder / "dataset" / "dpo.jsonl"))
    assert found["pairs"] == len(wins) and found["accuracy"] == pytest.approx(sum(wins) / len(wins))


def test_a_sheet_has_every_prompt_with_an_answer_and_repeats_itself(folder, tmp_path):  # noqa: F811
    (tmp_path / "prompts.txt").write_text("今天天气\n\nhello\n")
    pages = []
    for name in ("one.md", "two.md"):
        flags = ("--from_weight", str(folder / "out" / "base_64.pth"), "--prompts", str(tmp_path / "prompts.txt"))
        evaluate.evaluate([*flags, "--sheet", str(tmp_path / name), "--max_new_tokens", "5", "--temperature", "1"])
        pages.append((tmp_path / name).read_text())
    assert pages[0] == pages[1] and "\n## 今天天气\n" in pages[0] and "\n## hello\n" in pages[0]


@pytest.mark.parametrize(
    "flags", [(), ("--from_weight", "x.pth"), ("--from_weight", "x.pth", "--data_path", "no.jsonl")]
)
def test_what_is_missing_is_said(flags):
    with pytest.raises(RunError):
        evaluate.evaluate(list(flags))


def test_a_file_of_another_kind_is_refused(folder, tmp_path):  # noqa: F811
    (tmp_path / "odd.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(RunError, match="cannot be measured"):
        evaluate.kind_of(tmp_path / "odd.jsonl")


@pytest.mark.parametrize("name", ["sft_mini_512.jsonl", "dpo.jsonl"])
def test_a_length_at_which_nothing_is_left_to_measure_is_an_error_and_no_perfect_number(folder, name):  # noqa: F811
    weights = ("--from_weight", str(folder / "out" / "base_64.pth"))
    with pytest.raises(RunError, match="nothing in"):
        evaluate.evaluate([*weights, "--data_path", str(folder / "dataset" / name), "--max_seq_len", "4"])


@pytest.mark.parametrize("name", ["sft_mini_512.jsonl", "dpo.jsonl"])
def test_weights_that_give_no_number_are_refused_and_never_measured(folder, tmp_path, capsys, name):  # noqa: F811
    weights = torch.load(folder / "out" / "base_64.pth", weights_only=True)
    weights["model.norm.weight"][3] = math.nan
    torch.save(weights, tmp_path / "bad_64.pth")
    flags = ["--from_weight", str(tmp_path / "bad_64.pth"), "--tokenizer", str(folder / "out" / "tokenizer")]
    with pytest.raises(RunError, match="cannot be measured") as refused:
        evaluate.evaluate([*flags, "--data_path", str(folder / "dataset" / name)])
    assert refused.value.reason is Reason.NAN_LOSS and not capsys.readouterr().out


def test_data_on_a_read_only_disk_are_measured(folder, tmp_path, capsys):  # noqa: F811
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=False, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        data = folder / "dataset" / "sft_mini_512.jsonl"
        shutil.copy(data, disk / "held_out.jsonl")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        weights = ("--from_weight", str(folder / "out" / "base_64.pth"))
        there, here = (told(capsys, *weights, "--data_path", str(path)) for path in (disk / "held_out.jsonl", data))
        assert there["loss"] == here["loss"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_sheet_without_prompts_is_refused(folder, tmp_path):  # noqa: F811
    (tmp_path / "prompts.txt").write_text("\n \n")
    flags = ["--from_weight", str(folder / "out" / "base_64.pth"), "--prompts", str(tmp_path / "prompts.txt")]
    with pytest.raises(RunError, match="holds no prompt"):
        evaluate.evaluate(flags)
