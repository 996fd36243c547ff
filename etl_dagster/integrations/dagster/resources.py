"""The parts of a pipeline as Dagster resources."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetExecutionContext,
    ConfigurableResource,
    MaterializeResult,
    ResourceDependency,
)
from pydantic import Field, PrivateAttr, create_model

from etl_dagster.config import PipelineConfig, SourceConfig, load_config, parse_config
from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
from etl_dagster.errors import ConfigError, InvalidState
from etl_dagster.integrations.dagster.env import marked, resolved
from etl_dagster.integrations.dagster.sections import (
    EtlDestinationResource,
    EtlStateStoreResource,
    SectionResource,
    destination_resource,
    of_model,
    state_store_resource,
)
from etl_dagster.integrations.dagster.timing import DAGSTER_TIMING, DagsterTiming
from etl_dagster.model.states import TableState, state_name
from etl_dagster.table_name import TableName

if TYPE_CHECKING:
    import pyarrow as pa

    from etl_dagster.model.destination import Destination
    from etl_dagster.model.stores import CoordinatingStore


if TYPE_CHECKING:
    # What type checkers and editors see of the fields that are made from the models; a test
    # compares both.

    class _SourceFields(SectionResource):
        publication: str
        dsn: str | None = None
        host: str | None = None
        port: int | None = None
        user: str | None = None
        password: str | None = None
        database: str | None = None
        sslmode: str | None = None
        sslrootcert: str | None = None
        sslcert: str | None = None
        sslkey: str | None = None
        connect_timeout_s: int = 10
        keepalive_idle_s: int | None = None
        keepalive_interval_s: int | None = None
        keepalive_count: int | None = None
        receiver_timeout_s: float = 60.0
        streaming: str = "auto"
        failover: bool = False
        standby: bool = False
        primary_dsn: str | None = None
        max_retained_wal: int = 1024**3
        heartbeat_s: float = 30.0

    class _PostgresStoreFields(SectionResource, EtlStateStoreResource):
        dsn: str | None = None
        session_dsn: str | None = None
        schema_name: str = "etl"

    class _DuckDBFields(SectionResource, EtlDestinationResource):
        path: str
        memory_limit: str = "256MB"
        lock_timeout_s: float = 60.0
        changelog: bool = False

    class _DuckLakeFields(SectionResource, EtlDestinationResource):
        catalog: str
        data_path: str
        metadata_schema: str | None = None
        inline_rows: int = 1000
        memory_limit: str = "512MB"
        lock_timeout_s: float = 60.0
        changelog: bool = False
        s3_key_id: str | None = None
        s3_secret: str | None = None
        s3_session_token: str | None = None
        s3_region: str | None = None
        s3_endpoint: str | None = None
        s3_url_style: str = "vhost"
        s3_use_ssl: bool = True

    class _PostgresFields(SectionResource, EtlDestinationResource):
        dsn: str
        user_types: str = "text"
        changelog: bool = False

    class _HttpFields(SectionResource, EtlDestinationResource):
        url: str
        token: str | None = None
        headers: dict[str, Any] = Field({})
        hmac_secret: str | None = None
        format: int = 2
        gzip: bool = False
        timeout_s: float = 30.0
        max_attempts: int = 4
        max_connections: int = 8
        max_body_bytes: int = 4194304
        verify: bool = True
        ca_file: str | None = None

    class _SingerFields(SectionResource, EtlDestinationResource):
        target: str
        config: dict[str, Any] = Field({})
        config_file: str | None = None
        project: str | None = None
        environment: str | None = None
        env: dict[str, Any] = Field({})
        stream: str = "{schema}-{table}"
        activate_version: bool | None = None
        unchanged: str = "refuse"
        json_values: str = "text"
        decimals: str = "string"
        flush_after_seconds: float = 0
        stalled_after_seconds: float = 600
        stderr_file: str | None = None

    class _DltFields(SectionResource, EtlDestinationResource):
        destination: str
        destination_name: str | None = None
        dataset: str = "{schema}"
        credentials: str | None = None
        options: dict[str, Any] = Field({})
        table_format: str | None = None
        naming: str = "sql_ci_v1"
        work_folder: str | None = None

else:
    _SourceFields = of_model(SourceConfig, None, "source")
    _PostgresStoreFields = state_store_resource("postgres")
    _DuckDBFields = destination_resource("duckdb")
    _DuckLakeFields = destination_resource("ducklake")
    _HttpFields = destination_resource("http")
    _PostgresFields = destination_resource("postgres")
    _SingerFields = destination_resource("singer")
    _DltFields = destination_resource("dlt")


class PostgresSourceResource(_SourceFields):
    """The Postgres that is replicated: a DSN, or its parts; parts win over the DSN.

    Give secrets as ``EnvVar("NAME")``: they are read when used, and hidden in the UI.
    """


class PostgresStateStoreResource(_PostgresStoreFields):
    """A state store in Postgres; without a DSN in the source itself."""

    @contextlib.contextmanager
    def get_store(self, pipeline: str) -> "Iterator[CoordinatingStore]":
        """The store of one pipeline; needs the resource's own DSN.

        Raises:
            ConfigError: there is no DSN.
        """
        from etl_dagster.stores.postgres import PostgresStore

        given = self.settings()
        if "dsn" not in given:
            raise ConfigError(["dsn: needed to open the store by itself"], origin="state store")
        store = PostgresStore(
            given["dsn"],
            pipeline,
            schema=given["schema_name"],
            session_dsn=given.get("session_dsn"),
        )
        try:
            yield store
        finally:
            store.close()


class StateStoreResource(EtlStateStoreResource):
    """A state store of any type that is installed; see `etl_dagster.kinds`.

    `state_store_resource` makes one with the type's own fields.
    """

    type: str = Field(description="As in etl.yaml.")
    config: dict[str, Any] = Field(
        {}, description="The rest of the section; secrets as EnvVar, at any depth."
    )

    def __init__(self, **values: Any) -> None:
        super().__init__(**_with_marked(values, "config"))

    def settings(self) -> dict[str, Any]:
        config: dict[str, Any] = resolved(self.config, "state_store")
        return config | {"type": resolved(self.type, "state_store.type")}


class DuckDBDestinationResource(_DuckDBFields):
    """One DuckDB file, shared by the replicator, the copies and readers."""

    def get_destination(self) -> "Destination":
        """The destination as the engine writes to it; not started."""
        from etl_dagster.destinations.duckdb import DuckDBDestination

        section = self._section()
        return DuckDBDestination(section.path, **section.model_dump(exclude={"type", "path"}))

    def query(self, sql: str) -> "pa.Table":
        """Read from the file, between two writes of the pipeline."""
        from etl_dagster.destinations.duckdb import query

        section = self._section()
        return query(section.path, sql, lock_timeout_s=section.lock_timeout_s)

    def _section(self) -> DuckDBDestinationConfig:
        return DuckDBDestinationConfig.model_validate(self.settings())


class DuckLakeDestinationResource(_DuckLakeFields):
    """A DuckLake: its catalog in Postgres, or in a file, and Parquet files in a folder or in S3."""

    def query(self, sql: str) -> "pa.Table":
        """Read from the lake, which is called ``lake`` in the query."""
        from etl_dagster.destinations.ducklake.reading import query

        return query(DuckLakeDestinationConfig.model_validate(self.settings()), sql)


class PostgresDestinationResource(_PostgresFields):
    """A database of another Postgres, or another database of the source's server."""


