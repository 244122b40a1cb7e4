"""Forked processes are what new interpreters would be, as far as tests look."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.processes import FIXED, Forked, run, run_ranks

CODE = "tests.code"
BOTH = pytest.mark.parametrize("text", [
    "print('out'); import sys; print('err', file=sys.stderr); sys.exit(3)",
    "import sys; sys.exit('a reason')",
    "print('no newline', end='')",
    "raise ValueError('wrong')",
    "import os; print('lost', end=''); os._exit(7)",
    "import atexit; atexit.register(print, 'at the end'); print('first')",
    "import threading, time\n"
    "def late(): time.sleep(.2); print('late')\n"
    "threading.Thread(target=late).start(); print('main')",
    "import os, sys; print(sys.argv[1:], os.getcwd(), sys.path[0] or os.getcwd(), __name__)",
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "import os; print(sorted(os.environ.items()))",
    "import signal; print(signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGINT))"])


@BOTH
def test_output_and_exit_code_are_those_of_an_interpreter(text):
    forked = run(CODE, text, "a", 1)
    real = subprocess.run([sys.executable, "-m", CODE, text, "a", "1"], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, **FIXED})
    assert (forked.returncode, forked.stdout) == (real.returncode, real.stdout)
    assert forked.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_signals_reach_it_and_its_session_is_its_own():
    text = "import os, time; print(os.getpid(), os.getsid(0), flush=True); time.sleep(60)"
    process, other = Forked(CODE, text, session=True), Forked(CODE, "pass")
    assert other.wait(20) == 0 and process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(20) == process.poll() == -signal.SIGKILL
    out, err = process.communicate()
    assert out == f"{process.pid} {process.pid}\n" and err == ""
    process.send_signal(signal.SIGTERM)  # whoever has its number now is left alone
    assert not os.path.exists(f"/proc/{process.pid}")


def test_children_do_not_see_each_other():
    run(CODE, "import os, json; os.environ['X'] = '1'; json.changed = True; os.chdir('/')")
    assert run(CODE, "import os, json; print('X' in os.environ, hasattr(json, 'changed'))"
               ).stdout == "False False\n"
    assert run(CODE, "import os; print(os.environ['X'])", X="2").stdout == "2\n"


def test_ranks_have_their_numbers_and_end_with_one_of_them():
    done = run_ranks(2, CODE, "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'])")
    assert done.returncode == 0 and done.stdout == "0 2\n1 2\n"
    began = time.monotonic()
    done = run_ranks(2, CODE, "import os, time; os.environ['RANK'] == '1' and os._exit(5)\n"
                              "time.sleep(60)")
    assert done.returncode == 1 and time.monotonic() - began < 15  # by SIGTERM
