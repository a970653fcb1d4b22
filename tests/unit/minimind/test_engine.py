"""The thread that generates for everybody: one job's trouble is its own; what is not wanted, or too much, ends."""

import queue

import pytest
import torch

from minimind.config import ModelConfig
from minimind.engine import Closed, Engine, Full, Job
from minimind.model import MiniMind
from minimind.rundir import RunError
from minimind.sampling import Sampling, generate

LONG = 20_000


def made() -> MiniMind:
    torch.manual_seed(3)
    return MiniMind(ModelConfig.for_arch("minimind2", hidden_size=64, num_hidden_layers=2, vocab_size=300)).eval()


@pytest.fixture
def engine():
    found = Engine(made(), rows=2, queue=1)
    yield found
    found.close()


def job(prompt, tokens: int) -> tuple[Job, queue.Queue]:
    heard: queue.Queue = queue.Queue()
    sampling = Sampling(max_new_tokens=tokens, stop_ids=frozenset())
    return Job(prompt=prompt, sampling=sampling, hear=heard.put), heard


def ending(heard: queue.Queue) -> tuple[list[int], object]:
    tokens = []
    while isinstance(event := heard.get(timeout=60), int):
        tokens.append(event)
    return tokens, event


def test_a_job_that_cannot_be_done_hears_why_and_its_neighbour_its_text(engine):
    good, heard = job([5, 6, 7], 30)
    bad, trouble = job([], 30)
    engine.submit(good)
    engine.submit(bad)
    assert isinstance(ending(trouble)[1], RunError)
    assert ending(heard) == (list(generate(engine.model, [5, 6, 7], good.sampling)), "length")


def test_when_a_step_breaks_those_in_it_hear_so_and_the_next_is_answered(engine):
    one, heard = job([5, 6], LONG)
    engine.submit(one)
    heard.get(timeout=60)
    kept = engine.model.model.norm.weight
    del engine.model.model.norm.weight  # what a failing device would do: the next pass raises
    assert isinstance(ending(heard)[1], AttributeError)
    engine.model.model.norm.weight = kept
    two, answer = job([5, 6], 4)
    engine.submit(two)
    assert ending(answer)[1] == "length"


def test_more_than_rows_and_queue_is_refused_until_one_is_not_wanted(engine):
    jobs = [job([5, n], LONG) for n in (6, 7, 8)]
    for one, _ in jobs:
        engine.submit(one)
    for _, heard in jobs[:2]:
        heard.get(timeout=60)
    late, answer = job([9], 3)
    with pytest.raises(Full):
        engine.submit(late)
    jobs[2][0].wanted = False  # it waited: its place is free at once
    engine.submit(late)
    jobs[0][0].wanted = False
    assert ending(answer)[1] == "length" and jobs[2][1].empty()


def test_closing_tells_those_that_are_answered_and_those_that_wait(engine):
    jobs = [job([5, n], LONG) for n in (6, 7, 8)]
    for one, _ in jobs:
        engine.submit(one)
    for _, heard in jobs[:2]:
        heard.get(timeout=60)
    engine.close()
    assert all(isinstance(ending(heard)[1], Closed) for _, heard in jobs)
    with pytest.raises(Closed):
        engine.submit(jobs[0][0])
