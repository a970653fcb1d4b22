"""Text to ids through pre-tokens met before, each of which the tokenizers library encodes once.

A byte-level BPE cuts a text into pre-tokens (words, numbers, runs of signs, white space) and encodes each by itself, so
a pre-token has the same ids wherever it stands. The library's cutting keeps account of where each character came from,
which is most of its time and which nobody asks for here.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
import tokenizers

from minimind.tokenizer import EOS, Tokenizer

Ids = type[np.uint16] | type[np.uint32]
KEPT = 100_000
"""Pre-tokens remembered at most, about 25 MB; then it begins anew."""
LONGEST = 32
"""Characters of one that is remembered."""
SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
PICTURES = ((0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF))
"""Blocks beyond the first plane whose characters are signs in every version of Unicode."""


def by_library(backend: tokenizers.Tokenizer, dtype: Ids, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of each text, (tokens,), as the library makes them on all cores; the places of tokens are not asked for."""
    found = backend.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(one.ids, dtype) for one in found]


class Pretokens:
    """Ids of texts, equal to the library's: each call's first text is held against it."""

    def __init__(self, words: Tokenizer, dtype: Ids) -> None:
        self._dtype, self._by_library = dtype, functools.partial(by_library, words.backend, dtype)
        added = plain_cut(words)
        self.usable = added is not None
        self._ids = _Ids(words, dtype, added or {})
        self._apart = re.compile("|".join(sorted(map(re.escape, added or {}), key=len, reverse=True)) or "(?!)")

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, (tokens,); none are added to those of the text."""
        done: dict[int, np.ndarray] = {}
        if self.usable:
            cut, uncertain = patterns()
            for number, text in enumerate(texts):
                if not uncertain.search(text):
                    done[number] = self._encoded(text, cut)
            first = next(iter(done), None)
            if first is not None and not np.array_equal(done[first], self._by_library(texts[first : first + 1])[0]):
                self.usable = False  # it cuts in another way than the one that this was written for
                done = {}
        rest = [number for number in range(len(texts)) if number not in done]
        done |= zip(rest, self._by_library([texts[number] for number in rest]), strict=True)
        return [done[number] for number in range(len(texts))]

    def _encoded(self, text: str, cut: re.Pattern[str]) -> np.ndarray:
        parts: list[str] = []
        at = 0
        for token in self._apart.finditer(text):
            parts += cut.findall(text, at, token.start())
            parts.append(token[0])
            at = token.end()
        parts += cut.findall(text, at)
        return np.frombuffer(b"".join(map(self._ids.__getitem__, parts)), self._dtype)


class _Ids(dict[str, bytes]):
    """The ids of pre-tokens and added tokens, as bytes; what is missing is asked for and kept."""

    def __init__(self, words: Tokenizer, dtype: Ids, added: dict[str, int]) -> None:
        self._added = {token: dtype(number).tobytes() for token, number in added.items()}
        super().__init__(self._added)
        self._tokenize: Callable[[str], Sequence[object]] = words.backend.model.tokenize
        self._dtype = dtype

    def __missing__(self, pretoken: str) -> bytes:
        tokens = self._tokenize(pretoken.encode().decode("latin-1").translate(byte_level()))
        ids = np.array([token.id for token in tokens], self._dtype).tobytes()  # type: ignore[attr-defined]
        if len(pretoken) <= LONGEST:
            if len(self) >= KEPT:
                self.clear()
                self.update(self._added)
            self[pretoken] = ids
        return ids


def plain_cut(words: Tokenizer) -> dict[str, int] | None:
    """The added tokens by text, where GPT-2's way of cutting is all that happens before the BPE; else None.

    Added tokens must look like ``<…>`` with neither sign within, so that no two overlap whatever stands around them.
    """
    told = json.loads(words.backend.to_str())
    cut, model = told.get("pre_tokenizer") or {}, told["model"]
    added = {token["content"]: int(token["id"]) for token in told["added_tokens"]}
    plain = (
        told.get("normalizer") is None
        and told.get("post_processor") is None
        and cut.get("type") == "ByteLevel"
        and cut.get("use_regex", True)
        and not cut.get("add_prefix_space")
        and model["type"] == "BPE"
        and not model.get("dropout")
        and EOS in added
        and all(re.fullmatch("<[^<>]+>", text) for text in added)
        and not any(
            token[key] for token in told["added_tokens"] for key in ("lstrip", "rstrip", "single_word", "normalized")
        )
    )
    return added if plain else None


@functools.cache
def byte_level() -> dict[int, str]:
    """GPT-2's letters for bytes: what Latin-1 prints stands for itself, the others follow at 256."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = (byte for byte in range(256) if byte not in shown)
    return {byte: chr(0x100 + place) for place, byte in enumerate(hidden)}


@functools.cache
def patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """GPT-2's way of cutting, and what finds a character of which it is not certain what the library takes it for.

    Certain are the characters that Unicode 3.2 had and that still are what they were, and :data:`PICTURES`.
    """
    kinds: dict[str, list[int]] = {"L": [], "N": [], "other": []}
    for code in range(0x10000):
        before, now = unicodedata.ucd_3_2_0.category(chr(code)), unicodedata.category(chr(code))
        was, kind = (name[0] if name[0] in kinds else "other" for name in (before, now))
        if was == kind and before not in ("Cn", "Cs", "Co"):
            kinds[kind].append(code)
    letters, numbers, others = (_ranges(codes) for codes in kinds.values())
    pictures = "".join(f"{chr(first)}-{chr(last)}" for first, last in PICTURES)
    cut = (
        rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{letters}]+| ?[{numbers}]+| ?[^{letters}{numbers}{SPACE}]+"
        rf"|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+"
    )
    return re.compile(cut), re.compile(f"[^{letters}{numbers}{others}{SPACE}{pictures}]")


def _ranges(codes: Sequence[int]) -> str:
    """Sorted code points as the inside of a regular expression's class."""
    found: list[list[int]] = []
    for code in codes:
        if found and code == found[-1][1] + 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return "".join(f"\\u{first:04x}-\\u{last:04x}" for first, last in found)
