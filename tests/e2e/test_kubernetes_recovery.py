"""What was thought lost comes back: a MailCluster that somebody deleted, with its mail, and the replicas of a Kubernetes node that is
gone for good."""

import contextlib
import json
import os
import random
import time

import pytest

import kubernetes
import mail
from test_kubernetes_operator import as_list, only_local, thing

NAMESPACE = "mail-kept"
NODES = 3
PASSWORD = "the password of before"
PEOPLE = ["ann@kept.example", "ben@kept.example"]


def mailcluster(nodes=NODES, namespace=NAMESPACE, storage=(), **spec):
    return thing("MailCluster", "kept", {"nodes": nodes, "partitions": 4, "hostname": "mail.kept.example",
                                         "storage": {"size": "1Gi", "deletionPolicy": "Retain", **dict(storage)}, **spec}, namespace=namespace)


def accounts(namespace=NAMESPACE):
    return [
        thing("MailDomain", "kept", {"domain": "kept.example"}, namespace=namespace),
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "people", "namespace": namespace}, "stringData": {"ann": PASSWORD}},
        thing("Mailbox", "ann", {"address": PEOPLE[0], "aliases": ["postmaster@kept.example"], "quota": {"storage": "1Gi"},
                                 "passwordSecretRef": {"name": "people", "key": "ann"}}, namespace=namespace),
        # Its password is made by the operator.
        thing("Mailbox", "ben", {"address": PEOPLE[1]}, namespace=namespace),
    ]


class Kept:
    """A MailCluster of three nodes with two mailboxes."""

    def __init__(self, cluster, namespace=NAMESPACE):
        self.cluster, self.namespace = cluster, namespace

    def names(self, kind):
        found = self.cluster.get("-n", self.namespace, kind, "-l", "quorumail.io/cluster=kept")["items"]
        return sorted(one["metadata"]["name"] for one in found)

    def pod(self, name):
        """None while there is none."""
        with contextlib.suppress(RuntimeError):
            return self.cluster.get("-n", self.namespace, "pod", name)

    def volumes(self):
        """By claim, the volume."""
        found = self.cluster.get("-n", self.namespace, "pvc", "-l", "quorumail.io/cluster=kept")["items"]
        return {claim["metadata"]["name"]: (claim["metadata"]["uid"], claim["spec"].get("volumeName")) for claim in found}

    def status(self):
        return self.cluster.get("-n", self.namespace, "mailcluster", "kept").get("status", {})

    def condition(self, type_):
        return self.cluster.condition("mailcluster", "kept", type_, namespace=self.namespace)

    def wait_until_well(self, nodes=NODES, within=240):
        """Ready, every replica in step, nothing under way."""
        def well():
            found = self.cluster.get("-n", self.namespace, "mailcluster", "kept")
            status = found.get("status", {})
            told = {c["type"]: c["status"] for c in status.get("conditions", [])}
            return status.get("observedGeneration") == found["metadata"]["generation"] and status.get("readyNodes") == nodes \
                and (told.get("Ready"), told.get("Degraded"), told.get("Progressing")) == ("True", "False", "False") and status
        return mail.wait_for(well, within=within, every=1, what=f"{nodes} nodes with all their replicas")

    def wait_for_accounts(self):
        self.cluster.wait("Ready", "maildomain/kept", "mailbox/ann", "mailbox/ben", namespace=self.namespace, within=120)

    def password(self, who):
        return PASSWORD if who == PEOPLE[0] else self.cluster.secret("ben-credentials", "password", namespace=self.namespace)

    def open(self, who):
        return mail.login(self.cluster.address("service/kept", 993, self.namespace), who, self.password(who))

    def smtp(self):
        return self.cluster.address("service/kept", 25, self.namespace)

    def held(self):
        """All mail of all people as their clients see it, with UIDs and flags."""
        return {who: mail.contents(self.open(who)) for who in PEOPLE}

    def send(self, count):
        for number in range(count):
            message = mail.message("x@elsewhere.example", PEOPLE[number % 2], f"number {number}", size=random.Random(number).randrange(500, 200_000))
            mail.wait_for(lambda message=message: mail.send(self.smtp(), message) is None, within=30, every=0.5, what="a message that is taken")


