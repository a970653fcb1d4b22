"""Secrets on the laptop: found, never shown, taken out of what is printed; and received once on the host."""

import io
import json
import os
import pickle
import random
import stat
import sys
import types

import pytest

from launch import leaks, secrets
from launch.argv import docker, handover
from launch.errors import Exit, LaunchError
from launch.secrets import Secret, gather, redact, redact_stream
from launch.ui import LogWriter
from minimind.keys import receive
from minimind.rundir import RunError

VALUE = 'wandb-"0123456789"-ключ'


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(secrets, "_known", {})


def test_a_secret_shows_as_stars_however_it_is_printed():
    secret = Secret("A", VALUE, source="file")
    shown = [
        f"{secret}",
        f"{secret!r:>9}",
        str(secret),
        repr({"a": secret}),
        " ".join(map(str, [secret])),
        json.dumps(secret, default=str),
    ]
    assert not any("0123" in text for text in shown) and secret.reveal() == VALUE
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_a_known_value_is_replaced_in_every_form():
    Secret("A", VALUE, source="file")
    for text in (VALUE, json.dumps({"a": VALUE}), json.dumps(VALUE, ensure_ascii=False), "wandb-%220123456789%22-%D0"):
        assert "0123456789" not in redact(text) or "%D0" in text
    assert redact("nothing of it") == "nothing of it"


def test_a_value_cut_at_any_byte_is_never_written_and_nothing_else_is_lost():
    Secret("A", VALUE, source="file")
    data = f'a {VALUE} b wandb- {VALUE}{VALUE} c wandb-"012'.encode()
    rng = random.Random(5)
    for _ in range(200):
        out = io.BytesIO()
        writer, rest = LogWriter(out, terminal=False), data
        while rest:
            cut = rng.randint(1, 9)
            writer(rest[:cut])
            assert b"0123456789" not in out.getvalue()
            rest = rest[cut:]
        writer.end()
        assert out.getvalue() == data.replace(VALUE.encode(), b"*****")


def test_a_stream_without_secrets_is_passed_on_at_once():
    assert redact_stream(b"abc") == (b"abc", b"")


def test_the_environment_comes_first_and_is_emptied(tmp_path):
    file = tmp_path / "launch.secrets"
    file.write_text('# keys\nA=from-the-file-1\nexport B="from-the-file-2"\nC = from-the-file-3\n')
    file.chmod(0o600)
    environ = {"A": "from-the-environment", "PATH": "/bin"}
    vault = gather(["A", "B", "C", "D"], environ=environ, file=file)
    assert {name: (s.reveal(), s.source) for name, s in vault.found.items()} == {
        "A": ("from-the-environment", "environment"),
        "B": ("from-the-file-2", str(file)),
        "C": ("from-the-file-3", str(file)),
    }
    assert environ == {"PATH": "/bin"}
    assert vault.pick(["A"], optional=["D"]).keys() == {"A"}
    with pytest.raises(LaunchError, match="D was not found") as caught:
        vault.pick(["D"])
    assert caught.value.code == Exit.INVALID


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o666])
def test_a_file_that_others_can_read_or_write_is_not_used(tmp_path, mode):
    file = tmp_path / "launch.secrets"
    file.write_text("A=from-the-file-1\n")
    file.chmod(mode)
    vault = gather(["A"], environ={}, file=file)
    with pytest.raises(LaunchError) as caught:
        vault.pick(["A"])
    assert f"{mode:04o}" in str(caught.value) and "from-the-file" not in str(caught.value)
    assert redact("from-the-file-1") == "*****"  # hidden all the same


def test_what_is_too_short_to_be_hidden_is_no_secret(tmp_path):
    with pytest.raises(LaunchError, match="not used"):
        gather(["A"], environ={"A": "yes"}, file=tmp_path / "none").pick(["A"])


