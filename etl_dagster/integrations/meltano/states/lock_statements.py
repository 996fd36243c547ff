"""The SQL of locks and run leases; only the server's clock is compared."""

from __future__ import annotations

ACQUIRE = """
WITH settings AS MATERIALIZED (
  -- A lock row that a crash of the server forgets does no harm: its owner is gone as well.
  SELECT set_config('synchronous_commit', 'off', true),
         set_config('lock_timeout', %(wait_ms)s, true)
), previous AS MATERIALIZED (
  SELECT owner, host, pid, renewed_at, lock_id FROM {locks} WHERE lock_key = %(key)s
), moment AS MATERIALIZED (
  SELECT clock_timestamp() AS now
)
INSERT INTO {locks} AS held (lock_key, kind, state_id, lock_id, owner, host, pid, run_id,
                             acquired_at, renewed_at, expires_at)
SELECT %(key)s, %(kind)s, %(state_id)s, %(lock_id)s, %(owner)s, %(host)s, %(pid)s, %(run_id)s,
       now, now, now + %(lease)s
FROM settings, moment
ON CONFLICT (lock_key) DO UPDATE SET
  lock_id = excluded.lock_id, fencing_token = excluded.fencing_token, owner = excluded.owner,
  host = excluded.host, pid = excluded.pid, run_id = excluded.run_id,
  acquired_at = clock_timestamp(), renewed_at = clock_timestamp(),
  expires_at = clock_timestamp() + %(lease)s, awaited = false
WHERE held.expires_at NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '2 hours'
OR held.lock_id = %(lock_id)s
-- xmax tells an updated row from an inserted one.
RETURNING fencing_token, CASE WHEN held.xmax <> 0 THEN
  (SELECT format('%%s (host %%s, pid %%s), last renewed %%s', owner, host, pid, renewed_at)
   FROM previous WHERE lock_id <> %(lock_id)s) END
"""

AWAIT = """
UPDATE {locks} SET awaited = true
FROM (SELECT set_config('lock_timeout', %(wait_ms)s, true)) AS settings
WHERE lock_key = %(key)s
RETURNING owner, host, pid, run_id, acquired_at,
  extract(epoch FROM expires_at - clock_timestamp())::float8
"""

HOLDER = """
SELECT owner, host, pid, run_id, acquired_at,
  extract(epoch FROM expires_at - clock_timestamp())::float8
FROM {locks} WHERE lock_key = %(key)s
"""

RENEW = """
UPDATE {locks} SET renewed_at = clock_timestamp(), expires_at = clock_timestamp() + %(lease)s
FROM (SELECT set_config('lock_timeout', %(wait_ms)s, true)) AS settings
WHERE lock_key = %(key)s AND lock_id = %(lock_id)s
RETURNING 1
"""

RELEASE = """
WITH gone AS (
  DELETE FROM {locks} WHERE lock_key = %(key)s AND lock_id = %(lock_id)s RETURNING awaited
)
SELECT CASE WHEN awaited THEN pg_notify(%(channel)s, %(hex)s) END FROM gone
"""

LIST = """
SELECT state_id, kind, owner, host, pid, run_id, fencing_token, acquired_at, renewed_at, expires_at,
       expires_at NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '2 hours'
FROM {locks} ORDER BY acquired_at
"""
