"""Sampling: rows side by side are what they are alone; seeds, stops, limits; the step that keeps its shapes."""

import dataclasses
import math
import random

import pytest
import torch

from minimind.cache import Cache, Piece, StaticStep, Step
from minimind.config import ModelConfig
from minimind.model import MiniMind
from minimind.rundir import RunError
from minimind.sampling import Batch, Sampling, choose, generate, generate_all

VOCAB = 300
NEVER = frozenset()


def made(arch: str = "minimind2", *, use_moe: bool = False, **other) -> MiniMind:
    torch.manual_seed(3)
    config = ModelConfig.for_arch(arch, hidden_size=64, num_hidden_layers=2, vocab_size=VOCAB, use_moe=use_moe)
    model = MiniMind(dataclasses.replace(config, **other)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # sharper than at birth, so that no two tokens are nearly as likely
            parameter.mul_(3)
    return model


def prompts(*lengths: int) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, VOCAB) for _ in range(n)] for n in lengths]


def alone(model, prompt, sampling) -> list[int]:
    return list(generate(model, prompt, sampling))


@pytest.mark.parametrize(("arch", "use_moe"), [("minimind2", False), ("minimind3", False), ("minimind2", True)])
@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_text_in_a_batch_of_other_lengths_is_what_it_is_alone(arch, use_moe, temperature):
    model, asked = made(arch, use_moe=use_moe), prompts(1, 30, 7, 7, 90)
    sampling = Sampling(max_new_tokens=12, stop_ids=NEVER, temperature=temperature, top_p=0.9, seed=5)
    together = generate_all(model, asked, sampling)
    assert together == [alone(model, prompt, sampling) for prompt in asked]
    assert {len(text) for text in together} == {12}


def test_each_row_ends_at_its_own_stop_token_and_the_others_go_on():
    model, asked = made(), prompts(4, 9, 13)
    free = generate_all(model, asked, Sampling(max_new_tokens=30, stop_ids=NEVER))
    stop = frozenset({free[0][5], free[1][11]})
    expected = [text[: next((i for i, token in enumerate(text) if token in stop), 30)] for text in free]
    assert generate_all(model, asked, Sampling(max_new_tokens=30, stop_ids=stop)) == expected
    assert len({len(text) for text in expected}) > 1


def test_a_row_that_joins_or_leaves_in_between_changes_no_other_row():
    model, asked = made(), prompts(5, 40, 3, 12)
    sampling = Sampling(max_new_tokens=30, stop_ids=NEVER, temperature=1.0, seed=9)
    batch, texts = Batch(model), {}

    rows = [batch.join(prompt, sampling) for prompt in asked[:3]]
    texts.update({row: [row.token] for row in rows})
    for step in range(60):
        if step == 4:
            batch.leave(rows[0])
        if step == 9:
            rows.append(batch.join(asked[3], sampling))
            texts[rows[3]] = [rows[3].token]
        live = set(batch.rows)
        batch.step()
        for row in live:
            texts[row].append(row.token)
    whole = [alone(model, prompt, sampling) for prompt in asked]
    assert texts[rows[0]] == whole[0][:5] and [texts[row] for row in rows[1:]] == whole[1:]


def test_a_text_that_outgrows_the_cache_twice_is_that_of_the_whole_pass():
    model = made(max_position_embeddings=1100)
    found = alone(model, prompts(10)[0], Sampling(max_new_tokens=5000, stop_ids=NEVER))
    assert len(found) == 1090  # the model's positions end it
    with torch.no_grad():
        logits = model(torch.tensor([prompts(10)[0] + found]))[0]
    assert logits[9:-1].argmax(-1).tolist() == found


def test_a_prompt_read_in_pieces_is_continued_as_if_read_at_once():
    model, prompt = made(), prompts(1300)[0]
    with torch.no_grad():
        expected = int(model(torch.tensor([prompt]))[0, -1].argmax())
    assert alone(model, prompt, Sampling(max_new_tokens=1, stop_ids=NEVER)) == [expected]
    asked = iter([True, True, False])
    row = Batch(model).join(prompt, Sampling(max_new_tokens=9, stop_ids=NEVER), wanted=lambda: next(asked))
    assert row.token is None and row.finish is None and next(asked, "asked three times") == "asked three times"


@pytest.mark.parametrize("length", [0, 64, 70])
def test_a_prompt_that_cannot_be_continued_is_refused(length):
    with pytest.raises(RunError, match="cannot be continued"):
        Batch(made(max_position_embeddings=64)).join([5] * length, Sampling(max_new_tokens=9, stop_ids=NEVER))


def test_weights_that_are_not_finite_are_named():
    model = made()
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(RunError, match="no finite logits"):
        Batch(model).join([5], Sampling(max_new_tokens=9, stop_ids=NEVER))


def test_sampling_follows_the_probabilities_inside_the_nucleus_and_never_leaves_it():
    probabilities = torch.tensor([0.05, 0.5, 0.15, 0.3])
    sampling, generator = Sampling(max_new_tokens=1, stop_ids=NEVER, temperature=1, top_p=0.7), torch.Generator()
    generator.manual_seed(0)
    drawn = torch.tensor([choose(probabilities.log(), sampling, generator) for _ in range(4000)]).bincount(minlength=4)
    assert drawn[0] == drawn[2] == 0 and drawn[1] / 4000 == pytest.approx(0.5 / 0.8, abs=0.03)


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"), [(1.0, 0.0, {1}), (1e-6, 1.0, {1}), (1.0, 1.0, {0, 1, 2}), (0, 0.5, {1})]
)
def test_the_ends_of_temperature_and_top_p_are_the_likeliest_token_and_everything(temperature, top_p, expected):
    sampling = Sampling(max_new_tokens=1, stop_ids=NEVER, temperature=temperature, top_p=top_p)
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.2, 1.0, 0.1])
    assert {choose(logits, sampling, generator) for _ in range(300)} == expected


def filled(model, lengths):
    cache = Cache(model)
    cache.reserve(len(lengths), 60)
    for row, prompt in enumerate(prompts(*lengths)):
        model(torch.tensor([prompt]), cache=Piece(cache, row, 0, len(prompt)))
    return cache


@torch.inference_mode()
def test_the_step_with_fixed_shapes_gives_the_logits_of_the_plain_one_and_traces_whole():
    model, lengths = made("minimind3"), [5, 33, 18]
    ids = torch.tensor([[7], [8], [9]])
    expected = model(ids, cache=Step(filled(model, lengths), lengths))
    cache = filled(model, lengths)

    def step(ids, positions):
        return model(ids, cache=StaticStep(cache, positions))

    assert (step(ids, torch.tensor(lengths)) - expected).abs().max() < 1e-5
    compiled = torch.compile(step, backend="eager", fullgraph=True, dynamic=False)
    assert (compiled(ids, torch.tensor(lengths)) - expected).abs().max() < 1e-5
