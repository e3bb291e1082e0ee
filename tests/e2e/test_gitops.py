"""What those who keep their mail in Git rely on: order, diffs, waiting, health, quiet, and one wrong object among many."""

import json
import subprocess
import time

import pytest
import yaml

import kubernetes
import mail

NAMESPACE = "gitops"
SAMPLES = kubernetes.ROOT / "manifests" / "samples"
OURS = ["mailclusters", "maildomains", "mailboxes"]
MANY = 1000


def sample(cluster):
    """The Kustomize sample's objects, in a namespace of this test and on one node."""
    objects = list(yaml.safe_load_all(cluster.kubectl("kustomize", str(SAMPLES / "kustomize"))))
    for thing in objects:
        if thing["kind"] == "Namespace":
            thing["metadata"]["name"] = NAMESPACE
        else:
            thing["metadata"]["namespace"] = NAMESPACE
        if thing["kind"] == "MailCluster":
            thing["spec"]["nodes"] = 1
            thing["spec"]["storage"]["deletionPolicy"] = "Delete"
    return objects


def text(objects):
    return "\n---\n".join(map(json.dumps, objects))


def apply(cluster, objects):
    return cluster.kubectl("apply", "--server-side", "--field-manager=gitops", "-f", "-", input=text(objects))


@pytest.fixture(scope="module")
def declared(cluster):
    """The sample, applied in the worst order: mailboxes first, then the domain, then the cluster, the Secret last."""
    order = ["Namespace", "Mailbox", "MailDomain", "MailCluster", "Secret"]
    objects = sorted(sample(cluster), key=lambda thing: order.index(thing["kind"]))
    assert len({thing["kind"] for thing in objects}) == 5
    for thing in objects:
        apply(cluster, [thing])
        if thing["kind"] == "MailDomain":
            condition = mail.wait_for(lambda: cluster.condition("mailbox", "alice", namespace=NAMESPACE), what="a condition")
            assert condition["status"] != "True", condition
            assert health(cluster.get("-n", NAMESPACE, "mailbox", "alice"))["status"] == "Progressing"
    cluster.wait("Ready", "mailcluster/mail", "maildomain/example-org", "mailbox/alice", "mailbox/bob", namespace=NAMESPACE)
    yield objects
    cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=180s", timeout=200)


