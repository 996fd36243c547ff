"""A Meltano project as a Dagster resource."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from dagster import ConfigurableResource
from pydantic import Field

from etl_dagster.integrations.dagster.resources.env import resolved
from etl_dagster.integrations.dagster_meltano.logs import LogLine
from etl_dagster.integrations.dagster_meltano.project import MeltanoError, MeltanoProject
from etl_dagster.integrations.dagster_meltano.runs import (
    MeltanoRun,
    RunOptions,
    run_meltano,
    state_id,
)


class MeltanoResource(ConfigurableResource[Any]):
    """A Meltano project: where it is, and what its commands get to see.

        MeltanoResource(
            project_dir="/srv/meltano",
            environment="prod",
            env={"TAP_POSTGRES_PASSWORD": EnvVar("SHOP_PASSWORD")},
            state_backend_uri=EnvVar("PROD_STATE_URI"),
        )

    Several of them, for several projects or environments, don't know of each other. Meltano has
    one state backend for all environments of a project; here each resource may name its own.
    """

    project_dir: str = Field(description="The folder that holds meltano.yml.")
    environment: str | None = Field(
        default=None,
        description="Meltano's environment; by default the project's default_environment.",
    )
    executable: str | None = Field(
        default=None,
        description="Meltano's program; by default the one next to this Python, or on PATH.",
    )
    env: dict[str, str] = Field(
        default={}, repr=False, description='Environment variables; secrets as EnvVar("...").'
    )
    state_backend_uri: str | None = Field(
        default=None, repr=False, description="Overrides the project's state backend, as an EnvVar."
    )
    state_id_suffix: str | None = Field(
        default=None, description="The last part of every state ID."
    )
    grace_s: float = Field(
        default=60.0,
        description="How long Meltano may take to end when a run is terminated, seconds.",
    )

    def project(self) -> MeltanoProject:
        """The project, as the functions beneath take it."""
        variables: dict[str, str] = resolved(self.env, "env")
        if self.state_backend_uri is not None:
            uri = resolved(self.state_backend_uri, "state_backend_uri")
            variables["MELTANO_STATE_BACKEND_URI"] = uri
        return MeltanoProject(
            Path(self._folder()).absolute(),
            resolved(self.environment, "environment"),
            resolved(self.executable, "executable"),
            variables,
        )

    def _folder(self) -> str:
        return str(resolved(self.project_dir, "project_dir"))

    def environment_name(self) -> str:
        """The environment that runs are in, found as Meltano finds it.

        Raises:
            MeltanoError: neither resource nor project names one; `meltano run` wants one.
        """
        name = (
            resolved(self.environment, "environment")
            or self.project().environment_of_variables()
            or self._file().get("default_environment")
        )
        if not name or str(name).lower() == "null":
            raise MeltanoError(
                f"no Meltano environment is active in {self._folder()}",
                solution="Give `environment`, or set default_environment in meltano.yml.",
            )
        return str(name)

    def state_id(self, extractor: str, loader: str) -> str:
        """The state ID of the pair, as `meltano run` makes it."""
        environment = self.environment_name()
        suffix = resolved(self.state_id_suffix, "state_id_suffix") or next(
            (
                entry.get("state_id_suffix")
                for entry in self._file().get("environments") or ()
                if isinstance(entry, dict) and entry.get("name") == environment
            ),
            None,
        )
        return state_id(environment, extractor, loader, suffix)

    def run(
        self,
        extractor: str,
        loader: str,
        *,
        run_id: str | None = None,
        full_refresh: bool = False,
        refresh_catalog: bool = False,
        select_filter: Sequence[str] = (),
        on_log: Callable[[LogLine], None] = lambda line: None,
        require: Callable[[], None] = lambda: None,
    ) -> MeltanoRun:
        """`meltano run`, followed to its end; see `run_meltano`."""
        return run_meltano(
            # Named, so that the run has the state ID that `state_id` tells.
            replace(self.project(), environment=self.environment_name()),
            extractor,
            loader,
            RunOptions(
                run_id=run_id,
                full_refresh=full_refresh,
                refresh_catalog=refresh_catalog,
                state_id_suffix=resolved(self.state_id_suffix, "state_id_suffix"),
                select_filter=select_filter,
            ),
            on_log=on_log,
            require=require,
            grace_s=self.grace_s,
        )

    def command(self, *arguments: str) -> str:
        """Any other command of Meltano's; what it wrote to stdout.

        Raises:
            MeltanoError: it failed.
        """
        return self.project().ask(*arguments)

    def _file(self) -> Mapping[str, Any]:
        self.project().require()
        path = Path(self._folder()) / "meltano.yml"
        return _read_file(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _read_file(path: Path, changed_at: int) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MeltanoError(f"{path} can't be read as YAML") from error
    return content if isinstance(content, dict) else {}
