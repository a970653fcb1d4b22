"""Who is at the other end: every wrong answer ends in one paragraph, exit 4, and nothing sent."""

import contextlib
import os
import pty
import shutil
import socket
import subprocess
import sys

import pytest

from launch.errors import Exit
from tests.conftest import make_ssh_home
from tests.support import sshd as parts

pytestmark = pytest.mark.sshd

VERBS = [("sync-out", "--host", "gpu8"), ("ps", "--host", "gpu8"), ("sync-in", "--host", "gpu8")]


def said(result, *words, code=Exit.UNREACHABLE):
    """One paragraph with what, why and remedy, and no traceback."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert "why: " in result.stderr
    assert "remedy: " in result.stderr
    for word in words:
        assert word in result.stderr
    return result.stderr


def accepted(server):
    return server.log().count("Accepted publickey")


@pytest.fixture
def own_sshd(tmp_path):
    """A server whose log and keys are this test's alone."""
    if parts.MISSING:
        pytest.skip(parts.MISSING)
    server = parts.start(tmp_path / "own")
    yield server
    server.stop()


@pytest.fixture
def own_home(tmp_path, own_sshd):
    home = make_ssh_home(tmp_path, own_sshd)
    (home.home / "dataset").mkdir()
    (home.home / "dataset" / "a.jsonl").write_text("{}\n")
    return home


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_an_unknown_key_is_refused_and_shown(own_home, verb):
    (own_home.home / "launch.known_hosts").unlink()
    stderr = said(own_home.launch(*verb), "not known", "launch host add gpu8")
    assert any(own_home.sshd.fingerprint(kind) in stderr for kind in ("ed25519", "ecdsa"))
    assert accepted(own_home.sshd) == 0
    assert not own_home.root.exists()


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_a_changed_key_is_refused_before_anything_is_sent(own_home, tmp_path, verb):
    other = parts.make_key(tmp_path / "other").with_suffix(".pub")
    (own_home.home / "launch.known_hosts").write_text(f"[127.0.0.1]:{own_home.sshd.port} {other.read_text()}")
    said(own_home.launch(*verb), "CHANGED", parts.fingerprint(other), own_home.sshd.fingerprint())
    assert accepted(own_home.sshd) == 0
    assert not own_home.root.exists()


def test_a_key_of_another_kind_than_the_known_one_is_a_changed_key(own_home, tmp_path):
    other = parts.make_key(tmp_path / "other", "rsa").with_suffix(".pub")
    (own_home.home / "launch.known_hosts").write_text(f"[127.0.0.1]:{own_home.sshd.port} {other.read_text()}")
    said(own_home.launch("ps", "--host", "gpu8"), "CHANGED")
    assert accepted(own_home.sshd) == 0


def test_keys_that_the_user_trusts_elsewhere_do_not_count(own_home):
    trusted = own_home.home / "trusted"
    (own_home.home / "launch.known_hosts").rename(trusted)
    (own_home.home / "ssh_config").write_text(f"Host *\n  UserKnownHostsFile {trusted}\n  StrictHostKeyChecking no\n")
    said(own_home.launch("ps", "--host", "gpu8"), "not known")
    assert accepted(own_home.sshd) == 0


def test_a_port_where_nothing_listens(ssh_home):
    with socket.socket() as taken:  # bound but not listening: connections are refused, and nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        write(ssh_home, f"root@127.0.0.1:{port}")
        said(ssh_home.launch("sync-out", "--host", "gpu8"), "nothing answers", str(port), "hosts.gpu8.ssh")


