"""Writes each request to received.jsonl, a line for each, before it answers."""

import json
import os
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class Receiver(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], log: Path) -> None:
        super().__init__(address, Request)
        # Without a buffer: what was written outlives this process, however it ends.
        self.log = open(log, "ab", buffering=0)


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.log.write(json.dumps({"path": self.path, "body": body}).encode() + b"\n")
        self.send_response(204)
        self.end_headers()
        came = Counter(event["type"] for event in body.get("events", ()))
        if "rows" in body:
            came["rows"] = len(body["rows"])
        print(self.path, ", ".join(f"{n} {what}" for what, n in came.items()), flush=True)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the line above says more."""


if __name__ == "__main__":
    url = urlsplit(os.environ["RECEIVER_URL"])
    receiver = Receiver((url.hostname or "", url.port or 80), Path("received.jsonl"))
    Path("receiver.pid").write_text(str(os.getpid()))
    print("The receiver listens", flush=True)
    receiver.serve_forever()
