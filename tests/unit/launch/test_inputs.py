"""Where a stage's inputs are looked for, which side wins, and what its flags become."""

import pathlib

import pytest

from launch.errors import Exit, LaunchError
from launch.facts import There, parse
from launch.inputs import Places, Search, wants
from minimind.catalog import CATALOG
from minimind.durable import sha256_file

FACTS = parse("root=/r\nhome=/h\nnow=1\nsystem=Linux\nuid=1\ngid=1\n")
THERE = There(bytes=5, sha256="0" * 64)
TOKENIZER = {f"@/out/tokenizer/{name}": THERE for name in ("tokenizer.json", "tokenizer_config.json")}


@pytest.fixture
def home(tmp_path):
    for name in ("dataset/dpo.jsonl", "out/full_sft_64.pth", "out/full_sft_64.json", "mine.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def places(home: pathlib.Path) -> Places:
    return Places(host="gpu8", home=home, cwd=home)


def settle(home, stage, *flags, there=(), in_place=False):
    return Search(CATALOG[stage], flags, places(home)).settle(FACTS, {**TOKENIZER, **dict(there)}, in_place=in_place)


def looked_at(stage: str, *flags: str) -> dict[str, tuple]:
    return {want.flag: want.host for want in wants(CATALOG[stage], flags, places(pathlib.Path("/home/me")))}


@pytest.mark.parametrize(
    ("stage", "flags", "weights"),
    [
        ("pretrain", [], None),
        ("dpo", [], "@/out/full_sft_512.pth"),
        ("dpo", ["--hidden-size=64"], "@/out/full_sft_64.pth"),
        ("dpo", ["--hidden_size", "640", "--use_moe", "1"], "@/out/full_sft_640_moe.pth"),
        ("dpo", ["--preset", "moe"], "@/out/full_sft_640_moe.pth"),
        ("dpo", ["--preset=moe", "--use_moe=0", "--hidden_size=64"], "@/out/full_sft_64.pth"),
        ("dpo", ["--arch", "minimind3"], "@/out/full_sft_768.pth"),
        ("dpo", ["--from_weight", "rlhf"], "@/out/rlhf_512.pth"),
        ("dpo", ["--from-weight=none"], None),
        ("full_sft", ["--from_weight", "~/w.pth"], "~/w.pth"),
        ("full_sft", ["--from_weight", "/abs/w.pth"], "/abs/w.pth"),
        ("full_sft", ["--from_weight", "w.pth"], "@/w.pth"),
    ],
)
def test_starting_weights_follow_the_flags_that_name_them(stage, flags, weights):
    assert looked_at(stage, *flags).get("from_weight", (None,))[0] == weights


def test_every_stage_but_the_tokenizers_own_reads_a_tokenizer():
    assert [stage for stage in CATALOG if "tokenizer" not in looked_at(stage)] == ["tokenizer"]


def test_an_adapter_is_found_by_its_name_or_its_path():
    assert looked_at("lora", "--from_lora", "lora_medical")["from_lora"] == ("@/out/lora/lora_medical_512.pth",)
    assert looked_at("lora", "--from_lora", "lora/x.pth")["from_lora"] == ("@/lora/x.pth",)
    assert looked_at("lora", "--lora_name", "mine")["data_path"] == ("@/dataset/mine.jsonl",)


def test_a_teacher_is_looked_for_where_the_trainer_reads_it():
    from minimind.config import DistillationConfig
    from minimind.stages.distillation import Distillation

    for flags in ([], ["--teacher_hidden_size", "512"], ["--teacher_weight", "rlhf", "--hidden_size", "64"]):
        given = dict(zip((f.removeprefix("--") for f in flags[::2]), flags[1::2], strict=True))
        given = {name: int(value) if value.isdecimal() else value for name, value in given.items()}
        trainer = Distillation(DistillationConfig(**given), CATALOG["distillation"])
        assert looked_at("distillation", *flags)["teacher_weight"] == (f"@/{trainer.inputs[0]}",)
    assert "@/teacher.pth" in looked_at("distillation", "--teacher_weight", "teacher.pth")["teacher_weight"]
    assert "teacher_weight" not in looked_at("full_sft")


def test_what_the_host_has_under_a_default_name_is_used_and_nothing_is_sent(home):
    found = settle(
        home,
        "dpo",
        *("--hidden_size", "64"),
        there={"@/dataset/dpo.jsonl": THERE, "@/out/full_sft_64.pth": THERE},
    )
    assert found.pushes == ()
    assert found.flags == (
        "--tokenizer",
        "/r/out/tokenizer",
        "--data_path",
        "/r/dataset/dpo.jsonl",
        "--hidden_size",
        "64",
    )


def test_what_only_the_laptop_has_is_sent_to_its_name_with_the_sidecar(home):
    found = settle(home, "dpo", "--hidden_size", "64")
    assert [(str(file.source), file.path) for file in found.pushes] == [
        (f"{home}/dataset/dpo.jsonl", "/r/dataset/dpo.jsonl"),
        (f"{home}/out/full_sft_64.pth", "/r/out/full_sft_64.pth"),
        (f"{home}/out/full_sft_64.json", "/r/out/full_sft_64.json"),
    ]
    assert {record["path"] for record in found.records()} >= {"/r/dataset/dpo.jsonl", "/r/out/full_sft_64.pth"}


def test_a_named_file_goes_to_a_folder_of_its_own_content_unless_it_is_there(home):
    digest = sha256_file(home / "mine.jsonl")
    target = f"inputs/{digest[:12]}/mine.jsonl"
    sent = settle(home, "pretrain", "--data-path", "mine.jsonl", "--epochs", "2")
    assert sent.flags[2:] == ("--data_path", f"/r/{target}", "--epochs", "2")
    assert [file.path for file in sent.pushes] == [f"/r/{target}"]
    size = (home / "mine.jsonl").stat().st_size
    again = settle(
        home, "pretrain", "--data_path", "mine.jsonl", there={f"@/{target}": There(bytes=size, sha256=digest)}
    )
    assert again.pushes == () and again.flags[3] == f"/r/{target}"


def test_a_named_file_of_the_host_is_used_when_the_laptop_has_none(home):
    found = settle(home, "pretrain", "--data_path", "~/d.jsonl", there={"~/d.jsonl": THERE})
    assert found.flags[3] == "/h/d.jsonl" and found.pushes == ()


def test_this_machine_reads_data_where_it_lies_but_weights_get_their_name(home):
    found = settle(home, "dpo", "--hidden_size", "64", in_place=True)
    assert f"{home}/dataset/dpo.jsonl" in found.flags
    assert [file.path for file in found.pushes] == ["/r/out/full_sft_64.pth", "/r/out/full_sft_64.json"]


def test_half_a_tokenizer_is_none(home):
    there = {"@/dataset/pretrain_hq.jsonl": THERE, "@/out/tokenizer/tokenizer.json": THERE}
    with pytest.raises(LaunchError) as missing:
        Search(CATALOG["pretrain"], [], places(home)).settle(FACTS, there, in_place=False)
    assert missing.value.code is Exit.INVALID and "launch run tokenizer" in missing.value.remedy
