"""Which way of attending a GPU gets: each is tried first, in a process whose crash, hang or wrong numbers cost nothing.

``python -m minimind.probe REQUEST`` is that process; request and answer are JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from minimind.attention import WAYS, Dense, Row, usual
from minimind.config import ModelConfig, TrainConfig
from minimind.dist import World
from minimind.model import Attention, MiniMind, rotary_tables
from minimind.precision import computed_in
from minimind.process import PR_SET_PDEATHSIG, leave, prctl

PREFERRED = ("varlen", "flex")
"""Best first; where none of them is right, the usual way stays."""
LIMIT_S = 180.0
"""How long one trial may take; the first use of ``flex`` on a machine compiles for a minute."""
LENGTHS = ((5, 130, 1, 64), (40, 7, 300, 90, 1, 2))
"""Documents of the two rows that are tried: shorter and longer than a kernel's block, no multiple of it together."""
TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 5e-2}
"""Largest difference from the reference in float32, as a share of the largest number of each tensor."""
SHOWN = 160
"""Characters of what went wrong."""
QUIET = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
"""A trial starts no processes of its own."""


def choose(config: TrainConfig, model: MiniMind, ranks: World, say: Callable[[str], None]) -> str | None:
    """Let the model attend in the best way that works on every rank's device, and say which and why not a better one.

    Never raises for a way's sake. Every rank takes part.

    Returns:
        the way's name; None where there is nothing to choose: on a CPU, without packing, with dropout.
    """
    if ranks.device.type != "cuda" or not config.pack or config.dropout:
        return None
    names = (*PREFERRED, usual(ranks.device).name)
    dtype, refused = computed_in(config, ranks.device), list[str]()
    found = len(PREFERRED)
    for number, name in enumerate(PREFERRED):
        request = {
            "way": name,
            "model": dataclasses.asdict(dataclasses.replace(model.config, yarn=None)),
            "device": str(ranks.device),
            "dtype": dtype,
            "compiled": config.use_compile,
            "deterministic": config.deterministic,
        }
        why = tried(request)
        if why is None:
            found = number
            break
        refused.append(f"{name}: {why}")
    if len(set(ranks.gather([found]))) > 1:  # each rank tried its own device
        refused.append(f"{names[found]}: not on every rank")
        found = len(PREFERRED)
    model.way = WAYS[names[found]]
    say(f"attention: {names[found]}" + (f" ({'; '.join(refused)})" if refused else ", tried on this GPU"))
    return names[found]


def tried(request: Mapping[str, Any]) -> str | None:
    """Try one way in a process of its own: None when it is right, else what is wrong with it, in one line."""
    if request["way"] == "varlen" and request["dtype"] == "float32":
        return "not for float32"
    try:
        answer = json.loads(_answer(request).splitlines()[-1])
        return None if answer["wrong"] is None else str(answer["wrong"])[:SHOWN]
    except subprocess.TimeoutExpired:
        return f"its trial took more than {LIMIT_S:.0f} s"
    except Exception as error:  # whatever it is, it must not cost a training
        return one_line(error)


def _answer(request: Mapping[str, Any]) -> str:
    process = subprocess.Popen(
        [sys.executable, "-m", "minimind.probe", json.dumps(request)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **QUIET},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # so that all of it can be ended at once
    )
    try:
        said, _ = process.communicate(timeout=LIMIT_S)
    except BaseException:  # it hangs, or this process is told to end
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        raise RuntimeError(f"its trial ended with {process.returncode}")
    return said


def one_line(error: Exception) -> str:
    """An error's kind and the beginning of what it says."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}"[:SHOWN]


def wrong(request: Mapping[str, Any]) -> str | None:
    """The trial itself, in this process: one layer's attention forth and back, against the reference in float32."""
    device, dtype = torch.device(request["device"]), request["dtype"]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(request["deterministic"])
    config = ModelConfig(**request["model"])
    layer = Attention(config, 0).to(device)
    with torch.no_grad():
        layer.q_proj.weight.mul_(4)  # else each token attends to all others alike, and a fault hardly shows
    run = torch.compile(layer) if request["compiled"] else layer
    for lengths in LENGTHS:
        x, weight = (torch.randn(1, sum(lengths), config.hidden_size, device=device) for _ in range(2))
        wanted = _numbers(layer, config, Dense(lengths, device), x, weight, run=layer)
        with torch.autocast(device.type, dtype=getattr(torch, dtype), enabled=dtype != "float32"):
            found = _numbers(layer, config, WAYS[request["way"]](lengths, device), x, weight, run=run)
        shares = [difference(one, other) for one, other in zip(found, wanted, strict=True)]
        off = float(torch.tensor(shares).max())  # which is no number if one of them is none
        if not off <= TOLERANCE[dtype]:
            return f"off by {off:.1e}, {TOLERANCE[dtype]:g} is what {dtype} may cost"
    return None


def _numbers(
    layer: Attention, config: ModelConfig, row: Row, x: Tensor, weight: Tensor, *, run: Callable[..., Tensor]
) -> list[Tensor]:
    """What one layer makes of x (1, T, C), and the gradients of x and of all its weights."""
    x = x.clone().requires_grad_()
    out = run(x, rotary_tables(config, row.position), row, None)
    return [out.detach(), *torch.autograd.grad((out.float() * weight).sum(), (x, *layer.parameters()))]


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference of two tensors of one shape, as a share of the largest wanted number."""
    return float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max())


def main(argv: list[str]) -> int:
    """Try what the request names and print the answer."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = wrong(json.loads(argv[0]))
        except Exception as error:  # no such kernel, no compiler, a type it does not know: an answer like another
            answer = one_line(error)
    print(json.dumps({"wrong": answer}), flush=True)
    return 0


if __name__ == "__main__":
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    leave(main(sys.argv[1:]))
