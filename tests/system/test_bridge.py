"""`launch migrate` where one host reaches the other: large files go straight there; its key opens nothing else."""

import pathlib
import random
import shlex
import shutil
import subprocess
import types

import pytest

from launch.argv import bridge as argv
from launch.errors import Exit, LaunchError
from launch.migrate import bridge, prepare
from launch.migrate.carry import SendData, Verify
from launch.migrate.survey import straight
from launch.transport import openssh
from tests.support import moving
from tests.support import sshd as sshd_parts
from tests.support.moving import contents, launcher, two  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.sshd, pytest.mark.skipif(bool(sshd_parts.MISSING), reason=sshd_parts.MISSING or "-")]
LARGE_BYTES = 12 << 20


@pytest.fixture
def hosts(tmp_path, two, launcher):  # noqa: F811
    """Two hosts; the old one has data and no run."""
    made = moving.Hosts(tmp_path, *two, launcher)
    data = made.old_root / "dataset"
    data.mkdir(parents=True)
    (data / "large.jsonl").write_bytes(random.Random(1).randbytes(LARGE_BYTES))
    (data / "twin.jsonl").write_bytes((data / "large.jsonl").read_bytes())
    (data / "small.jsonl").write_bytes(b"{}\n" * 100)
    keys(two[1]).parent.mkdir(exist_ok=True)
    keys(two[1]).write_text("ssh-ed25519 AAAA somebody\n# no newline at the end")
    keys(two[1]).chmod(0o640)
    return made


def keys(server) -> pathlib.Path:
    return server.folder.parent / "user-home" / ".ssh" / "authorized_keys"


def nothing_is_left(hosts) -> None:
    assert keys(hosts.new).read_text().splitlines() == ["ssh-ed25519 AAAA somebody", "# no newline at the end"]
    assert keys(hosts.new).stat().st_mode & 0o777 == 0o640
    assert [path.name for path in keys(hosts.new).parent.iterdir()] == ["authorized_keys"]
    assert not (hosts.old_root / ".migrate").exists() and not (hosts.new_root / ".migrate" / "bridge").exists()


def send_data(move):
    facts = SendData(move).run()
    move.journal.record("data", facts)
    return facts


def begun(move):
    move.journal.folder.mkdir(parents=True, exist_ok=True)
    move.journal.begin({}, now_utc="now", again=False)
    return move


def test_large_data_goes_straight_there_and_small_through_the_laptop(hosts):
    before = contents(hosts.old_root)
    with moving.in_process(hosts) as (move, _):
        facts = send_data(begun(move))
        assert (facts["direct_bytes"], facts["fetched_bytes"]) == (LARGE_BYTES, 300)
        assert facts["sent_bytes"] < 20_000, "one pack"
        move.journal.record("send", {"items": []})
        assert Verify(move).run()["files"] == 3
        assert any("go straight there" in text for text in move.voice.said)
        assert not move.journal.bridged
    assert contents(hosts.new_root / "dataset") == contents(hosts.old_root / "dataset")
    assert not (hosts.new_root / "dataset" / "large.jsonl").samefile(hosts.new_root / "dataset" / "twin.jsonl")
    assert contents(hosts.old_root) == before
    nothing_is_left(hosts)