class HttpDestinationResource(_HttpFields):
    """A server that takes rows and changes as JSON; it may be several behind one address."""


class SingerDestinationResource(_SingerFields):
    """A Singer target, run as a process: a program of its own, or a loader of a Meltano project."""


class DltDestinationResource(_DltFields):
    """Any destination of dlt; needs the extra ``dlt``."""


class DestinationResource(EtlDestinationResource):
    """A destination of any type that is installed; see `etl_dagster.kinds`.

    `destination_resource` makes one with the type's own fields.
    """

    type: str = Field(description="As in etl.yaml.")
    config: dict[str, Any] = Field(
        {}, description="The rest of the section; secrets as EnvVar, at any depth."
    )

    def __init__(self, **values: Any) -> None:
        super().__init__(**_with_marked(values, "config"))

    def settings(self) -> dict[str, Any]:
        config: dict[str, Any] = resolved(self.config, "destination")
        return config | {"type": resolved(self.type, "destination.type")}


class EtlResource(ConfigurableResource[Any], ABC):
    """A pipeline: its configuration, its state, its destination.

    What an asset's function asks for; `EtlConfigFileResource` and `EtlPipelineResource` are ones.
    Nothing stays open between two calls, so every tick and every step may have its own.
    """

    @abstractmethod
    def load_config(self) -> PipelineConfig:
        """The configuration as it is now, secrets included.

        Raises:
            ConfigError: it holds mistakes; all of them are listed.
        """

    def of_destination(self, name: str) -> "EtlResource":
        """The same for one of the pipeline's destinations.

        Raises:
            ConfigError: this kind of resource can't have several.
        """
        raise ConfigError(
            [f"destinations: {type(self).__name__} has no way to choose {name!r}; use a file"]
        )

    def of_shard(self, name: str) -> "EtlResource":
        """The same for one of the pipeline's shards.

        Raises:
            ConfigError: this kind of resource can't have several.
        """
        raise ConfigError(
            [f"shards: {type(self).__name__} has no way to choose {name!r}; use a file"]
        )

    @contextlib.contextmanager
    def get_store(self) -> "Iterator[CoordinatingStore]":
        """The pipeline's state store."""
        from etl_dagster.assembly import opened_store

        with opened_store(self.load_config()) as store:
            yield store

    def get_destination(self) -> "Destination":
        """The destination as the engine writes to it; not started."""
        from etl_dagster.assembly import build_destination

        return build_destination(self.load_config())

    def get_timing(self) -> DagsterTiming:
        """How long its runs and its sensor wait for each other; not a setting."""
        return DAGSTER_TIMING

    def copy(  # type: ignore[override]  # pydantic's own is deprecated
        self, context: AssetExecutionContext, table: str
    ) -> MaterializeResult[Any]:
        """Copy a table in the body of its asset, up to the hand-over to the stream.

            @etl_assets(pipeline="etl.yaml")
            def shop_tables(context: AssetExecutionContext, shop: EtlResource):
                yield shop.copy(context, "public.orders")

        It is what the assets of `build_etl_definitions` do: a copy that was begun is resumed, a
        table that is streamed already is copied again, unless the sensor asked for the run.

        Args:
            context: of the step; one of its assets is the table's.
            table: ``schema.table``, of the source.

        Raises:
            RetryRequested: waiting may cure what went wrong.
            Failure: with what to do about it.
        """
        from etl_dagster.integrations.dagster.assets import copy_one_table, key_of_table

        return copy_one_table(context, self, table, key_of_table(context, table))

    def copy_selected(self, context: AssetExecutionContext) -> Iterator[MaterializeResult[Any]]:
        """As `copy`, for each table that the run has selected; one that fails keeps no other."""
        from etl_dagster.integrations.dagster.assets import copy_selected_tables

        yield from copy_selected_tables(context, self)

    def table_states(self) -> Mapping[str, TableState]:
        """The state of every table, by ``schema.table``; tables never copied are missing."""
        with self.get_store() as store:
            names = _names(store)
            return {
                names[table_id]: state
                for table_id, state in store.get_table_replication_states().items()
                if table_id in names
            }

    def reset_table(self, name: str) -> str:
        """Ask for a new copy of ``schema.table``; the name of its state before.

        A part of the name with a dot is quoted as in SQL: ``"a.b".c``.

        Raises:
            InvalidState: the pipeline doesn't know the table.
        """
        from etl_dagster.runtime.copying.pausing import ask_for_copies
        from etl_dagster.runtime.table_ids import find_table_ids

        unknown = InvalidState(
            f"the pipeline has no table {name!r}", solution="Write it as schema.table."
        )
        try:
            wanted = str(TableName.parse(name))
        except ValueError as error:
            raise unknown from error
        with self.get_store() as store:
            table_id = find_table_ids(self.load_config(), store).get(wanted)
            state = None if table_id is None else store.get_table_replication_state(table_id)
            if table_id is None or state is None:
                raise unknown
            ask_for_copies(store, [table_id])
            store.request_copy(table_id)
            return state_name(state)

    def query(self, sql: str) -> "pa.Table":
        """Read from the destination, where that is DuckDB or DuckLake.

        Raises:
            ConfigError: it is another one.
        """
        destination = self.load_config().destination
        if isinstance(destination, DuckLakeDestinationConfig):
            from etl_dagster.destinations.ducklake.reading import query as query_lake

            return query_lake(destination, sql)
        if not isinstance(destination, DuckDBDestinationConfig):
            raise ConfigError(["destination.type: only duckdb and ducklake can be queried"])
        from etl_dagster.destinations.duckdb import query

        return query(destination.path, sql, lock_timeout_s=destination.lock_timeout_s)


