"""What is stored of a state: its two halves as text, and who wrote them when."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from etl_dagster.integrations.meltano.states.errors import StateCorrupt, StateNotStorable

#: A half of a state, as an object or as the exact JSON text to keep.
Half = Mapping[str, Any] | str | None


def to_text(state_id: str, half: Half, name: str) -> str | None:
    """The JSON text to store; None for an empty half.

    Text stays as it is, to the letter. An object is written in ASCII, in the order of its keys: NUL
    and lone surrogates are escaped, so that text columns can hold them.

    Raises:
        StateNotStorable: NaN or Infinity, which JSON cannot represent; or a text that is not a
            JSON object.
    """
    if half is None or (isinstance(half, Mapping) and not half):
        return None
    if isinstance(half, str):
        try:
            value = json.loads(half, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise StateNotStorable(
                f"the {name} state of {state_id!r} is not JSON: {_where(error)}"
            ) from None
        if not isinstance(value, dict):
            raise StateNotStorable(f"the {name} state of {state_id!r} is not a JSON object")
        if "\0" in half:
            raise StateNotStorable(f"the {name} state of {state_id!r} has a raw NUL character")
        if _has_lone_surrogate(half):
            raise StateNotStorable(
                f"the {name} state of {state_id!r} has a lone surrogate that is not escaped"
            )
        return half if value else None
    if not isinstance(half, Mapping):  # what was read from a file may be anything
        raise StateNotStorable(f"the {name} state of {state_id!r} is not a JSON object")
    try:
        return json.dumps(half, allow_nan=False)
    except RecursionError:
        raise StateNotStorable(f"the {name} state of {state_id!r} is nested too deeply") from None
    except (ValueError, TypeError):
        raise StateNotStorable(
            f"the {name} state of {state_id!r} holds {_unstorable(half)}, which JSON "
            "cannot represent"
        ) from None


def without_nonfinite(half: Mapping[str, Any], path: str = "") -> tuple[dict[str, Any], list[str]]:
    """The object without NaN and Infinity, which JSON cannot represent, and where they were.

    A key with such a value is removed; in a list the value becomes null.
    """
    kept: dict[str, Any] = {}
    gone: list[str] = []
    for key, value in half.items():
        here = f"{path}.{key}" if path else str(key)
        if _is_nonfinite(value):
            gone.append(here)
            continue
        kept[key], more = _finite(value, here)
        gone += more
    return kept, gone


def _finite(value: Any, path: str) -> tuple[Any, list[str]]:
    if isinstance(value, Mapping):
        return without_nonfinite(value, path)
    if not isinstance(value, list):
        return value, []
    items: list[Any] = []
    gone: list[str] = []
    for number, item in enumerate(value):
        here = f"{path}[{number}]"
        if _is_nonfinite(item):
            items.append(None)
            gone.append(here)
            continue
        finite, more = _finite(item, here)
        items.append(finite)
        gone += more
    return items, gone


def _is_nonfinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def from_text(state_id: str, text: str | None, name: str) -> dict[str, Any]:
    """The stored text as an object, a new one at each call; empty for None.

    Raises:
        StateCorrupt: it is not a JSON object, so another program wrote it.
    """
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateCorrupt(state_id, name, f"is not JSON ({_where(error)})") from None
    if not isinstance(value, dict):
        raise StateCorrupt(state_id, name, "is not a JSON object")
    return value


def merge(onto: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Merge as Meltano merges states: objects key by key, anything else is replaced."""
    merged = dict(onto)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def check_id(state_id: str) -> None:
    """Raises StateNotStorable: Postgres' text can't hold it, or it is empty."""
    if not state_id:
        raise StateNotStorable("a state ID is empty")
    if "\0" in state_id:
        raise StateNotStorable("a state ID has a NUL character, which Postgres can't store")
    if _has_lone_surrogate(state_id):
        raise StateNotStorable("a state ID has a lone surrogate, which is not a character")


@dataclass(frozen=True, slots=True)
class StoredState:
    """A state as it is stored now."""

    state_id: str
    #: JSON texts to the letter; None when the half is empty.
    partial: str | None = field(repr=False)
    completed: str | None = field(repr=False)
    #: Counts the writes of this ID, from 1; continues after a deletion while history is kept.
    version: int
    #: By the server's clock.
    updated_at: datetime
    writer: str | None
    run_id: str | None

    def partial_object(self) -> dict[str, Any]:
        """Raises StateCorrupt."""
        return from_text(self.state_id, self.partial, "partial")

    def completed_object(self) -> dict[str, Any]:
        """Raises StateCorrupt."""
        return from_text(self.state_id, self.completed, "completed")

    def merged(self) -> dict[str, Any]:
        """What the next run gets: the partial half merged over the completed one.

        Raises:
            StateCorrupt: a half is not a JSON object.
        """
        return merge(self.completed_object(), self.partial_object())


@dataclass(frozen=True, slots=True)
class NewState:
    """A state to be written."""

    state_id: str
    partial: Half = None
    completed: Half = None
    #: The state is only written over this version; 0: there must be none; None: over any.
    expected_version: int | None = None
    #: Whether the history keeps this version.
    is_kept: bool = True


@dataclass(frozen=True, slots=True)
class StateVersion:
    """One write of a state, with the value after it."""

    state_id: str
    version: int
    #: set, merge, import, restore, mirror or delete; after a delete there are no halves.
    operation: str
    partial: str | None = field(repr=False)
    completed: str | None = field(repr=False)
    written_at: datetime
    writer: str | None
    run_id: str | None

    def merged(self) -> dict[str, Any]:
        """Raises StateCorrupt."""
        completed = from_text(self.state_id, self.completed, "completed")
        return merge(completed, from_text(self.state_id, self.partial, "partial"))


@dataclass(frozen=True, slots=True)
class Difference:
    """A place where two versions differ: ``completed.singer_state.bookmarks.orders``."""

    path: str
    #: JSON texts; None where there is nothing.
    before: str | None
    after: str | None


def diff(before: StoredState | StateVersion, after: StoredState | StateVersion) -> list[Difference]:
    """Where they differ, in the order of the paths. A half that isn't JSON counts as one value."""
    old, new = _leaves(before), _leaves(after)
    return [
        Difference(".".join(path), old.get(path), new.get(path))
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]


def _leaves(state: StoredState | StateVersion) -> dict[tuple[str, ...], str]:
    found: dict[tuple[str, ...], str] = {}

    def walk(path: tuple[str, ...], value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk((*path, key), inner)
        else:
            found[path] = json.dumps(value)

    for name, text in (("completed", state.completed), ("partial", state.partial)):
        try:
            value = from_text(state.state_id, text, name)
        except StateCorrupt:
            found[(name,)] = str(text)
            continue
        if value:
            walk((name,), value)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _where(error: ValueError | RecursionError) -> str:
    """Where the error is; the text there is not quoted."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return str(error)


def _unstorable(value: Any, path: str = "") -> str:
    """Kind and place of what JSON cannot represent; never the value."""
    if isinstance(value, Mapping):
        parts = [(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
    else:
        parts = []
    for inner_path, inner in parts:
        try:
            json.dumps(inner, allow_nan=False)
        except (ValueError, TypeError):
            return _unstorable(inner, inner_path)
    kind = "NaN or Infinity" if isinstance(value, float) else f"a {type(value).__name__}"
    return f"{kind} at {path}" if path else kind
