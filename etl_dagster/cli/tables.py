"""Tables that are named on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from etl_dagster.cli.listing import some

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from etl_dagster.model.schema import TableId
    from etl_dagster.model.stores import CoordinatingStore


def table_ids(
    config: PipelineConfig, store: CoordinatingStore, tables: Sequence[str]
) -> dict[str, TableId]:
    """By name, in the order given.

    Raises:
        UsageError: a name is malformed, or the pipeline has no such table.
    """
    from etl_dagster.config.text import suggest
    from etl_dagster.runtime.table_ids import find_table_ids
    from etl_dagster.table_name import TableName

    try:
        names = [str(TableName.parse(name)) for name in tables]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    known = find_table_ids(config, store)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.UsageError(
            f"the pipeline has no table {some(unknown)}; it has {some(sorted(known))}"
            f"{suggest(unknown[0], list(known), [])}"
        )
    return {name: known[name] for name in names}
