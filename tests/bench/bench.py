"""`make bench`: Quorumail with one and three nodes beside Postfix with Dovecot, in one run on this machine.

Figures of such machines differ from run to run: read the ratios. Nothing here fails because something was slow."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from dev import BIN, Dev, people  # noqa: E402
from dovecot import Dovecot  # noqa: E402
from test_remote import Postfix, free_port  # noqa: E402

PASSWORD = "a password"
NAMES = [f"user{i}" for i in range(20)]
SECONDS = float(os.environ.get("BENCH_SECONDS", "10"))
MESSAGES = int(os.environ.get("BENCH_MESSAGES", "10000"))


def load(*arguments):
    done = subprocess.run([str(BIN / "quorumail-bench"), *map(str, arguments)], capture_output=True, text=True, timeout=1200)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def memory(pid):
    """Resident memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def smtp_load(targets, imap, recipients):
    return load("smtp", "--targets", ",".join(targets), "--recipients", ",".join(recipients), "--imap", imap,
                "--password", PASSWORD, "--seconds", SECONDS)


def quorumail(nodes):
    figures = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        with Dev(directory, {"people.yaml": people(NAMES, password=PASSWORD)}, nodes=nodes) as dev:
            time.sleep(2)
            figures["idle_mib"] = max(memory(dev.node(n)["pid"]) for n in range(nodes))
            recipients = [f"{n}@example.org" for n in NAMES]
            figures["smtp"] = smtp_load(dev.all("smtp"), dev.node(0)["imap"], recipients)
            figures["imap"] = load("imap", "--target", dev.node(0)["imap"], "--user", recipients[0],
                                   "--password", PASSWORD, "--messages", MESSAGES)
            figures["loaded_mib"] = max(memory(dev.node(n)["pid"]) for n in range(nodes))
    return figures


def others():
    figures = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        with Dovecot(Path(directory) / "dovecot", NAMES, PASSWORD, lmtp=True) as dovecot:
            port = free_port()
            postfix = Postfix(Path(directory) / "postfix", port, ("127.0.0.1", 1))
            config = (postfix.etc / "main.cf").read_text().splitlines()
            config = [line for line in config if not line.startswith(("virtual_mailbox", "transport_maps"))]
            config += ["virtual_mailbox_domains = example.org", "virtual_mailbox_maps = static:all",
                       f"virtual_transport = lmtp:inet:127.0.0.1:{dovecot.lmtp}", "smtpd_client_connection_rate_limit = 0",
                       "smtpd_client_connection_count_limit = 0", "lmtp_destination_concurrency_limit = 20"]
            (postfix.etc / "main.cf").write_text("\n".join(config) + "\n")
            with postfix:
                figures["smtp"] = smtp_load([f"127.0.0.1:{port}"], f"127.0.0.1:{dovecot.imap}", [f"{n}@example.org" for n in NAMES])
            figures["imap"] = load("imap", "--target", f"127.0.0.1:{dovecot.imap}", "--user", f"{NAMES[0]}@example.org",
                                   "--password", PASSWORD, "--messages", MESSAGES)
    return figures


def show(runs):
    rows = [
        ("accepted, messages/s", lambda f: f["smtp"]["accepted_per_second"]),
        ("  MAIL to 250, p50 ms", lambda f: f["smtp"]["p50_ms"]),
        ("  MAIL to 250, p99 ms", lambda f: f["smtp"]["p99_ms"]),
        ("readable, messages/s", lambda f: f["smtp"]["delivered_per_second"]),
        ("IMAP APPEND/s, one client", lambda f: f["imap"]["append_per_second"]),
        (f"IMAP SELECT of {MESSAGES}, ms", lambda f: f["imap"]["select_ms"]),
        (f"IMAP FETCH {MESSAGES} envelopes, ms", lambda f: f["imap"]["envelopes_ms"]),
        ("IMAP FETCH bodies/s", lambda f: f["imap"]["bodies_per_second"]),
        ("memory of an idle node, MiB", lambda f: f.get("idle_mib")),
        ("memory after the load, MiB", lambda f: f.get("loaded_mib")),
    ]
    names = list(runs)
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, messages of 8 KiB, 20 connections, {SECONDS:.0f} s\n")
    print(f"{'':36}" + "".join(f"{n:>20}" for n in names))
    for title, figure in rows:
        cells = []
        for name in names:
            value = figure(runs[name])
            cells.append(f"{'-':>20}" if value is None else f"{value:>20,.1f}")
        print(f"{title:36}" + "".join(cells))


def main():
    if not (BIN / "quorumail-bench").exists():
        sys.exit(f"{BIN}/quorumail-bench is not built (make build)")
    runs = {}
    for name, measure in [("Quorumail, 1 node", lambda: quorumail(1)), ("Quorumail, 3 nodes", lambda: quorumail(3)),
                          ("Postfix + Dovecot", others)]:
        print(f"measuring {name} ...", flush=True)
        runs[name] = measure()
    show(runs)
    print("\n" + json.dumps(runs))


if __name__ == "__main__":
    main()
