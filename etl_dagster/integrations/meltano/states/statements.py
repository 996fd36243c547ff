"""The SQL of `StateStorage`; braces hold the tables' names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql

from etl_dagster.integrations.meltano.states.migrate import StateTables

#: Parts that occur several times, in braces as well.
_STATE = "state_id, partial_state, completed_state, version, updated_at, writer, run_id"
_VERSION = (
    "state_id, version, operation, partial_state, completed_state, written_at, writer, run_id"
)
#: Without a lock (`lock_id` is null) a write is always allowed; with one, only while it is ours.
_ALLOWED = """fence AS (
  SELECT FROM {locks} WHERE lock_key = %(lock_key)s AND lock_id = %(lock_id)s FOR UPDATE
), allowed AS (
  SELECT WHERE %(lock_id)s::uuid IS NULL OR EXISTS (SELECT FROM fence)
)"""

_WRITE = """
WITH {allowed}, changed AS (
  UPDATE {state} SET partial_state = %(partial)s, completed_state = %(completed)s,
    version = version + 1, updated_at = clock_timestamp(), writer = %(writer)s,
    run_id = %(run_id)s, write_id = %(write_id)s
  WHERE state_id = %(state_id)s AND EXISTS (SELECT FROM allowed)
  AND (%(expected)s::bigint IS NULL OR version = %(expected)s::bigint)
  AND write_id IS DISTINCT FROM %(write_id)s
  RETURNING version, updated_at
), added AS (
  INSERT INTO {state} (state_id, partial_state, completed_state, version, updated_at, writer,
                       run_id, write_id)
  SELECT %(state_id)s, %(partial)s, %(completed)s,
         1 + coalesce((SELECT max(version) FROM {history}
                       WHERE {is_it}), 0),
         clock_timestamp(), %(writer)s, %(run_id)s, %(write_id)s
  WHERE NOT EXISTS (SELECT FROM {state} WHERE state_id = %(state_id)s)
  AND EXISTS (SELECT FROM allowed) AND coalesce(%(expected)s::bigint, 0) = 0
  RETURNING version, updated_at
), written AS (
  SELECT * FROM changed UNION ALL SELECT * FROM added
), kept AS (
  INSERT INTO {history} (state_id, version, operation, partial_state, completed_state, written_at,
                         writer, run_id)
  SELECT %(state_id)s, version, %(operation)s, %(partial)s, %(completed)s, updated_at, %(writer)s,
         %(run_id)s
  FROM written WHERE %(keep)s
)
SELECT version, updated_at FROM written"""

_DELETE = """
WITH {allowed}, gone AS (
  DELETE FROM {state} WHERE state_id = %(state_id)s AND EXISTS (SELECT FROM allowed)
  RETURNING version
), kept AS (
  INSERT INTO {history} (state_id, version, operation, writer, run_id)
  SELECT %(state_id)s, version + 1, 'delete', %(writer)s, %(run_id)s FROM gone WHERE %(keep)s
)
SELECT (SELECT count(*) FROM allowed), (SELECT count(*) FROM gone)"""

#: One row for each new state, given as arrays; the table is locked against other writers.
_WRITE_ALL = """
WITH given AS (
  SELECT * FROM unnest(%(ids)s::text[], %(partials)s::text[], %(completeds)s::text[])
    AS given (state_id, partial_state, completed_state)
), changed AS (
  UPDATE {state} AS old SET partial_state = given.partial_state,
    completed_state = given.completed_state, version = old.version + 1,
    updated_at = clock_timestamp(), writer = %(writer)s, run_id = %(run_id)s, write_id = NULL
  FROM given WHERE old.state_id = given.state_id
  RETURNING old.state_id, old.version, old.partial_state, old.completed_state, old.updated_at
), last AS (
  SELECT history.state_id, max(history.version) AS version FROM {history} AS history
  JOIN given ON "left"(history.state_id, 200) = "left"(given.state_id, 200)
  AND history.state_id = given.state_id GROUP BY 1
), added AS (
  INSERT INTO {state} (state_id, partial_state, completed_state, version, updated_at, writer,
                       run_id)
  SELECT given.state_id, given.partial_state, given.completed_state, 1 + coalesce(last.version, 0),
         clock_timestamp(), %(writer)s, %(run_id)s
  FROM given LEFT JOIN last USING (state_id)
  WHERE NOT EXISTS (SELECT FROM {state} AS old WHERE old.state_id = given.state_id)
  RETURNING state_id, version, partial_state, completed_state, updated_at
), written AS (
  SELECT * FROM changed UNION ALL SELECT * FROM added
), kept AS (
  INSERT INTO {history} (state_id, version, partial_state, completed_state, written_at, operation,
                         writer, run_id)
  SELECT state_id, version, partial_state, completed_state, updated_at, %(operation)s, %(writer)s,
         %(run_id)s
  FROM written WHERE %(keep)s
)
SELECT count(*) FROM written"""

#: The same, each only over its expected version (0: none is there); the table is not locked.
_WRITE_EACH = """
WITH given AS (
  SELECT * FROM unnest(%(ids)s::text[], %(partials)s::text[], %(completeds)s::text[],
                       %(expected)s::bigint[])
    AS given (state_id, partial_state, completed_state, expected)
), changed AS (
  UPDATE {state} AS old SET partial_state = given.partial_state,
    completed_state = given.completed_state, version = old.version + 1,
    updated_at = clock_timestamp(), writer = %(writer)s, run_id = %(run_id)s,
    write_id = %(write_id)s
  FROM given WHERE old.state_id = given.state_id AND old.version = given.expected
  AND old.write_id IS DISTINCT FROM %(write_id)s
  RETURNING old.state_id, old.version, old.partial_state, old.completed_state, old.updated_at
), last AS (
  SELECT history.state_id, max(history.version) AS version FROM {history} AS history
  JOIN given ON "left"(history.state_id, 200) = "left"(given.state_id, 200)
  AND history.state_id = given.state_id WHERE given.expected = 0 GROUP BY 1
), added AS (
  INSERT INTO {state} (state_id, partial_state, completed_state, version, updated_at, writer,
                       run_id, write_id)
  SELECT given.state_id, given.partial_state, given.completed_state, 1 + coalesce(last.version, 0),
         clock_timestamp(), %(writer)s, %(run_id)s, %(write_id)s
  FROM given LEFT JOIN last USING (state_id)
  WHERE given.expected = 0
  AND NOT EXISTS (SELECT FROM {state} AS old WHERE old.state_id = given.state_id)
  RETURNING state_id, version, partial_state, completed_state, updated_at
), written AS (
  SELECT * FROM changed UNION ALL SELECT * FROM added
)
INSERT INTO {history} (state_id, version, partial_state, completed_state, written_at, operation,
                       writer, run_id)
