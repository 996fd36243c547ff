"""The integration with Meltano, under a short name: its runs as assets, its states as a resource.

    from etl_dagster.meltano import MeltanoStateResource, meltano_assets

The state backend for Meltano's own command line needs no import: Meltano finds it once this
package is installed next to it.
"""

from typing import TYPE_CHECKING, Any

from etl_dagster.integrations import dagster_meltano as _integration
from etl_dagster.integrations.dagster_meltano import __all__ as __all__

if TYPE_CHECKING:
    from etl_dagster.integrations.dagster_meltano import *  # noqa: F403  (it has an __all__)
else:

    def __getattr__(name: str) -> Any:
        return getattr(_integration, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
