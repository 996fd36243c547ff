"""Writes each request to received.jsonl, a line for each, before it answers."""

import json
import os
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

# Without a buffer: what was written outlives this process, however it ends.
log = open("received.jsonl", "ab", buffering=0)


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        log.write(json.dumps({"path": self.path, "body": body}).encode() + b"\n")
        self.send_response(204)
        self.end_headers()
        came = Counter(event["type"] for event in body.get("events", ()))
        if "rows" in body:
            came["rows"] = len(body["rows"])
        print(self.path, ", ".join(f"{n} {what}" for what, n in came.items()), flush=True)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the line above says more."""


address = urlsplit(os.environ["RECEIVER_URL"])
server = ThreadingHTTPServer((address.hostname, address.port), Receiver)
Path("receiver.pid").write_text(str(os.getpid()))
print("The receiver listens", flush=True)
server.serve_forever()
