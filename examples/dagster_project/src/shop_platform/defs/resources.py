import os
from pathlib import Path

import dagster as dg

from shop_platform.marts import Marts

PROJECT = Path(__file__).parents[3]


@dg.definitions
def resources() -> dg.Definitions:
    folder = os.environ.get("MARTS_FOLDER", str(PROJECT / "marts"))
    return dg.Definitions(resources={"marts": Marts(folder=folder)})
