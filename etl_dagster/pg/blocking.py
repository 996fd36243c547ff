"""Which transactions a session of a Postgres waits for; looking waits for none of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import psycopg

Connection = psycopg.Connection[Any]

# A blocking session may be blocked itself: those at the end of each such chain are named. A
# prepared transaction has no session, and stands as 0 among those that block.
# Source: PostgreSQL documentation, "pg_locks" and "pg_blocking_pids".
_BLOCKERS: Final = """
with recursive blocked (pid, by) as (
  select %(pid)s::int, unnest(pg_catalog.pg_blocking_pids(%(pid)s::int))
  union
  select b.by, unnest(pg_catalog.pg_blocking_pids(b.by)) from blocked b where b.by <> 0
), wanted as (
  select l.* from pg_catalog.pg_locks l
  where not l.granted and l.pid in (select b.pid from blocked b)
), relations as (
  select b.by, min(n.nspname || '.' || c.relname) as name
  from blocked b join wanted w on w.pid = b.pid
  join pg_catalog.pg_class c on c.oid = w.relation
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  group by b.by
)
select distinct b.by, a.application_name, a.state,
       extract(epoch from clock_timestamp() - a.xact_start)::float8, null, r.name
from blocked b
left join pg_catalog.pg_stat_activity a on a.pid = b.by
left join relations r on r.by = b.by
where b.by <> 0 and not exists (select from blocked o where o.pid = b.by)
union all
select distinct null::int, null, null,
       extract(epoch from clock_timestamp() - p.prepared)::float8, p.gid, r.name
from wanted w
join pg_catalog.pg_locks h on h.granted and h.pid is null
  and (h.locktype, h.database, h.relation, h.page, h.tuple, h.transactionid)
  is not distinct from (w.locktype, w.database, w.relation, w.page, w.tuple, w.transactionid)
join pg_catalog.pg_locks own on own.locktype = 'transactionid' and own.granted and own.pid is null
  and own.virtualtransaction = h.virtualtransaction
join pg_catalog.pg_prepared_xacts p on p.transaction = own.transactionid
left join relations r on r.by = 0
order by 4 desc nulls last, 1
"""


@dataclass(frozen=True, slots=True)
class Blocker:
    """A transaction that another one waits for."""

    #: The session's backend; None of a prepared transaction, which has none.
    pid: int | None
    application_name: str | None
    #: pg_stat_activity.state, such as ``idle in transaction``; None where we may not see it.
    state: str | None
    #: Since it began, or was prepared; None where we may not see that.
    age_s: float | None
    #: The name that PREPARE TRANSACTION gave it.
    gid: str | None
    #: ``schema.table`` of what is locked; None where that is not a relation.
    relation: str | None

    def __str__(self) -> str:
        age = "" if self.age_s is None else f", open for {self.age_s:.0f} s"
        if self.gid is not None:
            return f"the prepared transaction {self.gid!r}{age}"
        who = f" ({self.application_name})" if self.application_name else ""
        state = f", {self.state}" if self.state else ""
        return f"PID {self.pid}{who}{state}{age}"

    @property
    def solution(self) -> str:
        """What ends it, as SQL."""
        if self.gid is not None:
            name = self.gid.replace("'", "''")
            return f"COMMIT PREPARED '{name}'; or ROLLBACK PREPARED '{name}';"
        return f"select pg_terminate_backend({self.pid});"


def fetch_blockers(connection: Connection, pid: int) -> list[Blocker]:
    """The transactions that a backend waits for now, the oldest first.

    Args:
        connection: another one than the backend's.
    """
    return [Blocker(*row) for row in connection.execute(_BLOCKERS, {"pid": pid})]
