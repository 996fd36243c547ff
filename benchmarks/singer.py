"""How fast changes become the RECORD lines of a Singer target, next to Python's own json."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.harness import BenchmarkFailed, Contest, Harness, Measurement
from etl_dagster.destinations.singer.lines import Stamps, record_lines
from etl_dagster.destinations.singer.streams import Spelling
from etl_dagster.model.schema import ColumnSchema, TableSchema
from etl_dagster.values import oids

_STREAM = "public-orders"
_PRICE = ((12 << 16) | 2) + 4
#: As `streams.ORDERS`.
_COLUMNS = (
    ColumnSchema("id", oids.INT8, attnum=1, nullable=False, primary_key_ordinal=1),
    ColumnSchema("quantity", oids.INT4, attnum=2),
    ColumnSchema("price", oids.NUMERIC, _PRICE, attnum=3),
    ColumnSchema("description", oids.TEXT, attnum=4),
    ColumnSchema("ordered_at", oids.TIMESTAMPTZ, attnum=5),
    ColumnSchema("is_paid", oids.BOOL, attnum=6),
)
_FIRST_US = 1_704_067_200_000_000


def contest(harness: Harness) -> Contest:
    """The rows of `streams.small_inserts` as lines: column by column, and row by row.

    Raises:
        BenchmarkFailed: the lines of the two don't mean the same.
    """
    rows = harness.scaled(1_000_000, at_least=100)
    schema = TableSchema(16384, "public", "orders", _COLUMNS)
    batch, stamps = _orders(schema, rows)
    made: dict[str, Callable[[], Iterator[bytes | memoryview]]] = {
        "json_row_by_row": lambda: _row_by_row(batch, stamps),
        "singer_records": lambda: record_lines(_STREAM, schema, batch, stamps, Spelling()),
    }
    firsts = [json.loads(bytes(next(lines())).split(b"\n")[0]) for lines in made.values()]
    if firsts[0] != firsts[1]:
        raise BenchmarkFailed("the lines of both ways don't mean the same")
    found = Contest(f"{rows:,} rows of six columns as RECORD lines")
    for _ in range(harness.rounds):
        for name, lines in made.items():
            found.measured.setdefault(name, []).append(_measured(rows, lines))
    return found


def _measured(rows: int, lines: Callable[[], Iterator[bytes | memoryview]]) -> Measurement:
    started, cpu_s = time.perf_counter(), time.process_time()
    for piece in lines():
        len(piece)
    return Measurement(rows, time.perf_counter() - started, time.process_time() - cpu_s)


def _orders(schema: TableSchema, rows: int) -> tuple[pa.RecordBatch, Stamps]:
    numbers = np.arange(1, rows + 1)
    prices: Any = pa.array((numbers * 13) % 100_000).cast(pa.decimal128(19, 0))
    prices = pc.divide(prices, pa.scalar(Decimal("100.00"))).cast(pa.decimal128(12, 2))
    texts: Any = pa.array(numbers).cast(pa.string())
    times = pa.array(_FIRST_US + numbers * 1_500_000).cast(pa.timestamp("us", "UTC"))
    described: Any = pc.binary_join_element_wise("order number ", texts, "")
    columns = [
        pa.array(numbers),
        pa.array(((numbers * 7) % 1000).astype(np.int32)),
        prices,
        described,
        times,
        pa.array(numbers % 3 == 0),
    ]
    lsns = (1_000_000 + numbers // 1000 * 100_000).astype(np.uint64)
    stamps = Stamps(_FIRST_US + numbers, lsns.astype(np.int64), lsns, numbers % 1000)
    return pa.RecordBatch.from_arrays(columns, names=list(schema.column_names)), stamps


def _row_by_row(batch: pa.RecordBatch, stamps: Stamps) -> Iterator[bytes]:
    """As a tap does it that has its rows as dictionaries."""
    assert isinstance(stamps.time_us, np.ndarray)
    assert isinstance(stamps.version, np.ndarray)
    assert stamps.lsn is not None
    assert stamps.ordinal is not None
    epoch = np.datetime64(0, "us")
    for start in range(0, batch.num_rows, 1000):
        stop = start + 1000
        for row, time_us, version, lsn, ordinal in zip(
            batch.slice(start, 1000).to_pylist(),
            (epoch + stamps.time_us[start:stop]).tolist(),
            stamps.version[start:stop].tolist(),
            stamps.lsn[start:stop].tolist(),
            stamps.ordinal[start:stop].tolist(),
            strict=True,
        ):
            moment = f"{time_us.isoformat(timespec='microseconds')}+00:00"
            row["price"] = str(row["price"])
            row["ordered_at"] = row["ordered_at"].isoformat(timespec="microseconds")
            row["_sdc_extracted_at"] = moment
            row["_sdc_deleted_at"] = None
            row["_sdc_sequence"] = row["_sdc_lsn"] = lsn
            row["_sdc_table_version"] = version
            row["_sdc_ordinal"] = ordinal
            row["_sdc_odd_values"] = None
            message = {
                "type": "RECORD",
                "stream": _STREAM,
                "record": row,
                "version": version,
                "time_extracted": moment,
            }
            yield json.dumps(message).encode() + b"\n"
