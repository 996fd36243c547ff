"""One table's rows as a copy reads them, and as the stream brings them; without a pipeline."""

from __future__ import annotations

from etl_dagster.config import PipelineConfig
from etl_dagster.lsn import Lsn
from etl_dagster.model.coordination import CopyChunk
from etl_dagster.model.events import CopiedRows, TableChanges
from etl_dagster.model.schema import TableSchema
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.source.copy import ChunkReader
from etl_dagster.source.partitions import ReadFrom
from etl_dagster.source.stream import ReplicationStream


def rows_of_copy(config: PipelineConfig, schema: TableSchema) -> list[CopiedRows]:
    """The whole table in one chunk."""
    reader = ChunkReader(config.source, schema, application_name="test")
    try:
        chunk = CopyChunk(0, schema.id)
        return list(reader.read(chunk, ReadFrom(schema.schema_name, schema.table_name)))
    finally:
        reader.close()


def changes_of_stream(
    config: PipelineConfig, slot: str, schema: TableSchema, count: int
) -> list[TableChanges]:
    """The first `count` changes of the table since the slot was made."""
    session = ReplicationSession()
    stream = ReplicationStream(config.source, slot, session, Lsn(0), application_name="test")
    changes: list[TableChanges] = []
    stream.open()
    try:
        while sum(map(len, changes)) < count:
            stream.read(1.0)
            events = session.take_batch().decode(lambda *_: schema, {schema.id: Lsn(0)}, 1)
            steps = events.tables.get(schema.id, ())
            changes += [step for step in steps if isinstance(step, TableChanges)]
    finally:
        stream.close()
    return changes
