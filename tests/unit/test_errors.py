"""Errors help the person on call, and reveal nothing that they must not."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import etl_dagster
from etl_dagster import errors
from etl_dagster.errors import (
    ConfigError,
    DecodeError,
    EtlError,
    PublicationMissing,
    TablesLeft,
    TableWriteFailed,
)

every_class = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, EtlError)
]


@pytest.mark.parametrize("kind", every_class, ids=lambda kind: kind.__name__)
def test_every_kind_of_error_says_what_to_do(kind: type[EtlError]) -> None:
    assert kind.__doc__
    assert len(kind.solution) > 15


def test_a_solution_may_be_specific_to_the_case() -> None:
    error = EtlError("the disk is full", solution="Make room.")

    assert (error.reason, error.solution, str(error)) == (
        "the disk is full",
        "Make room.",
        error.reason,
    )
    assert EtlError("another").solution != "Make room."


def test_a_missing_publication_names_those_that_exist() -> None:
    assert "it has 'shop', 'crm'" in PublicationMissing("etl", ["shop", "crm"]).reason
    assert "it has no publication" in PublicationMissing("etl", []).reason


def test_a_decode_error_says_where() -> None:
    assert DecodeError("half a message", offset=7).offset == 7
    assert "at byte 7" in str(DecodeError("half a message", offset=7))
    assert DecodeError("half a message").offset is None


def test_a_single_mistake_is_reported_in_the_singular() -> None:
    assert str(ConfigError(["x: unknown key"])).startswith("etl.yaml has 1 mistake:\n")
    assert "2 mistakes" in str(ConfigError(["x: unknown key", "y: unknown key"]))


def test_only_failures_that_may_pass_are_retried() -> None:
    retryable = {kind.__name__ for kind in every_class if kind.retryable}

    assert retryable == {
        "ReadConflict",
        "SourceSilent",
        "SourceUnreachable",
        "TableLocked",
        "TableNameTaken",
        "TableRewritten",
        "CopyOutdated",
        "SlotInUse",
        "SlotNotCreated",
        "NoSlotFree",
        "SpoolError",
        "SpoolFull",
        "SpoolUnusable",
        "StandbyBehind",
        "RollbackUnclear",
        "StoreUnreachable",
        "BatchTooLarge",
        "DestinationUnreachable",
        "HandoverTimeout",
        "MoveNotFinished",
        "LeaseLost",
    }


def test_a_failed_write_names_its_table() -> None:
    assert TableWriteFailed(42, "a type is missing").table_id == 42


#: What logs an error's own message, at a level that is shown by default.
_SHOWN = re.compile(r"log\.exception\(|\.(warning|error|info)\([^()]*exc_info")


def test_no_log_shows_the_message_of_an_error_that_is_not_ours() -> None:
    """It may hold a row's value or a secret: `runtime.failures.log_failure` leaves it out."""
    package = Path(etl_dagster.__file__).parent
    found = [
        str(module.relative_to(package))
        for module in package.rglob("*.py")
        if _SHOWN.search(module.read_text("utf-8"))
    ]
    assert found == []


def test_of_many_tables_that_were_left_ten_are_named_and_the_rest_counted() -> None:
    left = {f"public.t{number:03}": EtlError("it has no key") for number in range(300)}

    reason = TablesLeft(left, tables=900).reason

    assert reason.startswith("not compared, or not repaired: 300 of 900 tables\n  public.t000: it")
    assert reason.endswith("public.t009: it has no key\n  ... and 290 more")
