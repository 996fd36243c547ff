"""The settings of a DuckDB destination."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from etl_dagster.config import DestinationConfig

_MEMORY = re.compile(r"\d+(\.\d+)?\s?([KMGT]i?)?B", re.IGNORECASE)


def _size(value: Any) -> Any:
    if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
        return f"{value}B"
    if isinstance(value, str) and not _MEMORY.fullmatch(value):
        raise ValueError("must be a size, such as 256MB or 1GiB")
    return value


#: As DuckDB reads it.
MemoryLimit: TypeAlias = Annotated[str, BeforeValidator(_size)]


class DuckDBDestinationConfig(DestinationConfig):
    """One DuckDB file, shared by the replicator, the copies and readers."""

    #: Earlier versions of DuckDB don't read all intervals of Postgres, such as its longest.
    has_own_types: ClassVar[bool] = int(version("duckdb").split(".")[0]) >= 2

    type: Literal["duckdb"]
    path: Path = Field(description="The file; its folder must exist.")
    memory_limit: MemoryLimit = Field("256MB", description="For DuckDB's buffers.")
    lock_timeout_s: float = Field(
        60.0, gt=0, description="How long to wait for another process that has the file open."
    )
    changelog: bool = Field(False, description="Also keep the position of every change.")

    @property
    def place(self) -> str:
        return str(self.path)