def test_a_port_where_something_else_listens(ssh_home):
    with socket.create_server(("127.0.0.1", 0)) as server:
        write(ssh_home, f"root@127.0.0.1:{server.getsockname()[1]}")
        process = subprocess.Popen(
            [sys.executable, "-m", "launch", "ps", "--host", "gpu8"],
            cwd=ssh_home.home,
            env=ssh_home.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        client, _ = server.accept()
        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        client.close()
        stdout, stderr = process.communicate(timeout=60)
    said(subprocess.CompletedProcess([], process.returncode, stdout, stderr), "does not speak ssh")


def test_a_name_that_does_not_resolve(ssh_home):
    write(ssh_home, "root@no-such-host.invalid:22")
    said(ssh_home.launch("sync-out", "--host", "gpu8"), "no-such-host.invalid", "cannot be resolved")


def test_a_user_key_that_is_not_let_in(own_home, tmp_path):
    write(own_home, own_home.sshd.address, identity=parts.make_key(tmp_path / "stranger"))
    said(own_home.launch("sync-in", "--host", "gpu8"), "not let in", "identity_file")
    assert accepted(own_home.sshd) == 0
    assert not own_home.root.exists()


def test_a_user_key_that_is_missing(ssh_home, tmp_path):
    write(ssh_home, ssh_home.sshd.address, identity=tmp_path / "nothing")
    said(ssh_home.launch("ps", "--host", "gpu8"), "nothing", "identity_file")


def test_known_hosts_that_are_garbage(ssh_home):
    (ssh_home.home / "launch.known_hosts").write_bytes(b"\xff\xfe\0 garbage\n")
    said(ssh_home.launch("ps", "--host", "gpu8"), "launch.known_hosts", code=Exit.INVALID)


def test_an_ssh_config_that_is_garbage(ssh_home):
    (ssh_home.home / "ssh_config").write_text("Host\nwhat is this\n")
    said(ssh_home.launch("ps", "--host", "gpu8"), "ssh config", code=Exit.INVALID)


def test_hosts_shows_the_good_and_the_bad_side_by_side(ssh_home):
    with open(ssh_home.home / "launch.toml", "a") as file:
        file.write('[hosts.gone]\nssh = "root@no-such-host.invalid"\n')
    result = ssh_home.launch("hosts")
    assert result.returncode == 4
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert " yes " in lines["gpu8"]
    assert " no" in lines["gone"]
    assert "cannot be resolved" in result.stderr


def write(home, ssh, *, identity=None):
    identity = identity or home.sshd.user_key
    (home.home / "launch.toml").write_text(
        f'[hosts.gpu8]\nssh = "{ssh}"\nroot = "{home.root}"\nidentity_file = "{identity}"\n'
    )


def files(home):
    return {p.name: p.read_bytes() for p in home.home.iterdir() if p.is_file()}


@pytest.fixture
def empty_home(ssh_home):
    """No launch.toml, no known hosts: as on the first day."""
    (ssh_home.home / "launch.toml").unlink()
    (ssh_home.home / "launch.known_hosts").unlink()
    return ssh_home


def add(home, *args, ssh=None):
    return home.launch(
        "host", "add", "new", "--ssh", ssh or home.sshd.address, "--identity-file", str(home.sshd.user_key), *args
    )


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_a_host_is_added_with_any_of_its_fingerprints_and_then_reached(empty_home, kind):
    result = add(
        empty_home, "--root", str(empty_home.root), "--gpus", "2", "--fingerprint", empty_home.sshd.fingerprint(kind)
    )
    assert result.returncode == 0, result.stderr
    known = (empty_home.home / "launch.known_hosts").read_text()
    assert known == empty_home.sshd.known_hosts(kind)
    shown = subprocess.run(
        ["ssh-keygen", "-F", f"[127.0.0.1]:{empty_home.sshd.port}", "-f", empty_home.home / "launch.known_hosts"],
        capture_output=True,
    )
    assert shown.returncode == 0
    assert empty_home.launch("ps", "--host", "new").returncode == 0


def test_another_fingerprint_writes_nothing(empty_home, tmp_path):
    before = files(empty_home)
    wrong = parts.fingerprint(parts.make_key(tmp_path / "other").with_suffix(".pub"))
    said(add(empty_home, "--fingerprint", wrong), wrong, empty_home.sshd.fingerprint(), "nothing was written")
    assert files(empty_home) == before


def test_a_fingerprint_that_is_none_is_a_usage_error(empty_home):
    before = files(empty_home)
    result = add(empty_home, "--fingerprint", "MD5:aa:bb")
    assert result.returncode == Exit.USAGE
    assert files(empty_home) == before


def test_without_a_terminal_nobody_is_asked_and_nothing_is_written(empty_home):
    before = files(empty_home)
    said(add(empty_home), "--fingerprint", empty_home.sshd.fingerprint("ed25519"), code=Exit.USAGE)
    assert files(empty_home) == before


@pytest.mark.parametrize("answer", ["y", "n"])
def test_on_a_terminal_the_person_decides(empty_home, answer):
    before = files(empty_home)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", "host", "add", "new", "--ssh", empty_home.sshd.address],
        cwd=empty_home.home,
        env=empty_home.environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux: the terminal ends with an error when the program has gone
        while data := os.read(ours, 4096):
            if b"?" in data:
                os.write(ours, answer.encode() + b"\n")
            shown += data
    process.wait(60)
    os.close(ours)
    assert empty_home.sshd.fingerprint("ed25519").encode() in shown
    assert empty_home.sshd.fingerprint("ecdsa").encode() in shown
    if answer == "y":
        assert process.returncode == 0
        assert sorted((empty_home.home / "launch.known_hosts").read_text().splitlines(keepends=True)) == sorted(
            empty_home.sshd.known_hosts(kind) for kind in ("ed25519", "ecdsa")
        )
    else:
        assert process.returncode != 0
        assert files(empty_home) == before


def test_an_alias_of_the_ssh_config_is_known_by_its_real_name(empty_home):
    user, _, port = empty_home.sshd.address.partition("@")[0], None, empty_home.sshd.port
    (empty_home.home / "ssh_config").write_text(
        f"Host rented\n  HostName 127.0.0.1\n  Port {port}\n  User {user}\n  IdentityFile {empty_home.sshd.user_key}\n"
    )
    result = empty_home.launch("host", "add", "new", "--ssh", "rented", "--fingerprint", empty_home.sshd.fingerprint())
    assert result.returncode == 0, result.stderr
    assert (empty_home.home / "launch.known_hosts").read_text() == empty_home.sshd.known_hosts()
    assert empty_home.launch("ps", "--host", "new").returncode == 0


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_a_jump_on_the_way_must_be_known_too(own_home, known):
    port, user = own_home.sshd.port, own_home.sshd.address.partition("@")[0]
    (own_home.home / "ssh_config").write_text(
        f"Host inner\n  HostName 127.0.0.1\n  Port {port}\n  ProxyJump {user}@localhost:{port}\n"
        f"Host *\n  IdentityFile {own_home.sshd.user_key}\n"
    )
    write(own_home, "inner")
    if known:
        with open(own_home.home / "launch.known_hosts", "a") as file:
            file.write(own_home.sshd.known_hosts().replace("127.0.0.1", "localhost"))
        assert own_home.launch("ps", "--host", "gpu8").returncode == 0
    else:
        said(own_home.launch("ps", "--host", "gpu8"), f"[localhost]:{port}", "on the way there")
        assert accepted(own_home.sshd) == 0


def test_a_name_that_is_taken_is_refused_with_the_remedy(ssh_home):
    before = files(ssh_home)
    result = ssh_home.launch("host", "add", "gpu8", "--ssh", "x", "--fingerprint", "SHA256:" + "a" * 43)
    said(result, "launch host forget gpu8", code=Exit.REFUSED)
    assert files(ssh_home) == before


def test_forget_takes_the_entry_and_the_key_and_leaves_the_rest(ssh_home):
    toml, known = ssh_home.home / "launch.toml", ssh_home.home / "launch.known_hosts"
    toml.write_text("# mine\n[hosts.other] # keep\nssh = 'other'\n\n" + toml.read_text())
    known.write_text("# mine\nother ssh-ed25519 AAAA\n" + known.read_text())
    assert ssh_home.launch("host", "forget", "gpu8").returncode == 0
    assert toml.read_text() == "# mine\n[hosts.other] # keep\nssh = 'other'\n"
    assert known.read_text() == "# mine\nother ssh-ed25519 AAAA\n"


def test_forget_keeps_the_key_while_another_entry_has_the_address(ssh_home):
    with open(ssh_home.home / "launch.toml", "a") as file:
        file.write(f'\n[hosts.twin]\nssh = "{ssh_home.sshd.address}"\n')
    assert ssh_home.launch("host", "forget", "twin").returncode == 0
    assert (ssh_home.home / "launch.known_hosts").read_text() == ssh_home.sshd.known_hosts()


def test_init_writes_what_can_be_read_and_never_overwrites(empty_home):
    assert empty_home.launch("init").returncode == 0
    assert empty_home.launch("ps").returncode == 0
    before = files(empty_home)
    said(empty_home.launch("init"), "launch.toml is there already", code=Exit.REFUSED)
    assert files(empty_home) == before


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client")
def test_the_openssh_client_trusts_exactly_what_the_transport_trusts(own_home):
    from launch.transport import ssh_command, ssh_destination

    def ssh():
        argv = [*ssh_command(own_home.host, own_home.inventory), ssh_destination(own_home.host), "echo in"]
        return subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL)

    assert ssh().stdout == b"in\n"
    (own_home.home / "launch.known_hosts").unlink()
    assert ssh().returncode == 255


