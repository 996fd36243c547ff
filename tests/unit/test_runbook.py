"""The runbook has every error, with a test that provokes it, and the messages of the code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from etl_dagster.errors import SlotInvalidated, SlotMissing

_REPOSITORY = Path(__file__).parents[2]
#: No test provokes these: the page says in words how it would be done.
_WITHOUT_A_TEST = {
    "CopyOutdated",
    "DestinationLeftBehind",
    "RowChangesText",
    "SlotNotCreated",
    "SourceError",
    "TableNameTaken",
}


@pytest.fixture(scope="module")
def runbook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("runbook", _REPOSITORY / "docs" / "runbook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_error_says_how_to_provoke_it_and_no_other(runbook: ModuleType) -> None:
    assert set(runbook.PROVOKED) == {each.__name__ for each in runbook.error_classes()}


def test_the_tests_that_provoke_errors_are_there(runbook: ModuleType) -> None:
    missing = {
        name
        for name, entry in runbook.PROVOKED.items()
        if not entry.test or not _defines(_REPOSITORY / "tests" / entry.file, entry.test)
    }
    assert missing == _WITHOUT_A_TEST


def test_messages_are_those_of_the_code_with_words_for_what_differs(runbook: ModuleType) -> None:
    messages = runbook.messages()

    assert (
        "slot NAME is gone from the source, but ... tables are streamed from it"
        in (messages[SlotMissing.__name__])
    )
    assert len(messages[SlotInvalidated.__name__]) > 3
    assert "publication PUBLICATION contains no table" in messages["PublicationEmpty"]


def test_a_solution_that_an_error_puts_together_is_shown(runbook: ModuleType) -> None:
    _, _, entry = runbook.errors_page().partition("\n## PublicationEmpty\n")

    assert 'ALTER PUBLICATION "PUBLICATION" ADD TABLE' in entry.partition("\n## ")[0]


def test_a_message_leads_to_its_error(runbook: ModuleType) -> None:
    page = runbook.messages_page()

    assert "| publication PUBLICATION contains no table | [`PublicationEmpty`](errors.md" in page


def _defines(file: Path, test: str) -> bool:
    return file.is_file() and f"def {test}(" in file.read_text("utf-8")
