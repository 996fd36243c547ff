"""`etl-dagster status --html`: the status as one page with plots, which loads no other file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from etl_dagster.runtime.showing.history import Moment
from etl_dagster.words import human_bytes, row_count

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 160, 70, 22
#: Moments further apart are not joined by a line.
_GAP_S = 90.0
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;
color:#1c2430;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #e3e7ee}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.plots{display:flex;flex-wrap:wrap;gap:1.5rem}
figure{margin:0}figcaption{font-weight:600}
svg{max-width:100%;height:auto}.grid{stroke:#e3e7ee}.line{fill:none;stroke:#2b6cb0;stroke-width:2}
.dot{fill:#2b6cb0}text{font-size:11px;fill:#5b6675}
.bad{color:#b00020}.dim{color:#5b6675}
progress{width:10rem}
@media(prefers-color-scheme:dark){body{background:#12161c;color:#e6eaf0}
th,td{border-color:#2a323d}.grid{stroke:#2a323d}.line{stroke:#63b3ed}.dot{fill:#63b3ed}
text,.dim{fill:#9aa6b5;color:#9aa6b5}.bad{color:#ff8a80}}
"""


def status_page(reports: Sequence[tuple[Mapping[str, Any], Sequence[Moment]]]) -> str:
    """The page.

    Args:
        reports: of each pipeline, what `status --json` prints, and its last hours.
    """
    name = ", ".join(str(report["pipeline"]) for report, _ in reports)
    taken = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    parts = [_pipeline(report, moments) for report, moments in reports]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{escape(name)}: status</title><style>{_STYLE}</style>"
        f"<h1>{escape(name)}</h1><p class=dim>as of {escape(taken)}</p>{''.join(parts)}</html>\n"
    )


def _pipeline(report: Mapping[str, Any], moments: Sequence[Moment]) -> str:
    published = report["published"] or {}
    slot = report["slot"]
    kept = slot.get("error") or f"{slot['wal_status']}, keeps {human_bytes(slot['retained_bytes'])}"
    facts = {
        "state": "running" if report["is_running"] else "not running",
        "durable up to": report["durable_lsn"] or "-",
        "lag": f"{human_bytes(published.get('lag_bytes', 0))}, "
        f"{published.get('lag_seconds', 0.0):.1f} s"
        if published
        else "-",
        f"slot {slot['name']}": kept,
    }
    for other in report["table_slots"]:
        facts[f"slot {other['name']}"] = f"keeps {human_bytes(other['retained_bytes'])}"
    if published.get("note"):
        facts["note"] = published["note"]
    if published.get("error"):
        facts["last error"] = published["error"]
    rows = "".join(
        f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>"
        for key, value in facts.items()
    )
    plots = "".join(
        (
            _plot("Lag, seconds", moments, lambda m: m.lag_seconds, lambda v: f"{v:.3g} s"),
            _plot("Lag, WAL", moments, lambda m: m.lag_bytes, lambda v: human_bytes(int(v))),
            _plot(
                "WAL kept for the slot",
                moments,
                lambda m: m.retained_wal_bytes,
                lambda v: human_bytes(int(v)),
            ),
            _plot("Changed rows per second", moments, lambda m: m.rows_per_second, _number),
        )
    )
    title = f"{escape(str(report['pipeline']))} to {escape(str(report['destination']))}"
    return (
        f"<h2>{title}</h2><table>{rows}</table>"
        f"<h2>The last hours</h2><div class=plots>{plots}</div>"
        f"<h2>Tables</h2>{_tables(report['tables'])}"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _tables(tables: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for table in tables:
        copy = ""
        if table.get("copy_chunks_total"):
            done, total = table["copy_chunks_done"], table["copy_chunks_total"]
            copy = f' <progress max="{total}" value="{done}"></progress> {done} of {total} chunks'
        is_bad = table["state"] == "errored"
        reason = ""
        if is_bad:
            detail = table["detail"]
            reason = f"<br>{escape(str(detail['reason']))}<br>{escape(str(table['what_to_do']))}"
        count = row_count(table["row_count"], is_estimated=table["row_count_estimated"])
        last = (table["last_commit_time"] or "").partition(".")[0].replace("T", " ")
        rows.append(
            f"<tr><td>{escape(str(table['table']))}</td>"
            f"<td{' class=bad' if is_bad else ''}>{escape(str(table['state']))}{copy}{reason}</td>"
            f"<td class=n>{escape(count)}</td><td>{escape(last)}</td></tr>"
        )
    return (
        "<table><tr><th>table</th><th>state</th><th class=n>rows</th><th>last change</th></tr>"
        f"{''.join(rows)}</table>"
    )


def _plot(
    title: str,
    moments: Sequence[Moment],
    value: Callable[[Moment], float | None],
    label: Callable[[float], str],
) -> str:
    """A line over time, from zero to the highest value."""
    points = [(moment.at, found) for moment in moments if (found := value(moment)) is not None]
    if len(points) < 2:
        return f"<figure><figcaption>{title}</figcaption><p class=dim>not enough yet</p></figure>"
    began, ended = points[0][0], points[-1][0]
    highest = max(found for _, found in points) or 1.0
    width, height = _WIDTH - _LEFT, _HEIGHT - _BOTTOM

    def place(at: float, found: float) -> tuple[float, float]:
        x = _LEFT + (at - began) / max(ended - began, 1.0) * width
        return round(x, 1), round(height - found / highest * (height - 8), 1)

    path, before = [], None
    for at, found in points:
        x, y = place(at, found)
        path.append(f"{'L' if before is not None and at - before <= _GAP_S else 'M'}{x} {y}")
        before = at
    clock = [time.strftime("%H:%M", time.localtime(at)) for at in (began, ended)]
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role=img width={_WIDTH} height={_HEIGHT}>'
        f"<title>{title}: up to {escape(label(highest))}</title>"
        f'<path class=grid d="M{_LEFT} 8H{_WIDTH}M{_LEFT} {height}H{_WIDTH}"/>'
        f'<path class=line d="{"".join(path)}"/>'
        f'<text x="{_LEFT - 6}" y="14" text-anchor=end>{escape(label(highest))}</text>'
        f'<text x="{_LEFT - 6}" y="{height}" text-anchor=end>{escape(label(0))}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{clock[0]}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 6}" text-anchor=end>{clock[1]}</text></svg></figure>'
    )
