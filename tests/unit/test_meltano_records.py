"""State as text, patterns of IDs, and what two versions differ in."""

from __future__ import annotations

import fnmatch
import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from etl_dagster.integrations.meltano.states.errors import StateCorrupt, StateNotStorable
from etl_dagster.integrations.meltano.states.glob import literal_prefix, matcher
from etl_dagster.integrations.meltano.states.records import (
    Difference,
    StoredState,
    check_id,
    diff,
    from_text,
    merge,
    to_text,
    without_nonfinite,
)

ID = "dev:tap-to-target"


def stored(completed: str | None = None, partial: str | None = None) -> StoredState:
    return StoredState(ID, partial, completed, 1, datetime.now(UTC), None, None)


@pytest.mark.parametrize(
    "value",
    [
        {"nul": "\0", "surrogate": "\ud800", "umlaut": "ü"},
        {"z": 1, "a": 2, "m": {"y": 1, "b": 2}},
        {"numbers": [1e308, -0.0, 10**40, 0.1, 1.0, 1]},
    ],
)
def test_an_object_comes_back_as_it_was(value: dict[str, Any]) -> None:
    text = to_text(ID, value, "completed")
    assert text is not None
    assert text.isascii()
    back = from_text(ID, text, "completed")
    # The order of keys counts, and 1 is not 1.0.
    assert json.dumps(back) == json.dumps(value)


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        value = {"a": value}
    return value


def test_a_text_is_kept_to_the_letter() -> None:
    text = '{ "b": 1E5,\n "a": 1.10, "c": "\\u0000\\ud800" }'
    assert to_text(ID, text, "completed") == text


@pytest.mark.parametrize("empty", [None, {}, "{}", " { } "])
def test_an_empty_half_is_nothing(empty: Any) -> None:
    assert to_text(ID, empty, "partial") is None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"singer_state": {"bookmarks": [1, {"x": math.nan}]}}, r"singer_state\.bookmarks\[1\]\.x"),
        ({"a": math.inf}, "NaN or Infinity at a"),
        ({"a": {1, 2}}, "a set at a"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"secret', "not JSON"),
        ("[1]", "not a JSON object"),
        ([1], "not a JSON object"),
        ('{"a": "\0"}', "not JSON"),
        ('{"a": "\ud800"}', "lone surrogate that is not escaped"),
        (nested(100_000), "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
    ],
)
def test_what_json_cannot_represent_is_refused_with_its_place(value: Any, told: str) -> None:
    with pytest.raises(StateNotStorable, match=told) as refused:
        to_text(ID, value, "partial")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"secret": ', "not JSON"),
        ("[1]", "not a JSON obj"),
        ('{"secret":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
    ],
)
def test_a_stored_text_that_is_not_an_object_is_corrupt(text: str, told: str) -> None:
    with pytest.raises(StateCorrupt, match=told) as corrupt:
        stored(completed=text).merged()
    assert ID in str(corrupt.value)
    assert "secret" not in str(corrupt.value)
    assert "restore" in corrupt.value.solution


@pytest.mark.parametrize("state_id", ["", "a\0b", "\ud800"])
def test_an_id_that_postgres_cannot_hold_is_refused(state_id: str) -> None:
    with pytest.raises(StateNotStorable):
        check_id(state_id)


_JSON_OBJECTS = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
).map(lambda value: value if isinstance(value, dict) else {"a": value})


def _an_object_meets_a_value(onto: dict[str, Any], top: dict[str, Any]) -> bool:
    return any(
        isinstance(top[key], dict)
        and (not isinstance(onto[key], dict) or _an_object_meets_a_value(onto[key], top[key]))
        for key in onto.keys() & top.keys()
    )


@given(_JSON_OBJECTS, _JSON_OBJECTS)
def test_states_merge_as_meltano_merges_them(onto: dict[str, Any], top: dict[str, Any]) -> None:
    pytest.importorskip("meltano")
    from meltano.core.utils import merge as meltanos

    assume(not _an_object_meets_a_value(onto, top))  # there Meltano fails, or forgets it
    before = json.dumps(onto)
    assert merge(onto, top) == meltanos(top, json.loads(before))
    assert json.dumps(onto) == before


def test_a_difference_names_the_place_and_both_values() -> None:
    before = stored('{"singer_state": {"bookmarks": {"a": 1, "b": 2}}}', '{"x": []}')
    after = stored('{"singer_state": {"bookmarks": {"a": 1, "b": 3, "c": "n"}}}')
    assert diff(before, after) == [
        Difference("completed.singer_state.bookmarks.b", "2", "3"),
        Difference("completed.singer_state.bookmarks.c", None, '"n"'),
        Difference("partial.x", "[]", None),
    ]
    assert diff(after, after) == []


@given(
    st.text(alphabet="ab*?[]!-_%\\.:", max_size=6),
    st.lists(st.text(alphabet="abAB[]!-_%\\.:\n", max_size=6), max_size=20),
)
def test_a_pattern_matches_what_a_shell_matches(pattern: str, ids: list[str]) -> None:
    matches = matcher(pattern)
    for state_id in ids:
        expected = not pattern or fnmatch.fnmatchcase(state_id, pattern)
        assert (matches is None or matches(state_id)) == expected
        if expected:
            assert state_id.startswith(literal_prefix(pattern))


def test_what_json_cannot_represent_is_left_out_by_name() -> None:
    half = {"singer_state": {"bookmarks": {"a": {"at": math.nan, "n": 1}, "b": [1.5, math.inf]}}}

    assert without_nonfinite(half) == (
        {"singer_state": {"bookmarks": {"a": {"n": 1}, "b": [1.5, None]}}},
        ["singer_state.bookmarks.a.at", "singer_state.bookmarks.b[1]"],
    )
    assert without_nonfinite({"a": {"b": [1, {"c": None}]}}) == ({"a": {"b": [1, {"c": None}]}}, [])
