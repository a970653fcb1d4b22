#!/usr/bin/env python3
"""Make a virtual environment from a lock, or collect the lock's wheels in a folder. Standard library only.

    python3 envs/install.py --venv .venv [--dev] [--editable .]
    python3 install.py --venv DIR --lock cpu.lock [--pip-wheel PATH] [--wheels DIR --offline]
    python3 install.py --download DIR --lock cpu.lock

One file, because the launcher sends it to hosts as it stands.

Everything is checked against the lock's sha256, with one exception that is said aloud: a CPU build of torch for a
Python whose hash the lock could not know (docs/decisions/0005 says which) comes by exact version from PyTorch's own
index. That index is asked for torch alone, and no other index is asked in that call, so neither can stand in for the
other.

A new environment is made aside, in ``.making-DIR.*`` of the same folder, and gets its name by one rename when nothing
is missing: whoever sees ``DIR`` sees a whole one. Scripts in it name ``DIR`` already. An older one serves until then.
``DIR/.complete`` names the locks: with others the environment is made anew; with these, a second call returns at once.
It is believed only while the interpreter of ``DIR`` starts: the Python that it links to may have gone.
``DIR.lock`` keeps two calls apart; what a killed call left aside is removed by the next one.

Exit codes: 0 ready, 2 usage, 5 this machine or its network cannot, 28 a disk is full (ENOSPC), 130 interrupted.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (said before anything that an older Python cannot read)
    sys.stderr.write("Python " + sys.version.split()[0] + " is too old\n  why: 3.11 is the oldest that is supported\n")
    sys.stderr.write("  remedy: run this with python3.11 or newer, e.g. `make PYTHON=python3.12 demo`\n")
    sys.exit(5)

import argparse
import ast
import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYPI = "https://pypi.org/simple"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_TIMEOUT_S = 10.0
SIGN_OF_LIFE_S = 15.0
ALWAYS = ("--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--timeout", "20", "--retries", "2")
NAMED_HASH = re.compile(r"^# (torch-\S+\.whl) sha256:([0-9a-f]{64})$", re.MULTILINE)
WHEEL = re.compile(r"torch-(?P<version>[^-]+)-cp(?P<python>\d+)-cp\d+-(?P<platform>.+)\.whl")
TORCH_ENTRY = re.compile(r"(^# torch-\S+\.whl sha256:.*\n)*^torch==(?P<version>[^ \\]+).*\n(?:    .*\n)*", re.MULTILINE)
INSTALL = ("install", "--no-compile")  # compiling everything takes longer than compiling what is ever imported
IMPORTED = (
    *("click", "docker", "fabric", "jinja2", "numpy", "paramiko", "rich", "tokenizers", "torch", "torch._dynamo"),
    *("torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.run", "torch.nn.parallel"),
    *("minimind.__main__", "minimind.loop", "launch.cli"),
)
FULL = (errno.ENOSPC, errno.EDQUOT)
EXIT_FULL = 28
SAYS_FULL = re.compile(rf"\[Errno (?:{'|'.join(map(str, FULL))})\]")
BRING_PIP = "Debian and Ubuntu: apt install python3-venv; elsewhere bring a wheel of pip with --pip-wheel"
KEPT_IN_ISOLATION = (
    "PIP_CERT",
    "PIP_CLIENT_CERT",
    "PIP_PROXY",
    "PIP_TRUSTED_HOST",
    "PIP_CACHE_DIR",
    "PIP_NO_CACHE_DIR",
)
MISLEADING = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_NO_BINARY", "PYTHONPATH", "PYTHONHOME")


class CannotInstall(Exception):
    """Something that this machine or its network lacks: one paragraph, exit 5."""

    def __init__(self, what: str, *, why: str, remedy: str, log: Sequence[str] = ()) -> None:
        super().__init__(f"{what}\n  why: {why}\n  remedy: {remedy}")
        self.why, self.log = why, log


class DiskFull(Exception):
    """No space left, in the words of whoever met it first: no other source of packages can help."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What wheels must fit: ``Linux``/``Darwin``, ``x86_64``/``arm64``/..., and ``311`` for Python 3.11."""

    system: str
    machine: str
    python: str

    def fits(self, wheel: str) -> bool:
        """Whether a torch wheel's tags name this target; the C library's version is pip's to judge."""
        found = WHEEL.fullmatch(wheel)
        family = {"Linux": "manylinux", "Darwin": "macosx"}.get(self.system, "?")
        return bool(
            found
            and found["python"] == self.python
            and found["platform"].startswith(family)
            and found["platform"].endswith(self.machine)
        )


