"""What the status of an answer means for the pipeline.

| status | means | raised |
|---|---|---|
| 2xx | durable | |
| 408, 425, 429, 5xx | try again later | `TryAgain`, at last `DestinationUnreachable` |
| 409 | conflict: send the chunk or the batch again from its beginning | `WriteConflict` |
| 410 on rows | a newer copy of the table has begun | `InvalidState` |
| 412 | a newer replicator took over: the epoch is too small | `Superseded` |
| 401, 403, 407 | the sender is not allowed in | `DestinationError` |
| 413 | too large: send less at a time | `BodyTooLarge` |
| 3xx, 404, 405, 410, 415, 421, 426, 451 | wrong URL, or not for this | `DestinationError` |
| any other 4xx | this table's data can't be taken | `TableWriteFailed` |
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from etl_dagster.errors import (
    DestinationError,
    EtlError,
    InvalidState,
    Superseded,
    TableWriteFailed,
)
from etl_dagster.model.schema import TableSchema

_NOT_ALLOWED: Final = frozenset({401, 403, 407})
_WRONG_URL: Final = frozenset({404, 405, 410, 415, 421, 426, 451})


class WriteConflict(DestinationError):
    """The receiver wants the data again from the beginning of its chunk or batch."""

    solution = "No action needed, unless it happens again and again: then read the server's log."
    retryable = True


class BodyTooLarge(TableWriteFailed):
    """The receiver, or something in front of it, takes smaller bodies only."""

    solution = (
        "A single row is larger than the server accepts: raise its limit (nginx: "
        "client_max_body_size), then retry the table. Set destination.max_body_bytes to that "
        "limit, so that larger bodies needn't be refused first."
    )


def describe(status: int) -> str:
    """The status with the words of the standard; the server's own might repeat a value."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def refusal(status: int, what: str, key: str, schema: TableSchema) -> EtlError:
    """The error for an answer that is neither a success nor transient.

    Args:
        what: the request, for people.
        key: its Idempotency-Key, by which it can be found in the receiver's log.
    """
    reason = f"{what}: the server answered {describe(status)}"
    if status == 412:
        return Superseded(f"{reason}; a newer replicator took over")
    if status == 409:
        return WriteConflict(reason)
    if status == 410 and what.endswith("/rows"):
        return InvalidState(f"{reason}; a newer copy of {schema.name} has begun")
    if status in _NOT_ALLOWED:
        return DestinationError(
            reason, solution="Check destination.token, .headers and .hmac_secret."
        )
    if status < 400:
        return DestinationError(
            reason, solution="Set destination.url to where it leads; redirects aren't followed."
        )
    if status in _WRONG_URL:
        return DestinationError(
            reason,
            solution="Check destination.url, and that the server takes POST below it at rows, "
            "events and tables/{name}/drop-for-copy, also for tables it has not seen.",
        )
    if status == 413:
        return BodyTooLarge(schema.id, f"{reason} for {schema.name}")
    return TableWriteFailed(
        schema.id,
        f"{reason} for {schema.name}",
        solution=f"Find Idempotency-Key {key} in the server's log, fix the cause, "
        "then retry the table.",
    )
