"""What one look at a host tells: a probe script, and the pure function that reads what it prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MINIMUM_PYTHON = (3, 11)
BRIEF_S = 10
NUMBER = re.compile(r"[0-9]{1,12}")

BRIEF = r"""
limit=10 label=
have() { command -v "$1" >/dev/null 2>&1; }
within() {
  if have timeout; then timeout -s KILL "$limit" "$@"; return; fi
  "$@" &
  asked=$!
  { sleep "$limit"; kill -KILL "$asked"; } >/dev/null 2>&1 &
  clock=$!
  wait "$asked"
  set -- $?
  kill "$clock" 2>/dev/null
  return "$1"
}
brief() {
  within "$@" 3>&-
  set -- "$1" $?
  [ "$2" -ne 137 ] || printf 'silent=%s\n' "${label:-${1##*/}}" >&3
  return "$2"
}
free() {
  label=df
  brief sh -c '
    while [ -n "$1" ] && [ ! -d "$1" ]; do set -- "${1%/*}"; done
    exec df -Pk "${1:-/}"
  ' sh "$1" 2>/dev/null | tail -n 1
  label=
}
exec 3>&1
""".replace("limit=10", f"limit={BRIEF_S}")
"""Shell: ``brief COMMAND …`` ends what does not answer (``df`` on a stale mount) and prints ``silent=COMMAND`` then."""

PROBE = (
    BRIEF
    + r"""
root=$1 wanted=$2
shift 2
case $root in "~") root=$HOME ;; "~/"*) root=$HOME/${root#"~/"} ;; esac
PATH=$PATH:/usr/local/bin:/opt/homebrew/bin:$HOME/miniconda3/bin:/root/miniconda3/bin:/opt/conda/bin
say() { printf '%s=%s\n' "$1" "$2"; }
say clock "$(date +%s.%N)"
say root "$root"
say home "$HOME"
say now "$(date +%s)"
say system "$(uname -s)"
say arch "$(uname -m)"
say user "$(brief id -un 2>/dev/null || id -u)"
say uid "$(id -u)"
say gid "$(id -g)"
say cpus "$(getconf _NPROCESSORS_ONLN 2>/dev/null || nproc 2>/dev/null || sysctl -n hw.ncpu)"
if [ -r /proc/sys/kernel/random/boot_id ]; then say boot_id "$(cat /proc/sys/kernel/random/boot_id)"; fi
if [ -e /.dockerenv ] || [ -e /run/.containerenv ] ||
  grep -qE 'docker|kubepods|containerd|lxc' /proc/1/cgroup 2>/dev/null ||
  grep -q '^overlay / overlay ' /proc/mounts 2>/dev/null; then say in_container 1; fi
if have rsync; then say rsync 1; fi
if [ -w /dev/shm ] && grep -q '^[^ ]* /dev/shm tmpfs ' /proc/mounts 2>/dev/null; then say memory /dev/shm; fi
if have docker; then
  say docker "$(brief docker info --format '{{json .}}' 2>/dev/null)" &
fi
if have nvidia-container-runtime-hook || have nvidia-container-toolkit; then say gpus_option 1; fi
if have nvidia-smi; then
  brief nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>/dev/null | {
    while IFS= read -r gpu; do case $gpu in *", "*MiB) say gpu "$gpu" ;; esac; done
  } &
fi
for python in ${wanted:+"$wanted"} $([ -n "$wanted" ] || echo python3 python3.13 python3.12 python3.11 python); do
  found=$(brief "$python" -c 'import sys; v = sys.version_info; print("%d.%d.%d" % v[:3], sys.executable)' 2>/dev/null)
  say python "$found"
  case $found in 3.1[1-9].* | 3.[2-9][0-9].*) break ;; esac
done
tag=${found#*.}
tag=cp${found%%.*}${tag%%.*}-$(uname -s | tr '[:upper:]' '[:lower:]')-$(uname -m)
say df "$(free "$root")" &
version='import sys; print("cp%d%d" % sys.version_info[:2])'
starts() { [ -f "$1/pyvenv.cfg" ] && [ "$(brief "$1/bin/python" -I -S -c "$version" 2>/dev/null)" = "${tag%%-*}" ]; }
sha() { if have sha256sum; then sha256sum; else shasum -a 256; fi; }
for path in "$@"; do
  case $path in *@python*) path=${path%%@python*}$tag${path#*@python} ;; esac
  case $path in "@/"*) path=$root/${path#"@/"} ;; "~/"*) path=$HOME/${path#"~/"} ;; esac
  case $path in */.complete) starts "${path%/.complete}" || path= ;; esac
  if [ -f "$path" ] && [ -r "$path" ]; then
    say path "$(wc -c <"$path" | tr -d ' ') $(sha <"$path" | cut -d' ' -f1)"
  elif [ -d "$path" ]; then say path folder; else say path none; fi
