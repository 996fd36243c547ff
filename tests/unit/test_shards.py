"""Shards in the configuration, and what is refused before anything is asked."""

from __future__ import annotations

from typing import Any

import pytest

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import ConfigError
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.stores.memory import MemoryStore

RAW: dict[str, Any] = {
    "pipeline": "shop",
    "source": {"database": "shop", "publication": "shop_pub"},
    "destination": {"type": "duckdb", "path": "shop.duckdb"},
    "shards": {"events": {"publication": "events_pub"}},
}


def sharded(**sections: Any) -> PipelineConfig:
    return parse_config(RAW | sections, {})


def test_the_first_shard_keeps_the_name_of_the_pipeline_and_each_has_its_publication() -> None:
    shards = sharded().members()
    assert {
        name: (each.pipeline, each.source.publication, each.state_id("public.t"))
        for name, each in shards.items()
    } == {
        "shop": ("shop", "shop_pub", "dev:shop-to-duckdb:public.t"),
        "events": ("shop__events", "events_pub", "dev:shop__events-to-duckdb:public.t"),
    }
    sharding = shards["events"].sharding
    assert sharding is not None
    assert sharding.other_pipelines == ("shop",)


@pytest.mark.parametrize(
    ("sections", "mistake"),
    [
        (
            {"shards": {"events": {"publication": "shop_pub"}}},
            "shards.events.publication: source.publication has shop_pub, too",
        ),
        (
            {"shards": {"a": {"publication": "p"}, "b": {"publication": "p"}}},
            "shards.b.publication: shards.a.publication has p, too",
        ),
        (
            {"shards": {"shop": {"publication": "p"}}},
            "shards.shop: the shard of source.publication already has this name",
        ),
        ({"shards": {"a__b": {"publication": "p"}}}, "shards.a__b: a name must begin"),
        (
            {"destination": {}, "destinations": {"a": RAW["destination"]}},
            "give either destinations or shards, not both",
        ),
    ],
)
def test_mistakes_are_named_with_their_place(sections: dict[str, Any], mistake: str) -> None:
    raw = {name: each for name, each in (RAW | sections).items() if each}
    with pytest.raises(ConfigError, match=mistake.replace(".", r"\.")):
        parse_config(raw, {})


def test_a_command_that_needs_one_shard_refuses_all_of_them() -> None:
    config = sharded()
    refusal = r"shards: there are several \(shop, events\); this needs one of them"
    with pytest.raises(ConfigError, match=refusal):
        build_destination(config)
    with pytest.raises(ConfigError, match=refusal):
        Pipeline(config, MemoryStore(), MemoryDestination()).start()


def test_places_that_only_one_shard_can_use_are_refused() -> None:
    with pytest.raises(ConfigError, match="of type memory can't be written by several shards"):
        build_destination(sharded(destination={"type": "memory"}).members()["shop"])
    with pytest.raises(ConfigError, match="the shards of a pipeline can't see each other"):
        build_store(sharded(state_store={"type": "memory"}).members()["shop"])
