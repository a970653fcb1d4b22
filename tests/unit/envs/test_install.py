"""install.py itself, on real environments: small wheels where a fault is tried, the real lock once."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.unit.envs.parts import ROOT, SCRIPT, Index, Shop, clean, install, sha256, unpacked_pip, wheel


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


@pytest.fixture
def silent():
    """An index that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def assert_paragraph(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 5, done.stderr
    assert "\n  why: " in done.stderr and "\n  remedy: " in done.stderr and "Traceback" not in done.stderr


def test_a_second_call_finds_it_up_to_date_at_once(shop):
    assert shop.install(*shop.offline()).returncode == 0
    assert (shop.version("torch"), shop.version("small")) == ("9.9.9+cpu", "1.0")
    assert json.loads((shop.venv / ".complete").read_text())["locks"].keys() == {"cpu.lock"}
    again = shop.install(*shop.offline())
    assert again.returncode == 0 and again.stderr.endswith("env is up to date\n")
    assert again.stderr.count("\n") == 1, "nothing else was done"


def test_another_lock_makes_it_anew(shop):
    assert shop.install(*shop.offline()).returncode == 0
    (shop.venv / "left").write_text("")
    shop.lock.write_text("# changed\n" + shop.lock.read_text())
    assert shop.install(*shop.offline()).returncode == 0
    assert not (shop.venv / "left").exists() and leftovers(shop) == []


@pytest.mark.parametrize("name", ["torch", "small"])
def test_other_bytes_than_the_locks_leave_nothing(shop, name):
    path = getattr(shop, name)
    wheel(shop.wheels, *path.stem.split("-", 2), body="changed = True\n")
    done = shop.install(*shop.offline())
    assert_paragraph(done)
    assert "HASH" in done.stderr.upper()
    assert not shop.venv.exists()


def test_a_failed_call_brings_the_older_environment_back(shop):
    assert shop.install(*shop.offline()).returncode == 0
    shop.lock.write_text(shop.lock.read_text().replace("small==1.0", "small==2.0"))
    assert_paragraph(shop.install(*shop.offline()))
    assert shop.version("small") == "1.0" and leftovers(shop) == []


def test_a_call_killed_half_way_is_made_good_by_the_next(shop, silent):
    process = subprocess.Popen(
        shop.command(), env=clean(PIP_INDEX_URL=silent), stderr=subprocess.DEVNULL, start_new_session=True
    )  # it waits for the index with the environment half-made
    deadline_s = time.monotonic() + 60
    while not list(shop.folder.glob(".making-env.*/bin/python")) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(shop.folder.glob(".making-env.*/bin/python")) and not os.path.lexists(shop.venv)
    assert shop.install(*shop.offline()).returncode == 0
    assert shop.version("small") == "1.0" and leftovers(shop) == []


def leftovers(shop) -> list[str]:
    return [
        path.name
        for path in shop.folder.iterdir()
        if path.name.startswith((".making", "env.")) and path.name != "env.lock"
    ]


def test_its_name_is_never_seen_before_it_is_whole_however_often_the_making_is_killed(shop):
    for delay_s in (0.3, 0.9, 1.5, 2.1):
        process = subprocess.Popen(
            shop.command(*shop.offline()), env=clean(), stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline_s = time.monotonic() + delay_s
        while time.monotonic() < deadline_s and process.poll() is None:
            if shop.venv.exists():
                assert (shop.venv / ".complete").exists()
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not shop.venv.exists() or (shop.venv / ".complete").exists()
    assert shop.install(*shop.offline()).returncode == 0
    assert shop.version("small") == "1.0" and leftovers(shop) == []


def test_a_call_killed_between_its_two_renames_leaves_the_older_one_to_the_next(shop):
    assert shop.install(*shop.offline()).returncode == 0
    shop.venv.rename(shop.folder / ".making-env.0123abcd.old")
    shop.lock.write_text(shop.lock.read_text().replace("small==1.0", "small==2.0"))
    assert_paragraph(shop.install(*shop.offline()))
    assert shop.version("small") == "1.0" and leftovers(shop) == []


def test_scripts_and_activation_name_the_place_where_the_environment_lies(shop):
    body = "def main():\n    import sys\n    print(sys.prefix)\n"
    wheel(shop.wheels, "small", "1.0", body=body, entry_points="[console_scripts]\nsmall-says = small:main\n")
    shop.lock.write_text(
        re.sub(r"(small==1.0 .*\n *--hash=sha256:)\w+", rf"\g<1>{sha256(shop.small)}", shop.lock.read_text())
    )
    assert shop.install(*shop.offline()).returncode == 0
    said = subprocess.run([shop.venv / "bin" / "small-says"], capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(shop.venv)
    activated = subprocess.run(
        ["sh", "-c", '. "$1/bin/activate" && command -v python', "sh", shop.venv], capture_output=True, text=True
    )
    assert activated.stdout.strip() == f"{shop.venv}/bin/python"
    texts = [p.read_bytes() for p in [*(shop.venv / "bin").iterdir(), shop.venv / "pyvenv.cfg"] if not p.is_symlink()]
    assert not [text for text in texts if b".making" in text]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs to mount a small disk")
def test_a_disk_that_fills_up_while_it_is_made_leaves_nothing_of_that_name(shop, tmp_path):
    small_disk = tmp_path / "disk"
    small_disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small_disk]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        shop.venv = small_disk / "env"
        wheel(shop.wheels, "small", "1.0", body="x = '" + "x" * 300_000 + "'\n")
        shop.lock.write_text(
            re.sub(r"(small==1.0 .*\n *--hash=sha256:)\w+", rf"\g<1>{sha256(shop.small)}", shop.lock.read_text())
        )
        done = shop.install(*shop.offline())
        assert done.returncode == errno.ENOSPC, done.stderr
        assert "\n  why: " in done.stderr and "No space left" in done.stderr and "Traceback" not in done.stderr
        assert "PIP_FIND_LINKS" not in done.stderr, "no other source of packages could help"
        assert [p.name for p in small_disk.iterdir()] == ["env.lock"]
    finally:
        subprocess.run(["umount", small_disk], check=True)


def test_of_two_calls_at_once_one_makes_it_and_the_other_waits(shop):
    command = shop.command(*shop.offline())
    both = [subprocess.Popen(command, env=clean(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("up to date" in text for text in said) == [False, True]


def test_a_folder_that_is_no_environment_is_left_alone(shop):
    shop.venv.mkdir()
    (shop.venv / "thesis.txt").write_text("three years")
    done = shop.install(*shop.offline())
    assert_paragraph(done)
    assert (shop.venv / "thesis.txt").read_text() == "three years"


@pytest.mark.skipif(unpacked_pip() is None, reason="this Python bundles no wheel of pip")
def test_a_pip_from_outside_is_enough_and_stays_outside(shop):
    assert shop.install(*shop.offline()).returncode == 0
    assert not (shop.venv / "bin" / "pip").exists()


def test_a_missing_lock_is_said(shop):
    shop.lock.unlink()
    assert_paragraph(shop.install(*shop.offline()))


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's CPU index is for Linux")
def test_pytorchs_index_is_asked_for_torch_and_nothing_else(tmp_path):
    shop = Shop(tmp_path, hash_known=False)
    for_torch, for_others = tmp_path / "for torch", tmp_path / "for others"
    wheel(for_torch, "small", "1.0", body="from_the_wrong_index = True\n")
    for folder, path in ((for_torch, shop.torch), (for_others, shop.small)):
        folder.mkdir(exist_ok=True)
        path.replace(folder / path.name)
    with Index(for_torch) as pytorch, Index(for_others) as main:
        done = shop.install("--pytorch-index", pytorch.url, PIP_INDEX_URL=main.url)
    assert done.returncode == 0, done.stderr
    assert "by exact version" in done.stderr and pytorch.url in done.stderr
    assert {path.split("/")[1] for path in pytorch.asked} <= {"torch", "files"}
    assert not [path for path in pytorch.asked if "small" in path]
    assert shop.version("torch") == "9.9.9+cpu"


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's CPU index is for Linux")
def test_a_silent_pytorch_index_is_given_up_within_seconds_and_named(tmp_path, silent):
    shop = Shop(tmp_path, hash_known=False)
    shop.torch.unlink()
    with Index(shop.wheels) as main:
        start_s = time.monotonic()
        done = shop.install("--pytorch-index", silent, PIP_INDEX_URL=main.url)
        elapsed_s = time.monotonic() - start_s
    assert_paragraph(done)
    assert f"{silent}: does not answer (no answer within 10 s)" in done.stderr and "PIP_FIND_LINKS" in done.stderr
    assert elapsed_s < 60  # on a busy machine; 10 s of them waiting for the index
    assert not shop.venv.exists()


@pytest.mark.soak  # the other index, which is silent in the same way, is in the test above
def test_a_silent_main_index_is_given_up_within_seconds_and_named(shop, silent):
    start_s = time.monotonic()
    done = shop.install(PIP_INDEX_URL=silent)
    assert_paragraph(done)
    assert f"{silent}: does not answer (no answer within 10 s)" in done.stderr
    assert time.monotonic() - start_s < 60
    assert not shop.venv.exists()


def test_a_wheelhouse_names_the_hash_of_every_wheel_it_holds(tmp_path):
    shop = Shop(tmp_path, hash_known=False)
    house = tmp_path / "house"
    command = [sys.executable, str(SCRIPT), "--download", str(house), "--lock", str(shop.lock), *shop.offline()]
    done = subprocess.run(command, env=clean(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    requirements = (house / "requirements.txt").read_text()
    assert {path.name for path in house.glob("*.whl")} == {shop.torch.name, shop.small.name}
    assert f"torch==9.9.9+cpu --hash=sha256:{install._sha256(house / shop.torch.name)}" in requirements
    assert "small==1.0" in requirements


@pytest.mark.soak  # tests/system/test_run_environment.py installs the same lock by `launch run`
@pytest.mark.timeout(600)
def test_the_real_lock_installs_and_nothing_is_missing(tmp_path):
    silence = install.probe(f"{install.PYPI}/torch/", timeout_s=10, cert=os.environ.get("PIP_CERT"))
    if silence:
        pytest.skip(f"PyPI does not answer: {silence}")
    venv = tmp_path / "env"
    command = [sys.executable, str(SCRIPT), "--venv", str(venv)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode == 5 and "torch" in done.stderr and "does not answer" in done.stderr:
        pytest.skip("no CPU build of torch can be reached for this Python")
    assert done.returncode == 0, done.stderr
    python = str(venv / "bin" / "python")
    probe = "import torch, click, wandb, starlette; print(torch.__version__, torch.version.cuda)"
    told = subprocess.run(
        [python, "-c", probe], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout.split()
    lock = install.Lock.parse((ROOT / "envs" / "cpu.lock").read_text())
    assert told == [lock.torch_version + ("+cpu" if sys.platform == "linux" else ""), "None"]
    assert subprocess.run([python, "-m", "pip", "check"], cwd=tmp_path).returncode == 0
