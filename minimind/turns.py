"""Which tokens are an assistant's turn, found by the special tokens around it, without the places of tokens.

Asking the tokenizers library for those places takes it half as long again, and reading them as long as writing tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from minimind.tokenizer import BOS, EOS, HEADER, Tokenizer

END = f"{EOS}\n"


class Turns:
    """Spans of characters to spans of tokens, for tokenizers that cut text where this can be known.

    With nothing but GPT-2's way of cutting, special tokens stand alone, and so does a line break before a character
    that is no white space: a header, and what ends a turn, are the same tokens everywhere.
    """

    def __init__(self, words: Tokenizer) -> None:
        told = json.loads(words.backend.to_str())
        cut = told.get("pre_tokenizer") or {}
        added = [token for token in told["added_tokens"] if token["content"] in (BOS, EOS)]
        self.usable = (
            told.get("normalizer") is None
            and told.get("post_processor") is None
            and cut.get("type") == "ByteLevel"
            and cut.get("use_regex", True)
            and not cut.get("add_prefix_space")
            and len(added) == 2
            and not any(token[key] for token in added for key in ("lstrip", "rstrip", "single_word", "normalized"))
        )
        self._bos_id, self._eos_id = words.bos_id, words.eos_id
        self._header, self._end = len(words.encode(HEADER)), len(words.encode(END))

    def find(self, text: str, spans: Sequence[tuple[int, int]], ids: np.ndarray) -> Sequence[tuple[int, int]] | None:
        """The tokens ``[first, last)`` of each span of characters; None where only the places of tokens can tell.

        A token belongs to a span in which it begins. Spans are turns without their header, with what ends them.
        """
        if not self.usable:
            return None
        begins, ends = np.flatnonzero(ids == self._bos_id), np.flatnonzero(ids == self._eos_id)
        if text.count(BOS) != len(begins) or text.count(EOS) != len(ends):
            return None
        found = []
        for begin, end in spans:
            follows = end == len(text) or text.startswith(BOS, end)
            if not (follows and text.endswith(HEADER, 0, begin) and text.endswith(END, begin, end)):
                return None
            if text[begin].isspace():
                return None
            first = int(begins[text.count(BOS, 0, begin) - 1]) + self._header
            last = int(ends[text.count(EOS, 0, end) - 1]) + self._end
            found.append((first, last))
        return found
