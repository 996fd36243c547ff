"""Which settings of synchronous_standby_names mean this pipeline's connections."""

from __future__ import annotations

import pytest

from etl_dagster.source.readiness import names_standby


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("", None),
        ("*", "*"),
        ("standby_1, standby_2", None),
        ("standby_1, *", "*"),
        ("FIRST 1 (*)", "*"),
        ("ANY 2 (s1, s2, s3)", None),
        ("2 (s1, *)", "*"),
        ('any 1 ("ETL_Dagster apply shop", s1)', "ETL_Dagster apply shop"),
        ('"*"', "*"),  # quotes don't make it a name
        ('"odd ""name"', None),
    ],
)
def test_the_entry_that_matches_a_standby_name_is_found(setting: str, found: str | None) -> None:
    assert names_standby(setting, "etl_dagster ") == found
