"""The states of tables and their history, in rows."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

from psycopg.types.json import Jsonb

from etl_dagster.errors import StateRollbackError
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import TableState, is_durable, state_from_json, state_to_json
from etl_dagster.pg.connection import Connection
from etl_dagster.stores.postgres.cache import Cache
from etl_dagster.stores.postgres.rows import PipelineRows, StorePart

#: So many states of each table are kept: a table that fails and is tried again for days makes many.
_KEPT_STATES = 100


class KeptStates(StorePart):
    """Changes of states follow one another, and each is kept as history."""

    def __init__(self, rows: PipelineRows) -> None:
        super().__init__(rows)
        self._states: Cache[Mapping[TableId, TableState]] = Cache()
        #: As last read, with the IDs of their rows.
        self._known_states: Mapping[TableId, tuple[int, TableState]] = {}
        rows.news.forget_after("states", self._states.invalidate)

    def get_table_replication_state(self, table_id: TableId) -> TableState | None:
        return self._current_states().get(table_id)

    def get_table_replication_states(self) -> Mapping[TableId, TableState]:
        return dict(self._current_states())

    def states_of(self, pipeline: str) -> Mapping[TableId, TableState]:
        rows = self._rows.fetch(
            "SELECT table_id, state FROM {schema}.table_states WHERE pipeline = %s AND is_current",
            pipeline,
        )
        return {table_id: state_from_json(payload) for table_id, payload in rows}

    def load_table_replication_states(self) -> int:
        self._states.invalidate()
        return len(self._current_states())

    def update_table_replication_states(
        self, updates: Sequence[tuple[TableId, TableState]]
    ) -> None:
        def work(connection: Connection) -> None:
            self._rows.lock_pipeline(connection)
            for once in _without_repetition(updates):
                set_states(self._rows, connection, once)

        self._rows.change(work, "states")

    def rollback_table_replication_state(self, table_id: TableId) -> TableState:
        def work(connection: Connection) -> TableState:
            self._rows.lock_pipeline(connection)
            history = connection.execute(
                self._rows.sql(
                    "SELECT id, state FROM {schema}.table_states "
                    "WHERE pipeline = %s AND table_id = %s ORDER BY id DESC"
                ),
                (self._rows.pipeline, table_id),
            ).fetchall()
            earlier = ((number, state_from_json(payload)) for number, payload in history[1:])
            found = next(((n, state) for n, state in earlier if is_durable(state)), None)
            if found is None:
                raise StateRollbackError(f"table {table_id} has no earlier state to go back to")
            number, state = found
            connection.execute(
                self._rows.sql(
                    "DELETE FROM {schema}.table_states "
                    "WHERE pipeline = %s AND table_id = %s AND id > %s"
                ),
                (self._rows.pipeline, table_id, number),
            )
            connection.execute(
                self._rows.sql("UPDATE {schema}.table_states SET is_current = true WHERE id = %s"),
                (number,),
            )
            return state

        return self._rows.change(work, "states", repeatable=False)

    def transition_table_state(
        self, table_id: TableId, expected: TableState, new: TableState
    ) -> bool:
        return bool(self.transition_table_states([(table_id, expected, new)]))

    def transition_table_states(
        self, changes: Sequence[tuple[TableId, TableState, TableState]]
    ) -> Collection[TableId]:
        def work(connection: Connection) -> Collection[TableId]:
            self._rows.lock_pipeline(connection)
            found = connection.execute(
                self._rows.sql(
                    """
                    SELECT table_id FROM {schema}.table_states
                    JOIN unnest(%s::bigint[], %s::jsonb[]) AS e (table_id, state)
                        USING (table_id, state)
                    WHERE pipeline = %s AND is_current
                    """
                ),
                (
                    [table_id for table_id, _, _ in changes],
                    [Jsonb(state_to_json(expected)) for _, expected, _ in changes],
                    self._rows.pipeline,
                ),
            ).fetchall()
            as_expected = {table_id for (table_id,) in found}
            set_states(
                self._rows, connection, {t: new for t, _, new in changes if t in as_expected}
            )
            return as_expected

        return self._rows.change(work, "states", repeatable=False)

    def _current_states(self) -> Mapping[TableId, TableState]:
        return self._states.get(self._load_states, keep=self._rows.news.is_heard)

    def _load_states(self) -> Mapping[TableId, TableState]:
        """Read what is new since the last time; of thousands of tables that is little.

        A row of the history never gets another state. That rows were deleted, or an earlier one is
        the current one again, is told by a digest of all current rows.
        """
        states = self._read_states(self._known_states)
        if states is None:
            states = self._read_states({}) or {}
        self._known_states = states
        return {table_id: states[table_id][1] for table_id in sorted(states)}

    def _read_states(
        self, known: Mapping[TableId, tuple[int, TableState]]
    ) -> dict[TableId, tuple[int, TableState]] | None:
        """By table, the ID of the current row and its state; None where `known` doesn't lead there.

        Args:
            known: an earlier answer; only later rows are read.
        """
        newest = max((number for number, _ in known.values()), default=0)
        rows = self._rows.fetch(
            """
            WITH current AS (
                SELECT id, table_id, state FROM {schema}.table_states
                WHERE pipeline = %s AND is_current
            )
            SELECT d.digest, c.id, c.table_id, c.state
            FROM (SELECT md5(coalesce(string_agg(id::text, ',' ORDER BY id), '')) AS digest
                  FROM current) AS d
            LEFT JOIN current AS c ON c.id > %s
            """,
            self._rows.pipeline,
            newest,
        )
        found = dict(known)
        for _, number, table_id, payload in rows:
            if number is not None:
                found[table_id] = number, state_from_json(payload)
        ids = ",".join(map(str, sorted(number for number, _ in found.values())))
        digest = hashlib.md5(ids.encode(), usedforsecurity=False).hexdigest()
        return found if digest == rows[0][0] or not known else None


def set_states(
    rows: PipelineRows, connection: Connection, states: Mapping[TableId, TableState]
) -> None:
    """Add to the history of each table; the pipeline's row is locked by the caller."""
    # The same state again is not a change; it would only make a rollback go nowhere.
    connection.execute(
        rows.sql(
            """
            WITH new AS (
                SELECT * FROM unnest(%(tables)s::bigint[], %(states)s::jsonb[])
                    AS n (table_id, state)
            ), current AS (
                SELECT id, table_id, state FROM {schema}.table_states
                WHERE pipeline = %(pipeline)s AND table_id = ANY (%(tables)s) AND is_current
            ), retired AS (
                UPDATE {schema}.table_states AS old SET is_current = false
                FROM current JOIN new USING (table_id)
                WHERE old.id = current.id AND current.state <> new.state
                RETURNING old.id, old.table_id
            )
            INSERT INTO {schema}.table_states (pipeline, table_id, state, previous_id)
            SELECT %(pipeline)s, new.table_id, new.state, retired.id
            FROM new LEFT JOIN retired USING (table_id)
            WHERE retired.id IS NOT NULL
                OR NOT EXISTS (SELECT FROM current WHERE current.table_id = new.table_id)
            """
        ),
        {
            "pipeline": rows.pipeline,
            "tables": list(states),
            "states": [Jsonb(state_to_json(state)) for state in states.values()],
        },
    )
    # What is deleted takes along what points to it, so the chain is cut before.
    connection.execute(
        rows.sql(
            """
            WITH old AS (
                SELECT old.id
                FROM unnest(%s::bigint[]) AS t (table_id) CROSS JOIN LATERAL (
                    SELECT id FROM {schema}.table_states
                    WHERE pipeline = %s AND table_id = t.table_id
                    ORDER BY id DESC OFFSET %s
                ) AS old
            ), oldest_kept AS (
                UPDATE {schema}.table_states SET previous_id = NULL
                WHERE previous_id IN (SELECT id FROM old)
                    AND id NOT IN (SELECT id FROM old)
            )
            DELETE FROM {schema}.table_states WHERE id IN (SELECT id FROM old)
            """
        ),
        [list(states), rows.pipeline, _KEPT_STATES],
    )


def _without_repetition(
    updates: Sequence[tuple[TableId, TableState]],
) -> list[dict[TableId, TableState]]:
    """The updates in their order, cut where a table comes a second time."""
    parts: list[dict[TableId, TableState]] = [{}]
    for table_id, state in updates:
        if table_id in parts[-1]:
            parts.append({})
        parts[-1][table_id] = state
    return parts
