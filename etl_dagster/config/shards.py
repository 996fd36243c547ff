"""For streams that outgrow one slot: a pipeline's tables in several publications, a slot each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import Field

from etl_dagster.config.names import BETWEEN
from etl_dagster.config.section import Section


class ShardConfig(Section):
    """A further stream of a pipeline."""

    publication: str = Field(
        min_length=1,
        description="The publication whose tables this shard streams; no table may be in two of a "
        "pipeline's publications.",
    )


@dataclass(frozen=True, slots=True)
class Sharding:
    """Says which shard of which pipeline a configuration is, and which others there are."""

    #: The name of the whole pipeline; also of the shard of `source.publication`.
    pipeline: str
    #: The name of the shard, as in `--shard`.
    name: str
    #: By the name of each shard, its name in the state store and at the destination.
    pipelines: Mapping[str, str]
    #: By the name of each shard, its publication.
    publications: Mapping[str, str]

    @property
    def others(self) -> tuple[str, ...]:
        """The other shards, by name."""
        return tuple(name for name in self.pipelines if name != self.name)

    @property
    def other_pipelines(self) -> tuple[str, ...]:
        """The names of the other shards in the state store and at the destination."""
        return tuple(self.pipelines[name] for name in self.others)


def shardings(
    pipeline: str, publication: str, shards: Mapping[str, ShardConfig]
) -> dict[str, Sharding]:
    """All shards of a pipeline, by name: that of `source.publication`, and the further ones.

    The first keeps the pipeline's own name, and with it the slot, the tables and the position that
    it had before there were others.
    """
    pipelines = {pipeline: pipeline} | {name: f"{pipeline}{BETWEEN}{name}" for name in shards}
    publications = {pipeline: publication} | {
        name: each.publication for name, each in shards.items()
    }
    return {name: Sharding(pipeline, name, pipelines, publications) for name in pipelines}


def mistakes_of_shards(
    pipeline: str, publication: str, shards: Mapping[str, ShardConfig], *, has_several: bool
) -> Iterator[str]:
    """What is wrong with shards, apart from their names.

    Args:
        has_several: whether there are several destinations.
    """
    if has_several:
        yield "give either destinations or shards, not both"
    if pipeline in shards:
        yield f"shards.{pipeline}: the shard of source.publication already has this name"
    taken = {publication: "source.publication"}
    for name, shard in shards.items():
        place = f"shards.{name}.publication"
        if (other := taken.setdefault(shard.publication, place)) != place:
            yield f"{place}: {other} has {shard.publication}, too; each shard needs its own"
