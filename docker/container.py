"""Containers of a base: what is done in one, taken out and asked. Nothing that a base starts by itself runs."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

import layers
from engine import CannotBuild, words

ALONE = ("--network", "none", "--user", "0:0", "--entrypoint", "sh")
"""A base's own entry point would print into what is read, and its user could not write."""
LIST_PACKAGES = (
    "command -v dpkg-query >/dev/null || exit 0; "
    r"exec dpkg-query --show --showformat '${Package}\t${Version}\t${Architecture}\n'"
)


def installed(
    client: str, base: str, what: str, *, wheels: Path, paths: Sequence[str], script: Path, target: Path
) -> layers.Layer:
    """Run the install script in a container of the base and take the paths out of it as a layer.

    Raises:
        subprocess.CalledProcessError: when a step fails; its output went to the terminal.
    """
    mounted = ["--volume", f"{wheels}:/wheels:ro", "--volume", f"{script}:/install.sh:ro"]
    command = [client, "create", *ALONE, *mounted, base, "/install.sh", what]
    container = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    try:
        subprocess.run([client, "start", "--attach", container], check=True)
        with contextlib.closing(_copies(client, container, paths)) as copies:
            return layers.write(target, copies)
    finally:
        subprocess.run([client, "rm", "--force", "--volumes", container], check=False, stdout=subprocess.DEVNULL)


def _copies(client: str, container: str, paths: Sequence[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """One after the other: an engine gives out one at a time, and a second waits for a first that nobody reads."""
    for path in paths:
        with subprocess.Popen([client, "cp", f"{container}:{path}", "-"], stdout=subprocess.PIPE) as process:
            try:
                yield str(PurePosixPath(path).parent), process.stdout
            except BaseException:
                process.kill()
                raise
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, process.args)


def packages(client: str, base: str) -> str:
    """Debian's packages in the base, a line each with tabs between name, version and architecture; "" without dpkg.

    Raises:
        CannotBuild: when the base cannot be asked.
    """
    done = subprocess.run([client, "run", "--rm", *ALONE, base, "-c", LIST_PACKAGES], capture_output=True)
    if done.returncode:
        raise CannotBuild(
            f"the base {base} does not tell its packages",
            why=words(done.stderr, done.returncode),
            remedy="mend what it says and run the same again, or name another base with BASE_IMAGE",
        )
    return done.stdout.decode()
