"""Lanes: what several ways give comes as it is ready, an error comes after it, and nobody works on in vain."""

import contextlib
import threading
import time

import pytest

from launch.sync.lanes import WAITING, Abandoned, Lanes, Once


def test_everything_that_every_lane_gives_comes_once():
    lanes = [range(n, n + 30) for n in (0, 30, 60)]
    assert sorted(Lanes[int]().run(lanes)) == list(range(90))
    assert list(Lanes[int]().run([])) == []


def test_what_was_given_before_an_error_is_had_and_the_other_lane_stops():
    lanes = Lanes[int]()
    counts, ended = lanes.watched(lambda _: None), threading.Event()

    def breaking():
        yield 1
        raise ConnectionError("cut")

    def busy():
        try:
            while True:
                time.sleep(0.001)
                counts(1)
        except Abandoned:
            ended.set()
            raise
        yield 2

    had = []
    with pytest.raises(ConnectionError):
        for given in lanes.run([breaking(), busy()]):
            had.append(given)
    assert had == [1] and ended.is_set()


def test_closing_ends_a_lane_before_it_returns_even_one_whose_results_nobody_takes():
    lanes, made = Lanes[int](), []

    def endless():
        while True:
            made.append(len(made))
            yield made[-1]

    with contextlib.closing(lanes.run([endless()])) as given:
        assert next(given) == 0
    count = len(made)
    assert count <= WAITING + 3
    time.sleep(0.3)
    assert len(made) == count


def test_bytes_are_counted_by_one_lane_at_a_time():
    lanes, inside, worst = Lanes[int](), [], []

    def on_bytes(_):
        inside.append(1)
        worst.append(len(inside))
        time.sleep(0.0005)
        inside.pop()

    count = lanes.watched(on_bytes)

    def lane():
        for _ in range(20):
            count(1)
        yield 1

    assert list(lanes.run([lane(), lane()])) == [1, 1]
    assert len(worst) == 40 and max(worst) == 1


def test_what_several_need_is_done_by_one_and_tried_again_after_a_failure():
    tries = []

    def work():
        tries.append(1)
        time.sleep(0.05)
        if len(tries) == 1:
            raise OSError("not yet")

    once = Once(work)
    with pytest.raises(OSError, match="not yet"):
        once.made()
    threads = [threading.Thread(target=once.made) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tries) == 2
