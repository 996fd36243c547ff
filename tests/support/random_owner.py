"""An owner who changes tables, their columns and their publication at random.

Every value is of a type that Postgres and DuckDB print alike, so that what arrived can be compared
as text.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg import sql

from tests.support.database import PUBLICATION, Database

#: How a publication names its tables.
KINDS = ("for table", "for tables in schema", "for all tables")
_TYPES = ("int", "bigint", "text", "boolean", "numeric(12, 2)", "date")
_NAMES = ("a", "b", "c", "d", "e", "f")


@dataclass(frozen=True)
class Table:
    oid: int
    schema: str
    name: str
    columns: dict[str, str]
    key: tuple[str, ...]
    is_partitioned: bool

    @property
    def sql(self) -> str:
        return f'"{self.schema}"."{self.name}"'


class Owner:
    """Makes random transactions; `log` holds their statements in order.

    Args:
        kind: one of `KINDS`.
    """

    def __init__(self, dsn: str, rng: random.Random, kind: str) -> None:
        self._dsn = dsn
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._rng = rng
        self._kind = kind
        self._next_id = 1
        self._number = 0
        self.log: list[str] = []

    def close(self) -> None:
        self._connection.close()

    def connect_again(self) -> None:
        """After the server was away."""
        self._connection.close()
        self._connection = psycopg.connect(self._dsn, autocommit=True)

    def create(self) -> None:
        """Three tables with a key, one without, a partitioned one, and the publication."""
        self._run("create schema shop", "create schema attic")
        for name in ("orders", "items", "notes"):
            self._run(
                f"create table shop.{name} (id int primary key, a int, b text, c numeric(12, 2))"
            )
        self._run(
            "create table shop.visits (a int, b text)",
            "alter table shop.visits replica identity full",
            "create table shop.events (id int primary key, a int, b text) partition by range (id)",
            "create table shop.events_0 partition of shop.events for values from (0) to (100000)",
        )
        tables = self.tables()
        for table in tables:
            self._insert(table)
        what = {
            "for table": f"for table {', '.join(t.sql for t in tables)}",
            "for tables in schema": "for tables in schema shop",
            "for all tables": "for all tables",
        }[self._kind]
        self._run(
            f"create publication {PUBLICATION} {what} with (publish_via_partition_root = true)"
        )

    def tables(self) -> list[Table]:
        """Every table of schema shop, partitions left out; as it is now."""
        rows = self._connection.execute(
            """
            select c.oid::int, n.nspname, c.relname, c.relkind = 'p',
                   array_agg(a.attname::text order by a.attnum),
                   array_agg(format_type(a.atttypid, a.atttypmod) order by a.attnum),
                   coalesce((select array_agg(k.attname::text) from pg_index i join pg_attribute k
                             on k.attrelid = c.oid and k.attnum = any (i.indkey)
                             where i.indrelid = c.oid and i.indisprimary), '{}')
            from pg_class c join pg_namespace n on n.oid = c.relnamespace
            join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            where n.nspname in ('shop', 'attic') and c.relkind in ('r', 'p')
              and not c.relispartition
            group by c.oid, n.nspname, c.relname, c.relkind order by c.oid
            """
        ).fetchall()
        return [
            Table(oid, schema, name, dict(zip(names, types, strict=True)), tuple(key), is_root)
            for oid, schema, name, is_root, names, types, key in rows
        ]

    def published(self) -> list[Table]:
        """The tables that the publication has now."""
        names = self._connection.execute(
            "select schemaname, tablename from pg_publication_tables where pubname = %s",
            [PUBLICATION],
        ).fetchall()
        return [t for t in self.tables() if (t.schema, t.name) in names]

    def step(self) -> None:
        """One random transaction, now and then rolled back."""
        rng = self._rng
        actions: list[Callable[[Table], list[str]]] = rng.choices(
            [
                self._inserts, self._updates, self._deletes, self._key_change, self._truncate,
                self._add_column, self._drop_column, self._rename_column, self._swap_columns,
                self._replace_column, self._retype, self._rename_table, self._swap_tables,
                self._replace_table, self._identity, self._attach,
            ],
            weights=[8, 8, 4, 2, 1, 4, 2, 3, 2, 2, 3, 2, 2, 1, 1, 1],
            k=rng.randrange(1, 5),
        )  # fmt: skip
        roll_back = rng.random() < 0.1
        try:
            with self._connection.transaction(force_rollback=roll_back):
                self.log.append("begin;")
                for action in actions:
                    # Looked up again, since an action before may have changed it.
                    self._run(*action(rng.choice(self._live())))
            self.log.append("rollback;" if roll_back else "commit;")
        except psycopg.Error as error:
            self.log.append(f"rollback; -- refused: {error.diag.message_primary}")

    def leave_and_return(self) -> None:
        """Take a table out of the publication, change its rows, and put it in again."""
        table = self._rng.choice([t for t in self.published() if not t.is_partitioned])
        out, back = self._out_and_back(table)
        try:
            self._run(*self._inserts(table), *self._deletes(table), *out)
            moved = next(t for t in self.tables() if t.oid == table.oid)
            self._run(*self._inserts(moved), *self._updates(moved), *self._deletes(moved), *back)
        except psycopg.Error as error:
            self.log.append(f"-- refused: {error.diag.message_primary}")
            self._run(*back)

    def touch(self) -> None:
        """A new row in every published table: with it, Postgres sends the columns as they are."""
        for table in self.published():
            self._run(*self._inserts(table))

    def rewrite(self) -> None:
        """Rewrite all rows of a table, without a change."""
        table = self._rng.choice([t for t in self._live() if not t.is_partitioned])
        self._run(f"vacuum full {table.sql}")

    # -- what the actions need -----------------------------------------------------------------

    def _live(self) -> list[Table]:
        return [table for table in self.tables() if table.schema == "shop"]

    def _run(self, *statements: str) -> None:
        for statement in statements:
            self.log.append(statement + ";")
            self._connection.execute(statement)  # type: ignore[call-overload]

    def _name(self) -> str:
        self._number += 1
        return f"t{self._number}"

    def _value(self, type_name: str) -> str:
        number = self._rng.randrange(1000)
        match type_name.split("(")[0]:
            case "integer" | "bigint":
                return str(number)
            case "boolean":
                return str(number % 2 == 0).lower()
            case "numeric":
                return f"{number / 100}"
            case "date":
                return f"date '2024-01-01' + {number}"
            case _:
                return f"'text {number}'"

    def _inserts(self, table: Table) -> list[str]:
        names = list(table.columns)
        rows = []
        for _ in range(self._rng.randrange(1, 4)):
            self._next_id += 1
            values = [
                str(self._next_id)
                if name in table.key and table.columns[name] in ("integer", "bigint")
                else self._value(table.columns[name])
                for name in names
            ]
            rows.append(f"({', '.join(values)})")
        columns = ", ".join(f'"{name}"' for name in names)
        return [f"insert into {table.sql} ({columns}) values {', '.join(rows)}"]

    def _insert(self, table: Table) -> None:
        for _ in range(5):
            self._run(*self._inserts(table))

    def _some(self, table: Table) -> str:
        """A condition that some rows fulfil."""
        name = self._rng.choice(list(table.columns))
        return f'abs(hashtext("{name}"::text)) % 3 = {self._rng.randrange(3)}'

    def _plain(self, table: Table) -> list[str]:
        """Columns that aren't part of the key."""
        return [name for name in table.columns if name not in table.key]

    def _updates(self, table: Table) -> list[str]:
        plain = self._plain(table)
        if not plain:
            return []
        name = self._rng.choice(plain)
        value = self._value(table.columns[name])
        return [f'update {table.sql} set "{name}" = {value} where {self._some(table)}']

    def _deletes(self, table: Table) -> list[str]:
        return [f"delete from {table.sql} where {self._some(table)}"]

    def _key_change(self, table: Table) -> list[str]:
        if table.key != ("id",) or table.is_partitioned:
            return []
        # No two rows of a table have ids of the same amount, whenever they were made.
        return [f"update {table.sql} set id = -id where {self._some(table)}"]

    def _truncate(self, table: Table) -> list[str]:
        return [f"truncate {table.sql}"]

    def _add_column(self, table: Table) -> list[str]:
        free = [name for name in _NAMES if name not in table.columns]
        if not free:
            return []
        type_name = self._rng.choice(_TYPES)
        default = self._rng.choice(["", f"default {self._value(_canonical(type_name))}"])
        if default and self._rng.random() < 0.3:
            default += " not null"
        return [f'alter table {table.sql} add column "{free[0]}" {type_name} {default}']

    def _drop_column(self, table: Table) -> list[str]:
        plain = self._plain(table)
        if len(plain) < 2:
            return []
        return [f'alter table {table.sql} drop column "{self._rng.choice(plain)}"']

    def _rename_column(self, table: Table) -> list[str]:
        free = [name for name in _NAMES if name not in table.columns]
        plain = self._plain(table)
        if not (free and plain):
            return []
        old, new = self._rng.choice(plain), self._rng.choice(free)
        return [f'alter table {table.sql} rename column "{old}" to "{new}"']

    def _swap_columns(self, table: Table) -> list[str]:
        plain = self._plain(table)
        if len(plain) < 2:
            return []
        one, other = self._rng.sample(plain, 2)
        rename = f"alter table {table.sql} rename column"
        return [
            f'{rename} "{one}" to aside',
            f'{rename} "{other}" to "{one}"',
            f'{rename} aside to "{other}"',
        ]

    def _replace_column(self, table: Table) -> list[str]:
        """Drop a column and add one of the same name and type."""
        plain = self._plain(table)
        if not plain:
            return []
        name = self._rng.choice(plain)
        alter = f"alter table {table.sql}"
        return [
            f'{alter} drop column "{name}"',
            f'{alter} add column "{name}" {table.columns[name]}',
        ]

    def _retype(self, table: Table) -> list[str]:
        plain = self._plain(table)
        if not plain:
            return []
        name = self._rng.choice(plain)
        alter = f'alter table {table.sql} alter column "{name}"'
        into = {
            "integer": [f'type int using "{name}" * 100', "type bigint", "type text"],
            "bigint": ["type text", f'type bigint using "{name}" + 1'],
            "text": [f'type int using length("{name}")', f"type text using \"{name}\" || '!'"],
            "numeric": ["type numeric(14, 2)", "type numeric(12, 4)", "type text"],
            "boolean": ["type text"],
            "date": ["type text"],
        }[table.columns[name].split("(")[0]]
        return [f"{alter} drop default", f"{alter} {self._rng.choice(into)}"]

    def _rename_table(self, table: Table) -> list[str]:
        return [f'alter table {table.sql} rename to "{self._name()}"']

    def _swap_tables(self, table: Table) -> list[str]:
        others = [other for other in self._live() if other.oid != table.oid]
        other, aside = self._rng.choice(others), self._name()
        return [
            f'alter table {table.sql} rename to "{aside}"',
            f'alter table {other.sql} rename to "{table.name}"',
            f'alter table shop."{aside}" rename to "{other.name}"',
        ]

    def _replace_table(self, table: Table) -> list[str]:
        """Drop a table and create another of the same name."""
        if table.is_partitioned:
            return []
        created = [
            f"drop table {table.sql}",
            f"create table {table.sql} (id int primary key, a int, b text)",
            f"insert into {table.sql} select i, i, 'new' from generate_series(1, 5) i",
        ]
        if self._kind == "for table":
            created.append(f"alter publication {PUBLICATION} add table {table.sql}")
        return created

    def _identity(self, table: Table) -> list[str]:
        if not table.key:
            return []
        return [f"alter table {table.sql} replica identity {self._rng.choice(['full', 'default'])}"]

    def _attach(self, table: Table) -> list[str]:
        """A new partition that has rows already."""
        if not table.is_partitioned:
            return []
        leaf = self._name()
        self._number += 1
        low = self._number * 100_000_000
        columns = ", ".join(f'"{name}"' for name in table.columns)
        values = ", ".join(
            f"{low} + i" if name == "id" else self._value(kind)
            for name, kind in table.columns.items()
        )
        if low + 100_000_000 > 2**31 - 1:
            return []
        return [
            f"create table shop.{leaf} (like {table.sql} including all)",
            f"insert into shop.{leaf} ({columns}) select {values} from generate_series(1, 4) i",
            f"alter table {table.sql} attach partition shop.{leaf}"
            f" for values from ({low}) to ({low + 100_000_000})",
        ]

    def _out_and_back(self, table: Table) -> tuple[list[str], list[str]]:
        alter = f"alter publication {PUBLICATION}"
        publish = (
            [f"{alter} set (publish = 'insert')"],
            [f"{alter} set (publish = 'insert, update, delete, truncate')"],
        )
        moved = (
            [f"alter table {table.sql} set schema attic"],
            [f'alter table attic."{table.name}" set schema shop'],
        )
        unlogged = (
            [f"alter table {table.sql} set unlogged"],
            [f"alter table {table.sql} set logged"],
        )
        ways = {
            "for table": [
                ([f"{alter} drop table {table.sql}"], [f"{alter} add table {table.sql}"]),
                publish,
            ],
            "for tables in schema": [
                ([f"{alter} drop tables in schema shop"], [f"{alter} add tables in schema shop"]),
                moved,
                unlogged,
                publish,
            ],
            "for all tables": [unlogged, publish],
        }
        return self._rng.choice(ways[self._kind])


def _canonical(type_name: str) -> str:
    return "integer" if type_name == "int" else type_name


def source_rows(database: Database, table: Table) -> list[tuple[str | None, ...]]:
    """The table's rows as text, sorted; columns in the order of their names."""
    columns = sql.SQL(", ").join(
        sql.SQL("{}::text").format(sql.Identifier(name)) for name in sorted(table.columns)
    )
    name = sql.Identifier(table.schema, table.name)
    return sorted(database.query(sql.SQL("select {} from {}").format(columns, name)), key=repr)
