"""What `dg scaffold defs etl_dagster.EtlPipelineComponent NAME` writes."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dagster import Scaffolder, ScaffoldRequest, scaffold_component
from pydantic import BaseModel, Field

from etl_dagster.config.names import LONGEST, is_slug

_CONFIG = """\
# A pipeline of etl-dagster: one Postgres publication to one destination. `etl-dagster doctor`
# checks it; `etl-dagster init -o all.yaml` writes a file with every setting.
#
# ${{NAME}} is an environment variable, ${{NAME:-other}} has a default.

# Part of slot names and state IDs, so don't change it later.
pipeline: {pipeline}

source:
  # postgresql://user:password@host/database
  dsn: ${{{variable}}}
  # CREATE PUBLICATION {publication} FOR TABLE public.customers, public.orders;
  publication: {publication}

destination:
  type: duckdb
  # Relative to this file.
  path: {path}
"""
_PYTHON = """\
from pathlib import Path

import dagster as dg
from etl_dagster import EtlPipelineComponent


@dg.component_instance
def load(context: dg.ComponentLoadContext) -> EtlPipelineComponent:
    return EtlPipelineComponent(pipeline=Path(__file__).parent / "{pipeline}")
"""


class PipelineParams(BaseModel):
    """Options of the scaffold."""

    config: str | None = Field(
        default=None,
        description="An existing etl.yaml. By default, one is written next to the defs.yaml.",
    )
    publication: str = Field(default="etl_pub", description="The publication that is replicated.")


class EtlPipelineScaffolder(Scaffolder[PipelineParams]):
    """Writes a ``defs.yaml`` or ``component.py`` that works, and the pipeline's ``etl.yaml``."""

    @classmethod
    def get_scaffold_params(cls) -> type[PipelineParams]:
        return PipelineParams

    def scaffold(self, request: ScaffoldRequest[PipelineParams]) -> None:
        folder, given = Path(request.target_path), request.params.config
        if request.append:
            folder = folder.parent
        if given is None:
            config = folder / "etl.yaml"
            if not config.exists():
                config.write_text(_config_text(request, folder), "utf-8")
        else:
            config = Path(given).absolute()
        pipeline = Path(os.path.relpath(config, folder)).as_posix()
        if request.scaffold_format == "python":
            (folder / "component.py").write_text(_PYTHON.format(pipeline=pipeline), "utf-8")
        else:
            scaffold_component(request, {"pipeline": pipeline})


def pipeline_name(folder: str) -> str:
    """A pipeline name that the configuration accepts, from the name of a folder.

    >>> pipeline_name("Web-Shop"), pipeline_name("2024_sales")
    ('web_shop', 'p_2024_sales')
    """
    name = re.sub(r"[^a-z0-9_]", "_", folder.lower())
    if not is_slug(name):
        name = f"p_{name.lstrip('_')}"
    return name[:LONGEST].rstrip("_")


def _config_text(request: ScaffoldRequest[PipelineParams], folder: Path) -> str:
    name = pipeline_name(folder.name)
    root = request.project_root or folder
    return _CONFIG.format(
        pipeline=name,
        variable=f"{name.upper()}_DSN",
        publication=request.params.publication,
        # Next to the project, not among its code.
        path=(Path(os.path.relpath(root, folder)) / f"{name}.duckdb").as_posix(),
    )
