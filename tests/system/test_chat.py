"""`chat` as a person and as a script use it: a terminal, a pipe, Ctrl-C, wrong options."""

import io
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from minimind import evaluate, generate
from minimind.config import UsageError
from minimind.rundir import RunError
from tests.support import corpus, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("chat")
    serving.words(made / "out" / "tokenizer", template=serving.THINKING)
    serving.weights(made / "out" / "full_sft_64.pth", stage="full_sft")
    serving.weights(made / "out" / "pretrain_64.pth")  # of the original: no sidecar
    return made


class Terminal:
    """`chat` on a terminal of its own; what it shows is everything on the screen."""

    def __init__(self, folder, *flags: str) -> None:
        self.master, end = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minimind", "chat", *flags],
            cwd=folder,
            env=corpus.environ(),
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # makes it the controlling terminal
        )
        os.close(end)
        self.shown = b""

    def until(self, text: str, *, after: int = 0) -> int:
        """Read until the text is on the screen; returns where the screen ends then."""
        limit = time.monotonic() + 90
        while text.encode() not in self.shown[after:]:
            assert time.monotonic() < limit, self.shown
            if select.select([self.master], [], [], 0.2)[0]:
                self.shown += os.read(self.master, 65536)
        return len(self.shown)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def leave(self) -> int:
        """The exit code."""
        limit = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < limit, self.shown
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.master, 65536)
                except OSError:  # its other end is closed
                    break
        code = self.process.wait(60)
        os.close(self.master)
        return code


def test_on_a_terminal_ctrl_c_ends_the_answer_and_at_the_prompt_the_program(folder):
    screen = Terminal(folder, "--from_weight", "full_sft", "--temperature", "0", "--max_new_tokens", "30000")
    at = screen.until("> ")
    screen.type("今天\n")
    screen.until("今天", after=at + len("今天\r\n".encode()))  # it answers, without end
    screen.type("\x03")
    at = screen.until("> ", after=at + 10)
    screen.type("/clear\n")
    at = screen.until("> ", after=at)
    screen.type("\x03")
    assert screen.leave() == 130
    assert b"Traceback" not in screen.shown


def test_a_pipe_gets_the_answers_alone_and_its_end_is_no_fault(folder):
    done = subprocess.run(
        [sys.executable, "-m", "minimind", "chat", "--from_weight", "full_sft", "--max_new_tokens", "6"],
        cwd=folder,
        env=corpus.environ(),
        input="今天\n\n/clear\n".encode() + b"\xff\xed\xa0\x80",
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().count("\n") >= 3 and b"\x1b" not in done.stdout
    assert b"chat template" in done.stderr and not done.stdout.startswith(b">")


class ByHand(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_exit_and_after_a_question_that_is_too_long_a_terminal_goes_on(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", ByHand("今天" * 60_000 + "\nhello\n/clear\n/exit\nnever asked\n"))
    assert generate.chat(["--from_weight", "full_sft", "--temperature", "0", "--max_new_tokens", "3"]) == 0
    told = capsys.readouterr()
    assert "too long" in told.err and told.err.count("> ") == 4 and told.out.count("\n") == 1


def asked(folder, capsys, monkeypatch, *flags, lines=()):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert generate.chat([*flags, "--temperature", "0"]) == 0
    return capsys.readouterr()


def test_pretrained_weights_of_the_original_continue_plain_text_and_say_so(folder, capsys, monkeypatch):
    told = asked(folder, capsys, monkeypatch, "--from_weight", "pretrain", "--prompt", "今天", "--max_new_tokens", "5")
    assert "plain text is continued" in told.err and "pretrain_64.pth" in told.err and told.out.strip()


def test_history_keeps_whole_pairs_and_zero_keeps_none(folder, capsys, monkeypatch):
    flags = ("--from_weight", "full_sft", "--max_new_tokens", "8")
    lines = ["今天", "hello", "今天"]

    def answers(history):
        return asked(folder, capsys, monkeypatch, *flags, "--history", history, lines=lines).out.splitlines()

    forgetful, odd, keeping = answers("0"), answers("1"), answers("6")
    assert forgetful == odd and forgetful[0] == forgetful[2] == keeping[0] and keeping[2] != keeping[0]


def test_thoughts_go_to_stderr_and_the_answer_to_stdout(folder, capsys, monkeypatch):
    told = asked(
        folder, capsys, monkeypatch, "--from_weight", "full_sft", "--think", "--prompt", "a", "--max_new_tokens", "5"
    )
    assert "[thinks] " in told.err and "raise --max_new_tokens" in told.err and told.out == "\n"


@pytest.mark.parametrize("use", ["chat", "eval"])
@pytest.mark.parametrize(
    "flags",
    [
        "--top_p -1",
        "--top_p 1.5",
        "--temperature nan",
        "--temperature -1",
        "--temperature inf",
        "--max_new_tokens -5",
        "--max_new_tokens 0",
        "--seed -1",
        "--seed 99999999999999999999",
        "--device foo",
        "--device cuda:99",
        "--device cpu:x",
    ],
)
def test_options_that_cannot_be_are_usage_with_a_remedy(folder, monkeypatch, use, flags):
    monkeypatch.chdir(folder)
    call = {"chat": generate.chat, "eval": evaluate.evaluate}[use]
    more = {"chat": ["--prompt", "a"], "eval": ["--prompts", "p.txt"]}[use]
    with pytest.raises(UsageError, match="is not possible") as refused:
        call(["--from_weight", "full_sft", *more, *flags.split()])
    assert refused.value.remedy.startswith(("give --", "leave --"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--history", "-1"], "--history -1"),
        (["--raw", "--prompt", ""], "it is empty"),
        (["--raw", "--think", "--prompt", "a"], "cannot be told to think"),
        (["--prompt", "\udcff"], "not UTF-8"),
        (["--prompt", "a" * 200_000], "too long"),
    ],
)
def test_what_chat_alone_cannot_do_is_told_without_a_traceback(folder, monkeypatch, flags, told):
    monkeypatch.chdir(folder)
    with pytest.raises(RunError, match=told):
        generate.chat(["--from_weight", "full_sft", *flags])


def test_a_sheet_is_answered_together_as_each_prompt_alone(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    prompts = ["今天", "hello world the cat sat on a mat", "学习"]
    pages = []
    for name, lines in (("all", prompts), *((str(n), [prompt]) for n, prompt in enumerate(prompts))):
        (folder / f"{name}.txt").write_text("\n".join(lines))
        flags = ["--from_weight", "full_sft", "--prompts", f"{name}.txt", "--sheet", f"{name}.md"]
        assert evaluate.evaluate([*flags, "--temperature", "0.9", "--max_new_tokens", "12"]) == 0
        pages.append((folder / f"{name}.md").read_text().partition("\n")[2])
    assert pages[0] == "".join(pages[1:])


def test_a_reader_that_has_enough_ends_it_quietly(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "minimind", "chat", "--from_weight", "full_sft", "--prompt", "a", "--temperature", "0"],
        cwd=folder,
        env=corpus.environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    told = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(90) == 0 and "Traceback" not in told and "Error" not in told