@dataclass(frozen=True, kw_only=True)
class Lock:
    """A lock split in two: torch, of which there are several builds of one version, and everything else."""

    torch_version: str
    torch_wheels: Mapping[str, str]  # file name -> sha256
    rest: str

    @classmethod
    def parse(cls, text: str) -> Lock:
        """Split a lock's text.

        Raises:
            CannotInstall: when it has no torch entry.
        """
        entry = TORCH_ENTRY.search(text)
        if entry is None:
            raise CannotInstall(
                "the lock names no torch", why="it is cut or edited", remedy="regenerate it: `make lock`"
            )
        return cls(
            torch_version=entry["version"],
            torch_wheels=dict(NAMED_HASH.findall(text)),
            rest=text[: entry.start()] + text[entry.end() :],
        )


@dataclass(frozen=True, kw_only=True)
class Source:
    """One way to get torch: what is asked for, and whether only PyTorch's index is asked."""

    requirement: str
    pytorch_index: bool
    told: str


@dataclass(frozen=True, kw_only=True)
class PipConfig:
    """Where pip is told to look."""

    index_url: str = PYPI
    others: tuple[str, ...] = ()
    no_index: bool = False
    cert: str | None = None
    proxy: str | None = None

    @classmethod
    def parse(cls, listing: str) -> PipConfig:
        """Read the output of ``pip config list``: ``section.key='value'``, several values on several lines of one."""
        values: dict[str, str] = {}
        others: list[str] = []
        for line in listing.splitlines():
            key, _, value = line.partition("=")
            with contextlib.suppress(ValueError, SyntaxError):
                values[key.rpartition(".")[2]] = text = str(ast.literal_eval(value))
                if key.endswith((".extra-index-url", ".find-links")):
                    others += text.split()
        return cls(
            index_url=values.get("index-url", PYPI),
            others=tuple(dict.fromkeys(others)),
            no_index=values.get("no-index", "").lower() in ("1", "true", "yes", "on"),
            cert=values.get("cert"),
            proxy=values.get("proxy"),
        )


def torch_sources(lock: Lock, target: Target, *, configured: bool, offline: bool) -> list[Source]:
    """The ways to get torch on this target, best first.

    Args:
        lock: what is wanted.
        target: the machine and its Python.
        configured: whether pip is told to look anywhere but on PyPI (find-links, another index, ``--wheels``).
        offline: whether no index may be asked.

    Raises:
        CannotInstall: when torch has no build for the target.
    """
    mine = {name: digest for name, digest in lock.torch_wheels.items() if target.fits(name)}
    has_cpu_builds = any("+cpu" in name for name in lock.torch_wheels)
    plain = [digest for name, digest in mine.items() if "+cpu" not in name]
    if plain:
        return [Source(requirement=_pinned(lock.torch_version, plain), pytorch_index=False, told="by hash")]
    python = f"Python {target.python[0]}.{target.python[1:]}"
    if target.system != "Linux" or not has_cpu_builds:
        raise CannotInstall(
            f"torch {lock.torch_version} has no build for {target.system} on {target.machine} with {python}",
            why="the lock names " + (", ".join(sorted(lock.torch_wheels)) or "no wheel at all"),
            remedy="use Python 3.11 to 3.13 on Linux, or on a Mac with an Apple processor (macOS 14 or newer)",
        )
    requirement = _pinned(f"{lock.torch_version}+cpu", mine.values())
    told = (
        "by hash" if mine else f"by exact version: the lock has no hash of the CPU build for {python}, {target.machine}"
    )
    local = Source(requirement=requirement, pytorch_index=False, told=told)
    remote = Source(requirement=requirement, pytorch_index=True, told=told)
    if offline:
        return [local]
    return [local, remote] if configured else [remote]


def _pinned(version: str, digests: Iterable[str]) -> str:
    return f"torch=={version}" + "".join(f" --hash=sha256:{digest}" for digest in digests)


