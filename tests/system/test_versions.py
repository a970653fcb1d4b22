"""What earlier syncs brought: listed, restored byte for byte, and let go only when asked and never to the last."""

import dataclasses
import json
import os
import subprocess

import pytest

from launch.errors import Exit, LaunchError
from launch.sync import generations, store
from tests.conftest import make_ssh_home
from tests.support.syncing import RUN, direct, make_run, put, sums_hold, tree

pytestmark = pytest.mark.sshd
FIRST, SECOND, THIRD = "20260101T000001Z", "20260101T000002Z", "20260101T000003Z"


@pytest.fixture(scope="module")
def synced(tmp_path_factory, sshd):
    """Three syncs: trained, trained anew with a log that grew, and once more."""
    ssh_home = make_ssh_home(tmp_path_factory.mktemp("versions"), sshd)
    folder = make_run(ssh_home.root, RUN, "rlhf_512.pth", b"first weights")
    weights = ssh_home.root / "out" / "rlhf_512.pth"
    direct(ssh_home, now_utc=FIRST)
    weights.write_bytes(b"second weights")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 2}\n')
    direct(ssh_home, now_utc=SECOND)
    weights.write_bytes(b"third weights")
    direct(ssh_home, now_utc=THIRD)
    return ssh_home


@pytest.fixture
def far(synced, tmp_path):
    """A copy of what is at home, with its hard links; the host is shared, for nothing is changed on it."""
    subprocess.run(["cp", "-a", synced.home, tmp_path / "home"], check=True)
    return dataclasses.replace(synced, home=tmp_path / "home")


def let_go(home, keep):
    held = store.Store(home.home, stamp="x")
    with held.locked():
        return generations.let_go(held, keep)


def restored(home, version, *paths):
    to = home.home / "restored" / version
    generations.restore(home.home, generations.find(home.home, version), paths, to)
    return tree(to)


def test_every_version_comes_back_as_it_was_a_log_that_grew_too(far):
    before = tree(far.home)
    shown = json.loads(far.launch("versions", "--json", check=True).stdout)
    assert [row["version"] for row in shown] == [FIRST, SECOND, THIRD]
    assert {row["host"] for row in shown} == {"gpu8"} and "out/rlhf_512.pth" in shown[0]["weights"]
    assert far.launch("restore", FIRST, check=True).stdout == ""
    place = far.home / "restored" / FIRST
    assert (place / "out" / "rlhf_512.pth").read_bytes() == b"first weights"
    assert (place / "runs" / RUN / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'
    assert tree(place) == {file.path: file.sha256 for file in generations.find(far.home, FIRST).files}
    assert tree(far.home) == before and sums_hold(far.home)
    assert restored(far, SECOND, "out") == {
        "out/rlhf_512.pth": tree(far.home / "restored" / SECOND)["out/rlhf_512.pth"]
    }


def test_a_sync_without_news_makes_no_version(far):
    direct(far, now_utc="20260101T000009Z")
    assert [generation.version for generation in generations.read(far.home)] == [FIRST, SECOND, THIRD]


def test_restoring_again_is_fine_and_over_other_files_is_refused(far):
    assert restored(far, FIRST) == restored(far, FIRST)
    put(far.home / "restored" / FIRST / "out" / "rlhf_512.pth", b"mine")
    with pytest.raises(LaunchError) as caught:
        restored(far, FIRST)
    assert caught.value.code == Exit.REFUSED
    assert (far.home / "restored" / FIRST / "out" / "rlhf_512.pth").read_bytes() == b"mine"


def test_a_version_whose_bytes_are_gone_is_named_and_nothing_is_written(far):
    kept = far.home / ".previous" / SECOND / "out" / "rlhf_512.pth"
    assert kept.read_bytes() == b"first weights"
    kept.write_bytes(b"edited later.")
    (far.home / ".previous" / SECOND / "runs" / RUN / "export" / "rlhf_512.pth").unlink()
    done = far.launch("restore", FIRST)
    assert done.returncode == Exit.NOT_VERIFIED and "out/rlhf_512.pth" in done.stderr
    assert not (far.home / "restored").exists()
    told = far.launch("versions", FIRST, "--json")
    assert told.returncode == Exit.NOT_VERIFIED
    assert {row["path"] for row in json.loads(told.stdout) if row["held_by"] is None} == {
        "out/rlhf_512.pth",
        f"runs/{RUN}/export/rlhf_512.pth",
    }


def test_unknown_versions_and_paths_are_named(far):
    assert far.launch("restore", "20000101T000000Z").returncode == Exit.INVALID
    assert "no nothing" in far.launch("restore", FIRST, "nothing").stderr


def test_letting_go_frees_what_only_old_versions_had_and_keeps_what_none_knew(far):
    put(far.home / ".previous" / SECOND / "out" / "mine.pth", b"the only copy, of nobody's version")
    dropped, freed_bytes = let_go(far, 2)
    assert (dropped, freed_bytes) == ([FIRST], 2 * len(b"first weights"))
    assert restored(far, SECOND) and restored(far, THIRD)
    assert (far.home / ".previous" / SECOND / "out" / "mine.pth").exists()
    assert not (far.home / ".previous" / SECOND / "out" / "rlhf_512.pth").exists()


def test_the_last_version_that_verifies_stays_however_few_are_to_be_kept(far):
    for top in ("out", f"runs/{RUN}/export"):
        (far.home / top / "rlhf_512.pth").write_bytes(b"ruined here")  # the third is gone
    dropped, _ = let_go(far, 1)
    assert dropped == [FIRST]
    assert restored(far, SECOND)["out/rlhf_512.pth"]
    (far.home / ".previous" / THIRD / "out" / "rlhf_512.pth").unlink()
    assert let_go(far, 1)[0] == [SECOND], "then none verifies, and there is nothing to protect"


def test_a_manifest_that_leads_elsewhere_is_no_version(far):
    path = far.home / ".sync" / "generations" / f"{FIRST}.json"
    path.write_text(path.read_text().replace("out/rlhf_512.pth", "../../etc/passwd"))
    assert FIRST not in [generation.version for generation in generations.read(far.home)]


def test_a_folder_that_was_never_synced_into_has_no_versions_and_says_so(ssh_home):
    nothing = ssh_home.launch("versions")
    assert nothing.returncode == 0 and "launch sync-out" in nothing.stderr
    assert not os.path.lexists(ssh_home.home / ".sync")
