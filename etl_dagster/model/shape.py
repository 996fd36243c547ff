"""How a table differs at the destination from what it is in the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from etl_dagster.table_name import TableName


@dataclass(frozen=True, slots=True)
class AddedColumn:
    """A column that the destination has and the source has not."""

    name: str
    type_oid: int
    type_modifier: int = -1
    #: As format_type() spells it.
    type_name: str = ""
    #: What it holds in every row, as Postgres' text; None: what the hook gives.
    value: str | None = None


@dataclass(frozen=True, slots=True)
class TableShape:
    """What was chosen for a table beyond its columns; kept until it is copied again."""

    #: The text of the table's name in the source when this was chosen.
    chosen_as: str
    #: What it is called at the destination, each with ``{schema}`` and ``{table}`` for its names
    #: in the source; empty: the name there.
    schema_name: str = ""
    table_name: str = ""
    #: Which rows the destination has; empty: all of them.
    where: str = ""
    added: tuple[AddedColumn, ...] = ()
    #: A function ``package.module:name`` that rows pass last; empty: none.
    hook: str = ""
    #: Tells one salt of hashes from another, and nothing else about it.
    salt_check: str = ""

    @property
    def needs_whole_rows(self) -> bool:
        """Whether what becomes of a row takes all of its values."""
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
    """The shape as it is kept with its table."""
    return asdict(shape)


def table_shape_from_json(kept: Mapping[str, Any]) -> TableShape:
    """The shape that `table_shape_to_json` was given."""
    added = tuple(AddedColumn(**column) for column in kept.get("added", ()))
    return TableShape(**{**kept, "added": added})
