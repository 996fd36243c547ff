"""The rows of one pipeline, and transactions on them: what all parts of the store stand on."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from etl_dagster.model.schema import TableId
from etl_dagster.pg.advisory import lock_key
from etl_dagster.pg.connection import Connection
from etl_dagster.pg.migrate import Migration
from etl_dagster.stores.postgres.connections import StoreConnections
from etl_dagster.stores.postgres.migrate import migrate
from etl_dagster.stores.postgres.news import News, Topic

T = TypeVar("T")


class PipelineRows:
    """Connects and migrates with the first use; safe for several threads.

    Args:
        connections: to the database.
        sessions: for what needs a session of its own; may be the same.
    """

    def __init__(
        self, pipeline: str, schema: str, connections: StoreConnections, sessions: StoreConnections
    ) -> None:
        self.pipeline = pipeline
        self.schema = schema
        self._connections = connections
        self._sessions = sessions
        # A channel is an identifier of at most 63 bytes, whatever the pipeline is called.
        channel = "etl_{:08x}{:08x}".format(
            *(part & 0xFFFFFFFF for part in lock_key(schema, pipeline, "changes"))
        )
        self.news = News(channel, self.connect_session)
        self._lock = threading.Lock()
        self._is_open = False

    # -- connecting ----------------------------------------------------------------------------

    def open(self) -> None:
        """Connect and migrate; done by the first use otherwise.

        Raises:
            StoreUnreachable: no server answers.
            StoreError: the server refuses us, or the tables can't be created.
        """
        with self._lock:
            if self._is_open:
                return
            self.migrate()
            # A standby, or a reader without rights, can still be asked for the status.
            if not self.look(self.knows_pipeline):
                self._connections.run(
                    lambda c: c.execute(
                        self.sql(
                            "INSERT INTO {schema}.pipelines (name) VALUES (%s) "
                            "ON CONFLICT DO NOTHING"
                        ),
                        (self.pipeline,),
                    )
                )
            self._is_open = True

    def close(self) -> None:
        """Disconnect; a later use connects again."""
        with self._lock:
            self._is_open = False
        self.news.close()
        self._connections.close()

    def migrate(self) -> list[Migration]:
        """Create or upgrade the tables; returns the migrations that were run."""
        return self.look(lambda connection: migrate(connection, self.schema))

    def knows_pipeline(self, connection: Connection) -> bool:
        """Whether the pipeline has a row; also where there is no table yet."""
        table = sql.Identifier(self.schema, "pipelines")
        found = connection.execute("SELECT to_regclass(%s)", [table.as_string()]).fetchone()
        if found == (None,):
            return False
        query = sql.SQL("SELECT 1 FROM {} WHERE name = %s").format(table)
        return connection.execute(query, [self.pipeline]).fetchone() is not None

    def look(self, work: Callable[[Connection], T]) -> T:
        """Do something on a connection of its own, outside of any transaction; opens nothing."""
        try:
            with self._connections.connect() as connection:
                return work(connection)
        except psycopg.Error as error:
            raise self._connections.translate(error) from error

    def connect_session(self) -> Connection:
        """A connection that keeps its session; the caller closes it."""
        return self._sessions.connect_session()

    def begin_session(self, work: Callable[[Connection], T]) -> T:
        """Hand a connection that keeps its session to the work, whose it is from then on.

        Raises:
            StoreUnreachable: no server answers, or the connection broke; nothing is tried again.
            StoreError: the server refuses.
        """
        connection = self.connect_session()
        try:
            return work(connection)
        except psycopg.Error as error:
            connection.close()
            raise self._sessions.translate(error) from None

    # -- transactions --------------------------------------------------------------------------

    def sql(self, text: str) -> sql.Composed:
        """A statement, with the name of the schema in place of ``{schema}``."""
        return _compose(text, self.schema)

    def run(self, work: Callable[[Connection], T], *, repeatable: bool = True) -> T:
        """Do the work in one transaction, see `StoreConnections.run`."""
        self.open()
        return self._connections.run(work, repeatable=repeatable)

    def fetch(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self.run(lambda c: c.execute(self.sql(query), values).fetchall())

    def write(self, topic: Topic | None, statement: str, *values: object) -> int:
        """Run one statement that may be repeated; returns how many rows it touched."""
        topics = () if topic is None else (topic,)
        return self.change(lambda c: c.execute(self.sql(statement), values).rowcount, *topics)

    def write_many(self, topic: Topic, statement: str, rows: Sequence[Sequence[object]]) -> None:
        """Run one statement, which may be repeated, for each of the rows."""

        def work(connection: Connection) -> None:
            if len(rows) == 1:
                connection.execute(self.sql(statement), rows[0])
            elif rows:
                with connection.cursor() as cursor:
                    cursor.executemany(self.sql(statement), rows)

        self.change(work, topic)

    def change(self, work: Callable[[Connection], T], *topics: Topic, repeatable: bool = True) -> T:
        """Do the work and tell everybody, in one transaction."""

        def work_and_tell(connection: Connection) -> T:
            result = work(connection)
            for topic in topics:
                connection.execute("SELECT pg_notify(%s, %s)", (self.news.channel, topic))
            return result

        result = self.run(work_and_tell, repeatable=repeatable)
        for topic in topics:
            # Our own notification comes a moment later; our own threads see the change now.
            self.news.heard(topic)
        return result

    def lock_pipeline(self, connection: Connection) -> None:
        """Have writers of states follow one another; each then sees what the one before wrote."""
        connection.execute(
            self.sql("SELECT FROM {schema}.pipelines WHERE name = %s FOR NO KEY UPDATE"),
            (self.pipeline,),
        )

    def delete(self, connection: Connection, name: str, table_ids: Collection[TableId]) -> None:
        """Delete the rows of these tables from a table of the store."""
        connection.execute(
            sql.SQL("DELETE FROM {} WHERE pipeline = %s AND table_id = ANY(%s)").format(
                sql.Identifier(self.schema, name)
            ),
            (self.pipeline, list(table_ids)),
        )


class StorePart:
    """A part of the store: one of its contracts over the same rows."""

    def __init__(self, rows: PipelineRows) -> None:
        self._rows = rows


@functools.lru_cache(maxsize=256)
def _compose(text: str, schema: str) -> sql.Composed:
    return sql.SQL(text).format(schema=sql.Identifier(schema))
