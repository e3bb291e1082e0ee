"""What throughput depends on: the number of partitions, and how much a mailbox holds already.

    QUORUMAIL_BIN=target/release python3 tests/bench/sweep.py [--partitions 16 64 256] [--stored 10 1000 100000]

Settings are measured in turn, `--rounds` times each, and medians are shown with their ratio to the first one: a machine's
speed changes while it runs. Partitions: three nodes, 20 connections, 20 mailboxes. Stored messages: one node, one cluster
with four mailboxes of each size, so that all settings share one journal and one index."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from dev import BIN, Dev, people  # noqa: E402

PASSWORD = "a password"
MAILBOXES = [f"user{i}" for i in range(20)]
FILLED = 4  # mailboxes of each size


def load(*arguments):
    done = subprocess.run([str(BIN / "quorumail-bench"), *map(str, arguments)], capture_output=True, text=True, timeout=1800)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def cluster(nodes, partitions):
    return ("{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {name: dev}, "
            f"spec: {{nodes: {nodes}, partitions: {partitions}}}}}\n")


def send(targets, names, seconds):
    return load("smtp", "--targets", ",".join(targets), "--recipients", ",".join(f"{name}@example.org" for name in names),
                "--seconds", seconds)["accepted_per_second"]


def show(title, figures):
    first = statistics.median(next(iter(figures.values())))
    for setting, rates in figures.items():
        median = statistics.median(rates)
        runs = ", ".join(f"{rate:,.0f}" for rate in rates)
        print(f"{title} {setting:>7}: {median:8,.0f} messages/s, {median / first:.2f} of the first ({runs})", flush=True)


def partitions(settings, rounds, seconds):
    figures = {setting: [] for setting in settings}
    for _ in range(rounds):
        for setting in settings:
            with tempfile.TemporaryDirectory(prefix="sweep-") as directory:
                resources = {"cluster.yaml": cluster(3, setting), "people.yaml": people(MAILBOXES, password=PASSWORD)}
                with Dev(directory, resources) as dev:
                    send(dev.all("smtp"), MAILBOXES, 1)
                    figures[setting].append(send(dev.all("smtp"), MAILBOXES, seconds))
    show("partitions", figures)


def stored(settings, rounds, seconds):
    names = {setting: [f"m{setting}x{i}" for i in range(FILLED)] for setting in settings}
    with tempfile.TemporaryDirectory(prefix="sweep-") as directory:
        everybody = [name for group in names.values() for name in group]
        with Dev(directory, {"people.yaml": people(everybody, password=PASSWORD)}, nodes=1) as dev:
            for setting, group in names.items():
                for name in group:
                    load("folder", "--target", dev.node(0)["imap"], "--user", f"{name}@example.org", "--password", PASSWORD,
                         "--folder", "INBOX", "--fill", setting, "--connections", min(setting, 25), "--size", 512, "--read", 1)
            figures = {setting: [] for setting in settings}
            for _ in range(rounds):
                for setting in settings:
                    figures[setting].append(send(dev.all("smtp"), names[setting], seconds))
    show("stored messages a mailbox", figures)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partitions", type=int, nargs="*", default=[16, 64, 256])
    parser.add_argument("--stored", type=int, nargs="*", default=[10, 1000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, messages of 8 KiB, 20 connections, {arguments.rounds} times {arguments.seconds:.0f} s each", flush=True)
    if arguments.partitions:
        partitions(arguments.partitions, arguments.rounds, arguments.seconds)
    if arguments.stored:
        stored(arguments.stored, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
