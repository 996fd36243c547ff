"""The suites find what is wrong: each of many broken stores and destinations fails its check."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conformance.broken import destinations, stores

pytestmark = pytest.mark.slow

_FOLDER = Path(__file__).parent / "broken"
_FILES = [_FOLDER / name for name in ("stores.py", "destinations.py", "unfinished.py")]


@dataclass
class Outcome:
    """What the suite said of one class: check, without parameters, and reason."""

    passed: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Outcome]:
    """What the suites say of all classes, by the class's name.

    In a process of its own: nothing waits for the threads that a broken store leaves behind.
    """
    folder = tmp_path_factory.mktemp("broken")
    report = folder / "report.xml"
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        f"--junitxml={report}",
        f"--basetemp={folder / 'tmp'}",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *_FILES],
        cwd=_FOLDER.parents[2],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == pytest.ExitCode.TESTS_FAILED, (ran.stdout + ran.stderr)[-2000:]
    found: dict[str, Outcome] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = found.setdefault(case.get("classname", "").rpartition(".")[2], Outcome())
        check = case.get("name", "").partition("[")[0]
        for kind in ("failure", "error", "skipped"):
            if (element := case.find(kind)) is not None:
                reasons = {
                    "failure": outcome.failed,
                    "error": outcome.errors,
                    "skipped": outcome.skipped,
                }
                reasons[kind][check] = f"{element.get('message')}\n{element.text}"
                break
        else:
            outcome.passed.add(check)
    return found


_CLASSES = {
    name: value
    for module in (stores, destinations)
    for name, value in vars(module).items()
    if name.startswith("Test")
}
_BROKEN = [name for name, value in _CLASSES.items() if value.promise is not None]


@pytest.mark.parametrize("name", _BROKEN)
def test_a_defect_fails_the_check_of_the_promise_that_it_breaks(
    outcomes: Mapping[str, Outcome], name: str
) -> None:
    promise = _CLASSES[name].promise
    assert promise in outcomes[name].failed
    # For that reason, and not because the class is nothing of its kind at all.
    reason = outcomes[name].failed[promise].lstrip()
    expected = ("AssertionError", "assert ", "Failed: ", "etl_dagster.errors.")
    assert reason.startswith(expected), reason


@pytest.mark.parametrize("name", sorted(_CLASSES.keys() - set(_BROKEN)))
def test_the_base_classes_of_the_broken_ones_pass_everything(
    outcomes: Mapping[str, Outcome], name: str
) -> None:
    assert outcomes[name].passed
    assert not outcomes[name].failed
    assert not outcomes[name].errors


def test_a_failure_shows_what_was_compared(outcomes: Mapping[str, Outcome]) -> None:
    """pytest rewrites a package's assertions only if it is asked to."""
    failure = outcomes["TestProgressMovesBack"].failed["test_progress_never_moves_back"]

    assert "assert Lsn(offset=100) == Lsn(offset=200)" in failure


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("TestNoStore", "define make_store(self, folder)"),
        ("TestNoDestination", "define make_destination(self, folder)"),
        ("TestNoWayToRead", "define read_rows(self, destination, schema)"),
    ],
)
def test_a_test_class_that_lacks_a_hook_gets_its_name(
    outcomes: Mapping[str, Outcome], name: str, told: str
) -> None:
    [reason] = [*outcomes[name].failed.values(), *outcomes[name].errors.values()]

    assert told in reason


@pytest.mark.parametrize(
    ("name", "check", "told"),
    [
        (
            "TestLog",
            "test_a_chunk_delivered_twice_is_there_once",
            "LogDestination does not declare transactional",
        ),
        (
            "TestDocuments",
            "test_what_appends_every_change_lets_them_be_read",
            "DocumentDestination declares mirror",
        ),
        (
            "TestTheLeast",
            "test_the_end_of_a_copy_without_rows_leaves_an_empty_table",
            "define table_exists(...) in TestTheLeast to check this",
        ),
        (
            "TestTheLeast",
            "test_a_finished_copy_outlives_the_process",
            "TestTheLeast says that its destination isn't durable",
        ),
    ],
)
def test_a_check_that_does_not_run_says_why(
    outcomes: Mapping[str, Outcome], name: str, check: str, told: str
) -> None:
    assert told in outcomes[name].skipped[check]


def test_the_minimum_that_a_test_class_must_define_is_enough(
    outcomes: Mapping[str, Outcome],
) -> None:
    least = outcomes["TestTheLeast"]

    assert len(least.passed) > 40
    assert not least.failed
    assert not least.errors


def test_a_check_can_be_left_out_by_its_name(outcomes: Mapping[str, Outcome]) -> None:
    least = outcomes["TestTheLeast"]

    assert "test_a_deleted_row_is_gone" not in {*least.passed, *least.skipped}
    assert "test_a_changed_key_moves_the_row" in least.passed
