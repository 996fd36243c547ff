"""The metrics of a pipeline, whatever exports them: names, meanings, and values by status."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from etl_dagster.runtime.showing.status import PipelineStatus, TableStatus

#: The beginning of every name.
PREFIX: Final = "etl_dagster"
#: Upper bounds of the times of writes, seconds.
WRITE_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
#: How many tables are told apart at most, where nothing else is set.
TABLES_AT_MOST: Final = 500

Kind = Literal["gauge", "counter"]
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric that a status holds. Prometheus' names: base units, counters end in ``_total``."""

    name: str
    kind: Kind
    help: str
    #: Besides `pipeline` and `destination`.
    labels: Labels = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """The value of a measure."""

    measure: Measure
    #: By label, `pipeline` and `destination` included.
    labels: Mapping[str, str]
    value: float


UP = Measure("up", "gauge", "1 while the pipeline streams, 0 in every other phase.")
LAG_BYTES = Measure(
    "lag_bytes", "gauge", "WAL between what is confirmed and the end of the server's WAL."
)
LAG_SECONDS = Measure(
    "lag_seconds", "gauge", "Age of the oldest commit that is received and not yet durable."
)
LATENCY = Measure(
    "latency_seconds", "gauge", "From the commit of a heartbeat at the source until it is durable."
)
RETAINED_WAL = Measure(
    "retained_wal_bytes", "gauge", "WAL that the pipeline's slot makes the server keep."
)
WAL_BOUND = Measure(
    "retained_wal_warning_bytes", "gauge", "From how much retained WAL on there is a warning."
)
STATUS_TIME = Measure(
    "status_time_seconds", "gauge", "When these numbers were taken, seconds since 1970."
)
ROWS_TOTAL = Measure("rows_total", "counter", "Changed rows that the stream made durable.")
BATCHES_TOTAL = Measure("batches_total", "counter", "Batches that the stream made durable.")
TABLES = Measure("tables", "gauge", "Tables by state.", ("state",))
ROWS = Measure(
    "table_changes_total",
    "counter",
    "Changed rows that were made durable, by table and operation.",
    ("table", "operation"),
)
ROW_COUNT = Measure("table_rows", "gauge", "Rows of the table at the destination.", ("table",))
ODD = Measure(
    "table_odd_values", "gauge", "Values that their columns' types can't hold.", ("table",)
)
QUARANTINED = Measure("table_quarantined_rows", "gauge", "Rows kept apart from it.", ("table",))
ERRORED = Measure("table_errored", "gauge", "1 for a table that has stopped.", ("table",))
COPY_ROWS = Measure("copy_rows", "gauge", "Rows copied so far of a copy under way.", ("table",))
COPY_ESTIMATE = Measure(
    "copy_estimated_rows", "gauge", "The planner's estimate of all rows of that copy.", ("table",)
)

#: All that a status holds.
MEASURES: Final = (
    UP,
    LAG_BYTES,
    LAG_SECONDS,
    LATENCY,
    RETAINED_WAL,
    WAL_BOUND,
    STATUS_TIME,
    ROWS_TOTAL,
    BATCHES_TOTAL,
    TABLES,
    ROWS,
    ROW_COUNT,
    ODD,
    QUARANTINED,
    ERRORED,
    COPY_ROWS,
    COPY_ESTIMATE,
)
#: What single events are counted in, by the exporters themselves.
WRITE_SECONDS = Measure("write_seconds", "counter", "Time until a batch is durable (histogram).")
WRITTEN_BYTES = Measure("written_bytes_total", "counter", "Memory of the changed rows as Arrow.")
RETRIES = Measure(
    "retries_total",
    "counter",
    "Batches that the destination refused, and streams that ended, and were tried again.",
    ("kind", "error"),
)


def samples(status: PipelineStatus, *, tables: int = TABLES_AT_MOST) -> Iterator[Sample]:
    """The values of a status.

    Args:
        tables: how many tables have metrics of their own, by name; of the others only the sums.
    """
    common = {"pipeline": status.pipeline, "destination": status.destination}

    def sample(measure: Measure, value: float, **labels: str) -> Sample:
        return Sample(measure, {**common, **labels}, float(value))

    yield sample(UP, status.phase == "streaming")
    yield sample(LAG_BYTES, status.lag_bytes)
    yield sample(LAG_SECONDS, status.lag_seconds)
    if status.retained_wal_bytes is not None:
        yield sample(RETAINED_WAL, status.retained_wal_bytes)
    if status.wal_warned_above_bytes is not None:
        yield sample(WAL_BOUND, status.wal_warned_above_bytes)
    if status.latency_seconds is not None:
        yield sample(LATENCY, status.latency_seconds)
    yield sample(STATUS_TIME, status.at)
    yield sample(ROWS_TOTAL, status.rows_total)
    yield sample(BATCHES_TOTAL, status.batches)
    states: dict[str, int] = {}
    for table in status.tables.values():
        states[table.state] = states.get(table.state, 0) + 1
    for state, count in sorted(states.items()):
        yield sample(TABLES, count, state=state)
    for name in sorted(status.tables)[:tables]:
        yield from _of_table(status.tables[name], sample)


def _of_table(table: TableStatus, sample: Callable[..., Sample]) -> Iterator[Sample]:
    for operation, count in (
        ("insert", table.rows_inserted),
        ("update", table.rows_updated),
        ("delete", table.rows_deleted),
        ("truncate", table.truncates),
    ):
        yield sample(ROWS, count, table=table.name, operation=operation)
    if table.row_count is not None:
        yield sample(ROW_COUNT, table.row_count, table=table.name)
    yield sample(ODD, sum((table.odd_values or {}).values()), table=table.name)
    yield sample(QUARANTINED, table.rows_quarantined, table=table.name)
    yield sample(ERRORED, table.state == "errored", table=table.name)
    if table.copy_chunks_total:
        yield sample(COPY_ROWS, table.copy_rows_done, table=table.name)
        yield sample(COPY_ESTIMATE, table.copy_rows_estimated, table=table.name)
