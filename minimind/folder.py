"""Folders that appear whole: built aside, described, published by one rename; an earlier export may be replaced."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from minimind.durable import SUMS, fsync_dir, verified_files, write_sums
from minimind.rundir import Reason, RunError

LEFTOVER_S = 3600
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def publishing_folder(final: Path, *, record: str) -> Iterator[Path]:
    """A folder to fill, whose name appears when the block ends well, with ``SHA256SUMS``.

    Args:
        final: its name. A folder that is there is replaced only when it is an earlier export, untouched since: it
            holds ``record`` and exactly the files of its SHA256SUMS. It stays until the new one is whole.
        record: the file that marks an export.

    Raises:
        RunError: when the name is taken by anything else.
    """
    refuse_to_overwrite(final, record=record)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final)
    aside = aside_of(final)
    try:
        aside.mkdir(mode=0o700)
        yield aside
        write_sums(aside)
        refuse_to_overwrite(final, record=record)
        if final.exists():
            _exchange(aside, final)
        else:
            aside.rename(final)  # fails where a folder with something in it has come up meanwhile
        fsync_dir(final.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # the unfinished one, or the old one that was exchanged


def aside_of(final: Path) -> Path:
    """A name beside ``final`` for what is not finished, with this process in it."""
    return final.with_name(f".{final.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def remove_leftovers(final: Path) -> None:
    """Remove what a killed process left aside of ``final`` more than an hour ago; one elsewhere may share the disk."""
    for left in final.parent.glob(f".{glob.escape(final.name)}.*.????????.tmp"):
        process = left.name.removeprefix(f".{final.name}.").split(".")[0]
        with contextlib.suppress(OSError):
            if not Path(f"/proc/{process}").exists() and time.time() - left.stat().st_mtime > LEFTOVER_S:
                shutil.rmtree(left, ignore_errors=True)


def refuse_to_overwrite(final: Path, *, record: str) -> None:
    """Raise unless the name is free, or is an export whose every file is as it was written."""
    if not os.path.lexists(final):
        return
    listed = verified_files(final) if final.is_dir() and not final.is_symlink() else None
    there = {file.relative_to(final).as_posix() for file in final.rglob("*") if not file.is_dir()} - {SUMS}
    if listed is None or {file["path"] for file in listed} != there or record not in there:
        raise RunError(
            f"{final} is there already",
            why="it is no export that is as it was written, so it may hold the only copy of something",
            remedy="give another name with --to, or move it away",
            reason=Reason.DATA_INVALID,
        )


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders' names in one step where the system can; else by two renames, undone if the second fails."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library or a file system that cannot
            swap = ctypes.CDLL(None, use_errno=True).renameat2
            if swap(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0:
                return
    away = old.with_name(f".{old.name}.{os.getpid()}.{secrets.token_hex(4)}.old")
    old.rename(away)
    try:
        new.rename(old)
    except BaseException:
        away.rename(old)
        raise
    shutil.rmtree(away, ignore_errors=True)
