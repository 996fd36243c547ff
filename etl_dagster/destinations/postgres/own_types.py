"""The types that users of the source made, made at the destination as well.

An enum has the labels of the source's, or more; a domain is its base type under another name, since
constraints are left out; a composite has the source's attributes, of built-in types; a range has
its multirange, and no function that makes its values canonical, since those that come are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

import psycopg
import pyarrow as pa

from etl_dagster.destinations.postgres.types import made_type, spelled
from etl_dagster.destinations.sql.dialect import literal, quote
from etl_dagster.destinations.sql.labels import Labels, enums_of, joined, labels_of, occurring
from etl_dagster.destinations.sql.session import Session
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.schema import ColumnSchema, TableId, TableSchema
from etl_dagster.pg.connection import Connection
from etl_dagster.values.forms import with_labels
from etl_dagster.values.listed import listed_enum
from etl_dagster.values.types import Array, Composite, Domain, Enum, Multirange, PgType, Range

#: Begins the comment on a type that a pipeline made; what follows is how it was made.
_MADE: Final = "made by etl_dagster: "
_THERE: Final = (
    "SELECT t.oid::bigint, t.typtype::text, n.nspname::text, t.typname::text, "
    "pg_catalog.obj_description(t.oid, 'pg_type'), "
    "(SELECT array_agg(enumlabel::text ORDER BY enumsortorder) "
    "FROM pg_catalog.pg_enum WHERE enumtypid = t.oid) "
    "FROM pg_catalog.pg_type AS t JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace "
    "WHERE t.oid = pg_catalog.to_regtype($1)"
)
#: The multirange of a range, in SQL, and its name alone.
_MULTIRANGE: Final = (
    "SELECT pg_catalog.format_type(t.oid, NULL), t.typname::text FROM pg_catalog.pg_range AS r "
    "JOIN pg_catalog.pg_type AS t ON t.oid = r.rngmultitypid WHERE r.rngtypid = $1"
)
#: Their types are on every server.
_SYSTEM: Final = ("pg_catalog", "information_schema")

#: Another transaction, next to the one of the session.
Aside = Callable[[], AbstractContextManager[Connection]]


class OwnTypes:
    """Makes types inside a session's transaction, and changes them.

    Args:
        aside: for labels. A transaction can't write a label that it has added itself; one that was
            added and not used does no harm.
    """

    def __init__(self, session: Session, aside: Aside) -> None:
        self._session = session
        self._aside = aside
        #: Made in this transaction, which no other session sees yet.
        self._made: set[str] = set()

    def prepare(self, schema: TableSchema) -> None:
        """Make what types the table's columns lack.

        Raises:
            TableWriteFailed: another type has the name.
        """
        for column in schema.columns:
            if column.own_type and column.type is not None:
                self._prepare(schema.id, column.type)

    def make_room(
        self, known: TableSchema, wanted: TableSchema, rows: pa.RecordBatch
    ) -> TableSchema:
        """Give enums the labels that some rows need; as `Session.make_room`."""
        others: dict[str, ColumnSchema] = {}
        order = {column.name: labels_of(column) for column in wanted.columns}
        for column in enums_of(known):
            labels = labels_of(column)
            needed = joined(labels, order.get(column.name, ()), occurring(rows, column))
            if needed == labels:
                continue
            enum = listed_enum(column)
            assert enum is not None
            name = made_type(enum)
            there = self._session.fetch_row(_THERE, [name])
            if there is not None:
                self._add_labels(name, tuple(there[5] or ()), needed)
            others[column.name] = with_labels(column, needed)
        if not others:
            return known
        return replace(known, columns=tuple(others.get(c.name, c) for c in known.columns))

    def _prepare(self, table_id: TableId, type_: PgType) -> None:
        if isinstance(type_, Array):
            self._prepare(table_id, type_.element)
            return
        if isinstance(type_, Multirange):
            self._prepare(table_id, type_.range)
            return
        if isinstance(type_, Domain):
            self._prepare(table_id, type_.base)
        elif not isinstance(type_, Enum | Composite | Range):
            return
        name = made_type(type_)
        there = self._session.fetch_row(_THERE, [name])
        if there is None:
            self._make(name, type_)
            return
        oid, kind, schema_name, type_name, comment, labels = there
        if isinstance(type_, Enum) and kind == "e":
            self._add_labels(
                name, tuple(labels or ()), joined(tuple(labels or ()), type_.labels, ())
            )
        elif schema_name not in _SYSTEM and comment != _MADE + _definition(type_):
            if not str(comment or "").startswith(_MADE):
                raise TableWriteFailed(
                    table_id,
                    f"type {name} is there, and no pipeline has made it",
                    solution="Rename or drop it, or set destination.user_types to text; then "
                    "retry the table.",
                )
            self._put_aside(name, type_name, oid)
            self._make(name, type_)

    def _make(self, name: str, type_: PgType) -> None:
        session = self._session
        row = session.fetch_row("SELECT (pg_catalog.parse_ident($1))[1]", [name])
        assert row is not None
        session.execute(session.dialect.create_schema(row[0]))
        kind = "DOMAIN" if isinstance(type_, Domain) else "TYPE"
        definition = _definition(type_)
        session.execute(f"CREATE {kind} {name} AS {definition}")
        # The labels of an enum change.
        said = "enum" if isinstance(type_, Enum) else definition
        session.execute(f"COMMENT ON {kind} {name} IS {literal(_MADE + said)}")
        self._made.add(name)

    def _put_aside(self, name: str, type_name: str, oid: int) -> None:
        """Give the name away, which the source gave to another definition of the type. Tables that
        have the old one keep it until they are copied again."""
        session = self._session
        session.execute("SAVEPOINT _etl_type")
        try:
            session.execute(f"DROP TYPE {name}")
        except psycopg.errors.DependentObjectsStillExist:
            session.execute("ROLLBACK TO SAVEPOINT _etl_type")
            other = session.dialect.aside(type_name, f"__old_{oid}")
            session.execute(f"ALTER TYPE {name} RENAME TO {quote(other)}")
            for multirange, its_name in session.fetch(_MULTIRANGE, [oid]):
                other = session.dialect.aside(its_name, f"__old_{oid}")
                session.execute(f"ALTER TYPE {multirange} RENAME TO {quote(other)}")
        session.execute("RELEASE SAVEPOINT _etl_type")

    def _add_labels(self, name: str, there: Labels, needed: Labels) -> None:
        missing = [label for label in needed if label not in set(there)]
        if not missing:
            return
        statements = []
        for place in reversed(range(len(needed))):
            if needed[place] not in set(there):
                after = needed[place + 1 :][:1]
                before = f" BEFORE {literal(after[0])}" if after else ""
                label = literal(needed[place])
                statements.append(f"ALTER TYPE {name} ADD VALUE IF NOT EXISTS {label}{before}")
        if name in self._made:
            self._session.run_each(statements)
            return
        with self._aside() as connection:
            for statement in statements:
                connection.execute(statement.encode())


def _definition(type_: PgType) -> str:
    match type_:
        case Enum():
            return f"ENUM ({', '.join(map(literal, type_.labels))})"
        case Domain():
            return made_type(type_.base)
        case Composite():
            attributes = (f"{quote(a.name)} {spelled(a.type)}" for a in type_.attributes)
            return f"({', '.join(attributes)})"
        case Range():
            named = f", multirange_type_name = {type_.multirange}" if type_.multirange else ""
            return f"RANGE (subtype = {spelled(type_.subtype)}{named})"
    raise TypeError(type_)
