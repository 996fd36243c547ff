"""A plugin for pytest: searches for leaks in each process of a run, which fails for those it finds.

What is searched, and for what, is in `tests.support.leaks`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import click.testing
import pytest

from etl_dagster.demo.server import EmbeddedPostgres
from tests.support.leaks import LEAKS

_patches = pytest.MonkeyPatch()
#: What the tests of this process may write to; empty until a test runs.
_folders: list[Path] = []
#: How many of the leaks found here have failed the test that they are from.
_reported = 0
#: Leaks that belong to no test, from all processes.
_others: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def searched_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    _folders.append(tmp_path_factory.getbasetemp())
    return _folders[0]


def pytest_sessionstart() -> None:
    # Only warnings are captured otherwise; people run with INFO.
    logging.getLogger("etl_dagster").setLevel(logging.INFO)
    _look_after(EmbeddedPostgres, "stop", _look_at_log)
    _look_after(click.testing.CliRunner, "invoke", _look_at_output)


def _look_after(owner: type, name: str, look: Callable[[Any, Any], None]) -> None:
    """Have the object and the result of each call of a method looked at."""
    method = getattr(owner, name)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        look(self, result)
        return result

    _patches.setattr(owner, name, wrapped)


def _look_at_log(server: EmbeddedPostgres, _: None) -> None:
    if server.log_path.exists():
        LEAKS.look(server.log_path.read_bytes(), os.fspath(server.log_path))


def _look_at_output(_: click.testing.CliRunner, result: click.testing.Result) -> None:
    LEAKS.look(result.output, f"output of a command in {os.environ['PYTEST_CURRENT_TEST']}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    global _reported
    report = yield
    if report.when == "teardown":
        for title, content in report.sections:
            LEAKS.look(content, title)
        if new := LEAKS.found[_reported:]:
            _reported = len(LEAKS.found)
            report.outcome = "failed"
            report.longrepr = "\n".join(["secrets were leaked:", *new])
    return report


def pytest_warning_recorded(warning_message: warnings.WarningMessage, nodeid: str) -> None:
    LEAKS.look(str(warning_message.message), f"a warning of {nodeid}")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of xdist has ended."""
    _others.extend(getattr(node, "workeroutput", {}).get("leaks", []))


def pytest_sessionfinish(session: pytest.Session) -> None:
    _patches.undo()
    for folder in _folders:
        LEAKS.look_at_files(folder)
    _others.extend(LEAKS.found[_reported:])
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["leaks"] = _others
    elif _others and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _others:
        terminalreporter.section("secrets were leaked", red=True)
        for leak in _others:
            terminalreporter.line(leak)
