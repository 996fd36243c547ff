"""What `status` shows of several shards or destinations before it shows each."""

from __future__ import annotations

from typing import Any

from etl_dagster.cli.status_of_all import by_need, lines


def report(**more: Any) -> dict[str, Any]:
    slot = {"name": "s", "retained_bytes": 1024**2, "warning": None, **more.pop("slot", {})}
    running = {"is_running": True, "published": {"lag_seconds": 0.2}, "tables": []}
    return running | {"slot": slot} | more


def test_the_state_that_most_needs_attention_comes_first() -> None:
    found = by_need(
        {
            "shop": report(),
            "late": report(published={"lag_seconds": 90.0}),
            "stopped": report(tables=[{"state": "errored"}, {"state": "ready"}]),
            "full": report(slot={"warning": "it keeps 9 GB"}),
            "off": report(is_running=False, slot={"error": "it does not exist on the source"}),
        }
    )
    assert lines(found) == [
        "  off      not running, slot s: it does not exist on the source",
        "  full     running, 0.2 s behind, keeps 1.0 MiB of WAL, too much of it",
        "  stopped  running, 0.2 s behind, keeps 1.0 MiB of WAL, 1 table stopped",
        "  late     running, 90.0 s behind, keeps 1.0 MiB of WAL",
        "  shop     running, 0.2 s behind, keeps 1.0 MiB of WAL",
    ]
