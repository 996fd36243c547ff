"""Makes tables of what was received."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Row = dict[str, Any]
Key = tuple[Any, ...]


class Table:
    """Rows by key; those of a table without a key all have the same one, ()."""

    def __init__(self) -> None:
        self._rows: dict[Key, list[Row]] = defaultdict(list)
        self._seen: set[Key] = set()

    def rows(self) -> list[Row]:
        return [row for rows in self._rows.values() for row in rows]

    def put(self, row: Row, key: list[str]) -> None:
        if key:
            self._rows[_key(row, key)] = [row]
        else:
            self._rows[()].append(row)

    def take(self, row: Row, key: list[str]) -> Row:
        """Remove the row with this key, or without one the first that is equal."""
        found = self._rows[_key(row, key)]
        for index, candidate in enumerate(found):
            if key or candidate == row:
                return found.pop(index)
        return {}

    def apply(self, event: dict[str, Any]) -> None:
        """One change. A position that was seen before came for the second time."""
        position = tuple(event["position"].values())
        if position in self._seen:
            return
        self._seen.add(position)
        if event["type"] == "truncate":
            self._rows.clear()
            return
        new, key = event["row"], event["key"]
        # An update lacks a large value that it left as it was.
        before = {} if event["type"] == "insert" else self.take(event["old_row"] or new, key)
        if event["type"] != "delete":
            self.put(before | new, key)


def _key(row: Row, columns: list[str]) -> Key:
    return tuple(row[name] for name in columns)


def read_tables(log: Path) -> dict[str, Table]:
    """The tables by name, as the requests in `log` leave them."""
    tables: dict[str, Table] = defaultdict(Table)
    for line in log.read_text().splitlines():
        request = json.loads(line)
        path, body = request["path"], request["body"]
        if path == "/rows":
            table = tables[body["table"]]  # there from now on, also without a row
            for row in body["rows"]:
                table.put(row, body["key"])
        elif path == "/events":
            for event in body["events"]:
                if "position" in event:  # begin, commit and relation change no row
                    tables[event["table"]].apply(event)
        else:  # /tables/{name}/drop-for-copy
            tables.pop(unquote(path.split("/")[2]), None)
    return tables
