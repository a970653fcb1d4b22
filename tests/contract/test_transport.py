"""One suite that every transport passes: local and a real ssh server; and the dry wrapper around both."""

import hashlib
import os
import threading
import time

import pytest

from launch.errors import Exit, LaunchError
from launch.inventory import load
from launch.transport import DryTransport, Result, connect, host_path
from tests.conftest import make_ssh_home
from tests.support import sshd
from tests.support.syncing import RUN, make_run, tree
from tests.support.wire import Wire

NASTY = [
    "two words",
    "it's",
    'a "b"',
    "$(touch pwned)",
    "`id`",
    "a\nb",
    "语言",
    "-n",
    "",
    "\\n",
    "*",
    "!x",
    ";",
    "a\tb",
    "~",
]


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.sshd)])
def transport(request, tmp_path):
    if request.param == "local":
        inventory = load(None, cwd=tmp_path, environ={})
        host = inventory.host("local")
    else:
        home = request.getfixturevalue("ssh_home")
        inventory, host = home.inventory, home.host
    with connect(host, inventory) as opened:
        yield opened


@pytest.fixture
def far(tmp_path):
    folder = tmp_path / "far" / "root"
    folder.mkdir(parents=True)
    return folder


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_every_argument_arrives_as_it_was_written(transport):
    told = transport.read(["printf", "%s\\0", *NASTY])
    assert told.stdout.decode().split("\0")[:-1] == NASTY


def test_exit_codes_are_those_of_a_shell(transport):
    assert transport.read(["sh", "-c", "exit 7"], check=False).code == 7
    assert transport.read(["no-such-command-anywhere"], check=False).code == 127
    assert transport.read(["sh", "-c", "kill -TERM $$"], check=False).code == 143


def test_a_failed_command_tells_the_end_of_its_stderr_without_control_characters(transport):
    with pytest.raises(LaunchError) as caught:
        transport.run(["sh", "-c", r"printf 'one\ntwo \033[31mred\033[0m\n' >&2; exit 3"])
    assert caught.value.code == Exit.HOST_NOT_READY
    assert "two \\x1b[31mred" in caught.value.why
    assert "\x1b" not in str(caught.value)


def test_stdin_is_binary_and_whole_however_long(transport):
    data = os.urandom(3_000_000) + b"\0\r\n"
    assert transport.read(["cat"], stdin=data).stdout == data


def test_a_command_that_ignores_its_stdin_ends_all_the_same(transport):
    assert transport.read(["true"], stdin=b"x" * 3_000_000) == Result(0, b"", b"")


def test_much_on_both_outputs_blocks_nothing(transport):
    result = transport.read(["sh", "-c", "yes err | head -c 4000000 >&2 & yes out | head -c 4000000; wait"])
    assert len(result.stdout) == 4_000_000
    assert result.stderr.endswith(b"err\n")


def test_messages_come_in_the_c_locale(transport):
    assert transport.read(["sh", "-c", "echo $LC_ALL"]).text == "C"


def test_no_command_gets_a_terminal(transport):
    assert transport.read(["sh", "-c", "test -t 0 || test -t 1 || test -t 2"], check=False).code == 1


def test_a_command_without_end_is_given_up_after_its_time(transport):
    with pytest.raises(LaunchError) as caught:
        transport.read(["sleep", "600"], timeout_s=0.3)
    assert caught.value.code == Exit.UNREACHABLE
    assert transport.read(["echo", "still here"]).text == "still here"


def test_a_command_is_over_when_it_ends_even_if_a_child_keeps_its_stdout(transport):
    started = time.monotonic()
    result = transport.run(["sh", "-c", "sleep 60 & echo $!"])
    assert time.monotonic() - started < 30
    transport.run(["kill", result.text])


def test_a_stream_comes_while_the_command_still_runs(transport, far):
    gate = far / "gate"
    os.mkfifo(gate)
    stream = transport.stream(["sh", "-c", 'echo first; read -r line <"$1"; echo "$line"', "sh", str(gate)])
    assert next(stream) == b"first\n"
    gate.write_text("second\n")
    assert b"".join(stream) == b"second\n"


def test_a_stream_that_ends_badly_says_so_after_what_it_gave(transport):
    stream = transport.stream(["sh", "-c", "echo some; echo why >&2; exit 5"])
    assert next(stream) == b"some\n"
    with pytest.raises(LaunchError, match="failed") as caught:
        next(stream)
    assert caught.value.why == "why"


def test_commands_run_side_by_side_on_one_connection(transport):
    said = {}

    def ask(number):
        said[number] = transport.read(["sh", "-c", f"seq 2000 | tail -n 1; echo {number}"]).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: f"2000\n{number}" for number in range(12)}


@pytest.mark.parametrize("name", ["plain.bin", "with space $(id) 'q' 名", "-dash"])
def test_a_sent_file_arrives_whole_private_and_alone(transport, far, tmp_path, name):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(700_001))
    seen = []
    transport.send(source, f"{far}/new/deep/{name}", on_bytes=seen.append)
    target = far / "new" / "deep" / name
    assert target.read_bytes() == source.read_bytes()
    assert sum(seen) == 700_001
    assert target.stat().st_mode & 0o777 == 0o600
    assert (far / "new").stat().st_mode & 0o777 == 0o700
    assert listing(far / "new") == ["deep", f"deep/{name}"]