@pytest.mark.parametrize("line", ["@revoked gpu8 ssh-ed25519 nonsense", "@revoked", "gpu8", "gpu8 ssh-ed25519 AAAA"])
def test_a_line_of_known_hosts_that_is_no_entry_is_named_in_words(ssh_home, line):
    with open(ssh_home.home / "launch.known_hosts", "a") as file:
        file.write(f"# a comment\n\n{line}\n")
    done = ssh_home.launch("ps", "--host", "gpu8")
    said(done, "line 4", code=Exit.INVALID)
    assert "('" not in done.stderr and "Error" not in done.stderr


def test_a_revoked_key_lets_nobody_in_and_other_lines_of_a_standard_file_are_no_trouble(ssh_home):
    known = ssh_home.home / "launch.known_hosts"
    other = ssh_home.sshd.known_hosts("ecdsa").split(None, 1)[1]
    known.write_text(
        f"@cert-authority *.example.com {other}old.example.com sk-ssh-ed25519@openssh.com AAAA\n"
        f"@revoked * {other}{known.read_text()}"
    )
    assert ssh_home.launch("ps", "--host", "gpu8").returncode == 0
    known.write_text(f"{known.read_text()}@revoked * {ssh_home.sshd.known_hosts().split(None, 1)[1]}")
    said(ssh_home.launch("ps", "--host", "gpu8"), "not known")
