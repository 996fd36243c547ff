"""A process with threads of the product ends with its own exit code, wherever they stand.

Until Python 3.14 a daemon thread is unwound when it asks for the interpreter's lock while the
interpreter ends; inside of C++ that aborts the process.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import etl_dagster

#: Calls `called` from inside of a query of DuckDB, which is C++, on a thread.
_IN_CPP = """
import sys, threading, time
import duckdb
from etl_dagster.threads import Background, stops_with_the_interpreter

class Slow:
    def __del__(self):
        time.sleep(0.5)  # at the interpreter's end, which is in its way to a thread then

slow, inside, stop = Slow(), threading.Event(), threading.Event()

def called(number):
    inside.set()
    while not stop.is_set():
        time.sleep(0.001)  # lets go of the interpreter's lock, and asks for it again
    return number

def query():
    with duckdb.connect() as connection:
        connection.create_function("called", called, ["BIGINT"], "BIGINT")
        connection.execute("select called(1)").fetchall()
    print("queried", flush=True)
"""

_TOLD_TO_STOP = """
class Running:
    def shutdown(self):
        stop.set()

running = Running()
stops_with_the_interpreter(running)
Background(query, name="query").start()
inside.wait()
sys.exit(7)
"""

_COMMAND = """
import atexit, click
from etl_dagster.cli.app import cli, main

@cli.command()
def hang():
    threading.Thread(target=query, daemon=True).start()
    inside.wait()
    atexit.register(lambda: print("registered"))
    print("written")
    click.get_current_context().exit(143)

sys.argv[1:] = ["hang"]
main()
"""


def ended(code: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process of its own, whose output is buffered."""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return process.returncode, process.stdout, process.stderr


def test_the_interpreter_waits_for_threads_that_it_has_told_to_stop() -> None:
    assert ended(_IN_CPP + _TOLD_TO_STOP) == (7, "queried\n", "")


def test_a_command_ends_with_its_code_and_its_output_even_if_its_threads_hang() -> None:
    assert ended(_IN_CPP + _COMMAND) == (143, "written\nregistered\n", "")


@pytest.mark.parametrize(
    ("step", "code", "err"),
    [
        ("pass", 0, ""),
        ("sys.exit('a word')", 1, "a word\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("sys.stdout = open('/dev/full', 'w'); print(1)", 1, "No space left on device\n"),
        ("threading.Thread(target=lambda: print('done', file=sys.stderr)).start()", 0, "done\n"),
    ],
)
def test_a_process_ends_as_the_interpreter_would_end_it(step: str, code: int, err: str) -> None:
    program = f"""
import sys, threading
from etl_dagster.cli.leaving import run_to_the_end
def command():
    {step}
run_to_the_end(command)
"""
    returned, _, written = ended(program)
    assert (returned, written[-len(err) :] if err else written) == (code, err)


#: Threads that are in no code but Python's, the standard library's and psycopg's, which is C: what
#: unwinds them at the interpreter's end harms nothing. All others are `Background`.
_IN_NO_CPP = {
    "cli/following.py",
    "cli/stopping.py",
    "demo/workload.py",
    "destinations/postgres/watch.py",
    "destinations/singer/lane.py",
    "integrations/dagster/sensor/supervisor.py",
    "integrations/dagster_meltano/process.py",
    "integrations/meltano/positions/mirror.py",
    "integrations/meltano/states/locks.py",
    "pg/cancelling.py",
    "pg/listener.py",
    "replicator.py",  # ends by os._exit
    "runtime/showing/exporting.py",
    "source/standby_slots.py",
    "source/stream.py",
    "testing/waiting.py",
}


def test_the_interpreter_waits_for_a_thread_that_may_be_in_cpp() -> None:
    package = Path(etl_dagster.__file__).parent
    making = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"\bThread\(", path.read_text())
    }
    assert making == _IN_NO_CPP