def well_with_mail(cluster, namespace, mailcluster):
    """Applies it with its accounts, and sends mail."""
    cluster.apply(as_list([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}, mailcluster, *accounts(namespace)]))
    found = Kept(cluster, namespace)
    found.wait_until_well()
    found.wait_for_accounts()
    kubernetes.wait_port(found.smtp())
    found.send(30)
    return found


@pytest.fixture(scope="module")
def kept(cluster):
    """Well, with mail in it."""
    only_local(cluster, "may lose its nodes")
    found = well_with_mail(cluster, NAMESPACE, mailcluster())
    client = found.open(PEOPLE[0])
    client.create("Projects")
    client.select("INBOX")
    client.uid("COPY", "1:5", "Projects")
    client.uid("STORE", "3:4", "+FLAGS", r"(\Flagged \Seen)")
    client.logout()
    yield found
    cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=180s", timeout=200)


def test_a_mailcluster_that_was_deleted_comes_back_with_its_mail(kept):
    cluster = kept.cluster
    before, volumes, password = kept.held(), kept.volumes(), kept.password(PEOPLE[1])
    assert sum(len(messages) for folders in before.values() for _, messages in folders.values()) == 35
    cluster.kubectl("-n", NAMESPACE, "delete", "mailcluster/kept", "--timeout=60s")
    mail.wait_for(lambda: not any(kept.names(kind) for kind in ["statefulset", "pod", "service", "secret", "configmap"]), within=120, every=1,
                  what="the end of what was made for it")
    assert kept.volumes() == volumes
    # Who has accounts in it is told, and nothing of them is forgotten.
    told = mail.wait_for(lambda: (c := cluster.condition("mailbox", "ann", namespace=NAMESPACE)).get("status") == "False" and c,
                         within=60, what="a condition of the Mailbox")
    assert told["reason"] == "ClusterNotFound", told

    # Another number of partitions would hide mail: nothing is started on these volumes.
    cluster.apply(json.dumps(mailcluster(partitions=8)))
    told = mail.wait_for(lambda: (c := kept.condition("Ready")).get("reason") == "InvalidSpec" and c, within=30, what="a condition")
    assert "apply it with partitions: 4" in told["message"], told
    assert not kept.names("statefulset")
    cluster.kubectl("-n", NAMESPACE, "delete", "mailcluster/kept", "--timeout=60s")

    cluster.apply(json.dumps(mailcluster()))
    kept.wait_until_well()
    kept.wait_for_accounts()
    mail.wait_for(lambda: kept.held() == before, within=30, every=1, what="all mail as it was")
    assert (kept.volumes(), kept.password(PEOPLE[1])) == (volumes, password)
    mail.send(kept.smtp(), mail.message("x@elsewhere.example", "postmaster@kept.example", "to an alias"))
    kept.send(4)


def test_a_mailcluster_that_is_applied_while_it_is_being_deleted_comes_back(kept):
    before, volumes = kept.held(), kept.volumes()
    for _ in range(2):
        kept.cluster.kubectl("-n", NAMESPACE, "delete", "mailcluster/kept", "--wait=false")
        kept.cluster.apply(json.dumps(mailcluster()))
        uid = kept.cluster.get("-n", NAMESPACE, "mailcluster", "kept")["metadata"]["uid"]
        kept.wait_until_well()
        mail.wait_for(lambda: kept.held() == before, within=60, every=1, what="all mail as it was")
    assert kept.volumes() == volumes
    owners = {owner["uid"] for kind in ["statefulset", "service", "secret", "configmap"] for one in
              kept.cluster.get("-n", NAMESPACE, kind, "-l", "quorumail.io/cluster=kept")["items"] for owner in one["metadata"]["ownerReferences"]}
    assert owners == {uid}, owners


