"""What a failed connection or statement means, whatever the server is for.

One table for every client: by SQLSTATE where there is one, else by libpq's text, because libpq
gives no SQLSTATE for what goes wrong while connecting. A server that speaks another language falls
through to `Failure.LOST`. Each layer derives its own errors from the kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, TypeVar

import psycopg

from etl_dagster.errors import EtlError

E = TypeVar("E", bound=EtlError)


class Failure(Enum):
    """One member for each thing that an operator or a caller would do differently."""

    #: No server answers, or the connection broke.
    LOST = auto()
    #: The server starts, stops or recovers.
    STARTING = auto()
    #: User, password, client certificate or pg_hba.conf.
    REFUSED = auto()
    #: The server's certificate, or TLS as such.
    TLS = auto()
    DATABASE_MISSING = auto()
    #: A setting in the connection's options is unknown, or its value is invalid.
    OPTIONS = auto()
    REPLICATION_FORBIDDEN = auto()
    #: The role lacks a right.
    FORBIDDEN = auto()
    #: All connections are in use.
    CONNECTIONS_FULL = auto()
    WAL_SENDERS_FULL = auto()
    #: No replication slot is free, or another limit of the configuration is reached.
    LIMIT_REACHED = auto()
    #: No space left on the server.
    DISK_FULL = auto()
    #: Memory, or another resource, is short.
    RESOURCES_SHORT = auto()
    #: A standby, or a database that is read only by default. A failover ends that.
    READ_ONLY = auto()
    #: A table or schema does not exist.
    MISSING = auto()
    #: Rolled back because of another transaction; the same may work again.
    CONFLICT = auto()
    #: Another transaction held a lock for longer than `lock_timeout`.
    LOCKED = auto()
    #: Ended by a timeout or by an operator.
    CANCELED = auto()
    #: The database's encoding cannot represent a character.
    ENCODING = auto()
    #: A value that its type can't hold.
    VALUE = auto()
    OTHER = auto()

    @property
    def is_lost(self) -> bool:
        """Whether there is no connection now, so that the same may work over another one."""
        return self in _NO_CONNECTION

    @property
    def is_passing(self) -> bool:
        """Whether waiting alone may help."""
        return self in _PASSING


_NO_CONNECTION: Final = frozenset({Failure.LOST, Failure.STARTING, Failure.CONNECTIONS_FULL})
_PASSING: Final = _NO_CONNECTION | {
    Failure.WAL_SENDERS_FULL,
    Failure.DISK_FULL,
    Failure.RESOURCES_SHORT,
    Failure.READ_ONLY,
    Failure.CONFLICT,
    Failure.LOCKED,
    Failure.CANCELED,
}

#: The first that matches counts.
_TEXTS: Final = tuple(
    (re.compile(pattern), failure)
    for pattern, failure in (
        # On a connection that worked before, TLS fails because the connection is broken.
        (r"\A(consuming input|sending query|flushing|fetching) .*failed: ", Failure.LOST),
        (r"unexpected eof|SSL SYSCALL|closed unexpectedly", Failure.LOST),
        (
            r"database system is (starting up|shutting down|in recovery mode|not yet accepting)"
            r"|not accepting connections",
            Failure.STARTING,
        ),
        (
            r"permission denied to start WAL sender|superuser or replication role",
            Failure.REPLICATION_FORBIDDEN,
        ),
        (r"max_wal_senders", Failure.WAL_SENDERS_FULL),
        (r"too many (clients|connections)|remaining connection slots", Failure.CONNECTIONS_FULL),
        (
            r"unrecognized configuration parameter|invalid value for parameter"
            r"|invalid command-line argument",
            Failure.OPTIONS,
        ),
        (
            r"authentication failed|no password supplied|no pg_hba.conf entry"
            r"|not permitted to log in|authentication method|no such user"
            r'|role ".*" does not exist|requires a valid client certificate',
            Failure.REFUSED,
        ),
        (
            r"server does not support SSL|certificate|SSL error|sslmode|SSL negotiation"
            r"|private key file",
            Failure.TLS,
        ),
        (r'database ".*" does not exist|definition of service', Failure.DATABASE_MISSING),
        (r"permission denied", Failure.FORBIDDEN),
        (r"No space left on device", Failure.DISK_FULL),
    )
)

#: By SQLSTATE, or the first characters of it; the longest that matches counts.
#: Source: PostgreSQL documentation, "PostgreSQL Error Codes".
_CODES: Final = {
    "08": Failure.LOST,
    # Timeouts of an idle or a long transaction end the session as well.
    "25P03": Failure.LOST,
    "25P04": Failure.LOST,
    "57P": Failure.LOST,
    "57P03": Failure.STARTING,
    "28": Failure.REFUSED,
    "3D000": Failure.DATABASE_MISSING,
    "42501": Failure.FORBIDDEN,
    "25006": Failure.READ_ONLY,
    "53": Failure.RESOURCES_SHORT,
    "53100": Failure.DISK_FULL,
    "53300": Failure.CONNECTIONS_FULL,
    "53400": Failure.LIMIT_REACHED,
    "3F000": Failure.MISSING,
    "42P01": Failure.MISSING,
    "40001": Failure.CONFLICT,
    "40P01": Failure.CONFLICT,
    "55P03": Failure.LOCKED,
    "57014": Failure.CANCELED,
    "22": Failure.VALUE,
    "22021": Failure.ENCODING,
    "22P05": Failure.ENCODING,
}


def failure_of(error: psycopg.Error) -> Failure:
    """What went wrong, by the SQLSTATE where there is one."""
    if error.sqlstate is not None:
        return failure_of_code(error.sqlstate, str(error))
    if isinstance(error, psycopg.DataError):
        return Failure.VALUE  # psycopg itself can't send it
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return failure_of_text(str(error))
    return Failure.OTHER


def failure_of_code(sqlstate: str, text: str) -> Failure:
    """The same for any client: by the server's SQLSTATE, and its message where that decides."""
    if sqlstate == "0A000" and "recovery" in text:
        return Failure.READ_ONLY  # BEGIN READ WRITE on a standby
    lengths = range(len(sqlstate), 1, -1)
    return next((_CODES[sqlstate[:n]] for n in lengths if sqlstate[:n] in _CODES), Failure.OTHER)


