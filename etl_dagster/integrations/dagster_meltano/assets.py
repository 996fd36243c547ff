"""An ordinary `meltano run` as assets: one for each stream of the tap."""

# Dagster reads the annotations of an asset's function, so they must not be strings.
import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    Config,
    Failure,
    MaterializeResult,
    MetadataValue,
    RetryPolicy,
    multi_asset,
    with_resources,
)
from pydantic import Field

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.names import escaped, step_name
from etl_dagster.integrations.dagster.tables.metadata import state_tags
from etl_dagster.integrations.dagster.tables.translator import STATE, STATE_ID
from etl_dagster.integrations.dagster_meltano.catalog import (
    Stream,
    load_streams,
    parse_catalog,
    refresh_streams,
)
from etl_dagster.integrations.dagster_meltano.logs import LogLine, StreamCount
from etl_dagster.integrations.dagster_meltano.project import MeltanoError
from etl_dagster.integrations.dagster_meltano.resources import MeltanoResource
from etl_dagster.integrations.dagster_meltano.runs import MeltanoRun
from etl_dagster.integrations.dagster_meltano.state import MeltanoStateResource
from etl_dagster.integrations.dagster_meltano.translator import (
    MeltanoDagsterTranslator,
    MeltanoStreamProps,
)

RUN_ID = "meltano/run_id"
STATE_BEFORE = "meltano/state_before"
#: A run that wrote more often is not searched to its beginning.
_VERSIONS_LOOKED_AT = 100


class MeltanoRunConfig(Config):
    """What a user may choose in the launchpad, for one run."""

    full_refresh: bool = Field(
        default=False, description="Ignore the state: extract from the beginning."
    )
    refresh_catalog: bool = Field(
        default=False, description="Ask the tap again which streams it has."
    )


def meltano_assets(
    meltano: MeltanoResource,
    extractor: str,
    loader: str,
    *,
    streams: Sequence[str | Stream] | None = None,
    catalog: str | Path | Mapping[str, Any] | None = None,
    state: MeltanoStateResource | None = None,
    translator: MeltanoDagsterTranslator | None = None,
    name: str | None = None,
    retry_policy: RetryPolicy | None = None,
    pool: str | None = None,
    lease_wait_s: float = 60.0,
) -> AssetsDefinition:
    """The streams of an extractor as assets; materializing them is one `meltano run`.

        defs = Definitions(assets=[meltano_assets(project, "tap-postgres", "target-duckdb")])

    Dagster's run ID is Meltano's. Meltano's log lines come at their level. A run that is
    terminated gets SIGTERM, so its lock and its state are left in order. Some of the assets may be
    materialized alone: the run then selects their streams, and keeps the others' bookmarks.

    Args:
        streams: the tap's streams, so that the tap is not asked.
        catalog: the same, as a Singer catalog: a file or its content. Without either, the tap is
            asked once, and again after a file of the project has changed. Its answer is kept in the
            project.
        state: where the state is; by default where the project's own commands find it.
        name: of the step; by default made of the pair's names.
        retry_policy: Dagster's; it also applies after a run was terminated.
        pool: the pool of Dagster in which the step takes a slot.
        lease_wait_s: how long a second run of the same state ID waits for the first.

    Raises:
        CatalogUnknown: the streams aren't known, and the tap can't be asked.
        MeltanoError: the project can't be used.
    """
    # EnvVars are read here, too: the tap may need them to list its streams.
    with meltano.process_config_and_initialize_cm() as loaded:
        known = _streams(loaded, extractor, streams, catalog)
        environment = loaded.environment_name()
        pair_state_id = loaded.state_id(extractor, loader)
    translator = translator or MeltanoDagsterTranslator()
    name = name or _step_name(extractor, loader)
    specs = {
        stream.id: translator.get_asset_spec(
            MeltanoStreamProps(extractor, loader, environment, stream, pair_state_id)
        )
        for stream in known
    }
    specs = distinct_specs(specs)
    stream_of = {spec.key: stream_id for stream_id, spec in specs.items()}
    # Several projects have several resources, each by the name of its step.
    meltano_key, state_key = f"{name}__meltano", f"{name}__state"

    @multi_asset(
        specs=list(specs.values()),
        name=name,
        can_subset=True,
        retry_policy=retry_policy,
        pool=pool,
        required_resource_keys={meltano_key, state_key},
    )
    def run_pair(
        context: AssetExecutionContext, config: MeltanoRunConfig
    ) -> Iterator[MaterializeResult[Any]]:
        chosen = {key: stream_of[key] for key in context.selected_asset_keys}
        run = _Run(
            context,
            getattr(context.resources, meltano_key),
            getattr(context.resources, state_key),
            extractor,
            loader,
        )
        is_subset = len(chosen) < len(stream_of)
        try:
            results = run.materialize(
                sorted(chosen.values()) if is_subset else (), config, lease_wait_s
            )
        except EtlError as error:
            raise Failure(
                description=f"{error.reason}\n\nWhat to do: {error.solution}",
                metadata={"solution": error.solution, STATE_ID: run.state_id},
            ) from error
        for key, stream in chosen.items():
            yield MaterializeResult(asset_key=key, metadata=results.metadata(stream))

    (assets,) = with_resources(
        [run_pair],
        {
            meltano_key: meltano,
            state_key: state or MeltanoStateResource.of_project(meltano),
        },
    )
    return assets


