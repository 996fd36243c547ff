"""The event trigger that reports changes of columns in the stream: install, remove, inspect."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import psycopg
from psycopg import errors

from etl_dagster.errors import SourceError

Connection = psycopg.Connection[Any]

#: Counted up with every change of what the trigger sends.
VERSION: Final = 1
#: The prefix of its messages in the WAL.
_TRIGGERS: Final = ("etl_dagster_alteration", "etl_dagster_drop", "etl_dagster_rewrite")


@dataclass(frozen=True, slots=True)
class TriggerState:
    """What is there of the trigger."""

    #: None when it isn't installed, or not completely.
    version: int | None
    is_enabled: bool
    #: Changes whenever it is installed, removed, enabled or disabled.
    trace: str

    @property
    def reports(self) -> bool:
        """Whether every change of columns is in the stream."""
        return self.version == VERSION and self.is_enabled


def fetch_trigger(connection: Connection) -> TriggerState:
    """The state of the trigger in the connection's database."""
    rows = connection.execute(
        "select evtname::text, evtenabled = 'A', oid::text || ':' || xmin::text,"
        " obj_description(oid, 'pg_event_trigger')"
        " from pg_event_trigger where evtname::text = any (%s) order by evtname",
        [list(_TRIGGERS)],
    ).fetchall()
    version = None
    comment = next((text for name, _, _, text in rows if name == _TRIGGERS[0]), None)
    if len(rows) == len(_TRIGGERS) and comment and comment.startswith("etl_dagster "):
        number = comment.removeprefix("etl_dagster ")
        version = int(number) if number.isdecimal() else None
    return TriggerState(
        version,
        bool(rows) and all(is_always for _, is_always, _, _ in rows),
        " ".join(trace for _, _, trace, _ in rows),
    )


def install_script() -> str:
    """The SQL that installs the trigger, or brings it to this version."""
    return f"BEGIN;\n\n{_read('alterations.sql')}\nCOMMIT;\n"


def remove_script() -> str:
    """The SQL that removes it."""
    return f"BEGIN;\n\n{_read('alterations_remove.sql')}\nCOMMIT;\n"


def install(connection: Connection) -> bool:
    """Install the trigger, or bring it to this version; whether there was anything to do.

    Raises:
        SourceError: the user may not create event triggers, or a newer version is there.
    """
    state = fetch_trigger(connection)
    if state.reports:
        return False
    if state.version is not None and state.version > VERSION:
        raise SourceError(
            f"the source has version {state.version} of the event trigger, "
            f"this version of etl-dagster knows {VERSION}",
            solution="Upgrade etl-dagster here to the version that runs elsewhere.",
        )
    _run(connection, _read("alterations.sql"))
    return True


def remove(connection: Connection) -> bool:
    """Remove the trigger; whether there was one.

    Raises:
        SourceError: the user may not.
    """
    if not fetch_trigger(connection).trace:
        return False
    _run(connection, _read("alterations_remove.sql"))
    return True


def _run(connection: Connection, script: str) -> None:
    try:
        with connection.transaction():
            # Several statements in one string: only the simple protocol takes them.
            psycopg.ClientCursor(connection).execute(script.encode())
    except errors.InsufficientPrivilege as error:
        raise SourceError(
            f"{connection.info.user!r} may not create or drop event triggers",
            solution="Have an administrator run what `etl-dagster migrate --source --print` "
            "prints: a superuser, or rds_superuser, cloudsqlsuperuser or azure_pg_admin.",
        ) from error


def _read(name: str) -> str:
    return resources.files("etl_dagster.source").joinpath(name).read_text("utf-8")
