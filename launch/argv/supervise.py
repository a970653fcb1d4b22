"""Commands that start and question a run's supervisor on a host."""

from __future__ import annotations

from collections.abc import Sequence

ALIVE = r"""
if [ -r /proc/sys/kernel/random/boot_id ]; then cat /proc/sys/kernel/random/boot_id; else echo; fi
for pid in "$@"; do
  if [ -r /proc/self/stat ]; then
    stat=$(cat "/proc/$pid/stat" 2>/dev/null) || continue
    set -- ${stat##*) }
    case $1 in Z | X) continue ;; esac
    printf '%s %s\n' "$pid" "${20}"
  else
    started=$(ps -o lstart= -p "$pid") && printf '%s %s\n' "$pid" "$started"
  fi
done
"""
"""Prints the boot id, then "pid start-time" of each process in its arguments that lives; zombies are dead."""

KILL = r"""
top=$1
if [ -r /proc/self/stat ]; then
  started() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 !~ /[ZX]/ { print $20 }'; }
  pairs() { cat /proc/[0-9]*/stat 2>/dev/null | sed 's/ (.*) / /' | cut -d' ' -f1,3; }
else
  started() { ps -o lstart= -p "$1"; }
  pairs() { ps -A -o pid= -o ppid=; }
fi
[ "$(started "$top")" = "$2" ] || exit 0
family=$(pairs | awk -v top="$top" '
  { parent[$1] = $2 }
  END {
    found[top] = 1
    do {
      more = 0
      for (p in parent) if (!(p in found) && (parent[p] in found)) { found[p] = 1; more = 1 }
    } while (more)
    for (p in found) print p
  }')
known=$(for p in $family; do printf '%s=%s\n' "$p" "$(started "$p")"; done)
kill -QUIT "$top"
ticks=0
while [ "$ticks" -lt 40 ] && [ "$(started "$top")" = "$2" ]; do
  ticks=$((ticks + 1))
  sleep 0.2 2>/dev/null || sleep 1
done
for p in $family; do
  now=$(started "$p")
  [ -n "$now" ] && printf '%s\n' "$known" | grep -Fqx "$p=$now" && kill -KILL "$p"
done
exit 0
"""
"""Lets a process, recognised by its start time, end what is below it and say so; kills what is left after 8 s."""

AFTER_SPEC = r"""
umask 077
mkdir -p "$1" && made=$(mktemp "$1/.tmp-XXXXXX") || exit 74
cat >"$made" && [ "$(wc -c <"$made")" -eq "$2" ] && chmod 0444 "$made" || exit 74
sync "$made" 2>/dev/null || sync
mv -f "$made" "$1/spec.json" || exit 74
sync "$1" 2>/dev/null || :
shift 2
exec "$@" </dev/null
"""
"""Gives spec.json the bytes of stdin, all at once, and only if they came whole; then runs the command."""


def start(*, python: str, pythonpath: str, run_dir: str, nproc: int | None, secrets: str | None = None) -> list[str]:
    """Leave a supervisor running; ``nproc`` overrides the number in spec.json. It prints handle.json.

    ``secrets`` is the path of a file with variables for the ranks.
    """
    return [
        *("env", "PYTHONSAFEPATH=1", f"PYTHONPATH={pythonpath}"),  # the login folder must not shadow the code
        *(python, "-m", "minimind.supervise", "--run_dir", run_dir, "--detach"),
        *(("--nproc", str(nproc)) if nproc else ()),
        *(("--secrets", secrets) if secrets else ()),
    ]


def use(words: Sequence[str], *, python: str, pythonpath: str) -> list[str]:
    """Run a use of the trainers to its end; it leaves no compiled files."""
    safe = ("env", "PYTHONSAFEPATH=1", "PYTHONDONTWRITEBYTECODE=1", f"PYTHONPATH={pythonpath}")
    return [*safe, python, "-m", "minimind", *words]


def after_spec(argv: Sequence[str], *, run_dir: str, length_bytes: int) -> list[str]:
    """The command with spec.json, of that many bytes on stdin, published in the run directory before it."""
    return ["sh", "-c", AFTER_SPEC, "sh", run_dir, str(length_bytes), *argv]


def alive(pids: Sequence[int]) -> list[str]:
    """Ask which processes live."""
    return ["sh", "-c", ALIVE, "sh", *map(str, pids)]


def kill(*, pid: int, start_time: str) -> list[str]:
    """End a supervisor and all of its descendants at once, saving no checkpoint; it still writes how it ended."""
    return ["sh", "-c", KILL, "sh", str(pid), start_time]
