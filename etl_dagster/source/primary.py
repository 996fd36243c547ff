"""The primary of a standby that is the source: what a standby can't do is done there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from etl_dagster.config import SourceConfig
from etl_dagster.errors import SourceNotPrepared
from etl_dagster.lsn import Lsn
from etl_dagster.source.connection import connect, translate
from etl_dagster.source.control import SourceControl
from etl_dagster.source.heartbeat import emit_heartbeat
from etl_dagster.source.identity import fetch_system_id
from etl_dagster.source.standby import is_standby

Connection = psycopg.Connection[Any]

_APPLICATION = "etl_dagster primary"
_STATEMENT_TIMEOUT_S = 30.0


@contextmanager
def primary_connection(control: SourceControl, config: SourceConfig) -> Iterator[Connection]:
    """A connection to `source.primary_dsn`, in autocommit.

    Args:
        control: by which the standby is asked who it is.
        config: with `primary_dsn`.

    Raises:
        SourceNotPrepared: it leads to a standby or to another cluster.
        EtlError: it can't be reached or refuses.
    """
    primary = config.primary
    assert primary is not None
    own = control.ask("identifying the source", fetch_system_id)
    with connect(
        primary, application_name=_APPLICATION, statement_timeout_s=_STATEMENT_TIMEOUT_S
    ) as connection:
        try:
            _require_primary(connection, own)
            yield connection
        except psycopg.Error as error:
            raise translate(error, "asking the primary") from None


def _require_primary(connection: Connection, system_id: str) -> None:
    if is_standby(connection):
        raise SourceNotPrepared(
            "source.primary_dsn leads to a standby", solution="Correct source.primary_dsn."
        )
    found = fetch_system_id(connection)
    if found and system_id and found != system_id:
        raise SourceNotPrepared(
            f"source.primary_dsn leads to another cluster: its system identifier is {found}, that "
            f"of the standby is {system_id}",
            solution="Correct source.primary_dsn.",
        )


@contextmanager
def writable_connection(config: SourceConfig, *, application_name: str) -> Iterator[Connection]:
    """A connection to the source; where that is a standby, to its primary.

    Raises:
        SourceNotPrepared: there is no `primary_dsn`, or it leads elsewhere.
        EtlError: the server can't be reached or refuses.
    """
    with connect(config, application_name=application_name) as connection:
        if not is_standby(connection):
            yield connection
            return
    if config.primary_dsn is None:
        raise SourceNotPrepared(
            "the source is a standby, where nothing can be created or dropped",
            solution="Give source.primary_dsn; or do it on the primary: with --print, the SQL is "
            "printed.",
        )
    with (
        closing(SourceControl(config, application_name=application_name)) as control,
        primary_connection(control, config) as connection,
    ):
        yield connection


def beat_on_primary(control: SourceControl, config: SourceConfig) -> Lsn | None:
    """A heartbeat as `emit_heartbeat`, for a standby; its own stream brings it.

    Raises:
        EtlError: the primary can't be reached, or isn't one.
    """
    with primary_connection(control, config) as connection:
        return emit_heartbeat(connection)


@dataclass(frozen=True, slots=True)
class PrimaryFacts:
    """What a standby that is the source needs of its primary."""

    user: str
    wal_level: str
    #: Whether the user may have it log which transactions run.
    may_log_snapshot: bool


def fetch_primary_facts(connection: Connection) -> PrimaryFacts:
    """Of PostgreSQL 16 or later."""
    row = connection.execute(
        "select current_user::text, current_setting('wal_level'),"
        " has_function_privilege('pg_log_standby_snapshot()', 'execute')"
    ).fetchone()
    assert row is not None
    return PrimaryFacts(*row)
