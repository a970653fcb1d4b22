"""The command that lets a key in; what the others do is tested on real hosts."""

import os
import subprocess

import pytest

from launch.argv import bridge

OTHERS = b"ssh-rsa AAAA caf\xe9\nssh-ed25519 BBBB \xe6\x9d\x83\n# \xff\x00 and the like\n"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_lines_in_any_encoding_stay_in_authorized_keys_whatever_the_locale(tmp_path, locale):
    keys = tmp_path / ".ssh" / "authorized_keys"
    keys.parent.mkdir()
    keys.write_bytes(OTHERS)

    def admit(line: bytes) -> bytes:
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": locale}
        subprocess.run(bridge.admit("the-tag"), input=line, env=environ, check=True, timeout=30)
        return keys.read_bytes()

    assert admit(b"restrict CCCC the-tag\n") == OTHERS + b"restrict CCCC the-tag\n"
    assert admit(b"restrict DDDD the-tag\n") == OTHERS + b"restrict DDDD the-tag\n"
    assert admit(b"") == OTHERS
