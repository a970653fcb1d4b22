"""Ways to a host: jumps, an agent, certificates, a password that is asked once; new keys, and forgetting."""

import contextlib
import os
import pathlib
import pty
import secrets
import shutil
import subprocess
import sys
import time

import pytest

from launch.errors import Exit
from launch.transport import ssh_command, ssh_destination
from minimind.process import boot_id, start_time
from minimind.rundir import RunSpec, to_json
from tests.conftest import make_ssh_home
from tests.support import sshd as parts
from tests.support.launching import wait_for

pytestmark = [
    pytest.mark.sshd,
    pytest.mark.skipif(bool(parts.MISSING) or shutil.which("ssh") is None, reason=parts.MISSING or "needs ssh"),
]


@pytest.fixture
def serve(tmp_path):
    """Starts servers of this test alone."""
    with contextlib.ExitStack() as stack:

        def start(name: str, **options):
            server = parts.start(tmp_path / name, **options)
            stack.callback(lambda: server.process.poll() is None and server.stop())
            return server

        yield start


def accepted(server) -> int:
    return server.log().count("Accepted publickey")


def through(home, jump, target, *, identity=True):
    """Make gpu8 an alias whose way leads through the jump, by a name of its own."""
    user, key = target.address.partition("@")[0], f"\n  IdentityFile {jump.user_key}" if identity else ""
    (home.home / "ssh_config").write_text(
        f"Host door\n  HostName localhost\n  Port {jump.port}\n  User {user}{key}\n"
        f"Host inner\n  HostName 127.0.0.1\n  Port {target.port}\n  User {user}\n  ProxyJump door\n"
    )
    toml = home.home / "launch.toml"
    toml.write_text(toml.read_text().replace(target.address, "inner"))
    door = jump.known_hosts().replace("127.0.0.1", "localhost")
    (home.home / "launch.known_hosts").write_text(target.known_hosts() + door)


def test_commands_and_rsync_go_through_a_jump_with_a_key_of_its_own(tmp_path, serve):
    jump, target = serve("jump"), serve("target")
    home = make_ssh_home(tmp_path, target)
    through(home, jump, target)
    weights = secrets.token_bytes(5 << 20)
    (home.root / "out").mkdir(parents=True)
    (home.root / "out" / "pretrain_64.pth").write_bytes(weights)
    done = home.launch("sync-out", "--host", "gpu8", "--to", "copy")
    assert (home.home / "copy" / "out" / "pretrain_64.pth").read_bytes() == weights, done.stderr
    assert accepted(jump) == accepted(target) == 2  # the kept connection, and rsync's own
    argv = [*ssh_command(home.host, home.inventory), ssh_destination(home.host), "echo in"]
    assert subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL).stdout == b"in\n"


def test_no_client_trusts_a_jump_that_launch_does_not_know(tmp_path, serve):
    jump, target = serve("jump"), serve("target")
    home = make_ssh_home(tmp_path, target)
    through(home, jump, target)
    (home.home / "launch.known_hosts").write_text(target.known_hosts())
    argv = [*ssh_command(home.host, home.inventory), ssh_destination(home.host), "echo in"]
    done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 255 and done.stdout == b""
    assert home.launch("ps", "--host", "gpu8").returncode == Exit.UNREACHABLE
    assert accepted(jump) == accepted(target) == 0


def test_a_key_in_an_agent_is_enough(tmp_path, serve):
    server = serve("server")
    home = make_ssh_home(tmp_path, server)
    toml = home.home / "launch.toml"
    toml.write_text("".join(line for line in toml.read_text().splitlines(True) if "identity_file" not in line))
    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        wait_for(socket.exists, timeout_s=10)
        home.environ.update(SSH_AUTH_SOCK=str(socket), HOME=str(tmp_path))
        refused = home.launch("ps", "--host", "gpu8")
        assert refused.returncode == Exit.UNREACHABLE and "--install-key" in refused.stderr
        subprocess.run(["ssh-add", "-q", server.user_key], env=home.environ, check=True)
        assert home.launch("ps", "--host", "gpu8").returncode == 0
    finally:
        agent.terminate()
        agent.wait()


