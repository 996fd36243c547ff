"""What the Postgres destination says to its server, as text."""

from __future__ import annotations

import traceback
from datetime import date
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg import errors

from etl_dagster.destinations.evolution import ChangeColumnType
from etl_dagster.destinations.postgres.config import PostgresDestinationConfig
from etl_dagster.destinations.postgres.connections import DestinationConnections
from etl_dagster.destinations.postgres.dialect import PostgresDialect
from etl_dagster.destinations.postgres.printing import array_literal, copied
from etl_dagster.destinations.postgres.types import column_type
from etl_dagster.destinations.sql.clashes import find_clashes
from etl_dagster.destinations.sql.statements import delete_keys, insert
from etl_dagster.destinations.sql.tables import Target, create_table, drop_tables
from etl_dagster.errors import TableWriteFailed
from etl_dagster.table_name import TableName
from etl_dagster.testing.changes import INT4, INT8, NUMERIC, TEXT, TIMESTAMPTZ, column, table
from etl_dagster.values.types import Array, Composite, Domain, Enum, PgType, Range, Scalar
from tests.support.leaks import PASSWORD
from tests.support.sql_texts import RecordingSession, lines

DIALECT = PostgresDialect()
ORDERS = table([column("id", INT8, 1, key=1), column("at", TIMESTAMPTZ, 2)])
_MOOD = Enum(70_000, "public.mood", ("sad", "ok"))


def test_a_table_moves_by_way_of_a_name_that_neither_schema_has() -> None:
    moved = DIALECT.move_table(TableName("public", "a"), TableName("sales", "b"))

    assert moved[1:] == lines(
        """
        ALTER TABLE "public"."a" RENAME TO "_etl moving"
        ALTER TABLE "public"."_etl moving" SET SCHEMA "sales"
        ALTER TABLE "sales"."_etl moving" RENAME TO "b"
        """
    )
    assert DIALECT.move_table(TableName("public", "a"), TableName("public", "b")) == [
        'ALTER TABLE "public"."a" RENAME TO "b"'
    ]


def test_a_schema_is_made_only_where_it_is_missing() -> None:
    """CREATE SCHEMA IF NOT EXISTS asks for the right to create it before it looks."""
    made = DIALECT.create_schema('it\'s "mine"')

    assert made.startswith("DO 'BEGIN IF pg_catalog.to_regnamespace(")
    assert 'CREATE SCHEMA "it\'\'s ""mine"""' in made


def test_values_are_converted_with_their_column() -> None:
    change = ChangeColumnType(column("a", INT4, 1), column("a", TEXT, 1))

    assert DIALECT.alter('"public"."t"', change, ({"a": "integer"}, {"a": "text"})) == [
        'ALTER TABLE "public"."t" ALTER COLUMN "a" TYPE text USING CAST("a" AS text)'
    ]


def test_rows_that_are_only_appended_are_marked_as_such() -> None:
    rows = pa.RecordBatch.from_pylist([{"id": 1, "at": None}], ORDERS.arrow_schema)
    target = Target.of(DIALECT, ORDERS)

    assert insert(target, rows).appends_to == (
        '"public"."orders"',
        {"id": "bigint", "at": "TIMESTAMP WITH TIME ZONE"},
    )
    assert delete_keys(target, rows.select(["id"])).appends_to is None


@pytest.mark.parametrize(
    ("type_oid", "modifier", "spelled"),
    [
        (INT8, -1, "bigint"),
        (NUMERIC, -1, "numeric"),
        (NUMERIC, ((12 << 16) | 2) + 4, "numeric(12,2)"),
        (NUMERIC, ((3 << 16) | (-2 & 0x7FF)) + 4, "numeric(3,-2)"),
        (1043, 14, "character varying(10)"),
        (1042, 5, "character(1)"),
        (1042, -1, "bpchar"),
        (1560, 3, "bit(3)"),
        (1562, -1, "bit varying"),
        (1114, 3, "timestamp(3) without time zone"),
        (1266, 1, "time(1) with time zone"),
        (1186, (0x1C00 << 16) | 2, "interval hour to second(2)"),
        (1186, (0x7FFF << 16) | 3, "interval(3)"),
        (1186, (4 << 16) | 0xFFFF, "interval year"),
        (18, -1, '"char"'),
        (2205, -1, "text"),
        (70_000, -1, "text"),
    ],
)
def test_a_built_in_type_is_the_sources_type(type_oid: int, modifier: int, spelled: str) -> None:
    assert column_type(column("c", type_oid, 1, type_modifier=modifier)) == spelled


@pytest.mark.parametrize(
    ("type_", "spelled"),
    [
        (
            Array(1231, "numeric[]", Scalar(NUMERIC, "numeric", ((5 << 16) | 1) + 4)),
            "numeric(5,1)[]",
        ),
        (Range(3904, "int4range", Scalar(INT4, "integer")), "int4range"),
        (Domain(70_001, "public.positive", Scalar(INT4, "integer")), "integer"),
        (Array(1009, "text[]", Scalar(TEXT, "text")), "text[]"),
        (
            Array(
                70_005,
                "public.list[]",
                Domain(70_006, "public.list", Array(1007, "integer[]", Scalar(INT4, "integer"))),
            ),
            "text",
        ),
        (_MOOD, "text"),
        (Array(70_002, "public.mood[]", _MOOD), "text"),
        (Composite(70_003, "public.pair", ()), "text"),
        (Range(70_004, "public.floats", Scalar(701, "double precision")), "text"),
    ],
)
def test_a_user_defined_type_is_text(type_: PgType, spelled: str) -> None:
    assert column_type(column("c", type_.oid, 1, type=type_)) == spelled


