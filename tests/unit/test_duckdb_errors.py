"""What DuckDB's own failures mean to the person on call."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from etl_dagster.destinations.duckdb.failures import translate


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (duckdb.OutOfMemoryException("Out of Memory Error: no more"), "needs more memory"),
        (
            duckdb.TransactionException(
                "TransactionContext Error: Failed to commit: failed to pin block of size 256.0 KiB"
            ),
            "needs more memory",
        ),
        (
            duckdb.TransactionException(
                "TransactionContext Error: Failed to commit: Could not write file: "
                "No space left on device"
            ),
            "no space is left",
        ),
        (duckdb.TransactionException("TransactionContext Error: Conflict"), "by another process"),
        (duckdb.IOException("IO Error: gone"), "can't be used"),
    ],
)
def test_a_failed_commit_is_reported_with_its_cause_and_retried(
    error: duckdb.Error, reason: str
) -> None:
    translated = translate(error, Path("/data/shop.duckdb"))

    assert reason in translated.reason
    assert translated.retryable
