"""Which checkpoints stay."""

import json

from minimind.retention import best_step, prune
from minimind.rundir import RunDir


def made(tmp_path, losses):
    run = RunDir(tmp_path)
    for step, loss in losses.items():
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"mean_loss": loss}))
    return run


def test_the_newest_and_the_best_stay(tmp_path):
    run = made(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: 2.0})
    prune(run, keep=2)
    assert run.checkpoint_steps() == [2, 4, 5] and best_step(run) == 2


def test_a_best_among_the_newest_costs_no_further_one_and_nan_is_never_best(tmp_path):
    run = made(tmp_path, {1: 3.0, 2: float("nan"), 3: 1.0, 4: None})
    prune(run, keep=2)
    assert run.checkpoint_steps() == [3, 4]


def test_damaged_words_about_a_loss_are_none_and_leftovers_go(tmp_path):
    run = made(tmp_path, {1: 1.0, 2: 2.0, 3: 2.0})
    (run.checkpoints / "step-00000001" / "state.json").write_text("[")
    (run.checkpoints / ".step-00000004.77.tmp").mkdir()
    prune(run, keep=1)
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-00000003"]
