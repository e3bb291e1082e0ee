"""Backups and restores beside restic, which copies the same mail as a Maildir: time, stored bytes, memory.

    QUORUMAIL_BIN=target/release python3 tests/bench/backup.py [--mib 512] [--nodes 3] [--elsewhere DIR]
    QUORUMAIL_CLUSTER_BIN=$(out/cluster bin) QUORUMAIL_BIN=target/release python3 tests/bench/backup.py --copies-only --s3 [--mib 4096]

Mail of 2 to 200 KiB, a third of it text, the rest base64 of random bytes, as attachments are. Both write into a directory on the
same disk. Quorumail backs up from its nodes while they run and restores into a Maildir; restic reads that Maildir and restores
it. Each is sealed and compressed; the file cache is dropped before every step (as root). Then what senders notice: SMTP at full load and at
40 % of it, turns without and with backups of everything one after the other, into the disk that the mail is on as well and, with
`--elsewhere`, into a directory on another one (as /dev/shm); how far the archive falls behind meanwhile; and how long a restore into a
new cluster takes."""

import argparse
import base64
import imaplib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import statistics
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from bench import load  # noqa: E402
from dev import BIN, Dev, people  # noqa: E402
from mail import wait_for  # noqa: E402
from repository import BUCKET, Bucket, Directory  # noqa: E402
from restart import drop_cache  # noqa: E402

PASSWORD = "a password"
NAMES = [f"user{i}" for i in range(8)]
WORDS = [word.strip(".,;:()") for word in __doc__.split()]


