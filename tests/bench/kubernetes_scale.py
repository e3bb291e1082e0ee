"""What many Mailboxes cost on Kubernetes: time until all are Ready, memory of the operator, writes to the API server.

    QUORUMAIL_BIN=target/release python3 tests/bench/kubernetes_scale.py [--counts 100,1000,10000] [--unrelated 10000]

On the cluster of the end-to-end tests, with one mailnode. `--unrelated`: so many Secrets and Pods of others are there from the
beginning, which are none of the operator's business (the Pods are bound to no scheduler). For each count: mailboxes are applied by
four `kubectl` at once; then the operator is replaced with all of them there; then passwords are changed one after the other, and
how long each takes until IMAP takes the new one is measured. Finally nothing changes for a minute, and writes are counted."""

import argparse
import base64
import concurrent.futures
import imaplib
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import kubernetes  # noqa: E402
import mail  # noqa: E402

NAMESPACE, OTHERS = "scale", "unrelated"
DOMAIN = "example.org"
AT_ONCE = 4
BATCH = 250
PASSWORD = "correct horse battery staple"
# Seconds after which the mailnodes forget one failure of a user.
FORGIVEN = 10


def in_batches(things, work):
    """Does something with batches, several at once."""
    batches = [things[start:start + BATCH] for start in range(0, len(things), BATCH)]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(work, batches):
            pass


def create(cluster, things):
    text = lambda batch: json.dumps({"apiVersion": "v1", "kind": "List", "items": batch})  # noqa: E731
    in_batches(things, lambda batch: cluster.kubectl("apply", "--server-side", "-f", "-", input=text(batch), timeout=1800))


def thing(kind, name, namespace, version="quorumail.io/v1alpha1", **rest):
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **rest}


def mailbox(number):
    return thing("Mailbox", f"m{number}", NAMESPACE, spec={
        "address": f"m{number}@{DOMAIN}", "passwordSecretRef": {"name": "people", "key": "all"}})


def unrelated(number):
    pod = {"schedulerName": "nobody", "containers": [{"name": "x", "image": "none.example/x:1"}]}
    return [thing("Secret", f"s{number}", OTHERS, "v1", stringData={"token": os.urandom(512).hex()}),
            thing("Pod", f"p{number}", OTHERS, "v1", spec=pod)]


def ready(cluster):
    """Mailboxes that are Ready."""
    path = "{range .items[*]}{.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}"
    return cluster.kubectl("-n", NAMESPACE, "get", "mailboxes", "--chunk-size=0", "-o", f"jsonpath={path}").split().count("True")


def operators():
    """Resident memory of each operator process, in MiB, and the most that it was."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if not process.name.isdigit() or not (process / "cmdline").read_bytes().startswith(b"/usr/bin/operator"):
                continue
            status = (process / "status").read_text()
        except OSError:
            continue
        found.append(tuple(int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1]) / 1024 for name in ("VmRSS", "VmHWM")))
    return found


def writes(cluster):
    """Writes to the API server of what is Quorumail's, but for Leases."""
    total = 0.0
    for line in cluster.kubectl("get", "--raw", "/metrics").splitlines():
        if line.startswith("apiserver_request_total{") and 'group="quorumail.io"' in line and re.search(
                r'verb="(POST|PUT|PATCH|APPLY|DELETE)"', line):
            total += float(line.rsplit(" ", 1)[1])
    return total


def until(condition, within, what, every=0.5):
    begun = time.monotonic()
    mail.wait_for(condition, within=within, every=every, what=what)
    return time.monotonic() - begun


def opens(address, word):
    """Whether a password is taken."""
    try:
        mail.login(address, f"one@{DOMAIN}", word).logout()
    except imaplib.IMAP4.error:
        return False
    return True


def password_times(cluster, rounds):
    """Seconds from a changed Secret until IMAP takes the old password no more. Asked with the old one: those who fail often are
    not let in for a while, and so one failure each is all that there may be."""
    times = []
    address = cluster.address("service/mail", 993, namespace=NAMESPACE)
    cluster.apply(json.dumps(thing("Secret", "one", NAMESPACE, "v1", stringData={"word": "first"})))
    cluster.apply(json.dumps(thing("Mailbox", "one", NAMESPACE, spec={
        "address": f"one@{DOMAIN}", "passwordSecretRef": {"name": "one", "key": "word"}})))
    cluster.wait("Ready", "mailbox/one", namespace=NAMESPACE, within=120)
    before = "first"
    assert opens(address, before), "the first password is not taken"
    for number in range(rounds):
        word = f"word {number}"
        patch = json.dumps({"data": {"word": base64.b64encode(word.encode()).decode()}})
        cluster.kubectl("-n", NAMESPACE, "patch", "secret", "one", "--type=merge", "-p", patch)
        begun = time.monotonic()
        while opens(address, before):
            assert time.monotonic() - begun < 60, "the old password is taken for too long"
            time.sleep(0.05)
        times.append(time.monotonic() - begun)
        mail.login(address, f"one@{DOMAIN}", word).logout()
        before = word
        time.sleep(FORGIVEN)
    return times


