"""`EtlPipelineComponent`: a pipeline as a component of a `dg` project."""

# Dagster reads the annotations, so they must not be strings.
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from dagster import (
    AssetAttributesModel,
    AssetsDefinition,
    AssetSpec,
    ComponentLoadContext,
    Definitions,
    Model,
    ResolutionContext,
    Resolvable,
    Resolver,
    StateBackedComponent,
    scaffold_with,
)
from dagster.components import DefsStateConfig, DefsStateConfigArgs, ResolvedDefsStateConfig
from pydantic import PrivateAttr

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.assets.specs import Looks
from etl_dagster.integrations.dagster.build import build_pipeline
from etl_dagster.integrations.dagster.component.blocks import (
    ChecksBlock,
    SchedulesBlock,
    SensorBlock,
    build_extras,
    build_sync,
    described,
)
from etl_dagster.integrations.dagster.component.scaffolder import EtlPipelineScaffolder
from etl_dagster.integrations.dagster.component.translation import (
    Translation,
    resolve_translation,
)
from etl_dagster.integrations.dagster.phrases import with_solution
from etl_dagster.integrations.dagster.resources.anyway import load_anyway, load_config
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource
from etl_dagster.integrations.dagster.resources.located import resource_of
from etl_dagster.integrations.dagster.sensor.settings import NEW_TABLES
from etl_dagster.integrations.dagster.tables.discovery import Discovery, discover_tables
from etl_dagster.integrations.dagster.tables.kept_tables import tables_from_text, tables_to_text
from etl_dagster.integrations.dagster.tables.storage import source_database
from etl_dagster.integrations.dagster.tables.translator import (
    EtlDagsterTranslator,
    PublishedTableProps,
)

_log = logging.getLogger(__name__)


class StateNotRefreshed(Exception):
    """The source was not reached for its published tables; the message includes the solution."""


def _resolve_pipeline(context: ResolutionContext, path: Any) -> str:
    return str(context.resolve_source_relative_path(str(path)))