def message(chance, number):
    size = int(2048 * 100 ** chance.random())
    text = []
    while sum(map(len, text)) < size // 3:
        text.append(" ".join(chance.choice(WORDS) for _ in range(10)) + "\r\n")
    attached = base64.encodebytes(chance.randbytes(size // 2)).replace(b"\n", b"\r\n")
    head = f"From: bench@example.org\r\nSubject: message {number}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    return head + "".join(text).encode() + attached


def fill(dev, mib):
    """Appends mail over IMAP until there is so much; answers messages and bytes."""
    counts = []

    def one(number, name):
        chance, bytes_left, count = random.Random(number), mib * (1 << 20) // len(NAMES), 0
        host, port = dev.node(number % len(dev.nodes))["imap"].rsplit(":", 1)
        client = imaplib.IMAP4(host, int(port))
        client.login(f"{name}@example.org", PASSWORD)
        total = 0
        while total < bytes_left:
            raw = message(chance, count)
            assert client.append("INBOX", None, None, raw)[0] == "OK"
            total, count = total + len(raw), count + 1
        client.logout()
        counts.append((count, total))

    threads = [threading.Thread(target=one, args=each) for each in enumerate(NAMES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == len(NAMES), "a client broke off"
    return sum(count for count, _ in counts), sum(total for _, total in counts)


def size(directory):
    return sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())


def peak(pid):
    """Most memory that a process has had since it was last reset, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def watched(place, command):
    """Runs a command of the CLI; answers its peak of memory in MiB."""
    process, most = place.start(command), 0.0
    while process.poll() is None:
        try:
            most = max(most, peak(process.pid))
        except (OSError, StopIteration):  # it has just ended
            break
        time.sleep(0.05)
    place.finish(process, within=3600)
    return most


def timed(work):
    drop_cache()
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


class Restic:
    """A repository of restic's, where the other's is: in a directory beside it or in the same bucket."""

    def __init__(self, place):
        self.directory = place.objects.parent / "restic"
        s3 = isinstance(place, Bucket)
        self.options = ["--cacert", str(place.certificate)] if s3 else []
        repository = f"s3:https://127.0.0.1:{place.port}/{BUCKET}/restic" if s3 else str(self.directory)
        self.environment = {**os.environ, **place.secrets, "RESTIC_PASSWORD": "a password of the bench", "RESTIC_REPOSITORY": repository}

    def __call__(self, *arguments):
        subprocess.run(["restic", "--no-cache", "-q", *self.options, *arguments], check=True, env=self.environment, timeout=3600)


def show(title, seconds, total, note=""):
    print(f"{title:34} {seconds:7.1f} s {total / seconds / 1e6:8.1f} MB/s {note}", flush=True)


def smtp(dev, seconds, rate=0):
    """SMTP at a rate, or at full load; messages a second and the 99th percentile in milliseconds."""
    told = load("smtp", "--targets", ",".join(dev.all("smtp")), "--recipients", ",".join(f"{name}@example.org" for name in NAMES),
                "--imap", dev.node(0)["imap"], "--password", PASSWORD, "--seconds", seconds,
                "--rate", rate)
    return told["accepted_per_second"], told["p99_ms"]


def senders(dev, directory, rounds, seconds, rate=0, elsewhere=None):
    """What senders notice at a rate, or at full load; answers messages a second without backups. Turns without a backup, with backups
    at full speed, and with one that is held back, as `bytesPerSecond` does."""
    kinds = {"without": None, "with backups": [], "with backups at 4 MiB/s": ["--rate", "4Mi"]}
    if elsewhere:
        kinds["with backups elsewhere"] = []
    figures = {kind: [] for kind in kinds}
    for turn in range(rounds):
        for kind, extra in kinds.items():
            over, count = threading.Event(), [0]

            def back_up(extra=extra, turn=turn, kind=kind):
                while not over.is_set():
                    # A new repository each time: all of it has to be read, sealed and written.
                    place = Directory((elsewhere if kind.endswith("elsewhere") else directory) / f"load-{turn}-{kind.replace(' ', '-').replace('/', '-')}-{count[0]}")
                    process = place.start(["backup", "now"], dev, extra)
                    while process.poll() is None and not over.is_set():
                        time.sleep(0.05)
                    if process.poll() is None:
                        process.kill()
                    process.communicate()
                    count[0] += 1
                    shutil.rmtree(place.directory)

            worker = None if extra is None else threading.Thread(target=back_up)
            if worker:
                worker.start()
            figures[kind].append(smtp(dev, seconds, rate))
            over.set()
            if worker:
                worker.join()
    base = statistics.median(p99 for _, p99 in figures["without"])
    for kind, seen in figures.items():
        taken, p99 = (statistics.median(column) for column in zip(*seen))
        print(f"SMTP {kind:26} {taken:8.0f} messages/s, p99 {p99:6.1f} ms ({p99 / base:.2f} of that without)", flush=True)
    return statistics.median(taken for taken, _ in figures["without"])


def metric(dev, name):
    """A metric without labels, of every node."""
    values = []
    for node in sorted(dev.nodes):
        text = urllib.request.urlopen(f"http://{dev.node(node)['http']}/metrics", timeout=30).read().decode()
        values += [float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} ")]
    return values


def archive(dev, directory, seconds):
    """How far the archive falls behind at full load, and what it ships."""
    place = Directory(directory / "archive")
    # An archive goes on from a backup.
    place.run("backup", "now", dev=dev, within=3600)
    place.run("backup", "archive", "start", "--max-lag", "60", dev=dev)
    wait_for(lambda: sum(metric(dev, "quorumail_archive_running")) == len(dev.nodes), what="every node to ship")
    lags, over = [], threading.Event()

    def watch():
        while not over.wait(0.5):
            lags.append(max(metric(dev, "quorumail_archive_lag_seconds")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = sum(metric(dev, "quorumail_archive_bytes_total"))
    rate, p99 = smtp(dev, seconds)
    over.set()
    watcher.join()
    shipped = sum(metric(dev, "quorumail_archive_bytes_total")) - before
    print(f"archive (maxLag 60 s) at {rate:.0f} messages/s for {seconds} s, p99 {p99:.1f} ms: {shipped / 1e6:.1f} MB shipped, "
          f"at most {max(lags):.1f} s behind", flush=True)
    quorumail = [str(BIN / "quorumail"), "--dev", str(dev.directory / "data")]
    subprocess.run([*quorumail, "backup", "archive", "stop"], check=True, capture_output=True, timeout=60)


def beside_restic(directory, arguments, place):
    with Dev(directory / "dev", {"people.yaml": people(NAMES, password=PASSWORD)}, nodes=arguments.nodes) as dev:
        messages, total = fill(dev, arguments.mib)
        print(f"{messages:,} messages, {total / 1e6:,.0f} MB, {arguments.nodes} nodes, {os.cpu_count()} cores", flush=True)
        pids = [dev.node(node)["pid"] for node in range(arguments.nodes)]
        before = max(map(peak, pids))
        took = timed(lambda: place.run("backup", "now", dev=dev, within=3600))
        after = max(map(peak, pids))
        show("Quorumail, first backup", took, total, f"stored {size(place.objects) / total:.2f} of it, a node's peak {before:.0f} -> {after:.0f} MiB")
        stored = size(place.objects)
        took = timed(lambda: place.run("backup", "now", dev=dev, within=3600))
        show("Quorumail, second backup", took, total, f"{(size(place.objects) - stored) / 1024:.0f} KiB more")
    with Dev(directory / "new", {}, nodes=arguments.nodes) as dev:
        took = timed(lambda: place.run("restore", "--all", dev=dev, within=3600))
        show("Quorumail, restore into a cluster", took, total, f"RTO {took / (total / (1 << 30)):.0f} s/GiB")
    shutil.rmtree(directory / "new")
    maildir = directory / "maildir"
    most = []
    took = timed(lambda: most.append(watched(place, ["restore", "--all", "--to-maildir", str(maildir)])))
    show("Quorumail, restore into a Maildir", took, total, f"at most {most[0]:.0f} MiB")
    took = timed(lambda: place.run("backup", "verify", within=3600))
    show("Quorumail, verify", took, total)
    if not shutil.which("restic"):
        return print("left out: restic is not installed")
    restic, back = Restic(place), directory / "back"
    restic("init")
    took = timed(lambda: restic("backup", str(maildir)))
    show("restic, first backup", took, total, f"stored {size(restic.directory) / total:.2f} of it")
    took = timed(lambda: restic("backup", str(maildir)))
    show("restic, second backup", took, total)
    took = timed(lambda: restic("restore", "latest", "--target", str(back)))
    show("restic, restore", took, total)
    took = timed(lambda: restic("check", "--read-data"))
    show("restic, check --read-data", took, total)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--elsewhere", type=Path, help="a directory on another disk")
    parser.add_argument("--load-only", action="store_true", help="only what senders notice")
    parser.add_argument("--copies-only", action="store_true", help="only backups and restores beside restic")
    parser.add_argument("--s3", action="store_true", help="both into a bucket of versitygw, over TLS, instead of a directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="backup-") as directory:
        directory = Path(directory)
        if not arguments.load_only:
            place = (Bucket if arguments.s3 else Directory)(directory / "backups")
            try:
                beside_restic(directory, arguments, place)
            finally:
                place.close()
        if arguments.copies_only:
            return
        with Dev(directory / "load", {"people.yaml": people(NAMES, password=PASSWORD)}, nodes=arguments.nodes) as dev:
            fill(dev, min(arguments.mib, 128))
            most = senders(dev, directory, arguments.rounds, arguments.seconds, elsewhere=arguments.elsewhere)
            # A processor that has nothing left answers later whatever is added; mail seldom is all that it can take.
            senders(dev, directory, arguments.rounds, arguments.seconds, most * 0.4, arguments.elsewhere)
            archive(dev, directory, 3 * arguments.seconds)


if __name__ == "__main__":
    main()
