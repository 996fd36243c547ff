"""Imports dlt where it is needed, without its telemetry and its log."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from etl_dagster.errors import DestinationError

if TYPE_CHECKING:
    from etl_dagster.destinations.dlt.config import DltDestinationConfig

#: How dlt begins in this process, unless the environment says otherwise: without telemetry, and
#: without messages of its own, which may quote rows and DSNs.
_QUIET: Final = {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "CRITICAL"}
_loading = threading.Lock()


class DltMissing(DestinationError):
    """dlt, or what it needs for this destination, isn't installed."""

    solution = 'Install it: pip install "etl-dagster[dlt]".'


def load_dlt() -> Any:
    """Import the module, and return it.

    Raises:
        DltMissing: it isn't installed.
    """
    with _loading, _quietly():
        try:
            import dlt
            from dlt.common.configuration.container import Container
            from dlt.common.configuration.specs.pluggable_run_context import PluggableRunContext
        except ImportError as error:
            raise DltMissing(
                f"the destination needs dlt, which can't be imported: {error}"
            ) from None
        # If nothing in this process has used dlt yet, its runtime is set up here.
        Container()[PluggableRunContext]
    return dlt


def make_destination(dlt: Any, config: DltDestinationConfig) -> Any:
    """dlt's own description of the destination; nothing is connected yet.

    Raises:
        DestinationError: dlt doesn't know it.
    """
    from dlt.common.destination import Destination
    from dlt.common.destination.exceptions import (
        InvalidDestinationReference,
        UnknownDestinationModule,
    )

    secret = config.credentials
    try:
        return Destination.from_reference(
            config.destination,
            credentials=None if secret is None else secret.get_secret_value(),
            destination_name=config.destination_name,
            naming_convention=config.naming,
            **config.options,
        )
    except (UnknownDestinationModule, InvalidDestinationReference):
        raise DestinationError(
            f"dlt {dlt.__version__} has no destination {config.destination!r}",
            solution="Correct destination.destination; dlt's documentation lists the names.",
        ) from None


@contextmanager
def _quietly() -> Iterator[None]:
    added = {name: value for name, value in _QUIET.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
