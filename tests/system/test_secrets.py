"""A secret reaches the ranks and nothing else: no process list, no file, no output, here or on the host."""

import json
import os
import pathlib
import secrets as random
import signal
import subprocess
import sys
import time

import pytest

from minimind.rundir import RunSpec
from tests.support import launching
from tests.support.docker import docker
from tests.support.launching import AS_IT_IS, LONG, TRAIN, log_of, run_dirs, wait_for

pytestmark = pytest.mark.sshd
NAME = "CANARY_TOKEN"


def plant(home, value, *, mode=0o600):
    """Name the secret in launch.toml and put its value into launch.secrets."""
    home.apart = True  # what its process shows is the question
    toml = home.home / "launch.toml"
    toml.write_text(f'secrets = ["{NAME}"]\n{toml.read_text()}')
    file = home.home / "launch.secrets"
    file.write_text(f"# mine\n{NAME}={value}\n")
    file.chmod(mode)
    return file


def holders(value: str, *, inside=()) -> set[str]:
    """Files of /proc that show the value: arguments and environments of every process but those below ``inside``."""
    found = set()
    for process in (pathlib.Path("/proc", pid) for pid in os.listdir("/proc") if pid.isdecimal()):
        for name in ("cmdline", "environ"):
            try:
                data = (process / name).read_bytes()
                mine = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                if value.encode() in data and not any(str(run).encode() in mine for run in inside):
                    found.add(f"{process.name}/{name}: {(process / 'cmdline').read_bytes()[:200]!r}")
            except OSError:
                continue
    return found


def files_with(value: str, *folders: pathlib.Path, but=()) -> list[pathlib.Path]:
    return [
        path
        for folder in folders
        for path in ([folder] if folder.is_file() else folder.rglob("*"))
        if path.is_file() and path not in but and value.encode() in path.read_bytes()
    ]


def handed_over() -> set[pathlib.Path]:
    return set(pathlib.Path("/dev/shm").glob("minimind-*"))


def ranks_with(value: str, run_dir: pathlib.Path) -> list[str]:
    """Processes that train this run and have the variable."""
    found = []
    for process in (pathlib.Path("/proc", pid) for pid in os.listdir("/proc") if pid.isdecimal()):
        try:
            command, environ = (process / "cmdline").read_bytes(), (process / "environ").read_bytes().split(b"\0")
            if str(run_dir).encode() in command and f"{NAME}={value}".encode() in environ:
                found.append(command.decode())
        except OSError:
            continue
    return found


@pytest.fixture
def home(tmp_path, sshd):
    made = launching.make_home(tmp_path, sshd)
    yield made
    launching.end_all(made)


@pytest.mark.parametrize(
    "executor", [pytest.param("venv", marks=pytest.mark.soak), pytest.param("docker", marks=pytest.mark.docker)]
)
def test_a_canary_is_in_the_environment_of_the_ranks_and_in_nothing_else(tmp_path, sshd, executor, request):
    extra = AS_IT_IS
    if executor == "docker":
        extra = f'executor = "docker"\nimage = "{request.getfixturevalue("training_image")}"\n'
    home, value, before = (
        launching.make_home(tmp_path, sshd, extra=extra),
        f"canary-{random.token_hex(16)}",
        handed_over(),
    )
    file = plant(home, value)
    seen: set[str] = set()
    try:
        words = ("run", "pretrain", "--host", "gpu8", "--nproc", "2")
        dry = [home.launch(*words, "--dry-run", *more, "--", *LONG, timeout=200) for more in ((), ("--json",))]
        assert all(done.returncode == 0 and f'"{NAME}"' in done.stdout for done in dry), dry
        launcher = launching.start(home, *words, "--json", "--", *LONG)
        while not (run_dirs(home) and launching.steps_of(run_dirs(home)[0]) >= 1):  # all the way from start to training
            assert launcher.poll() is None, launcher.communicate()
            seen |= holders(value, inside=run_dirs(home))
            time.sleep(0.05)
        (run_dir,) = run_dirs(home)
        ranks = ranks_with(value, run_dir)
        assert sum("minimind.supervise" in rank for rank in ranks) == 0 and len(ranks) >= 2, ranks
        wait_for(lambda: handed_over() <= before, timeout_s=10)
        told = ""
        if executor == "docker":
            container = json.loads((run_dir / "handle.json").read_bytes())["container"]
            told = docker("inspect", container).stdout + docker("logs", container).stdout
            assert "minimind-secrets.json" in told
        said = [
            home.launch("ps", "--json"),
            home.launch("logs", "last"),
            home.launch("secrets", "check", "gpu8", "--json"),
        ]
        assert said[-1].returncode == 0, said[-1].stdout + said[-1].stderr
        os.killpg(launcher.pid, signal.SIGINT)
        outs = launcher.communicate(timeout=60)
        home.launch("stop", "last", "--now", timeout=200)
        for done in (*dry, *said):
            told += done.stdout + done.stderr
        assert value not in told + outs[0].decode() + outs[1].decode()
        assert seen == set()
        assert json.loads((run_dir / "spec.json").read_bytes())["secret_names"] == [NAME]
        assert files_with(value, home.home, home.root, but=(file,)) == []
    finally:
        launching.end_all(home)
        for run_dir in run_dirs(home) if executor == "docker" else []:
            names = docker("ps", "--all", "--quiet", "--filter", f"label=org.minimind.run_id={run_dir.name}").stdout
            if names.split():
                docker("rm", "--force", *names.split())


