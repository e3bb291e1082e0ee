"""What three nodes with nothing to do cost: CPU time of all processes together, after they have become quiet.

    QUORUMAIL_BIN=target/release python3 tests/bench/idle.py [--partitions 16 64 256] [--seconds 30]"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from dev import Dev, people  # noqa: E402
from failover import metric  # noqa: E402

SETTLE = 90  # seconds in which everything must have become quiet


def cpu(pid):
    """Seconds of CPU time of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cluster(partitions):
    return ("{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {name: dev}, "
            f"spec: {{nodes: 3, partitions: {partitions}}}}}\n")


def measure(partitions, seconds):
    with tempfile.TemporaryDirectory(prefix="idle-") as directory:
        with Dev(directory, {"cluster.yaml": cluster(partitions), "people.yaml": people(["alice"])}) as dev:
            end = time.monotonic() + SETTLE
            groups = [partitions + 1] * 3
            while (quiet := [metric(dev, node, "group_quiet") for node in range(3)]) != groups and time.monotonic() < end:
                time.sleep(1)
            pids = [dev.node(node)["pid"] for node in range(3)]
            before, began = [cpu(pid) for pid in pids], time.monotonic()
            time.sleep(seconds)
            took = time.monotonic() - began
            used = [100 * (cpu(pid) - at) / took for pid, at in zip(pids, before)]
    print(f"{partitions} partitions: {sum(used):.2f} % of a core for 3 nodes ({', '.join(f'{u:.2f}' for u in used)}); "
          f"quiet groups {', '.join(f'{q:.0f}' for q in quiet)}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--partitions", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    for partitions in arguments.partitions:
        measure(partitions, arguments.seconds)


if __name__ == "__main__":
    main()
