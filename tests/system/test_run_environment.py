"""The environment of the venv executor, made on a host from the lock: once, by whoever needs it first."""

import pytest

from tests.support import launching
from tests.support import sshd as sshd_parts
from tests.support.launching import rows

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(900)]


def test_a_bare_host_gets_its_environment_from_the_lock_and_keeps_it(tmp_path, sshd):
    home = launching.make_home(tmp_path, sshd, extra='executor = "venv"\n')
    args = ("run", "tokenizer", "--host", "gpu8", "--", "--vocab_size", "300")
    first = home.launch(*args, timeout=800)
    assert first.returncode == 0, first.stderr
    (environment,) = (p for p in (home.root / "env").iterdir() if (p / ".complete").exists())
    made_at = (environment / ".complete").stat().st_mtime_ns
    again = home.launch(*args, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "making the environment" in first.stderr and "making the environment" not in again.stderr
    assert (environment / ".complete").stat().st_mtime_ns == made_at
    assert [row["state"] for row in rows(home)] == ["SUCCEEDED", "SUCCEEDED"]
    assert sorted(path.name for path in (home.root / "env").iterdir()) == [environment.name, f"{environment.name}.lock"]
    assert not list((home.root / "code").glob(".tmp-*"))


@pytest.mark.soak
def test_a_host_that_can_ask_no_index_gets_the_wheels_of_the_laptop(tmp_path):
    offline = "SetEnv PIP_NO_INDEX=1 PIP_CONFIG_FILE=/dev/null"
    server = sshd_parts.start(tmp_path / "server", options=offline)
    try:
        home = launching.make_home(tmp_path, server, extra='executor = "venv"\n')
        home.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
        made = home.launch("run", "tokenizer", "--host", "gpu8", "--", "--vocab_size", "300", timeout=800)
        assert made.returncode == 0, made.stderr
        assert "sending wheels from here" in made.stderr
        assert not list((home.root / "env").glob("*.from*")), "a quarter of a gigabyte of wheels"
        assert [row["state"] for row in rows(home)] == ["SUCCEEDED"]
    finally:
        server.stop()
