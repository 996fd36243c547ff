"""How a table at the destination differs from the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from etl_dagster.table_name import TableName


@dataclass(frozen=True, slots=True)
class AddedColumn:
    """A column that only the destination has."""

    name: str
    type_oid: int
    type_modifier: int = -1
    #: As format_type() spells it.
    type_name: str = ""
    #: The value in every row, as Postgres prints it; None: the hook returns the values.
    value: str | None = None


@dataclass(frozen=True, slots=True)
class TableShape:
    """What was chosen for a table beyond its columns; kept until it is copied again."""

    #: The text of the table's name in the source when this was chosen.
    chosen_as: str
    #: The names at the destination, with ``{schema}`` and ``{table}`` for those in the source;
    #: empty: the same name as in the source.
    schema_name: str = ""
    table_name: str = ""
    #: Which rows the destination has; empty: all of them.
    where: str = ""
    added: tuple[AddedColumn, ...] = ()
    #: A function ``package.module:name`` that is applied to the rows last; empty: none.
    hook: str = ""
    #: Differs for another salt of hashes, and reveals nothing else about it.
    salt_check: str = ""

    @property
    def needs_whole_rows(self) -> bool:
        """Whether all values of a row must be known to decide what becomes of it."""
        return bool(self.where or self.hook)

    def target_of(self, schema_name: str, table_name: str) -> TableName:
        """The name at the destination of a table that has this name in the source."""

        def rendered(template: str, name: str) -> str:
            if not template:
                return name
            # Names may hold braces; so each placeholder is replaced once.
            parts = template.split("{table}")
            return table_name.join(part.replace("{schema}", schema_name) for part in parts)

        return TableName(
            rendered(self.schema_name, schema_name), rendered(self.table_name, table_name)
        )


def table_shape_to_json(shape: TableShape) -> dict[str, Any]:
    """The shape as JSON, as it is stored with its table."""
    return asdict(shape)


def table_shape_from_json(kept: Mapping[str, Any]) -> TableShape:
    """The inverse of `table_shape_to_json`."""
    added = tuple(AddedColumn(**column) for column in kept.get("added", ()))
    return TableShape(**{**kept, "added": added})
