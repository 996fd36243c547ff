"""One table says what a failed connection means, for source and store alike."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from etl_dagster.pg.failures import Failure, failure_of

_AT = 'connection failed: connection to server at "10.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Connection refused\n\tIs the server running on that host?", Failure.AWAY),
        ("SSL error: unexpected eof while reading", Failure.AWAY),
        ("server closed the connection unexpectedly", Failure.AWAY),
        ("FATAL:  the database system is starting up", Failure.STARTING),
        ("FATAL:  the database system is not yet accepting connections", Failure.STARTING),
        ("FATAL:  the database system is shutting down", Failure.STARTING),
        ('FATAL:  password authentication failed for user "etl"', Failure.LOGIN),
        ('FATAL:  role "etl" is not permitted to log in', Failure.LOGIN),
        ('FATAL:  role "etl" does not exist', Failure.LOGIN),
        ("fe_sendauth: no password supplied", Failure.LOGIN),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.2", no encryption', Failure.LOGIN),
        ("SSL error: certificate verify failed", Failure.TLS),
        ('server certificate for "db" does not match host name "10.0.0.1"', Failure.TLS),
        ("server does not support SSL, but SSL was required", Failure.TLS),
        ('FATAL:  database "shop" does not exist', Failure.DATABASE_MISSING),
        ('FATAL:  permission denied for database "shop"', Failure.RIGHT),
        ("FATAL:  sorry, too many clients already", Failure.CONNECTIONS),
        ('FATAL:  unrecognized configuration parameter "x"', Failure.OPTIONS),
        ("FATAL:  le rôle n'existe pas", Failure.AWAY),
    ],
)
def test_a_connection_that_failed_is_known_by_its_text(text: str, expected: Failure) -> None:
    assert failure_of(psycopg.OperationalError(_AT + text)) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.AdminShutdown, Failure.AWAY),
        (errors.CannotConnectNow, Failure.STARTING),
        (errors.InvalidPassword, Failure.LOGIN),
        (errors.DiskFull, Failure.DISK_FULL),
        (errors.OutOfMemory, Failure.INTERRUPTED),
        (errors.TooManyConnections, Failure.CONNECTIONS),
        (errors.ReadOnlySqlTransaction, Failure.READ_ONLY),
        (errors.InsufficientPrivilege, Failure.RIGHT),
        (errors.DeadlockDetected, Failure.INTERRUPTED),
        (errors.UndefinedTable, Failure.OTHER),
    ],
)
def test_a_statement_that_failed_is_known_by_its_code(
    error: type[psycopg.Error], expected: Failure
) -> None:
    assert failure_of(error("words in any language")) is expected