done
"""
)


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """A host as it is now. ``root`` is absolute; ``now`` is its clock, seconds since the epoch.

    ``now`` is None where its ``date`` tells no time.
    ``memory_dir`` is a folder in memory that anybody may write into.
    """

    system: str
    arch: str
    user: str
    uid: int
    gid: int
    home: str
    root: str
    now: float | None
    cpus: int
    in_container: bool
    docker_usable: bool
    docker_has_nvidia: bool
    gpus: tuple[str, ...]
    python: str | None
    python_version: tuple[int, int, int] | None
    rsync: bool
    free_bytes: int | None
    boot_id: str | None
    memory_dir: str | None = None

    def expand(self, path: str) -> str:
        """An absolute path for one that may begin with ``@/``, the root, or ``~/``, and have ``@python`` in it."""
        path = path.replace("@python", self.python_tag)
        for mark, folder in (("@/", self.root), ("~/", self.home)):
            if path.startswith(mark):
                return f"{folder.rstrip('/')}/{path.removeprefix(mark)}"
        return path

    @property
    def python_tag(self) -> str:
        """What an environment made there with its interpreter is good for: ``cp312-linux-x86_64``."""
        major, minor, _ = self.python_version or (0, 0, 0)
        return f"cp{major}{minor}-{self.system.lower()}-{self.arch}"

    @property
    def python_ready(self) -> bool:
        """Whether the trainers can run on the interpreter found."""
        return self.python_version is not None and self.python_version[:2] >= MINIMUM_PYTHON


@dataclass(frozen=True, kw_only=True)
class There:
    """Something that lies on the host: a file with its length and sha256, or a folder (both None)."""

    bytes: int | None = None
    sha256: str | None = None


def probe(root: str, python: str | None, paths: Sequence[str] = (), *, more: str = "") -> list[str]:
    """The command whose output :func:`parse` and :func:`parse_paths` read.

    ``python`` limits the search to one interpreter. A path may begin with ``@/``, the root, or ``~/``, and ``@python``
    in it stands for :attr:`HostFacts.python_tag`. ``.complete`` of an environment counts only while the interpreter
    beside it starts: a rented machine may come back without the Python that it links to. ``more`` is shell text that
    says more (``say key value``), knowing ``$root`` and ``$python``.
    """
    return ["sh", "-c", f"{PROBE}{more}wait\n", "sh", root, python or "", *paths]


def parse_paths(text: str, paths: Sequence[str]) -> dict[str, There]:
    """Which of the paths that were asked for are there, by the names they were asked under."""
    told = [line.removeprefix("path=") for line in text.splitlines() if line.startswith("path=")]
    found = {}
    for path, answer in zip(paths, told, strict=False):
        if answer == "folder":
            found[path] = There()
        elif match := re.fullmatch(r"(\d+) ([0-9a-f]{64})", answer):
            found[path] = There(bytes=int(match[1]), sha256=match[2])
    return found


def parse(text: str) -> HostFacts:
    """Read the probe's output.

    Raises:
        ValueError: when it is not the probe's (a login banner alone, a restricted shell).
    """
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            values.setdefault(key, []).append(value.strip())
    missing = [key for key in ("root", "home", "system", "uid", "gid") if not values.get(key, [""])[0]]
    missing += [
        f"number for {key}" for key in ("uid", "gid") if not re.fullmatch(r"\d{0,10}", values.get(key, [""])[0])
    ]
    if missing:
        raise ValueError(f"the probe printed no {', '.join(missing)}")

    def one(key: str, default: str = "") -> str:
        return values.get(key, [default])[0]

    engine = docker_info(one("docker"))
    python, version = _best_python(values.get("python", []))
    return HostFacts(
        system=one("system"),
        arch=one("arch"),
        user=one("user"),
        uid=int(one("uid")),
        gid=int(one("gid")),
        home=one("home"),
        root=one("root").rstrip("/") or "/",
        now=float(one("now")) if NUMBER.fullmatch(one("now")) else None,
        cpus=int(one("cpus")) if NUMBER.fullmatch(one("cpus")) else 1,
        in_container=one("in_container") == "1",
        docker_usable=str(engine.get("ServerVersion", ""))[:1].isdigit(),
        docker_has_nvidia="nvidia" in (engine.get("Runtimes") or {}) or one("gpus_option") == "1",
        gpus=tuple(gpu for gpu in values.get("gpu", []) if gpu),
        python=python,
        python_version=version,
        rsync=one("rsync") == "1",
        free_bytes=parse_free_bytes(one("df")),
        boot_id=one("boot_id") or None,
        memory_dir=one("memory") or None,
    )


def docker_info(told: str) -> dict[str, Any]:
    """What ``docker info`` printed as JSON; {} when it printed none."""
    try:
        loaded = json.loads(told)
    except ValueError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _best_python(lines: Iterable[str]) -> tuple[str | None, tuple[int, int, int] | None]:
    found = []
    for line in lines:
        if match := re.fullmatch(r"(\d+)\.(\d+)\.(\d+) (.+)", line):
            found.append((match[4], (int(match[1]), int(match[2]), int(match[3]))))
    return max(found, key=lambda item: item[1], default=(None, None))


def parse_free_bytes(df_line: str) -> int | None:
    """The free bytes that a line of ``df -Pk`` tells."""
    # "filesystem blocks used available capacity% mount": both names may hold spaces
    match = re.search(r"\s\d+\s+\d+\s+(-?\d+)\s+\S+%\s+/", df_line)
    return max(0, int(match[1])) * 1024 if match else None
