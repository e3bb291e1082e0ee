"""`make demo`: the main job on a real Kubernetes, and what happened, in a table."""

import random
import sys
import tempfile
import threading
import time

import dev
import kubernetes
import mail
from test_kubernetes import PASSWORD, SAMPLE, leader_pod, open_imap, pods, smtp

ROWS = []


def step(text):
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def row(what, result):
    ROWS.append((what, result))
    print(f"   {what}: {result}", flush=True)


def table():
    width = max(len(what) for what, _ in ROWS)
    line = "+-" + "-" * width + "-+-" + "-" * 60 + "-+"
    print("\n" + line)
    for what, result in ROWS:
        print(f"| {what:<{width}} | {result:<60} |")
    print(line)


def read_back(open_client, msg):
    """The stored body ends with exactly the bytes that were sent."""
    client = open_client()
    client.select("INBOX", readonly=True)
    _, found = client.uid("SEARCH", "HEADER", "X-Token", msg["X-Token"])
    _, data = client.uid("FETCH", found[0].split()[0], "(BODY.PEEK[])")
    client.logout()
    sent = msg.as_bytes(policy=msg.policy.clone(linesep="\r\n")).split(b"\r\n\r\n", 1)[1]
    return data[0][1].endswith(sent), len(sent)


def send_while(addresses, fault, open_mailbox, recipient):
    """Mail is sent while a node is killed; afterwards every acknowledged message must be there once."""
    ledger, stop = mail.Ledger(), threading.Event()
    seed = random.randrange(1 << 30)
    senders = [threading.Thread(target=mail.keep_sending, args=(addresses, [recipient], ledger, stop, seed + i)) for i in range(4)]
    for sender in senders:
        sender.start()
    mail.wait_for(lambda: len(ledger.acknowledged) > 50, within=60, what="mail flowing")
    fault()
    during = len(ledger.acknowledged)
    mail.wait_for(lambda: len(ledger.acknowledged) > during + 200, within=120, what="mail flowing again")
    stop.set()
    for sender in senders:
        sender.join()
    lost, twice, _ = mail.wait_for(lambda: mail.account_for(ledger, open_mailbox, [recipient]), within=60)
    row("acknowledged while it happened", f"{len(ledger.acknowledged)} messages")
    row("of them lost / there twice", f"{len(lost)} / {len(twice)}")
    row("longest time without an acknowledgement", f"{ledger.longest_pause():.2f} s")
    return not lost and not twice


def attachment_message():
    return mail.message("you@elsewhere.example", "alice@example.org", "Hello from the demo",
                        attachment=random.Random(1).randbytes(300_000))


def on_kubernetes(cluster):
    step("Installing the chart")
    kubernetes.install(cluster)
    step("kubectl apply -f manifests/samples/quickstart.yaml")
    cluster.kubectl("apply", "-f", str(SAMPLE))
    start = time.monotonic()
    cluster.wait("Ready", "mailcluster/mail", "maildomain/example-org", "mailbox/alice", "mailbox/bob")
    row("resources Ready after", f"{time.monotonic() - start:.0f} s")
    for port in [25, 993]:
        kubernetes.wait_port(cluster.address("service/mail", port))
    print(cluster.kubectl("-n", "mail", "get", "mailclusters,maildomains,mailboxes,pods", "-o", "wide"))

    step("Sending a message with an attachment through the Service, reading it from another pod")
    msg = attachment_message()
    mail.send(smtp(cluster), msg)
    reader = pods(cluster)[-1]
    same, size = read_back(lambda: open_imap(cluster, pod=reader), msg)
    row(f"sent through the Service, read from {reader}", f"{'identical' if same else 'DIFFERENT'}, {size} bytes")

    partition = cluster.get("-n", "mail", "mailbox", "alice")["status"]["partition"]
    victim = leader_pod(cluster, partition)
    step(f"kill -9 of {victim}, which leads alice's partition {partition}, while mail is being sent")
    row("killed with -9", f"{victim} (leads partition {partition})")
    safe = send_while([smtp(cluster)], lambda: cluster.kill_pod(victim), lambda r: open_imap(cluster, r), "alice@example.org")

    step("Changing the password in the Secret")
    word = f"changed-{random.randrange(10**6)}"
    cluster.kubectl("-n", "mail", "patch", "secret", "people", "--type=merge", "-p", '{"stringData":{"alice":"%s"}}' % word)
    start = time.monotonic()
    mail.wait_for(lambda: open_imap(cluster, password=word), within=30, what="the new password")
    row("new password works after", f"{time.monotonic() - start:.1f} s")
    cluster.kubectl("apply", "-f", str(SAMPLE))
    mail.wait_for(lambda: open_imap(cluster), within=30, what="the password of the sample")
    cluster.wait("Ready", "mailcluster/mail", within=120)
    table()
    kubeconfig = cluster.env.get("KUBECONFIG")
    print("\nGo on by hand:\n")
    if kubeconfig:
        print(f"    export KUBECONFIG={kubeconfig}")
    if cluster.direct:
        print(f"    export PATH=$PATH:{cluster.env['PATH'].split(':')[0]}")
    print("    kubectl -n mail get mailclusters,maildomains,mailboxes,pods")
    print(f"    swaks --server {smtp(cluster)} --from you@elsewhere.example --to alice@example.org")
    print(f"    curl -k --user 'alice@example.org:{PASSWORD}' 'imaps://{cluster.address('service/mail', 993)}/INBOX?ALL'")
    print("    make down    # ends the local cluster and all it started\n")
    return same and safe


def on_this_machine():
    directory = tempfile.mkdtemp(prefix="quorumail-demo-")
    step("quorumail dev -f manifests/samples/quickstart.yaml: three real mailnodes, no Kubernetes")
    with dev.Dev(directory, {"quickstart.yaml": SAMPLE.read_text()}) as nodes:
        msg = attachment_message()
        mail.send(nodes.node(0)["smtp"], msg)
        same, size = read_back(lambda: mail.login(nodes.node(2)["imaps"], "alice@example.org", PASSWORD), msg)
        row("sent to node 0, read from node 2", f"{'identical' if same else 'DIFFERENT'}, {size} bytes")
        step("kill -9 of node 0 while mail is being sent")
        safe = send_while(nodes.all("smtp"), lambda: nodes.kill(0),
                          lambda r: mail.login(nodes.node(1)["imaps"], r, PASSWORD), "alice@example.org")
    table()
    print("\nGo on by hand:  target/debug/quorumail dev -f manifests/samples/quickstart.yaml\n")
    return same and safe


def main():
    try:
        cluster = kubernetes.find()
    except kubernetes.Unavailable as reason:
        print(f"Kubernetes: none can be used here ({reason}); going on with `quorumail dev`")
        return on_this_machine()
    try:
        return on_kubernetes(cluster)
    finally:
        cluster.close()


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
