"""A destination that posts JSON, again and again until the receiver accepts it."""

from urllib.parse import quote

import httpx
import stamina

from etl_dagster.errors import DestinationUnreachable
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import EventBatch, TableRows
from etl_dagster.model.json_values import event_to_json, row_to_json
from etl_dagster.model.schema import TableSchema


class HttpDestination(Destination):
    name = "http"

    def __init__(self, base_url: str) -> None:
        self._client = httpx.Client(base_url=base_url, timeout=30)

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        self._post(f"tables/{quote(schema.name, safe='')}/drop-for-copy", {})

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        data = [row_to_json(schema, row) for row in rows]
        self._post("rows", {"table": schema.name, "key": schema.key_columns, "rows": data})

    def write_events(self, events: EventBatch) -> None:
        self._post("events", {"events": [event_to_json(event) for event in events]})

    def _post(self, path: str, body: dict[str, object]) -> None:
        for attempt in stamina.retry_context(on=DestinationUnreachable):
            with attempt:
                try:
                    response = self._client.post(path, json=body)
                except httpx.TransportError as error:
                    raise DestinationUnreachable(f"no answer to {path}") from error
                if response.status_code == 429 or response.is_server_error:
                    raise DestinationUnreachable(f"answer {response.status_code} to {path}")
                response.raise_for_status()
