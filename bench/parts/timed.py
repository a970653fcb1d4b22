"""`python -m minimind …` that also says where the time of its steps went, in ``timed.json`` of the run directory.

A step lasts from the end of one optimiser's step to the end of the next, so whatever the loop does in between is in it.
"""

import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from minimind import stages
from minimind.__main__ import main

WARM_UP = 3
PARTS = ("forward", "backward", "clipping", "optimizer")

clock = time.thread_time if os.environ.get("TIMED_CLOCK") == "cpu" else time.perf_counter
spent = dict.fromkeys(PARTS, 0.0)
steps: list[dict[str, float]] = []
ended: list[float] = []
depth = 0


def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its time added to a part."""

    @functools.wraps(function)
    def wrapper(*args: Any, **more: Any) -> Any:
        global depth
        depth += 1
        began = clock()
        try:
            return function(*args, **more)
        finally:
            depth -= 1
            if not depth:  # a stage's loss may call the one that it inherits from
                spent[part] += clock() - began

    return wrapper


def finish(function: Callable[..., Any]) -> Callable[..., Any]:
    """The optimiser's step, which ends a period."""

    @functools.wraps(function)
    def wrapper(*args: Any, **more: Any) -> Any:
        result = function(*args, **more)
        now = clock()
        if ended:
            steps.append({**spent, "period": now - ended[-1]})
        ended.append(now)
        spent.update(dict.fromkeys(PARTS, 0.0))
        return result

    return wrapper


def patch() -> None:
    """Put clocks around what a step cannot do without."""
    for stage in stages.STAGES.values():
        stage.loss = timed("forward", stage.loss)
    torch.Tensor.backward = timed("backward", torch.Tensor.backward)
    torch.nn.utils.clip_grad_norm_ = timed("clipping", torch.nn.utils.clip_grad_norm_)
    adamw = torch.optim.AdamW
    adamw.zero_grad = timed("optimizer", adamw.zero_grad)
    adamw.step = finish(timed("optimizer", adamw.step))


if __name__ == "__main__":
    patch()
    code = main(sys.argv[1:])
    run_dir = pathlib.Path(sys.argv[sys.argv.index("--run_dir") + 1])
    (run_dir / "timed.json").write_text(json.dumps(steps[WARM_UP:]))
    sys.exit(code)