def test_the_schema_of_the_ledger_is_refused_for_tables() -> None:
    reserved = table(ORDERS.columns, schema_name="_etl")

    assert find_clashes(DIALECT, [reserved]) == [
        "_etl.orders is in schema _etl, which the destination keeps for itself"
    ]
    with pytest.raises(TableWriteFailed, match="keeps for itself"):
        create_table(RecordingSession(DIALECT), Target.of(DIALECT, reserved))


def test_only_staging_tables_of_ours_are_dropped() -> None:
    """A source table may have the same name as one of them."""
    session = RecordingSession(DIALECT, [[("public", "copy_of_1"), ("_etl", "copy_of_1")]])
    drop_tables(session, [DIALECT.staging("public", 1)])

    assert session.texts[1:] == ['DROP TABLE "_etl"."copy_of_1"']


def test_rows_without_a_key_are_compared_by_one_text() -> None:
    """Postgres neither hashes nor sorts by what may be null on both sides."""
    assert DIALECT.same_row([("a.x", "b.x"), ("a.y", "b.y")]) == (
        "CAST(ROW(a.x, a.y) AS text) = CAST(ROW(b.x, b.y) AS text)"
    )


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "printed"),
    [
        (pa.array(["a\tb\\", None, "\\N", ""]), [r"a\tb\\", r"\N", r"\\N", ""]),
        (pa.array(["line\nline\r"]), [r"line\nline\r"]),
        (pa.array([b"\x00\xff", None, b""]), [r"\\x00ff", r"\N", r"\\x"]),
        (pa.array([1.5, float("nan"), -0.0]), ["1.5", "nan", "-0"]),
        (pa.array([0.1], pa.float32()), ["0.1"]),
        (pa.array([Decimal("12.30")]), ["12.30"]),
        (pa.array([date(2024, 2, 29), None]), ["2024-02-29", r"\N"]),
        (pa.array([2**31 - 1, -800_000], pa.date32()), ["infinity", "0222-09-04 BC"]),
        (pa.array([0], pa.timestamp("us", "UTC")), ["1970-01-01 00:00:00.000000"]),
        (pa.array([86_400_000_000], pa.time64("us")), ["24:00:00"]),
        (pa.array([True, False, None]), ["true", "false", r"\N"]),
    ],
)
def test_values_are_printed_as_copy_reads_them(values: pa.Array[Any], printed: list[str]) -> None:
    whole = bytes(copied(pa.RecordBatch.from_arrays([values, values], ["a", "b"]))).decode()

    assert whole == "".join(f"{text}\t{text}\n" for text in printed)


def test_a_part_of_an_array_is_printed_alone() -> None:
    rows = pa.RecordBatch.from_arrays([pa.array(["a\\", "b", "c", None])], ["a"])

    assert bytes(copied(rows.slice(1, 2))) == b"b\nc\n"
    assert bytes(copied(rows.select([]).slice(0, 0))) == b""


def test_an_array_of_texts_is_quoted() -> None:
    assert array_literal(pa.array(['a"b\\', None, "NULL", ""])) == r'{"a\"b\\",NULL,"NULL",""}'
    assert array_literal(pa.array([1, None])) == "{1,NULL}"
    assert array_literal(pa.array([], pa.int64())) == "{}"


# -- settings --------------------------------------------------------------------------------------


def section_of(dsn: str) -> PostgresDestinationConfig:
    return PostgresDestinationConfig.model_validate({"type": "postgres", "dsn": dsn})


def test_a_password_is_not_shown() -> None:
    section = section_of(f"postgresql://u:{PASSWORD}@h:5433/d")

    assert section.place == "postgresql://u@h:5433/d"
    assert PASSWORD not in repr(section) + section.odd_values_at


def test_values_arrive_unchanged_or_are_refused() -> None:
    section = section_of("dbname=d")

    assert section.refusal("text") is None
    assert all(section.refusal(choice) for choice in ("json", "double", "decimal(9,2)"))


@pytest.mark.parametrize(
    ("failure", "reason", "solution", "retryable"),
    [
        (errors.DiskFull, "no room", "Make room on its server's disk", True),
        (errors.ReadOnlySqlTransaction, "takes no writes", "point destination.dsn to the", True),
        (errors.AdminShutdown, "can't be reached", "reconnects by itself", True),
        (errors.DeadlockDetected, "gave up", "tries again", True),
        (errors.QueryCanceled, "gave up", "tries again", True),
        (errors.InvalidPassword, "refuses the connection", "Check user, password", False),
        (errors.InsufficientPrivilege, "refuses us", "Grant the user of destination.dsn", False),
    ],
)
def test_a_failure_of_the_server_says_what_to_do(
    failure: type[psycopg.Error], reason: str, solution: str, retryable: bool
) -> None:
    """And never counts as one table's, where waiting helps or no table could be written."""
    connections = DestinationConnections("postgresql://etl:s3cr3t@localhost/warehouse")
    with pytest.raises((psycopg.Error, TableWriteFailed)) as raised, connections.blaming(1, "t"):
        raise failure("as the server says it")
    translated = connections.translate(failure("as the server says it"))

    assert reason in translated.reason
    assert solution in translated.solution
    assert translated.retryable is retryable
    assert isinstance(raised.value, psycopg.Error) or failure is errors.InsufficientPrivilege


def test_the_servers_words_on_a_value_are_not_logged_as_a_cause() -> None:
    connections = DestinationConnections("postgresql://etl@localhost/warehouse")
    with pytest.raises(TableWriteFailed) as raised, connections.blaming(1, "t"):
        raise errors.UniqueViolation("duplicate key\nDETAIL:  Key (e_mail)=(ann@example.com)")

    assert "ann@" not in "".join(traceback.format_exception(raised.value))
