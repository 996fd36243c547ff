import logging
import os
import signal

from custom_store import CustomStore
from http_destination import HttpDestination

from etl_dagster.config import parse_config
from etl_dagster.runtime.pipeline import Pipeline

logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
logging.getLogger("httpx").setLevel(logging.WARNING)

config = parse_config(
    {
        "pipeline": "tutorial",
        "source": {"dsn": os.environ["ETL_SOURCE_DSN"], "publication": "tutorial"},
        "batch": {"max_fill_ms": 100},
        "copy": {"chunk_rows": 1000},
    }
)
pipeline = Pipeline(config, CustomStore(), HttpDestination(os.environ["RECEIVER_URL"]))
signal.signal(signal.SIGINT, lambda *_: pipeline.shutdown())
pipeline.start()
print("Replicating; Ctrl-C stops", flush=True)
pipeline.wait()
print("Stopped", flush=True)
