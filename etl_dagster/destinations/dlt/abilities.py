"""What dlt can do at a destination."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from etl_dagster.destinations.dlt.config import DltDestinationConfig
from etl_dagster.errors import DestinationError
from etl_dagster.model.modes import TableMode

#: Rows that are only added need nothing of a destination.
_ONLY_ADDED: Final[frozenset[TableMode]] = frozenset({"append"})


def modes_of(config: DltDestinationConfig) -> frozenset[TableMode]:
    """The modes that the destination supports, as far as the configuration shows."""
    if config.is_filesystem and config.table_format != "delta":
        return _ONLY_ADDED
    return frozenset({"mirror", "append"})


@dataclass(frozen=True)
class Abilities:
    """What decides how tables are kept."""

    #: The strategy of dlt's `merge` that is used; None: rows are only added.
    merge_strategy: Literal["delete-insert", "upsert"] | None
    #: Whether it is reached by SQL. If not, tables are files, perhaps in a table format.
    has_sql: bool
    has_transactions: bool
    #: Whether transactions that write at the same time are refused.
    has_one_writer: bool
    table_format: Literal["delta", "iceberg"] | None
    #: Format of the files in load packages; None: the one that dlt prefers.
    file_format: str | None
    #: Format of files without a row; None: the same.
    empty_format: str | None

    @property
    def has_plain_files(self) -> bool:
        """Whether a table is nothing but the files of its load packages."""
        return not self.has_sql and self.table_format is None

    def format_of(self, *, is_empty: bool) -> str | None:
        """The format of a file with rows, or of one without any."""
        return (self.empty_format or self.file_format) if is_empty else self.file_format


def find_abilities(destination: Any, config: DltDestinationConfig) -> Abilities:
    """What dlt reports about the destination; nothing is connected.

    Raises:
        DestinationError: it can't hold tables whose rows are updated and deleted.
    """
    found = destination.capabilities()
    kind = destination.destination_type.rsplit(".", 1)[-1]
    is_files = kind == "filesystem"
    formats = found.supported_loader_file_formats or ()
    strategies = found.supported_merge_strategies or ()
    strategy: Literal["delete-insert", "upsert"] | None
    if is_files and config.table_format != "delta":
        strategy = None
    elif not is_files and "delete-insert" in strategies:
        strategy = "delete-insert"
    elif "upsert" in strategies:
        strategy = "upsert"
    else:
        raise DestinationError(
            f"dlt can't merge rows by key at {config.destination}",
            solution="Choose a destination for which dlt's documentation lists the merge strategy "
            "delete-insert or upsert.",
        )
    return Abilities(
        strategy,
        not is_files,
        found.supports_transactions is not False,
        kind == "duckdb",
        config.table_format if is_files else None,
        # Parquet holds every value as it is; CSV and SQL statements don't.
        "parquet" if "parquet" in formats else None,
        # ADBC, by which dlt loads Parquet into Postgres, refuses files without a row.
        "csv" if "csv" in formats and kind == "postgres" else None,
    )


def naming_of(destination: Any, config: DltDestinationConfig) -> Callable[[str], str]:
    """How dlt changes names: by its convention, and the longest name that the destination takes."""
    from dlt.common.schema.normalizers import naming_from_reference

    found = destination.capabilities()
    lengths = [found.max_identifier_length, found.max_column_identifier_length]
    longest = min((length for length in lengths if length), default=None)
    naming = naming_from_reference(config.naming, longest)
    normalize: Callable[[str], str] = naming.normalize_identifier
    return normalize


def missing_file(destination: Any) -> Path | None:
    """The path of a DuckDB file that doesn't exist, which connecting would create; else None."""
    if destination.destination_type.rsplit(".", 1)[-1] != "duckdb":
        return None
    credentials = destination.config_params.get("credentials")
    if not isinstance(credentials, str):
        return None
    path = Path(credentials.removeprefix("duckdb:///"))
    return None if path.exists() else path
