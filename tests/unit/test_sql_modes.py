"""What the changes of a table become, as the texts of the statements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from etl_dagster.destinations.duckdb.dialect import DuckDBDialect
from etl_dagster.destinations.sql.dialect import Dialect
from etl_dagster.destinations.sql.modes import MIRROR
from etl_dagster.destinations.sql.session import Statement
from etl_dagster.destinations.sql.tables import Target
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.events import TableChanges, TruncateEvent
from etl_dagster.model.position import POSITION_ZERO
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import (
    INT4,
    INT8,
    JSONB,
    NUMERIC,
    TEXT,
    UUID,
    Change,
    Transactions,
    Unheld,
    batch,
    column,
    delete,
    insert,
    table,
    truncate,
    update,
)
from tests.support.sql_texts import PlainDialect, RecordingSession, lines

INTERVAL = 1186
PARTS = table([column("id", INT8, 1, key=1), column("note", TEXT, 2), column("text", TEXT, 3)])
READINGS = table(
    [column("sensor", TEXT, 1, is_identity=True), column("value", INT4, 2, is_identity=True)],
    name="readings",
    identity="f",
)
DUCKDB = DuckDBDialect("shop")


def mirrored(
    dialect: Dialect,
    *changes: Change,
    answers: tuple[Any, ...] = (),
    session: RecordingSession | None = None,
) -> RecordingSession:
    """The session after the changes of one table were applied."""
    session = session or RecordingSession(dialect, list(answers))
    schema = changes[0].schema
    [[step]] = batch(Transactions().commit(*changes)).tables.values()
    target = Target.of(dialect, schema)
    if isinstance(step, TruncateEvent):
        MIRROR.truncate(session, target, step, POSITION_ZERO)
    else:
        assert isinstance(step, TableChanges)
        MIRROR.change(session, target, step, MIRROR.prepare(step, POSITION_ZERO))
    return session


def test_rows_with_a_key_are_deleted_and_inserted() -> None:
    """One statement for each step, and each key once, whatever happened to it."""
    session = mirrored(
        DUCKDB,
        insert(PARTS, id=1, note="a", text="a"),
        update(PARTS, id=1, note="b", text="b"),
        delete(PARTS, id=2),
    )

    assert session.texts == lines(
        """
        DELETE FROM "shop"."public"."orders" AS target
          USING (SELECT "id" FROM _etl_keys) AS gone WHERE target."id" = gone."id"
        INSERT INTO "shop"."public"."orders" ("id", "note", "text")
          SELECT "id", "note", "text" FROM _etl_rows
        """
    )
    assert session.read == [
        {"_etl_keys": [{"id": 1}, {"id": 2}]},
        {"_etl_rows": [{"id": 1, "note": "b", "text": "b"}]},
    ]


def test_nothing_is_inserted_if_no_row_is_left() -> None:
    assert len(mirrored(DUCKDB, delete(PARTS, id=2)).texts) == 1


@pytest.mark.parametrize("is_there", [False, True])
def test_new_keys_are_looked_up_only_if_the_table_has_one_of_them(is_there: bool) -> None:
    """A stream that begins before the end of a copy brings some rows for the second time."""

    class KeyedSession(RecordingSession):
        def refuses_known_keys(self, table: str, schema: TableSchema, count: int) -> bool:
            return True

        def append_new(self, statement: Statement) -> bool:
            self.run(statement)
            return not is_there

    changes = [insert(PARTS, id=1), update(PARTS, id=2), insert(PARTS, id=3)]
    session = mirrored(DUCKDB, *changes, session=KeyedSession(DUCKDB))

    known = {"_etl_keys": [{"id": 2}]}
    every = {"_etl_keys": [{"id": 1}, {"id": 2}, {"id": 3}]}
    rows = {"_etl_rows": [{"id": id, "note": None, "text": None} for id in (1, 2, 3)]}
    assert session.read == [known, rows, *([every, rows] if is_there else [])]


def test_a_nullable_key_is_compared_null_safely() -> None:
    """Null if its column's type can't hold it. Other keys are compared so that an index serves."""
    schema = table(
        [
            column("region", INT4, 1, key=1),
            column("amount", NUMERIC, 2, key=2, type_modifier=((12 << 16) | 2) + 4),
        ]
    )
    session = mirrored(DUCKDB, delete(schema, region=1, amount=Unheld("NaN")))

    assert session.texts == lines(
        """
        DELETE FROM "shop"."public"."orders" AS target
          USING (SELECT "region", "amount" FROM _etl_keys) AS gone
          WHERE target."region" = gone."region"
          AND target."amount" IS NOT DISTINCT FROM gone."amount"
        """
    )


def test_values_that_arrow_has_no_type_for_are_cast() -> None:
    schema = table([column("id", UUID, 1, key=1), column("body", JSONB, 2)])
    key = "6f1b6a3c-1111-2222-3333-444455556666"
    session = mirrored(DUCKDB, insert(schema, id=key, body="{}"))

    assert session.texts == lines(
        """
        DELETE FROM "shop"."public"."orders" AS target
          USING (SELECT CAST("id" AS UUID) AS "id" FROM _etl_keys) AS gone
          WHERE target."id" = gone."id"
        INSERT INTO "shop"."public"."orders" ("id", "body")
          SELECT CAST("id" AS UUID) AS "id", CAST("body" AS JSON) AS "body" FROM _etl_rows
        """
    )


def test_a_row_with_unchanged_values_is_updated_in_place() -> None:
    session = mirrored(
        DUCKDB,
        update(PARTS, id=1, note="b", unchanged=["text"]),
        update(PARTS, id=2, note="c", text="c"),
        # Both rows are there, and the second key has a row.
        answers=(
            {"_etl place": np.array([0, 1], np.int64), "_etl row id": np.array([7, 9], np.int64)},
        ),
    )

    assert session.texts == lines(
        """
        SELECT gone."_etl place", target.rowid AS "_etl row id"
          FROM "shop"."public"."orders" AS target
          JOIN (SELECT "id", "_etl place" FROM _etl_keys) AS gone ON target."id" = gone."id"
        DELETE FROM "shop"."public"."orders"
          WHERE rowid IN (SELECT "_etl row id" FROM _etl_gone)
        UPDATE "shop"."public"."orders" AS target
          SET "id" = incoming."id", "note" = incoming."note"
          FROM (SELECT "id", "note", "_etl row id" FROM _etl_rows) AS incoming
          WHERE target.rowid = incoming."_etl row id"
        INSERT INTO "shop"."public"."orders" ("id", "note", "text")
          SELECT "id", "note", "text" FROM _etl_rows
        """
    )
    assert session.read[1:] == [
        {"_etl_gone": [{"_etl row id": 9}]},
        {"_etl_rows": [{"id": 1, "note": "b", "_etl row id": 7}]},
        {"_etl_rows": [{"id": 2, "note": "c", "text": "c"}]},
    ]


_READ_AND_WRITTEN = """
    CREATE TEMP TABLE _etl_known AS SELECT incoming."id" AS value_0, incoming."{0}" AS value_1,
      CASE WHEN incoming."_etl unknown 2" THEN target."text"
      ELSE CAST(incoming."text" AS {1}) END AS value_2,
      incoming."_etl place" AS place
      FROM _etl_rows AS incoming LEFT JOIN {2} AS target
      ON target."id" = CAST(incoming."_etl key 0" AS {3})
    DELETE FROM {2} AS target
      USING (SELECT "id" FROM _etl_keys) AS gone WHERE target."id" = gone."id"
    INSERT INTO {2} ("id", "{0}", "text") SELECT value_0, value_1, value_2 FROM {4}_etl_known
      WHERE {5} IN (SELECT min({5}) FROM {4}_etl_known GROUP BY place)
    DROP TABLE {4}_etl_known
