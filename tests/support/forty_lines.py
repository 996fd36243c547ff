from itertools import islice

import httpx

from etl_dagster.errors import DestinationError, DestinationUnreachable
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import EventBatch, TableRows
from etl_dagster.model.json_values import event_to_json, row_to_json, schema_to_json
from etl_dagster.model.schema import TableSchema


class MyHttpDestination(Destination):
    name = "my-http"

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=30)

    def post(self, path: str, **body: object) -> None:
        try:
            response = self.client.post(path, json=body)
        except httpx.TransportError as error:
            raise DestinationUnreachable(f"POST {path}: {type(error).__name__}") from error
        if not response.is_success:  # unreachable: the pipeline tries again, with pauses
            later = response.is_server_error or response.status_code == 429
            kind = DestinationUnreachable if later else DestinationError
            raise kind(f"POST {path}: {response.status_code}")

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        self.post(f"tables/{schema.name}/drop-for-copy", table=schema_to_json(schema))

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        copy = {"copy_id": rows.copy_id, "replay_from": str(rows.replay_from)}
        values = (row_to_json(schema, row) for row in rows)
        while part := list(islice(values, 1000)):
            self.post("rows", table=schema_to_json(schema), **copy, rows=part)
        self.post("rows", table=schema_to_json(schema), **copy, rows=[])

    def write_events(self, events: EventBatch) -> None:
        self.post("events", events=[event_to_json(event) for event in events])