def test_the_keyring_is_asked_last_and_may_be_locked(tmp_path, monkeypatch):
    ring = types.ModuleType("keyring")
    ring.get_password = lambda service, name: (
        {"A": "from-the-keyring"}.get(name) if service == "minimind-launch" else None
    )
    monkeypatch.setitem(sys.modules, "keyring", ring)
    vault = gather(["A", "B"], environ={}, file=tmp_path / "none")
    assert vault.found["A"].source == "keyring" and "B" not in vault.found

    def locked(*_):
        raise RuntimeError("locked")

    ring.get_password = locked
    assert gather(["A"], environ={}, file=tmp_path / "none").found == {}


def test_a_handed_file_is_read_once_and_gone(tmp_path):
    folder = tmp_path / "minimind-0"
    folder.mkdir()
    (folder / "secrets.json").write_text('{"A": "value"}')
    pid = os.fork()  # what follows changes the limits of its process for good
    if pid == 0:
        try:
            assert receive(folder / "secrets.json") == {"A": "value"} and not folder.exists()
            with pytest.raises(RunError, match="cannot be read"):
                receive(folder / "secrets.json")
            folder.mkdir()
            (folder / "secrets.json").write_text('{"A": "val')
            with pytest.raises(RunError) as caught:
                receive(folder / "secrets.json")
            assert "val" not in str(caught.value)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert receive(None) == {}


def test_the_command_gets_the_rest_of_stdin_and_the_folder_goes(tmp_path):
    import subprocess

    file = tmp_path / "minimind-1" / "secrets.json"
    script = 'stat -c "%a %n" "$1" "${1%/*}"; cat "$1"; echo; cat'
    words = handover.with_secrets(["sh", "-c", script, "sh", str(file)], file=str(file), length_bytes=8)
    done = subprocess.run(words, input=b'{"A":""}the rest\n', capture_output=True, check=True)
    assert done.stdout.decode() == f'600 {file}\n700 {file.parent}\n{{"A":""}}\nthe rest\n'
    assert not file.parent.exists()
    short = subprocess.run(words, input=b'{"A"', capture_output=True)
    assert short.returncode == 74 and short.stdout == b"" and not file.parent.exists()
    failing = handover.with_secrets(["false"], file=str(file), length_bytes=1, container="c", started="/none")
    assert subprocess.run(failing, input=b"x").returncode == 1 and not file.parent.exists()
    file.parent.mkdir()
    assert subprocess.run(words, input=b'{"A":""}', capture_output=True).returncode == 74  # somebody else's folder
    assert stat.S_IMODE(file.parent.stat().st_mode) != 0o700 and file.parent.exists()


def test_a_container_sees_its_secrets_in_a_read_only_mount_and_no_value_in_its_words():
    made = {"name": "n", "image_id": "i", "run_id": "r", "token": "t", "run_dir": "/r/runs/r", "root": "/r"}
    words = docker.run(**made, uid=1, gid=2, nproc=1, gpus=False, networked=False, secrets="/dev/shm/m/secrets.json")
    mount = 'type=bind,"source=/dev/shm/m/secrets.json","target=/run/minimind-secrets.json",readonly'
    assert words[words.index("i") - 1] == mount
    assert words[-2:] == ["--secrets", "/run/minimind-secrets.json"]


def test_leaks_are_told_by_name_of_secret_and_file(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "log.txt").write_text(f"key {VALUE}")
    (tmp_path / "runs" / "spec.json").write_text(json.dumps({"flags": [VALUE]}))
    (tmp_path / "runs" / "clean").write_text("nothing")
    (tmp_path / "runs" / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "runs" / "pipe")
    said = leaks.scan({"A": VALUE, "B": "not-there-at-all"}, [str(tmp_path / "run*"), str(tmp_path / "none")])
    assert {hit["path"].rpartition("/")[2] for hit in said["hits"]} == {"log.txt", "spec.json"}
    assert said["files"] == 3 and {hit["secret"] for hit in said["hits"]} == {"A"}
