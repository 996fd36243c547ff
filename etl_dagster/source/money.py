"""How money prints: by the setting lc_monetary, which the pipeline's sessions pin."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from etl_dagster.config import SourceConfig
from etl_dagster.model.schema import TableSchema
from etl_dagster.source.connection import connect, translate
from etl_dagster.values.registry import prints_money

#: Shows currency, sign, separators and digits.
_SAMPLE: Final = "select (1234567::int::money)::text || ' ' || ((-1)::int::money)::text"


def fetch_sample(connection: psycopg.Connection[Any]) -> str:
    """Two amounts as the session prints money; of two sessions, all print alike if these do."""
    row = connection.execute(_SAMPLE).fetchone()
    assert row is not None
    return str(row[0])


def fetch_own_sample(config: SourceConfig) -> str:
    """The same as the server prints it for the user of `config` without our settings.

    Raises:
        SourceError: the source can't be asked.
    """
    connection = connect(config, application_name="etl_dagster money", pins_money=False)
    with connection:
        try:
            return fetch_sample(connection)
        except psycopg.Error as error:
            raise translate(error, "looking at lc_monetary") from None


def money_columns(table: TableSchema) -> list[str]:
    """The columns in whose values money is."""
    return [column.name for column in table.columns if prints_money(column)]


def digits(sample: str) -> int:
    """How many digits a sample has: more than another one where the currency has more of them."""
    return sum(character.isdecimal() for character in sample)
