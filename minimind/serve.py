"""``python -m minimind serve``: weights behind OpenAI's HTTP interface, for the openai client and its kin."""

from __future__ import annotations

import math
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from minimind.config import UsageError
from minimind.dialogue import Speaker
from minimind.endpoint import Endpoint
from minimind.engine import Engine
from minimind.fields import Refused
from minimind.guard import Guard, is_loopback
from minimind.protocol import Defaults
from minimind.rundir import Reason, RunError
from minimind.uses import SpokenConfig, parsed, spoken
from minimind.weights import find_weights

KEY_VARIABLE = "MINIMIND_API_KEY"
LAST_WORDS_S = 2
"""What clients get to read the end of an answer that was cut."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig(SpokenConfig):
    """Answer OpenAI's chat completions and completions over HTTP.

    An API key is read from the file that --api_key_file names, or from the environment variable MINIMIND_API_KEY.
    """

    host: Annotated[str, "address to listen on; another than this machine's own needs an API key"] = "127.0.0.1"
    port: Annotated[int, "TCP port; 0 takes a free one and prints it"] = 8998
    allow_host: Annotated[str | None, "further names that clients reach this server by, separated by commas"] = None
    api_key_file: Annotated[Path | None, "file with the key that clients must send"] = None
    insecure: Annotated[bool, "listen beyond this machine without a key: whoever reaches the port may ask"] = False
    model_name: Annotated[str | None, "what the model is called; default: the file's name"] = None
    rows: Annotated[int, "requests that are answered side by side"] = 4
    queue: Annotated[int, "requests that may wait; further ones are told to come back (429)"] = 32
    max_body_bytes: Annotated[int, "largest request"] = 1_000_000
    max_new_tokens: Annotated[int, "longest answer, in tokens, where a request names none"] = 512
    temperature: Annotated[float, "where a request names none"] = 0.85
    top_p: Annotated[float, "where a request names none"] = 0.85
    drain_s: Annotated[float, "seconds that running answers get when the server is told to stop"] = 5.0


def api_key(config: ServeConfig) -> str | None:
    """The key that clients must send.

    Raises:
        UsageError: when its file cannot be read, or it is no key.
    """
    where = f"the variable {KEY_VARIABLE}" if config.api_key_file is None else str(config.api_key_file)
    if config.api_key_file is None:
        key = os.environ.get(KEY_VARIABLE)
    else:
        try:
            key = config.api_key_file.read_text().strip()
            if config.api_key_file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
                print(f"warning: others on this machine can read {where}: chmod 600 it", file=sys.stderr)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"the API key in {where} cannot be read", why=str(error), remedy="give a text file with the key alone"
            ) from error
    if key is not None and (len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key):
        raise UsageError(
            f"the API key in {where} is no key",
            why="it must have at least 8 printable ASCII characters and no space",
            remedy="make one, e.g. with: openssl rand -hex 24",
        )
    return key


def listen(config: ServeConfig, *, keyed: bool) -> socket.socket:
    """The listening socket.

    Raises:
        UsageError: beyond this machine without a key, or where one cannot listen.
    """
    if not is_loopback(config.host):
        if not keyed and not config.insecure:
            raise UsageError(
                f"serve does not listen on {config.host} without an API key",
                why="everybody who reaches that port could use the model and this machine's time",
                remedy="give --api_key_file FILE; or keep 127.0.0.1 and come by ssh -L; or --insecure if you mean it",
            )
        what = "the key and every text can be read on the way" if keyed else "whoever reaches the port may ask"
        print(f"warning: listening on {config.host} by plain HTTP: {what}", file=sys.stderr)
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server(found[0][4][:2], family=found[0][0], backlog=128)
    except OSError as error:
        raise UsageError(
            f"serve cannot listen on {config.host} port {config.port}",
            why=error.strerror or str(error),
            remedy="end what listens there, or give another --port (0 takes a free one) or --host",
        ) from error


def application(config: ServeConfig, speaker: Speaker, engine: Engine, name: str, key: str | None) -> Guard:
    """The ASGI application."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse

    async def told(request: Any, error: Exception) -> Any:
        if isinstance(error, HTTPException):  # starlette's own
            said = {404: "there is no such path here", 405: "this path takes another method"}
            error = Refused(said.get(error.status_code, "refused"), status=error.status_code, headers=error.headers)
        if not isinstance(error, Refused):  # a bug of ours: the guard writes it down, the client learns no more
            error = Refused("the server broke; its log says how", status=500)
        return JSONResponse(error.body, status_code=error.status, headers=error.headers)

    defaults = Defaults(max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)
    endpoint = Endpoint(speaker, engine, name=name, defaults=defaults, max_body_bytes=config.max_body_bytes)
    app = Starlette(
        routes=endpoint.routes(), exception_handlers=dict.fromkeys((HTTPException, Refused, Exception), told)
    )
    names = {"localhost", config.host.lower(), *(n.strip().lower() for n in (config.allow_host or "").split(","))} - {
        ""
    }
    return Guard(app, names=frozenset(names), key=key)


def serve(argv: Sequence[str]) -> int:
    """``python -m minimind serve``; returns the exit code."""
    config = parsed("serve", ServeConfig, argv)
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise RunError(
            "serve needs two more packages",
            why=f"{error.name} is not installed",
            remedy="pip install 'minimind-launch[serve]', or: pip install starlette uvicorn",
            reason=Reason.ENV_MISMATCH,
        ) from error
    key = api_key(config)
    listening = listen(config, keyed=key is not None)
    model, speaker = spoken(config, verb="serve")
    stem = find_weights(config.from_weight or "", config.save_dir).stem
    name = config.model_name or "+".join([stem, *(Path(adapter).stem for adapter in config.from_lora)])
    engine = Engine(model, rows=config.rows, queue=config.queue)
    host, port = listening.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"serving {name} at {url}/v1", flush=True)
    print(_how_to_ask(url, name, raw=speaker.raw, keyed=key is not None), file=sys.stderr, flush=True)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            super().handle_exit(sig, frame)  # no new connections; those that are here go on
            if not asked_to_stop:
                asked_to_stop.append(sig)
                timer = threading.Timer(config.drain_s, engine.close)  # ends what is left with a word to its client
                timer.daemon = True
                timer.start()

    asked_to_stop: list[int] = []
    server = Server(
        uvicorn.Config(
            application(config, speaker, engine, name, key),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=math.ceil(config.drain_s) + LAST_WORDS_S,
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn takes them over, and raises them once more when it is done
        signal.signal(number, signal.SIG_IGN)
    try:
        server.run(sockets=[listening])
    finally:
        engine.close()
    return 130 if signal.SIGINT in asked_to_stop else 0


def _how_to_ask(url: str, name: str, *, raw: bool, keyed: bool) -> str:
    path, asked = (
        ("completions", '"prompt": "今天"')
        if raw
        else ("chat/completions", '"messages": [{"role": "user", "content": "你好"}]')
    )
    header = ' -H "Authorization: Bearer $KEY"' if keyed else ""
    return f'ask: curl {url}/v1/{path}{header} -d \'{{"model": "{name}", {asked}}}\'\nCtrl-C ends it'
