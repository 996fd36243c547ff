"""Runs Python commands in forks of a process that has imported what they need.

``python -P fork_server.py FD MODULE...`` imports the modules and serves what `tests.support.forked`
asks through the Unix socket. A fork runs its command as the interpreter's own main program, to the
interpreter's end. Nothing here needs more than the standard library: the interpreter may be that
of another environment.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
from typing import Any

#: Before each request, a JSON object, come its length in bytes and the descriptors of the
#: command's stdin, stdout and stderr, and of a pipe that gets its process id and its exit code.
LENGTH = struct.Struct("!I")


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # so that collections in the forks leave the shared pages alone
    task = _serve(control)
    _become(task)
    module, function = task["entry"].split(":")
    sys.exit(getattr(importlib.import_module(module), function)())


def _serve(control: socket.socket) -> dict[str, Any]:
    """Returns in each fork, with what it is to do."""
    ended, wake = socket.socketpair()
    for end in (ended, wake):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    reports: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if ended in ready:
                ended.recv(4096)
                _report_ended(reports)
            if control not in ready:
                continue
            head, fds, *_ = socket.recv_fds(control, LENGTH.size, 4)
            if not head:
                os._exit(0)  # the tests have ended
            (length,) = LENGTH.unpack(head)
            task: dict[str, Any] = json.loads(control.recv(length, socket.MSG_WAITALL))
            *stdio, report = fds
            pid = os.fork()
            if pid == 0:
                break
            reports[pid] = report
            os.write(report, b"%d\n" % pid)
            for fd in stdio:
                os.close(fd)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, fd in enumerate(stdio):
        os.dup2(fd, number)
    for fd in (*stdio, report, *reports.values()):
        os.close(fd)
    for end in (control, ended, wake):
        end.close()
    return task


def _report_ended(reports: dict[int, int]) -> None:
    while reports:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        report = reports.pop(pid)
        try:
            os.write(report, b"%d\n" % os.waitstatus_to_exitcode(status))
        except BrokenPipeError:
            pass  # the test didn't wait for it
        os.close(report)


def _become(task: dict[str, Any]) -> None:
    os.chdir(task["cwd"])
    os.environ.clear()
    os.environ.update(task["environ"])
    sys.argv = task["argv"]


if __name__ == "__main__":
    main()
