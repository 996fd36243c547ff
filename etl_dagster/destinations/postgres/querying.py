"""A person's query on the destination."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import psycopg
import pyarrow as pa

from etl_dagster.destinations.postgres.connections import DestinationConnections
from etl_dagster.errors import DestinationError
from etl_dagster.pg.failures import Failure, failure_of
from etl_dagster.values.form import Form
from etl_dagster.values.registry import REGISTRY


def query(dsn: str, statement: str) -> tuple[Sequence[str], list[Sequence[Any]]]:
    """The columns and the rows of a query, which is run in a transaction that writes nothing.

    Raises:
        DestinationError: the database can't be reached, or refuses the query.
    """
    with (
        closing(DestinationConnections(dsn)) as connections,
        connections.transaction() as connection,
    ):
        connection.execute(
            "SET TRANSACTION READ ONLY; SET LOCAL search_path = public; SET LOCAL row_security = on"
        )
        try:
            result = connection.execute(statement.encode()).pgresult
        except psycopg.Error as error:
            failure = failure_of(error)
            if failure.is_passing and failure is not Failure.READ_ONLY:
                raise
            # The query is of who reads this; it isn't kept anywhere.
            raise DestinationError(
                f"Postgres refuses the query: {error.diag.message_primary or error}",
                solution="Correct the query. It can't write: `etl-dagster query` only reads.",
            ) from None
        if result is None or not result.nfields:
            return [], []
        columns = range(result.nfields)
        names = [(result.fname(place) or b"").decode() for place in columns]
        reads = [_reader(result.ftype(place)) for place in columns]
        rows: list[Sequence[Any]] = [
            tuple(_value(result.get_value(row, place), reads[place]) for place in columns)
            for row in range(result.ntuples)
        ]
    return names, rows


def _reader(type_oid: int) -> Callable[[str], Any]:
    """Truth and numbers as Python has them; all else is the text that Postgres prints."""
    row = REGISTRY.get(type_oid)
    arrow = row.form.arrow if row is not None and isinstance(row.form, Form) else pa.string()
    if pa.types.is_boolean(arrow):
        return lambda text: text == "t"
    if pa.types.is_integer(arrow):
        return int
    return float if pa.types.is_floating(arrow) else str


def _value(text: bytes | None, read: Callable[[str], Any]) -> Any:
    return None if text is None else read(text.decode())
