"""Which other sessions have tables to themselves; looking waits for none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

Connection = psycopg.Connection[Any]

#: Sessions are named once their transaction is older than this: most are over sooner.
LONG_S = 5.0


@dataclass(frozen=True, slots=True)
class ExclusiveLock:
    """An ACCESS EXCLUSIVE lock, with which no other session may even read the relation."""

    relation_id: int
    #: ``schema.table``.
    relation: str
    #: The other session's backend, and its application_name; that of others is not shown to all.
    pid: int
    application: str | None
    #: Of the session's transaction, seconds; None where it is not shown to us.
    age_s: float | None
    #: False: it waits for the lock itself, and later sessions wait after it.
    is_granted: bool

    @property
    def holder(self) -> str:
        """Such as ``PID 71 (psql), for 32 s``."""
        name = f" ({self.application})" if self.application else ""
        age = "" if self.age_s is None else f", for {self.age_s:.0f} s"
        return f"PID {self.pid}{name}{age}"


def fetch_exclusive_locks(connection: Connection, *, older_than_s: float) -> list[ExclusiveLock]:
    """The locks of other sessions on tables of this database, the oldest first.

    Args:
        older_than_s: of the session's transaction; Prepared ones and those
            whose age is not shown count as old.

    Source: PostgreSQL documentation, "pg_locks", "pg_stat_activity".
    """
    rows = connection.execute(
        """
        select l.relation::bigint, n.nspname || '.' || c.relname, coalesce(l.pid, 0),
               a.application_name, extract(epoch from clock_timestamp() - a.xact_start)::float8,
               l.granted
        from pg_locks l
        join pg_class c on c.oid = l.relation and c.relkind in ('r', 'p')
        join pg_namespace n on n.oid = c.relnamespace
        left join pg_stat_activity a on a.pid = l.pid
        where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock'
        and l.database = (select oid from pg_database where datname = current_database())
        and l.pid is distinct from pg_backend_pid()
        and coalesce(a.xact_start <= clock_timestamp() - make_interval(secs => %s), true)
        order by a.xact_start, l.pid, 2
        """,
        [older_than_s],
    )
    return [ExclusiveLock(*row) for row in rows]


def describe_locks(locks: Sequence[ExclusiveLock], most: int = 3) -> str:
    """Such as ``public.orders by PID 71 (psql), for 32 s``, and a count where there are many."""
    some = ", ".join(f"{lock.relation} by {lock.holder}" for lock in locks[:most])
    return f"{some} and {len(locks) - most} more" if len(locks) > most else some
