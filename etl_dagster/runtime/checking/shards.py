"""Whether the publications of a pipeline's shards have no table in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError, ShardsOverlap
from etl_dagster.runtime.checking.check import Check, Connection
from etl_dagster.runtime.tables.representation import chosen_tables
from etl_dagster.source.catalog import PublishedTable, fetch_published_tables
from etl_dagster.words import names

_NAME = "shards"


def check_shards(
    connection: Connection, config: PipelineConfig, tables: Sequence[PublishedTable]
) -> Iterator[Check]:
    """Look into the publications of the other shards. One that is missing holds up its own alone.

    Args:
        tables: those of this shard.
    """
    sharding = config.sharding
    if sharding is None:
        return
    ours = {table.schema.id: table.schema.name for table in tables}
    targets = {str(t.schema.target): t.schema.name for t in chosen_tables(tables, config)}
    own = sharding.publications[sharding.name]
    for other in sharding.others:
        publication = sharding.publications[other]
        try:
            theirs = fetch_published_tables(connection, publication, with_filters=False)
        except EtlError:
            continue
        both = sorted(ours[t.schema.id] for t in theirs if t.schema.id in ours)
        if both:
            yield Check.error(
                _NAME,
                ShardsOverlap(
                    f"publications {own!r} and {publication!r}, of the shards {sharding.name!r} "
                    f"and {other!r}, both have {names(both)}"
                ),
            )
            return
        for table in chosen_tables(theirs, config):
            target = str(table.schema.target)
            if target in targets:
                yield Check.error(
                    _NAME,
                    ShardsOverlap(
                        f"{targets[target]} of the shard {sharding.name!r} and "
                        f"{table.schema.name} of the shard {other!r} would both be {target} at "
                        "the destination",
                        solution="Give one of them another name under `tables`.",
                    ),
                )
                return
    yield Check.ok(_NAME, f"no table is in another publication of {sharding.pipeline!r}")
