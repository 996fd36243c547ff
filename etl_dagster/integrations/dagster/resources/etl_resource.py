"""The resource that the functions of a code location ask for: a pipeline, however configured."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dagster import AssetExecutionContext, ConfigurableResource, MaterializeResult

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError, InvalidState
from etl_dagster.integrations.dagster.timing import DAGSTER_TIMING, DagsterTiming
from etl_dagster.table_name import TableName

if TYPE_CHECKING:
    import pyarrow as pa

    from etl_dagster.model.destination import Destination
    from etl_dagster.model.states import TableState
    from etl_dagster.model.stores import CoordinatingStore


class EtlResource(ConfigurableResource[Any], ABC):
    """A pipeline: its configuration, its state, its destination.

    The type that an asset's function asks for. `EtlConfigFileResource` and `EtlPipelineResource`
    are such resources. Nothing stays open between two calls, so every tick and every step may have
    one of its own.
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

        The assets of `build_etl_definitions` do the same: a copy that was begun is resumed, and a
        table that is already streamed is copied again, unless the sensor requested the run.

        Args:
            context: of the step; one of its assets is the table's.
            table: ``schema.table``, of the source.

        Raises:
            RetryRequested: waiting may cure what went wrong.
            Failure: with what to do about it.
        """
        from etl_dagster.integrations.dagster.copies.table_asset import copy_one_table, key_of_table

        return copy_one_table(context, self, table, key_of_table(context, table))

    def copy_selected(self, context: AssetExecutionContext) -> Iterator[MaterializeResult[Any]]:
        """As `copy`, for each table that the run has selected; one that fails stops no other."""
        from etl_dagster.integrations.dagster.copies.table_asset import copy_selected_tables

        yield from copy_selected_tables(context, self)

    def table_states(self) -> "Mapping[str, TableState]":
        """The state of every table, by ``schema.table``; tables never copied are missing."""
        with self.get_store() as store:
            names = _names(store)
            return {
                names[table_id]: state
                for table_id, state in store.get_table_replication_states().items()
                if table_id in names
            }

    def reset_table(self, name: str) -> str:
        """Request a new copy of ``schema.table``, and return the name of its state before.

        A part of the name with a dot is quoted as in SQL: ``"a.b".c``.

        Raises:
            InvalidState: the pipeline doesn't know the table.
        """
        from etl_dagster.model.states import state_name
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
        """Read from the destination, if that is DuckDB or DuckLake.

        Raises:
            ConfigError: the destination is of another type.
        """
        from etl_dagster.destinations.duckdb.config import DuckDBDestinationConfig
        from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig

        destination = self.load_config().destination
        if isinstance(destination, DuckLakeDestinationConfig):
            from etl_dagster.destinations.ducklake.reading import query as query_lake

            return query_lake(destination, sql)
        if not isinstance(destination, DuckDBDestinationConfig):
            raise ConfigError(["destination.type: only duckdb and ducklake can be queried"])
        from etl_dagster.destinations.duckdb import query

        return query(destination.path, sql, lock_timeout_s=destination.lock_timeout_s)


def _names(store: "CoordinatingStore") -> dict[int, str]:
    store.load_table_schemas()
    newest = sorted(store.get_table_schemas(), key=lambda schema: schema.snapshot_id)
    return {schema.id: schema.name for schema in newest}
