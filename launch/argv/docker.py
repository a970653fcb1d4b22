"""Docker command lines. Everything a container may do is decided here."""

from __future__ import annotations

from collections.abc import Sequence

RUN_LABEL = "org.minimind.run_id"
TOKEN_LABEL = "org.minimind.token"  # noqa: S105 -- marks which command made a container, it is no secret
CODE_LABEL = "org.minimind.code"
LOCK_LABEL = "org.minimind.lock"
STOP_TIMEOUT_S = 330
"""Above the supervisor's own grace period for a last save."""
KILL = r"""
docker kill --signal QUIT "$1" >/dev/null || exit 0
ticks=0
while [ "$ticks" -lt 40 ] && [ "$(docker inspect --format '{{.State.Running}}' "$1" 2>/dev/null)" = true ]; do
  ticks=$((ticks + 1))
  sleep 0.2 2>/dev/null || sleep 1
done
docker kill "$1" >/dev/null 2>&1
exit 0
"""
"""Lets the supervisor in a container end its ranks and say so; kills it all when that takes longer than 8 s."""
SHM_BYTES_PER_RANK = 1 << 30


def container_name(run_id: str, attempt: int) -> str:
    """The name is the lock: of many racers Docker lets one have it."""
    return f"minimind-{run_id}-a{attempt}"


SECRETS = "/run/minimind-secrets.json"
"""Where a container finds its secrets."""


def mount(path: str, *, readonly: bool, target: str | None = None) -> str:
    """The value of --mount that binds a path to itself or to ``target``."""
    quoted = '"{}"'.format  # the value of --mount is one line of CSV
    fields = ("type=bind", quoted(f"source={path}"), quoted(f"target={target or path}"))
    return ",".join((*fields, "readonly") if readonly else fields)


def run(
    *,
    name: str,
    image_id: str,
    run_id: str,
    token: str,
    run_dir: str,
    root: str,
    uid: int,
    gid: int,
    nproc: int,
    gpus: bool,
    networked: bool,
    readonly: Sequence[str] = (),
    nproc_override: int | None = None,
    secrets: str | None = None,
) -> list[str]:
    """Start a container in the background; ``readonly`` are files outside ``root`` that the run reads.

    ``secrets`` is a file on the host with variables for the ranks.
    """
    return [
        *("docker", "run", "--detach", "--init", "--pull", "never", "--name", name),
        *("--label", f"{RUN_LABEL}={run_id}", "--label", f"{TOKEN_LABEL}={token}"),
        *("--network", "bridge" if networked else "none"),
        *("--user", f"{uid}:{gid}", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--shm-size", str(SHM_BYTES_PER_RANK * nproc)),
        *("--log-driver", "json-file", "--log-opt", "max-size=10m", "--log-opt", "max-file=2"),
        *("--stop-timeout", str(STOP_TIMEOUT_S)),
        *("--env", "HOME=/tmp", "--env", "USER=minimind"),  # the uid need not exist inside
        *(("--gpus", "all") if gpus else ()),
        *("--mount", mount(root, readonly=False)),
        *(word for path in readonly for word in ("--mount", mount(path, readonly=True))),
        *(("--mount", mount(secrets, readonly=True, target=SECRETS)) if secrets else ()),
        image_id,
        *("--run_dir", run_dir),
        *(("--nproc", str(nproc_override)) if nproc_override else ()),
        *(("--secrets", SECRETS) if secrets else ()),
    ]


def use(
    words: Sequence[str], *, image_id: str, root: str, uid: int, gid: int, readonly: Sequence[str] = ()
) -> list[str]:
    """Run a use of the trainers to its end, without a network or GPUs, and leave no container."""
    return [
        *("docker", "run", "--rm", "--init", "--pull", "never", "--network", "none"),
        *("--user", f"{uid}:{gid}", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--env", "HOME=/tmp", "--env", "USER=minimind"),
        *("--mount", mount(root, readonly=False)),
        *(word for path in readonly for word in ("--mount", mount(path, readonly=True))),
        image_id,
        *("python", "-m", "minimind", *words),  # the entry point runs any command that it is given
    ]


def containers() -> list[str]:
    """All containers of runs, one JSON object a line."""
    return ["docker", "ps", "--all", "--no-trunc", "--filter", f"label={RUN_LABEL}", "--format", "{{json .}}"]


def remove(name: str) -> list[str]:
    """Remove a container that does not run (Docker refuses otherwise)."""
    return ["docker", "rm", name]


def kill(name: str) -> list[str]:
    """End a container at once, saving no checkpoint; its supervisor still writes how it ended."""
    return ["sh", "-c", KILL, "sh", name]


def logs(name: str, *, lines: int) -> list[str]:
    """The last lines that the container itself printed."""
    return ["docker", "logs", "--tail", str(lines), name]