@scaffold_with(EtlPipelineScaffolder)
class EtlPipelineComponent(StateBackedComponent, Model, Resolvable):
    """Tables of a Postgres publication as assets, kept in step by a sensor that streams.

    What `build_etl_definitions` makes of an ``etl.yaml``, with schedules and further checks.

        type: etl_dagster.EtlPipelineComponent

        attributes:
          pipeline: etl.yaml
          translation:
            group_name: raw
            key: "raw/{{ table.schema_name }}/{{ table.table_name }}"
          sensor:
            default_status: RUNNING
          schedules:
            reconciliation:
              cron_schedule: "0 3 * * *"

    The component's state is the list of published tables. `dagster dev` and `dg` refresh it when
    they load the definitions; if the source can't be reached, they continue with the last state.
    Elsewhere, ``dg utils refresh-defs-state`` refreshes it, and fails if the source can't be
    reached. Without a state, as right after a deployment, loading asks the source.
    """

    pipeline: Annotated[
        str | Path | EtlResource,
        Resolver(
            _resolve_pipeline,
            model_field_type=str,
            description="The configuration file, relative to this one; or a template that gives a "
            "resource of the pipeline.",
            examples=["etl.yaml"],
        ),
    ]
    translation: Annotated[
        Translation | None,
        Resolver(
            resolve_translation,
            model_field_type=str | AssetAttributesModel,
            inject_before_resolve=False,
            description="Attributes of the assets. Templates know `table` and `spec`.",
        ),
    ] = None
    group_per_schema: Annotated[
        bool, described("Whether each schema of the source has a group of its own.")
    ] = False
    source_assets: Annotated[
        bool, described("Whether the tables of the source are external assets.")
    ] = True
    sensor: Annotated[SensorBlock, described("The sensor that keeps the stream running.")] = (
        SensorBlock()
    )
    schedules: Annotated[SchedulesBlock, described("What runs by the clock.")] = SchedulesBlock()
    checks: Annotated[ChecksBlock, described("Which checks the tables have.")] = ChecksBlock()
    defs_state: ResolvedDefsStateConfig = DefsStateConfigArgs.local_filesystem()
    #: Whether loading continues without an answer of the source.
    _makes_do: bool = PrivateAttr(default=False)

    # -- what subclasses may override --------------------------------------------------------------

    def get_asset_spec(self, table: PublishedTableProps) -> AssetSpec:
        """The asset of one table, as `EtlDagsterTranslator.get_asset_spec` and ``translation``."""
        spec = EtlDagsterTranslator().get_asset_spec(table)
        return spec if self.translation is None else self.translation(spec, table)

    def get_source_spec(self, table: PublishedTableProps) -> AssetSpec | None:
        """The table in the source, as `EtlDagsterTranslator.get_source_spec`."""
        return EtlDagsterTranslator().get_source_spec(table)

    # -- what Dagster calls ------------------------------------------------------------------------

    @property
    def defs_state_config(self) -> DefsStateConfig:
        """Where the state is kept, by default under the pipeline's name."""
        given = self.defs_state
        if self._makes_do:
            given = given.model_copy(update={"refresh_if_dev": False})
        name = f"{type(self).__name__}[{self._name}]"
        return DefsStateConfig.from_args(given, default_key=name)

    def build_defs(self, context: ComponentLoadContext) -> Definitions:
        """The definitions, even if a refresh of the state fails.

        The sensor reports that failure, and it has no ticks in a code location that fails to load.
        """
        try:
            return super().build_defs(context)
        except StateNotRefreshed as error:
            _log.warning("%s The definitions are loaded without a refresh.", error)
            self._makes_do = True
            return super().build_defs(context)

    def write_state_to_path(self, state_path: Path) -> None:
        """Ask the source which tables are published, and keep the answer.

        Raises:
            StateNotRefreshed: the source has not answered; the state stays as it is.
        """
        try:
            load = load_anyway if self._makes_do else load_config
            config = load(self._resource)
            found = discover_tables(config)
            if found.problem is not None and not self._makes_do:
                raise found.problem
        except EtlError as error:
            words = with_solution(error.reason, error.solution)
            raise StateNotRefreshed(f"Pipeline {self._name}: {words}") from error
        source = config.source
        database = found.database or source_database(source)
        text = tables_to_text(source.publication, database, found.tables, found.comments)
        state_path.write_text(text, "utf-8")

    def build_defs_from_state(
        self, context: ComponentLoadContext, state_path: Path | None
    ) -> Definitions:
        """The definitions of the tables in the state; without a state, of those in the source."""
        defs = build_pipeline(
            self._resource,
            Looks(
                _ByComponent(self),
                self.sensor.stale_after_s,
                self.group_per_schema,
                self.source_assets,
            ),
            replace(self.sensor.streaming(), new_tables=self._new_tables),
            found=None if state_path is None else self._read_state(state_path),
            has_checks=self.checks.replication,
            thresholds=self.checks.thresholds,
            more=self._build_extras,
        )
        assets = [asset for asset in defs.assets or () if isinstance(asset, AssetsDefinition)]
        return Definitions.merge(defs, build_sync(self._resource, assets, self.schedules.sync))

    # -- parts -------------------------------------------------------------------------------------

    @cached_property
    def _resource(self) -> EtlResource:
        return resource_of(self.pipeline)

    @cached_property
    def _name(self) -> str:
        return load_anyway(self._resource).pipeline

    @property
    def _new_tables(self) -> str:
        """How a table that is new in the publication gets its asset, for people."""
        if self.defs_state.management_type.value == "LEGACY_CODE_SERVER_SNAPSHOTS":
            # Each load of the code location asks the source.
            return NEW_TABLES
        return f"refresh the state with `dg utils refresh-defs-state`, then {NEW_TABLES}"

    def _read_state(self, path: Path) -> Discovery | None:
        """The tables; None if the state has none of this publication, as after it was changed."""
        publication = load_anyway(self._resource).source.publication
        (tables, comments), database = tables_from_text(path.read_text("utf-8"), publication)
        return Discovery(tables, None, comments, database) if tables else None

    def _build_extras(
        self, resource: EtlResource, assets: Sequence[AssetsDefinition]
    ) -> Definitions:
        return build_extras(resource, assets, self.schedules, self.checks)


class _ByComponent(EtlDagsterTranslator):
    """Asks the component, whose class may be a user's subclass."""

    def __init__(self, component: EtlPipelineComponent) -> None:
        self._component = component

    def get_asset_spec(self, table: PublishedTableProps) -> AssetSpec:
        return self._component.get_asset_spec(table)

    def get_source_spec(self, table: PublishedTableProps) -> AssetSpec | None:
        return self._component.get_source_spec(table)
