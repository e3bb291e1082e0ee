"""How long writes stop when a leader is killed, and when it hands its leads over: `quorumail dev` with real processes.

    python3 tests/bench/failover.py [--kills 50] [--handovers 20] [--nothing 20]

Writers send small messages over SMTP to the nodes that stay, each to a mailbox of its own, one after the other. The gap
of an event is the longest time, over all writers, between two acknowledgements around it; writers whose partition the
node led are those that feel it. Where nothing happens the gap is what the writers wait for each other and for the disk: read the others
beside it. Prints min, median, p99 and max. Figures of a busy machine say more about the machine."""

import argparse
import os
import signal
import smtplib
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from dev import Dev, people  # noqa: E402

WRITERS = 12
NAMES = [f"user{i}" for i in range(WRITERS)]
SETTLE = 2.0  # seconds of writing before and after an event that belong to it


class Writer(threading.Thread):
    """Sends without pause to one of the allowed nodes; notes when each message was acknowledged."""

    def __init__(self, dev, number, allowed):
        super().__init__(daemon=True)
        self.dev, self.number, self.allowed = dev, number, allowed
        self.acknowledged, self.failed, self.stop = [], 0, False
        self.sessions = {}

    def session(self, node):
        if node not in self.sessions:
            host, port = self.dev.node(node)["smtp"].rsplit(":", 1)
            self.sessions[node] = smtplib.SMTP(host, int(port), timeout=30)
        return self.sessions[node]

    def run(self):
        turn = self.number
        while not self.stop:
            turn += 1
            node = self.allowed[turn % len(self.allowed)]
            try:
                self.session(node).sendmail("bench@elsewhere.example", [f"{NAMES[self.number]}@example.org"],
                                            f"Subject: {turn}\r\n\r\nsmall\r\n")
                self.acknowledged.append(time.monotonic())
            except (OSError, smtplib.SMTPException):
                self.failed += 1
                self.sessions.pop(node, None)
                time.sleep(0.01)


def metric(dev, node, name):
    """Sum over all labels of a metric of a node."""
    with urllib.request.urlopen(f"http://{dev.node(node)['http']}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(("quorumail_" + name + "{", "quorumail_" + name + " ")))


def leads(dev, node):
    try:
        return metric(dev, node, "group_leads")
    except OSError:
        return 0


def wait_balanced(dev, nodes, within=60):
    """Until every node leads its share again."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if all(leads(dev, node) >= 5 for node in range(nodes)):
            return
        time.sleep(0.2)
    raise SystemExit("the leads did not come back to all nodes")


def gap(writers, at):
    """The longest pause of any writer around the event, in milliseconds."""
    longest = 0.0
    for writer in writers:
        times = [t for t in writer.acknowledged if at - SETTLE < t < at + SETTLE * 3]
        pauses = [b - a for a, b in zip(times, times[1:]) if b > at]
        longest = max([longest, *pauses])
    return longest * 1000


def show(title, gaps):
    gaps = sorted(gaps)
    at = lambda share: gaps[min(len(gaps) - 1, int(len(gaps) * share))]  # noqa: E731
    print(f"{title}: {len(gaps)} events, gap min {gaps[0]:.0f} median {at(0.5):.0f} p99 {at(0.99):.0f} max {gaps[-1]:.0f} ms", flush=True)


def events(dev, count, what):
    gaps = []
    for number in range(count):
        victim = number % 3
        wait_balanced(dev, 3)
        stay = [node for node in range(3) if node != victim]
        writers = [Writer(dev, i, stay) for i in range(WRITERS)]
        for writer in writers:
            writer.start()
        time.sleep(SETTLE)
        old = dev.node(victim)["pid"]
        at = time.monotonic()
        if what is not None:
            os.kill(old, what)
        time.sleep(SETTLE)
        for writer in writers:
            writer.stop = True
        for writer in writers:
            writer.join(60)
        gaps.append(gap(writers, at))
        failed = sum(writer.failed for writer in writers)
        print(f"  event {number + 1}: node {victim}, gap {gaps[-1]:.0f} ms, {failed} refused", file=sys.stderr, flush=True)
        while what is not None and dev.node(victim)["pid"] == old:
            time.sleep(0.1)
    return gaps


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--handovers", type=int, default=20)
    parser.add_argument("--nothing", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="failover-") as directory:
        with Dev(directory, {"people.yaml": people(NAMES)}) as dev:
            if arguments.nothing:
                show("nothing", events(dev, arguments.nothing, None))
            if arguments.kills:
                show("kill -9 of a leader", events(dev, arguments.kills, signal.SIGKILL))
            if arguments.handovers:
                show("planned hand-over", events(dev, arguments.handovers, signal.SIGTERM))


if __name__ == "__main__":
    main()
