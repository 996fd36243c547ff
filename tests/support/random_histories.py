"""Tables whose rows, keys and columns change at random, with values that few types hold."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random
from typing import Any

from etl_dagster.lsn import Lsn
from etl_dagster.model.modes import TableMode
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing.changes import (
    DATE,
    FLOAT8,
    INT4,
    INT8,
    NUMERIC,
    TEXT,
    Change,
    Row,
    SourceTable,
    Unheld,
    column,
    relation,
    table,
)
from etl_dagster.testing.random_changes import RandomSource

#: What a table without a key is kept in, where the mode needs one.
_KEYLESS: dict[TableMode, TableMode] = {"soft_delete": "mirror", "scd2": "append"}

FACTS = table(
    [
        column("id", INT8, 1, key=1),
        column("ratio", FLOAT8, 2),
        column("day", DATE, 3),
        column("amount", NUMERIC, 4, type_modifier=((12 << 16) | 2) + 4),
        column("note", TEXT, 5),
        column("quantity", INT4, 6),
    ],
    table_id=16393,
    name="facts",
)

_ODD: dict[int, list[Any]] = {
    FLOAT8: [None, 1.5, math.nan, math.inf, -math.inf, -0.0, 5e-324],
    DATE: [None, Unheld("infinity"), Unheld("-infinity"), Unheld("4713-01-01 BC")],
    NUMERIC: [None, Unheld("NaN"), Unheld("Infinity")],
    TEXT: [None, "", " ", "NULL", "\\N", "'; --", '"', "{}", "\x01\x7f", "\ufeff", "e\u0301", "😀"],
    INT4: [None, 0, -(2**31), 2**31 - 1],
    INT8: [None, 0, -(2**63), 2**63 - 1],
}


class SourceInMode(RandomSource):
    """The tables of a `RandomSource` and `FACTS`, kept in one mode as far as they can be."""

    def __init__(self, mode: TableMode) -> None:
        super().__init__()
        self.facts = SourceTable(FACTS, toasted={"note"})
        self.tables.append(self.facts)
        self._attnum = len(FACTS.columns)
        for each in self.tables:
            kept = mode if each.schema.key_columns else _KEYLESS.get(mode, mode)
            each.schema = replace(each.schema, mode=kept)

    def run_facts(self, random: Random, transactions: int, *, alters: bool) -> None:
        """Change `FACTS` at random; its columns, too, if they may be altered."""
        for _ in range(transactions):
            changes: list[Change] = []
            for _ in range(random.randint(1, 6)):
                if alters and random.random() < 0.12:
                    changes.append(self._alter(random))
                elif (change := self._change(random)) is not None:
                    changes.append(change)
            self.stream.commit(*changes)

    def _statement(self, number: int, *statement: Any) -> Change | None:
        # Visits have no identity: Postgres refuses to change or delete them.
        is_refused = number == 2 and statement[0] not in "IT"
        return None if is_refused else super()._statement(number, *statement)

    def _change(self, random: Random) -> Change | None:
        facts, kind = (
            self.facts,
            random.choice("IIIIUUUUUKKDDT" if random.random() < 0.1 else "IUUKD"),
        )
        if kind == "I":
            return facts.insert({"id": random.randrange(9)} | self._values(random))
        if kind == "T":
            return facts.truncate()
        if not facts.rows:
            return None
        place = random.randrange(len(facts.rows))
        if kind == "D":
            return facts.delete(place)
        if kind == "K":
            return facts.update(place, {"id": random.randrange(9)})
        values = self._values(random)
        some = random.sample(sorted(values), random.randint(1, len(values)))
        return facts.update(place, {name: values[name] for name in some})

    def _values(self, random: Random) -> Row:
        return {
            column.name: random.choice(_ODD[column.type_oid])
            for column in self.facts.schema.columns
            if column.name != "id"
        }

    def _alter(self, random: Random) -> Change:
        """Add, drop, rename or widen a column; the description that follows."""
        facts, schema = self.facts, self.facts.schema
        others = [c for c in schema.columns if c.name != "id"]
        victim = random.choice(others)
        kind = random.choice("ARDW" if len(others) > 2 else "AR")
        self._attnum += 1
        new = f"c{self._attnum}"
        columns = schema.columns
        if kind == "A":
            columns += (column(new, random.choice([TEXT, INT4]), self._attnum),)
            facts.rows = [row | {new: None} for row in facts.rows]
        elif kind == "D":
            columns = tuple(c for c in columns if c is not victim)
            for row in facts.rows:
                row.pop(victim.name)
        elif kind == "R":
            columns = tuple(replace(c, name=new) if c is victim else c for c in columns)
            facts.rows = [
                {new if name == victim.name else name: value for name, value in row.items()}
                for row in facts.rows
            ]
        else:
            columns = tuple(replace(c, type_oid=INT8) if c.type_oid == INT4 else c for c in columns)
        renamed = {new if name == victim.name and kind == "R" else name for name in facts.toasted}
        facts.toasted = frozenset(renamed & {c.name for c in columns})
        facts.schema = replace(schema, columns=columns, snapshot_id=self._version(schema))
        return relation(facts.schema)

    def _version(self, schema: TableSchema) -> Lsn:
        # A transaction that alters a table twice has two versions of one LSN; the later one counts.
        return max(self.stream.next_lsn, schema.snapshot_id)
