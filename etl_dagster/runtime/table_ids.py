"""Which table of a pipeline a name stands for."""

from __future__ import annotations

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import SourceUnreachable
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.source.catalog import fetch_published_tables
from etl_dagster.source.control import SourceControl


def find_table_ids(config: PipelineConfig, store: CoordinatingStore) -> dict[str, TableId]:
    """The pipeline's tables, by the text of their `TableName`.

    Names move among tables. So a name stands for the table that has it in the source now, and for
    the one that was copied under it only where no other has it.

    Raises:
        SourceUnreachable: the source can't be asked, and what the store knows isn't enough.
    """
    store.load_table_schemas()
    states = store.get_table_replication_states()
    versions = sorted(store.get_table_schemas(), key=lambda schema: schema.snapshot_id)
    newest = {schema.id: schema.name for schema in versions if schema.id in states}
    control = SourceControl(config.source, application_name="etl_dagster names")
    try:
        published = control.ask(
            "reading the publication",
            fetch_published_tables,
            config.source.publication,
            with_filters=False,
        )
    except SourceUnreachable:
        if len(newest) < len(states) or len(set(newest.values())) < len(newest):
            raise
        published = []
    finally:
        control.close()
    before = {name: table_id for table_id, name in newest.items()}
    return before | {t.schema.name: t.schema.id for t in published if t.schema.id in states}
