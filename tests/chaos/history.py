"""What happened: one record for every operation, kept as JSON lines.

Fields of all: `op`, `client`, `begin` and `end` (monotonic seconds of one clock), `outcome`: `ok` (the server said that it
is done), `refused` (it said, or could not but say, that it is not), `unknown` (neither is known: it may take effect at any
later time). What else was asked and seen depends on `op`; see clients.py, which writes them, and checker.py, which judges."""

import json
import threading
import time


class History:
    """Records in order of their ends, in memory and in a file."""

    def __init__(self, path=None):
        self.records = []
        self.lock = threading.Lock()
        self.file = open(path, "w") if path else None

    def add(self, **record):
        now = time.monotonic()
        record = {"client": "harness", "begin": now, "end": now, **record}
        with self.lock:
            self.records.append(record)
            if self.file:
                self.file.write(json.dumps(record) + "\n")
        return record

    def close(self):
        with self.lock:
            if self.file:
                self.file.close()
            self.file = None


def read(path):
    with open(path) as file:
        return [json.loads(line) for line in file]
