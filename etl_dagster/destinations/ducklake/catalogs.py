"""Where the catalog of a lake is, as the configuration says it; opens nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from etl_dagster.pg.dsn import Dsn

#: Of a Postgres that vanished, DuckDB notices by these.
_NOTICED_AFTER_S: Final = 30
_CONNECT_TIMEOUT_S: Final = "10"


class Catalog(ABC):
    """A database that holds what DuckLake knows of a lake: its tables, files and snapshots."""

    #: DuckDB's extension that reads it; None where DuckDB itself does.
    extension: str | None
    #: Whether several processes write at a time, also on several machines.
    is_shared: bool

    @property
    @abstractmethod
    def place(self) -> str:
        """For people; without any secret."""

    @property
    @abstractmethod
    def attached(self) -> str:
        """What stands after ``ducklake:`` in ATTACH; may hold a password."""

    @abstractmethod
    def redact(self, text: str) -> str:
        """The text without the secrets: DuckDB's messages repeat what was attached."""


@dataclass(frozen=True)
class PostgresCatalog(Catalog):
    """A database of a Postgres; the password is shown by `attached` and `dsn` alone."""

    dsn: Dsn = field(repr=False)
    schema: str | None

    extension = "postgres_scanner"
    is_shared = True

    @property
    def place(self) -> str:
        return self.dsn.uri

    @property
    def attached(self) -> str:
        return f"postgres:{self.conninfo}"

    @property
    def conninfo(self) -> str:
        """For libpq."""
        from etl_dagster.pg.dsn import tcp_settings

        return self.dsn.with_defaults(
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name="etl_dagster lake",
            **tcp_settings(_NOTICED_AFTER_S),
        ).conninfo()

    def redact(self, text: str) -> str:
        # The whole string, where it is repeated as it was given, else the password in it.
        text = text.replace(self.conninfo, self.dsn.uri).replace(
            self.conninfo.replace("'", "''"), self.dsn.uri
        )
        return self.dsn.redact(text)


@dataclass(frozen=True)
class FileCatalog(Catalog):
    """A file of DuckDB or SQLite; processes take turns with it."""

    kind: str
    path: Path

    is_shared = False

    @property
    def extension(self) -> str | None:  # type: ignore[override]
        return "sqlite_scanner" if self.kind == "sqlite" else None

    @property
    def place(self) -> str:
        return f"{self.kind}:{self.path}"

    @property
    def attached(self) -> str:
        return f"sqlite:{self.path}" if self.kind == "sqlite" else str(self.path)

    def redact(self, text: str) -> str:
        return text


def parse_catalog(text: str, schema: str | None = None) -> Catalog:
    """From the setting.

    Args:
        schema: of the tables of a catalog in Postgres.

    Raises:
        ValueError: it can't be used. Never names a piece of a DSN.
    """
    kind, _, path = text.partition(":")
    if kind in ("duckdb", "sqlite"):
        if not path.strip() or path.startswith("//"):
            raise ValueError(f"{kind}: must be followed by the path of a file")
        return FileCatalog(kind, Path(path).expanduser().absolute())
    from etl_dagster.pg.dsn import Dsn, DsnError

    try:
        dsn = Dsn.parse(text)
    except DsnError as error:
        why = str(error)
    else:
        return PostgresCatalog(dsn, schema)
    # Outside of the handler: libpq's text doesn't follow as a cause.
    raise ValueError(f"{why}; for a file, write sqlite:PATH or duckdb:PATH")
