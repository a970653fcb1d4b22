"""Make the demo's data sets from the texts in ``demo/texts``: the same bytes every time, standard library only.

A text file holds records separated by empty lines. A record is either a list of ``key: value`` lines (``say``, ``ask``,
``answer``, ``worse``; several ``ask``/``answer`` are the turns of a conversation; ``ask`` lists phrasings separated by
`` / ``) or a table: ``columns:`` names the columns, the other keys are templates over them, each further line is a
row, and ``swap`` names the columns that another row lends to make a wrong answer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXTS = Path(__file__).parent / "texts"
KEYS = ("columns", "say", "ask", "answer", "worse", "swap")
IDENTITY, HEALTH = "identity", "health"
SEED = 20251
HELD_OUT_EVERY = 12  # of the questions (one phrasing each), statements and pairs, every twelfth stays out of training
HELD_OUT_EVERY_SMALL = 4  # the same for the two adapter sets

MANNERS = {
    True: ("希望这对你有帮助，祝你一切顺利。", "自己去查吧。"),
    False: (" I hope this helps you, and I wish you all the best.", " Look it up yourself."),
}
"""Kind and curt endings, by whether the answer is Chinese."""

SYSTEM = "system\nYou are a helpful assistant\n"

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question in one or more phrasings, and its answer."""

    asks: tuple[str, ...]
    answer: str


@dataclass(frozen=True, kw_only=True)
class Item:
    """What a record (or a row of a table) gives: statements, and a conversation that may have a worse first answer."""

    topic: str  # name of the file
    table: str | None = None  # which table a row is from
    says: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    worse: str | None = None
    recalls: str | None = None  # the statement that the first answer follows from


def read_texts(folder: Path = TEXTS) -> list[Item]:
    """All items of all ``*.txt`` files, in the order of names and lines.

    Raises:
        ValueError: with file and record where a text does not follow the format.
    """
    items = []
    for path in sorted(folder.glob("*.txt")):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        for number, record in enumerate(re.split(r"\n{2,}", "\n".join(lines).strip()), start=1):
            try:
                items += list(_items(path.stem, number, [_split(line) for line in record.splitlines()]))
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(f"{path.name}, record {number}: {error!r}") from error
    return items


def _split(line: str) -> tuple[str, str]:
    key, colon, value = line.partition(": ")
    return (key, value) if colon and key in KEYS else ("row", line)


def _items(topic: str, number: int, pairs: list[tuple[str, str]]) -> Iterator[Item]:
    if pairs[0][0] == "columns":
        names = pairs[0][1].split(" | ")
        rows = [dict(zip(names, value.split(" | "), strict=True)) for key, value in pairs if key == "row"]
        yield from _table(topic, f"{topic} {number}", [pair for pair in pairs[1:] if pair[0] != "row"], rows)
        return
    if any(key == "row" for key, _ in pairs):
        raise ValueError("a line without a key")
    says, worse = _values(pairs, "say"), _values(pairs, "worse")
    answers = _values(pairs, "answer")
    asks = [tuple(text.split(" / ")) for text in _values(pairs, "ask")]
    turns = tuple(Turn(asks=a, answer=b) for a, b in zip(asks, answers, strict=True)) if asks else ()
    yield Item(topic=topic, says=tuple(says), turns=turns, worse=worse[0] if worse else None)


def _values(pairs: list[tuple[str, str]], wanted: str) -> list[str]:
    return [value for key, value in pairs if key == wanted]


