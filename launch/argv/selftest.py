"""Commands that let a host compute and write for a moment, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Sequence

from launch.argv import docker

LIMIT_S = 240

IN_A_FOLDER = r"""
umask 077
folder=$1 limit=$2
shift 2
root=${folder%/*} made=
[ -d "$root" ] || { mkdir -p "$root" && made=1; } || exit 74
mkdir "$folder" || exit 74
clean() { rm -rf "${folder:?}"; if [ -n "$made" ]; then rmdir "$root" 2>/dev/null; fi; }
trap clean EXIT
trap 'exit 1' HUP INT TERM
tar -xf - -C "$folder" || exit 74
cd "$folder" || exit 74
bounded() { if command -v timeout >/dev/null 2>&1; then timeout -k 10 "$limit" "$@"; else "$@"; fi; }
PYTHONPATH=$folder PYTHONSAFEPATH=1 bounded sh -c '"$@"; exit $?' sh "$@" </dev/null
"""
"""Unpacks stdin into a new folder, runs a command there, and removes the folder however that ends."""


def in_a_folder(argv: Sequence[str], *, folder: str) -> list[str]:
    """Run a command with the code that is unpacked from stdin, in a folder that goes afterwards."""
    return ["sh", "-c", IN_A_FOLDER, "sh", folder, str(LIMIT_S), *argv]


def disk(python: str) -> list[str]:
    """The disk test, in the working directory."""
    return [python, "-m", "minimind.selftest", "disk", "."]


def allreduce(python: str, *, ranks: int) -> list[str]:
    """The all-reduce over so many ranks of one host."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1")
    return [python, *torchrun, "--nproc-per-node", str(ranks), "-m", "minimind.selftest", "allreduce"]


def in_a_container(
    argv: Sequence[str], *, image_id: str, root: str, folder: str, uid: int, gid: int, ranks: int, gpus: bool
) -> list[str]:
    """Run a command in the image as runs are run, in a folder below the root."""
    return [
        *("docker", "run", "--rm", "--init", "--pull", "never", "--network", "none"),
        *("--user", f"{uid}:{gid}", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--shm-size", str(docker.SHM_BYTES_PER_RANK * ranks), "--env", "HOME=/tmp", "--env", "USER=minimind"),
        *(("--gpus", "all") if gpus else ()),
        *("--mount", docker.mount(root, readonly=False), "--workdir", folder),
        image_id,
        *("timeout", str(LIMIT_S), *argv),
    ]
