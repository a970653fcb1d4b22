"""What a step learns does not depend on who computes it: accumulation, batch, ranks, shards, packing of ranks."""

import pytest
import torch

from minimind.rundir import RunDir
from tests.support import corpus
from tests.support.corpus import TINY

KINDS = {
    "dense": ("pretrain", ()),
    "sft": ("full_sft", ()),
    "lora": ("lora", ()),
    "dpo": ("dpo", ()),
    "moe2": ("pretrain", ("--use_moe", "1")),
    "moe3": ("pretrain", ("--use_moe", "1", "--arch", "minimind3", "--num_hidden_layers", "1")),
    "dropout": ("pretrain", ("--dropout", "0.2", "--use_moe", "1")),
}
SOAKED = [pytest.param(kind, True, marks=pytest.mark.soak) for kind in KINDS]
WAYS = {
    "8x1": (0, ("--batch_size", "1", "--accumulation_steps", "8")),
    "1x8": (0, ("--batch_size", "8", "--accumulation_steps", "1")),
    "2 ranks x 4": (2, ("--batch_size", "1", "--accumulation_steps", "4")),
    "4 ranks x 2": (4, ("--batch_size", "1", "--accumulation_steps", "2")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, forker):
    made = corpus.make(tmp_path_factory.mktemp("gradients"), samples=21)  # 8 + 8 + 5: the last group is smaller
    return made


def gradients(run: RunDir) -> list[dict[int, torch.Tensor]]:
    """Each step's gradient, read back from AdamW's first moment (m = 0.9 m + 0.1 g); the rate was 0."""
    found, before = [], {}
    for step in run.checkpoint_steps():
        state = torch.load(run.checkpoints / f"step-{step:08d}" / "optimizer.pt", weights_only=True)["state"]
        moments = {number: one["exp_avg"].double() for number, one in state.items()}
        found.append({n: (m - 0.9 * before.get(n, torch.zeros_like(m))) / 0.1 for n, m in moments.items()})
        before = moments
    return found


def all_gradients(forker, folder, kind, way, *more):
    stage, flags = KINDS[kind]
    nproc, sizes = WAYS[way]
    run = f"{kind}-{way}{''.join(more)}".replace(" ", "")
    keep = (
        "--learning_rate",
        "0",
        "--grad_clip",
        "0",
        "--epochs",
        "1",
        "--save_interval",
        "1",
        "--keep_checkpoints",
        "9",
    )
    lines = forker.train(
        folder, stage, *TINY, "--from_weight", "none", *keep, *sizes, *flags, *more, run=run, nproc=nproc
    )
    assert len(lines) == 3
    return gradients(RunDir(folder / "runs" / run)), lines


def assert_equal(ours, theirs, *, rel=1e-6):
    (grads, lines), (others, other_lines) = ours, theirs
    for one, other, a, b in zip(grads, others, lines, other_lines, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=rel) and a["targets"] == b["targets"]
        scale = max(g.abs().max() for g in other.values())
        assert scale > 0
        worst = max((one[n] - other[n]).abs().max() for n in other) / scale
        assert worst <= rel, f"gradients differ by {worst:.1e} of the largest"


@pytest.mark.parametrize(
    ("kind", "soak"), [*((kind, False) for kind in KINDS if kind != "sft"), *SOAKED], ids=lambda value: str(value)
)
def test_the_gradient_is_the_same_whoever_computes_it(forker, folder, kind, soak):
    alone = all_gradients(forker, folder, kind, "8x1")
    assert len({line["targets"] for line in alone[1]}) > 1, "the target counts are unequal"
    ways = ("2 ranks x 4", "4 ranks x 2") if kind in ("dense", "dropout") or soak else ("2 ranks x 4",)
    for way in ways:
        assert_equal(all_gradients(forker, folder, kind, way), alone)
    # minimind3 balances the experts over all tokens of a micro-batch at once: there the micro-batch belongs to the loss
    if kind != "moe3":
        assert_equal(all_gradients(forker, folder, kind, "1x8"), alone)


@pytest.mark.parametrize("kind", ["dense", "lora", "dpo", pytest.param("moe2", marks=pytest.mark.soak)])
def test_shards_give_the_same_gradient_as_whole_copies(forker, folder, kind):
    whole = all_gradients(forker, folder, kind, "2 ranks x 4")
    assert_equal(all_gradients(forker, folder, kind, "2 ranks x 4", "--parallel", "fsdp"), whole)


def test_ranks_with_different_numbers_of_passes_share_their_shards(forker, folder):
    # a pass holds one short text or two, so the ranks make different numbers of them
    split = ("--max_tokens_per_batch", "60", "--batch_size", "4", "--accumulation_steps", "1")
    alone = all_gradients(forker, folder, "dense", "1x8")
    assert_equal(all_gradients(forker, folder, "dense", "2 ranks x 4", *split, "--parallel", "fsdp"), alone)
