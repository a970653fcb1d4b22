"""What is said while nothing comes."""

import os
import time

from launch import voice
from launch.inventory import Host, Inventory
from launch.sync.store import Store
from launch.sync.trip import Trip
from launch.transport.local import LocalTransport


class Heard(list):
    def say(self, text):
        self.append(text)


def test_a_wait_is_told_only_when_it_is_long():
    heard = Heard()
    with voice.waiting(heard, "short", patience_s=0.1):
        pass
    with voice.waiting(heard, "long", patience_s=0.01):
        time.sleep(0.1)
    time.sleep(0.15)
    assert heard == ["long"]


def test_a_host_that_is_slow_to_list_its_files_is_named(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "find").write_text("#!/bin/sh\nsleep 0.3\n")
    (tmp_path / "bin" / "find").chmod(0o755)
    (tmp_path / "root" / "out").mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setitem(voice.waiting.__wrapped__.__kwdefaults__, "patience_s", 0.05)
    heard = Heard()
    inventory = Inventory(path=None, home=tmp_path, hosts={}, known_hosts=tmp_path / "k")
    with LocalTransport(Host(name="gpu8", ssh=None, root=str(tmp_path / "root"))) as transport:
        Trip(transport, inventory, str(tmp_path / "root"), None, Store(tmp_path, stamp="x"), heard).look()
    assert heard == [f"waiting for gpu8 to list what lies in {tmp_path / 'root'}"]
