"""Results of queries whose values Arrow would not hold."""

from __future__ import annotations

import duckdb
import pytest

from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
from etl_dagster.destinations.duckdb.exact import exact


@pytest.mark.skipif(
    not DuckDBDestinationConfig.has_own_types, reason="this DuckDB can't read every interval"
)
def test_a_result_has_text_for_values_that_arrow_cannot_hold() -> None:
    query = """
        select interval '2562047788:00:54.775807' a, '24:00:00-15:59:59'::timetz a,
            '01'::bit "b""c", [interval '1 mon'] l,
            {'x y': interval '1 day', 'e': 'u'::enum('u')} s,
            map {'k': ['1'::bit]} m, [['12:00:00+02'::timetz]]::timetz[1][] d, 5 n, [1, 2] p
    """
    with duckdb.connect() as connection:
        found = exact(connection.sql(query)).to_arrow_table()
        same = connection.sql("select 1 a, 2 a")
        assert exact(same) is same
    assert [values.to_pylist()[0] for values in found.columns] == [
        "2562047788:00:54.775807",
        "24:00:00-15:59:59",
        "01",
        ["1 month"],
        {"x y": "1 day", "e": "u"},
        [("k", ["1"])],
        [["12:00:00+02"]],
        5,
        [1, 2],
    ]
    assert found.column_names == ["a", "a", 'b"c', "l", "s", "m", "d", "n", "p"]
