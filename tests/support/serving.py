"""Weights that need no training, and `serve` as a real process on a port of its own."""

import contextlib
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import torch

from minimind.config import ModelConfig
from minimind.model import MiniMind
from tests.support import corpus

# minimind3's manner in a few lines: the answer's header belongs to the template, which opens thoughts or closes them
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if open_thinking is defined and open_thinking is true %}{{ '<think>\\n' }}"
    "{% else %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)


def words(folder: pathlib.Path, *, template: str | None = None) -> pathlib.Path:
    """A tokenizer folder."""
    from minimind import tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.train((line["text"] for line in corpus.texts(30)), folder, vocab_size=300)
    if template:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return folder


def weights(path: pathlib.Path, *, arch: str = "minimind2", vocab_size: int = 300, **sidecar) -> pathlib.Path:
    """Weights at random that say something definite and never end by themselves when the likeliest token is taken."""
    torch.manual_seed(4)
    model = MiniMind(ModelConfig.for_arch(arch, hidden_size=64, num_hidden_layers=2, vocab_size=vocab_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        model.lm_head.weight[:3] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.half() for name, value in model.state_dict().items()}, path)
    if sidecar:
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


@contextlib.contextmanager
def serving(*flags: str, cwd: pathlib.Path, **environ: str):
    """The running server; its ``url`` is what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "minimind", "serve", "--port", "0", *flags],
        cwd=cwd,
        env=corpus.environ(**environ),
        stdout=subprocess.PIPE,
        stderr=open(cwd / "serve.err", "ab"),  # noqa: SIM115
        text=True,
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://(\S+):(\d+)/v1", line)
        assert found, (line, (cwd / "serve.err").read_text())
        process.url, process.port = found[0], int(found[2])
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        process.stdout.close()


def exchange(port: int, request: bytes, *, pause_s: float = 0, timeout_s: float = 20) -> tuple[int, bytes]:
    """Send raw bytes and read until the server closes: status and body."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as link:
        with contextlib.suppress(ConnectionError):
            link.sendall(request)
        time.sleep(pause_s)
        data = b""
        with contextlib.suppress(ConnectionError):
            while part := link.recv(65536):
                data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


def request(path: str, body: bytes | None = None, *, host: str = "localhost", **headers: str) -> bytes:
    """The bytes of an HTTP/1.1 request that asks to close."""
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None and "Content_Length" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")