def test_a_secret_from_the_environment_leaves_it_and_a_resume_finds_it_again(home):
    value = f"canary-{random.token_hex(16)}"
    plant(home, "is-not-used-from-the-file").unlink()
    home.environ[NAME] = value
    started = home.launch("run", "pretrain", "--host", "gpu8", "--detach", "--", *LONG)
    assert started.returncode == 0, started.stderr
    run_dir = home.root / "runs" / started.stdout.strip()
    wait_for(lambda: ranks_with(value, run_dir))
    assert holders(value, inside=[run_dir]) == set()  # its supervisor, a child of launch's connection, has none
    assert home.launch("stop", "last", "--now").returncode == 0
    resumed = home.launch("resume", "last", "--detach")
    assert resumed.returncode == 0, resumed.stderr
    wait_for(lambda: ranks_with(value, run_dir))
    assert home.launch("stop", "last", "--now").returncode == 0
    del home.environ[NAME]
    refused = home.launch("resume", "last", "--detach")
    assert refused.returncode == 3 and NAME in refused.stderr and "launch secrets check" in refused.stderr


def test_a_local_run_is_handed_its_secret_too(tmp_path):
    home, value = launching.local_home(tmp_path), f"canary-{random.token_hex(16)}"
    (home.home / "launch.toml").write_text("")
    plant(home, value)
    started = home.launch("run", "pretrain", "--detach", "--", *LONG)
    assert started.returncode == 0, started.stderr
    run_dir = home.root / "runs" / started.stdout.strip()
    try:
        wait_for(lambda: ranks_with(value, run_dir))
        assert holders(value, inside=[run_dir]) == set()
    finally:
        home.launch("stop", "last", "--now")


def test_what_a_host_prints_back_is_covered_in_logs_and_errors(ssh_home):
    home = ssh_home
    value = f"canary-{random.token_hex(16)}"
    plant(home, value)
    run_dir = home.root / "runs" / "20260101-000000-pretrain-0123"
    log_of(run_dir).parent.mkdir(parents=True)
    spec = RunSpec(run_id=run_dir.name, stage="pretrain", flags=[], nproc=1, executor="venv", secret_names=[NAME])
    (run_dir / "spec.json").write_bytes(spec.to_json())
    log_of(run_dir).write_text(f"key={value}\nkey={value[:9]}")  # as a trainer that prints its environment would
    home.environ["PYTHONIOENCODING"] = "ascii"
    listed = home.launch("ps", "--host", value)  # an error that repeats what was typed
    assert listed.returncode == 3 and value not in listed.stderr and "*****" in listed.stderr
    shown = home.launch("logs", "last")
    assert shown.stdout.endswith(f"key=*****\nkey={value[:9]}") and value not in shown.stdout
    found = home.launch("secrets", "check", "gpu8", "--json")
    assert found.returncode == 8 and value not in found.stdout + found.stderr
    assert str(log_of(run_dir)) in found.stdout
    told = json.loads(found.stdout)
    assert [hit["secret"] for place in told["places"] for hit in place["hits"]] == [NAME]


def test_a_secret_in_a_file_that_others_can_read_is_refused_before_anything_is_sent(ssh_home):
    home = ssh_home
    plant(home, "canary-in-the-open", mode=0o644)
    refused = home.launch("run", "pretrain", "--host", "gpu8", "--", *TRAIN)
    assert refused.returncode == 3 and "0644" in refused.stderr and "chmod 600" in refused.stderr
    assert run_dirs(home) == [] and "canary-in-the-open" not in refused.stderr
    checked = json.loads(home.launch("secrets", "check", "--json").stdout)
    assert checked["secrets"][0]["mode"] == "0644" and "0644" in checked["secrets"][0]["trouble"]


def test_a_start_that_fails_leaves_no_secret_on_the_host(home):
    before = handed_over()
    plant(home, "canary-of-a-failed-start")
    (home.root).mkdir(parents=True)
    (home.root / "runs").write_text("no folder can be made here")
    failed = home.launch("run", "pretrain", "--host", "gpu8", "--", *TRAIN)
    assert failed.returncode != 0 and "canary" not in failed.stderr
    assert handed_over() <= before


def test_a_launcher_that_crashes_leaves_no_core_with_a_secret(ssh_home):
    home = ssh_home
    value = f"canary-{random.token_hex(16)}"
    plant(home, value)
    probe = (
        "import os, resource, ctypes, launch.cli, launch.cli.ps as ps\n"
        "from launch.cli import session\n"
        "def fall(**_):\n"
        "    session.load()\n"
        "    print(resource.getrlimit(resource.RLIMIT_CORE)[0], ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), flush=True)\n"
        "    os.abort()\n"
        "ps.ps.callback = fall\nlaunch.cli.main(['ps'])"
    )
    limit = f'ulimit -c unlimited; exec {sys.executable} -c "$0"'
    done = subprocess.run(["bash", "-c", limit, probe], cwd=home.home, env=home.environ, capture_output=True, text=True)
    assert done.returncode == -signal.SIGABRT, done.stderr
    assert done.stdout.split() == ["0", "0"]  # no size, and not dumpable
    assert files_with(value, home.home, but=(home.home / "launch.secrets",)) == []