def _streams(
    meltano: MeltanoResource,
    extractor: str,
    streams: Sequence[str | Stream] | None,
    catalog: str | Path | Mapping[str, Any] | None,
) -> Sequence[Stream]:
    if streams is not None:
        known = [Stream(item) if isinstance(item, str) else item for item in streams]
    elif isinstance(catalog, Mapping):
        known = list(parse_catalog(catalog))
    elif catalog is not None:
        try:
            known = list(parse_catalog(json.loads(Path(catalog).read_text("utf-8"))))
        except (OSError, ValueError) as error:
            raise MeltanoError(f"the catalog {catalog} can't be read") from error
    else:
        known = list(load_streams(meltano.project_of_runs(), extractor))
    if not known:
        raise MeltanoError(
            f"{extractor} has no selected stream",
            solution=f"Select some: meltano select {extractor} '*' '*'",
        )
    return known


def _step_name(extractor: str, loader: str) -> str:
    """A name for the step of the pair; no two pairs get the same."""
    is_plain = all(re.fullmatch(r"[A-Za-z0-9]+(-+[A-Za-z0-9]+)*", p) for p in (extractor, loader))
    if is_plain and "-to-" not in f"{extractor} {loader}":
        return f"{extractor}_to_{loader}".replace("-", "_")
    return step_name("meltano", [extractor, loader])


def distinct_specs(specs: Mapping[str, AssetSpec]) -> dict[str, AssetSpec]:
    """The specs of a tap's streams, by stream, with keys that one step can tell apart.

    Dagster derives the names of a step's outputs from the keys, in which ``-`` and ``.`` become
    ``_``. Of several streams that would share a name, one keeps its key: that whose key ends with
    its own name as it is, or else the first in alphabetical order.
    """
    taken: set[str] = set()
    distinct: dict[str, AssetSpec] = {}
    for stream in sorted(specs, key=lambda stream: (specs[stream].key.path[-1] != stream, stream)):
        spec = specs[stream]
        if spec.key.to_python_identifier() in taken:
            path = [*spec.key.path[:-1], escaped(stream)]
            if AssetKey(path).to_python_identifier() in taken:
                path[-1] = step_name("stream", [stream, ""])
            spec = spec.replace_attributes(key=path)
        taken.add(spec.key.to_python_identifier())
        distinct[stream] = spec
    return {stream: distinct[stream] for stream in specs}


class _Results:
    """What the assets of one run show."""

    def __init__(
        self,
        state_id: str,
        run: MeltanoRun,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
        *,
        is_full_refresh: bool,
    ) -> None:
        self._state_id = state_id
        self._run = run
        self._before = before
        self._after = after
        self._is_full_refresh = is_full_refresh

    def metadata(self, stream: str) -> dict[str, Any]:
        metadata: dict[str, Any] = {
            STATE_ID: self._state_id,
            "full_refresh": self._is_full_refresh,
        }
        if self._run.run_id is not None:
            metadata[RUN_ID] = self._run.run_id
        for label, state in ((STATE_BEFORE, self._before), (STATE, self._after)):
            bookmark = bookmark_of(state, stream)
            if bookmark is not None:
                metadata[label] = MetadataValue.json(bookmark)
        count = self._run.streams.get(stream, StreamCount())
        if count.records is not None:
            metadata["records_extracted"] = count.records
        if count.duration_s is not None:
            metadata["stream_seconds"] = round(count.duration_s, 3)
        if self._run.duration_s is not None:
            metadata["run_seconds"] = self._run.duration_s
        if self._run.warnings:
            metadata["warnings"] = self._run.warnings
        return metadata