def pip_environ(environ: Mapping[str, str], config: PipConfig, *, pytorch_index: bool) -> dict[str, str]:
    """The environment for pip. For PyTorch's index nothing of the user's pip survives but how to reach the network."""
    if not pytorch_index:
        return {key: value for key, value in environ.items() if key not in MISLEADING} | {"PIP_NO_INPUT": "1"}
    kept = {k: v for k, v in environ.items() if k in KEPT_IN_ISOLATION or not k.startswith(("PIP_", "PYTHON"))}
    told = {"PIP_CERT": config.cert, "PIP_PROXY": config.proxy}
    return {k: v for k, v in told.items() if v} | kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INPUT": "1"}


def probe(url: str, *, timeout_s: float, cert: str | None) -> str | None:
    """Why nobody answers at a URL, or None when somebody does; what they answer is pip's to judge."""
    said: list[str | None] = []

    def ask() -> None:
        try:
            trusted = ssl.create_default_context(cafile=cert if cert and Path(cert).is_file() else None)
            urllib.request.urlopen(url, timeout=timeout_s, context=trusted).close()  # noqa: S310
            said.append(None)
        except urllib.error.HTTPError:
            said.append(None)
        except OSError as error:
            reason = getattr(error, "reason", error)
            said.append(None if isinstance(reason, ssl.SSLError) else str(reason))

    thread = threading.Thread(target=ask, daemon=True)  # a name with many dead addresses takes many timeouts
    thread.start()
    thread.join(timeout_s)
    return said[0] if said else f"no answer within {timeout_s:g} s"


class Steps:
    """Says each step on one line: its name at its start, its time at its end, a sign of life in between."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Around one step."""
        start_s = time.monotonic()
        self._write(f"[{start_s - self._began_s:5.1f} s] {name} ")
        try:
            yield
        except BaseException:
            self._write("- failed\n")
            raise
        self._write(f"- {time.monotonic() - start_s:.1f} s\n")

    def say(self, text: str) -> None:
        """One line."""
        self._write(f"[{time.monotonic() - self._began_s:5.1f} s] {text}\n")

    def alive(self, elapsed_s: float) -> None:
        """A sign of life within a line."""
        self._write(f"... {elapsed_s:.0f} s ")

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


@dataclass(frozen=True, kw_only=True)
class Pip:
    """One pip and the options that every call of it gets."""

    command: tuple[str, ...]
    config: PipConfig
    wheels: str | None
    offline: bool
    steps: Steps
    pytorch_index: str = PYTORCH_CPU_INDEX

    def run(self, name: str, arguments: Sequence[str], *, pytorch_index: bool = False) -> None:
        """Run pip as one step.

        Raises:
            CannotInstall: with the end of what pip said.
        """
        environ = pip_environ(os.environ, self.config, pytorch_index=pytorch_index)
        with self.steps.step(name), tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                [*self.command, *arguments], env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            start_s = time.monotonic()
            try:
                while (code := _wait(process, SIGN_OF_LIFE_S)) is None:
                    self.steps.alive(time.monotonic() - start_s)
            except BaseException:
                process.terminate()
                process.wait()
                raise
            if code:
                log.seek(0)
                lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
                errors = [line for line in lines if re.search(r"^ERROR: (?!Resol)|\w+Error: ", line)] or lines
                _raise_if_full(lines)
                raise CannotInstall(
                    f"{name}: pip failed with exit code {code}",
                    why=errors[-1].strip().removeprefix("ERROR: ") if errors else "it said nothing",
                    remedy="mend what pip says and run the same again; `--wheels DIR --offline` needs no index at all",
                    log=lines[-15:],
                )

    @property
    def looks_elsewhere(self) -> bool:
        """Whether pip is told to look anywhere but on PyPI."""
        return bool(self.wheels or self.config.others or self.config.index_url.rstrip("/") != PYPI)

    def hashed(self, name: str, verb: Sequence[str], files: Sequence[Path]) -> None:
        """Install or download requirement files in which every entry has hashes."""
        requirements = [word for path in files for word in ("-r", str(path))]
        self.run(name, [*verb, *ALWAYS, *self._sources(), "--require-hashes", *requirements])

    def _sources(self) -> list[str]:
        return [*(["--find-links", self.wheels] if self.wheels else []), *(["--no-index"] if self.offline else [])]

    def torch(self, verb: Sequence[str], lock: Lock, target: Target) -> None:
        """Install or download torch by the first way that works.

        Raises:
            CannotInstall: when none does, with what each said.
        """
        failures: list[str] = []
        for source in torch_sources(lock, target, configured=self.looks_elsewhere, offline=self.offline):
            where = self.pytorch_index if source.pytorch_index else "where pip is told to look"
            name = f"{source.requirement.split()[0].replace('==', ' ')} from {where}, {source.told}"
            sources = ["--index-url", where] if source.pytorch_index else self._sources()
            try:
                if source.pytorch_index:
                    self.answers(where)
                with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
                    wanted.write(source.requirement + "\n")
                    wanted.flush()
                    arguments = [*verb, *ALWAYS, *sources, "-r", wanted.name]
                    return self.run(name, arguments, pytorch_index=source.pytorch_index)
            except CannotInstall as failure:
                failures.append(f"{where}: {failure.why}")
        version, python = lock.torch_version, target.python
        raise CannotInstall(
            f"torch {version} could not be had for Python {python[0]}.{python[1:]}",
            why="; ".join(failures),
            remedy=f"let this machine reach {self.pytorch_index}, or set PIP_FIND_LINKS to a folder or a mirror's page "
            f"that has torch-{version}+cpu-cp{python}-cp{python}-*.whl, then run the same again",
        )

    def answers(self, url: str) -> None:
        """Ask an index whether it is there.

        Raises:
            CannotInstall: when nobody answers in time.
        """
        if self.offline or not url.startswith("http") or self.config.proxy or os.environ.get("PIP_PROXY"):
            return
        why = probe(f"{url.rstrip('/')}/torch/", timeout_s=PROBE_TIMEOUT_S, cert=self.config.cert)
        self.steps.say(f"{url}: {'answers' if why is None else f'does not answer ({why})'}")
        if why is not None:
            raise CannotInstall(
                f"the package index {url} does not answer",
                why=why,
                remedy="check the network or set HTTPS_PROXY; `--wheels DIR --offline` installs without any index",
            )


