"""One place knows what a type is: a row of the registry has it all, and no other module a table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import etl_dagster
from etl_dagster.values import oids
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.form import BuiltIn
from etl_dagster.values.forms import arrow_type, form_of
from etl_dagster.values.json import json_reader, json_writer
from etl_dagster.values.printing import print_keys
from etl_dagster.values.python import to_objects
from etl_dagster.values.registry import REGISTRY
from etl_dagster.values.text import parse

_PACKAGE = Path(etl_dagster.__file__).parent
_OIDS = {value for name, value in vars(oids).items() if name.isupper() and "INFINITY" not in name}
_OTHER_NAMES = {"int2", "int4", "int8", "float4", "float8", "bool", "varchar", "timestamptz"}
#: Names of types that are ordinary words, too.
_WORDS = {"oid", "name", "text", "date", "time", "path", "line", "point"}
_NAMES = ({row.name for row in REGISTRY.values()} | _OTHER_NAMES) - _WORDS

ROWS = [pytest.param(row, id=row.name) for row in REGISTRY.values()]


def column(row: BuiltIn) -> ColumnSchema:
    return ColumnSchema("c", row.oid)


@pytest.mark.parametrize("row", ROWS)
def test_each_built_in_type_is_complete(row: BuiltIn) -> None:
    form = form_of(column(row))

    assert isinstance(form.arrow, pa.DataType)
    assert form.json
    assert (form.to_json is None) or form.arrow == pa.string() or form.from_json is not None
    assert "{0}" in row.output
    assert row.edges


@pytest.mark.parametrize("row", ROWS)
def test_every_edge_case_becomes_the_expected_value(row: BuiltIn) -> None:
    """Kept, or set apart with its text; printed again it is what Postgres printed."""
    texts = [edge.text for edge in row.edges]
    parsed = parse(column(row), pa.array([*texts, None], pa.string()))
    odd = [place for place, edge in enumerate(row.edges) if edge.is_odd]

    if parsed.array.type != pa.time64("us"):  # the end of a day is not a time to Arrow
        parsed.array.validate(full=True)
    assert parsed.array.type == arrow_type(column(row))
    assert ([] if parsed.odd is None else parsed.odd.places.tolist()) == odd
    nulls = parsed.array.is_null().to_pylist()
    assert [place for place, is_null in enumerate(nulls) if is_null] == [*odd, len(texts)]
    if row.oid not in (oids.BOOL, oids.FLOAT4, oids.FLOAT8):
        for place, printed in enumerate(print_keys(column(row), parsed.array)[:-1]):
            assert place in odd or printed == texts[place]


@pytest.mark.parametrize("row", ROWS)
def test_every_edge_case_survives_the_way_to_json(row: BuiltIn) -> None:
    texts = [edge.text for edge in row.edges if not edge.is_odd]
    write, read = json_writer(column(row)), json_reader(column(row))
    for value in to_objects(parse(column(row), pa.array(texts, pa.string())).array):
        written = value if write is None else write(value)
        back = written if read is None else read(written)
        assert isinstance(written, str | int | float | bool)
        assert _comparable(back) == _comparable(value)


def _comparable(value: Any) -> Any:
    """repr tells -0.0 from 0.0, and has nan equal itself. UTC has more than one name."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat()
    return repr(value)


def _is_of_types(node: ast.expr) -> bool:
    """Whether an expression names a Postgres type: an OID, or its name."""
    if isinstance(node, ast.Constant):
        return node.value in (_NAMES if isinstance(node.value, str) else _OIDS)
    if isinstance(node, ast.Name):
        return node.id.isupper() and vars(oids).get(node.id) in _OIDS
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id == "oids"
    if isinstance(node, ast.Tuple):
        return any(map(_is_of_types, node.elts))
    return False


def _tables(path: Path) -> Iterator[tuple[int, int]]:
    """Line and size of every dictionary, set or `match` that goes by Postgres types."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Dict):
            keys = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Set):
            keys = node.elts
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id not in ("frozenset", "set", "dict") or not node.args:
                continue
            keys = getattr(node.args[0], "elts", [])
        else:
            continue
        found = sum(map(_is_of_types, keys))
        if found:
            yield node.lineno, found


def test_no_other_module_has_a_table_of_types() -> None:
    """To add a type is one row, and one function where its values are like no other's."""
    found = [
        f"{path.relative_to(_PACKAGE)}:{line}"
        for path in sorted(_PACKAGE.rglob("*.py"))
        if path.relative_to(_PACKAGE).parts[:2] != ("values", "families")
        for line, size in _tables(path)
        if size > 1
    ]
    assert found == []
