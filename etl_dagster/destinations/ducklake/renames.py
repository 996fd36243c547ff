"""Renames a table that the transaction has altered, which DuckLake can't.

As of DuckDB 1.5.5, a transaction that alters the columns of a table and then renames it is
committed, and leaves a catalog that nothing can open any longer ("Column with name id already
exists"). A rename that comes before the alterations is all right, and so is another table.
"""

from __future__ import annotations

import re
from typing import Final

_ALTER: Final = re.compile(
    r'\s*ALTER TABLE ((?:"(?:[^"]|"")*"\.)*)("(?:[^"]|"")*") (?:RENAME TO ("(?:[^"]|"")*")\s*$)?'
)


class AlteredTables:
    """Knows the tables that one transaction has altered."""

    def __init__(self) -> None:
        #: As SQL.
        self._altered: set[str] = set()

    def instead(self, sql: str) -> list[str]:
        """What to run in place of a statement."""
        found = _ALTER.match(sql)
        if found is None:
            return [sql]
        place, name, new_name = found.groups()
        table = place + name
        if new_name is None:
            self._altered.add(table)
        elif table in self._altered:
            self._altered.remove(table)
            return [
                f"CREATE TABLE {place}{new_name} AS FROM {table}",
                f"DROP TABLE {table}",
            ]
        return [sql]
