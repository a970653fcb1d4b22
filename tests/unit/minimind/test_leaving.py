"""A rank that is done ends without the interpreter's finalization: there gloo's threads make it abort now and then."""

import os
import subprocess
import sys

import pytest

from tests.support import corpus

PROBE = (
    "import atexit, runpy, sys; atexit.register(print, 'finalised')\n"
    "module, *sys.argv[1:] = sys.argv[1:]\n"
    "runpy.run_module(module, run_name='__main__')"
)


@pytest.mark.parametrize("module", ["minimind.selftest", "minimind.__main__"])
def test_a_rank_is_not_finalised_and_keeps_its_exit_code(module):
    def ends(**environ):
        plain = {name: value for name, value in os.environ.items() if name != "RANK"}
        command = [sys.executable, "-c", PROBE, module, "no such thing"]
        environ = {**plain, "PYTHONPATH": str(corpus.ROOT), **environ}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        return done.returncode, "finalised" in done.stdout

    assert ends(RANK="0") == (2, False)
    assert ends() == (2, True)