def test_a_mailcluster_comes_back_with_more_nodes_than_it_had(kept):
    before = kept.held()
    kept.cluster.kubectl("-n", NAMESPACE, "delete", "mailcluster/kept", "--timeout=60s")
    mail.wait_for(lambda: not kept.names("pod") and not kept.names("configmap"), within=120, every=1, what="the end of its pods")
    kept.cluster.apply(json.dumps(mailcluster(nodes=5)))
    kept.wait_until_well(nodes=5)
    mail.wait_for(lambda: kept.held() == before, within=30, every=1, what="all mail as it was")
    # And with fewer than there are volumes for: it is taken together again.
    kept.cluster.kubectl("-n", NAMESPACE, "delete", "mailcluster/kept", "--timeout=60s")
    mail.wait_for(lambda: not kept.names("pod") and not kept.names("configmap"), within=120, every=1, what="the end of its pods")
    kept.cluster.apply(json.dumps(mailcluster()))
    kept.wait_until_well()
    mail.wait_for(lambda: kept.names("pod") == [f"kept-{n}" for n in range(NODES)], within=120, every=1, what="three pods")
    mail.wait_for(lambda: kept.held() == before, within=30, every=1, what="all mail as it was")
    # What left keeps its volume by deletionPolicy Retain; it is not needed any more.
    kept.cluster.kubectl("-n", NAMESPACE, "delete", "pvc", "data-kept-3", "data-kept-4", "--timeout=60s")


# ---- a Kubernetes node is gone for good -------------------------------------------------------------------------------

# Longer than it takes until a node counts as lost and its pods are marked: nobody replaces them by themselves.
WATCHED = 40


def stays_lost(kept, name, uid):
    """The pod of a node that does not answer is left alone, however long; its claim as well."""
    volumes, until = kept.volumes(), time.monotonic() + WATCHED
    while time.monotonic() < until:
        pod = kept.pod(name)
        assert pod and pod["metadata"]["uid"] == uid, "it was replaced, though nobody knows whether it still runs"
        assert kept.volumes() == volumes
        time.sleep(1)


def degraded(kept, *words):
    def told():
        found = kept.condition("Degraded")
        return found.get("status") == "True" and all(word in found["message"] for word in words) and found
    return mail.wait_for(told, within=90, every=0.5, what=f"Degraded {words}")


def serves_all(kept):
    """Mail flows, and every partition has a leader."""
    kept.send(4)
    status = mail.wait_for(lambda: (s := kept.status())["partitions"]["leaderless"] == 0 and s, within=60, what="leaders of all partitions")
    assert status["partitions"]["available"] == status["partitions"]["total"], status


def assert_pod_serves(kept, name, before):
    """The replicas on this pod are as good as any: what it serves is what was there, and what came since."""
    assert kept.status()["partitions"]["underReplicated"] == 0
    for who in PEOPLE:
        found = mail.contents(mail.login(kept.cluster.address(f"pod/{name}", 2993, kept.namespace), who, kept.password(who)))
        for folder, (validity, messages) in before[who].items():
            assert found[folder][0] == validity and messages.items() <= found[folder][1].items(), (who, folder)