def measure(cluster, count, before):
    new = [mailbox(number) for number in range(before, count)]
    written, begun = writes(cluster), time.monotonic()
    create(cluster, new)
    applied = time.monotonic() - begun
    # Each look reads them all: as often as not to be what keeps the API server busy.
    later = until(lambda: ready(cluster) >= count, 1800, f"{count} mailboxes Ready", every=max(0.5, count / 1000))
    # What people applied is one write each.
    by_operator = writes(cluster) - written - len(new)
    memory = max(operators(), default=(0, 0))
    print(f"{count:6,} mailboxes: {len(new):,} applied in {applied:.0f} s, all Ready {later:.1f} s after the last one; {by_operator / len(new):.2f} "
          f"writes each by the operator; resident {memory[0]:.0f} MiB, at most {memory[1]:.0f} MiB", flush=True)


def replaced(cluster, count):
    """A new operator, with all the mailboxes there: how long until a change is served, and what it takes."""
    deployment = "deployment/quorumail-operator"
    cluster.kubectl("-n", "quorumail-system", "delete", "pods", "-l", "app.kubernetes.io/component=operator",
                    "--grace-period=0", "--force")
    begun = time.monotonic()
    cluster.apply(json.dumps(thing("Mailbox", f"late-{count}", NAMESPACE, spec={
        "address": f"late-{count}@{DOMAIN}", "passwordSecretRef": {"name": "people", "key": "all"}})))
    cluster.wait("Ready", f"mailbox/late-{count}", namespace=NAMESPACE, within=300)
    took = time.monotonic() - begun
    cluster.kubectl("-n", "quorumail-system", "rollout", "status", deployment, "--timeout=120s")
    time.sleep(10)
    memory = max(operators(), default=(0, 0))
    print(f"{count:6,} mailboxes: both operators killed, a new mailbox Ready {took:.1f} s later; resident {memory[0]:.0f} MiB, "
          f"at most {memory[1]:.0f} MiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="100,1000,10000")
    parser.add_argument("--unrelated", type=int, default=0)
    parser.add_argument("--passwords", type=int, default=30)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.counts.split(",")]
    cluster = kubernetes.find()
    kubernetes.install(cluster)
    try:
        for namespace in (NAMESPACE, OTHERS):
            cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))
        if arguments.unrelated:
            create(cluster, [item for number in range(arguments.unrelated) for item in unrelated(number)])
            print(f"{arguments.unrelated:,} Secrets and as many Pods of others are there", flush=True)
        create(cluster, [
            thing("MailCluster", "mail", NAMESPACE, spec={"nodes": 1, "storage": {"size": "2Gi", "deletionPolicy": "Delete"}}),
            thing("MailDomain", "example-org", NAMESPACE, spec={"domain": DOMAIN}),
            thing("Secret", "people", NAMESPACE, "v1", stringData={"all": PASSWORD}),
        ])
        cluster.wait("Ready", "mailcluster/mail", "maildomain/example-org", namespace=NAMESPACE)
        memory = max(operators(), default=(0, 0))
        print(f"     0 mailboxes: resident {memory[0]:.0f} MiB", flush=True)
        before = 0
        for count in counts:
            measure(cluster, count, before)
            replaced(cluster, count)
            before = count
        times = sorted(password_times(cluster, arguments.passwords))
        print(f"a changed Secret is the password after: median {statistics.median(times):.2f} s, p99 {times[int(len(times) * 0.99)]:.2f} s, "
              f"{len(times)} times", flush=True)
        written = writes(cluster)
        time.sleep(60)
        print(f"writes in a minute in which nothing changed: {writes(cluster) - written:.0f}", flush=True)
    finally:
        for namespace in (NAMESPACE, OTHERS):
            cluster.kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")
        cluster.close()


if __name__ == "__main__":
    main()
