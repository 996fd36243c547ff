"""The SQL of `StateStorage`; braces hold the tables' names and parts that occur several times."""

from __future__ import annotations

import functools
from typing import LiteralString

from psycopg import sql

from etl_dagster.integrations.meltano.states.tables import StateTables

_STATE = "state_id, partial_state, completed_state, version, updated_at, writer, run_id"
_VERSION = (
    "state_id, version, operation, partial_state, completed_state, written_at, writer, run_id"
)
#: One ID in the history, by its index.
_IS_IT = '"left"(state_id, 200) = "left"(%(state_id)s, 200) AND state_id = %(state_id)s'

# -- reading -------------------------------------------------------------------------------------

GET = "SELECT {columns} FROM {state} WHERE state_id = %(state_id)s"
GET_FOR_UPDATE = GET + " FOR UPDATE"
GET_ALL = (
    'SELECT {columns} FROM {state} WHERE starts_with(state_id, %s) ORDER BY state_id COLLATE "C"'
)
GET_SOME = 'SELECT {columns} FROM {state} WHERE state_id = ANY(%s) ORDER BY state_id COLLATE "C"'
IDS = 'SELECT state_id FROM {state} WHERE starts_with(state_id, %s) ORDER BY state_id COLLATE "C"'
HISTORY = (
    "SELECT {version_columns} FROM {history} WHERE {is_it} ORDER BY version DESC LIMIT %(limit)s"
)
HISTORY_VERSION = "SELECT {version_columns} FROM {history} WHERE {is_it} AND version = %(version)s"
#: Lets a writer whose connection broke find out whether its write was committed.
MARK = "SELECT version, write_id FROM {state} WHERE state_id = %(state_id)s"
WRITTEN = (
    "SELECT array_agg(state_id), array_agg(version) FROM {state} "
    "WHERE state_id = ANY(%(ids)s) AND write_id = %(write_id)s"
)

# -- a transaction's first statements ------------------------------------------------------------

#: They end with the transaction: behind a pooler, settings of a session reach other clients.
SETTINGS = (
    "SELECT set_config('lock_timeout', %(wait_ms)s, true), "
    "set_config('idle_in_transaction_session_timeout', %(idle_ms)s, true), "
    "set_config('synchronous_commit', 'local', true), set_config('array_nulls', 'on', true)"
)
#: Keeps other writers of one state out. Where we hold its lock, a session that wants that lock
#: waits in the server, and continues as soon as we commit.
LOCK_STATE = (
    "SELECT pg_advisory_xact_lock(%(advisory_key)s), "
    "(SELECT 1 FROM {locks} WHERE lock_key = %(lock_key)s AND lock_id = %(lock_id)s FOR UPDATE)"
)
#: Locks the states that can be locked without waiting; their places in the array, from 1.
LOCK_FREE = (
    "SELECT array(SELECT place FROM "
    "unnest(%(advisory_keys)s::bigint[]) WITH ORDINALITY AS keys (key, place) "
    "WHERE pg_try_advisory_xact_lock(key))"
)
#: Readers continue; a session that reads in order to write waits.
LOCK_TABLE = "LOCK TABLE {state} IN EXCLUSIVE MODE"

# -- writing -------------------------------------------------------------------------------------

#: Without a lock (`lock_id` is null) a write is always allowed; with one, only while it is ours.
_ALLOWED = """fence AS (
  SELECT FROM {locks} WHERE lock_key = %(lock_key)s AND lock_id = %(lock_id)s FOR UPDATE
), allowed AS (
  SELECT WHERE %(lock_id)s::uuid IS NULL OR EXISTS (SELECT FROM fence)
)"""

#: Any number of states, given as arrays; each only over its expected version, where it has one (0:
#: none is there). One row with the IDs and the new versions of those that were written, or nulls.
WRITE = """
WITH {allowed}, given AS (
  SELECT * FROM unnest(%(ids)s::text[], %(partials)s::text[], %(completeds)s::text[],
                       %(expected)s::bigint[], %(kept)s::boolean[])
    AS given (state_id, partial_state, completed_state, expected, is_kept)
  WHERE EXISTS (SELECT FROM allowed)
), changed AS (
  UPDATE {state} AS old SET partial_state = given.partial_state,
    completed_state = given.completed_state, version = old.version + 1,
    updated_at = clock_timestamp(), writer = %(writer)s, run_id = %(run_id)s,
    write_id = %(write_id)s
  FROM given WHERE old.state_id = given.state_id
  AND (given.expected IS NULL OR old.version = given.expected)
  AND old.write_id IS DISTINCT FROM %(write_id)s
  RETURNING old.state_id, old.version, old.updated_at
), last AS (
  SELECT history.state_id, max(history.version) AS version FROM {history} AS history
  JOIN given ON "left"(history.state_id, 200) = "left"(given.state_id, 200)
  AND history.state_id = given.state_id WHERE coalesce(given.expected, 0) = 0 GROUP BY 1
), added AS (
  INSERT INTO {state} (state_id, partial_state, completed_state, version, updated_at, writer,
                       run_id, write_id)
  SELECT given.state_id, given.partial_state, given.completed_state, 1 + coalesce(last.version, 0),
         clock_timestamp(), %(writer)s, %(run_id)s, %(write_id)s
  FROM given LEFT JOIN last USING (state_id)
  WHERE coalesce(given.expected, 0) = 0
  AND NOT EXISTS (SELECT FROM {state} AS old WHERE old.state_id = given.state_id)
  RETURNING state_id, version, updated_at
), written AS (
  SELECT * FROM changed UNION ALL SELECT * FROM added
), remembered AS (
  INSERT INTO {history} (state_id, version, operation, partial_state, completed_state, written_at,
                         writer, run_id)
  SELECT state_id, version, %(operation)s, partial_state, completed_state, updated_at, %(writer)s,
         %(run_id)s
  FROM written JOIN given USING (state_id) WHERE is_kept
)
SELECT array_agg(state_id), array_agg(version) FROM written"""

#: One state, or all where the ID is null; whether that was allowed, and how many there were.
DELETE = """
WITH {allowed}, gone AS (
  DELETE FROM {state} WHERE (%(state_id)s::text IS NULL OR state_id = %(state_id)s)
  AND EXISTS (SELECT FROM allowed) RETURNING state_id, version
), remembered AS (
  INSERT INTO {history} (state_id, version, operation, writer, run_id)
  SELECT state_id, version + 1, 'delete', %(writer)s, %(run_id)s FROM gone WHERE %(kept)s
)
SELECT (SELECT count(*) FROM allowed), (SELECT count(*) FROM gone)"""

#: Keeps the newest versions, and of each earlier run the last one until it is old.
PRUNE = """
DELETE FROM {history} AS old WHERE {is_it} AND version < (
  -- Counted in rows: not every version has one.
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

#: The tables are parameters: to name them in the statement would need rights on them.
MISSING_RIGHTS = """
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


@functools.lru_cache(maxsize=512)
def filled(text: LiteralString, tables: StateTables) -> bytes:
    """The statement for these tables; as bytes, which psycopg parses only once."""
    parts: dict[str, sql.Composable] = {
        **tables.identifiers(),
        "columns": sql.SQL(_STATE),
        "version_columns": sql.SQL(_VERSION),
        "is_it": sql.SQL(_IS_IT),
    }
    parts["allowed"] = sql.SQL(_ALLOWED).format(**parts)
    return sql.SQL(text).format(**parts).as_bytes(None)
