"""Which dataset and name a table has at the destination."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from etl_dagster.destinations.dlt.rows import LoadedTable
from etl_dagster.errors import TableWriteFailed
from etl_dagster.model.schema import TableSchema


class DltNames:
    """Names by dlt's convention; two tables of the source never become one.

    Args:
        dataset: with `{schema}` for the table's schema in the source.
        normalize: dlt's convention.
    """

    def __init__(self, dataset: str, normalize: Callable[[str], str] = lambda name: name) -> None:
        self._dataset = dataset
        self.normalize = normalize
        self._lock = threading.Lock()
        #: By dataset and name at the destination, the source's table that has this name.
        self._taken: dict[tuple[str, str], str] = {}

    def dataset(self, schema: TableSchema) -> str:
        return self.normalize(self._dataset.format(schema=schema.schema_name))

    def any_dataset(self) -> str:
        """The dataset that a check looks at, before any table is known."""
        return self.normalize(self._dataset.format(schema="public"))

    def shape(self, schema: TableSchema) -> LoadedTable:
        """How the table is at the destination.

        Raises:
            TableWriteFailed: its name, or a column's, is reserved or that of another.
        """
        shape = LoadedTable.of(schema, self.normalize)
        if shape.name.startswith(("_dlt_", "_etl_")):
            raise TableWriteFailed(
                schema.id,
                f"the name of {schema.name} is reserved at the destination",
                solution="Rename the table in the source, or leave it out of the publication. "
                "Then retry it.",
            )
        with self._lock:
            other = self._taken.setdefault((self.dataset(schema), shape.name), schema.name)
        if other != schema.name:
            raise TableWriteFailed(
                schema.id,
                f"{schema.name} would be the same table at the destination as {other}",
                solution="Have {schema} in destination.dataset, choose another destination.naming, "
                "or leave one of them out of the publication. Then retry the table.",
            )
        return shape

    def clashes(self, schemas: Sequence[TableSchema]) -> list[str]:
        """Why tables can't have their names, a sentence for each."""
        found = []
        for schema in schemas:
            try:
                self.shape(schema)
            except TableWriteFailed as error:
                found.append(error.reason)
        return found