def lua(value):
    """A value as a Lua expression."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{lua(key)}] = {lua(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(lua, value)) + "}"
    if isinstance(value, str):
        return '"' + "".join(f"\\{byte:03}" for byte in value.encode()) + '"'
    if value is None or isinstance(value, bool):
        return {None: "nil", True: "true", False: "false"}[value]
    return repr(value)


def health(thing):
    """What Argo CD would show of an object."""
    script = (SAMPLES / "argocd" / "health.lua").read_text()
    program = (f"obj = {lua(thing)}\nlocal function judge()\n{script}\nend\nlocal found = judge()\n"
               "io.write(found.status, '\\n', found.message or '')")
    status, _, message = subprocess.run(["lua5.1", "-"], input=program, text=True, check=True, capture_output=True,
                                        timeout=30).stdout.partition("\n")
    return {"status": status, "message": message}


def versions(cluster):
    """The version of every object that people write, and of those that the operator makes of them."""
    found = {}
    for kind in [*OURS, "secrets", "services", "statefulsets", "configmaps", "poddisruptionbudgets"]:
        for thing in cluster.get("-n", NAMESPACE, kind)["items"]:
            found[kind, thing["metadata"]["name"]] = thing["metadata"]["resourceVersion"]
    return found


def test_any_order_ends_ready_and_a_diff_of_the_same_files_is_empty(cluster, declared):
    for _ in range(2):
        # It fails when anything differs, and says what.
        assert cluster.kubectl("diff", "--server-side", "--field-manager=gitops", "-f", "-", input=text(declared)) == ""
        apply(cluster, declared)
    for kind, name in [("mailcluster", "mail"), ("maildomain", "example-org"), ("mailbox", "alice"), ("mailbox", "bob")]:
        thing = cluster.get("-n", NAMESPACE, kind, name)
        assert health(thing)["status"] == "Healthy", thing
        # What Flux looks at.
        assert thing["status"]["observedGeneration"] == thing["metadata"]["generation"]
    alice = json.loads(cluster.kubectl("-n", NAMESPACE, "get", "mailbox", "alice", "-o", "json", "--show-managed-fields"))
    managers = {entry["manager"] for entry in alice["metadata"]["managedFields"] if "f:spec" in entry["fieldsV1"]}
    assert managers == {"gitops"}, managers


def test_health_says_what_people_have_to_mend(cluster, declared):
    apply(cluster, [{"apiVersion": "quorumail.io/v1alpha1", "kind": "Mailbox", "metadata": {"name": "twice", "namespace": NAMESPACE},
                     "spec": {"address": "alice@example.org"}}])
    seen = mail.wait_for(lambda: (found := health(cluster.get("-n", NAMESPACE, "mailbox", "twice")))["status"] == "Degraded" and found,
                         within=60, what="Degraded")
    assert "alice" in seen["message"], seen
    cluster.kubectl("-n", NAMESPACE, "annotate", "mailbox", "twice", "quorumail.io/paused=true")
    assert health(cluster.get("-n", NAMESPACE, "mailbox", "twice"))["status"] == "Suspended"
    # What is paused is not taken away either.
    cluster.kubectl("-n", NAMESPACE, "annotate", "mailbox", "twice", "quorumail.io/paused-")
    cluster.kubectl("-n", NAMESPACE, "delete", "mailbox/twice", "--timeout=60s")
    for status, expected in [({}, "Progressing"), ({"phase": "Running", "observedGeneration": 1}, "Progressing"),
                             ({"phase": "Succeeded"}, "Healthy"), ({"phase": "Failed", "error": "no"}, "Degraded"),
                             ({"observedGeneration": 0, "conditions": [{"type": "Ready", "status": "True"}]}, "Progressing")]:
        assert health({"metadata": {"generation": 1}, "status": status})["status"] == expected, status


def test_of_1000_mailboxes_one_is_wrong_and_the_others_are_ready(cluster, declared):
    def many(number):
        # The last has an address that another one has.
        address = "alice@example.org" if number == MANY - 1 else f"many{number}@example.org"
        return {"apiVersion": "quorumail.io/v1alpha1", "kind": "Mailbox",
                "metadata": {"name": f"many-{number}", "namespace": NAMESPACE, "labels": {"batch": "many"}},
                "spec": {"address": address, "passwordSecretRef": {"name": "people", "key": "bob"}}}

    begun = time.monotonic()
    apply(cluster, [many(number) for number in range(MANY)])
    applied = time.monotonic()

    def judged():
        items = cluster.get("-n", NAMESPACE, "mailboxes", "-l", "batch=many")["items"]
        ready = [next((c for c in thing.get("status", {}).get("conditions", []) if c["type"] == "Ready"), {}) for thing in items]
        wrong = [c for c in ready if c.get("status") == "False" and c["reason"] == "Conflict"]
        return wrong if len(wrong) == 1 and sum(c.get("status") == "True" for c in ready) == MANY - 1 else None

    wrong = mail.wait_for(judged, within=180, every=1, what="999 of 1,000 mailboxes Ready")
    print(f"{MANY} mailboxes: applied in {applied - begun:.0f} s, all but the wrong one Ready {time.monotonic() - applied:.0f} s later")
    assert "alice@example.org" in wrong[0]["message"] and "delete" in wrong[0]["message"], wrong
    # Pruned as GitOps does it: all that has the label and is not in Git any more.
    cluster.kubectl("-n", NAMESPACE, "delete", "mailboxes", "-l", "batch=many", "--wait=false")
    mail.wait_for(lambda: not cluster.get("-n", NAMESPACE, "mailboxes", "-l", "batch=many")["items"], within=120, every=1,
                  what="the end of 1,000 mailboxes")
    cluster.wait("Ready", "mailbox/alice", namespace=NAMESPACE, within=60)


def test_nothing_is_written_while_nothing_changes(cluster, declared):
    # The last of these tests, so that most of it has come by now: DNS was asked once, a message went its way, the mailnodes were asked what they hold, and all that is told.
    def settled():
        status = cluster.get("-n", NAMESPACE, "maildomain", "example-org")["status"]
        probed = any(c["type"] == "Probed" and c["status"] == "True" for c in status["conditions"])
        used = all("usage" in thing["status"] for thing in cluster.get("-n", NAMESPACE, "mailboxes")["items"])
        return probed and used and all("checkedAt" in record for record in status["dnsRecords"])

    mail.wait_for(settled, within=180, every=1, what="a probe, an answer of DNS and what the mailboxes hold")
    time.sleep(3)
    before = versions(cluster)
    # Longer than it takes until DNS is asked and a message is sent again.
    time.sleep(75)
    assert versions(cluster) == before
