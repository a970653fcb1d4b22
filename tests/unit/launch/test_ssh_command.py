import dataclasses
import shlex
from pathlib import Path

import pytest

from launch.inventory import Host, Inventory
from launch.transport import ssh_command, ssh_destination
from launch.transport.openssh import Hop, command

INVENTORY = Inventory(path=None, home=Path("/h"), hosts={}, known_hosts=Path("/h 1/100%/known"))
OURS = [
    *("-o", 'UserKnownHostsFile="/h 1/100%%/known"', "-o", "GlobalKnownHostsFile=/dev/null"),
    *("-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3", "-o", "ClearAllForwardings=yes"),
    *("-o", "LogLevel=ERROR"),
]


def host(ssh, identity=None):
    return Host(name="gpu8", ssh=ssh, root="/r", identity_file=identity)


def test_an_alias_is_left_to_the_ssh_config():
    assert ssh_command(host("gpu8"), INVENTORY) == ["ssh", *OURS]
    assert ssh_destination(host("gpu8")) == "gpu8"


def test_user_port_identity_and_config_are_said_only_when_they_are_given(tmp_path):
    config = tmp_path / "config"
    config.write_text("")
    inventory = dataclasses.replace(INVENTORY, ssh_config=config)
    argv = ssh_command(host("me@10.0.0.1:2222", Path("/k")), inventory)
    assert argv == ["ssh", "-F", str(config), *OURS, "-o", "IdentitiesOnly=yes", "-i", "/k", "-l", "me", "-p", "2222"]


@pytest.mark.parametrize("ssh", ["root@[fe80::1]:22", "root@fe80::1"])
def test_an_ipv6_address_is_bare_for_ssh(ssh):
    assert ssh_destination(host(ssh)) == "fe80::1"


def test_every_hop_is_a_command_with_our_options_and_tokens_meant_for_one_level_only():
    hops = [Hop(name="first", user="a", port=22), Hop(name="the second", user="b", port=2222)]
    argv = command(host("gpu8"), INVENTORY, hops)
    proxy = argv[argv.index("LogLevel=ERROR") + 2].removeprefix("ProxyCommand=")
    assert proxy.endswith(" -l b -p 2222 -W '[%h]:%p' 'the second'")
    inner = shlex.split(proxy.removesuffix(" -W '[%h]:%p' 'the second'").replace("%%", "%"))  # as ssh expands it
    assert inner == ["ssh", *OURS, "-o", inner[inner.index("LogLevel=ERROR") + 2], "-l", "b", "-p", "2222"]
    assert inner[inner.index("LogLevel=ERROR") + 2].endswith("-l a -p 22 -W '[%h]:%p' first")
