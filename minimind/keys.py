"""Secrets on the host: read once from a file that then goes, kept in memory, given to torchrun. Stdlib only."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from minimind.process import leave_no_core
from minimind.rundir import RunError


def receive(path: Path | None) -> dict[str, str]:
    """Names and values from a file that was handed over, which is removed where that is possible; {} for None.

    From here on a crash of this process, or of one that it starts, leaves no memory on disk.

    Raises:
        RunError: when there is no such file, or it is not one JSON object of texts.
    """
    if path is None:
        return {}
    leave_no_core()
    try:
        loaded = json.loads(path.read_bytes())
        if isinstance(loaded, dict) and all(isinstance(value, str) for value in loaded.values()):
            return loaded
        why = "it is no table of names and values"
    except OSError as error:
        why = error.strerror or str(error)
    except ValueError:  # its words would quote the text
        why = "it is no JSON"
    finally:
        with contextlib.suppress(OSError):  # mounted read-only into a container: whoever mounted it removes it
            path.unlink()
            path.parent.rmdir()
    raise RunError(
        "the secrets of this run cannot be read", why=f"{path}: {why}", remedy="start it again with `launch resume`"
    )
