"""A large folder on one node, beside Dovecot: filling, opening after a restart, reading. FOLDER_MESSAGES says how large;
with FOLDER_ALONE Dovecot is left out, which takes an hour to fill a folder of 1,000,000.

Figures of such machines differ from run to run: read the ratios."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from bench import PASSWORD, Dovecot, load, memory
from dev import Dev, people

MESSAGES = int(os.environ.get("FOLDER_MESSAGES", "100000"))
IDLE_SESSIONS = 50


def folder(target, user, fill=0):
    return load("folder", "--target", target, "--user", user, "--password", PASSWORD, "--fill", fill)


def idle_sessions(target, user):
    """Sessions with the folder selected."""
    import imaplib

    host, port = target.rsplit(":", 1)
    sessions = []
    for _ in range(IDLE_SESSIONS):
        client = imaplib.IMAP4(host, int(port))
        client.login(user, PASSWORD)
        client.select("large")
        sessions.append(client)
    return sessions


def quorumail():
    user = "user0@example.org"
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        data = Path(directory) / "data"
        resources = {"people.yaml": people(["user0"], password=PASSWORD)}
        with Dev(Path(directory) / "first", resources, nodes=1, data=data) as dev:
            before = memory(dev.node(0)["pid"])
            filled = folder(dev.node(0)["imap"], user, MESSAGES)
            filled["mib_before"], filled["mib_after"] = before, memory(dev.node(0)["pid"])
        with Dev(Path(directory) / "second", resources, nodes=1, data=data) as dev:
            restarted = folder(dev.node(0)["imap"], user)
            without = memory(dev.node(0)["pid"])
            sessions = idle_sessions(dev.node(0)["imap"], user)
            restarted["kib_per_session"] = (memory(dev.node(0)["pid"]) - without) * 1024 / IDLE_SESSIONS
            for session in sessions:
                session.logout()
    return {"Quorumail, filled": filled, "Quorumail, restarted": restarted}


def dovecot():
    user = "user0@example.org"
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        with Dovecot(Path(directory) / "dovecot", ["user0"], PASSWORD, lmtp=True) as server:
            filled = folder(f"127.0.0.1:{server.imap}", user, MESSAGES)
        with server:
            restarted = folder(f"127.0.0.1:{server.imap}", user)
    return {"Dovecot, filled": filled, "Dovecot, restarted": restarted}


def main():
    runs = quorumail()
    if os.environ.get("FOLDER_ALONE"):
        print("left out: dovecot, as asked for")
    elif shutil.which("dovecot"):
        runs |= dovecot()
    else:
        print("left out: dovecot is not installed")
    titles = list(dict.fromkeys(title for figures in runs.values() for title in figures))
    print(f"{'':22}" + "".join(f"{name:>24}" for name in runs))
    for title in titles:
        cells = [figures.get(title) for figures in runs.values()]
        print(f"{title:22}" + "".join(f"{'-':>24}" if cell is None else f"{cell:>24,.2f}" for cell in cells))
    print("\n" + json.dumps(runs))


if __name__ == "__main__":
    main()
