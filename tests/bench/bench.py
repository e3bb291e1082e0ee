"""`make bench`: Quorumail with one and three nodes beside Postfix with Dovecot, in one run on this machine.

Figures of such machines differ from run to run: read the ratios. Nothing here fails because something was slow."""

import crypt
import json
import os
import platform
import pwd
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from dev import BIN, Dev, people  # noqa: E402
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


class Dovecot:
    """A Dovecot of this run's own: LMTP and IMAP, every message synced before it is acknowledged."""

    def __init__(self, directory):
        self.base = Path(directory)
        self.imap, self.lmtp = free_port(), free_port()
        for folder in ["run", "state", "mail"]:
            (self.base / folder).mkdir(parents=True)
        for folder in [self.base, *self.base.parents]:
            if folder != Path("/"):
                folder.chmod(folder.stat().st_mode | 0o011)
        user = pwd.getpwnam("nobody")
        os.chown(self.base / "mail", user.pw_uid, user.pw_gid)
        users = self.base / "users"
        word = crypt.crypt(PASSWORD, crypt.METHOD_SHA512)
        users.write_text("".join(f"{n}@example.org:{{CRYPT}}{word}:{user.pw_uid}:{user.pw_gid}::{self.base}/mail/{n}::\n" for n in NAMES))
        users.chmod(0o644)
        self.config = self.base / "dovecot.conf"
        self.config.write_text(
            f"base_dir = {self.base}/run\nstate_dir = {self.base}/state\nlog_path = {self.base}/log\nprotocols = imap lmtp\n"
            "ssl = no\ndisable_plaintext_auth = no\nmail_fsync = always\nfirst_valid_uid = 1\nfirst_valid_gid = 1\n"
            "mail_location = maildir:~/Maildir\nlisten = 127.0.0.1\nmail_max_userip_connections = 100\n"
            "namespace inbox {\n inbox = yes\n separator = /\n}\n"
            f"passdb {{\n driver = passwd-file\n args = {users}\n}}\nuserdb {{\n driver = passwd-file\n args = {users}\n}}\n"
            f"service imap-login {{\n inet_listener imap {{\n  port = {self.imap}\n }}\n inet_listener imaps {{\n  port = 0\n }}\n}}\n"
            f"service lmtp {{\n inet_listener lmtp {{\n  address = 127.0.0.1\n  port = {self.lmtp}\n }}\n}}\n"
        )

    def __enter__(self):
        subprocess.run(["dovecot", "-c", str(self.config)], check=True, timeout=60)
        return self

    def __exit__(self, *_):
        subprocess.run(["doveadm", "-c", str(self.config), "stop"], check=False, timeout=60)


def others():
    figures = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        with Dovecot(Path(directory) / "dovecot") as dovecot:
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
