"""The integration with Dagster, under a short name.

from etl_dagster.dagster import build_etl_definitions

defs = build_etl_definitions("etl.yaml")
"""

from typing import TYPE_CHECKING, Any

from etl_dagster.integrations import dagster as _integration
from etl_dagster.integrations.dagster import __all__ as __all__

if TYPE_CHECKING:
    from etl_dagster.integrations.dagster import *  # noqa: F403  (it has an __all__)
else:

    def __getattr__(name: str) -> Any:
        return getattr(_integration, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
