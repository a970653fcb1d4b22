"""release-check and release: every gap that was prepared is found and refused, and nothing else is."""

import dataclasses
import json
import os
import pathlib
import platform
import shutil
import struct
import zipfile
from datetime import UTC, datetime

import pytest

from launch.errors import Exit, LaunchError
from launch.release import Findings, check, give_back
from launch.release.around import beside
from launch.sync import sync_out
from launch.transport import connect
from tests.conftest import make_ssh_home
from tests.support import sshd as sshd_parts
from tests.support.syncing import OTHER, RUN, Quiet, direct, make_run, put

pytestmark = pytest.mark.sshd

TABLE = (
    b"\x80\x02}q\x00X\x05\x00\x00\x00model"
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nHalfStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x08tQK\x00K\x08\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs."
)
"""The pickle that torch.save writes for {"model": a tensor of 8 numbers in fp16}; no torch is needed to write it."""


def weights(numbers):
    """A .pth file of eight numbers."""
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("w/data.pkl", TABLE)
        archive.writestr("w/data/0", struct.pack("<8e", *numbers))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose users have an empty home: measuring a real one takes long."""
    if sshd_parts.MISSING:
        pytest.skip(sshd_parts.MISSING)
    folder = tmp_path_factory.mktemp("release")
    (folder / "home").mkdir()
    started = sshd_parts.start(folder / "server", options=f"SetEnv HOME={folder}/home")
    yield started
    started.stop()


@pytest.fixture
def far(tmp_path, server):
    """A host whose two runs have ended, and everything of it at home."""
    ssh_home = make_ssh_home(tmp_path, server)
    for number, (run, name) in enumerate(((RUN, "rlhf_512.pth"), (OTHER, "full_sft_512.pth"))):
        folder = make_run(ssh_home.root, run, name, weights(range(number, number + 8)))
        put(folder / "attempts" / "1" / "exit.json", b'{"code": 1, "reason": "trainer_error"}')
        put(folder / "lock" / "held", b"")
        put(folder / "beat.json", b"{}")
        for step in (10, 20):
            put(folder / "ckpt" / f"step-{step:08d}" / "parameters.pt", weights(range(step, step + 8)))
    put(ssh_home.root / "out" / "lora" / "lora_x_512.pth", weights([0.5] * 8))
    direct(ssh_home)
    return ssh_home


def gaps(home):
    with connect(home.host, home.inventory) as transport:
        return check(transport, home.inventory, folder=home.home, voice=Quiet(), look_elsewhere=False).gaps


def test_nothing_missing_passes_also_when_only_what_is_of_no_use_differs(far):
    put(far.root / "runs" / RUN / "beat.json", b'{"time": 1}')
    put(far.root / "runs" / RUN / "out-of-the-way.tmp", b"x").rename(far.root / "runs" / RUN / ".half.1.ab.tmp")
    (far.home / "runs" / RUN / "ckpt" / "step-00000010" / "parameters.pt").unlink()
    assert gaps(far) == ()


def flip(path):
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    return path


def both(far, name, data):
    """The same bytes on both sides, vouched for by a sync."""
    put(far.root / "out" / name, data)
    direct(far, now_utc="20260102T000000Z")


def alive(far, *, sync=True):
    """A run whose supervisor is this very process."""
    start = pathlib.Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(") ")[2].split()[19]
    boot_id = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    handle = {"kind": "venv", "pid": os.getpid(), "start_time": start, "boot_id": boot_id, "attempt": 2}
    put(far.root / "runs" / RUN / "handle.json", json.dumps(handle).encode())
    if sync:
        direct(far, now_utc="20260102T000000Z")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def digest_of(far, name):
    line = next(x for x in (far.home / "SHA256SUMS").read_text().splitlines() if x.endswith(f"  {name}"))
    return line.split()[0]


NAN = [1.0, float("nan"), *[0.0] * 6]
PREPARED = {
    "weights deleted here after the sync": lambda f: (f.home / "out" / "rlhf_512.pth").unlink(),
    "an adapter deleted here": lambda f: (f.home / "out" / "lora" / "lora_x_512.pth").unlink(),
    "a flipped bit here": lambda f: flip(f.home / "out" / "rlhf_512.pth"),
    "truncated here": lambda f: os.truncate(f.home / "out" / "rlhf_512.pth", 100),
    "a link in its place here": lambda f: (
        (f.home / "out" / "rlhf_512.pth").rename(f.home / "moved.pth"),
        os.symlink("../moved.pth", f.home / "out" / "rlhf_512.pth"),
    ),
    "newer weights on the host": lambda f: put(f.root / "out" / "rlhf_512.pth", weights([9.0] * 8)),
    "other bytes of the same length and time on the host": lambda f: (
        flip(f.root / "out" / "lora" / "lora_x_512.pth"),
        os.utime(f.root / "out" / "lora" / "lora_x_512.pth", (1, 1)),
    ),
    "a weights file that never came": lambda f: put(f.root / "out" / "new_512.pth", weights(range(8))),
    "a run that never came": lambda f: make_run(f.root, "20260103-120000-dpo-0000", "x.pth", weights(range(3, 11))),
    "a checkpoint newer than the one here": lambda f: put(
        f.root / "runs" / RUN / "ckpt" / "step-00000030" / "parameters.pt", weights(range(8))
    ),
    "the newest checkpoint deleted here": lambda f: (
        f.home / "runs" / RUN / "ckpt" / "step-00000020" / "parameters.pt"
    ).unlink(),
    "metrics that went on": lambda f: put(f.root / "runs" / RUN / "metrics.jsonl", b'{"step": 1}\n{"step": 2}\n'),
    "a log deleted here": lambda f: (f.home / "runs" / RUN / "attempts" / "1" / "log.txt").unlink(),
    "NaN in weights, the same on both sides": lambda f: both(f, "nan_512.pth", weights(NAN)),
    "weights that are no weights, the same on both sides": lambda f: both(f, "no_512.pth", b"<html>404</html>" * 9),
    "infinity in the newest checkpoint, the same on both sides": lambda f: both(
        f, f"../runs/{RUN}/ckpt/step-00000020/parameters.pt", weights([float("inf")] * 8)
    ),
    "no SHA256SUMS": lambda f: (f.home / "SHA256SUMS").unlink(),
    "a line of SHA256SUMS edited": lambda f: edit(f.home / "SHA256SUMS", digest_of(f, "out/rlhf_512.pth"), "0" * 64),
    "manifest.json edited": lambda f: edit(f.home / "manifest.json", digest_of(f, "out/lora/lora_x_512.pth"), "0" * 64),
    "manifest.json that is no JSON": lambda f: put(f.home / "manifest.json", b"{"),
    "a trainer that runs": alive,
    "weights behind a link on the host": lambda f: os.symlink("/data/big.pth", f.root / "out" / "big.pth"),
    "the wrong root": lambda f: f.root.rename(f.root.with_name("elsewhere")),
}


@pytest.mark.parametrize("gap", PREPARED)
def test_a_prepared_gap_is_found(far, gap):
    PREPARED[gap](far)
    found = gaps(far)
    assert found and all(item.why and item.repair for item in found)


def test_what_a_sync_of_another_host_replaced_here_still_counts_while_it_is_kept(far, tmp_path):
    other = dataclasses.replace(far.host, name="gpu9", root=str(tmp_path / "other"))
    make_run(tmp_path / "other", RUN, "rlhf_512.pth", weights([7.0] * 8))
    put(tmp_path / "other" / "runs" / RUN / "metrics.jsonl", b'{"step": 1}\n{"step": 2}\n')
    with connect(other, far.inventory) as transport:
        sync_out(transport, far.inventory, folder=far.home, run_id=None, voice=Quiet(), now_utc="20260102T000000Z")
    assert (far.home / "out" / "rlhf_512.pth").read_bytes() == weights([7.0] * 8)
    assert gaps(far) == ()
    assert far.launch("versions", "--keep", "1").returncode == 0
    assert gaps(far) == (), "the last verified copy of each host stays"
    (kept,) = far.home.glob(".previous/*/out/rlhf_512.pth")
    flip(kept)
    assert {gap.path for gap in gaps(far)} == {"out/rlhf_512.pth"}


def test_the_command_lists_the_gaps_and_names_the_repair_which_repairs(far):
    (far.home / "out" / "rlhf_512.pth").unlink()
    told = far.launch("release-check", "gpu8", "--json")
    assert told.returncode == Exit.REFUSED
    report = json.loads(told.stdout)
    assert not report["ready"] and [item["path"] for item in report["gaps"]] == ["out/rlhf_512.pth"]
    assert "out/rlhf_512.pth: there is no copy here" in told.stderr and report["repair"] in told.stderr
    assert far.launch("sync-out", "--host", "gpu8").returncode == 0
    fine = far.launch("release-check", "gpu8")
    assert fine.returncode == 0, fine.stderr
    assert "may be released" in fine.stderr


def test_a_host_with_failed_runs_only_goes_when_it_is_said_that_there_are_no_weights(tmp_path, server):
    home = make_ssh_home(tmp_path, server)
    run = home.root / "runs" / RUN
    put(run / "spec.json", b'{"run_id": "%s"}' % RUN.encode())
    put(run / "metrics.jsonl", b'{"step": 1}\n')
    put(run / "attempts" / "1" / "exit.json", b'{"code": 1, "reason": "trainer_error"}')
    with connect(home.host, home.inventory) as transport:
        options = {"folder": home.home, "run_id": None, "voice": Quiet(), "now_utc": "20260101T000000Z"}
        with pytest.raises(LaunchError, match="no weights"):
            sync_out(transport, home.inventory, **options)
        sync_out(transport, home.inventory, **options, without_weights=True)
        options = {"folder": home.home, "voice": Quiet(), "look_elsewhere": False}
        (gap,) = check(transport, home.inventory, **options).gaps
        assert "no weights at all" in gap.why and "--without-weights" in gap.repair
        assert check(transport, home.inventory, **options, without_weights=True).gaps == ()
        (home.home / "runs" / RUN / "metrics.jsonl").unlink()
        assert [gap.path for gap in check(transport, home.inventory, **options, without_weights=True).gaps] != []


def test_the_check_hashes_afresh_whatever_a_sync_remembers(far):
    seen = json.loads((far.home / ".sync" / "seen.json").read_text())
    flipped = flip(far.home / "out" / "rlhf_512.pth")
    stat = flipped.stat()
    stamp = f"{stat.st_size} {stat.st_dev}.{stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    seen["home"]["out/rlhf_512.pth"] = [stamp, digest_of(far, "out/rlhf_512.pth")]
    (far.home / ".sync" / "seen.json").write_text(json.dumps(seen))
    assert [gap.path for gap in gaps(far)] == ["out/rlhf_512.pth"]


def priced(far, command):
    with open(far.home / "launch.toml", "a") as file:
        file.write(f'price_per_hour = 12.5\nrelease_command = "{command}"\n')


def test_a_living_trainer_that_was_started_by_hand_keeps_the_host(far):
    alive(far, sync=False)
    run = far.root / "runs" / RUN
    owner = json.loads((run / "handle.json").read_bytes())
    put(run / "lock" / "owner.json", json.dumps({**owner, "host": platform.node()}).encode())
    put(run / "spec.json", json.dumps({"run_id": RUN, "executor": "none"}).encode())
    direct(far, now_utc="20260102T000000Z")
    assert [(gap.path, gap.why) for gap in gaps(far)] == [(RUN, "it is RUNNING")]
    put(run / "lock" / "owner.json", json.dumps({**owner, "start_time": "1", "host": platform.node()}).encode())
    direct(far, now_utc="20260103T000000Z")
    assert gaps(far) == ()


def test_release_runs_the_command_only_without_gaps_and_writes_a_receipt(far):
    priced(far, "echo given back $LAUNCH_HOST; touch released")
    missing = far.home / "out" / "rlhf_512.pth"
    held = missing.read_bytes()
    missing.unlink()
    assert far.launch("release", "gpu8").returncode == Exit.REFUSED
    assert not (far.home / "released").exists() and not (far.home / "launch.released.jsonl").exists()
    missing.write_bytes(held)
    dry = far.launch("release", "gpu8", "--dry-run")
    assert dry.returncode == 0 and "would run: echo" in dry.stderr and not (far.home / "released").exists()
    done = far.launch("release", "gpu8", "--json")
    assert done.returncode == 0, done.stderr
    assert "given back gpu8" in done.stderr and (far.home / "released").exists()
    (receipt,) = map(json.loads, (far.home / "launch.released.jsonl").read_text().splitlines())
    assert receipt == json.loads(done.stdout)
    hours = (datetime.now(UTC) - datetime(2026, 1, 1, 12, tzinfo=UTC)).total_seconds() / 3600
    assert abs(receipt["hours"] - hours) < 1
    assert receipt["spent_at_least"] == pytest.approx(receipt["hours"] * 12.5, abs=0.02)


def test_a_failed_command_or_none_says_that_the_clock_still_runs(far):
    without = far.launch("release", "gpu8")
    assert without.returncode == Exit.HOST_NOT_READY and "press release" in without.stderr
    priced(far, "exit 3")
    failed = far.launch("release", "gpu8")
    assert failed.returncode == Exit.HOST_NOT_READY and "the clock still runs" in failed.stderr
    assert (far.home / "launch.released.jsonl").read_text() == ""


def test_without_a_place_for_the_receipt_nothing_is_released_and_odd_runs_have_no_clock(far):
    put(far.root / "runs" / "20261399-120000-dpo-abcd" / "spec.json", b"{}")
    direct(far, now_utc="20260102T000000Z")
    priced(far, "echo what the provider says; touch released")
    (far.home / "launch.released.jsonl").mkdir()
    refused = far.launch("release", "gpu8")
    assert refused.returncode == Exit.HOST_NOT_READY and "the clock still runs" in refused.stderr, refused.stderr
    assert not (far.home / "released").exists()
    (far.home / "launch.released.jsonl").rmdir()
    done = far.launch("release", "gpu8", "--json")
    assert done.returncode == 0 and "what the provider says" in done.stderr, done.stderr
    assert json.loads(done.stdout)["first_run_at"] == "2026-01-01T12:00:00Z"


def test_a_host_that_was_released_and_a_receipt_that_could_not_be_written_are_told_apart(far):
    findings = Findings(host="gpu8", root="/r", folder=far.home, files=0, bytes=0, gaps=(), runs=(), elsewhere=())
    (far.home / "launch.released.jsonl").symlink_to("/dev/full")
    host = dataclasses.replace(far.host, release_command="true")
    with pytest.raises(LaunchError, match="was released, and its receipt could not be written") as caught:
        give_back(host, findings, home=far.home, now=lambda: datetime.now(UTC))
    assert caught.value.code == Exit.INCOMPLETE and '"host": "gpu8"' in caught.value.remedy


def test_an_unreachable_host_is_not_released(far):
    priced(far, "touch released")
    toml = far.home / "launch.toml"
    toml.write_text(toml.read_text().replace(f":{far.sshd.port}", ":1"))
    assert far.launch("release", "gpu8").returncode == Exit.UNREACHABLE
    assert not (far.home / "released").exists()


def test_what_lies_outside_the_root_is_listed_with_its_size(far):
    put(far.root.parent / "dataset of mine" / "big.bin", bytes(3_000_000))
    put(far.root / "dataset" / "mine.jsonl")
    put(far.root / "env" / "x" / "y")
    with connect(far.host, far.inventory) as transport:
        found = dict(check(transport, far.inventory, folder=far.home, voice=Quiet()).elsewhere)
    assert found[str(far.root.parent / "dataset of mine")] >= 3_000_000
    below = [path for path in found if path.startswith(str(far.root))]
    assert below == [f"{far.root}/dataset"], "out/ and runs/ are compared, env/ can be made again"


def test_what_cannot_be_measured_in_time_is_listed_without_a_size(tmp_path):
    tools = tmp_path / "bin"
    put(tools / "du", b"#!/bin/sh\nexec sleep 60\n").chmod(0o755)
    put(tools / "timeout", b'#!/bin/sh\nshift\nexec /usr/bin/timeout 1 "$@"\n').chmod(0o755)
    server = sshd_parts.start(tmp_path / "server", options=f'SetEnv HOME={tmp_path}/user "PATH={tools}:/usr/bin:/bin"')
    try:
        home = make_ssh_home(tmp_path, server)
        put(tmp_path / "user" / "slow" / "x.pth")
        with connect(home.host, home.inventory) as transport:
            assert (f"{tmp_path}/user/slow", None) in beside(transport, str(home.root))
    finally:
        server.stop()


@pytest.mark.parametrize("name", ["best/my_best_512.pth", "out/.tmp-best_512.pth", "out/.tmp-x/x_512.safetensors"])
def test_weights_that_nothing_brings_home_keep_the_host(far, name):
    put(far.root / "env" / "x" / "lib" / "site-packages" / "a.pth")
    put(far.root / "tools" / "site-packages" / "b.pth")
    assert gaps(far) == ()
    put(far.root / name, weights(range(8)))
    (gap,) = gaps(far)
    assert gap.path == name and gap.why and gap.repair


def test_what_begins_and_what_comes_while_it_is_compared_keeps_the_host(far, monkeypatch):
    from launch.sync.trip import Trip

    settled = Trip.settled

    def meanwhile(self, wanted):
        found = settled(self, wanted)
        make_run(far.root, "20260301-120000-dpo-0001", "late.pth", weights(range(8)))
        alive(far, sync=False)
        return found

    monkeypatch.setattr(Trip, "settled", meanwhile)
    found = {gap.path: gap.why for gap in gaps(far)}
    assert "it is" in found[RUN] and "while it was compared" in found["out/late.pth"]
    assert found.keys() >= {"20260301-120000-dpo-0001"} or "runs/20260301-120000-dpo-0001/export/late.pth" in found


def test_a_copy_that_is_the_original_is_no_copy(far, tmp_path):
    for top in ("out", "runs"):
        shutil.rmtree(far.home / top)
        (far.home / top).symlink_to(far.root / top)
    (gap, *_) = gaps(far)
    assert gap.path == "out" and "the same files" in gap.why
    with pytest.raises(LaunchError, match="onto itself") as caught:
        direct(far, now_utc="20260103T000000Z")
    assert caught.value.code == Exit.USAGE
    assert not list(far.root.rglob(".tmp-*"))


def test_refusing_is_an_error_with_every_part():
    from launch.release import Gap

    many = tuple(Gap(path=f"out/{n}", why="gone", repair="launch sync-out") for n in range(30))
    found = Findings(host="h", root="/r", folder=pathlib.Path(), files=0, bytes=0, gaps=many, runs=(), elsewhere=())
    with pytest.raises(LaunchError, match="30 thing") as caught:
        found.refuse()
    assert caught.value.code == Exit.REFUSED and "and 10 more" in caught.value.why
