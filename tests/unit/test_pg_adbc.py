"""Connections that read rows as Arrow, where no server is needed."""

from __future__ import annotations

import pytest
from adbc_driver_manager import AdbcStatusCode

from etl_dagster.pg.adbc import adbc, close_for_good
from tests.unit.test_light_import import modules_after


def test_a_wrong_count_of_connections_fails_no_table() -> None:
    def close() -> None:
        raise adbc.InternalError(
            "INTERNAL: [libpq] Open connection count underflowed",
            status_code=AdbcStatusCode.INTERNAL,
        )

    close_for_good(close)


def test_any_other_failure_to_close_is_raised() -> None:
    def close() -> None:
        raise adbc.OperationalError("IO: [libpq] broken", status_code=AdbcStatusCode.IO)

    with pytest.raises(adbc.OperationalError, match="broken"):
        close_for_good(close)


def test_the_module_can_be_the_first_one_that_is_imported() -> None:
    loaded = modules_after("import etl_dagster.pg.adbc")

    assert "pyarrow.dataset" not in loaded
