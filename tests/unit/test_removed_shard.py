"""A shard that is removed while the destination is away."""

from __future__ import annotations

from pathlib import Path

from etl_dagster.cli.remove import _Found
from etl_dagster.config import parse_config
from etl_dagster.runtime.removing import Removal
from etl_dagster.stores.memory import MemoryStore


def test_a_destination_that_still_knows_the_shard_is_reported_with_the_way_to_forget_it(
    tmp_path: Path,
) -> None:
    """The state is gone then, so the command can't be run again."""
    whole = parse_config(
        {
            "pipeline": "shop",
            "source": {"publication": "etl_pub", "database": "d"},
            "shards": {"events": {"publication": "events_pub"}},
            "destination": {"type": "duckdb", "path": str(tmp_path / "away" / "shop.duckdb")},
        },
        {},
    )
    shard = whole.members()["events"]
    found = _Found(shard, MemoryStore(), Removal([], []), None, None)

    found.remove(None)

    assert found.still_known is not None
    assert "the shard events is removed, but the destination" in found.still_known.reason
    forget = "DELETE FROM _etl.pipelines WHERE pipeline = 'shop__events';"
    assert forget in found.still_known.solution