def _raise_if_full(lines: Iterable[str]) -> None:
    """Raise DiskFull when a program that failed said the number of that error."""
    if said := [line for line in lines if SAYS_FULL.search(line)]:
        raise DiskFull(said[-1].strip().removeprefix("ERROR: "))


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a call asks for, as the marker of a finished environment or wheelhouse records it."""

    locks: Mapping[str, str]  # file name -> sha256
    python: str
    editable: str | None = None

    def lacking(self, marker: Path) -> set[str] | None:
        """Names of locks (and "editable") that a finished folder lacks; None when it must be made anew."""
        try:
            has = json.loads(marker.read_text())
            locks, python, editable = has["locks"], has["python"], has["editable"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        changed = any(locks.get(name, digest) != digest for name, digest in self.locks.items())
        if changed or python != self.python or next(iter(self.locks)) not in locks:
            return None
        return {*self.locks} - {*locks} | ({"editable"} if self.editable not in (None, editable) else set())

    def record(self, marker: Path) -> None:
        """Write the marker, keeping what earlier calls have put in."""
        earlier = json.loads(marker.read_text()) if marker.exists() else {"locks": {}, "editable": None}
        locks, editable = earlier["locks"] | self.locks, self.editable or earlier["editable"]
        _publish(marker, {"python": self.python, "locks": locks, "editable": editable})


def _publish(path: Path, value: object) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(value, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def alone(folder: Path, steps: Steps) -> Iterator[None]:
    """Keep two calls for one folder apart; the second waits and says so."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with steps.step(f"another call is making {folder.name}, waiting for it"):
                fcntl.flock(held, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A folder to make the new one in; when the block ends well it takes the place of ``folder``, else it vanishes.

    The caller holds ``folder``'s lock, so whatever lies aside was left by a killed call. Its pip may live on and write
    there: hence a new name for every call.
    """
    ours = any((folder / name).exists() for name in ("pyvenv.cfg", ".complete"))
    if os.path.lexists(folder) and not ours and not _is_empty(folder):
        raise CannotInstall(
            f"{folder} is there and is no virtual environment",
            why="it is not empty and has neither pyvenv.cfg nor .complete",
            remedy="name another folder with --venv, or move this one away",
        )
    making = folder.parent.absolute() / f".making-{folder.name}.{secrets.token_hex(4)}"
    old = Path(f"{making}.old")
    for left in folder.parent.glob(f".making-{glob.escape(folder.name)}.????????*"):
        if left.suffix == ".old" and not os.path.lexists(folder):  # killed between two renames: it still serves
            left.replace(folder)
        shutil.rmtree(left, ignore_errors=True)
    making.mkdir()
    try:
        yield making
        _relocate(making, folder.absolute())
        os.sync()  # tens of thousands of files: their names must not be on the disk before their bytes are
        if os.path.lexists(folder):
            folder.replace(old)
        try:
            making.replace(folder)
        except BaseException:
            if os.path.lexists(old):
                old.replace(folder)
            raise
    finally:
        for left in (making, old):
            shutil.rmtree(left, ignore_errors=True)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _relocate(made: Path, final: Path) -> None:
    """Let scripts, and the names inside them, speak of the path that the environment will have.

    Only ``bin/`` and ``pyvenv.cfg`` hold the path: interpreters are found through pyvenv.cfg, modules from there.
    """
    old, new = os.fsencode(made), os.fsencode(final)
    for path in [*(made / "bin").iterdir(), made / "pyvenv.cfg"]:
        if path.is_file() and not path.is_symlink() and old in (text := path.read_bytes()) and b"\0" not in text:
            path.write_bytes(text.replace(old, new))  # in place: the mode stays


def make_venv(venv: Path, options: argparse.Namespace, steps: Steps) -> None:
    """Make or complete an environment."""
    editable = options.editable.resolve() if options.editable else None
    on_top = [*([HERE / "dev.lock"] if options.dev else []), *([HERE / "build.lock"] if editable else [])]
    wanted = Wanted(
        locks={path.name: _sha256(path) for path in (options.lock, *on_top)},
        python=f"{sys.version_info[0]}.{sys.version_info[1]}",
        editable=f"{editable} {_sha256(editable / 'pyproject.toml')}" if editable else None,
    )
    marker = venv / ".complete"
    lacking = wanted.lacking(marker) if _starts(venv, wanted.python) else None
    if lacking == set():
        return steps.say(f"{venv} is up to date")
    with aside(venv) if lacking is None else contextlib.nullcontext(venv) as place:
        if lacking is None:
            _bare_venv(place, venv.name, options, steps)
            lacking = {*wanted.locks, "editable"}
        pip = make_pip([str(place / "bin" / "python")], options, steps)
        pip.answers(pip.config.index_url)
        with tempfile.TemporaryDirectory() as folder:
            files = [path for path in on_top if path.name in lacking]
            if options.lock.name in lacking:
                lock, rest = Lock.parse(options.lock.read_text()), Path(folder) / "rest.txt"
                rest.write_text(lock.rest)
                pip.torch(INSTALL, lock, this_target())
                files.insert(0, rest)
            if files:
                pip.hashed(f"{', '.join(sorted(lacking & {*wanted.locks}))}, by hash", INSTALL, files)
        if editable and "editable" in lacking:
            arguments = ["--no-deps", "--no-index", "--no-build-isolation", "--editable", str(editable)]
            pip.run(f"{editable.name} itself, editable", ["install", *arguments])
        pip.run("nothing is missing and nothing disagrees", ["check"])
        with steps.step("bytecode of what is imported"):
            _compile(place / "bin" / "python")
        wanted.record(place / marker.name)


def _starts(venv: Path, version: str) -> bool:
    """Whether its interpreter runs, is still of this version, and knows that it belongs to an environment."""
    command = [venv / "bin" / "python", "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
    except OSError:
        return False
    return told.strip() == version and (venv / "pyvenv.cfg").is_file()


def _compile(python: Path) -> None:
    """Import once what is imported always, with bytecode kept: container images often forbid Python to keep it.

    Nothing depends on it, so an environment of fewer packages, or a disk that just became full, is no error here.
    """
    script = (
        "import contextlib, importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    with contextlib.suppress(Exception):\n"
        "        importlib.import_module(name)\n"
    )
    forbidding = {"PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", *MISLEADING}
    environ = {name: value for name, value in os.environ.items() if name not in forbidding}
    subprocess.run([python, "-c", script, *IMPORTED], env=environ, stdin=subprocess.DEVNULL, capture_output=True)


def _bare_venv(venv: Path, name: str, options: argparse.Namespace, steps: Steps) -> None:
    without = ["--without-pip"] if options.pip_wheel else []
    command = [sys.executable, "-m", "venv", "--prompt", name, *without, str(venv)]
    with steps.step(f"virtual environment, Python {platform.python_version()}"):
        made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if made.returncode:
            said = (made.stdout + made.stderr).strip().splitlines() or ["it said nothing"]
            _raise_if_full(said)
            raise CannotInstall(
                f"{sys.executable} cannot make a virtual environment",
                why=said[0],
                remedy=BRING_PIP,
            )


def download(folder: Path, options: argparse.Namespace, steps: Steps) -> None:
    """Collect the wheels of a lock for this Python, and ``requirements.txt`` with the sha256 of each."""
    wanted = Wanted(locks={options.lock.name: _sha256(options.lock)}, python=this_target().python)
    marker, lock = folder / ".complete", Lock.parse(options.lock.read_text())
    if wanted.lacking(marker) == set():
        return steps.say(f"{folder} is up to date")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = make_pip([sys.executable], options, steps)
    pip.answers(pip.config.index_url)
    rest = folder / "requirements.txt"
    rest.write_text(lock.rest)
    verb = ["download", "--dest", str(folder)]
    pip.torch(verb, lock, this_target())
    pip.hashed(f"everything else of {options.lock.name}, by hash", verb, [rest])
    torch = next(folder.glob("torch-*.whl"))
    rest.write_text(f"{lock.rest}torch=={torch.name.split('-')[1]} --hash=sha256:{_sha256(torch)}\n")
    wanted.record(marker)


def make_pip(python: list[str], options: argparse.Namespace, steps: Steps) -> Pip:
    """The pip to use, with what its configuration says."""
    command = [*python, "-I", *([f"{options.pip_wheel}/pip"] if options.pip_wheel else ["-m", "pip"])]
    listed = subprocess.run([*command, "config", "list"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if listed.returncode:
        raise CannotInstall(
            "pip does not run", why=(listed.stderr.strip().splitlines() or ["it said nothing"])[-1], remedy=BRING_PIP
        )
    config = PipConfig.parse(listed.stdout)
    return Pip(
        command=tuple(command),
        config=config,
        wheels=options.wheels,
        offline=options.offline or config.no_index,
        steps=steps,
        pytorch_index=options.pytorch_index,
    )


def this_target() -> Target:
    """What wheels must fit here: the machine and the running Python."""
    return Target(
        system=platform.system(), machine=platform.machine(), python=f"{sys.version_info[0]}{sys.version_info[1]}"
    )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CannotInstall(
            f"{path} cannot be read", why=str(error.strerror), remedy="name the lock with --lock"
        ) from error


def _full(folder: Path, said: str) -> int:
    free = []
    for place in (str(folder.absolute().parent), os.environ.get("TMPDIR", "/tmp")):  # noqa: S108 (only looked at)
        with contextlib.suppress(OSError):
            free.append(f"{shutil.disk_usage(place).free / 1e9:.2f} GB in {place}")
    sys.stderr.write(
        f"no space was left for {folder}\n  why: {said}; free again: {', '.join(free)}\n"
        "  remedy: free space there, or name a larger disk with --venv (and TMPDIR), and run the same again\n"
    )
    return EXIT_FULL


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make a virtual environment from a lock, or collect its wheels.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--venv", type=Path, metavar="DIR", help="the environment to make")
    what.add_argument("--download", type=Path, metavar="DIR", help="collect the lock's wheels here instead")
    parser.add_argument(
        "--lock", type=Path, default=HERE / "cpu.lock", help="the runtime (default: cpu.lock beside this)"
    )
    parser.add_argument("--dev", action="store_true", help="dev.lock on top")
    parser.add_argument("--editable", type=Path, metavar="REPOSITORY", help="the project itself, editable")
    parser.add_argument("--pip-wheel", type=Path, metavar="WHEEL", help="run pip from this wheel; none is put in")
    parser.add_argument("--wheels", metavar="DIR", help="a folder (or page) of wheels to look in first")
    parser.add_argument("--offline", action="store_true", help="ask no index at all")
    parser.add_argument("--pytorch-index", default=PYTORCH_CPU_INDEX, metavar="URL", help="default: %(default)s")
    options = parser.parse_args()
    steps = Steps()
    folder = options.venv or options.download
    try:
        with alone(folder, steps):
            (make_venv if options.venv else download)(folder, options, steps)
    except CannotInstall as error:
        sys.stderr.write("".join(f"  | {line}\n" for line in error.log) + f"{error}\n")
        return 5
    except DiskFull as error:
        return _full(folder, str(error))
    except OSError as error:
        if error.errno in FULL:
            return _full(folder, str(error))
        sys.stderr.write(f"{folder} could not be made\n  why: {error}\n  remedy: check the disk and its permissions\n")
        return 5
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; nothing half-made was left\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