def test_an_empty_file_can_be_sent_and_published(transport, far, tmp_path):
    (tmp_path / "empty").touch()
    transport.send(tmp_path / "empty", f"{far}/a")
    transport.publish(f"{far}/b", b"")
    assert (far / "a").read_bytes() == (far / "b").read_bytes() == b""


def test_a_file_that_changes_while_it_is_sent_never_gets_its_name(transport, far, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"a" * 3_000_000)

    def rewrite(_bytes):
        with open(source, "r+b") as file:
            file.seek(2_000_000)
            file.write(b"b" * 1_000_000)

    with pytest.raises(LaunchError) as caught:
        transport.send(source, f"{far}/name", on_bytes=rewrite)
    assert caught.value.code == Exit.NOT_VERIFIED
    assert listing(far) == []


def test_a_file_that_is_not_there_cannot_be_sent(transport, far, tmp_path):
    with pytest.raises(LaunchError, match="cannot be read"):
        transport.send(tmp_path / "nothing", f"{far}/name")
    assert listing(far) == []


def test_publish_replaces_at_once_and_sets_the_mode(transport, far):
    transport.publish(f"{far}/spec.json", b"old")
    transport.publish(f"{far}/spec.json", b"new", mode=0o444)
    assert (far / "spec.json").read_bytes() == b"new"
    assert (far / "spec.json").stat().st_mode & 0o777 == 0o444
    assert listing(far) == ["spec.json"]


def test_a_reader_never_sees_half_of_what_is_published(transport, far):
    versions = [bytes([number]) * 200_000 for number in range(6)]
    transport.publish(f"{far}/file", versions[0])
    halves, stop = [], threading.Event()

    def watch():
        while not stop.is_set():
            data = (far / "file").read_bytes()
            if data not in versions:
                halves.append(len(data))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for version in versions:
        transport.publish(f"{far}/file", version)
    stop.set()
    watcher.join()
    assert halves == []


def test_a_name_that_is_a_folder_or_lies_below_a_file_is_refused(transport, far):
    (far / "folder").mkdir()
    (far / "file").write_text("kept")
    for name in ("folder", "file/below"):
        with pytest.raises(LaunchError) as caught:
            transport.publish(f"{far}/{name}", b"x")
        assert caught.value.code == Exit.HOST_NOT_READY
    assert listing(far) == ["file", "folder"]
    assert (far / "file").read_text() == "kept"


def test_fetch_appends_what_is_missing_and_nothing_beyond(transport, far, tmp_path):
    data = os.urandom(2_500_000)
    (far / "weights $(id)").write_bytes(data)
    part = tmp_path / "part"
    part.write_bytes(data[:1_000_000] + b"a torn tail")
    seen = []
    transport.fetch(f"{far}/weights $(id)", part, offset=1_000_000, length=2_400_000, on_bytes=seen.append)
    assert hashlib.sha256(part.read_bytes()).digest() == hashlib.sha256(data[:2_400_000]).digest()
    assert sum(seen) == 1_400_000


@pytest.mark.parametrize("name", ["missing", "short", "folder"])
def test_a_file_that_is_missing_or_short_cannot_be_fetched(transport, far, tmp_path, name):
    (far / "short").write_bytes(b"123")
    (far / "folder").mkdir()
    with pytest.raises(LaunchError) as caught:
        transport.fetch(f"{far}/{name}", tmp_path / "part", offset=0, length=10)
    assert caught.value.code == Exit.NOT_VERIFIED


def test_a_file_is_fed_from_an_offset_and_the_code_is_the_callers_to_judge(transport, far, tmp_path):
    source, seen = tmp_path / "source", []
    source.write_bytes(data := os.urandom(1_000_000))
    argv = ["sh", "-c", 'cat >"$1"; exit 7', "sh", f"{far}/x"]
    result = transport.feed(argv, source, offset=400_000, on_bytes=seen.append)
    assert result.code == 7 and (far / "x").read_bytes() == data[400_000:]
    assert sum(seen) == 600_000


def test_a_leading_tilde_means_the_home_folder_on_the_host(transport):
    home = transport.read(["sh", "-c", 'printf %s "$HOME"']).text
    assert host_path(transport, "~/minimind/x") == f"{home}/minimind/x"
    assert host_path(transport, "~") == home
    assert host_path(transport, "/a/~") == "/a/~"


