"""Merges the settings of all entries that match one table or column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etl_dagster.config.tables import ColumnConfig, TableConfig
from etl_dagster.table_name import TableName
from etl_dagster.table_pattern import Pattern, TablePattern


class MergedTables:
    """The section ``tables``; results are cached.

    The methods are described in `PipelineConfig`.
    """

    def __init__(self, tables: Mapping[str, TableConfig]) -> None:
        self.tables = tables
        self._known_tables: dict[str, TableConfig] = {}
        self._known_columns: dict[tuple[str, str], ColumnConfig] = {}

    def matching(self, table_name: str) -> list[tuple[str, TableConfig]]:
        name = TableName.parse(table_name)
        found = [(TablePattern.parse(text), text) for text in self.tables]
        matching = sorted((p.rank, text) for p, text in found if p.matches(name))
        return [(text, self.tables[text]) for _, text in matching]

    def table(self, table_name: str) -> TableConfig:
        if table_name not in self._known_tables:
            given: dict[str, Any] = {}
            for _, settings in self.matching(table_name):
                more = settings.given
                for joined in ("columns", "exclude", "add", "hook_adds"):
                    if joined in more and joined in given:
                        more[joined] = _joined(given[joined], more[joined])
                given |= more
            self._known_tables[table_name] = TableConfig.model_construct(None, **given)
        return self._known_tables[table_name]

    def column(self, table_name: str, column_name: str) -> ColumnConfig:
        key = table_name, column_name
        if key not in self._known_columns:
            given: dict[str, Any] = {}
            for _, settings in self.matching(table_name):
                found = [(Pattern.of(text), each) for text, each in settings.columns.items()]
                matching = [(p.rank, each) for p, each in found if p.matches(column_name)]
                for _, each in sorted(matching, key=lambda found: found[0]):
                    given |= each.given
            self._known_columns[key] = ColumnConfig.model_construct(None, **given)
        return self._known_columns[key]


def _joined(before: Any, more: Any) -> Any:
    """Two lists or mappings as one, the second over the first."""
    return {**before, **more} if isinstance(more, dict) else [*before, *more]
