"""The tokenizer: load, train, chat template; files are Hugging Face's tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2.ext
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import tokenizers

from minimind.rundir import Reason, RunError

PAD, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
HEADER = f"{BOS}assistant\n"
THINKING = ("open_thinking", "enable_thinking")
"""What templates call the switch for thoughts before the answer."""
ROLES = ("system", "user", "assistant", "tool")
DEFAULT_SYSTEM = "You are a helpful assistant"
# minimind2's format: a default system turn, and the answer's header is written by the user's turn.
CHAT_TEMPLATE = (
    "{% set first = messages[0] if messages else none %}"
    "{{ '<|im_start|>system\\n' + (first['content'] if first and first['role'] == 'system'"
    f" else '{DEFAULT_SYSTEM}') + '<|im_end|>\\n' }}}}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ '<|im_start|>user\\n' + message['content'] + '<|im_end|>\\n<|im_start|>assistant\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
)
DICT_NAMES = frozenset(dir(dict))
STR_METHODS = frozenset(("startswith", "endswith", "split", "strip", "lstrip", "rstrip"))
TEMPLATE = "chat_template.jinja"
Messages = Sequence[Mapping[str, Any]]


class Tokenizer:
    """Text to ids and back, and conversations to text with the spans that the assistant wrote."""

    def __init__(self, folder: Path) -> None:
        """Load from a folder.

        Raises:
            RunError: when the files are missing or are no tokenizer.
        """
        self.folder = folder
        try:
            data, config = (folder / "tokenizer.json").read_bytes(), (folder / "tokenizer_config.json").read_bytes()
            self.backend = tokenizers.Tokenizer.from_str(data.decode())
            self.template = template = _template_of(folder, json.loads(config))
            self._template = _environment().from_string(template)
        except FileNotFoundError as error:
            raise RunError(
                f"no tokenizer in {folder}",
                why=f"{error.filename} does not exist",
                remedy="give --tokenizer PATH, or train one: python -m minimind tokenizer --data_path FILE",
                reason=Reason.DATA_MISSING,
            ) from error
        except Exception as error:  # tokenizers raises plain Exception
            raise RunError(
                f"{folder} holds no usable tokenizer",
                why=f"{type(error).__name__}: {error}",
                remedy="copy tokenizer.json and tokenizer_config.json again from where the weights came from",
                reason=Reason.DATA_INVALID,
            ) from error
        self.template = template
        self.backend.no_padding()
        self.backend.no_truncation()
        self.sha256 = hashlib.sha256(data + b"\0" + template.encode()).hexdigest()
        self.vocab_size = self.backend.get_vocab_size()
        self.pad_id, self.bos_id, self.eos_id = (self._special(token) for token in (PAD, BOS, EOS))

    def _special(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise RunError(
                f"the tokenizer in {self.folder} lacks {token}",
                why="MiniMind's chat format needs it as one token",
                remedy="use MiniMind's tokenizer, or train one with `python -m minimind tokenizer`",
                reason=Reason.DATA_INVALID,
            )
        return int(found)

    def encode(self, text: str) -> list[int]:
        """Ids of the text; special tokens written in it count as such, none are added."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of the ids."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special))

    @property
    def can_think(self) -> bool:
        """Whether the chat template can open a block of thoughts before the answer."""
        return any(name in self.template for name in THINKING)

    def render(
        self, messages: Messages, *, tools: Sequence[Any] | None = None, answering: bool = False, think: bool = False
    ) -> str:
        """The conversation as the model reads it.

        Args:
            messages: the conversation.
            tools: by default those that its first message with any names.
            answering: add what the template puts before an answer.
            think: let the template open thoughts there, where it can.

        Raises:
            RunError: when the template refuses it.
        """
        try:
            given = {"messages": messages, "tools": tools or tools_of(messages), "add_generation_prompt": answering}
            given |= dict.fromkeys(THINKING, think)
            # as Template.render does, without merging the globals anew each time, which would take half of it
            context = self._template.new_context({**self._template.environment.globals, **given}, shared=True)
            return "".join(self._template.root_render_func(context))
        except Exception as error:  # a template may stumble over whatever a file's tools and calls hold
            raise RunError(
                "the chat template refuses this conversation",
                why=f"{type(error).__name__}: {error}",
                remedy="every message needs a role and a content; see the file's chat_template",
                reason=Reason.DATA_INVALID,
            ) from error

    def prompt(self, messages: Messages, *, think: bool = False) -> str:
        """Text up to where the assistant begins to answer, with what the template opens for it (thoughts)."""
        text = self.render(messages, answering=True, think=think)
        return text if HEADER in text.rpartition(EOS)[2] else text + HEADER


def tools_of(messages: Messages) -> Sequence[Any] | None:
    """The tools that a conversation's first message with any names."""
    return next((message["tools"] for message in messages if message.get("tools")), None)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, in which what chat templates do all the time, and is always safe, is not looked into at length."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A message's entry, a method that makes a text of a text, what a loop or a namespace calls its own."""
        kind = type(obj)
        if kind is dict and attribute not in DICT_NAMES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        own = kind in (jinja2.runtime.LoopContext, jinja2.utils.Namespace) and not attribute.startswith("_")
        if (own or (kind is str and attribute in STR_METHODS)) and (found := getattr(obj, attribute, None)) is not None:
            return found
        return super().getattr(obj, attribute)


def _environment() -> jinja2.Environment:
    """Templates as transformers reads them: no HTML escapes in JSON, `raise_exception`, loop controls; sandboxed."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])

    def tojson(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


def _template_of(folder: Path, config: Mapping[str, Any]) -> str:
    """The chat template: a file of its own, as transformers writes it now, else an entry of tokenizer_config.json."""
    apart = folder / TEMPLATE
    return apart.read_text(encoding="utf-8") if apart.is_file() else str(config["chat_template"])


def files_of(words: Tokenizer) -> dict[str, bytes]:
    """The files that transformers (4 and 5) and we ourselves read a tokenizer from, by name."""
    config = json.loads((words.folder / "tokenizer_config.json").read_bytes())
    return {
        "tokenizer.json": (words.folder / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": json.dumps(
            {**config, "chat_template": words.template}, ensure_ascii=False, indent=2
        ).encode(),
        TEMPLATE: words.template.encode(),
    }


def load(folder: Path) -> Tokenizer:
    """A tokenizer, read once for as long as its file is the same one."""
    try:
        found = (folder / "tokenizer.json").stat()
        identity = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
    except OSError:
        identity = None
    # a relative name means another folder after a change of the working directory
    return _load(folder, folder.absolute(), identity)


@functools.lru_cache(maxsize=8)
def _load(folder: Path, absolute: Path, identity: tuple[int, ...] | None) -> Tokenizer:
    return Tokenizer(folder)


def train(texts: Iterator[str], folder: Path, *, vocab_size: int) -> None:
    """Train a byte-level BPE with MiniMind's three special tokens at ids 0 to 2 and write it into ``folder``."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts, trainer=trainer)
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": PAD,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n")
