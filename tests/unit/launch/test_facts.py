"""The probe: what it prints on this machine, and how every answer of other machines is read."""

import os
import pathlib
import platform
import subprocess

import pytest

from launch.environment import virtual
from launch.facts import parse, parse_paths, probe
from minimind.process import kernel_state

STUCK = "#!/bin/sh\ntrap '' TERM\necho $$ >>{pids}\nwhile :; do sleep 0.1; done\n"
MINIMAL = "root=/r\nhome=/home/me\nnow=1700000000\nsystem=Linux\nuid=1000\ngid=1000\n"


def ask(*args, env=None) -> str:
    return subprocess.run(probe(*args), capture_output=True, text=True, check=True, env=env).stdout


def test_the_probe_tells_this_machine_and_expands_the_root(tmp_path):
    found = parse(ask("~/a b", None, []))
    assert found.root == f"{found.home}/a b"
    assert found.system and found.cpus >= 1 and found.now > 1.7e9 and found.free_bytes > 0
    assert found.python_ready and found.python.startswith("/")


def test_a_named_interpreter_is_the_only_one_looked_at():
    assert parse(ask("/r", "/nowhere/python", [])).python is None


def test_files_and_folders_are_told_apart_and_the_root_stands_for_itself(tmp_path):
    (tmp_path / "a file").write_bytes(b"abc")
    paths = ["@/a file", str(tmp_path), "@/none", str(tmp_path / "a file")]
    there = parse_paths(ask(str(tmp_path), None, paths), paths)
    assert there.keys() == {"@/a file", str(tmp_path), str(tmp_path / "a file")}
    assert there["@/a file"].bytes == 3
    assert there["@/a file"].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert there[str(tmp_path)].sha256 is None


@pytest.mark.parametrize("timeout", ["have timeout", "false"])
def test_a_df_that_hangs_is_named_and_ended_and_all_else_is_told(tmp_path, timeout):
    """As on a stale network mount, also where there is no timeout(1); it does not listen to TERM."""
    (tmp_path / "df").write_text(STUCK.format(pids=tmp_path / "pids"))
    (tmp_path / "df").chmod(0o755)
    more = "say last words\n{ brief df -Pk | while read -r line; do say disk no; done; } &\n"
    argv = probe("~/a b", None, ["/"], more=more)
    argv[2] = argv[2].replace("limit=10", "limit=1").replace("have timeout", timeout)
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    told = subprocess.run(argv, capture_output=True, text=True, check=True, env=path, timeout=8).stdout
    found = parse(told)
    assert found.python_ready and found.free_bytes is None and "path=folder" in told and "last=words" in told
    assert told.count("silent=df\n") == 2
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2 and all(kernel_state(pid) in ("", "Z", "X") for pid in pids)


def test_a_date_that_tells_no_time_is_no_time():
    assert parse(MINIMAL.replace("1700000000", "abc")).now is None and parse(MINIMAL).now == 1700000000
    with pytest.raises(ValueError, match="number for uid"):
        parse(MINIMAL.replace("uid=1000", "uid=me"))