class EtlConfigFileResource(EtlResource):
    """A pipeline configured by a YAML file, which is read at each use.

    So Dagster never sees the secrets in it.
    """

    path: str = Field("etl.yaml", description="The configuration file.")
    destination: str | None = Field(
        default=None, description="Of several destinations, the name of the one that is meant."
    )
    shard: str | None = Field(
        default=None,
        description="Of several shards, the one that is meant; the first is called as the "
        "pipeline.",
    )

    def load_config(self) -> PipelineConfig:
        config = load_config(resolved(self.path, "path"))
        return _one_of(config, self.destination or self.shard, str(self.path))

    def of_destination(self, name: str) -> EtlResource:
        return EtlConfigFileResource(path=self.path, destination=name)

    def of_shard(self, name: str) -> EtlResource:
        return EtlConfigFileResource(path=self.path, shard=name)


#: For type checkers, to which a dependency is not its resource.
_NOT_GIVEN: Any = None


class _Destinations(ConfigurableResource[Any]):
    """Several destinations, each a field of its own: Dagster looks for resources in fields only."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "_Destinations":
        fields: dict[str, Any] = dict.fromkeys(
            given, (ResourceDependency[EtlDestinationResource], ...)
        )
        return create_model("EtlDestinations", __base__=cls, **fields)(**given)

    def settings(self) -> dict[str, Any]:
        """The section ``destinations`` of a configuration."""
        return {name: getattr(self, name).settings() for name in type(self).model_fields}


class EtlPipelineResource(EtlResource):
    """A pipeline put together from resources.

    It has one `destination`, or `destinations`: a dictionary of several, each under a name.
    """

    pipeline: str = Field(description="Its name: part of slot names and state IDs.")
    environment: str = "dev"
    source: ResourceDependency[PostgresSourceResource]
    state_store: ResourceDependency[EtlStateStoreResource]
    destination: ResourceDependency[EtlDestinationResource | None] = _NOT_GIVEN
    destinations: ResourceDependency[_Destinations | None] = _NOT_GIVEN
    one_destination: str | None = Field(
        default=None, description="Of several destinations, the name of the one that is meant."
    )
    one_shard: str | None = Field(
        default=None,
        description="Of several shards, the one that is meant; the first is called as the "
        "pipeline.",
    )
    settings: dict[str, Any] = Field(
        {},
        description="Further sections, as in etl.yaml: batch, copy, fan_out, retry, tables, "
        "meltano; secrets as EnvVar, at any depth.",
    )
    _given: dict[str, Any] = PrivateAttr()

    def __init__(self, **values: Any) -> None:
        several = values.get("destinations")
        if isinstance(several, Mapping):
            values["destinations"] = _Destinations.of(several)
        super().__init__(**_with_marked(values, "settings"))
        self._given = values

    def of_destination(self, name: str) -> EtlResource:
        return EtlPipelineResource(**self._given | {"one_destination": name})

    def of_shard(self, name: str) -> EtlResource:
        return EtlPipelineResource(**self._given | {"one_shard": name})

    def load_config(self) -> PipelineConfig:
        sections: dict[str, Any] = {
            "pipeline": resolved(self.pipeline, "pipeline"),
            "environment": resolved(self.environment, "environment"),
            "source": self.source.settings(),
            "state_store": self.state_store.settings(),
        }
        if self.destination is None and self.destinations is None:
            raise ConfigError(
                ["destination: is required; or `destinations`, each under a name"],
                origin=sections["pipeline"],
            )
        if self.destination is not None:
            sections["destination"] = self.destination.settings()
        if self.destinations is not None:
            sections["destinations"] = self.destinations.settings()
        # EnvVar has done what ${NAME} does in a file; a password may well hold a dollar sign.
        settings: dict[str, Any] = resolved(self.settings, "settings")
        config = parse_config(_escaped(settings | sections), {}, origin=sections["pipeline"])
        return _one_of(config, self.one_destination or self.one_shard, sections["pipeline"])


def _one_of(config: PipelineConfig, name: str | None, origin: str) -> PipelineConfig:
    """The configuration of one destination or shard where one is named."""
    if name is None:
        return config
    members = config.members()
    if name not in members:
        section = "shards" if config.shards else "destinations"
        known = ", ".join(members) or "none"
        raise ConfigError([f"{section}: there is no {name!r}; there are: {known}"], origin=origin)
    return members[name]


def _with_marked(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields of a resource; Dagster resolves no `EnvVar` inside of this one."""
    return dict(values) | ({name: marked(values[name])} if name in values else {})


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("$", "$$") if isinstance(value, str) else value


def _names(store: "CoordinatingStore") -> dict[int, str]:
    store.load_table_schemas()
    newest = sorted(store.get_table_schemas(), key=lambda schema: schema.snapshot_id)
    return {schema.id: schema.name for schema in newest}
