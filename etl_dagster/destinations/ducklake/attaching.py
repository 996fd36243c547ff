"""Opens a lake: a DuckDB of its own, in memory, to which the lake is attached."""

from __future__ import annotations

import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb

from etl_dagster.destinations.ducklake import extensions
from etl_dagster.destinations.ducklake.catalogs import Catalog, PostgresCatalog
from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
from etl_dagster.destinations.sql.dialect import literal, quote

#: What a lake is called where it is attached.
NAME: Final = "lake"
#: Nothing is fetched from the network.
_CONFIG: Final[dict[str, Any]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    # Queries run in the threads that call; more of them would only cost memory.
    "threads": 1,
    "preserve_insertion_order": False,
}
#: Two processes that commit at the same time: the later one looks whether the earlier one has
#: changed what it has, and tries again.
_SETTINGS: Final = {"ducklake_max_retry_count": 40, "ducklake_retry_wait_ms": 50}


@dataclass(frozen=True)
class LakePlace:
    """Where a lake is; holds secrets, which its repr doesn't show."""

    catalog: Catalog
    data_path: str
    inline_rows: int
    memory_limit: str
    #: Parameters of an S3 secret.
    s3: dict[str, str | bool] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, config: DuckLakeDestinationConfig) -> LakePlace:
        data_path = config.data_path
        if not config.is_in_s3:
            data_path = str(Path(data_path).expanduser().absolute())
        return cls(
            config.parsed_catalog,
            data_path,
            config.inline_rows,
            config.memory_limit,
            _s3_parameters(config) if config.is_in_s3 else {},
        )

    @property
    def shown(self) -> str:
        """For people."""
        return f"DuckLake {self.catalog.place}"

    def redact(self, text: str) -> str:
        """The text without secrets."""
        text = self.catalog.redact(text)
        for name in ("SECRET", "SESSION_TOKEN"):
            if secret := self.s3.get(name):
                text = text.replace(str(secret), "***")
        return text


def _s3_parameters(config: DuckLakeDestinationConfig) -> dict[str, str | bool]:
    secret, token = config.s3_secret, config.s3_session_token
    given: dict[str, str | bool | None] = {
        "KEY_ID": config.s3_key_id,
        "SECRET": None if secret is None else secret.get_secret_value(),
        "SESSION_TOKEN": None if token is None else token.get_secret_value(),
        "REGION": config.s3_region,
        "ENDPOINT": config.s3_endpoint,
        "URL_STYLE": config.s3_url_style,
        "USE_SSL": config.s3_use_ssl,
    }
    return {name: value for name, value in given.items() if value is not None}


def open_lake(
    place: LakePlace, *, read_only: bool = False, create: bool = True
) -> duckdb.DuckDBPyConnection:
    """A DuckDB with the lake attached.

    Args:
        create: whether to make a lake where there is none.

    Raises:
        DestinationError: an extension is missing.
        duckdb.Error: the catalog can't be reached or used; its message may hold secrets.
    """
    database = open_duckdb(place)
    try:
        attach(database, place, read_only=read_only, create=create)
    except BaseException:
        database.close()
        raise
    return database


def open_duckdb(place: LakePlace) -> duckdb.DuckDBPyConnection:
    """A DuckDB that the lake can be attached to.

    Raises:
        DestinationError: an extension is missing.
    """
    # Made by DuckDB when it is needed, and removed by it.
    spill = Path(tempfile.gettempdir()) / f"etl_dagster-lake-{os.getpid()}-{secrets.token_hex(4)}"
    database = duckdb.connect(
        config={
            **_CONFIG,
            "memory_limit": place.memory_limit,
            "temp_directory": str(spill),
            # No secret is used that this user has stored for other work.
            "secret_directory": f"{spill}-secrets",
        }
    )
    try:
        database.execute("SET GLOBAL TimeZone = 'UTC'")
        for name in _extensions(place):
            extensions.load(database, name)
        for name, value in _SETTINGS.items():
            database.execute(f"SET GLOBAL {name} = {value}")
        if place.s3:
            parameters = ", ".join(
                f"{name} {literal(value) if isinstance(value, str) else value}"
                for name, value in place.s3.items()
            )
            database.execute(
                f"CREATE SECRET etl_lake (TYPE s3, {parameters}, SCOPE {literal(place.data_path)})"
            )
    except BaseException:
        database.close()
        raise
    return database


def _extensions(place: LakePlace) -> list[str]:
    of_catalog = place.catalog.extension
    return ["ducklake", *([of_catalog] if of_catalog else []), *(["httpfs"] if place.s3 else [])]


def attach(
    database: duckdb.DuckDBPyConnection,
    place: LakePlace,
    *,
    read_only: bool = False,
    create: bool = True,
) -> None:
    """Attach the lake; as `open_lake`."""
    options = {
        "DATA_PATH": literal(place.data_path),
        "CREATE_IF_NOT_EXISTS": str(create and not read_only),
    }
    if isinstance(place.catalog, PostgresCatalog) and place.catalog.schema is not None:
        options["METADATA_SCHEMA"] = literal(place.catalog.schema)
    spelled = ", ".join(f"{name} {value}" for name, value in options.items())
    if read_only:
        spelled += ", READ_ONLY"
    database.execute(
        f"ATTACH {literal('ducklake:' + place.catalog.attached)} AS {quote(NAME)} ({spelled})"
    )