def out_of_service(kept, host):
    kept.cluster.kubectl("taint", "nodes", host, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")


def node_deleted(kept, host):
    kept.cluster.kubectl("delete", "node", host, "--timeout=60s")


@pytest.mark.parametrize("said", [out_of_service, node_deleted], ids=lambda said: said.__name__)
def test_a_node_that_is_gone_for_good_with_its_volume_is_replaced_once_that_is_said(kept, said):
    cluster = kept.cluster
    kept.wait_until_well()
    before, volumes = kept.held(), kept.volumes()
    pods = {name: kept.pod(name) for name in kept.names("pod")}
    hosts = [pod["spec"]["nodeName"] for pod in pods.values()]
    # One that is alone on its node: the others go on without it.
    name = next(name for name, pod in pods.items() if hosts.count(pod["spec"]["nodeName"]) == 1)
    host, uid = pods[name]["spec"]["nodeName"], pods.pop(name)["metadata"]["uid"]
    others = {other: pod["metadata"]["uid"] for other, pod in pods.items()}
    try:
        cluster.lose_node(host)
        # What people are told to do, with this node's name.
        degraded(kept, name, f"kubectl taint nodes {host} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
        serves_all(kept)
        if said is out_of_service:
            # What is said later makes no difference to it.
            stays_lost(kept, name, uid)

        said(kept, host)
        # Kubernetes takes the pod away; the new one has its volume on the lost node, and waits.
        mail.wait_for(lambda: (p := kept.pod(name)) and p["metadata"]["uid"] != uid and p["status"]["phase"] == "Pending",
                      within=120, every=0.5, what="a pod that waits")
        assert "nodeName" not in kept.pod(name)["spec"]
        degraded(kept, name, "delete its PersistentVolumeClaim and the pod")
        assert kept.volumes() == volumes, "a claim is given up by people alone"

        cluster.kubectl("-n", NAMESPACE, "delete", "pvc", f"data-{name}", "--wait=false")
        cluster.kubectl("-n", NAMESPACE, "delete", "pod", name)
        kept.wait_until_well(within=300)
        replaced = kept.pod(name)
        assert replaced["spec"]["nodeName"] != host
        after = kept.volumes()
        assert after[f"data-{name}"][1] != volumes[f"data-{name}"][1]
        assert {claim: volume for claim, volume in after.items() if claim != f"data-{name}"} == \
            {claim: volume for claim, volume in volumes.items() if claim != f"data-{name}"}
        assert {other: kept.pod(other)["metadata"]["uid"] for other in others} == others
        assert_pod_serves(kept, name, before)
    finally:
        cluster.start_node(host)
        cluster.kubectl("taint", "nodes", host, "node.kubernetes.io/out-of-service-", check=False)


ELSEWHERE = "mail-elsewhere"
CLASS = "elsewhere"


@pytest.fixture
def elsewhere(cluster, tmp_path):
    """A MailCluster whose volumes any node can have, as those of clouds: folders of this machine, which is all nodes at once."""
    only_local(cluster, "has its nodes on one machine")
    things = [{"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": CLASS},
               "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"}]
    names = [f"{CLASS}-{number}" for number in range(NODES)]
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        os.chown(folder, 10001, 10001)
        things.append({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": CLASS,
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": str(folder), "type": "Directory"}}})
    cluster.apply(as_list(things))
    # Kubernetes gives a pod up soon, for the test not to take longer than people wait.
    gone = [{"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}
            for taint in ["unreachable", "not-ready"]]
    yield well_with_mail(cluster, ELSEWHERE, mailcluster(namespace=ELSEWHERE, storage={"storageClassName": CLASS}, scheduling={"tolerations": gone}))
    cluster.kubectl("delete", "namespace", ELSEWHERE, "--timeout=180s", timeout=200)
    cluster.kubectl("delete", f"storageclass/{CLASS}", *(f"pv/{name}" for name in names), "--timeout=60s")


def test_a_volume_moves_to_another_node_with_its_pod_once_the_first_is_said_to_be_off(elsewhere):
    cluster, name = elsewhere.cluster, "kept-1"
    before, volumes, pod = elsewhere.held(), elsewhere.volumes(), elsewhere.pod("kept-1")
    host, uid = pod["spec"]["nodeName"], pod["metadata"]["uid"]
    try:
        cluster.lose_node(host)
        degraded(elsewhere, name, f"kubectl taint nodes {host}")
        stays_lost(elsewhere, name, uid)
        assert "deletionTimestamp" in elsewhere.pod(name)["metadata"], "Kubernetes has given it up, and still starts it nowhere else"
        serves_all(elsewhere)
        out_of_service(elsewhere, host)
        elsewhere.wait_until_well(within=180)
        replaced = elsewhere.pod(name)
        assert replaced["metadata"]["uid"] != uid and replaced["spec"]["nodeName"] != host
        assert elsewhere.volumes() == volumes
        assert_pod_serves(elsewhere, name, before)
    finally:
        cluster.start_node(host)
        cluster.kubectl("taint", "nodes", host, "node.kubernetes.io/out-of-service-", check=False)
