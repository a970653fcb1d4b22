"""What leaves as weights, read by transformers and PEFT themselves; and what comes back, bit for bit."""

import contextlib
import json

import peft
import pytest
import safetensors.torch
import torch
import transformers

from minimind import __main__ as program
from minimind import checkpoint, lora, tokenizer
from minimind.sampling import Sampling, generate
from tests.support import corpus

KINDS = [("minimind2", False), ("minimind2", True), ("minimind3", False), ("minimind3", True)]
CLASSES = ["LlamaForCausalLM", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"]
VOCAB = 400


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """out/ with a tokenizer, weights of every kind, and adapters for each generation's dense one."""
    folder = corpus.make(tmp_path_factory.mktemp("export"), vocab_size=VOCAB)
    words = tokenizer.load(folder / "out" / "tokenizer")
    for arch, moe in KINDS:
        path = folder / "out" / f"{arch}_64{'_moe' * moe}.pth"
        corpus.random_weights(path, arch, vocab_size=words.vocab_size, use_moe=moe)
    for name, rank, targets, seed in (
        ("square", 8, "square", 3),
        ("wide", 4, "q_proj,v_proj,gate_proj,down_proj", 4),
        ("all", 2, "all", 5),
    ):
        for arch in ("minimind2", "minimind3"):
            make_adapter(
                folder / "out" / "lora" / f"{arch}_{name}.pth", f"{folder}/out/{arch}_64.pth", rank, targets, seed
            )
    return folder


def make_adapter(path, base, rank, targets, seed):
    torch.manual_seed(seed)
    model = checkpoint.load_model(base)
    lora.inject(model, rank=rank, targets=targets)
    for name, parameter in model.named_parameters():
        if ".lora." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    path.parent.mkdir(exist_ok=True)
    torch.save(lora.adapter_state(model), path)


def run(folder, *words) -> int:
    with contextlib.chdir(folder):
        return program.main(["export", *words])


def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def some_ids(model, *, rows=3, length=70, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.config.vocab_size, (rows, length), generator=generator)


@torch.no_grad()
def difference(ours, other, ids) -> float:
    return float((ours(ids) - other(ids).logits).abs().max())


@pytest.mark.parametrize(("kind", "name"), list(zip(KINDS, CLASSES, strict=True)))
def test_transformers_reads_every_kind_and_computes_the_same(home, kind, name, capsys):
    arch, moe = kind
    source = f"{arch}_64{'_moe' * moe}"
    assert run(home, "--from_weight", f"out/{source}.pth", "--to", f"hf/{source}") == 0
    assert f"{name}, float16" in capsys.readouterr().out
    ours, folder = checkpoint.load_model(home / "out" / f"{source}.pth"), home / "hf" / source
    read = theirs(folder)
    assert type(read).__name__ == name
    ids = some_ids(ours)
    assert difference(ours, read, ids) < 1e-5
    prompt = ids[:1, :9]
    expected = read.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
    wanted = expected[0, 9:].tolist()
    got = list(generate(ours, prompt[0].tolist(), Sampling(max_new_tokens=24, stop_ids=frozenset({2}))))
    assert got == (wanted[: wanted.index(2)] if 2 in wanted else wanted)
    assert (read.config.bos_token_id, read.config.eos_token_id, read.config.pad_token_id) == (1, 2, 0)
    told = read.generation_config
    assert (told.bos_token_id, told.eos_token_id, told.pad_token_id) == (1, 2, 0)
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in set(file.keys())
    again = checkpoint.load_model(folder)
    with torch.no_grad():
        assert torch.equal(again(ids), ours(ids))
    assert again.config == ours.config


CONVERSATIONS = [
    [corpus.turn("user", "hello 世界")],
    [
        corpus.turn("system", "be brief"),
        corpus.turn("user", "one"),
        corpus.turn("assistant", "two"),
        corpus.turn("user", "3"),
    ],
]


@pytest.mark.parametrize("arch", ["own", "minimind2", "minimind3"])
def test_the_exported_tokenizer_renders_and_encodes_as_ours(home, tmp_path, arch):
    folder = home / "out" / "tokenizer" if arch == "own" else corpus.original_tokenizers().get(arch)
    if folder is None:
        pytest.skip("MiniMind's own tokenizers are not on this machine")
    words = tokenizer.load(folder)
    generation = "minimind2" if arch == "own" else arch
    weights = corpus.random_weights(tmp_path / "x_64.pth", generation, vocab_size=words.vocab_size)
    assert run(tmp_path, "--from_weight", str(weights), "--tokenizer", str(folder), "--to", "hf") == 0
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (read.pad_token_id, read.bos_token_id, read.eos_token_id) == (words.pad_id, words.bos_id, words.eos_id)
    for messages in CONVERSATIONS:
        assert read.apply_chat_template(messages, tokenize=False) == words.render(messages)
        rendered = words.render(messages)
        assert read(rendered, add_special_tokens=False)["input_ids"] == words.encode(rendered)
        asked = read.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert asked.startswith(words.prompt(messages))
    assert tokenizer.load(tmp_path / "hf").sha256 == words.sha256


@pytest.mark.parametrize("arch", ["minimind2", "minimind3"])
@pytest.mark.parametrize("names", [["square"], ["wide", "all:-0.5"]])
def test_adapters_leave_in_pefts_format_or_merged_and_compute_the_same(home, tmp_path, arch, names):
    adapters = ",".join(
        f"out/lora/{arch}_{name.replace(':', '.pth:') if ':' in name else name + '.pth'}" for name in names
    )
    base = f"out/{arch}_64.pth"
    asked = ("--from_weight", base, "--from_lora", adapters)
    assert run(home, "--from_weight", base, "--dtype", "float32", "--to", str(tmp_path / "base")) == 0
    assert run(home, *asked, "--format", "peft", "--to", str(tmp_path / "peft")) == 0
    assert run(home, *asked, "--dtype", "float32", "--to", str(tmp_path / "hf")) == 0
    assert run(home, *asked, "--format", "merged", "--dtype", "float32", "--to", str(tmp_path / "merged.pth")) == 0
    ours = checkpoint.load_model(home / base)
    ids = some_ids(ours)
    with torch.no_grad():
        plain = ours(ids)
        for name in names:
            path, strength = lora.find(f"{home}/out/lora/{arch}_{name.split(':')[0]}.pth", home, hidden_size=64)
            lora.apply(ours, path, strength=-0.5 if ":" in name else strength)
        assert (ours(ids) - plain).abs().max() > 1e-2
        merged = checkpoint.load_model(tmp_path / "merged.pth")
        assert (ours(ids) - merged(ids)).abs().max() < 1e-5
    assert difference(ours, theirs(tmp_path / "hf"), ids) < 1e-5
    assert difference(ours, peft.PeftModel.from_pretrained(theirs(tmp_path / "base"), tmp_path / "peft"), ids) < 1e-5


@pytest.mark.parametrize("arch", ["minimind2", "minimind3"])
def test_stretched_positions_are_transformers_yarn_near_and_far(home, tmp_path, arch):
    assert (
        run(home, "--from_weight", f"out/{arch}_64.pth", "--yarn", "--dtype", "float32", "--to", str(tmp_path / "hf"))
        == 0
    )
    told = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert told["rope_scaling"]["rope_type"] == "yarn" and told["rope_scaling"]["factor"] == 16
    read, stretched = theirs(tmp_path / "hf"), checkpoint.load_model(home / "out" / f"{arch}_64.pth", yarn=True)
    plain = checkpoint.load_model(home / "out" / f"{arch}_64.pth")
    assert checkpoint.load_model(tmp_path / "hf").config == stretched.config != plain.config
    ids = some_ids(stretched, rows=1, length=2600)
    with torch.no_grad():
        found, wanted = stretched(ids)[0], read(ids).logits[0]
        assert (found - plain(ids)[0])[100:].abs().max() > 1e-2
    for part in (slice(0, 64), slice(2500, 2600)):
        assert (found[part] - wanted[part]).abs().max() < 1e-5


@pytest.mark.parametrize("attention_factor", [None, 0.9])
def test_a_yarn_folder_of_others_is_read_with_its_attention_factor(home, tmp_path, attention_factor):
    run(home, "--from_weight", "out/minimind3_64.pth", "--yarn", "--dtype", "float32", "--to", str(tmp_path / "hf"))
    path = tmp_path / "hf" / "config.json"
    told = json.loads(path.read_text())
    for key in ("rope_scaling", "rope_parameters"):
        told[key]["attention_factor"] = attention_factor
        told[key] |= {"factor": 8.0, "original_max_position_embeddings": 4096}
    path.write_text(json.dumps(told))
    ours, ids = checkpoint.load_model(tmp_path / "hf"), torch.randint(3, VOCAB, (1, 300))
    assert ours.config.yarn.attention_factor == pytest.approx(attention_factor or 1.2079, abs=1e-3)
    assert difference(ours, theirs(tmp_path / "hf"), ids) < 1e-5


@pytest.mark.parametrize("dtype", ["half", "float"])
@pytest.mark.parametrize(("arch", "moe"), KINDS)
def test_out_and_back_gives_the_same_bits(home, tmp_path, arch, moe, dtype):
    words = tokenizer.load(home / "out" / "tokenizer")
    source = corpus.random_weights(
        tmp_path / "out" / "full_sft_64.pth", arch, vocab_size=words.vocab_size, use_moe=moe, dtype=dtype
    )
    source.with_suffix(".json").write_text(json.dumps({"stage": "reason"}))
    assert run(home, "--from_weight", str(source), "--tokenizer", "out/tokenizer", "--to", str(tmp_path / "hf")) == 0
    back = ("--from_weight", str(tmp_path / "hf"), "--format", "minimind", "--save_dir", str(tmp_path / "in"))
    assert run(home, *back, "--to", "full_sft") == 0
    made = tmp_path / "in" / f"full_sft_64{'_moe' * moe}.pth"
    one, other = (torch.load(path, weights_only=True) for path in (source, made))
    assert one.keys() == other.keys()
    assert all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)
    told = json.loads(made.with_suffix(".json").read_text())
    assert told["stage"] == "reason"  # it decides how they are spoken to
    assert told["tokenizer_sha256"] == tokenizer.Tokenizer(tmp_path / "in" / "tokenizer").sha256 == words.sha256


@pytest.mark.parametrize(("arch", "moe"), KINDS)
def test_what_transformers_saves_itself_in_shards_is_read(home, tmp_path, arch, moe):
    source = home / "out" / f"{arch}_64{'_moe' * moe}.pth"
    assert run(home, "--from_weight", str(source), "--dtype", "float32", "--to", str(tmp_path / "hf")) == 0
    theirs(tmp_path / "hf").save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    assert (tmp_path / "saved" / "model.safetensors.index.json").is_file()
    ours, read = checkpoint.load_model(source), checkpoint.load_model(tmp_path / "saved")
    ids = some_ids(ours)
    with torch.no_grad():
        assert torch.equal(ours(ids), read(ids)) and read.config == ours.config
