"""Which tokens are an assistant's turn, found by the special tokens around it, without the places of tokens.

Asking the tokenizers library for those places takes it half as long again, and reading them as long as writing tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minimind.answers import END
from minimind.pretokens import plain_cut
from minimind.tokenizer import BOS, EOS, HEADER, Tokenizer


class Turns:
    """Spans of characters to spans of tokens, for tokenizers that cut text where this can be known.

    With nothing but GPT-2's way of cutting, special tokens stand alone, and so does a line break before a character
    that is no white space: a header, and what ends a turn, are the same tokens everywhere.
    """

    def __init__(self, words: Tokenizer) -> None:
        added = plain_cut(words)
        self.usable = added is not None and BOS in added
        self.added = added or {}
        """Ids of tokens that always stand alone, by their text."""
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
        at = begun = ended = 0  # turns are counted from where the one before ended
        for begin, end in spans:
            follows = end == len(text) or text.startswith(BOS, end)
            if not (follows and text.endswith(HEADER, 0, begin) and text.endswith(END, begin, end)):
                return None
            if text[begin].isspace():
                return None
            begun += text.count(BOS, at, begin)
            ended += text.count(EOS, at, end)
            found.append((int(begins[begun - 1]) + self._header, int(ends[ended - 1]) + self._end))
            begun += text.count(BOS, begin, end)
            at = end
        return found
