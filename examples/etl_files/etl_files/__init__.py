"""A state store and a destination for etl-dagster, in files: SQLite, and JSON lines.

The modules in the order in which they are best read: `store` and `destination`, then what they
stand on: `sqlite_file`, `coordination`; `copies`, `table_file`, `locks`; and `reading`, which is
for those who use the files.
"""

from etl_files.coordination import SharedSqliteStore
from etl_files.destination import JsonLinesDestination
from etl_files.reading import read_lines, read_table, table_path
from etl_files.store import SqliteStore

__version__ = "1.0.0"
__all__ = [
    "JsonLinesDestination",
    "SharedSqliteStore",
    "SqliteStore",
    "read_lines",
    "read_table",
    "table_path",
]
