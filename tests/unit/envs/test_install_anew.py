"""An environment that was whole and is no more: install.py makes it anew, below whoever lives in it."""

import subprocess

import pytest

from tests.unit.envs.parts import Shop, clean


@pytest.fixture
def shop(tmp_path):
    shop = Shop(tmp_path)
    assert shop.install(*shop.offline()).returncode == 0
    return shop


def unlink(venv) -> None:
    (venv / "bin" / "python").unlink()


def dangle(venv) -> None:
    for path in (venv / "bin").glob("python*"):
        path.unlink()
        path.symlink_to("/nowhere/python3")


def overwrite(venv) -> None:
    unlink(venv)
    (venv / "bin" / "python").write_bytes(b"\x7fELF of another machine")
    (venv / "bin" / "python").chmod(0o755)


def forget(venv) -> None:
    (venv / "pyvenv.cfg").unlink()


def test_an_environment_whose_interpreter_does_not_start_is_made_anew(shop):
    for damage in (dangle, overwrite, forget):
        damage(shop.venv)
        done = shop.install(*shop.offline())
        assert done.returncode == 0 and "up to date" not in done.stderr, done.stderr
        assert (shop.version("torch"), shop.version("small")) == ("9.9.9+cpu", "1.0")
        assert not list(shop.folder.glob(".making*"))


def test_a_process_that_lives_in_it_goes_on_and_imports_from_the_new_one(shop):
    late = "import sys, torch; print('ready', flush=True); sys.stdin.readline(); import small; print(small.__version__)"
    command = [shop.venv / "bin" / "python", "-c", late]
    with subprocess.Popen(command, env=clean(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as alive:
        assert alive.stdout.readline() == "ready\n"
        unlink(shop.venv)
        assert shop.install(*shop.offline()).returncode == 0
        assert alive.communicate("go on\n", timeout=30)[0] == "1.0\n"
    assert alive.returncode == 0


def test_one_that_cannot_be_made_anew_stays_as_it_is(shop):
    unlink(shop.venv)
    shop.small.unlink()
    before = sorted(shop.venv.rglob("*"))
    assert shop.install(*shop.offline()).returncode == 5
    assert sorted(shop.venv.rglob("*")) == before
