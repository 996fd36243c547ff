"""The check of values that a column's type can't hold follows the stream, without a run."""

from __future__ import annotations

from pathlib import Path

from etl_dagster.integrations.dagster.checks.check_names import ODD_CHECK
from tests.support.dagster_in_process import Dagster, dagster, key_of, until, write_config
from tests.support.database import Database


def test_the_sensor_reports_when_an_odd_value_arrives_and_when_it_is_gone(
    newest_database: Database, tmp_path: Path
) -> None:
    newest_database.execute(
        "create table orders (id int primary key, amount numeric(5, 2))",
        "insert into orders values (1, 1)",
        "create publication etl_pub for table orders",
    )
    with dagster(write_config(newest_database.dsn, tmp_path), report_every_s=0.1) as ui:
        ui.copy_all(1)
        assert _next(ui, passed=True)

        newest_database.execute("update orders set amount = 'NaN'")
        assert "amount 1" in _next(ui, passed=False)

        newest_database.execute("update orders set amount = 2")
        assert _next(ui, passed=True)
        # A copy says what it brought, too.
        newest_database.execute("update orders set amount = 'NaN'")
        assert _next(ui, passed=False)
        assert ui.run(ui.requested[0]).success
        assert ui.materialization_of("orders").metadata["odd_values"].value == {"amount": 1}
        assert _next(ui, passed=False)


def _next(ui: Dagster, *, passed: bool) -> str:
    """Tick until the sensor reports it again; its message."""
    before = len(ui.checks)
    found: list[str] = []

    def is_reported() -> bool:
        ui.tick()
        found[:] = [
            check.description or ""
            for check in ui.checks[before:]
            if (check.check_name, check.passed) == (ODD_CHECK, passed)
        ]
        return bool(found)

    until(is_reported)
    assert {check.asset_key for check in ui.checks if check.check_name == ODD_CHECK} == {
        key_of("orders")
    }
    return found[-1]
