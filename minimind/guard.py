"""What stands before the endpoint: who may ask (Host, Origin, key), how large and how slow a body may be."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import sys
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from minimind.fields import Refused

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_TIMEOUT_S = 30.0
DISCARD_BYTES = 64 * 2**20
"""A body that is too large is read up to here and thrown away, so that the client gets to read why."""


def is_loopback(host: str) -> bool:
    """Whether a name or address stays on this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


async def send_json(send: Send, status: int, body: Any, headers: MutableMapping[str, str] | None = None) -> None:
    """One JSON response."""
    data = json.dumps(body, ensure_ascii=False).encode()
    fields = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": data})


async def read_body(scope: Scope, receive: Receive, *, most: int, timeout_s: float = BODY_TIMEOUT_S) -> bytes:
    """A request's body.

    Raises:
        Refused: 413 beyond ``most`` bytes, 408 when it does not arrive in time.
        ConnectionError: when the client has gone.
    """
    headers = dict(scope["headers"])
    told = headers.get(b"content-length", b"0")
    declared = int(told) if told.isdigit() and len(told) < 19 else DISCARD_BYTES + 1
    large = Refused(f"the body is larger than {most} bytes", status=413, code="body_too_large")
    if declared > DISCARD_BYTES or (declared > most and b"expect" in headers):
        raise large
    parts, length = [], 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError
                part = message.get("body", b"")
                length += len(part)
                if length <= most:
                    parts.append(part)
                elif length > DISCARD_BYTES:
                    raise large
                if not message.get("more_body"):
                    break
    except TimeoutError:
        raise Refused(f"the body did not arrive within {timeout_s:g} s", status=408, code="timeout") from None
    if length > most:
        raise large
    return b"".join(parts)


class Guard:
    """Checks every request before the application sees it, and turns what it raises into OpenAI's error form."""

    def __init__(self, app: App, *, names: frozenset[str], key: str | None) -> None:
        self.app, self.names = app, names
        self.key = key.encode() if key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":  # no websockets here
            return
        started = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            self.check(scope["path"], dict(scope["headers"]))
            await self.app(scope, receive, sending)
        except Refused as refused:
            if not started:
                await send_json(send, refused.status, refused.body, refused.headers)
        except ConnectionError:
            return
        except Exception as error:  # a bug of ours: the client learns no more than that
            traceback.print_exception(error, file=sys.stderr)
            if not started:
                await send_json(send, 500, Refused("the server broke; its log says how", status=500).body)

    def check(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Whether this request may be answered.

        A page in a browser can send requests here, by an address of ours in its script or by a name of its own that it
        lets point here (DNS rebinding). The first carries an Origin, the second that name as its Host.

        Raises:
            Refused: 403 for a foreign Host or any Origin, 401 without the key.
        """
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if name.lower().rstrip(".") not in self.names and not _is_address(name):
            raise Refused(
                f"this server does not go by the name {name!r}; --allow_host adds one",
                status=403,
                code="host_not_allowed",
            )
        if b"origin" in headers:
            raise Refused("pages in browsers are not answered", status=403, code="origin_not_allowed")
        if self.key is None or path == "/health":
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.key):
            raise Refused(
                "the API key is missing or wrong: send Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


def _is_address(name: str) -> bool:
    """An address cannot be rebound, a name can."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
