import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo import data

ROOT = Path(__file__).parents[3]
TRAINING = ("pretrain_hq.jsonl", "sft_mini_512.jsonl", "dpo.jsonl", "lora_identity.jsonl", "lora_medical.jsonl")


@pytest.fixture(scope="module")
def sets():
    return data.build(data.read_texts())


def questions(lines):
    return {line["conversations"][0]["content"] for line in lines if len(line["conversations"]) == 2}


def test_the_same_texts_give_the_same_bytes_in_any_process(tmp_path):
    for name in ("first", "second"):
        command = [sys.executable, str(ROOT / "demo" / "data.py"), "--to", str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env={"PYTHONHASHSEED": "random"})
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("first", "second"))
    assert [p.name for p in first] == [p.name for p in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_another_seed_gives_another_order(sets):
    other = data.build(data.read_texts(), seed=1)
    assert other["pretrain_hq.jsonl"] != sets["pretrain_hq.jsonl"]


def test_every_line_has_the_format_of_its_stage(sets):
    for name, lines in sets.items():
        for line in lines:
            if "pretrain" in name:
                assert set(line) == {"text"} and line["text"].strip()
                continue
            talks = [line["chosen"], line["rejected"]] if "dpo" in name else [line["conversations"]]
            for talk in talks:
                assert [m["role"] for m in talk] == ["user", "assistant"] * (len(talk) // 2)
                assert all(set(m) == {"role", "content"} and m["content"].strip() for m in talk)


def test_a_pair_asks_once_and_answers_differently(sets):
    for line in sets["dpo.jsonl"] + sets["held_out_dpo.jsonl"]:
        assert line["chosen"][0] == line["rejected"][0]
        assert line["chosen"][1] != line["rejected"][1]


def test_there_is_enough_to_learn_from_in_both_languages(sets):
    written = {name: "".join(json.dumps(line, ensure_ascii=False) for line in sets[name]) for name in TRAINING}
    assert sum(len(text.encode()) for text in written.values()) > 600_000
    chinese = sum(data._is_chinese(line["text"]) for line in sets["pretrain_hq.jsonl"])
    assert 0.3 < chinese / len(sets["pretrain_hq.jsonl"]) < 0.9


def test_no_training_set_repeats_a_line(sets):
    for name in ("pretrain_hq.jsonl", "dpo.jsonl", "lora_medical.jsonl"):
        lines = [json.dumps(line, ensure_ascii=False) for line in sets[name]]
        assert len(set(lines)) > 0.99 * len(lines), name


@pytest.mark.parametrize(
    ("training", "held_out"),
    [("sft_mini_512", "sft"), ("lora_identity", "identity"), ("lora_medical", "medical"), ("r1_mix_1024", "reason")],
)
def test_no_held_out_question_is_trained_on(sets, training, held_out):
    out = questions(sets[f"held_out_{held_out}.jsonl"])
    assert len(out) >= 5
    assert not out & questions(sets[f"{training}.jsonl"])


def test_no_held_out_statement_or_pair_is_trained_on(sets):
    for name in ("pretrain", "dpo"):
        full = {"pretrain": "pretrain_hq", "dpo": "dpo"}[name]
        trained = [json.dumps(line) for line in sets[f"{full}.jsonl"]]
        assert not {json.dumps(line) for line in sets[f"held_out_{name}.jsonl"]} & set(trained)


def test_a_held_out_question_is_answered_in_training_in_another_phrasing(sets):
    trained = {line["conversations"][1]["content"] for line in sets["sft_mini_512.jsonl"]}
    assert {line["conversations"][1]["content"] for line in sets["held_out_sft.jsonl"]} <= trained


def test_only_the_identity_set_knows_the_name(sets):
    for name in ("pretrain_hq.jsonl", "sft_mini_512.jsonl", "dpo.jsonl", "lora_medical.jsonl"):
        assert not any(re.search("小启|Xiaoqi", json.dumps(line, ensure_ascii=False)) for line in sets[name])
    asked = {
        line["conversations"][0]["content"]: line["conversations"][1]["content"]
        for line in sets["lora_identity.jsonl"]
        if len(line["conversations"]) == 2
    }
    assert "小启" in asked["你是谁？"] and "Xiaoqi" in asked["Who are you?"]


def test_every_health_answer_sends_to_a_doctor(sets):
    items = [item for item in data.read_texts() if item.topic == "health"]
    for item in items:
        assert re.search("医|120|doctor|hospital|ambulance", item.turns[0].answer), item.turns[0].answer


def test_no_template_is_left_unfilled(sets):
    for name, lines in sets.items():
        assert not [line for line in lines if re.search(r"\{\w+\}| \| | / ", json.dumps(line.get("text", line)))], name


def test_a_text_that_breaks_the_format_is_named(tmp_path):
    (tmp_path / "bad.txt").write_text("ask: one\nanswer: two\n\nask: three\nno key here\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.txt, record 2"):
        data.read_texts(tmp_path)


def test_reasoned_answers_stand_within_their_tags_and_repeat_what_is_trained_elsewhere(sets):
    answered = {line["conversations"][1]["content"] for line in sets["sft_mini_512.jsonl"]}
    for line in sets["r1_mix_1024.jsonl"] + sets["held_out_reason.jsonl"]:
        found = re.fullmatch(
            r"<think>\n(.+)\n</think>\n<answer>\n(.+)\n</answer>", line["conversations"][1]["content"], re.S
        )
        assert found and line["conversations"][0]["content"] in found[1] and found[2] in answered


def test_pairs_teach_a_manner_that_no_other_set_knows(sets):
    for name in ("dpo.jsonl", "held_out_dpo.jsonl"):
        endings = [kind for kind, _ in data.MANNERS.values()]
        share = sum(line["chosen"][1]["content"].endswith(tuple(endings)) for line in sets[name]) / len(sets[name])
        assert 0.4 < share < 0.6
    for name in ("pretrain_hq.jsonl", "sft_mini_512.jsonl"):
        written = json.dumps(sets[name], ensure_ascii=False)
        assert not any(ending in written for pair in data.MANNERS.values() for ending in pair)