SELECT state_id, version, partial_state, completed_state, updated_at, %(operation)s, %(writer)s,
       %(run_id)s
FROM written WHERE %(keep)s"""

_CLEAR_ALL = """
WITH gone AS (
  DELETE FROM {state} RETURNING state_id, version
), kept AS (
  INSERT INTO {history} (state_id, version, operation, writer, run_id)
  SELECT state_id, version + 1, 'delete', %(writer)s, %(run_id)s FROM gone WHERE %(keep)s
)
SELECT count(*) FROM gone"""

#: Keeps the newest versions, and of each earlier run the last one until it is old.
_PRUNE = """
DELETE FROM {history} AS old
WHERE {is_it} AND version < (
  -- By rows: not every version has one.
  SELECT version FROM {history}
  WHERE {is_it} ORDER BY version DESC OFFSET %(versions)s - 1 LIMIT 1
)
AND (
  written_at < clock_timestamp() - %(age)s
  OR EXISTS (
    SELECT FROM {history} AS later
    WHERE "left"(later.state_id, 200) = "left"(%(state_id)s, 200)
    AND later.state_id = %(state_id)s AND later.version > old.version
    AND (later.run_id, later.writer) IS NOT DISTINCT FROM (old.run_id, old.writer)
  )
)"""


#: Has parameters for the tables, so that nothing is looked up in them.
_MISSING_RIGHTS = """
SELECT format('no %%s on %%s', needed."right", needed.name)
FROM (VALUES (%(state)s, 'INSERT'), (%(state)s, 'UPDATE'), (%(locks)s, 'INSERT'),
             (%(locks)s, 'UPDATE'), (%(locks)s, 'DELETE'), (%(history)s, 'INSERT'))
  AS needed (name, "right")