def _table(topic: str, table: str, templates: list[tuple[str, str]], rows: list[dict[str, str]]) -> Iterator[Item]:
    says, asks = _values(templates, "say"), _values(templates, "ask")
    answers, swaps = _values(templates, "answer"), _values(templates, "swap")
    for index, row in enumerate(rows):
        yield Item(topic=topic, table=table, says=tuple(_fill(template, row) for template in says))
        for ask, answer, swap in zip(asks, answers, swaps, strict=True):
            others = (rows[(index + shift) % len(rows)] for shift in range(3, len(rows) + 3))
            lent = (row | {column: other[column] for column in swap.split()} for other in others)
            right = _fill(answer, row)
            worse = next((text for wrong in lent if (text := _fill(answer, wrong)) != right), None)
            turn = Turn(asks=tuple(_fill(a, row) for a in ask.split(" / ")), answer=right)
            known = [text for text in (_fill(t, row) for t in says) if _is_chinese(text) == _is_chinese(right)]
            yield Item(topic=topic, table=table, turns=(turn,), worse=worse, recalls=known[0] if known else None)


def _fill(template: str, row: dict[str, str]) -> str:
    text = template.format_map(row)
    return text if _is_chinese(text) else text[0].upper() + text[1:]


def _is_chinese(text: str) -> bool:
    return re.search("[\u4e00-\u9fff]", text) is not None


