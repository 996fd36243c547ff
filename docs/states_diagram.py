"""Draws the life of a table from the table of its transitions."""

from __future__ import annotations

from collections.abc import Iterator

from etl_dagster.lsn import LSN_ZERO
from etl_dagster.model.states import (
    TRANSITIONS,
    Catchup,
    DataSync,
    Errored,
    FinishedCopy,
    Init,
    NoRetry,
    Ready,
    SyncDone,
    SyncWait,
    TableState,
    needs_sync,
)

#: Along the way, one of each.
_STATES: tuple[TableState, ...] = (
    Init(),
    DataSync(),
    FinishedCopy(),
    SyncWait(LSN_ZERO),
    Catchup(LSN_ZERO),
    SyncDone(LSN_ZERO),
    Ready(LSN_ZERO),
)
_ERRORED = Errored("", "", NoRetry())
_WIDTH, _HEIGHT = 760, 230
#: The upper edges of the boxes.
_ROW, _ERRORED_ROW = 84, 176
_BOX, _GAP = 40, 30


def states_diagram() -> str:
    """An SVG with an arrow for each transition; its title is as ``DataSync to FinishedCopy``."""
    places, x = {}, 10.0
    for state in _STATES:
        width = 7.6 * len(type(state).__name__) + 22
        places[type(state)] = x, width
        x += width + _GAP
    places[Errored] = 10.0, 7.6 * len("Errored") + 22
    return "\n".join(
        [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_label()}" '
            'xmlns="http://www.w3.org/2000/svg">',
            '<defs><marker id="states-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
            'markerHeight="8" orient="auto"><path class="head" d="M0,0 L8,4 L0,8 z"/></marker>'
            "</defs>",
            *_boxes(places),
            *_arrows(places),
            _text(110, _ERRORED_ROW + 17, "From anywhere a table may fail, or be reset to Init."),
            _text(110, _ERRORED_ROW + 33, "It continues by itself where waiting helps."),
            _text(_WIDTH - 10, _ERRORED_ROW + 17, "Coloured: a table sync", "end"),
            _text(_WIDTH - 10, _ERRORED_ROW + 33, "worker is at work", "end"),
            "</svg>\n",
        ]
    )


def _label() -> str:
    """What the picture shows, for who can't see it."""
    steps = [
        f"{old.__name__} to {', '.join(sorted(new.__name__ for new in followers))}"
        for old, followers in TRANSITIONS.items()
        if followers
    ]
    return f"{'; '.join(steps)}; from anywhere to Errored and Init."


def _boxes(places: dict[type[TableState], tuple[float, float]]) -> Iterator[str]:
    for state in (*_STATES, _ERRORED):
        name, (x, width) = type(state).__name__, places[type(state)]
        y = _ERRORED_ROW if state is _ERRORED else _ROW
        kind = "box ours" if needs_sync(state) and not isinstance(state, Init) else "box"
        yield (
            f'<rect class="{kind}" x="{x:g}" y="{y}" width="{width:g}" height="{_BOX}" rx="20"/>'
            f'<text class="mono" x="{x + width / 2:g}" y="{y + 25}" text-anchor="middle">'
            f"{name}</text>"
        )


def _arrows(places: dict[type[TableState], tuple[float, float]]) -> Iterator[str]:
    order = [type(state) for state in _STATES]
    for old, followers in TRANSITIONS.items():
        (from_x, from_width), middle = places[old], _ROW + _BOX / 2
        for new in sorted(followers, key=lambda kind: kind.__name__):
            to_x, to_width = places[new]
            if old is Errored:
                # Up to the left part of each box.
                end = to_x + to_width / 4
                path = (
                    f"M{from_x + from_width - 8:g},{_ERRORED_ROW + 6} "
                    f"C{end:g},{_ERRORED_ROW - 10} {end:g},{_ERRORED_ROW - 14} "
                    f"{end:g},{_ROW + _BOX + 3}"
                )
            elif order.index(new) == order.index(old) + 1:
                path = f"M{from_x + from_width:g},{middle:g} H{to_x - 2:g}"
            elif new is old:
                # Below, from one half to the other.
                start, end, y = from_x + from_width * 0.85, from_x + from_width * 0.5, _ROW + _BOX
                path = (
                    f"M{start:g},{y} C{start + 4:g},{y + 24} {end - 4:g},{y + 24} {end:g},{y + 3}"
                )
            else:
                # Above, the higher the farther. Those that come leave room for those that go.
                distance = order.index(old) - order.index(new)
                start = from_x + from_width * (0.5 - 0.15 * (distance - 1))
                end = to_x + to_width * (0.6 + 0.13 * (distance - 1))
                top = _ROW - 32 * distance
                path = f"M{start:g},{_ROW} C{start:g},{top} {end:g},{top} {end:g},{_ROW - 3}"
            is_plain = old is not Errored and order.index(new) == order.index(old) + 1
            yield (
                f'<path class="line{"" if is_plain else " dashed"}" d="{path}" '
                f'marker-end="url(#states-head)"><title>{old.__name__} to {new.__name__}</title>'
                "</path>"
            )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="small" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{text}</text>'
