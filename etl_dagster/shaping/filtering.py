"""For which rows a condition is true."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, assert_never

from etl_dagster.model.schema import TableSchema
from etl_dagster.shaping.conditions import (
    Compared,
    Condition,
    IsNull,
    IsTrue,
    Joined,
    Like,
    Not,
    Unreadable,
    columns_of,
    parse_condition,
)
from etl_dagster.values import oids
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.shapes import CastTo

if TYPE_CHECKING:
    import pyarrow as pa

_TEXTS: Final = (oids.TEXT, oids.VARCHAR, oids.BPCHAR, oids.UUID)
_COMPUTED: Final = {
    "=": "equal",
    "<>": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}


class RowFilter:
    """A condition over the columns of one schema, of the source.

    Raises:
        Unreadable: the text is not a condition, or doesn't fit the columns.
    """

    def __init__(self, text: str, schema: TableSchema) -> None:
        self._condition = parse_condition(text)
        self._columns = {name_in_condition(column): column for column in schema.columns}
        for name in columns_of(self._condition):
            if name not in self._columns:
                raise Unreadable(f"names a column {name!r}, which {schema.name} does not have")
        _require_readable(self._condition, self._columns)

    def matches(self, rows: pa.RecordBatch) -> Any:
        """A numpy bool array: for which rows the condition is true."""
        values = _Values(rows, self._columns)
        result: Any = _evaluated(self._condition, values)
        return result.fill_null(False).to_numpy(zero_copy_only=False)


def name_in_condition(column: ColumnSchema) -> str:
    """The column's name in the condition: the one that it had when the table was copied."""
    is_named = column.shape is not None and column.shape.in_condition
    return column.shape.chosen_as if is_named and column.shape else column.name


class _Values:
    """The values of columns, as they are compared."""

    def __init__(self, rows: pa.RecordBatch, columns: Mapping[str, ColumnSchema]) -> None:
        self._rows = rows
        self._columns = columns
        self._typed: dict[str, Any] = {}

    def held(self, name: str) -> Any:
        place = self._rows.schema.get_field_index(self._columns[name].name)
        return self._rows.column(place)

    def column(self, name: str) -> ColumnSchema:
        return self._columns[name]

    def typed(self, name: str) -> Any:
        """The values in their own type, even if they are held as text."""
        if name not in self._typed:
            self._typed[name] = _typed(self._columns[name], self.held(name))
        return self._typed[name]


def _evaluated(condition: Condition, values: _Values) -> Any:
    import pyarrow.compute as pc

    compute: Any = pc
    match condition:
        case Compared(column, sign, literal):
            return _compared(values.column(column), values.typed(column), sign, literal)
        case Like(column, pattern):
            array = _as_text(values.held(column))
            return compute.match_like(array, pattern)
        case IsNull(column):
            return values.held(column).is_null()
        case IsTrue(column):
            return values.typed(column)
        case Not(inner):
            return compute.invert(_evaluated(inner, values))
        case Joined(word, parts):
            join = compute.and_kleene if word == "and" else compute.or_kleene
            result = _evaluated(parts[0], values)
            for part in parts[1:]:
                result = join(result, _evaluated(part, values))
            return result
        case _:
            assert_never(condition)


def _compared(column: ColumnSchema, array: Any, sign: str, literal: str) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    compute: Any = pc
    if _is_any_numeric(column):
        return _by_distinct_value(array, _number_test(sign, _order(literal)))
    scalar = _literal(plain(column), literal)
    if _oid(column) in (oids.FLOAT4, oids.FLOAT8):
        # To Postgres, NaN is equal to itself and larger than every number.
        is_nan = compute.is_nan(array)
        if compute.is_nan(scalar).as_py():
            array, scalar = is_nan, pa.scalar(True)
        elif sign in (">", ">=", "<>"):
            return compute.or_kleene(getattr(compute, _COMPUTED[sign])(array, scalar), is_nan)
    return getattr(compute, _COMPUTED[sign])(array, scalar)


def _by_distinct_value(array: Any, test: Callable[[str], bool]) -> Any:
    import pyarrow as pa

    encoded = array.dictionary_encode()
    found: Any = pa.array([test(text) for text in encoded.dictionary.to_pylist()], pa.bool_())
    return found.take(encoded.indices)


def _number_test(sign: str, bound: tuple[int, Decimal]) -> Callable[[str], bool]:
    tests: Mapping[str, Callable[[tuple[int, Decimal]], bool]] = {
        "=": lambda number: number == bound,
        "<>": lambda number: number != bound,
        "<": lambda number: number < bound,
        "<=": lambda number: number <= bound,
        ">": lambda number: number > bound,
        ">=": lambda number: number >= bound,
    }
    test = tests[sign]
    return lambda text: test(_order(text))


