"""`quorumail dev` as a test drives it: real processes, killed with -9, on loopback addresses."""

import json
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("QUORUMAIL_BIN", ROOT / "target" / "debug")).resolve()
PORTS = [2525, 2587, 2465, 2143, 2993, 8080, 9443, 9444]


def free_offset(nodes=5):
    """An offset at which no port of any node is taken, so that runs can stand side by side."""
    start = 1000 + (os.getpid() * 37) % 20000
    for offset in list(range(start, 40000, 100)) + list(range(1000, start, 100)):
        try:
            for node in range(nodes):
                for port in PORTS:
                    with socket.socket() as probe:
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        probe.bind((f"127.0.0.{node + 1}", port + offset))
            return offset
        except OSError:
            continue
    raise RuntimeError("no free ports on loopback")


class Dev:
    """One `quorumail dev`. `node(i)` is the newest JSON line of node i. Without `nodes` the MailCluster says how many."""

    def __init__(self, directory, resources, nodes=3, restart=True, data=None, extra=()):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.files = self.directory / "resources"
        self.files.mkdir(exist_ok=True)
        for name, text in resources.items():
            (self.files / name).write_text(text)
        self.log = open(self.directory / "dev.log", "ab")
        command = [str(BIN / "quorumail"), "dev", "-f", str(self.files)]
        command += [] if nodes is None else ["--nodes", str(nodes)]
        command += ["--base-port", str(free_offset()), "--data", str(data or self.directory / "data")]
        command += [] if restart else ["--no-restart"]
        self.process = subprocess.Popen([*command, *extra], stdout=subprocess.PIPE, stderr=self.log, cwd=directory)
        self.nodes = {}
        self.lines = queue.Queue()
        self.is_ready = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            text = line.decode().strip()
            if text == "ready":
                self.is_ready.set()
            elif text.startswith("{"):
                fact = json.loads(text)
                self.nodes[fact["node"]] = fact

    def wait_ready(self, within=90):
        end = time.monotonic() + within
        while not self.is_ready.wait(0.1):
            if self.process.poll() is not None or time.monotonic() > end:
                tail = (self.directory / "dev.log").read_text(errors="replace")[-4000:]
                raise AssertionError(f"quorumail dev is not ready (exit {self.process.poll()}):\n{tail}")
        return self

    def node(self, index):
        return self.nodes[index]

    def all(self, port):
        return [self.nodes[i][port] for i in sorted(self.nodes)]

    def kill(self, index):
        """kill -9 of a node."""
        os.kill(self.nodes[index]["pid"], signal.SIGKILL)

    def status(self):
        """What `quorumail status` says."""
        command = [str(BIN / "quorumail"), "--dev", str(self.directory / "data"), "status", "-o", "json"]
        done = subprocess.run(command, capture_output=True, timeout=60)
        # 1: something is not well, which is told.
        assert done.returncode in (0, 1) and done.stdout, done.stderr
        return json.loads(done.stdout)

    def write(self, name, text):
        """Edits a watched resource file, as an editor does: a new file renamed over the old."""
        temporary = self.files / f".{name}.new"
        temporary.write_text(text)
        temporary.rename(self.files / name)

    def stop(self):
        """Ends it as Ctrl-C does; answers the exit status."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        self.log.close()
        return self.process.returncode

    def __enter__(self):
        return self.wait_ready()

    def __exit__(self, *_):
        self.stop()


def people(names, domain="example.org", password="a password"):
    """Resources: a domain, a mailbox for every name, one Secret."""
    lines = [
        "{apiVersion: quorumail.io/v1alpha1, kind: MailDomain, metadata: {name: %s}, spec: {domain: %s}}"
        % (domain.replace(".", "-"), domain),
        json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "people"},
                    "stringData": {name: password for name in names}}),
    ]
    for name in names:
        lines.append(
            json.dumps({"apiVersion": "quorumail.io/v1alpha1", "kind": "Mailbox", "metadata": {"name": name},
                        "spec": {"address": f"{name}@{domain}", "passwordSecretRef": {"name": "people", "key": name}}})
        )
    return "\n---\n".join(lines) + "\n"