def failure_of_text(text: str) -> Failure:
    """The same for what has no SQLSTATE: libpq's message of a connection."""
    return next((failure for pattern, failure in _TEXTS if pattern.search(text)), Failure.LOST)


#: Marks by which messages quote, in the languages of Postgres.
_MARKS: Final = '"\u00ab\u00bb\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u300c\u300d'
_QUOTED: Final = re.compile(f"[{_MARKS}].*[{_MARKS}]", re.DOTALL)


def derive(
    error: psycopg.Error, make: Callable[[Failure, str], E], redact: Callable[[str], str] = str
) -> E:
    """A client's own error, which says whether waiting helps as the table does.

    Args:
        make: makes it of the kind and the message.
        redact: hides the secrets in the message, such as `Dsn.redact`.
    """
    failure = failure_of(error)
    return marked(make(failure, redact(message_of(error))), failure)


def marked(error: E, failure: Failure) -> E:
    """The error, with what the kind says about retries."""
    error.retryable = failure.is_passing
    error.is_starting = failure is Failure.STARTING
    return error


def message_of(error: psycopg.Error) -> str:
    """The server's or libpq's message on one line, without row values.

    It may hold a password that libpq took for something else: `Dsn.redact` hides it.
    """
    message = error.diag.message_primary
    if message is None:
        # libpq appends a hint for terminals, psycopg every address that it tried.
        lines = [line.strip() for line in str(error).splitlines()]
        kept = [
            line for line in lines if line and not line.startswith(("Is the server", "Multiple"))
        ]
        message = kept[0].removeprefix("connection failed: ") if kept else type(error).__name__
        message = re.sub(r"\Aconnection to server .*? failed: ", "", message)
        message = re.sub(r"\AFATAL: +", "", message)
    return without_values(message) if is_about_a_value(error.sqlstate) else message


def is_about_a_value(sqlstate: str | None) -> bool:
    """Whether the server's message quotes a value that it could not read or convert."""
    return (sqlstate or "").startswith("22")


def without_values(message: str) -> str:
    """The message without what it quotes, in the server's language.

    From the first quotation mark to the last: a value may contain some itself.

    >>> without_values('invalid input syntax for type integer: "ten "big" owls"')
    'invalid input syntax for type integer: "..."'
    """
    return _QUOTED.sub('"..."', message)
