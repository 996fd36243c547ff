"""What a destination promises about values with parts: lists, structs and maps."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from etl_dagster.testing.changes import (
    DATE,
    INT4,
    INT8,
    NUMERIC,
    TEXT,
    TIMESTAMPTZ,
    Row,
    column,
    delete,
    insert,
    table,
    update,
)
from etl_dagster.testing.subject import DestinationChecks, Subject, needs
from etl_dagster.values.types import Array, Attribute, Composite, PgType, Range, Scalar

_INT4, _TEXT = Scalar(INT4, "integer"), Scalar(TEXT, "text")
_AMOUNT = Scalar(NUMERIC, "numeric", ((12 << 16) | 2) + 4)
_PAIR = Composite(70_001, "public.pair", (Attribute("n", _INT4), Attribute("t", _TEXT)))


def _nested(name: str, attnum: int, type_: PgType, **more: Any) -> Any:
    return column(name, type_.oid, attnum, type=type_, nested="native", **more)


#: A list, a list of lists, structs (a range, a composite), a list of structs and a map.
PARTS = table(
    [
        column("id", INT8, 1, key=1),
        _nested("tags", 2, Array(1009, "text[]", _TEXT)),
        _nested("grid", 3, Array(1007, "integer[]", _INT4, dimensions=2)),
        _nested("amounts", 4, Array(1231, "numeric[]", _AMOUNT)),
        _nested("moments", 5, Array(1185, "timestamptz[]", Scalar(TIMESTAMPTZ, "timestamptz"))),
        _nested("days", 6, Range(3912, "daterange", Scalar(DATE, "date"))),
        _nested("pair", 7, _PAIR),
        _nested("pairs", 8, Array(70_002, "public.pair[]", _PAIR)),
        _nested("extra", 9, Scalar(70_003, "public.hstore", extension="hstore")),
    ],
    table_id=16394,
    name="parts",
)
#: The same without a key: the whole old row comes with an update or delete.
LOOSE_PARTS = table(
    [
        _nested("tags", 1, Array(1009, "text[]", _TEXT), is_identity=True),
        _nested("pair", 2, _PAIR, is_identity=True),
        _nested("extra", 3, Scalar(70_003, "public.hstore", extension="hstore"), is_identity=True),
    ],
    table_id=16395,
    name="loose_parts",
    identity="f",
)
_DAYS: Row = {
    "lower": date(2024, 2, 29),
    "upper": None,
    "lower_inc": True,
    "upper_inc": False,
    "empty": False,
}
#: Empty, null, and null inside are different values, and so are texts that look like them.
PARTS_ROWS: list[Row] = [
    {
        "id": 1,
        "tags": ["a", None, "", "NULL", '{"b",c}', "ü\\\n"],
        "grid": [[1, 2], [3, None]],
        "amounts": [Decimal("1234567890.10"), None, Decimal("-0.01")],
        "moments": [datetime(2026, 11, 21, 23, 59, 59, 999_999, UTC)],
        "days": _DAYS,
        "pair": {"n": -1, "t": "(1,x)"},
        "pairs": [{"n": 1, "t": None}, None, {"n": None, "t": ""}],
        "extra": {"a": "1", "b": None, "": "", "c => d": '"'},
    },
    {
        "id": 2,
        "tags": [],
        "grid": [],
        "amounts": [None],
        "moments": [],
        "days": dict.fromkeys(_DAYS, None)
        | {"lower_inc": False, "upper_inc": False, "empty": True},
        "pair": {"n": None, "t": None},
        "pairs": [],
        "extra": {},
    },
    dict.fromkeys(PARTS.column_names) | {"id": 3},
]


class PartChecks(DestinationChecks):
    """Values with parts arrive as they are, and their rows are found."""

    def test_the_copy_brings_values_with_parts_without_loss(self, subject: Subject) -> None:
        subject.copy(PARTS, PARTS_ROWS)

        subject.holds(PARTS, PARTS_ROWS)

    @needs("mirror")
    def test_the_stream_brings_values_with_parts_without_loss(self, subject: Subject) -> None:
        first, second, third = PARTS_ROWS
        subject.copy(PARTS, [first])

        subject.write(
            insert(PARTS, **second),
            insert(PARTS, **third),
            update(PARTS, unchanged=["tags", "extra"], **_without(first, "tags", "extra", grid=[])),
            update(PARTS, **second | {"id": 3}),
            update(PARTS, old={"id": 2}, unchanged=["pairs"], **_without(second, "pairs", id=4)),
        )

        subject.holds(PARTS, [first | {"grid": []}, second | {"id": 3}, second | {"id": 4}])

    @needs("mirror")
    def test_a_row_without_a_key_is_found_by_its_parts(self, subject: Subject) -> None:
        """Null, empty, and null inside are three different values."""
        some: list[Row] = [
            {"tags": tags, "pair": pair, "extra": extra}
            for tags, pair, extra in (
                (["a", None], {"n": 1, "t": None}, {"a": None, "b": "1"}),
                ([], {"n": None, "t": None}, {}),
                ([None], None, {"a": "1"}),
                (None, {"n": None, "t": None}, None),
            )
        ]
        first, second, third, fourth = some
        subject.copy(LOOSE_PARTS, [*some, first])

        subject.write(
            update(LOOSE_PARTS, old=second, **second | {"tags": ["b"]}),
            delete(LOOSE_PARTS, **first),
            delete(LOOSE_PARTS, **fourth),
        )

        subject.holds(LOOSE_PARTS, [first, second | {"tags": ["b"]}, third])

    @needs("read_changes")
    def test_recorded_changes_have_values_with_parts_without_loss(self, subject: Subject) -> None:
        subject.copy(PARTS)

        subject.has_recorded(subject.write(*(insert(PARTS, **row) for row in PARTS_ROWS)))


def _without(row: Row, *names: str, **more: Any) -> Row:
    return {name: value for name, value in row.items() if name not in names} | more