WHERE NOT has_table_privilege(needed.name, needed."right")
UNION ALL
SELECT 'the server is a standby' WHERE pg_is_in_recovery()
UNION ALL
SELECT 'default_transaction_read_only is on' WHERE current_setting('transaction_read_only')::bool
AND NOT pg_is_in_recovery()"""

_IS_IT = '"left"(state_id, 200) = "left"(%(state_id)s, 200) AND state_id = %(state_id)s'

_TEXTS: dict[str, LiteralString] = {
    "get": "SELECT {columns} FROM {state} WHERE state_id = %(state_id)s",
    "get_for_update": "SELECT {columns} FROM {state} WHERE state_id = %(state_id)s FOR UPDATE",
    # Nothing of it outlives the transaction; behind a pooler, only that can be pinned. With a lock
    # of ours, a session that wants it now waits in the server, and continues the moment we commit.
    "begin": "SELECT set_config('lock_timeout', %(wait_ms)s, true), "
    "set_config('idle_in_transaction_session_timeout', %(idle_ms)s, true), "
    "set_config('synchronous_commit', 'local', true), "
    "pg_advisory_xact_lock(%(advisory_key)s), "
    "(SELECT 1 FROM {locks} WHERE lock_key = %(lock_key)s AND lock_id = %(lock_id)s FOR UPDATE)",
    "get_all": "SELECT {columns} FROM {state} WHERE starts_with(state_id, %s) "
    'ORDER BY state_id COLLATE "C"',
    "get_some": "SELECT {columns} FROM {state} WHERE state_id = ANY(%s) "
    'ORDER BY state_id COLLATE "C"',
    "ids": "SELECT state_id FROM {state} WHERE starts_with(state_id, %s) "
    'ORDER BY state_id COLLATE "C"',
    "mark": "SELECT version, write_id FROM {state} WHERE state_id = %(state_id)s",
    "write": _WRITE,
    "delete": _DELETE,
    # Readers continue; a session that reads in order to write waits.
    "wait": "SELECT set_config('lock_timeout', %(wait_ms)s, true), "
    "set_config('synchronous_commit', 'local', true), set_config('array_nulls', 'on', true)",
    "lock_each": "SELECT set_config('synchronous_commit', 'local', true), "
    "set_config('array_nulls', 'on', true), array(SELECT place FROM "
    "unnest(%(advisory_keys)s::bigint[]) WITH ORDINALITY AS keys (key, place) "
    "WHERE pg_try_advisory_xact_lock(key))",
    "lock_table": "LOCK TABLE {state} IN EXCLUSIVE MODE",
    "write_all": _WRITE_ALL,
    "write_each": _WRITE_EACH,
    "written": "SELECT array_agg(state_id), array_agg(version) FROM {state} "
    "WHERE state_id = ANY(%(ids)s) AND write_id = %(write_id)s",
    "clear_all": _CLEAR_ALL,
    "history": "SELECT {version_columns} FROM {history} WHERE {is_it} "
    "ORDER BY version DESC LIMIT %(limit)s",
    "version": "SELECT {version_columns} FROM {history} WHERE {is_it} AND version = %(version)s",
    "prune": _PRUNE,
    "missing_rights": _MISSING_RIGHTS,
}


@dataclass(frozen=True, slots=True)
class Statements:
    """Each for the tables of one storage; as bytes, which psycopg parses only once."""

    get: bytes
    get_for_update: bytes
    begin: bytes
    get_all: bytes
    get_some: bytes
    ids: bytes
    mark: bytes
    write: bytes
    delete: bytes
    wait: bytes
    lock_each: bytes
    lock_table: bytes
    write_all: bytes
    write_each: bytes
    written: bytes
    clear_all: bytes
    history: bytes
    version: bytes
    prune: bytes
    missing_rights: bytes

    @classmethod
    def of(cls, tables: StateTables) -> Statements:
        parts: dict[str, sql.Composable] = {
            **tables.identifiers(),
            "columns": sql.SQL(_STATE),
            "version_columns": sql.SQL(_VERSION),
            "is_it": sql.SQL(_IS_IT),
        }
        parts["allowed"] = sql.SQL(_ALLOWED).format(**parts)
        return cls(
            **{name: sql.SQL(text).format(**parts).as_bytes(None) for name, text in _TEXTS.items()}
        )