def test_the_dry_wrapper_reads_and_changes_nothing(transport, far, tmp_path):
    (far / "there").write_text("text")
    (tmp_path / "source").write_bytes(b"12345")
    before, record = listing(far), []
    dry = DryTransport(transport, record)
    assert dry.read(["cat", f"{far}/there"]).text == "text"
    assert b"".join(dry.stream(["cat", f"{far}/there"])) == b"text"
    assert dry.run(["rm", "-r", str(far)]) == Result(0, b"", b"")
    dry.send(tmp_path / "source", f"{far}/a")
    dry.publish(f"{far}/b", b"123")
    assert dry.feed(["sh", "-c", f"cat >{far}/c"], tmp_path / "source", offset=1) == Result(0, b"", b"")
    dry.fetch(f"{far}/there", tmp_path / "part", offset=1, length=4)
    assert listing(far) == before
    assert not (tmp_path / "part").exists()
    assert [(step.verb, step.length_bytes) for step in record] == [
        ("run", 0),
        ("send", 5),
        ("publish", 3),
        ("run", 4),
        ("fetch", 3),
    ]
    assert record[0].describe() == f"{transport.host.name}: run rm -r {far}"


@pytest.fixture
def wired(tmp_path, sshd):
    """An ssh transport through a relay that the test can stop and cut."""
    wire = Wire(sshd.port)
    home = make_ssh_home(tmp_path / "wired", sshd)
    for name in ("launch.toml", "launch.known_hosts"):
        path = home.home / name
        path.write_text(path.read_text().replace(str(sshd.port), str(wire.port)))
    with connect(home.host, home.inventory) as opened:
        yield opened, wire
    wire.close()


@pytest.mark.sshd
def test_a_link_cut_in_mid_stream_is_unreachable_and_stays_so(wired):
    transport, wire = wired
    stream = transport.stream(["sh", "-c", "echo first; sleep 600"])
    assert next(stream) == b"first\n"
    wire.cut()
    for again in (lambda: next(stream), lambda: transport.read(["true"])):
        with pytest.raises(LaunchError) as caught:
            again()
        assert caught.value.code == Exit.UNREACHABLE


@pytest.mark.sshd
def test_a_link_that_goes_silent_is_given_up_after_three_keepalives(wired, monkeypatch):
    monkeypatch.setattr("launch.transport.ssh.SILENT_S", 1.0)
    transport, wire = wired
    stream = transport.stream(["sh", "-c", "echo first; sleep 600"])
    assert next(stream) == b"first\n"
    wire.stopped.set()
    started = time.monotonic()
    with pytest.raises(LaunchError) as caught:
        next(stream)
    assert caught.value.code == Exit.UNREACHABLE
    assert time.monotonic() - started < 30


@pytest.mark.sshd
def test_a_quiet_command_on_a_good_link_is_not_given_up(tmp_path, ssh_home, monkeypatch):
    monkeypatch.setattr("launch.transport.ssh.KEEPALIVE_S", 0.2)
    monkeypatch.setattr("launch.transport.ssh.SILENT_S", 1.5)
    with connect(ssh_home.host, ssh_home.inventory) as transport:
        assert transport.read(["sh", "-c", "sleep 4; echo done"]).text == "done"


@pytest.mark.sshd
def test_a_file_cut_off_while_it_is_sent_leaves_neither_name_nor_temporary(wired, far, tmp_path):
    transport, wire = wired
    source = tmp_path / "source"
    source.write_bytes(os.urandom(8_000_000))
    sent = []

    def cut_in_the_middle(count):
        sent.append(count)
        if sum(sent) > 2_000_000:
            wire.cut()

    with pytest.raises(LaunchError) as caught:
        transport.send(source, f"{far}/name", on_bytes=cut_in_the_middle)
    assert caught.value.code == Exit.UNREACHABLE
    assert 2_000_000 < sum(sent) < 8_000_000
    deadline = time.monotonic() + 30
    while listing(far) and time.monotonic() < deadline:  # the host notices a moment later
        time.sleep(0.05)
    assert listing(far) == []


@pytest.mark.sshd
def test_what_a_login_shells_start_file_prints_is_no_part_of_any_output(tmp_path):
    """Bash reads ~/.bashrc for commands over ssh, too; many a rented host says welcome there."""
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / ".bashrc").write_text("printf 'welcome\\n\\001launch'; echo to a GPU >&2; printf 'of yours'\n")
    server = sshd.start(tmp_path / "server", options=f"SetEnv HOME={tmp_path}/user")
    try:
        home = make_ssh_home(tmp_path, server)
        with connect(home.host, home.inventory) as transport:
            if b"to a GPU" not in transport.read(["true"]).stderr:
                pytest.skip("the shell here does not read ~/.bashrc for a command")
            assert transport.read(["printf", "%s", "a\nb"]).stdout == b"a\nb" and transport.read(["true"]).stdout == b""
            assert transport.run(["cat"], stdin=b"\x01launch\x02x").stdout == b"\x01launch\x02x"
            assert b"".join(transport.stream(["head", "-c", "3000000", "/dev/zero"])) == bytes(3_000_000)
            data = os.urandom(3_000_000)
            transport.publish(f"{tmp_path}/published", data)
            transport.fetch(f"{tmp_path}/published", tmp_path / "here", offset=0, length=len(data))
            assert (tmp_path / "here").read_bytes() == data
        make_run(home.root, RUN, "rlhf_512.pth", data)
        assert home.launch("sync-out").returncode == 0
        assert tree(home.home) == tree(home.root)
    finally:
        server.stop()
