"""A line for each shard or destination of a pipeline; those in trouble come first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etl_dagster.words import human_bytes


def by_need(reports: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The reports of `status`: first those in trouble, then those that are furthest behind."""
    return dict(sorted(reports.items(), key=lambda report: _need(report[1]), reverse=True))


def lines(reports: Mapping[str, dict[str, Any]]) -> list[str]:
    """A line for each report, in this order."""
    width = max(map(len, reports))
    return [f"  {name:{width}}  {_line(report)}" for name, report in reports.items()]


def _need(report: dict[str, Any]) -> tuple[Any, ...]:
    slot, published = report["slot"], report["published"] or {}
    has_trouble = "error" in slot or bool(slot.get("warning")) or bool(published.get("error"))
    return (
        not report["is_running"],
        has_trouble,
        _stopped(report),
        published.get("lag_seconds", 0.0),
        slot.get("retained_bytes") or 0,
    )


def _line(report: dict[str, Any]) -> str:
    slot, published = report["slot"], report["published"] or {}
    said = ["running" if report["is_running"] else "not running"]
    if report["is_running"] and published:
        said.append(f"{published.get('lag_seconds', 0.0):.1f} s behind")
    if "error" in slot:
        said.append(f"slot {slot['name']}: {slot['error']}")
    else:
        said.append(f"keeps {human_bytes(slot['retained_bytes'])} of WAL")
        said += ["too much of it"] if slot["warning"] else []
    if count := _stopped(report):
        said.append(f"{count} table{'s' if count > 1 else ''} stopped")
    if published.get("error"):
        said.append(str(published["error"]))
    return ", ".join(said)


def _stopped(report: dict[str, Any]) -> int:
    return sum(table["state"] == "errored" for table in report["tables"])
