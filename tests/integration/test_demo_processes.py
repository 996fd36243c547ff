"""Child processes that leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from etl_dagster.demo.processes import Child
from tests.support.waiting import wait_until

_PARENT_OF_A_STUBBORN_CHILD = """
import signal, subprocess, sys, time
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " \\
       "print('ready', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True,
                         stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
try:
    time.sleep(600)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def wait_for_log(child: Child) -> str:
    wait_until(lambda: bool(child.log_end()))
    return child.log_end()


def has_ended(process: psutil.Process) -> bool:
    """An orphan may stay a zombie for as long as init doesn't look."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_child_is_interrupted_and_its_own_children_end_too(tmp_path: Path) -> None:
    """Even one that has a session of its own and refuses to end."""
    command = [sys.executable, "-c", _PARENT_OF_A_STUBBORN_CHILD]
    child = Child(command, log=tmp_path / "log", folder=tmp_path, grace_s=0.5)
    grandchild = psutil.Process(int(wait_for_log(child)))

    child.stop(timeout_s=8)

    assert child.exit_code == 0
    assert "interrupted" in child.log_end()
    assert has_ended(grandchild)


def test_a_child_reads_its_order_from_stdin_and_a_stop_closes_stdin(tmp_path: Path) -> None:
    code = "import sys; print(sys.stdin.readline(), end='', flush=True); sys.stdin.read()"
    child = Child(
        [sys.executable, "-c", code], log=tmp_path / "log", folder=tmp_path, order="the order"
    )
    assert wait_for_log(child) == "the order"
    assert child.exit_code is None

    child.stop(timeout_s=30)

    assert child.exit_code == 0


def test_stopping_what_has_ended_is_fine(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", "print('bye')"], log=tmp_path / "log", folder=tmp_path)
    wait_for_log(child)

    child.stop(timeout_s=30)
    child.stop(timeout_s=30)

    assert child.exit_code == 0


def test_a_killed_parent_takes_its_child_along(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from etl_dagster.demo.processes import Child\n"
        "folder = Path(sys.argv[1])\n"
        "sleeper = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "child = Child(sleeper, log=folder / 'log', folder=folder)\n"
        "print(child._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))

    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    child.wait()
