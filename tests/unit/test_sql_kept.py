"""What the changes of a table become in modes that keep more, as the texts of the statements."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from etl_dagster.destinations.copy_moment import CopyMoment
from etl_dagster.destinations.duckdb.dialect import DuckDBDialect
from etl_dagster.destinations.sql.dialect import Dialect
from etl_dagster.destinations.sql.modes import BY_NAME
from etl_dagster.destinations.sql.tables import Target
from etl_dagster.lsn import Lsn
from etl_dagster.model.events import TableChanges, TruncateEvent
from etl_dagster.model.modes import TableMode
from etl_dagster.model.position import POSITION_ZERO, Position
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import (
    INT8,
    TEXT,
    Change,
    Transactions,
    batch,
    column,
    delete,
    insert,
    table,
    truncate,
    update,
)
from tests.support.sql_texts import PlainDialect, RecordingSession, lines

PARTS = table([column("id", INT8, 1, key=1), column("note", TEXT, 2)])
DUCKDB = DuckDBDialect("shop")
TABLE = '"shop"."public"."orders"'


def at(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


def kept(
    mode: TableMode,
    *changes: Change,
    dialect: Dialect = DUCKDB,
    after: Position = POSITION_ZERO,
) -> RecordingSession:
    """The session after one transaction, committed at 1000, was applied."""
    session = RecordingSession(dialect)
    [[step]] = batch(Transactions().commit(*changes)).tables.values()
    target = Target.of(dialect, replace(changes[0].schema, mode=mode))
    if isinstance(step, TruncateEvent):
        BY_NAME[mode].truncate(session, target, step, after)
    else:
        assert isinstance(step, TableChanges)
        BY_NAME[mode].change(session, target, step, BY_NAME[mode].prepare(step, after))
    return session


# -- soft_delete -------------------------------------------------------------------------------


def test_rows_are_replaced_and_deleted_ones_marked() -> None:
    session = kept("soft_delete", insert(PARTS, id=1, note="a"), delete(PARTS, id=2))

    assert session.texts == lines(
        f"""
        DELETE FROM {TABLE} AS target
          USING (SELECT "id" FROM _etl_keys) AS gone WHERE target."id" = gone."id"
        INSERT INTO {TABLE} ("id", "note", "_etl_deleted_at")
          SELECT "id", "note", "_etl_deleted_at" FROM _etl_rows
        UPDATE {TABLE} AS target SET "_etl_deleted_at" = gone."_etl at"
          FROM (SELECT "id", "_etl at" FROM _etl_keys) AS gone WHERE target."id" = gone."id"
        """
    )
    assert session.read == [
        {"_etl_keys": [{"id": 1}]},
        {"_etl_rows": [{"id": 1, "note": "a", "_etl_deleted_at": None}]},
        {"_etl_keys": [{"id": 2, "_etl at": at(1000)}]},
    ]


def test_where_nothing_is_deleted_there_is_no_further_statement() -> None:
    """A stream of inserts and updates costs no more than in a mirror."""
    assert len(kept("soft_delete", insert(PARTS, id=1, note="a")).texts) == 2


def test_a_truncate_marks_in_one_statement() -> None:
    assert kept("soft_delete", truncate(PARTS)).texts == lines(
        f"""
        UPDATE {TABLE} SET "_etl_deleted_at" = CAST($1 AS TIMESTAMP WITH TIME ZONE)
          WHERE "_etl_deleted_at" IS NULL
        """
    )


# -- append ------------------------------------------------------------------------------------


def test_changes_are_appended_in_one_statement() -> None:
    session = kept("append", insert(PARTS, id=1, note="a"), delete(PARTS, id=1))

    assert session.texts == lines(
        f"""
        INSERT INTO {TABLE} ("id", "note", "_etl_op", "_etl_commit_lsn", "_etl_ordinal",
          "_etl_commit_time", "_etl_xid", "_etl_before", "_etl_unchanged")
          SELECT "id", "note", "_etl_op", CAST("_etl_commit_lsn" AS UBIGINT) AS "_etl_commit_lsn",
          "_etl_ordinal", "_etl_commit_time", "_etl_xid",
          CAST("_etl_before" AS JSON) AS "_etl_before", "_etl_unchanged" FROM _etl_rows
        """
    )
    [read] = session.read
    assert [(row["_etl_op"], row["_etl_before"]) for row in read["_etl_rows"]] == [
        ("insert", None),
        ("delete", '{"id": "1"}'),
    ]


def test_the_log_is_read_only_for_a_change_that_leaves_values_out() -> None:
    session = kept("append", update(PARTS, id=1, unchanged=["note"]))

    known, inserted, dropped = session.texts
    assert known == " ".join(
        f"""
        CREATE TEMP TABLE _etl_known AS SELECT incoming."id" AS value_0,
        CASE WHEN incoming."_etl unknown 1" THEN target."note"
        ELSE CAST(incoming."note" AS VARCHAR) END AS value_1,
        incoming."_etl_op" AS value_2,
        CAST(incoming."_etl_commit_lsn" AS UBIGINT) AS value_3,
        incoming."_etl_ordinal" AS value_4, incoming."_etl_commit_time" AS value_5,
        incoming."_etl_xid" AS value_6, CAST(incoming."_etl_before" AS JSON) AS value_7,
        (SELECT array_agg(each.name) FROM (SELECT unnest(ARRAY[
        CASE WHEN incoming."_etl unknown 1" AND target."note" IS NULL THEN 'note' END])
        AS name) AS each WHERE each.name IS NOT NULL) AS value_8,
        incoming."_etl place" AS place FROM _etl_rows AS incoming
        LEFT JOIN (SELECT * FROM (SELECT log.*, row_number() OVER (PARTITION BY "id"
        ORDER BY _etl_commit_lsn DESC, _etl_ordinal DESC) AS "_etl newest"
        FROM {TABLE} AS log
        WHERE ("id") IN (SELECT CAST("_etl key 0" AS BIGINT) FROM _etl_rows)) AS numbered
        WHERE "_etl newest" = 1 AND _etl_op NOT IN ('delete', 'truncate')) AS target
        ON target."id" = CAST(incoming."_etl key 0" AS BIGINT)
        """.split()
    ).replace("ARRAY[ ", "ARRAY[")
    assert inserted.startswith(f"INSERT INTO {TABLE} ")
    assert dropped == "DROP TABLE temp.main._etl_known"


# -- scd2 --------------------------------------------------------------------------------------


def test_versions_are_closed_and_opened() -> None:
    session = kept("scd2", update(PARTS, id=1, note="a"), delete(PARTS, id=2))

    assert session.texts == lines(
        f"""
        UPDATE {TABLE} AS target SET "_etl_valid_to" = gone."_etl at", "_etl_is_current" = false
          FROM (SELECT "id", "_etl at" FROM _etl_keys) AS gone
          WHERE target."_etl_is_current" AND target."id" = gone."id"
        INSERT INTO {TABLE} ("id", "note", "_etl_valid_from", "_etl_valid_to", "_etl_is_current",
          "_etl_unchanged") SELECT "id", "note", "_etl_valid_from", "_etl_valid_to",
          "_etl_is_current", "_etl_unchanged" FROM _etl_rows
        """
    )
    assert session.read[1]["_etl_rows"] == [
        {
            "id": 1,
            "note": "a",
            "_etl_valid_from": at(1000),
            "_etl_valid_to": None,
            "_etl_is_current": True,
            "_etl_unchanged": None,
        }
    ]


def test_versions_are_taken_back_only_within_a_transaction() -> None:
    inside = Position(Lsn(1000), 0)

    session = kept("scd2", update(PARTS, id=1, note="a"), after=inside)

    assert session.texts[0] == " ".join(
        f"""
        DELETE FROM {TABLE} AS target USING (SELECT "id", "_etl at" FROM _etl_keys) AS gone
        WHERE target."_etl_is_current" AND target."_etl_valid_from" = gone."_etl at"
        AND target."id" = gone."id"
        """.split()
    )
    assert len(session.texts) == 3


@pytest.mark.parametrize(("after", "count"), [(POSITION_ZERO, 1), (Position(Lsn(1000), 0), 3)])
def test_a_truncate_closes_and_takes_back_what_its_transaction_opened(
    after: Position, count: int
) -> None:
    assert len(kept("scd2", truncate(PARTS), after=after).texts) == count


# -- copies ------------------------------------------------------------------------------------


def joined(mode: TableMode, dialect: Dialect, schema: TableSchema = PARTS) -> list[str]:
    session = RecordingSession(dialect)
    schema = replace(schema, mode=mode)
    target, staging = Target.of(dialect, schema), Target.staging(dialect, schema)
    copy = CopyMoment(Position(Lsn(999), 2**62), 1000)
    BY_NAME[mode].join(session, target, staging, copy, "false")
    return session.texts


def test_a_copy_becomes_the_table_with_the_rows_that_it_lacks() -> None:
    assert joined("soft_delete", PlainDialect()) == lines(
        """
        ALTER TABLE "_etl"."copy_16384" ADD COLUMN "_etl_deleted_at" TIMESTAMP WITH TIME ZONE
        INSERT INTO "_etl"."copy_16384" ("id", "note", "_etl_deleted_at")
          SELECT "id", "note",
          coalesce("_etl_deleted_at", CAST($1 AS TIMESTAMP WITH TIME ZONE))
          FROM "public"."orders" AS target WHERE NOT EXISTS
          (SELECT 1 FROM "_etl"."copy_16384" AS copied WHERE copied."id" = target."id")
        DROP TABLE "public"."orders"
        ALTER TABLE "_etl"."copy_16384" SET SCHEMA "public"
        ALTER TABLE "public"."copy_16384" RENAME TO "orders"
        """
    )


def test_a_copy_closes_and_opens_only_what_differs() -> None:
    closed, opened, dropped = joined("scd2", PlainDialect())

    same = 'copied."id" = target."id"'
    copied = '"_etl"."copy_16384" AS copied'
    missing = f"NOT EXISTS (SELECT 1 FROM {copied} WHERE {same}"
    assert f'WHERE "_etl_is_current" AND {missing}' in closed
    assert 'copied."note" IS NOT DISTINCT FROM target."note"' in closed
    assert opened.endswith(
        'WHERE NOT EXISTS (SELECT 1 FROM "public"."orders" AS target '
        f'WHERE target."_etl_is_current" AND {same})'
    )
    assert dropped == 'DROP TABLE "_etl"."copy_16384"'


def test_no_statement_holds_a_value() -> None:
    changes: tuple[Any, ...] = (
        insert(PARTS, id=77, note="secret"),
        update(PARTS, id=88, unchanged=["note"]),
        delete(PARTS, id=99),
    )
    for mode in BY_NAME:
        for text in kept(mode, *changes, dialect=PlainDialect()).texts if mode != "mirror" else ():
            assert not any(value in text for value in ("77", "88", "99", "secret")), text
