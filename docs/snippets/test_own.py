"""What every store and every destination promises, checked on these two."""

import threading
from pathlib import Path
from typing import Any

from custom_store import CustomStore
from http_destination import HttpDestination
from received import read_tables
from receiver import Receiver

from etl_dagster.model.destination import Destination
from etl_dagster.model.schema import TableSchema
from etl_dagster.model.stores import PipelineStore
from etl_dagster.testing import DestinationSuite, StoreSuite


class TestCustomStore(StoreSuite):
    durable = False  # it forgets everything with the object

    def make_store(self, folder: Path) -> PipelineStore:
        return CustomStore()


class TestHttpDestination(DestinationSuite):
    def make_destination(self, folder: Path) -> Destination:
        self.log = folder / "received.jsonl"
        receiver = Receiver(("127.0.0.1", 0), self.log)
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        return HttpDestination(f"http://127.0.0.1:{receiver.server_port}")

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[dict[str, Any]]:
        return read_tables(self.log)[schema.name].rows()

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        return schema.name in read_tables(self.log)