def test_a_certificate_beside_the_key_is_shown_to_the_server(tmp_path, serve):
    authority = parts.make_key(tmp_path / "authority")
    key = parts.make_key(tmp_path / "signed")
    options = f"TrustedUserCAKeys {authority}.pub\nAuthorizedKeysFile none"
    server = serve("server", options=options)
    home = make_ssh_home(tmp_path, server)
    toml = home.home / "launch.toml"
    toml.write_text(toml.read_text().replace(str(server.user_key), str(key)))
    assert home.launch("ps", "--host", "gpu8").returncode == Exit.UNREACHABLE
    user = server.address.partition("@")[0]
    subprocess.run(["ssh-keygen", "-q", "-s", authority, "-I", "me", "-n", user, f"{key}.pub"], check=True)
    assert home.launch("ps", "--host", "gpu8").returncode == 0
    assert "ID me" in server.log()


@pytest.fixture
def newcomer(tmp_path):
    """A user of this machine with a password and no key: its name and password."""
    if os.geteuid() != 0 or shutil.which("useradd") is None:
        pytest.skip("needs root and useradd")
    name, password = f"mm{secrets.token_hex(4)}", f"pass-{secrets.token_hex(12)}"
    tmp_path.chmod(0o755)
    subprocess.run(["useradd", "--create-home", "--home-dir", f"/tmp/{name}", "--shell", "/bin/sh", name], check=True)
    subprocess.run(["chpasswd"], input=f"{name}:{password}\n", text=True, check=True)
    yield name, password
    subprocess.run(["pkill", "-KILL", "-u", name], check=False)
    subprocess.run(["userdel", "--remove", "--force", name], check=False, capture_output=True)


