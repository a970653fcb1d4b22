"""What is made aside: a killed process leaves nothing for ever, and what lives is left alone."""

import os

from minimind.folder import aside_of, remove_leftovers


def test_what_a_killed_export_left_is_removed_after_an_hour_and_nothing_else(tmp_path):
    final = tmp_path / "hf[1]"
    left = {name: aside_of(final) for name in ("dead", "fresh", "live")}
    for name, pid in (("dead", 999999999), ("fresh", 999999999), ("live", os.getpid())):
        left[name] = tmp_path / f".{final.name}.{pid}.{name:_<8}.tmp"
        (left[name] / "inside").mkdir(parents=True)
    (tmp_path / ".other.999999999.00000000.tmp").mkdir()
    for path in [*tmp_path.iterdir()]:
        if path != left["fresh"]:
            os.utime(path, (1, 1))
    remove_leftovers(final)
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {left["fresh"].name, left["live"].name, ".other.999999999.00000000.tmp"}
