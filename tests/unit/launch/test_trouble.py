"""Why a connection could not be made, in words."""

import pathlib
import types

import paramiko
import pytest

from launch.errors import Exit
from launch.inventory import Host, Inventory
from launch.transport.trouble import explain


@pytest.mark.parametrize(
    ("error", "over"),
    [
        (paramiko.AuthenticationException("Authentication failed."), False),
        (paramiko.SSHException("Too many authentication failures"), True),
        (EOFError(), True),
    ],
)
def test_an_agent_with_many_keys_may_have_used_up_the_servers_tries(tmp_path, error, over):
    wire = types.SimpleNamespace(initial_kex_done=over)
    connection = types.SimpleNamespace(
        host="gpu8", port=22, user="me", client=types.SimpleNamespace(get_transport=lambda: wire)
    )
    inventory = Inventory(path=tmp_path / "launch.toml", home=tmp_path, hosts={}, known_hosts=tmp_path / "k")

    def told(**more):
        return explain(
            error, host=Host(name="g", ssh="me@gpu8", root="/r", **more), connection=connection, inventory=inventory
        )

    assert told().code is Exit.UNREACHABLE and "MaxAuthTries" in told().why and "identity_file" in told().remedy
    named = told(identity_file=pathlib.Path("/k"))
    assert "MaxAuthTries" not in named.why and "neither /k nor another key" in named.why
