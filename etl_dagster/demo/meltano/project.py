"""Writes the project: its meltano.yml, and the two programs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import yaml

EXTRACTOR, LOADER, ENVIRONMENT = "tap-fuel", "target-lines", "demo"
#: Holds the URI of the state store, where the pipeline's own positions are, too.
STATE_URI_VARIABLE = "ETL_DAGSTER_DEMO_STATE_URI"
_HEADING = "# The demo's Meltano project. Each `etl-dagster demo` overwrites it.\n"


def write_project(folder: Path) -> None:
    """Write it into `folder`; what its runs have left there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "output").mkdir(exist_ok=True)
    content = {
        "default_environment": ENVIRONMENT,
        "project_id": "b0a3c0de-0000-4000-8000-666c69676874",
        "send_anonymous_usage_stats": False,
        "environments": [{"name": ENVIRONMENT}],
        "state_backend": {"uri": f"${STATE_URI_VARIABLE}"},
        "plugins": {
            "extractors": [
                {
                    "name": EXTRACTOR,
                    "namespace": "tap_fuel",
                    "executable": str(_program(folder, EXTRACTOR, "tap")),
                    "capabilities": ["catalog", "discover", "state"],
                }
            ],
            "loaders": [
                {
                    "name": LOADER,
                    "namespace": "target_lines",
                    "executable": str(_program(folder, LOADER, "target")),
                    "settings": [{"name": "folder"}],
                    "config": {"folder": str(folder / "output")},
                }
            ],
        },
    }
    text = _HEADING + yaml.safe_dump(content, sort_keys=False)
    (folder / "meltano.yml").write_text(text, "utf-8")


def _program(folder: Path, name: str, module: str) -> Path:
    """A script, because a plugin is one word; its interpreter's path may hold spaces."""
    path = folder / name
    command = f'exec {shlex.quote(sys.executable)} -m {__package__}.{module} "$@"'
    path.write_text(f"#!/bin/sh\n{command}\n", "utf-8")
    path.chmod(0o755)
    return path
