"""Turns dlt's failures into errors of ours, without their texts: these may hold rows and DSNs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from etl_dagster.destinations.dlt.library import DltMissing
from etl_dagster.errors import (
    DestinationError,
    DestinationUnreachable,
    EtlError,
    TableWriteFailed,
)
from etl_dagster.model.schema import TableId

#: How to find what an error of ours leaves out.
_REASON: Final = (
    "Find the reason in the destination's own log, or set RUNTIME__LOG_LEVEL=ERROR for dlt to "
    "print it, with the values it concerns."
)


@contextmanager
def translated(what: str, tables: Callable[[], Mapping[str, TableId]] = dict) -> Iterator[None]:
    """Raise what dlt raises as one of our errors.

    Args:
        what: what is attempted, for the message, such as ``load a package``.
        tables: the tables that are written, by their name at the destination.
    """
    try:
        yield
    except EtlError:
        raise
    except Exception as error:
        raise _translated(error, what, tables()) from None


def _translated(error: BaseException, what: str, tables: Mapping[str, TableId]) -> EtlError:
    from dlt.common.configuration.exceptions import ConfigurationException
    from dlt.common.exceptions import MissingDependencyException, TerminalException
    from dlt.load.exceptions import LoadClientJobFailed

    causes = list(_chain(error))
    kinds = " <- ".join(dict.fromkeys(type(cause).__name__ for cause in causes))
    for cause in causes:
        match cause:
            case MissingDependencyException():
                names = " ".join(getattr(cause, "dependencies", ()) or ())
                return DltMissing(
                    f"dlt can't {what} without {names}",
                    solution="Install it: pip install "
                    + " ".join(f'"{name}"' for name in names.split()),
                )
            case ConfigurationException():
                return DestinationError(
                    f"dlt can't {what}: {_missing(cause)}",
                    solution="Set them in dlt's secrets.toml or config.toml, by environment "
                    "variables, or in destination.credentials and destination.options.",
                )
            case LoadClientJobFailed():
                name = cause.job_id.split(".")[0]
                if name in tables:
                    return TableWriteFailed(
                        tables[name],
                        f"the destination refused rows of {name} ({kinds})",
                        solution=f"{_REASON} Then reset the table.",
                    )
    is_final = any(isinstance(cause, TerminalException) for cause in causes[1:])
    if (libpq := _of_libpq(causes)) is not None:
        kinds = f"{kinds}: {libpq}"
    if is_final:
        return DestinationError(f"dlt can't {what}: {kinds}", solution=_REASON)
    return DestinationUnreachable(f"dlt can't {what}: {kinds}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        each = pending.pop(0)
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        # The attributes in which dlt keeps the failure that was raised first.
        pending += [
            getattr(each, name, None)
            for name in ("exception", "client_exception", "inner_exc", "dbapi_exception")
        ]
        pending += [each.__cause__, each.__context__]


def _missing(error: BaseException) -> str:
    """What is wrong with the settings, without their values."""
    fields = getattr(error, "fields", None)
    if not fields:
        return f"its settings are refused with {type(error).__name__}"
    section = getattr(error, "spec_name", "the destination")
    return f"its settings have no {' and no '.join(fields)} ({section})"


def _of_libpq(causes: list[BaseException]) -> str | None:
    """What libpq says of a connection that failed; it names host and user, and no password."""
    for cause in causes:
        if type(cause).__module__ == "psycopg2" and type(cause).__name__ == "OperationalError":
            text = str(cause).strip().splitlines()
            if text and text[0].startswith("connection to server"):
                return text[0]
    return None
