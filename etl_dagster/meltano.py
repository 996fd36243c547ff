"""The integration with Meltano, under a short name: its runs as assets, its states as a resource.

    from etl_dagster.meltano import MeltanoStateResource, meltano_assets

The state backend for Meltano's own command line needs no import: Meltano finds it once this
package is installed next to it.
"""

from etl_dagster.integrations.dagster_meltano import *  # noqa: F403
from etl_dagster.integrations.dagster_meltano import __all__ as __all__
