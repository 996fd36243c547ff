"""One table says what a failure means, for source, state store and Meltano's states alike."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from psycopg import errors

from etl_dagster.errors import EtlError, ReadConflict
from etl_dagster.integrations.meltano.states.connections import StateConnections
from etl_dagster.integrations.meltano.states.uri import locate
from etl_dagster.pg.failures import Failure, failure_of, failure_of_code, message_of
from etl_dagster.source.connection import error_for, translate
from etl_dagster.stores.postgres.connections import StoreConnections
from tests.support.leaks import make_secret

_AT = 'connection failed: connection to server at "10.0.0.1", port 5432 failed: '

TEXTS = [
    (_AT + "Connection refused\n\tIs the server running on that host?", Failure.LOST),
    (_AT + "SSL error: unexpected eof while reading", Failure.LOST),
    (_AT + "server closed the connection unexpectedly", Failure.LOST),
    ("failed to resolve host 'db': [Errno -2] Name or service not known", Failure.LOST),
    ("connection timeout expired", Failure.LOST),
    ("the connection is closed", Failure.LOST),
    ("consuming input failed: SSL error: bad record mac", Failure.LOST),
    (_AT + "FATAL:  le rôle n'existe pas", Failure.LOST),
    (_AT + "FATAL:  the database system is starting up", Failure.STARTING),
    (_AT + "FATAL:  the database system is not yet accepting connections", Failure.STARTING),
    (_AT + "FATAL:  the database system is shutting down", Failure.STARTING),
    (_AT + 'FATAL:  password authentication failed for user "etl"', Failure.REFUSED),
    (_AT + 'FATAL:  role "etl" is not permitted to log in', Failure.REFUSED),
    (_AT + 'FATAL:  role "etl" does not exist', Failure.REFUSED),
    (_AT + "fe_sendauth: no password supplied", Failure.REFUSED),
    (_AT + 'FATAL:  no pg_hba.conf entry for host "10.0.0.2", no encryption', Failure.REFUSED),
    (_AT + "FATAL:  connection requires a valid client certificate", Failure.REFUSED),
    (_AT + "SSL error: certificate verify failed", Failure.TLS),
    (_AT + 'server certificate for "db" does not match host name "10.0.0.1"', Failure.TLS),
    (_AT + "server does not support SSL, but SSL was required", Failure.TLS),
    ('connection is bad: invalid sslmode value: "requir"', Failure.TLS),
    (_AT + 'FATAL:  database "shop" does not exist', Failure.DATABASE_MISSING),
    (_AT + 'FATAL:  permission denied for database "shop"', Failure.FORBIDDEN),
    (_AT + "FATAL:  permission denied to start WAL sender", Failure.REPLICATION_FORBIDDEN),
    (
        _AT + "FATAL:  number of requested standby connections exceeds max_wal_senders",
        Failure.WAL_SENDERS_FULL,
    ),
    (_AT + "FATAL:  sorry, too many clients already", Failure.CONNECTIONS_FULL),
    (_AT + 'FATAL:  unrecognized configuration parameter "x"', Failure.OPTIONS),
    (_AT + "FATAL:  could not write init file: No space left on device", Failure.DISK_FULL),
]
CODES = [
    (errors.AdminShutdown, Failure.LOST),
    (errors.ConnectionFailure, Failure.LOST),
    (errors.IdleInTransactionSessionTimeout, Failure.LOST),
    (errors.CannotConnectNow, Failure.STARTING),
    (errors.InvalidPassword, Failure.REFUSED),
    (errors.InvalidCatalogName, Failure.DATABASE_MISSING),
    (errors.DiskFull, Failure.DISK_FULL),
    (errors.OutOfMemory, Failure.RESOURCES_SHORT),
    (errors.TooManyConnections, Failure.CONNECTIONS_FULL),
    (errors.ConfigurationLimitExceeded, Failure.LIMIT_REACHED),
    (errors.ReadOnlySqlTransaction, Failure.READ_ONLY),
    (errors.InsufficientPrivilege, Failure.FORBIDDEN),
    (errors.DeadlockDetected, Failure.CONFLICT),
    (errors.SerializationFailure, Failure.CONFLICT),
    (errors.LockNotAvailable, Failure.LOCKED),
    (errors.QueryCanceled, Failure.CANCELED),
    (errors.UndefinedTable, Failure.MISSING),
    (errors.InvalidSchemaName, Failure.MISSING),
    (errors.UntranslatableCharacter, Failure.ENCODING),
    (errors.CharacterNotInRepertoire, Failure.ENCODING),
    (errors.NumericValueOutOfRange, Failure.VALUE),
    (psycopg.DataError, Failure.VALUE),
    (errors.SyntaxError, Failure.OTHER),
    (psycopg.ProgrammingError, Failure.OTHER),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_a_connection_that_failed_is_known_by_its_text(text: str, expected: Failure) -> None:
    assert failure_of(psycopg.OperationalError(text)) is expected


@pytest.mark.parametrize(("error", "expected"), CODES)
def test_a_statement_that_failed_is_known_by_its_code(
    error: type[psycopg.Error], expected: Failure
) -> None:
    assert failure_of(error("words in any language")) is expected


def test_a_standby_that_is_asked_to_write_is_read_only() -> None:
    error = errors.FeatureNotSupported("cannot set transaction read-write mode during recovery")
    assert failure_of(error) is Failure.READ_ONLY
    assert failure_of(errors.FeatureNotSupported("no such feature")) is Failure.OTHER


def test_every_kind_has_an_example_here() -> None:
    assert {failure for _, failure in TEXTS + CODES} == set(Failure)


# -- what the three clients make of it ---------------------------------------------------------

CLIENTS: dict[str, Callable[[psycopg.Error], EtlError]] = {
    "source": lambda error: translate(error, "connecting"),
    "state store": StoreConnections("host=h", application_name="test", max_size=1).translate,
    "Meltano's states": StateConnections(locate("postgres://h/db")).translate,
}


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_waits_for_the_same_failures(client: str) -> None:
    """One of them refused a wrong certificate, another retried it forever."""
    examples = [(psycopg.OperationalError(text), failure) for text, failure in TEXTS]
    examples += [(error("words"), failure) for error, failure in CODES]
    for error, failure in examples:
        translated = CLIENTS[client](error)
        assert translated.retryable is failure.is_passing, f"{error!r}"
        assert translated.is_starting is (failure is Failure.STARTING), f"{error!r}"
        assert translated.solution, f"{error!r}"


@pytest.mark.parametrize("client", CLIENTS)
def test_no_message_repeats_a_value(client: str) -> None:
    value = make_secret()
    for quoted in (
        f'"{value}"',
        f'"ten "{value}" owls"',
        f"\u00ab\xa0{value}\xa0\u00bb",
        f"\u201e{value}\u201c",
    ):
        error = errors.InvalidTextRepresentation(f"invalid input syntax for type int: {quoted}")
        assert value not in CLIENTS[client](error).reason, quoted


def test_a_message_is_one_line_without_what_libpq_adds_for_terminals() -> None:
    refused = psycopg.OperationalError(
        _AT + "Connection refused\n\tIs the server running?\nMultiple"
    )
    assert message_of(refused) == "Connection refused"
    login = psycopg.OperationalError(_AT + 'FATAL:  role "etl" does not exist')
    assert message_of(login) == 'role "etl" does not exist'
    assert message_of(psycopg.OperationalError()) == "OperationalError"


def test_a_query_that_a_standby_ends_is_a_conflict_that_passes() -> None:
    """By the message: a serialization failure has the same code."""
    conflict = error_for(
        failure_of_code("40001", ""), "copying", "canceling statement due to conflict with recovery"
    )
    assert isinstance(conflict, ReadConflict)
    assert conflict.retryable
