"""What a node keeps in memory: idle, for each idle mailbox, and for the messages it stores. One node, `quorumail dev`.

    QUORUMAIL_BIN=target/release python3 tests/bench/memory.py [--mailboxes 1000 10000] [--messages 10000 100000]

Resident memory after a restart and after the node has become quiet, so that what a load leaves behind in the allocator is not in it;
`after the load` shows that as well."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from dev import Dev  # noqa: E402
from sweep import PASSWORD, load  # noqa: E402


def resident(dev):
    """MiB, once it has not grown for three seconds."""
    last, steady = 0.0, 0
    for _ in range(60):
        lines = Path(f"/proc/{dev.node(0)['pid']}/status").read_text().splitlines()
        now = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))
        steady = steady + 1 if abs(now - last) < 0.5 else 0
        if steady == 3:
            break
        last = now
        time.sleep(1)
    return now


def resources(count):
    """A domain with `count` mailboxes that share one password, as a hash: nothing is computed for each."""
    hashed = subprocess.run(["openssl", "passwd", "-6", PASSWORD], check=True, capture_output=True, text=True).stdout.strip()
    objects = [{"apiVersion": "quorumail.io/v1alpha1", "kind": "MailDomain", "metadata": {"name": "example-org"},
                "spec": {"domain": "example.org"}},
               {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "people"}, "stringData": {"all": hashed}}]
    objects += [{"apiVersion": "quorumail.io/v1alpha1", "kind": "Mailbox", "metadata": {"name": f"user{i}"},
                 "spec": {"address": f"user{i}@example.org", "passwordSecretRef": {"name": "people", "key": "all"}}} for i in range(count)]
    return {"people.yaml": "\n---\n".join(map(json.dumps, objects)) + "\n"}


def wait_served(dev, count):
    end = time.monotonic() + 600
    while time.monotonic() < end:
        listed = subprocess.run([str(Path(os.environ["QUORUMAIL_BIN"]) / "quorumail"), "--dev", str(dev.directory / "data"), "mailbox",
                                 "usage", "-o", "json"], capture_output=True, text=True, timeout=120)
        if listed.returncode == 0 and len(json.loads(listed.stdout)) >= count:
            return
        time.sleep(1)
    raise SystemExit(f"{count} mailboxes were not there in ten minutes")


def node(mailboxes, messages=0):
    """Resident memory after a load, and after a restart with what it left."""
    with tempfile.TemporaryDirectory(prefix="memory-") as directory:
        data = Path(directory) / "data"
        with Dev(Path(directory) / "first", resources(mailboxes), nodes=1, data=data) as dev:
            dev.directory = Path(directory)
            wait_served(dev, mailboxes)
            if messages:
                load("folder", "--target", dev.node(0)["imap"], "--user", "user0@example.org", "--password", PASSWORD,
                     "--fill", messages, "--read", 1, "--connections", 20)
            after = resident(dev)
        with Dev(Path(directory) / "second", resources(mailboxes), nodes=1, data=data) as dev:
            time.sleep(3)
            return after, resident(dev)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mailboxes", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--messages", type=int, nargs="*", default=[10_000, 100_000])
    arguments = parser.parse_args()
    _, empty = node(1)
    print(f"1 mailbox, nothing in it: {empty:.1f} MiB", flush=True)
    for count in arguments.mailboxes:
        after, restarted = node(count)
        print(f"{count} mailboxes: {restarted:.1f} MiB, {1024 * (restarted - empty) / count:.2f} KiB each (after they were made {after:.1f})", flush=True)
    for count in arguments.messages:
        after, restarted = node(1, count)
        print(f"{count} messages in one folder: {restarted:.1f} MiB, {1024 * (restarted - empty) / (count / 10_000):,.0f} KiB for 10,000 (after the load {after:.1f})", flush=True)


if __name__ == "__main__":
    main()
