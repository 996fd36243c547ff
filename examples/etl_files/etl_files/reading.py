"""How a table's file is read.

Each line is a JSON object, and its ``type`` says which:

- ``relation``: from here on the table has these columns. The first line of a file is one; it also
  names the copy (``copy_id``) and where the changes begin that are not in it (``replay_from``).
- ``row``: a row that the copy brought.
- ``insert``, ``update``, ``delete``, ``truncate``: a change, with its position.

Values are spelled as `etl_dagster.model.json_values` says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etl_dagster.values.oids import FLOAT4, FLOAT8, INT2, INT4

Line = dict[str, Any]
Row = dict[str, Any]


def table_path(folder: Path, schema_name: str, table_name: str) -> Path:
    """The file of a table; what a file's name can't hold is written as ``%`` and its number."""
    return folder / f"{_escaped(schema_name)}.{_escaped(table_name)}.jsonl"


def _escaped(name: str) -> str:
    return re.sub(r"[^\w $-]", lambda found: f"%{ord(found[0]):02X}", name)


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a table's file; one that is just being written is left out."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def read_table(path: Path) -> list[Row]:
    """The rows that the table has now, in any order.

    Reads the whole file, and needs memory for all rows. They stay spelled as in the file.
    """
    table = _Table()
    for line in read_lines(path):
        table.take(line)
    return table.rows


class _Table:
    """What a table holds after some of its lines."""

    def __init__(self) -> None:
        self._columns: list[Mapping[str, Any]] = []
        self._key: list[str] = []
        #: The rows by key: one for each; without a key, equal rows together.
        self._rows: dict[str, list[Row]] = {}

    @property
    def rows(self) -> list[Row]:
        return [row for same in self._rows.values() for row in same]

    def take(self, line: Line) -> None:
        match line["type"]:
            case "row" | "insert":
                self._put(line["row"])
            case "delete":
                self._remove(line["row"])
            case "update":
                old = line["old_row"] or {}
                before = self._remove(line["row"] | old)
                # Postgres leaves out large values that an update didn't touch.
                kept = {name: old.get(name, before.get(name)) for name in line["unchanged"]}
                self._put(line["row"] | kept)
            case "truncate":
                self._rows.clear()
            case "relation":
                self._evolve(line["columns"])

    def _put(self, row: Row) -> None:
        same = self._rows.setdefault(self._identity(row), [])
        if self._key:
            same.clear()
        same.append(row)

    def _remove(self, row: Row) -> Row:
        """Take one such row away, and return it; an empty one where there is none."""
        identity = self._identity(row)
        same = self._rows.get(identity, [{}])
        removed = same.pop()
        if not same:
            self._rows.pop(identity, None)
        return removed

    def _identity(self, row: Row) -> str:
        named = {name: row[name] for name in self._key} if self._key else row
        return json.dumps(named, sort_keys=True)

    def _evolve(self, columns: list[Mapping[str, Any]]) -> None:
        if columns == self._columns:
            return
        rows, before = self.rows, {_column_id(column): column for column in self._columns}
        pairs = [(before.get(_column_id(column)), column) for column in columns]
        self._columns, self._rows = columns, {}
        self._key = [column["name"] for column in columns if column["key"] is not None]
        for row in rows:
            self._put({new["name"]: _moved(row, old, new) for old, new in pairs})


def _column_id(column: Mapping[str, Any]) -> int | str:
    """Stays over a renaming, where the number is known."""
    number: int | str = column["attnum"] or column["name"]
    return number


def _moved(row: Row, old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> Any:
    """The row's value in a column that is new, renamed, or of another type since.

    Numbers are then spelled as the new type spells them, so that a key is found again.
    """
    value = None if old is None else row.get(old["name"])
    if old is None or value is None or old["type_oid"] == new["type_oid"]:
        return value
    is_text = isinstance(value, str)
    if new["type_oid"] in (INT2, INT4):
        return int(value) if is_text else value
    if new["type_oid"] in (FLOAT4, FLOAT8):
        return float(value) if is_text and value.strip("-0123456789.") == "" else value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
