"""What a failed connection or statement means, whoever's server it is.

libpq gives no SQLSTATE for what goes wrong while connecting, only a text; this is the one table of
such texts. A server that speaks another language falls through to `Failure.AWAY`.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

import psycopg


class Failure(Enum):
    """One member for each thing that somebody would do differently."""

    #: No server answers, or the connection broke. Waiting helps.
    AWAY = auto()
    #: The server starts, stops or recovers. Waiting helps, also before anything was reached.
    STARTING = auto()
    #: User, password or pg_hba.conf.
    LOGIN = auto()
    #: Certificates, or TLS as such.
    TLS = auto()
    DATABASE_MISSING = auto()
    #: A setting in the connection's options isn't known, or not with this value.
    OPTIONS = auto()
    REPLICATION_RIGHT = auto()
    WAL_SENDERS = auto()
    #: All connections are in use.
    CONNECTIONS = auto()
    RIGHT = auto()
    #: A standby, or a database that is read only by default. A failover ends that.
    READ_ONLY = auto()
    #: No space left on the server.
    DISK_FULL = auto()
    #: Ended by another transaction or by a timeout; the same may work again.
    INTERRUPTED = auto()
    OTHER = auto()


#: The first that matches counts.
_TEXTS: Final = tuple(
    (re.compile(pattern), failure)
    for pattern, failure in (
        (r"unexpected eof|SSL SYSCALL|closed unexpectedly", Failure.AWAY),
        (
            r"database system is (starting up|shutting down|in recovery mode|not yet accepting)"
            r"|not accepting connections",
            Failure.STARTING,
        ),
        (
            r"permission denied to start WAL sender|superuser or replication role",
            Failure.REPLICATION_RIGHT,
        ),
        (r"max_wal_senders", Failure.WAL_SENDERS),
        (r"too many (clients|connections)|remaining connection slots", Failure.CONNECTIONS),
        (
            r"unrecognized configuration parameter|invalid value for parameter"
            r"|invalid command-line argument",
            Failure.OPTIONS,
        ),
        (
            r"authentication failed|no password supplied|no pg_hba.conf entry"
            r"|not permitted to log in|authentication method|no such user"
            r'|role ".*" does not exist|requires a valid client certificate',
            Failure.LOGIN,
        ),
        (
            r"server does not support SSL|certificate|SSL error|sslmode|SSL negotiation"
            r"|private key file",
            Failure.TLS,
        ),
        (r'database ".*" does not exist|definition of service', Failure.DATABASE_MISSING),
        (r"permission denied", Failure.RIGHT),
        (r"No space left on device", Failure.DISK_FULL),
    )
)

#: By SQLSTATE, or the first characters of it; the longest that matches counts.
_CODES: Final = {
    "08": Failure.AWAY,
    "57P01": Failure.AWAY,
    "57P02": Failure.AWAY,
    "57P03": Failure.STARTING,
    "57P": Failure.AWAY,
    "28": Failure.LOGIN,
    "3D000": Failure.DATABASE_MISSING,
    "42501": Failure.RIGHT,
    "25006": Failure.READ_ONLY,
    "53100": Failure.DISK_FULL,
    "53300": Failure.CONNECTIONS,
    "53": Failure.INTERRUPTED,
    "40001": Failure.INTERRUPTED,
    "40P01": Failure.INTERRUPTED,
    "55P03": Failure.INTERRUPTED,
    "57014": Failure.INTERRUPTED,
}


def failure_of(error: psycopg.Error) -> Failure:
    """What went wrong, by the SQLSTATE where there is one."""
    code = error.sqlstate
    if code is None:
        if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return Failure.OTHER
        text = str(error)
        return next((failure for pattern, failure in _TEXTS if pattern.search(text)), Failure.AWAY)
    if code == "0A000" and "recovery" in str(error):
        return Failure.READ_ONLY  # BEGIN READ WRITE on a standby
    lengths = range(len(code), 1, -1)
    return next((_CODES[code[:n]] for n in lengths if code[:n] in _CODES), Failure.OTHER)
