"""States that are kept elsewhere, to be imported from there."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from psycopg import errors, sql

from etl_dagster.integrations.meltano.states.connections import StateConnections
from etl_dagster.integrations.meltano.states.errors import StateStorageError, StateUriError
from etl_dagster.integrations.meltano.states.records import Half, NewState
from etl_dagster.integrations.meltano.states.uri import SCHEMES, StateLocation, locate

#: The first is ours, and that of early versions of meltano-state-backend-postgres; the second that
#: of its later versions and of Meltano's system database.
_TABLES = ("meltano_state", "state")
#: Meltano's extras, by the scheme of the backend that needs them.
_EXTRAS = {"s3": "s3", "gs": "gcs", "azure": "azure"}
#: By module, packages that have another name than their module.
_PACKAGES = {"MySQLdb": "mysqlclient", "psycopg2": "psycopg2-binary"}
_WHICH_TABLE = "Name the table with --table, or correct the schema in the URI."
#: What SQLAlchemy opens, besides ``postgresql+driver``.
_SQLALCHEMY = ("sqlite", "mysql", "mariadb", "mssql", "oracle", "postgresql+", "postgres+")


def read_states(source: str, *, table: str | None = None) -> list[NewState]:
    """All states of a source, read and not changed.

    Args:
        source: ``postgres://...``, the database of another state backend or Meltano's own;
            ``sqlite:///...`` or another SQLAlchemy URI of Meltano's system database; the URI of any
            other state backend that Meltano knows here, such as ``s3://...`` or ``file:///...``,
            with its settings from the project or the environment; ``systemdb`` for the project's
            system database; or the file that `meltano state export` wrote.
        table: the table in a database; by default ``meltano_state`` or ``state``, whichever is
            there.

    Raises:
        StateStorageError: it can't be read.
    """
    scheme, separator, _ = source.partition("://")
    if not separator:
        if source != "systemdb":
            return _from_file(Path(source))
        return _from_meltano(source)
    if scheme in SCHEMES:
        return _from_postgres(locate(source), table)
    if scheme.startswith(_SQLALCHEMY):
        return _from_sqlalchemy(source, table or "state")
    return _from_meltano(source)


def _from_file(path: Path) -> list[NewState]:
    try:
        exported = json.loads(path.read_text("utf-8"))
        return [
            NewState(state_id, halves.get("partial"), halves.get("completed"))
            for state_id, halves in exported.items()
        ]
    except OSError as error:
        raise StateStorageError(
            f"{path} can't be read: {error.strerror}",
            solution="Name a URI, or a file that `meltano state export` wrote.",
        ) from None
    except (ValueError, AttributeError):
        raise StateStorageError(
            f"{path} is not what `meltano state export` writes",
            solution='It is one JSON object: {"STATE_ID": {"completed": {...}, "partial": {...}}}.',
        ) from None


def _from_postgres(location: StateLocation, table: str | None) -> list[NewState]:
    connections = StateConnections(location)
    try:
        if table is None:
            table = _only_one_of(connections, location)
        query = sql.SQL(
            "SELECT state_id, partial_state::text, completed_state::text FROM {} ORDER BY 1"
        ).format(sql.Identifier(location.schema, table))
        rows = connections.run(
            lambda c: c.execute(query).fetchall(),
            untranslated=(errors.UndefinedTable, errors.UndefinedColumn),
        )
        return _states(rows)
    except (errors.UndefinedTable, errors.UndefinedColumn):
        raise StateStorageError(
            f"{location.shown} has no table {table!r} of states", solution=_WHICH_TABLE
        ) from None
    finally:
        connections.close()


def _only_one_of(connections: StateConnections, location: StateLocation) -> str:
    rows = connections.run(
        lambda c: c.execute(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relname = ANY(%s) ORDER BY 1",
            (location.schema, list(_TABLES)),
        ).fetchall()
    )
    found = [name for (name,) in rows]
    if len(found) != 1:
        there = " and ".join(found) if found else f"neither {' nor '.join(_TABLES)}"
        raise StateStorageError(f"{location.shown} has {there}", solution=_WHICH_TABLE)
    return str(found[0])


def _from_sqlalchemy(source: str, table: str) -> list[NewState]:
    try:
        import sqlalchemy
        from sqlalchemy.exc import SQLAlchemyError
    except ModuleNotFoundError as error:
        raise _missing("reading this source", error) from None
    try:
        url = sqlalchemy.engine.make_url(source)
    except SQLAlchemyError:
        raise StateUriError("SQLAlchemy can't read the URI of the source") from None
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        # SQLite would create an empty one.
        raise StateStorageError(
            f"there is no file {url.database}",
            solution="Write sqlite:///relative/path or sqlite:////absolute/path. Meltano's own "
            "database is .meltano/meltano.db.",
        )
    shown = url.render_as_string(hide_password=True)
    try:
        engine = sqlalchemy.create_engine(url)
        try:
            state = sqlalchemy.table(
                table,
                sqlalchemy.column("state_id"),
                # Untyped: as they are stored, to the letter.
                sqlalchemy.column("partial_state"),
                sqlalchemy.column("completed_state"),
            )
            with engine.connect() as connection:
                return _states(connection.execute(sqlalchemy.select(state)).fetchall())
        finally:
            engine.dispose()
    except ModuleNotFoundError as error:
        raise _missing(f"reading {shown}", error) from None
    except SQLAlchemyError as error:
        # The message of the driver, not SQLAlchemy's: that repeats the statement.
        reason = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
        if url.password:
            reason = reason.replace(str(url.password), "***")
        raise StateStorageError(
            f"{shown} can't be read: {reason}", solution="Check the URI and --table."
        ) from None


def _from_meltano(source: str) -> list[NewState]:
    """Through whatever backend Meltano finds for the URI, with its settings."""
    try:
        from meltano.core.error import MeltanoError as MeltanoCoreError
        from meltano.core.project import Project
        from meltano.core.state_store import state_store_manager_from_project_settings
    except ModuleNotFoundError as error:
        raise _missing("reading this source", error) from None
    _calm_its_log()
    scheme = source.partition("://")[0]
    try:
        with _project_folder() as folder, _environment("MELTANO_STATE_BACKEND_URI", source):
            project = Project.find(folder)
            with state_store_manager_from_project_settings(project.settings) as manager:
                read_all = getattr(manager, "get_all", None)
                states = read_all() if read_all else _one_by_one(manager)
                return [
                    NewState(state.state_id, state.partial_state, state.completed_state)
                    for state in states
                ]
    except MeltanoCoreError as error:
        raise StateStorageError(
            f"Meltano can't read the backend {scheme}: {error.reason}",
            solution=error.instruction or "Read Meltano's message.",
        ) from None
    except StateStorageError:
        raise
    except ModuleNotFoundError as error:
        raise _missing(f"reading {scheme}://", error, _EXTRAS.get(scheme)) from None
    except Exception as error:
        # The code of another package: its message may contain the URI.
        raise StateStorageError(
            f"Meltano's backend for {scheme} failed with {type(error).__name__}",
            solution="Set its settings in the environment (MELTANO_STATE_BACKEND_...) and see "
            "whether `meltano state list` works with it.",
        ) from error


def _calm_its_log() -> None:
    """Outside of its own command Meltano logs everything to stdout, where results go."""
    import structlog

    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )


def _one_by_one(manager: Any) -> Iterator[Any]:
    """Meltano 4.2 has no `get_all`."""
    for state_id in manager.get_state_ids():
        state = manager.get(state_id=state_id)
        if state is not None:
            yield state


@contextlib.contextmanager
def _project_folder() -> Iterator[Path]:
    """The Meltano project that the current folder is in.

    Elsewhere it is an empty one: then all settings come from the environment.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "meltano.yml").exists():
            yield folder
            return
    with tempfile.TemporaryDirectory(prefix="etl-dagster-meltano-") as temporary:
        Path(temporary, "meltano.yml").write_text("send_anonymous_usage_stats: false\n")
        yield Path(temporary)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _states(rows: Iterable[Sequence[Any]]) -> list[NewState]:
    return [
        NewState(str(state_id), _half(partial), _half(completed))
        for state_id, partial, completed in rows
    ]


def _half(value: Any) -> Half:
    """A JSON null is an empty half; bytes come from drivers that don't know the column's type."""
    if isinstance(value, bytes):
        value = value.decode()
    if value is None or (isinstance(value, str) and value.strip() in ("", "null")):
        return None
    half: Half = value
    return half


def _missing(
    what: str, error: ModuleNotFoundError, meltano_extra: str | None = None
) -> StateStorageError:
    """A package that isn't installed here, and the command that installs it."""
    module = (error.name or "unknown").partition(".")[0]
    package = _PACKAGES.get(module, module)
    if meltano_extra is not None:
        package = f"'meltano[{meltano_extra}]'"
    return StateStorageError(
        f"{what} needs the Python package {error.name}, which is not installed here",
        solution=f"Install it next to etl-dagster: pip install {package}",
    )
