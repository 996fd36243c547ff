"""What of the tables' changes the source tells: published operations, altered tables."""

from __future__ import annotations

from collections.abc import Sequence

from etl_dagster.model.schema import TableSchema
from etl_dagster.runtime.checking.check import Check, Connection
from etl_dagster.source.catalog import Publication, PublishedTable
from etl_dagster.source.trigger import VERSION as TRIGGER_VERSION
from etl_dagster.source.trigger import fetch_trigger
from etl_dagster.values.types import contains_composite, enums_in
from etl_dagster.words import names


def check_published_changes(publication: Publication) -> Check:
    flags = {
        kind: getattr(publication, kind) for kind in ("insert", "update", "delete", "truncate")
    }
    published = ", ".join(kind for kind, is_published in flags.items() if is_published)
    missing = [kind for kind, is_published in flags.items() if not is_published]
    if not missing:
        return Check.ok("published changes", published)
    return Check.warning(
        "published changes",
        f"only {published or 'nothing'}: no {' and no '.join(missing)} at the source ever arrives",
        f'If that is not meant: ALTER PUBLICATION "{publication.name}" '
        "SET (publish = 'insert, update, delete, truncate');",
    )


def check_trigger(connection: Connection, tables: Sequence[PublishedTable]) -> Check:
    """Whether the source reports altered tables; a pipeline runs without it as well."""
    name = "altered tables"
    state = fetch_trigger(connection)
    if state.reports:
        return Check.ok(name, f"reported by the event trigger, version {state.version}")
    without = (
        "so changes of columns are found with the next row or in the catalog, and some of them, "
        "such as renamed enum values and altered composite types, lead to a new copy of the table"
    )
    if not state.trace:
        found = "the source has no event trigger that reports them"
    elif state.version == TRIGGER_VERSION:
        found = "the event trigger is disabled on the source"
    else:
        found = f"the event trigger on the source has not version {TRIGGER_VERSION}"
    solution = (
        "To have them reported: `etl-dagster migrate --source`, or with --print for an "
        "administrator to run."
    )
    found_by_labels = [table.schema.name for table in tables if _is_found_by_labels(table.schema)]
    if found_by_labels:
        without += (
            "; where rows are found by such a value, they may be there twice until that copy: "
            f"{names(found_by_labels)}"
        )
        return Check.warning(name, f"{found}, {without}", solution)
    return Check(name, "ok", f"{found}, {without}", solution)


def _is_found_by_labels(table: TableSchema) -> bool:
    """Whether rows are found by values whose types may be altered so that they print otherwise."""
    compared = table.key_columns or table.identity_columns
    return any(
        column.name in compared
        and column.type is not None
        and (contains_composite(column.type) or any(enums_in(column.type)))
        for column in table.columns
    )
