"""How long a node takes to be ready again with a large journal: after kill -9 in the middle of a load, and after a stop.

    QUORUMAIL_BIN=target/release python3 tests/bench/restart.py [--gib 4 16]

One node. The load goes on until the journal has so many GiB; then the process is killed while mail still comes in, started
again by `quorumail dev` after two seconds, and asked for /readyz until it says yes; the time is from the new process's start. The
file cache is dropped before (as root), so what is read comes from the disk."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from dev import BIN, Dev, people  # noqa: E402
from failover import metric  # noqa: E402

GIB = 1 << 30
NAMES = [f"user{i}" for i in range(20)]


def ready_after(dev, old, within=300):
    """Seconds from the start of the process that follows `old` until it is ready."""
    end = time.monotonic() + within
    while dev.node(0)["pid"] == old:
        time.sleep(0.01)
    pid = dev.node(0)["pid"]
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://{dev.node(0)['http']}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return age(pid)
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(0.02)
    raise SystemExit("the node did not become ready")


def age(pid):
    """Seconds since the process began."""
    begun = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text().split()[0]) - begun


def drop_cache():
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return True
    except OSError:
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, nargs="+", default=[4, 16])
    parser.add_argument("--size", type=int, default=65536, help="bytes of a message")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="restart-") as directory:
        with Dev(directory, {"people.yaml": people(NAMES)}, nodes=1) as dev:
            for gib in arguments.gib:
                load = [str(BIN / "quorumail-bench"), "smtp", "--targets", dev.node(0)["smtp"], "--recipients",
                        ",".join(f"{name}@example.org" for name in NAMES), "--size", str(arguments.size), "--seconds", "3600"]
                sender = subprocess.Popen(load, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                while metric(dev, 0, "journal_disk_bytes") < gib * GIB:
                    time.sleep(0.5)
                size, messages = metric(dev, 0, "journal_disk_bytes"), metric(dev, 0, "smtp_messages_accepted_total")
                old = dev.node(0)["pid"]
                dev.kill(0)
                sender.wait(60)
                cold = drop_cache()
                took = ready_after(dev, old)
                print(f"{size / GIB:.1f} GiB of journal, {messages:,.0f} messages since the start before: "
                      f"ready {took:.2f} s after kill -9 under load ({'cold' if cold else 'warm'} file cache)", flush=True)


if __name__ == "__main__":
    main()
