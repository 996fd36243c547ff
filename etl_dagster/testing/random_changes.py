"""Random statements, run on tables that know what Postgres would send for them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, TypeAlias

from etl_dagster.testing.changes import (
    ORDERS,
    PRICES,
    READINGS,
    VISITS,
    Change,
    Row,
    SourceTable,
    Transactions,
)

#: The index of the table, the kind (Insert, Update, change of a Key, Delete, Truncate), and numbers
#: and texts for values.
Statement: TypeAlias = tuple[int, str, tuple[int, int], tuple[str | None, str | None]]

NUMBERS = range(7)
TEXTS: tuple[str | None, ...] = (None, "", "a", "b", "a long document")
KINDS = "IIIUUUUDDKKT"


def random_transactions(random: Random) -> list[list[Statement]]:
    """Twelve transactions of one to eight statements each."""

    def statement() -> Statement:
        return (
            random.randrange(4),
            random.choice(KINDS),
            (random.choice(NUMBERS), random.choice(NUMBERS)),
            (random.choice(TEXTS), random.choice(TEXTS)),
        )

    return [[statement() for _ in range(random.randint(1, 8))] for _ in range(12)]


class RandomSource:
    """Four tables of different kinds, and the changes that Postgres sends for them."""

    def __init__(self, *, toast: bool = True, truncates: bool = True) -> None:
        self.tables = [
            SourceTable(ORDERS, toasted={"document"} if toast else ()),
            SourceTable(PRICES),
            SourceTable(VISITS),
            SourceTable(READINGS, toasted={"blob"} if toast else ()),
        ]
        self.stream = Transactions()
        self._truncates = truncates

    def run(self, transactions: Sequence[Sequence[Any]]) -> None:
        """Run the statements; those that aren't possible (a key that exists) are left out."""
        for statements in transactions:
            changes = [self._statement(*statement) for statement in statements]
            self.stream.commit(*(change for change in changes if change is not None))

    def _statement(
        self, number: int, kind: str, numbers: tuple[int, int], texts: tuple[str | None, str | None]
    ) -> Change | None:
        table = self.tables[number]
        if kind == "I":
            return table.insert(self._row(number, numbers, texts))
        if kind == "T":
            return table.truncate() if self._truncates else None
        if not table.rows or table.schema is VISITS:
            return None
        place = numbers[0] % len(table.rows)
        if kind == "D":
            return table.delete(place)
        new = self._row(number, (numbers[1], numbers[1]), texts)
        if kind == "K":
            return table.update(place, {key: new[key] for key in table.schema.key_columns})
        named = list(new)[-1] if texts[0] else list(new)[-2]
        return table.update(
            place, {named: new[named]} if named not in table.schema.key_columns else {}
        )

    @staticmethod
    def _row(number: int, numbers: tuple[int, int], texts: tuple[str | None, str | None]) -> Row:
        first, second = numbers
        rows: list[Row] = [
            {"id": first, "amount": None, "note": texts[0], "document": texts[1]},
            {"sku": str(first % 2), "region": second % 3, "price": first},
            {"page": texts[0], "at": second},
            {"sensor": texts[0], "value": second % 2, "blob": texts[1]},
        ]
        return rows[number]