def bookmark_of(state: Mapping[str, Any] | None, stream: str) -> dict[str, Any] | None:
    """The state with one stream's bookmark only; None where it has none."""
    bookmarks = ((state or {}).get("singer_state") or {}).get("bookmarks") or {}
    if stream not in bookmarks:
        return None
    return {"singer_state": {"bookmarks": {stream: bookmarks[stream]}}}


class _Run:
    """One step's `meltano run`."""

    def __init__(
        self,
        context: AssetExecutionContext,
        meltano: MeltanoResource,
        state: MeltanoStateResource,
        extractor: str,
        loader: str,
    ) -> None:
        self._context = context
        self._meltano = meltano
        self._state = state
        self._extractor = extractor
        self._loader = loader
        self.state_id = meltano.state_id(extractor, loader)

    def materialize(
        self, select_filter: Sequence[str], config: MeltanoRunConfig, lease_wait_s: float
    ) -> _Results:
        run_id = self._context.run.run_id
        self._context.instance.add_run_tags(run_id, {STATE_ID: self.state_id})
        with contextlib.ExitStack() as stack:
            require: Callable[[], None] = _nothing
            if self._state.is_postgres:
                lease = self._state.run_lease(self.state_id, wait_s=lease_wait_s)
                require = stack.enter_context(lease).require_held
            else:
                self._context.log.info(
                    "This state backend has no run leases: runs of one state ID on several "
                    "machines exclude each other only if they share Meltano's system database."
                )
            before = self._state.get(self.state_id)
            version = self._version()
            run = self._meltano.run(
                self._extractor,
                self._loader,
                run_id=run_id,
                full_refresh=config.full_refresh,
                refresh_catalog=config.refresh_catalog,
                select_filter=select_filter,
                on_log=self._log,
                require=require,
            )
            after = self._state.get(self.state_id)
            self._warn_of_others(version)
            self._context.instance.add_run_tags(run_id, state_tags(after))
        if config.refresh_catalog:
            self._refresh_streams()
        return _Results(self.state_id, run, before, after, is_full_refresh=config.full_refresh)

    def _version(self) -> int:
        """The newest version of the state; 0 where there is none, or no history."""
        kept = self._state.history(self.state_id, limit=1) if self._state.is_postgres else ()
        return kept[0].version if kept else 0

    def _warn_of_others(self, version: int) -> None:
        """Warn of changes by others during the run, such as `meltano state set`.

        The run has overwritten them.
        """
        if not self._state.is_postgres:
            return
        for kept in self._state.history(self.state_id, limit=_VERSIONS_LOOKED_AT):
            if kept.version > version and kept.run_id != self._context.run.run_id:
                self._context.log.warning(
                    f"During this run {kept.writer or 'another process'} changed the state of "
                    f"{self.state_id} ({kept.operation}, version {kept.version} of its history). "
                    "What the run wrote later replaced that. `etl-dagster state history "
                    f"{self.state_id}` shows all versions, and `state restore` brings one back."
                )

    def _refresh_streams(self) -> None:
        """Ask the tap for its streams, for the next load of the definitions.

        A failure is only logged: the run has succeeded.
        """
        try:
            refresh_streams(self._meltano.project_of_runs(), self._extractor)
        except EtlError as error:
            self._context.log.warning(f"{error.reason}. What to do: {error.solution}")

    def _log(self, line: LogLine) -> None:
        # Each line is an event in Dagster's database; metrics end up in the metadata.
        level = logging.DEBUG if line.metric is not None else line.level
        self._context.log.log(level, line.text)


def _nothing() -> None:
    """No lease, nothing to hold."""
