import dataclasses
from pathlib import Path

import pytest

from launch.inventory import Host, Inventory
from launch.transport import ssh_command, ssh_destination

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


def test_user_port_identity_and_config_are_said_only_when_they_are_given():
    inventory = dataclasses.replace(INVENTORY, ssh_config=Path("/c"))
    argv = ssh_command(host("me@10.0.0.1:2222", Path("/k")), inventory)
    assert argv == ["ssh", "-F", "/c", *OURS, "-o", "IdentitiesOnly=yes", "-i", "/k", "-l", "me", "-p", "2222"]


@pytest.mark.parametrize("ssh", ["root@[fe80::1]:22", "root@fe80::1"])
def test_an_ipv6_address_is_bare_for_ssh(ssh):
    assert ssh_destination(host(ssh)) == "fe80::1"
