"""A Meltano project as a Dagster resource."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dagster import ConfigurableResource
from pydantic import Field

from etl_dagster.integrations.dagster.resources.env import resolved
from etl_dagster.integrations.dagster_meltano.logs import LogLine
from etl_dagster.integrations.dagster_meltano.project import (
    MeltanoError,
    MeltanoProject,
    read_yaml,
)
from etl_dagster.integrations.dagster_meltano.runs import (
    MeltanoRun,
    RunOptions,
    run_meltano,
    state_id,
)


class MeltanoResource(ConfigurableResource[Any]):
    """A Meltano project: where it is, and the environment of its commands.

        MeltanoResource(
            project_dir="/srv/meltano",
            environment="prod",
            env={"TAP_POSTGRES_PASSWORD": EnvVar("SHOP_PASSWORD")},
            state_backend_uri=EnvVar("PROD_STATE_URI"),
        )

    Several resources, for several projects or environments, are independent of each other. Meltano
    has one state backend for all environments of a project; here each resource may name its own.
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
        default=None, repr=False, description="Replaces the project's state backend; an EnvVar."
    )
    state_id_suffix: str | None = Field(
        default=None, description="The last part of every state ID."
    )
    grace_s: float = Field(
        default=60.0,
        description="Seconds that Meltano may take to end when a run is terminated.",
    )

    def project(self) -> MeltanoProject:
        """The project, for the functions that call Meltano."""
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

    def project_of_runs(self) -> MeltanoProject:
        """The same, with the environment that runs are in named.

        What Meltano itself would choose may change between two commands.

        Raises:
            MeltanoError: as `environment_name`.
        """
        return replace(self.project(), environment=self.environment_name())

    def _folder(self) -> str:
        return str(resolved(self.project_dir, "project_dir"))

    def environment_name(self) -> str:
        """The environment that runs are in, found as Meltano finds it.

        Raises:
            MeltanoError: neither the resource nor the project names one; `meltano run` needs one.

        Source: meltano.cli.cli.detect_selected_environment.
        """
        name = (
            resolved(self.environment, "environment")
            or self.project().variable("MELTANO_ENVIRONMENT")
            or self.project().variable("MELTANO_DEFAULT_ENVIRONMENT")
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
        suffix = resolved(self.state_id_suffix, "state_id_suffix") or self._suffix_of(environment)
        return state_id(environment, extractor, loader, suffix)

    def _suffix_of(self, environment: str) -> str | None:
        """The suffix that the project gives the state IDs of this environment.

        Source: meltano.core.plugin.settings_service, which expands variables in it.
        """
        project = self.project()
        project.require()
        for file in project.files():
            for entry in read_yaml(file).get("environments") or ():
                if isinstance(entry, dict) and str(entry.get("name")) == environment:
                    suffix = entry.get("state_id_suffix")
                    more = {"MELTANO_ENVIRONMENT": environment, **(self._file().get("env") or {})}
                    return None if suffix is None else project.expanded(str(suffix), more)
        return None

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
            self.project_of_runs(),
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
        """Run any other command of Meltano; returns what it wrote to stdout.

        Raises:
            MeltanoError: it failed.
        """
        return self.project().ask(*arguments)

    def _file(self) -> Mapping[str, Any]:
        self.project().require()
        return read_yaml(Path(self._folder()) / "meltano.yml")
