"""Values that a destination holds in types of its own: which, and that each is held exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.destinations.duckdb import DuckDBDestination
from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
from etl_dagster.destinations.duckdb.session import DuckDBSession
from etl_dagster.destinations.duckdb.tables import declared_type
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.destinations.sql.statements import insert
from etl_dagster.destinations.sql.tables import Target
from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.tables.representation import (
    chosen,
    held_otherwise,
    keep_choices,
    reason_of_columns,
)
from etl_dagster.runtime.tables.representation import given as given_object
from etl_dagster.testing.changes import INT4, column, table
from etl_dagster.values.columns import ColumnSchema, column_from_json, column_to_json
from etl_dagster.values.forms import arrow_type, form_of
from etl_dagster.values.text import parse
from etl_dagster.values.types import Array, Domain, Enum, Scalar
from tests.support.spelling import interval
from tests.unit import slow_own_types

_INTERVAL, _BIT, _TIMETZ, _XID8 = 1186, 1560, 1266, 5069
_MOOD = Enum(70_000, "mood", ("sad", "happy"))
_TABLE = table(
    [
        column("id", INT4, 1, key=1),
        column("ki", _INTERVAL, 2, key=2),
        column("km", 70_000, 3, key=3, type=_MOOD),
        column("i", _INTERVAL, 4),
        column("b", _BIT, 5),
        column("z", _TIMETZ, 6),
        column("x", _XID8, 7),
        column("m", 70_000, 8, type=_MOOD),
        column("f", 70_001, 9, type=Domain(70_001, "feeling", _MOOD), base_type_oid=70_000),
        column("none", 70_002, 10, type=Enum(70_002, "none", ())),
        column("l", 1187, 11, type=Array(1187, "interval[]", Scalar(_INTERVAL, "interval"))),
        column("ms", 70_003, 12, type=Array(70_003, "mood[]", _MOOD)),
        column("n", 1700, 13),
    ]
)


def _config(destination: str = "duckdb", **settings_: Any) -> PipelineConfig:
    more = {"duckdb": {"path": "x"}, "http": {"url": "http://localhost"}}
    section = {"type": destination} | more.get(destination, {})
    source = {"publication": "p", "database": "d"}
    raw = {"pipeline": "p", "source": source, "destination": section, **settings_}
    return parse_config(raw, {})


def _declared(config: PipelineConfig) -> dict[str, str]:
    return {c.name: declared_type(c) for c in chosen(_TABLE, config).columns}


own_types_only = pytest.mark.skipif(
    not DuckDBDestinationConfig.has_own_types, reason="this DuckDB can't read every interval"
)


@own_types_only
def test_a_new_copy_has_duckdbs_own_types() -> None:
    mood = "ENUM('sad', 'happy')"
    assert _declared(_config()) == {
        "id": "INTEGER",
        "ki": "VARCHAR",
        "km": mood,
        "i": "INTERVAL",
        "b": "BIT",
        "z": "TIME WITH TIME ZONE",
        "x": "UBIGINT",
        "m": mood,
        "f": mood,
        "none": "VARCHAR",
        "l": "INTERVAL[]",
        "ms": "VARCHAR[]",
        "n": "VARCHAR",
    }
    as_text = _declared(_config(nested="text"))
    assert {as_text[name] for name in ("km", "m", "f", "l")} == {"VARCHAR"}
    assert as_text["i"] == "INTERVAL"
    odd = _declared(_config(odd_values="text"))
    assert (odd["i"], odd["l"], odd["b"]) == ("VARCHAR", "VARCHAR", "VARCHAR")
    assert (odd["z"], odd["m"]) == ("TIME WITH TIME ZONE", mood)


@pytest.mark.parametrize("kind", ["memory", "http"])
def test_other_destinations_get_the_same_types_as_before(kind: str) -> None:
    config = _config(kind)
    assert not any(found.own_type for found in chosen(_TABLE, config).columns)
    texts = pa.array(["infinity", "1 mon -1 days +00:00:01"])
    assert parse(chosen(_TABLE, config).columns[3], texts).array.equals(texts)


@own_types_only
def test_a_destination_given_as_an_object_has_its_types() -> None:
    raw = {"pipeline": "p", "source": {"publication": "p", "database": "d"}}
    config = parse_config(raw, {})
    duck, memory = DuckDBDestination("x"), MemoryDestination()
    assert given_object(config, duck).has_own_types
    assert not given_object(config, memory).has_own_types


@own_types_only
def test_columns_copied_by_an_earlier_version_stay_text_until_copied_again() -> None:
    earlier = chosen(_TABLE, _config("memory"))
    kept = replace(
        earlier,
        columns=tuple(column_from_json(column_to_json(found)) for found in earlier.columns),
    )
    assert kept == earlier
    assert not any("own_type" in column_to_json(found) for found in earlier.columns)

    assert keep_choices(chosen(_TABLE, _config()), kept) == earlier
    names = ["km", "i", "b", "z", "x", "m", "f", "l"]
    assert held_otherwise(_TABLE, kept, _config()) == names
    assert held_otherwise(_TABLE, kept, _config("memory")) == []
    assert held_otherwise(_TABLE, chosen(_TABLE, _config()), _config()) == []


@own_types_only
def test_a_table_whose_new_key_has_an_interval_is_copied_again() -> None:
    known = chosen(_TABLE, _config())

    def with_key(name: str) -> TableSchema:
        columns = (
            replace(found, primary_key_ordinal=4) if found.name == name else found
            for found in known.columns
        )
        return replace(known, columns=tuple(columns))

    assert reason_of_columns(with_key("i"), known) == (
        "i of its new key must be text at the destination"
    )
    assert [reason_of_columns(with_key(name), known) for name in ("b", "z", "x", "m")] == [None] * 4


@own_types_only
def test_a_column_with_an_own_type_is_refused_by_versions_that_would_misread_it() -> None:
    found = chosen(_TABLE, _config()).columns[3]
    assert column_to_json(found)["format"] == 5
    assert column_from_json(column_to_json(found)) == found


# -- intervals ---------------------------------------------------------------------------------

_OWN = ColumnSchema("c", _INTERVAL, own_type=True)


def _signed(bits: int) -> st.SearchStrategy[int]:
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return st.sampled_from((0, 1, -1, *ends)) | st.integers(*ends)


_INTERVALS = st.tuples(_signed(32), _signed(32), _signed(64)).map(slow_own_types.print_as_postgres)


@own_types_only
@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.none() | st.sampled_from(("infinity", "-infinity")) | _INTERVALS))
@example(
    texts=[
        "1 year 2 mons -3 days +04:05:06.7",
        None,
        "infinity",
        "-1 years -1 mons +1 day -00:00:00.1",
    ]
)
def test_duckdb_holds_every_interval_but_the_infinite_ones(texts: list[str | None]) -> None:
    parsed = parse(_OWN, pa.array(texts, pa.string()))
    odd = parsed.odd
    told = [] if odd is None else list(zip(odd.places.tolist(), odd.texts.to_pylist(), strict=True))
    assert told == [pair for pair in enumerate(texts) if pair[1] in ("infinity", "-infinity")]

    with duckdb.connect() as connection:
        connection.execute("create table t (c interval)")
        rows = pa.RecordBatch.from_arrays([parsed.array], names=[_OWN.name])
        session = DuckDBSession(connection)
        session.run(insert(Target.of(session.dialect, TableSchema(1, "main", "t", (_OWN,))), rows))
        kept = [text for (text,) in connection.execute("select c::varchar from t").fetchall()]
    finite = [None if text in ("infinity", "-infinity") else text for text in texts]
    assert kept == [None if text is None else interval(text) for text in finite]
    assert [text and slow_own_types.read(text) for text in kept] == [
        text and slow_own_types.read(text) for text in finite
    ]


def test_an_empty_bit_string_is_odd_where_a_bit_has_no_length() -> None:
    parsed = parse(ColumnSchema("c", _BIT, own_type=True), pa.array(["", "01", None]))
    assert parsed.array.to_pylist() == [None, "01", None]
    assert parsed.odd is not None
    assert parsed.odd.texts.to_pylist() == [""]


def test_forms_of_arrow_and_json_stay_text() -> None:
    for found in chosen(_TABLE, _config()).columns:
        plain = replace(found, own_type=False)
        assert arrow_type(found) == arrow_type(plain)
        assert form_of(found).json == form_of(plain).json


def test_a_duckdb_that_cannot_read_every_interval_holds_them_as_text() -> None:
    has_own_types = DuckDBDestinationConfig.has_own_types
    assert has_own_types == (int(duckdb.__version__.split(".")[0]) >= 2)
    if has_own_types:
        longest = "178956970 years 7 mons 2147483647 days 2562047788:00:54.775807"
        assert duckdb.execute("select cast(? as interval)::varchar", [longest]).fetchall()
