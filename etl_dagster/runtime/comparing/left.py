"""Which tables a comparison or a repair leaves, and whether that is all right."""

from __future__ import annotations

from etl_dagster.errors import EtlError, InvalidState
from etl_dagster.runtime.comparing.comparison import Comparison
from etl_dagster.runtime.comparing.eligible import Eligible


def why_left(table: Eligible, found: Comparison | None, *, is_named: bool) -> EtlError | None:
    """Why nothing is known of the table's rows, with what to do; None where that is all right.

    Of all tables, those that can't be compared as they are configured are left without a word: a
    job of each night would never succeed. Who names one expects that it is compared.

    Args:
        found: what the comparison found; None where the table was not compared.
        is_named: whether this table was asked for by name, and not all tables.
    """
    if found is not None:
        if found.result != "unsettled":
            return None
        return InvalidState(
            f"unsettled: {found.reason}",
            solution="Compare these tables again while their rows change less.",
        )
    if not table.is_by_choice:
        return InvalidState(
            f"not compared: {table.why_not}",
            solution="`etl-dagster status` shows which tables are streamed, and what holds up the "
            "others. Compare them again once they are.",
        )
    if not is_named:
        return None
    return InvalidState(
        f"not compared: {table.why_not}",
        solution="Name only tables that can be compared. `etl-dagster reset TABLE` copies a table "
        "again without comparing it.",
    )
