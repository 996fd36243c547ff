"""The sensor: it keeps the stream running, requests copies, and reports what it sees."""