def converse(home, *words: str, answers: list[tuple[bytes, str]]) -> tuple[int, bytes, set[str]]:
    """Run launch on a terminal and answer what it asks; also tells who showed the last answer in /proc meanwhile."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", *words],
        cwd=home.home,
        env=home.environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown, said, holders, secret = b"", 0, set(), answers[-1][1].encode()
    with contextlib.suppress(OSError):
        while data := os.read(ours, 4096):
            shown += data
            while answers and answers[0][0] in shown[said:]:
                said = len(shown)
                time.sleep(0.2)  # a password prompt empties what was typed ahead
                os.write(ours, answers.pop(0)[1].encode() + b"\n")
            for file in (f"/proc/{pid}/{name}" for pid in os.listdir("/proc") for name in ("cmdline", "environ")):
                with contextlib.suppress(OSError):
                    holders |= {file} if secret in pathlib.Path(file).read_bytes() else set()
    process.wait(60)
    os.close(ours)
    return process.returncode, shown, holders


def test_a_password_is_asked_without_echo_and_a_key_takes_its_place(tmp_path, serve, newcomer):
    name, password = newcomer
    server = serve("server", options="PasswordAuthentication yes\nAuthorizedKeysFile .ssh/authorized_keys")
    home = make_ssh_home(tmp_path, server)
    (home.home / "launch.toml").unlink()
    key = parts.make_key(tmp_path / "mine")
    words = ("host", "add", "new", "--ssh", f"{name}@127.0.0.1:{server.port}", "--identity-file", str(key))
    blind = home.launch(*words, "--fingerprint", server.fingerprint(), "--install-key")
    assert blind.returncode == Exit.USAGE and "terminal" in blind.stderr
    (home.home / "launch.toml").unlink()
    answers = [
        (b"say the same?", "y"),
        (b"with its password?", "y"),
        (b"Password", "wrong-password"),
        (b"Password", password),
    ]
    code, shown, holders = converse(home, *words, answers=answers)
    assert code == 0, shown
    assert b"ssh-keygen -l -f" in shown and server.fingerprint().encode() in shown
    assert password.encode() not in shown and b"wrong-password" not in shown and holders == set()
    there = pathlib.Path(f"/tmp/{name}/.ssh/authorized_keys")
    assert there.read_text() == key.with_suffix(".pub").read_text()
    assert (there.stat().st_mode & 0o777, there.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert server.log().count("Accepted password") == 1
    assert home.launch("ps", "--host", "new").returncode == 0
    again = converse(
        home,
        "host",
        "add",
        "new",
        "--replace-key",
        "--install-key",
        "--fingerprint",
        server.fingerprint(),
        answers=[(b"Password", password)],
    )
    assert again[0] == 0, again[1]
    assert there.read_text() == key.with_suffix(".pub").read_text()  # not twice


def test_a_host_without_passwords_is_never_asked_for_one(tmp_path, serve):
    server = serve("server")
    home = make_ssh_home(tmp_path, server)
    done = home.launch("host", "add", "gpu8", "--replace-key", "--install-key", "--fingerprint", server.fingerprint())
    assert done.returncode == Exit.UNREACHABLE and "lets nobody in by password" in done.stderr


def test_a_machine_that_was_made_anew_is_trusted_again_by_one_command(tmp_path, serve):
    old, new = serve("old"), serve("new")
    home = make_ssh_home(tmp_path, new)
    toml, known = home.home / "launch.toml", home.home / "launch.known_hosts"
    toml.write_text(f"# mine\n{toml.read_text()}# the end\n")
    known.write_text(f"# keys\n[127.0.0.1]:{new.port} {old.known_hosts().partition(' ')[2]}")
    refused = home.launch("ps", "--host", "gpu8")
    assert refused.returncode == Exit.UNREACHABLE and "launch host add gpu8 --replace-key" in refused.stderr
    assert "Accepted" not in new.log()
    before = toml.read_text(), known.read_text()
    wrong = home.launch("host", "add", "gpu8", "--replace-key", "--fingerprint", old.fingerprint())
    assert wrong.returncode == Exit.UNREACHABLE and (toml.read_text(), known.read_text()) == before
    assert home.launch("host", "add", "gpu8", "--replace-key", "--fingerprint", new.fingerprint()).returncode == 0
    assert toml.read_text() == before[0] and known.read_text() == f"# keys\n{new.known_hosts()}"
    assert home.launch("ps", "--host", "gpu8").returncode == 0


def test_a_new_address_replaces_the_old_one_and_its_key(tmp_path, serve):
    old, new = serve("old"), serve("new")
    home = make_ssh_home(tmp_path, old)
    words = ("host", "add", "gpu8", "--replace-key", "--ssh", new.address, "--fingerprint", new.fingerprint())
    assert home.launch(*words).returncode == 0
    text = (home.home / "launch.toml").read_text()
    assert f'ssh = "{new.address}"' in text and str(home.root) in text and old.address not in text
    assert (home.home / "launch.known_hosts").read_text() == new.known_hosts()


def test_a_host_with_a_live_run_is_forgotten_only_by_force(tmp_path, serve):
    home = make_ssh_home(tmp_path, serve("server"))
    run_dir = home.root / "runs" / "20260101-000000-dpo-0123"
    (run_dir / "attempts" / "1").mkdir(parents=True)
    with subprocess.Popen(["sleep", "300"]) as alive:  # what its handle names lives, and that is all that counts
        spec = RunSpec(run_id=run_dir.name, stage="dpo", flags=[], nproc=1, executor="venv")
        handle = {"pid": alive.pid, "start_time": start_time(alive.pid), "boot_id": boot_id(), "attempt": 1}
        (run_dir / "spec.json").write_bytes(spec.to_json())
        (run_dir / "handle.json").write_bytes(to_json(handle))
        refused = home.launch("host", "forget", "gpu8")
        assert refused.returncode == Exit.REFUSED and run_dir.name in refused.stderr
        assert "[hosts.gpu8]" in (home.home / "launch.toml").read_text()
        assert home.launch("host", "forget", "gpu8", "--force").returncode == 0
        alive.kill()
    assert run_dir.exists()


def test_a_host_that_is_gone_is_forgotten_all_the_same(tmp_path, serve):
    server = serve("server")
    home = make_ssh_home(tmp_path, server)
    server.stop()
    done = home.launch("host", "forget", "gpu8")
    assert done.returncode == 0 and "could not be asked" in done.stderr
    assert (home.home / "launch.known_hosts").read_text() == ""
