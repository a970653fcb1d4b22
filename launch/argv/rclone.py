"""rclone as the way to stores that speak no ssh: an S3 bucket, a drive, any remote that it is configured for.

Secrets stay in rclone's own configuration or environment; nothing here puts one on a command line.
"""

from __future__ import annotations

TALK = ("--ask-password=false", "--use-json-log", "--stats=1s", "--stats-log-level=NOTICE")
NAMES = ("--files-from-raw", "-")
"""The names come in as lines on stdin, taken as they are."""
OURS = ("--filter=- /.sync/**", "--filter=- /.previous/**")


def below(remote: str, path: str) -> str:
    """A path below a remote, which may be ``name:``, ``name:bucket`` or ``name:bucket/folder/``."""
    return remote + path if remote.endswith((":", "/")) else f"{remote}/{path}"


def features(remote: str) -> list[str]:
    """What the remote can do, as JSON: ``Hashes`` and ``Features``."""
    return ["rclone", "backend", "features", *TALK, remote]


def listing(remote: str) -> list[str]:
    """Every file but what we keep beside them, as JSON."""
    return [
        "rclone",
        "lsjson",
        "--recursive",
        "--files-only",
        "--no-mimetype",
        "--use-server-modtime",
        *OURS,
        *TALK,
        remote,
    ]


def hashes(remote: str, *, download: bool) -> list[str]:
    """sha256 of the named files: told by the remote, or of the bytes that come back from it."""
    return ["rclone", "hashsum", "SHA256", *(("--download",) if download else ()), *NAMES, *TALK, remote]


def copy(folder: str, remote: str) -> list[str]:
    """Send the named files of a folder, whatever is there."""
    return ["rclone", "copy", "--ignore-times", "--no-traverse", *NAMES, *TALK, folder, remote]


def move(source: str, target: str, *, replaced: str) -> list[str]:
    """Give the named files of one place of the remote their names in another; what they replace goes to a third."""
    return ["rclone", "move", "--ignore-times", "--backup-dir", replaced, *NAMES, *TALK, source, target]


def put(remote_file: str) -> list[str]:
    """Write stdin."""
    return ["rclone", "rcat", *TALK, remote_file]


def rename(source: str, target: str) -> list[str]:
    """One file of the remote under another name there; it replaces what has it."""
    return ["rclone", "moveto", "--ignore-times", *TALK, source, target]


def read(remote_file: str) -> list[str]:
    """Print a file."""
    return ["rclone", "cat", *TALK, remote_file]


def forget(remote: str) -> list[str]:
    """Remove a folder and everything in it."""
    return ["rclone", "purge", *TALK, remote]