def test_data_sets_behind_links_to_another_disk_move_as_files_and_nothing_else_below_dataset_does(hosts, tmp_path):
    data, disk = hosts.old_root / "dataset", tmp_path / "data disk"
    disk.mkdir()
    (disk / "权重 1.jsonl").write_bytes(random.Random(2).randbytes(9 << 20))
    (disk / "small.txt").write_bytes(b"{}\n")
    (data / "权重 1.jsonl").symlink_to(disk / "权重 1.jsonl")
    (data / "other name.jsonl").symlink_to(disk / "small.txt")
    (data / "nothing.jsonl").symlink_to("nowhere")
    (data / "folder.jsonl").mkdir()
    (data / "notes.txt").write_text("no data")
    (data / "dpo.jsonl.shards").mkdir()
    (data / "dpo.jsonl.shards" / "x.jsonl").write_text("tokens")
    shutil.move(data, disk / "all")
    data.symlink_to(disk / "all")
    with moving.in_process(hosts) as (move, found):
        assert send_data(begun(move))["direct_bytes"] == LARGE_BYTES + (9 << 20)
        assert not found.left
    names = {"large.jsonl", "twin.jsonl", "small.jsonl", "权重 1.jsonl", "other name.jsonl"}
    assert contents(hosts.new_root / "dataset").keys() == names
    assert (hosts.new_root / "dataset" / "权重 1.jsonl").read_bytes() == (disk / "权重 1.jsonl").read_bytes()
    assert not any(path.is_symlink() for path in (hosts.new_root / "dataset").iterdir())


def test_a_host_that_is_not_let_in_sends_through_the_laptop_and_the_reason_is_said(hosts, tmp_path):
    shutil.copytree(hosts.home, tmp_path / "other")
    known = hosts.home / "launch.known_hosts"
    lines = known.read_text().splitlines()
    with moving.in_process(hosts) as (move, _):
        assert begun(move).target  # we are in; the source is told a key that the target does not have
        known.write_text(f"{lines[0]}\n[127.0.0.1]:{hosts.new.port} {lines[0].partition(' ')[2]}\n")
        facts = send_data(move)
        assert (facts["direct_bytes"], facts["fetched_bytes"]) == (0, LARGE_BYTES + 300)
        assert any("old does not reach new (Host key verification failed.)" in text for text in move.voice.said)
    assert contents(hosts.new_root / "dataset") == contents(hosts.old_root / "dataset")
    nothing_is_left(hosts)


def test_a_target_whose_keys_cannot_be_replaced_by_a_rename_gets_everything_through_the_laptop(hosts):
    real = keys(hosts.new).rename(keys(hosts.new).with_name("kept elsewhere"))
    keys(hosts.new).symlink_to(real)
    try:
        with moving.in_process(hosts) as (move, _):
            facts = send_data(begun(move))
            assert (facts["direct_bytes"], facts["fetched_bytes"]) == (0, LARGE_BYTES + 300)
            assert any("authorized_keys is a link): copies go through this machine" in text for text in move.voice.said)
            assert not move.journal.bridged
    finally:
        real.replace(keys(hosts.new))
    nothing_is_left(hosts)


def test_the_key_opens_nothing_but_the_appending_of_what_is_expected(hosts):
    with moving.in_process(hosts) as (move, found):
        with bridge.opened(begun(move), straight(found.data)):
            assert move.journal.bridged
            client = openssh.between(
                f"{hosts.old_root}/.migrate/bridge",
                user=hosts.new.address.partition("@")[0],
                address="127.0.0.1",
                port=hosts.new.port,
                alias="new",
            )

            def ask(*words: str, data: bytes = b"") -> tuple[int, bytes]:
                done = subprocess.run([*client, *words], input=data, capture_output=True, timeout=30)
                return done.returncode, done.stdout

            assert ask("ready") == (0, b"ready\n")
            secret = hosts.home / "secret"
            secret.write_text("secret")
            assert ask("cat", str(secret)) == (64, b"")
            assert ask("sh -c 'cat " + shlex.quote(str(secret)) + "'") == (64, b"")
            assert ask(f"{'a' * 64} 0", data=b"not expected") == (64, b"")
            assert ask("../../x 0", data=b"x") == (64, b"") and ask() == (64, b"")
            digest = next(iter(straight(found.data)))
            assert ask(f"{digest} $(touch {secret}.made)") == (64, b"")
            assert ask(f"{digest} 0", data=bytes(100))[0] == 70, "other bytes than expected get no name"
            assert not (hosts.new_root / ".migrate" / digest).exists()
            forwarded = subprocess.run([*client[:-3], "-W", f"127.0.0.1:{hosts.old.port}", *client[-3:]], timeout=30)
            assert forwarded.returncode == 255
            assert "expiry-time=" in keys(hosts.new).read_text()
        assert ask("ready")[0] == 255
    nothing_is_left(hosts)