def _order(text: str) -> tuple[int, Decimal]:
    """The place of a numeric in the order of all numerics: NaN is the largest.

    Postgres prints NaN and Infinity, Arrow nan and inf, and in a condition either may be written.
    """
    number = Decimal(text)
    if number.is_nan():
        return 2, Decimal(0)
    if number.is_infinite():
        return (-1 if number.is_signed() else 1), Decimal(0)
    return 0, number


def plain(column: ColumnSchema) -> ColumnSchema:
    """The column, held in its own type, or in the one that it is cast to."""
    shape = column.shape
    if shape is not None:
        shape = None if shape.cast is None else replace(shape, mask=None, left_out=False)
    return replace(column, shape=shape, as_text=False, own_type=False, quarantine=False)


def _oid(column: ColumnSchema) -> int:
    """The OID of the type in which values are compared."""
    cast = None if column.shape is None else column.shape.cast
    return column.effective_type_oid if cast is None else cast.type_oid


def _is_ordered(oid: int) -> bool:
    from etl_dagster.values.registry import REGISTRY

    return oid in _TEXTS or (oid in REGISTRY and REGISTRY[oid].reads is not None)


def _is_any_numeric(column: ColumnSchema) -> bool:
    is_cast = column.shape is not None and column.shape.cast is not None
    return not is_cast and _oid(column) == oids.NUMERIC and column.type_modifier < 0


def _typed(column: ColumnSchema, array: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    from etl_dagster.values.forms import form_of
    from etl_dagster.values.text import parse

    compute: Any = pc
    if _is_any_numeric(column):
        # However they are held: the text of a decimal or double is the number, too.
        return array.cast(pa.string())
    wanted = form_of(plain(column)).arrow
    if column.as_text and array.type != wanted:
        array = parse(plain(column), array).array
    if _oid(column) == oids.BPCHAR:
        return compute.utf8_rtrim(array, " ")
    return _as_text(array) if pa.types.is_dictionary(array.type) else array


def _as_text(array: Any) -> Any:
    import pyarrow as pa

    return array.cast(pa.string()) if pa.types.is_dictionary(array.type) else array


@lru_cache(maxsize=1024)
def _literal(column: ColumnSchema, text: str) -> Any:
    """The literal as a value of the column's type; an Arrow scalar.

    Raises:
        Unreadable: it isn't one.
    """
    import pyarrow as pa

    from etl_dagster.values.read_as import read_as
    from etl_dagster.values.text import parse

    wrong = Unreadable(
        f"compares {column.name} with a literal that is not a value of type {column.type_name}"
    )
    oid = _oid(column)
    strings: Any = pa.array([text.rstrip(" ") if oid == oids.BPCHAR else text], pa.string())
    cast = CastTo(oid, column.type_modifier if oid == oids.NUMERIC else -1)
    try:
        # As people write it: also a day without a time, true or false.
        is_known = oid not in _TEXTS and _is_ordered(oid)
        parsed = read_as(cast, strings) if is_known else parse(column, strings)
    except pa.ArrowException:
        raise wrong from None
    if parsed.odd is not None or parsed.array.null_count:
        raise wrong
    return _as_text(parsed.array)[0]


def _require_readable(condition: Condition, columns: Mapping[str, ColumnSchema]) -> None:
    """Raises Unreadable where a column can't be compared in this way."""
    match condition:
        case Compared(name, sign, literal):
            column = columns[name]
            if _is_any_numeric(column):
                try:
                    _order(literal)
                except ArithmeticError:
                    raise Unreadable(
                        f"compares {name} with a literal that is not a value of type numeric"
                    ) from None
                return
            oid = _oid(column)
            if sign not in ("=", "<>") and not _is_ordered(oid):
                raise Unreadable(
                    f"compares {name}, of type {column.type_name}, by {sign}; for this type, use "
                    "=, <>, IN or IS NULL"
                )
            if column.type is not None and column.nested == "native" and _has_parts(column):
                raise Unreadable(f"compares {name}, whose values have parts; use only IS NULL")
            _literal(plain(column), literal)
        case Like(name):
            column = columns[name]
            if _oid(column) not in _TEXTS:
                raise Unreadable(f"matches {name} by LIKE, but it is not a text")
        case IsTrue(name):
            if _oid(columns[name]) != oids.BOOL:
                raise Unreadable(f"has {name} by itself, but it is not a boolean")
        case Not(inner):
            _require_readable(inner, columns)
        case Joined(_, parts):
            for part in parts:
                _require_readable(part, columns)
        case IsNull():
            return
        case _:
            assert_never(condition)


def _has_parts(column: ColumnSchema) -> bool:
    from etl_dagster.values.forms import has_parts

    return has_parts(column)
