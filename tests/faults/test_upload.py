"""Names on a host: whole or absent, each content once, and no byte twice because a link was cut."""

import contextlib
import hashlib
import os

import pytest

from launch.errors import Exit, LaunchError
from launch.migrate.cargo import Item, written
from launch.migrate.upload import Upload
from launch.transport import connect
from tests.conftest import make_ssh_home
from tests.support import sshd as sshd_parts
from tests.support.syncing import Quiet, put

pytestmark = pytest.mark.sshd
LARGE_BYTES = 24_000_000


@pytest.fixture
def far(tmp_path):
    if sshd_parts.MISSING:
        pytest.skip(sshd_parts.MISSING)
    server = sshd_parts.start(tmp_path / "server")
    home = make_ssh_home(tmp_path, server)
    home.root.mkdir(parents=True)
    yield home
    server.stop()


def item(home, name, data, *, shared=False):
    local = put(home.home / "copies" / name, data)
    digest = hashlib.sha256(data).hexdigest()
    return Item(target=f"{home.root}/{name}", sha256=digest, length_bytes=len(data), local=local, shared=shared)


class Cutting(Quiet):
    """Calls ``cut`` once, when so many bytes have gone."""

    def __init__(self, cut, after_bytes):
        super().__init__()
        self.cut, self.left_bytes = cut, after_bytes

    def moving(self, label, total_bytes):
        def moved(count):
            self.left_bytes -= count
            if self.left_bytes < 0 and self.cut:
                self.cut()
                self.cut = None

        return contextlib.nullcontext(moved)


def bring(home, items, voice=None):
    with connect(home.host, home.inventory) as transport:
        return Upload(transport, str(home.root), voice or Quiet()).bring(items)


def test_a_link_cut_in_mid_file_leaves_no_name_and_the_rest_alone_is_sent_afterwards(far):
    large = item(far, "out/x_512.pth", os.urandom(LARGE_BYTES))
    with pytest.raises(LaunchError) as cut:
        bring(far, [large], Cutting(far.sshd.cut, 12_000_000))
    assert cut.value.code == Exit.INCOMPLETE
    assert not (far.root / "out").exists()
    have = (far.root / ".migrate" / f"{large.sha256}.part").stat().st_size
    assert 0 < have < LARGE_BYTES
    assert bring(far, [large]) <= LARGE_BYTES - have
    assert (far.root / "out" / "x_512.pth").read_bytes() == large.local.read_bytes()
    assert bring(far, [large]) == 0
    assert not list((far.root / ".migrate").glob("*.part"))


def test_a_part_of_other_bytes_is_not_believed(far):
    large = item(far, "out/x_512.pth", os.urandom(3_000_000))
    put(far.root / ".migrate" / f"{large.sha256}.part", b"of something else")
    assert bring(far, [large]) == 3_000_000
    assert (far.root / "out" / "x_512.pth").read_bytes() == large.local.read_bytes()


def test_equal_contents_travel_once_and_only_weights_become_one_file(far):
    data = os.urandom(2_000_000)
    weights = [item(far, name, data, shared=True) for name in ("out/x.pth", "runs/r/export/x.pth")]
    logs = [item(far, f"runs/r/attempts/1/log.rank{rank}.txt", b"") for rank in range(3)]
    odd = item(far, "out/权重 'q' \\ $x.json", b"{}")
    small = [item(far, name, b"w", shared=True) for name in ("out/lora/a.pth", "runs/r/export/lora/a.pth")]
    spec = written(f"{far.root}/runs/r/spec.json", b"{}\n", mode="444")
    sent_bytes = bring(far, [*weights, *logs, odd, *small, spec])
    assert 2_000_000 < sent_bytes < 2_100_000
    for one in (*weights, *logs, odd, *small):
        assert (far.root / one.target.removeprefix(f"{far.root}/")).read_bytes() == one.local.read_bytes()
    assert (far.root / "out/x.pth").samefile(far.root / "runs/r/export/x.pth")
    assert (far.root / "out/lora/a.pth").samefile(far.root / "runs/r/export/lora/a.pth")
    assert {os.stat(one.target).st_nlink for one in logs} == {1}, "a log grows in place"
    assert os.stat(spec.target).st_mode & 0o777 == 0o444
    assert [p.name for p in (far.root / ".migrate").iterdir()] == ["lock"]


def test_a_copy_here_that_was_changed_meanwhile_gives_nothing_a_name(far):
    large = item(far, "out/x.pth", os.urandom(2_000_000))
    small = item(far, "out/y.json", b"{}")
    large.local.write_bytes(os.urandom(2_000_000))
    small.local.write_bytes(b"[]")
    for one in (large, small):
        with pytest.raises(LaunchError) as changed:
            bring(far, [one])
        assert changed.value.code == Exit.NOT_VERIFIED and "--again" in changed.value.remedy
    assert not (far.root / "out").exists()


def test_a_folder_of_that_name_is_said_and_left_alone(far):
    one = item(far, "out/x.json", b"{}")
    (far.root / "out" / "x.json").mkdir(parents=True)
    with pytest.raises(LaunchError) as refused:
        bring(far, [one])
    assert refused.value.code == Exit.HOST_NOT_READY and "is a folder" in refused.value.why
    assert (far.root / "out" / "x.json").is_dir()