"""


def test_if_a_column_hides_row_ids_unchanged_values_are_read_and_written_again() -> None:
    schema = table([PARTS.columns[0], column("RowID", TEXT, 2), PARTS.columns[2]])
    session = mirrored(DUCKDB, update(schema, id=1, RowID="b", unchanged=["text"]))

    texts = ("RowID", "VARCHAR", '"shop"."public"."orders"', "BIGINT", "temp.main.", "rowid")
    assert session.texts == lines(_READ_AND_WRITTEN.format(*texts))


def test_unchanged_values_are_read_and_written_again_in_a_database_without_stable_row_ids() -> None:
    session = mirrored(PlainDialect(), update(PARTS, id=1, note="b", unchanged=["text"]))

    texts = ("note", "text", '"public"."orders"', "bigint", "pg_temp.", "ctid")
    assert session.texts == lines(_READ_AND_WRITTEN.format(*texts))


def test_deleting_a_row_without_a_key_removes_one_equal_row() -> None:
    session = mirrored(
        DUCKDB, insert(READINGS, sensor="a", value=1), delete(READINGS, sensor="b", value=2)
    )

    assert session.texts == lines(
        """
        INSERT INTO "shop"."public"."readings" ("sensor", "value")
          SELECT "sensor", "value" FROM _etl_rows
        DELETE FROM "shop"."public"."readings" WHERE rowid IN (
          SELECT row_id FROM ( SELECT target.rowid AS row_id, gone."_etl times" AS times,
          row_number() OVER (PARTITION BY gone."_etl group") AS place
          FROM "shop"."public"."readings" AS target
          JOIN ( SELECT *, row_number() OVER () AS "_etl group"
          FROM ( SELECT "sensor", "value", count(*) AS "_etl times"
          FROM ( SELECT typed."sensor" AS "sensor", typed."value" AS "value"
          FROM ( SELECT "sensor", "value" FROM _etl_gone ) AS typed ) AS exact
          GROUP BY "sensor", "value" ) AS counted )
          AS gone ON target."sensor" IS NOT DISTINCT FROM gone."sensor"
          AND target."value" IS NOT DISTINCT FROM gone."value"
          ) AS found WHERE place <= times )
        """
    )
    assert session.read == [
        {"_etl_rows": [{"sensor": "a", "value": 1}]},
        {"_etl_gone": [{"sensor": "b", "value": 2}]},
    ]


def test_equal_rows_are_those_that_postgres_prints_alike() -> None:
    """To DuckDB, an interval of a day and one of 24 hours are equal."""
    lasting = column("lasts", INTERVAL, 1, is_identity=True, own_type=True)
    session = mirrored(DUCKDB, delete(table([lasting], identity="f"), lasts="1 day"))

    [text] = session.texts
    assert 'SELECT CAST(typed."lasts" AS VARCHAR) AS "lasts" FROM' in text
    assert 'ON CAST(target."lasts" AS VARCHAR) IS NOT DISTINCT FROM gone."lasts"' in text


@pytest.mark.parametrize(
    ("dialect", "name"), [(DUCKDB, "RowId"), (PlainDialect(), "ctid")], ids=["DuckDB", "plain"]
)
def test_equal_rows_that_cannot_be_told_apart_are_refused(dialect: Dialect, name: str) -> None:
    schema = table([column(name, TEXT, 1, is_identity=True)], identity="f")

    with pytest.raises(TableWriteFailed, match=f"is called {dialect.row_id}, .* {dialect.name}"):
        mirrored(dialect, delete(schema, **{name: "b"}))


def test_a_truncate_deletes_every_row() -> None:
    assert mirrored(DUCKDB, truncate(READINGS)).texts == ['DELETE FROM "shop"."public"."readings"']