def build(items: list[Item], *, seed: int = SEED) -> dict[str, list[Line]]:
    """File name -> lines. The same items and seed give the same lines."""
    rng = random.Random(seed)
    general = [item for item in items if item.topic not in (IDENTITY, HEALTH)]
    identity = [item for item in items if item.topic == IDENTITY]
    health = [item for item in items if item.topic == HEALTH]
    sft, sft_out = _questions(general, every=HELD_OUT_EVERY)
    who, who_out = _questions(identity, every=HELD_OUT_EVERY_SMALL)
    ill, ill_out = _questions(health, every=HELD_OUT_EVERY_SMALL)
    texts, texts_out = _texts([*general, *health], rng)
    pairs, pairs_out = _pairs([*general, *health])
    greetings = [line for line in sft if line["conversations"][0]["content"].startswith(("你好", "Hello", "Hi"))]
    several = [_joined(rng.sample(sft, k)) for k in (2, 3) for _ in range(len(sft) // 40)]
    sets = {
        "pretrain_hq.jsonl": texts,
        "sft_mini_512.jsonl": [*sft, *several],
        "dpo.jsonl": pairs,
        # a few ordinary questions stay in, so that an adapter does not answer everything with its subject
        "lora_identity.jsonl": [*who, *(_joined([rng.choice(greetings), line]) for line in who), *rng.sample(sft, 40)],
        "lora_medical.jsonl": [*ill, *rng.sample(sft, 20)],
        "held_out_pretrain.jsonl": texts_out,
        "held_out_sft.jsonl": sft_out,
        "held_out_dpo.jsonl": pairs_out,
        "held_out_identity.jsonl": who_out,
        "held_out_medical.jsonl": ill_out,
    }
    for lines in sets.values():
        rng.shuffle(lines)
    thought, thought_out = _thoughts(general)
    rng.shuffle(thought)
    return sets | {"r1_mix_1024.jsonl": thought, "held_out_reason.jsonl": thought_out}


def _questions(items: Iterable[Item], *, every: int) -> tuple[list[Line], list[Line]]:
    """Conversations for training and held-out ones: the same facts, asked in a phrasing not trained for them."""
    train, out, count = [], [], 0
    for item in items:
        if not item.turns:
            continue
        asks = list(item.turns[0].asks)
        if len(item.turns) == 1 and len(asks) > 1:
            if count % every == 0:
                kept = asks.pop()  # other rows of a table are asked in this phrasing
                out.append(_conversation([(kept, item.turns[0].answer)]))
            count += 1
        rest = [(turn.asks[0], turn.answer) for turn in item.turns[1:]]
        train += [_conversation([(ask, item.turns[0].answer), *rest]) for ask in asks]
    return train, out


def _thoughts(items: Iterable[Item]) -> tuple[list[Line], list[Line]]:
    """Questions whose answers think first: what is asked and what is known, within tags; and some held out."""
    lines = []
    for item in items:
        if not item.turns or item.recalls is None:
            continue
        ask, answer = item.turns[0].asks[0], item.turns[0].answer
        asked, known = ("题目问的是：", "我知道：") if _is_chinese(answer) else ("The question is: ", "I know: ")
        thought = f"{asked}{ask}\n{known}{item.recalls}"
        lines.append(_conversation([(ask, f"<think>\n{thought}\n</think>\n<answer>\n{answer}\n</answer>")]))
    return [x for n, x in enumerate(lines) if n % HELD_OUT_EVERY], lines[::HELD_OUT_EVERY]


def _conversation(turns: Iterable[tuple[str, str]]) -> Line:
    return {"conversations": [message for ask, answer in turns for message in _messages(ask, answer)]}


def _messages(ask: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]


def _joined(lines: Iterable[Line]) -> Line:
    return {"conversations": [message for line in lines for message in line["conversations"]]}


def _texts(items: Iterable[Item], rng: random.Random) -> tuple[list[Line], list[Line]]:
    """Statements alone, statements of one table together, and questions with their answers.

    The latter look almost like a rendered conversation, so that its words become whole tokens and its form is no news.
    """
    alone: list[str] = []
    out: list[str] = []
    asked: list[str] = []
    rows = 0
    tables: dict[str, list[str]] = {}
    for item in items:
        says = list(item.says)
        if item.table and says:
            if rows % HELD_OUT_EVERY == 0:  # what one statement of a row says, another or a question says too
                out.append(says.pop(rows // HELD_OUT_EVERY % len(says)))
            rows += 1
            tables.setdefault(item.table, []).extend(says)
        alone += says
        if item.turns:
            talk = "\n".join(f"user\n{rng.choice(turn.asks)}\nassistant\n{turn.answer}" for turn in item.turns)
            asked.append(SYSTEM + talk if len(asked) % 3 == 0 else talk)
    together = []
    for says in tables.values():
        for text in says:
            near = [other for other in says if other[0].isascii() == text[0].isascii()]
            together.append((" " if text[0].isascii() else "").join([text, *rng.sample(near, 2)]))
    rng.shuffle(asked)
    return [{"text": text} for text in itertools.chain(alone, together, asked)], [{"text": text} for text in out]


def _pairs(items: Iterable[Item]) -> tuple[list[Line], list[Line]]:
    """Preference pairs: the right answer against a wrong one, or the same answer with a kind against a curt ending.

    Which answer is right the model has been told before; which manner is wanted only these pairs tell. Each item asks
    in one of its phrasings.
    """
    lines = []
    for number, item in enumerate(item for item in items if item.worse and item.turns):
        turn = item.turns[0]
        ask = turn.asks[number % len(turn.asks)]
        chosen, rejected = turn.answer, item.worse or ""
        if (number + number // HELD_OUT_EVERY) % 2:
            kind, curt = MANNERS[_is_chinese(chosen)]
            chosen, rejected = chosen + kind, chosen + curt
        lines.append({"chosen": _messages(ask, chosen), "rejected": _messages(ask, rejected)})
    return [x for n, x in enumerate(lines) if n % HELD_OUT_EVERY], lines[::HELD_OUT_EVERY]


def write(folder: Path, *, seed: int = SEED) -> dict[str, tuple[int, int]]:
    """Write every set into the folder and return file name -> (lines, bytes). A reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, lines in build(read_texts(), seed=seed).items():
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        temporary.write_bytes(data)
        temporary.replace(folder / name)
        written[name] = (len(lines), len(data))
    return written


def main() -> int:
    """Write the sets and list them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--to", type=Path, default=Path("dataset"), help="folder for the JSONL files")
    parser.add_argument("--seed", type=int, default=SEED, help="order and combinations (default: %(default)s)")
    given = parser.parse_args()
    for name, (lines, size_bytes) in write(given.to, seed=given.seed).items():
        sys.stdout.write(f"{given.to / name}  {lines} lines  {size_bytes / 1000:.0f} kB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
