"""Finds the extensions of DuckDB that a lake needs; nothing is fetched from the network."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

import duckdb

from etl_dagster.destinations.sql.dialect import literal
from etl_dagster.errors import DestinationError

#: The newest version of DuckDB that there are packages of DuckLake for.
TRIED: Final = "1.5.5"
_LOWEST: Final = (1, 5)


def load(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Load an extension: that of an installed package, or one that was installed into DuckDB.

    Raises:
        DestinationError: there is none for this version of DuckDB, with what to install.
    """
    if _version(duckdb.__version__) < _LOWEST:
        raise DestinationError(
            f"DuckLake needs DuckDB 1.5 or later, and {duckdb.__version__} is installed",
            solution=f"Install it: {pip_install(name, TRIED)}",
        )
    found = file_of(name, duckdb.__version__)
    try:
        connection.execute(f"LOAD {name if found is None else literal(str(found))}")
    except duckdb.Error:
        failure = missing(name, duckdb.__version__)
    else:
        return
    # DuckDB's own advice would be to download it.
    raise failure from None


def file_of(name: str, version: str) -> Path | None:
    """The file of an extension, as the package ``duckdb-extension-NAME`` brings it."""
    return next((file for file in _files(name) if file.parent.name == f"v{version}"), None)


def missing(name: str, version: str) -> DestinationError:
    """An extension is not there for this version of DuckDB."""
    others = sorted(file.parent.name.removeprefix("v") for file in _files(name))
    if others:
        reason = (
            f"the package duckdb-extension-{_package(name)} is for DuckDB {', '.join(others)}, "
            f"and {version} is installed"
        )
    else:
        reason = f"DuckDB's extension {name} is not installed for DuckDB {version}"
    wanted = others[-1] if others else version
    if _version(wanted) >= (2,):
        # There are no packages for it yet.
        solution = f"Install a version that has it: {pip_install(name, TRIED)}"
    else:
        solution = f"Install it: {pip_install(name, wanted)}"
    return DestinationError(reason, solution=solution)


def pip_install(name: str, version: str) -> str:
    """The command that installs DuckDB with this extension and that of DuckLake."""
    names = [
        "duckdb",
        *(f"duckdb-extension-{_package(n)}" for n in dict.fromkeys(["ducklake", name])),
    ]
    return "pip install " + " ".join(f"{package}=={version}" for package in names)


def _package(name: str) -> str:
    return name.replace("_", "-")


def _files(name: str) -> list[Path]:
    spec = importlib.util.find_spec(f"duckdb_extension_{name}")
    folders = (spec and spec.submodule_search_locations) or []
    pattern = f"extensions/*/{name}.duckdb_extension"
    return sorted(file for folder in folders for file in Path(folder).glob(pattern))


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
