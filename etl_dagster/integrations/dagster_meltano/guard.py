"""Runs a command, and ends it with SIGTERM when the process that started this one is gone.

A step of Dagster that is killed can't end its command. But its end of our stdin closes then.
Run as a script by a Python without site-packages; so nothing of this package is imported.
"""

import os
import select
import signal
import subprocess
import sys
import time

_POLL_S = 0.2
#: How long an orphan may take to end.
_GRACE_S = 60.0


def main() -> int:
    to_pass_on = []
    signal.signal(signal.SIGTERM, lambda number, frame: to_pass_on.append(number))
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    kill_at = float("inf")
    is_orphan = False
    while True:
        try:
            code = process.wait(_POLL_S)
            if is_orphan:
                # A plugin may outlive Meltano, and no process is left that would end it.
                _kill_group()
            # As a shell reports it.
            return code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            pass
        if not is_orphan and select.select([0], [], [], 0)[0] and not os.read(0, 1024):
            is_orphan, kill_at = True, time.monotonic() + _GRACE_S
            to_pass_on.append(signal.SIGTERM)
        if to_pass_on:
            to_pass_on.clear()
            process.terminate()
        if time.monotonic() > kill_at:
            _kill_group()


def _kill_group() -> None:
    """Kill everything that `process.follow` has started here, this process included."""
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
