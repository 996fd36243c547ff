"""A Singer tap that makes up what an airline buys: the price of fuel, and two exchange rates.

``python -m etl_dagster.demo.meltano.tap`` stands for any tap of Meltano's hub. Each run extracts
the next week of 2013 and writes how far it came as STATE.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

_FIRST, _LAST = date(2013, 1, 1), date(2013, 12, 31)
_DAYS_A_RUN = 7

_DAY = {"type": "string", "format": "date"}
_STREAMS: Mapping[str, tuple[Sequence[str], Mapping[str, Any]]] = {
    "fuel_prices": (
        ("day", "airport"),
        {"day": _DAY, "airport": {"type": "string"}, "dollars_per_gallon": {"type": "number"}},
    ),
    "exchange_rates": (
        ("day", "currency"),
        {"day": _DAY, "currency": {"type": "string"}, "dollars": {"type": "number"}},
    ),
}
_BASES: Mapping[str, Mapping[str, float]] = {
    "fuel_prices": {"EWR": 2.98, "JFK": 3.04, "LGA": 3.09},
    "exchange_rates": {"CAD": 0.97, "EUR": 1.33},
}


def catalog() -> dict[str, Any]:
    """What the tap has, as its answer to ``--discover``."""
    return {
        "streams": [
            {
                "tap_stream_id": name,
                "stream": name,
                "key_properties": list(keys),
                "replication_method": "INCREMENTAL",
                "replication_key": "day",
                "schema": _schema(name),
                "metadata": [
                    {"breadcrumb": [], "metadata": {"inclusion": "available", "selected": True}}
                ],
            }
            for name, (keys, _) in _STREAMS.items()
        ]
    }


def messages(streams: Sequence[str], state: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The Singer messages of one run.

    Args:
        streams: those that are selected.
        state: as the run before left it; empty for the first.
    """
    bookmarks = dict(state.get("bookmarks") or {})
    for name in streams:
        keys, properties = _STREAMS[name]
        yield {
            "type": "SCHEMA",
            "stream": name,
            "schema": _schema(name),
            "key_properties": list(keys),
            "bookmark_properties": ["day"],
        }
        day = _after(bookmarks.get(name))
        for _ in range(min(_DAYS_A_RUN, (_LAST - day).days + 1)):
            for what, base in _BASES[name].items():
                value = round(base + random.Random(f"{name} {what} {day}").gauss(0, 0.02), 3)
                record = dict(zip(properties, (day.isoformat(), what, value), strict=True))
                yield {"type": "RECORD", "stream": name, "record": record}
            bookmarks[name] = {"replication_key": "day", "replication_key_value": day.isoformat()}
            day += timedelta(days=1)
        yield {"type": "STATE", "value": {"bookmarks": dict(bookmarks)}}


def _after(bookmark: Mapping[str, Any] | None) -> date:
    if not bookmark:
        return _FIRST
    return date.fromisoformat(bookmark["replication_key_value"]) + timedelta(days=1)


def _schema(stream: str) -> dict[str, Any]:
    return {"type": "object", "properties": dict(_STREAMS[stream][1])}


def _selected(path: str) -> list[str]:
    chosen = []
    for entry in json.loads(Path(path).read_text("utf-8"))["streams"]:
        settings: dict[str, Any] = dict(entry)
        for item in entry.get("metadata", ()):
            if not item["breadcrumb"]:
                settings |= item["metadata"]
        if settings.get("selected", True):
            chosen.append(entry["tap_stream_id"])
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(prog="tap-fuel")
    for option in ("--config", "--catalog", "--properties", "--state"):
        parser.add_argument(option)
    parser.add_argument("--discover", action="store_true")
    arguments = parser.parse_args()
    if arguments.discover:
        json.dump(catalog(), sys.stdout)
        return
    state = json.loads(Path(arguments.state).read_text("utf-8")) if arguments.state else {}
    chosen = arguments.catalog or arguments.properties
    streams = _selected(chosen) if chosen else list(_STREAMS)
    counts = dict.fromkeys(streams, 0)
    for message in messages(streams, state):
        if message["type"] == "RECORD":
            counts[message["stream"]] += 1
        print(json.dumps(message), flush=message["type"] == "STATE")
    for stream, count in counts.items():
        metric = {"type": "counter", "metric": "record_count", "value": count}
        print(
            f"INFO METRIC: {json.dumps(metric | {'tags': {'stream': stream}})}",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    main()
