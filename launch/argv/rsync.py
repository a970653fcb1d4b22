"""rsync as a faster pipe: one remote file onto one local part file, going on where that ends."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def append(*, ssh: Sequence[str], destination: str, remote: str, part: str, pack: bool = False) -> list[str]:
    """Append what ``part`` lacks of ``remote``, packed by zstd on the way with ``pack``.

    Checks nothing: the caller hashes the whole part.

    ``--progress`` is there so that a launcher that was killed takes rsync with it: its next word meets a closed pipe.
    """
    return [
        "rsync",
        "--append",
        "--secluded-args",
        "--progress",
        "--timeout=60",
        *(("--compress", "--compress-choice=zstd", "--compress-level=1") if pack else ()),
        "--rsh",
        shlex.join(ssh),
        f"[{destination}]:{remote}" if ":" in destination else f"{destination}:{remote}",
        part,
    ]
