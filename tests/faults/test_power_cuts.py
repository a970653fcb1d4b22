"""Power cuts, simulated: what a disk may hold at any moment of a training if only what was fsynced is sure.

No real disk is cut. The calls of a real training that make, rename, remove and fsync files are recorded; from them
disks are built as POSIX allows them to be left behind: a file has the bytes of its last fsync (none before the first),
a folder has the names of its last fsync and any first part of what was done to it since. What hardware does below that
(torn sectors, a lying cache) is not simulated; damaged bytes are the subject of tests/faults/test_weights.py.
"""

import os
import random
import stat

import pytest
import torch

from minimind import checkpoint, loop
from minimind.rundir import RunDir
from tests.support import corpus
from tests.support.corpus import TINY


class Recorder:
    """Wraps the calls of ``os`` and keeps what they did, to which file; an inode that is used again is another file."""

    def __init__(self, monkeypatch, root):
        self.events, self.root, self.known = [], str(root), set()
        self.ids = {os.stat(root).st_ino: 0}
        self.root_id = 0
        for name in ("mkdir", "rename", "replace", "link", "unlink", "remove", "rmdir", "fsync"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name, real):
        def call(*args, **kwargs):
            note = self._before(name, args, kwargs)
            result = real(*args, **kwargs)
            if note is not None:
                note()
            return result

        return call

    def _place(self, path, dir_fd=None):
        """(number of the folder, name) of a path below the root; None elsewhere."""
        if dir_fd is not None:
            parent = os.readlink(f"/proc/self/fd/{dir_fd}")
            path = os.path.join(parent, path)
        path = os.path.abspath(path)
        if not path.startswith(self.root + "/"):
            return None
        return self.ids[os.stat(os.path.dirname(path)).st_ino], os.path.basename(path)

    def _before(self, name, args, kwargs):
        if name == "fsync":
            fd = args[0] if isinstance(args[0], int) else args[0].fileno()
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path != self.root and not path.startswith(self.root + "/"):
                return None
            found = os.fstat(fd)
            if stat.S_ISDIR(found.st_mode):
                return lambda: self.events.append(("fsync_dir", self.ids[found.st_ino]))
            return lambda: self._file(path, found.st_ino)
        count = 2 if name in ("rename", "replace", "link") else 1
        places = [self._place(path, kwargs.get("dir_fd")) for path in args[:count]]
        if None in places:
            return None
        if name in ("rename", "replace"):
            return lambda: self.events.append(("rename", *places))
        if name in ("unlink", "remove", "rmdir"):
            return lambda: self.events.append(("remove", places[0]))
        path = os.path.abspath(args[-1] if name == "link" else args[0])
        if name == "link":
            return lambda: self.events.append(("name", places[-1], self.ids.get(os.stat(path).st_ino, -1)))
        return lambda: self.events.append(("mkdir", places[0], self._new(os.stat(path).st_ino)))

    def _new(self, inode):
        self.ids[inode] = 1 + max(self.ids.values())
        return self.ids[inode]

    def _file(self, path, inode):
        if (inode, path) not in self.known:  # opening made its name, some time before
            self.known.add((inode, path))
            self.events.append(("name", self._place(path), self._new(inode)))
        with open(path, "rb") as file:
            self.events.append(("fsync_file", self.ids[inode], file.read()))


class Disk:
    """What is sure, and what is not yet, after some of the events."""

    def __init__(self, root):
        self.sure, self.pending, self.bytes, self.folders = {root: {}}, {}, {}, {root}

    def apply(self, event):
        kind, *rest = event
        if kind == "fsync_file":
            self.bytes[rest[0]] = rest[1]
        elif kind == "fsync_dir":
            for change in self.pending.pop(rest[0], []):
                change(self.sure.setdefault(rest[0], {}))
        elif kind == "rename":
            (old, old_name), (new, new_name) = rest
            assert old == new, "renames stay in one folder"
            self._later(
                old, lambda names: names.__setitem__(new_name, names.pop(old_name)) if old_name in names else None
            )
        elif kind == "remove":
            self._later(rest[0][0], lambda names: names.pop(rest[0][1], None))
        elif kind in ("name", "mkdir"):
            (folder, name), inode = rest
            if kind == "mkdir":
                self.folders.add(inode)
            self._later(folder, lambda names: names.__setitem__(name, inode))

    def _later(self, folder, change):
        self.pending.setdefault(folder, []).append(change)

    def write(self, inode, path, rng):
        """Build one disk that these events may leave."""
        path.mkdir()
        names = dict(self.sure.get(inode, {}))
        pending = self.pending.get(inode, [])
        for change in pending[: rng.randint(0, len(pending))]:
            change(names)
        for name, child in names.items():
            if child in self.folders:
                self.write(child, path / name, rng)
            else:
                (path / name).write_bytes(self.bytes.get(child, b""))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = corpus.make(tmp_path_factory.mktemp("power"))
    root = folder / "runs" / "cut"
    root.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch, root)
        save = checkpoint.save

        def saved(run, *, step, **more):
            save(run, step=step, **more)
            recorder.events.append(("saved", step))

        patch.setattr(loop.checkpoint, "save", saved)
        flags = ("--from_weight", "none", "--batch_size", "4", "--accumulation_steps", "1", "--epochs", "2")
        corpus.train_here(
            folder, "pretrain", *TINY, *flags, "--save_interval", "1", "--keep_checkpoints", "1", run="cut"
        )
    return recorder.events, recorder.root_id


def test_fifty_power_cuts_lose_no_checkpoint_that_was_said_to_be_saved(tmp_path, recorded):
    events, root = recorded
    saves = [number for number, event in enumerate(events) if event[0] == "saved"]
    assert len(saves) == 12
    rng, found = random.Random(5), set()
    for number in range(50):
        # half of the cuts fall right behind a save that has returned, when its bytes are freshest
        cut = rng.choice(saves) + 1 if number % 2 else rng.randrange(saves[0] + 1, len(events) + 1)
        disk = Disk(root)
        for event in events[:cut]:
            disk.apply(event)
        promised = max(event[1] for event in events[:cut] if event[0] == "saved")
        disk.write(root, tmp_path / str(number), rng)
        read = checkpoint.latest(RunDir(tmp_path / str(number)), say=lambda text: None)
        assert read is not None and read.step >= promised, f"cut {number}: {promised} was saved, {read} is there"
        assert all(torch.isfinite(tensor).all() for tensor in read.parameters.values())
        found.add(read.step)
    assert len(found) > 5


def test_the_simulation_would_notice_a_save_without_fsync(tmp_path, recorded):
    events, root = recorded
    careless = [event for event in events if event[0] not in ("fsync_dir", "fsync_file")]
    disk = Disk(root)
    for event in careless:
        disk.apply(event)
    disk.write(root, tmp_path / "lost", random.Random(1))
    with pytest.raises(Exception):  # noqa: B017
        assert checkpoint.latest(RunDir(tmp_path / "lost"), say=lambda text: None) is not None