def test_a_transfer_that_is_cut_goes_on_straight_where_it_ended(hosts, monkeypatch):
    with moving.in_process(hosts) as (move, found):
        (digest,) = straight(begun(move) and found.data)
        begun_bytes = 5 << 20
        part = hosts.new_root / ".migrate" / f"{digest}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes((hosts.old_root / "dataset" / "large.jsonl").read_bytes()[:begun_bytes])
        facts = send_data(move)
        assert (facts["direct_bytes"], facts["fetched_bytes"]) == (LARGE_BYTES - begun_bytes, 300)
    nothing_is_left(hosts)


def test_a_way_that_a_killed_launcher_left_open_is_closed_when_nothing_is_left_to_go_over_it(hosts):
    with moving.in_process(hosts) as (move, found):
        begun(move).journal.bridging(True)
        bridge._open(move, straight(found.data))
        with bridge.opened(move, {}) as way:
            assert way is None and not move.journal.bridged
    nothing_is_left(hosts)


def test_a_key_that_no_journal_knows_of_is_taken_back_by_the_check_of_the_next_move(hosts):
    with moving.in_process(hosts) as (move, found):
        bridge._open(begun(move), straight(found.data))  # its launcher was killed, and its .migrate is gone
        assert not move.journal.bridged and (hosts.old_root / ".migrate" / "bridge" / "key").exists()
        assert "minimind-launch-migrate-old" in keys(hosts.new).read_text()
        prepare.Check(move).run()
    nothing_is_left(hosts)


def test_a_way_that_breaks_in_the_middle_leaves_the_rest_to_the_laptop(hosts, monkeypatch):
    real = argv.send

    def cut(path, offset, name, client):  # the first half comes over; then the client dies
        words = real(path, offset, name, ["sh", "-c", 'head -c 5000000 | "$@"; exit 255', "sh", *client])
        return words

    monkeypatch.setattr(argv, "send", cut)
    with moving.in_process(hosts) as (move, _):
        facts = send_data(begun(move))
        assert (facts["direct_bytes"], facts["fetched_bytes"]) == (0, LARGE_BYTES + 300)
        assert facts["sent_bytes"] < LARGE_BYTES - 5_000_000 + 20_000, "what had come is not sent again"
        assert any("(exit code 255): the rest goes through this machine" in text for text in move.voice.said)
    assert contents(hosts.new_root / "dataset") == contents(hosts.old_root / "dataset")
    nothing_is_left(hosts)


def test_a_file_that_is_rewritten_meanwhile_is_not_believed(hosts, monkeypatch):
    path = hosts.old_root / "dataset" / "large.jsonl"
    real = argv.send

    def rewrite(*words):
        for name in (path, path.with_name("twin.jsonl")):
            name.write_bytes(bytes(LARGE_BYTES))
        return real(*words)

    monkeypatch.setattr(argv, "send", rewrite)
    with moving.in_process(hosts) as (move, _), pytest.raises(LaunchError) as caught:
        send_data(begun(move))
    assert caught.value.code == Exit.NOT_VERIFIED
    assert not (hosts.new_root / "dataset" / "large.jsonl").exists()
    nothing_is_left(hosts)


def test_without_room_at_home_the_data_may_still_go_straight_there(hosts, monkeypatch):
    from launch.migrate import survey

    with moving.in_process(hosts) as (move, found):
        short = survey.SPARE_BYTES + found.home_bytes + found.data_home_bytes - 1
        monkeypatch.setattr(survey.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=short))
        prepare.Check(begun(move))._room(found)
        monkeypatch.setattr(bridge, "LEAST_BYTES", 1 << 40)
        with pytest.raises(LaunchError, match="free, the move needs"):
            prepare.Check(move)._room(found)
    nothing_is_left(hosts)
