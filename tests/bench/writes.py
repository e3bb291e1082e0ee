"""What a byte accepted costs the disk: bytes written and syncs, in a steady state in which as much mail is deleted as comes in.

    QUORUMAIL_BIN=target/release python3 tests/bench/writes.py [--nodes 3] [--seconds 60] [--warm-up 30]

20 connections send messages of 8 KiB for the whole time while readers empty every mailbox again and again. After the warm-up
the kernel's count of bytes that each process had written (/proc/PID/io, write_bytes) and the node's own metrics are read at both ends
of the window. Journal, index, compaction and everything else a node writes are in it."""

import argparse
import collections
import imaplib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from dev import BIN, Dev, people  # noqa: E402
from failover import metric  # noqa: E402

PASSWORD = "a password"
NAMES = [f"user{i}" for i in range(20)]
COUNTERS = ["journal_syncs_total", "journal_bytes_total", "journal_compacted_bytes_total", "journal_reclaimed_bytes_total"]


def written(pid):
    """Bytes that the process had the kernel write to disk; what it cut off again before that is taken away."""
    facts = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(facts["write_bytes"]) - int(facts["cancelled_write_bytes"])


def by_thread(pid):
    """The same by name of thread: who made the pages dirty. Threads that have ended are missing."""
    bytes_of = collections.Counter()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            facts = dict(line.split(": ") for line in (task / "io").read_text().splitlines())
            bytes_of[(task / "comm").read_text().strip().rstrip("0123456789-")] += int(facts["write_bytes"])
        except (OSError, KeyError):
            continue
    return bytes_of


class Reader(threading.Thread):
    """Deletes all that is in its mailboxes, again and again; counts messages and bytes."""

    def __init__(self, target, names):
        super().__init__(daemon=True)
        self.host, self.port = target.rsplit(":", 1)
        self.names, self.stop, self.deleted, self.error = names, False, 0, None

    def run(self):
        try:
            sessions = []
            for name in self.names:
                session = imaplib.IMAP4(self.host, int(self.port))
                session.login(f"{name}@example.org", PASSWORD)
                sessions.append(session)
            while not self.stop:
                for session in sessions:
                    count = int(session.select("INBOX")[1][0])
                    if count:
                        session.store("1:*", "+FLAGS.SILENT", "(\\Deleted)")
                        session.expunge()
                        self.deleted += count
        except Exception as error:  # told at the end: a figure without deletions would mislead
            self.error = error


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warm-up", type=float, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="writes-") as directory:
        # Deleted mail is to go at once: what is measured includes giving its space back.
        cluster = {"apiVersion": "quorumail.io/v1alpha1", "kind": "MailCluster", "metadata": {"name": "dev"},
                   "spec": {"deletedMail": {"keep": "0s"}}}
        resources = {"people.yaml": people(NAMES, password=PASSWORD), "cluster.yaml": json.dumps(cluster)}
        with Dev(directory, resources, nodes=arguments.nodes) as dev:
            total = arguments.warm_up + arguments.seconds + 5
            command = [str(BIN / "quorumail-bench"), "smtp", "--targets", ",".join(dev.all("smtp")), "--recipients",
                       ",".join(f"{name}@example.org" for name in NAMES), "--seconds", str(total)]
            load = subprocess.Popen(command, stdout=subprocess.PIPE)
            readers = [Reader(dev.node(i % arguments.nodes)["imap"], NAMES[i::4]) for i in range(4)]
            for reader in readers:
                reader.start()
            nodes = range(arguments.nodes)
            threads = {node: [] for node in nodes}

            def look():
                facts = [{name: metric(dev, node, name) for name in COUNTERS} for node in nodes]
                for node, fact in zip(nodes, facts):
                    fact["written"] = written(dev.node(node)["pid"])
                    threads[node].append(by_thread(dev.node(node)["pid"]))
                return (facts, metric_sum(dev, nodes, "smtp_messages_accepted_total"), metric_sum(dev, nodes, "smtp_accepted_bytes_total"),
                        sum(reader.deleted for reader in readers))

            time.sleep(arguments.warm_up)
            before, *counts = look()
            time.sleep(arguments.seconds)
            after, *counts_after = look()
            accepted, size, deleted = (end - begin for begin, end in zip(counts, counts_after))
            load.communicate(timeout=600)
            for reader in readers:
                reader.stop = True
            for reader in readers:
                reader.join(120)
                if reader.error:
                    raise SystemExit(f"a reader ended: {reader.error!r}")
    print(f"{arguments.nodes} nodes, {arguments.seconds:.0f} s: {accepted:,.0f} messages ({size / 1e6:,.1f} MB) accepted, {deleted:,.0f} deleted")
    for node in nodes:
        change = {name: after[node][name] - before[node][name] for name in after[node]}
        print(f"node {node}: {change['written'] / size:.2f} bytes written for each byte accepted "
              f"(journal {change['journal_bytes_total'] / size:.2f}, of it copied by compaction "
              f"{change['journal_compacted_bytes_total'] / size:.2f}); {change['journal_reclaimed_bytes_total'] / size:.2f} given back; "
              f"{change['journal_syncs_total'] / accepted:.3f} syncs a message", flush=True)
        shares = threads[node][1] - threads[node][0]
        print("    by thread: " + ", ".join(f"{name} {bytes_ / size:.2f}" for name, bytes_ in shares.most_common(6)), flush=True)


def metric_sum(dev, nodes, name):
    return sum(metric(dev, node, name) for node in nodes)


if __name__ == "__main__":
    main()