def test_shell_words_in_paths_are_only_words(tmp_path):
    hostile = ["$(touch pwned)", "`touch pwned`", "'; touch pwned; '", "-n", "@/$(touch pwned)"]
    subprocess.run(probe(str(tmp_path / "$(touch pwned)"), "$(touch pwned)", hostile), cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_shell_that_is_none_is_told_from_a_host():
    with pytest.raises(ValueError, match="root"):
        parse("This account is currently not available.\n")


def test_a_banner_before_the_answer_does_no_harm():
    assert parse("Welcome = to the machine\n\n" + MINIMAL).root == "/r"


@pytest.mark.parametrize(
    ("line", "usable", "nvidia"),
    [
        ("", False, False),
        ("docker=", False, False),
        ('docker={"ServerVersion":"","Runtimes":null,"ServerErrors":["Cannot connect"]}', False, False),
        ('docker={"ServerVersion":"20.10.24+dfsg1","Runtimes":{"runc":{"path":"runc"}}}', True, False),
        ('docker={"ServerVersion":"28.2.2","Runtimes":{"nvidia":{},"runc":{"path":"runc"}}}', True, True),
        ('docker={"ServerVersion":"28.2.2","Runtimes":{"runc":{}}}\ngpus_option=1', True, True),
    ],
)
def test_an_engine_is_usable_when_it_answers(line, usable, nvidia):
    found = parse(MINIMAL + line + "\n")
    assert (found.docker_usable, found.docker_has_nvidia) == (usable, nvidia)


@pytest.mark.parametrize(
    ("line", "free_bytes"),
    [
        ("/dev/vda 264212084 24350928 82039984 23% /", 82039984 * 1024),
        ("map auto_home 0 0 0 100% /System/Volumes/Data/home", 0),
        ("//nas/my share 100 10 90 10% /mnt/my disk", 90 * 1024),
        ("overlay 100 150 -50 150% /", 0),
        ("", None),
    ],
)
def test_free_space_is_read_whatever_the_disk_is_called(line, free_bytes):
    assert parse(f"{MINIMAL}df={line}\n").free_bytes == free_bytes


def test_the_newest_python_counts_and_an_old_one_is_told():
    assert parse(MINIMAL + "python=3.9.2 /usr/bin/python3\npython=3.12.1 /opt/p y\n").python == "/opt/p y"
    old = parse(MINIMAL + "python=3.9.2 /usr/bin/python3\npython=\n")
    assert (old.python_version, old.python_ready) == ((3, 9, 2), False)


def test_each_gpu_is_a_line():
    gpus = "gpu=NVIDIA H100 80GB HBM3, 81559 MiB\n" * 2
    assert parse(MINIMAL + gpus).gpus == ("NVIDIA H100 80GB HBM3, 81559 MiB",) * 2


def starting(environment: pathlib.Path, says: str = "cp312") -> None:
    """A whole environment as far as the probe can tell: its interpreter starts and says its version."""
    (environment / "bin").mkdir(parents=True)
    (environment / "pyvenv.cfg").write_text("")
    (environment / ".complete").write_text("{}")
    python = environment / "bin" / "python"
    python.write_text(f"#!/bin/sh\necho {says}\n")
    python.chmod(0o755)


def unlink(environment: pathlib.Path) -> None:
    (environment / "bin" / "python").unlink()


def dangle(environment: pathlib.Path) -> None:
    unlink(environment)
    (environment / "bin" / "python").symlink_to("/nowhere/python3")


def forbid(environment: pathlib.Path) -> None:
    (environment / "bin" / "python").write_bytes(b"\x7fELF of another machine")


def grow(environment: pathlib.Path) -> None:
    (environment / "bin" / "python").write_text("#!/bin/sh\necho cp313\n")


def forget(environment: pathlib.Path) -> None:
    (environment / "pyvenv.cfg").unlink()


@pytest.mark.parametrize("damage", [unlink, dangle, forbid, grow, forget])
def test_an_environment_whose_interpreter_does_not_start_counts_as_not_there(tmp_path, damage):
    paths = [virtual.marker("a" * 64), "@/other"]
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 3.12.7 $0\n")
    python.chmod(0o755)
    made = pathlib.Path(parse(ask(str(tmp_path), str(python), paths)).expand(paths[0])).parent
    starting(made)
    (tmp_path / "other").write_text("x")
    assert parse_paths(ask(str(tmp_path), str(python), paths), paths).keys() == {*paths}
    damage(made)
    assert parse_paths(ask(str(tmp_path), str(python), paths), paths).keys() == {"@/other"}


def test_an_environment_of_another_python_is_not_taken_for_the_hosts(tmp_path):
    """Two hosts share a disk: the environment that one made is none for the other, whose Python has another minor."""
    paths = [virtual.marker("a" * 64)]
    made = tmp_path / "root"
    for minor, there in ((12, True), (13, False)):
        python = tmp_path / f"python{minor}"
        python.write_text(f"#!/bin/sh\necho 3.{minor}.7 $0\n")
        python.chmod(0o755)
        text = ask(str(made), str(python), paths)
        found = parse(text)
        if there:
            assert found.python_tag == f"cp312-{platform.system().lower()}-{platform.machine()}"
            marker = pathlib.Path(found.expand(paths[0]))
            assert marker.parent == made / "env" / f"{'a' * 16}-{found.python_tag}"
            starting(marker.parent)
        assert (paths[0] in parse_paths(ask(str(made), str(python), paths), paths)) is there
