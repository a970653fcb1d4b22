"""The HTTP interface of one model: routes, and one completion from its request to its last byte."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

from minimind import protocol
from minimind.dialogue import Speaker, Splitter, TextStream
from minimind.engine import Closed, Engine, Event, Full, Job
from minimind.fields import Refused, loads
from minimind.guard import Receive, Scope, Send, read_body, send_json
from minimind.protocol import Asked, Defaults, Reply
from minimind.rundir import RunError


class Endpoint:
    """The HTTP interface of one model."""

    def __init__(self, speaker: Speaker, engine: Engine, *, name: str, defaults: Defaults, max_body_bytes: int) -> None:
        self.speaker, self.engine, self.name = speaker, engine, name
        self.defaults, self.max_body_bytes = defaults, max_body_bytes
        self.entry = {"id": name, "object": "model", "created": 0, "owned_by": "minimind"}

    def routes(self) -> list[Any]:
        """Starlette's table."""
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        async def health(request: Any) -> Any:
            answering, waiting = self.engine.busy()
            return JSONResponse({"status": "ok", "answering": answering, "waiting": waiting})

        async def models(request: Any) -> Any:
            return JSONResponse({"object": "list", "data": [self.entry]})

        async def model(request: Any) -> Any:
            self._named(request.path_params["name"])
            return JSONResponse(self.entry)

        async def chat(request: Any) -> Any:
            return functools.partial(self.complete, chat=True)

        async def plain(request: Any) -> Any:
            return functools.partial(self.complete, chat=False)

        return [
            Route("/health", health, methods=["GET"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{name:path}", model, methods=["GET"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", plain, methods=["POST"]),
        ]

    def _named(self, name: object) -> None:
        if name not in (None, self.name, "minimind"):
            raise Refused(
                f"there is no model {name!r} here, only {self.name!r}",
                status=404,
                code="model_not_found",
                param="model",
            )

    async def complete(self, scope: Scope, receive: Receive, send: Send, *, chat: bool) -> None:
        """One completion, whole or as a stream."""
        body = loads(await read_body(scope, receive, most=self.max_body_bytes))
        self._named(body.get("model"))
        # tokenising a long text takes a while: not on the loop
        asked = await asyncio.to_thread(protocol.asked, body, self.speaker, self.defaults, chat=chat)
        heard: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def hear(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(heard.put_nowait, event)

        job = Job(prompt=asked.prompt, sampling=asked.sampling, hear=hear)
        try:
            self.engine.submit(job)
        except Full:
            raise Refused(
                "too many requests are waiting", status=429, code="queue_full", headers={"retry-after": "2"}
            ) from None
        except Closed:
            raise Refused("the server is stopping", status=503, headers={"retry-after": "10"}) from None
        answering = asyncio.create_task(self._answer(asked, job, heard, send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
        except asyncio.CancelledError:  # the server leaves, and this client does not even read what it was sent
            return
        finally:
            job.wanted = False
            for task in (answering, leaving):
                task.cancel()

    async def _answer(self, asked: Asked, job: Job, heard: asyncio.Queue[Event], send: Send) -> None:
        reply = Reply(asked, self.name)
        parts = self._parts(asked, job, reply, heard)
        if not asked.stream:
            found = [part async for part in parts]
            await send_json(send, 200, reply.whole(found[:-1], found[-1][1]))
            return
        first = await anext(parts)  # what goes wrong before the first token still gets a status of its own
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def event(data: Any) -> None:
            text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
            await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})

        if asked.chat:
            await event(reply.chunk())
        try:
            kind, text = first
            while kind != "finish":
                await event(reply.chunk(kind, text))
                kind, text = await anext(parts)
            await event(reply.chunk(finish=text))
            if asked.include_usage:
                await event(reply.last())
            await event("[DONE]")
        except Refused as refused:
            await event(refused.body)
        await send({"type": "http.response.body", "body": b""})

    async def _parts(
        self, asked: Asked, job: Job, reply: Reply, heard: asyncio.Queue[Event]
    ) -> AsyncIterator[tuple[str, str]]:
        """(kind, text) as it becomes certain; the last is ("finish", why)."""
        stream, splitter = TextStream(self.speaker.words, asked.stop), Splitter(asked.opened)
        finish = None
        while finish is None:
            event = await heard.get()
            if isinstance(event, Exception):
                raise _told(event)
            if isinstance(event, int):
                reply.completion_tokens += 1
                text = stream.push(event)
            else:
                finish, text = event, stream.close()
            if stream.stopped:
                finish, job.wanted = "stop", False
            if not asked.chat:
                if text:
                    yield "answer", text
                continue
            for kind, part in splitter.push(text, last=finish is not None):
                yield kind, part
        yield "finish", finish


def _told(error: Exception) -> Refused:
    """What a client hears of an error in the engine."""
    if isinstance(error, Closed):
        return Refused("the server is stopping", status=503, headers={"retry-after": "10"})
    print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    if isinstance(error, RunError):
        return Refused(f"{error.what}: {error.why}", status=500)
    return Refused("the model could not go on; the server's log says why", status=500)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
