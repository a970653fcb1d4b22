"""One request's JSON, read field by field; what does not fit is refused in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Refused(Exception):
    """A request that is not answered, as OpenAI's clients expect to be told."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kind = "invalid_request_error" if status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, kind)
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def loads(body: bytes) -> dict[str, Any]:
    """A request's JSON object.

    Raises:
        Refused: for anything else, NaN and nesting without end included.
    """

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    try:
        found = json.loads(body.decode(), parse_constant=constant)
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8, and integers of 5000 digits
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(f"the body is not JSON: {why}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise Refused("the body is not a JSON object", code="invalid_json")
    return found


class Fields:
    """Reads one request's fields; null is the same as absent."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.body = body

    def refuse(self, name: str, why: str, code: str = "invalid_value") -> NoReturn:
        """Raise what is wrong with a field."""
        raise Refused(f"{name}: {why}", param=name, code=code)

    def number(self, name: str, least: float, most: float, default: float) -> float:
        """A finite number between two ends."""
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(name, "must be a number", "invalid_type")
        if not least <= value <= most:
            self.refuse(name, f"must be between {least} and {most}")
        return float(value)

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number between two ends, or None."""
        value = self.body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            self.refuse(name, "must be a whole number", "invalid_type")
        if value is not None and not least <= value <= most:
            self.refuse(name, f"must be between {least} and {most}")
        return value

    def flag(self, name: str) -> bool:
        """A boolean; absent is false."""
        value = self.body.get(name)
        if value is not None and not isinstance(value, bool):
            self.refuse(name, "must be true or false", "invalid_type")
        return bool(value)

    def text(self, name: str, value: object) -> str:
        """A string that is text."""
        if not isinstance(value, str):
            self.refuse(name, "must be a string", "invalid_type")
        if any(0xD800 <= ord(character) < 0xE000 for character in value):
            self.refuse(name, "holds half of a surrogate pair, which is no character")
        return value

    def stop(self) -> tuple[str, ...]:
        """Up to four stop strings."""
        value = self.body.get("stop")
        if value is None:
            return ()
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or len(found) > 4:
            self.refuse("stop", "must be a string or up to four")
        texts = tuple(self.text("stop", item) for item in found)
        if not all(0 < len(text) <= 1000 for text in texts):
            self.refuse("stop", "each must have between 1 and 1000 characters")
        return texts

    def messages(self) -> list[dict[str, str]]:
        """The conversation, its leading system messages joined into one."""
        value = self.body.get("messages")
        if not isinstance(value, list) or not value:
            self.refuse("messages", "must be a list with at least one message", "invalid_type")
        found: list[dict[str, str]] = []
        for index, message in enumerate(value):
            name = f"messages[{index}]"
            if not isinstance(message, dict):
                self.refuse(name, "must be an object", "invalid_type")
            role = message.get("role")
            if not isinstance(role, str) or role not in ROLES:
                self.refuse(f"{name}.role", f"must be one of {', '.join(ROLES)}")
            if message.get("tool_calls") or message.get("function_call"):
                self.refuse(name, "calls of tools are not offered", "unsupported_value")
            content = self._content(f"{name}.content", message.get("content"), role)
            if ROLES[role] == "system" and found:
                if len(found) > 1 or found[0]["role"] != "system":
                    self.refuse(f"{name}.role", "system messages must come first: the model was trained so")
                found[0]["content"] += "\n\n" + content
            else:
                found.append({"role": ROLES[role], "content": content})
        return found

    def _content(self, name: str, value: object, role: str) -> str:
        if value is None and role == "assistant":
            return ""
        if isinstance(value, list):
            for part in value:
                if not isinstance(part, dict) or part.get("type") != "text":
                    self.refuse(name, "only parts of type text are offered", "unsupported_value")
            return "".join(self.text(name, part.get("text")) for part in value)
        return self.text(name, value)
