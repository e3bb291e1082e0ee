"""Promises of the platform, kept on a real Kubernetes."""

import imaplib
import json
import random
import threading
import time
import urllib.request

import pytest

import kubernetes
import mail

PASSWORD = "correct horse battery staple"
NAMESPACE = "mail"
# Seconds without an acknowledgement, and refusals in a row of four senders, that a planned change may cost.
MOST_PAUSE, MOST_REFUSALS = 15, 20
SAMPLE = kubernetes.ROOT / "manifests" / "samples" / "quickstart.yaml"


@pytest.fixture(scope="module")
def service(cluster):
    """The quickstart sample, Ready."""
    cluster.kubectl("apply", "-f", str(SAMPLE))
    cluster.wait("Ready", "mailcluster/mail", "maildomain/example-org", "mailbox/alice", "mailbox/bob")
    # kube-proxy learns of a new Service a moment after its pods are Ready.
    for port in [25, 993]:
        kubernetes.wait_port(cluster.address("service/mail", port))
    yield cluster
    cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=180s", timeout=200)


def pods(cluster):
    found = cluster.get("-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/name=mailnode")["items"]
    assert len(found) == 3, [p["metadata"]["name"] for p in found]
    return sorted(p["metadata"]["name"] for p in found)


def smtp(cluster):
    return cluster.address("service/mail", 25)


def open_imap(cluster, user="alice@example.org", password=PASSWORD, pod=None):
    target = (f"pod/{pod}", 2993) if pod else ("service/mail", 993)
    return mail.login(cluster.address(*target), user, password)


def mailbox(name, spec, **labels):
    return json.dumps({"apiVersion": "quorumail.io/v1alpha1", "kind": "Mailbox",
                       "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}, "spec": spec})


def leader_pod(cluster, partition):
    """The pod that says of itself that it leads a partition."""
    sample = f'quorumail_group_leads{{group="{partition}"}} 1'

    def leader():
        for pod in pods(cluster):
            base = cluster.address(f"pod/{pod}", 8080)
            if sample in urllib.request.urlopen(f"http://{base}/metrics", timeout=10).read().decode().splitlines():
                return pod
        return None

    return mail.wait_for(leader, within=30, what=f"a leader of partition {partition}")


def test_helm_test_tells_whether_the_operator_works(cluster):
    def helm_test():
        return cluster.helm("test", "quorumail", "--namespace", "quorumail-system", "--logs", "--timeout", "2m")

    told = helm_test()
    assert "Phase:          Succeeded" in told, told
    assert told.count("established, with every field of this version") == 7 and "renewed by quorumail-operator-" in told, told

    def scale(count):
        cluster.kubectl("-n", "quorumail-system", "scale", "deployment/quorumail-operator", f"--replicas={count}")
        cluster.kubectl("-n", "quorumail-system", "rollout", "status", "deployment/quorumail-operator", "--timeout=120s")

    scale(0)
    try:
        with pytest.raises(RuntimeError) as refused:
            helm_test()
        assert "no operator renewed it within 15 s" in str(refused.value), refused.value
    finally:
        scale(2)
    helm_test()


def test_mail_sent_through_the_service_is_read_from_every_pod(service):
    attachment = random.Random(3).randbytes(200_000)
    msg = mail.message("someone@elsewhere.example", "alice@example.org", "with an attachment", attachment=attachment)
    mail.send(smtp(service), msg)
    sent = msg.as_bytes(policy=msg.policy.clone(linesep="\r\n"))
    for pod in pods(service):
        # The MailCluster is Ready with a majority; a pod serves once it is Ready itself.
        service.kubectl("-n", NAMESPACE, "wait", f"pod/{pod}", "--for=condition=Ready", "--timeout=120s")
        client = open_imap(service, pod=pod)
        client.select("INBOX", readonly=True)
        _, found = client.uid("SEARCH", "HEADER", "X-Token", msg["X-Token"])
        _, data = client.uid("FETCH", found[0].split()[0], "(BODY.PEEK[])")
        assert data[0][1].endswith(sent.split(b"\r\n\r\n", 1)[1]), f"{pod} has another body"
        client.logout()


def test_messages_that_are_sent_every_minute_come_back(service):
    def probed():
        return service.condition("maildomain", "example-org", "Probed").get("status") == "True"

    mail.wait_for(probed, within=180, every=2, what="a probe that passed")


def test_generated_credentials_open_the_mailbox(service):
    password = service.secret("bob-credentials", "password")
    assert len(password) >= 16
    open_imap(service, "bob@example.org", password).logout()


def test_a_changed_secret_is_the_new_password_within_seconds(service):
    service.kubectl("-n", NAMESPACE, "patch", "secret", "people", "--type=merge", "-p",
                    json.dumps({"stringData": {"alice": "a new one"}}))
    start = time.monotonic()
    mail.wait_for(lambda: open_imap(service, password="a new one"), within=30, what="the new password")
    took = time.monotonic() - start
    print(f"the new password worked after {took:.1f} s")
    assert took < 20
    with pytest.raises(imaplib.IMAP4.error):
        open_imap(service, password=PASSWORD)
    service.kubectl("-n", NAMESPACE, "patch", "secret", "people", "--type=merge", "-p",
                    json.dumps({"stringData": {"alice": PASSWORD}}))
    mail.wait_for(lambda: open_imap(service), within=30, what="the old password again")


def test_a_network_policy_comes_and_goes_with_the_wish_for_it(service):
    def wish(**policy):
        service.kubectl("-n", NAMESPACE, "patch", "mailcluster", "mail", "--type=merge", "-p",
                        json.dumps({"spec": {"networkPolicy": policy}}))

    def policies():
        return service.get("-n", NAMESPACE, "networkpolicies")["items"]

    wish(enabled=True, metricsFrom={"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}})
    found, = mail.wait_for(policies, within=30, what="the NetworkPolicy")
    ports = [[port["port"] for port in rule["ports"]] for rule in found["spec"]["ingress"]]
    assert ports == [[2525, 2587, 2465, 2143, 2993, 8443], [9444], [9443], [8080]], found
    # By these labels the operator is let in, and the mailnodes are meant.
    system, pods_of = found["spec"]["ingress"][2]["from"][1], found["spec"]["podSelector"]["matchLabels"]
    selectors = [("quorumail-system", system["podSelector"]["matchLabels"]), (NAMESPACE, pods_of)]
    assert system["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "quorumail-system"}
    for namespace, labels in selectors:
        assert service.get("-n", namespace, "pods", "-l", ",".join(f"{k}={v}" for k, v in labels.items()))["items"], labels
    service.kubectl("-n", NAMESPACE, "delete", "networkpolicy", "mail")
    mail.wait_for(policies, within=30, what="the NetworkPolicy again")
    wish(enabled=False)
    mail.wait_for(lambda: not policies(), within=30, what="the end of the NetworkPolicy")


def test_a_missing_secret_shows_in_the_condition_and_recovers(service):
    service.apply(mailbox("late", {"address": "late@example.org", "passwordSecretRef": {"name": "late", "key": "word"}}))

    def refused():
        condition = service.condition("mailbox", "late")
        return condition.get("status") == "False" and condition

    condition = mail.wait_for(refused, within=30, what="the condition")
    assert condition["reason"] == "SecretNotFound" and "late" in condition["message"], condition
    service.apply(json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late", "namespace": NAMESPACE},
                              "stringData": {"word": "now"}}))
    service.wait("Ready", "mailbox/late", within=60)
    mail.wait_for(lambda: open_imap(service, "late@example.org", "now"), within=20)
    service.kubectl("-n", NAMESPACE, "delete", "mailbox/late", "secret/late", "--timeout=60s")


def test_a_wrong_resource_is_refused_with_a_plain_message(service):
    for spec, word in [({"address": "no address"}, "address"), ({"address": "x@example.org", "quota": {"storage": "lots"}}, "quota")]:
        with pytest.raises(RuntimeError) as refused:
            service.apply(mailbox("wrong", spec))
        assert word in str(refused.value), refused.value
    with pytest.raises(RuntimeError) as refused:
        service.kubectl("-n", NAMESPACE, "patch", "mailbox", "alice", "--type=merge", "-p",
                        json.dumps({"spec": {"address": "other@example.org"}}))
    assert "immutable" in str(refused.value) or "cannot be changed" in str(refused.value), refused.value


def test_create_change_and_delete_of_a_mailbox_and_a_domain(service):
    service.apply(json.dumps({"apiVersion": "quorumail.io/v1alpha1", "kind": "MailDomain",
                              "metadata": {"name": "second", "namespace": NAMESPACE}, "spec": {"domain": "second.example"}}))
    service.apply(mailbox("greta", {"address": "greta@second.example"}))
    service.wait("Ready", "maildomain/second", "mailbox/greta", within=60)
    msg = mail.message("x@elsewhere.example", "nick@second.example", "to an alias")
    import smtplib

    with pytest.raises(smtplib.SMTPRecipientsRefused):
        mail.send(smtp(service), msg)
    service.kubectl("-n", NAMESPACE, "patch", "mailbox", "greta", "--type=merge", "-p",
                    json.dumps({"spec": {"aliases": ["nick@second.example"]}}))
    mail.wait_for(lambda: mail.send(smtp(service), msg) is None, within=30, what="the alias")
    service.kubectl("-n", NAMESPACE, "delete", "mailbox/greta", "--timeout=60s")
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        mail.send(smtp(service), mail.message("x@elsewhere.example", "greta@second.example", "gone"))
    service.kubectl("-n", NAMESPACE, "delete", "maildomain/second", "--timeout=60s")


def test_the_operator_killed_in_the_middle_of_200_mailboxes_finishes_them(service):
    count = 200
    service.apply("\n---\n".join(mailbox(f"many-{i}", {"address": f"many{i}@example.org"}, batch="many") for i in range(count)))
    service.kubectl("-n", "quorumail-system", "delete", "pods", "-l", "app.kubernetes.io/component=operator",
                    "--grace-period=0", "--force")

    def ready():
        items = service.get("-n", NAMESPACE, "mailboxes", "-l", "batch=many")["items"]
        done = [m for m in items if any(c["type"] == "Ready" and c["status"] == "True" for c in m.get("status", {}).get("conditions", []))]
        return len(done) == count

    start = time.monotonic()
    mail.wait_for(ready, within=180, every=1, what="200 mailboxes Ready")
    print(f"200 mailboxes Ready {time.monotonic() - start:.0f} s after the operator was killed")
    password = service.secret("many-150-credentials", "password")
    open_imap(service, "many150@example.org", password).logout()
    service.kubectl("-n", NAMESPACE, "delete", "mailboxes", "-l", "batch=many", "--wait=false")
    mail.wait_for(lambda: not service.get("-n", NAMESPACE, "mailboxes", "-l", "batch=many")["items"], within=90, every=1,
                  what="the end of 200 mailboxes")


def test_replicas_are_told_in_which_zone_each_pod_runs(service):
    hosts = {p["metadata"]["name"]: p["spec"]["nodeName"]
             for p in service.get("-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/name=mailnode")["items"]}
    label = "topology.kubernetes.io/zone"
    labels = {host: service.get("node", host)["metadata"]["labels"].get(label) for host in hosts.values()}
    zones = {host: f"zone-{n}" for n, host in enumerate(sorted(labels))}
    try:
        for host, zone in zones.items():
            service.kubectl("label", "node", host, "--overwrite", f"{label}={zone}")
        expected = {pod: zones[host] for pod, host in hosts.items()}

        def told():
            status = service.get("-n", NAMESPACE, "mailcluster", "mail")["status"]
            return {node["name"]: node.get("zone") for node in status["nodes"]} == expected

        # The operator looks every 15 seconds; the status is what the mailnodes say of themselves.
        mail.wait_for(told, within=90, every=1, what=f"the zones {expected}")
        service.wait("Ready", "mailcluster/mail", within=60)
        config = service.get("-n", NAMESPACE, "configmap", "mail-config")["data"]["mailnode.yaml"]
        assert all(f"zone: {zone}" in config for zone in zones.values()), config
        mail.send(smtp(service), mail.message("x@elsewhere.example", "alice@example.org", "over zones"))
    finally:
        for host, before in labels.items():
            service.kubectl("label", "node", host, "--overwrite", f"{label}={before}" if before else f"{label}-")


def watch_mail(service, fault):
    """Mail is sent while `fault()` happens; answers the ledger once mail flows again."""
    ledger, stop = mail.Ledger(), threading.Event()
    password = service.secret("bob-credentials", "password")
    passwords = {"alice@example.org": PASSWORD, "bob@example.org": password}
    recipients = list(passwords)
    addresses = [service.address("service/mail", 25)]
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    senders = [threading.Thread(target=mail.keep_sending, args=(addresses, recipients, ledger, stop, seed + i)) for i in range(4)]
    for sender in senders:
        sender.start()
    try:
        mail.wait_for(lambda: len(ledger.acknowledged) > 50, within=60, what="mail flowing")
        fault()
        during = len(ledger.acknowledged)
        mail.wait_for(lambda: len(ledger.acknowledged) > during + 100, within=120, what="mail flowing after the fault")
    finally:
        stop.set()
        for sender in senders:
            sender.join()
    lost, twice, phantoms = mail.wait_for(
        lambda: mail.account_for(ledger, lambda r: open_imap(service, r, passwords[r]), recipients), within=60)
    # Mail of earlier tests carries tokens of its own; phantoms are only looked for among this run's.
    phantoms = [t for t in phantoms if t.startswith(tuple(str(seed + i) + "-" for i in range(4)))]
    print(f"acknowledged {len(ledger.acknowledged)}, unknown {len(ledger.unknown)}, refused {len(ledger.refused)}, "
          f"at most {ledger.most_refusals} in a row, longest pause {ledger.longest_pause():.2f} s")
    assert not lost, f"{len(lost)} acknowledged messages are lost"
    assert not twice, f"{len(twice)} messages are there twice"
    assert not phantoms, phantoms
    return ledger


def test_acknowledged_mail_survives_kill_of_the_leading_pod(service):
    # More than once: a killed pod is back within a second, before or after the others have noticed.
    for _ in range(3):
        partition = service.get("-n", NAMESPACE, "mailbox", "alice")["status"]["partition"]
        watch_mail(service, lambda: service.kill_pod(leader_pod(service, partition)))
        service.wait("Ready", "mailcluster/mail", within=120)


def test_acknowledged_mail_survives_loss_of_a_node(service):
    if not isinstance(service, kubernetes.Local):
        pytest.skip("only the local cluster can lose a node")
    partition = service.get("-n", NAMESPACE, "mailbox", "alice")["status"]["partition"]
    node = service.get("-n", NAMESPACE, "pod", leader_pod(service, partition))["spec"]["nodeName"]
    try:
        watch_mail(service, lambda: service.lose_node(node))

        def told():
            return service.condition("mailcluster", "mail", "Degraded").get("status") == "True" or \
                service.condition("mailcluster", "mail").get("status") == "False"

        mail.wait_for(told, within=60, what="a status that tells of the lost node")
    finally:
        service.start_node(node)
    mail.wait_for(lambda: service.get("-n", NAMESPACE, "mailcluster", "mail")["status"]["partitions"]["underReplicated"] == 0,
                  within=180, every=1, what="full replication after the node's return")


def change(service, spec):
    service.kubectl("-n", NAMESPACE, "patch", "mailcluster", "mail", "--type=merge", "-p", json.dumps({"spec": spec}))


def uids(service):
    found = service.get("-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/name=mailnode")["items"]
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found}


def ready_pods(service):
    found = service.get("-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/name=mailnode")["items"]
    return sum(any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", []))
               and "deletionTimestamp" not in pod["metadata"] for pod in found)


def settled(service):
    """The operator has seen the spec as it is and has nothing left to do."""
    found = service.get("-n", NAMESPACE, "mailcluster", "mail")
    status, generation = found["status"], found["metadata"]["generation"]
    progressing = next(c for c in status["conditions"] if c["type"] == "Progressing")
    return status["observedGeneration"] == generation and progressing["reason"] == "Settled" and \
        status["readyNodes"] == status["updatedNodes"] == 3


def assert_mail_went_on(ledger):
    """What senders may see when pods are replaced one at a time, on a machine that does much else."""
    assert ledger.longest_pause() < MOST_PAUSE, f"nothing was acknowledged for {ledger.longest_pause():.1f} s"
    assert ledger.most_refusals < MOST_REFUSALS, f"{ledger.most_refusals} messages in a row were refused"


def all_new(service, before):
    now = uids(service)
    return len(now) == 3 and not set(now.values()) & set(before.values())


def keep_reading(service, stop, failures):
    """A client that logs in and looks again and again; tells when two tries in a row failed."""
    failed = 0
    while not stop.is_set():
        try:
            client = open_imap(service)
            client.select("INBOX", readonly=True)
            client.logout()
            failed = 0
        except (OSError, imaplib.IMAP4.error) as error:
            failed += 1
            if failed > 1:
                failures.append(repr(error))
        stop.wait(0.2)


def test_an_update_under_load_loses_nothing_and_takes_one_pod_at_a_time(service):
    mail.wait_for(lambda: settled(service), within=120, every=1, what="the cluster as it was before")
    before, least, stop, failures = uids(service), [3], threading.Event(), []
    reader = threading.Thread(target=keep_reading, args=(service, stop, failures))

    def update():
        began = time.monotonic()
        reader.start()
        try:
            change(service, {"resources": {"requests": {"cpu": "101m", "memory": "256Mi"}}})

            def done():
                least.append(ready_pods(service))
                return all_new(service, before) and settled(service)
            mail.wait_for(done, within=240, every=0.3, what="the end of the update")
        finally:
            stop.set()
            reader.join()
        print(f"three pods replaced in {time.monotonic() - began:.1f} s")

    assert_mail_went_on(watch_mail(service, update))
    assert min(least) >= 2, least
    assert failures == [], failures


def test_an_update_that_does_not_get_well_is_taken_back(service):
    before = uids(service)

    def update():
        change(service, {"image": "quorumail/quorumail:there-is-no-such-version", "update": {"progressDeadline": "15s"}})

        def taken_back():
            degraded = service.condition("mailcluster", "mail", "Degraded")
            assert ready_pods(service) >= 2
            return degraded.get("reason") == "UpdateFailed" and ready_pods(service) == 3 and degraded
        told = mail.wait_for(taken_back, within=120, every=0.5, what="the update to be taken back")
        assert "taken back" in told["message"] and "correct it" in told["message"], told

    assert_mail_went_on(watch_mail(service, update))
    after = uids(service)
    assert sum(before[pod] != after[pod] for pod in before) == 1, (before, after)
    change(service, {"image": None, "update": None})
    mail.wait_for(lambda: settled(service) and service.condition("mailcluster", "mail", "Degraded").get("status") == "False",
                  within=120, every=1, what="the cluster as it was before")
    assert uids(service) == after
    # A change that is good is rolled out after it as ever.
    change(service, {"resources": {"requests": {"cpu": "103m", "memory": "256Mi"}}})
    mail.wait_for(lambda: all_new(service, after) and settled(service), within=240, every=1, what="an update after the one that failed")
    assert service.condition("mailcluster", "mail", "Degraded").get("status") == "False"


def test_an_update_waits_while_a_replica_is_missing(service):
    if not isinstance(service, kubernetes.Local):
        pytest.skip("only the local cluster can lose a node")
    node = service.get("-n", NAMESPACE, "pod", "mail-1")["spec"]["nodeName"]
    before = uids(service)
    try:
        service.lose_node(node)
        change(service, {"resources": {"requests": {"cpu": "102m", "memory": "256Mi"}}})

        def progressing():
            now = uids(service)
            assert (now["mail-0"], now["mail-2"]) == (before["mail-0"], before["mail-2"]), (before, now)
            return service.condition("mailcluster", "mail", "Progressing")

        deadline = time.monotonic() + 120
        while node not in progressing().get("message", "") or "out-of-service" not in progressing()["message"]:
            assert time.monotonic() < deadline, progressing()
            time.sleep(0.5)
        # For as long as the node is away.
        until = time.monotonic() + 30
        while time.monotonic() < until:
            assert progressing()["reason"] == "UpdatePaused", progressing()
            time.sleep(0.5)
        degraded = service.condition("mailcluster", "mail", "Degraded")
        assert degraded["status"] == "True" and node in degraded["message"], degraded
    finally:
        service.start_node(node)
    mail.wait_for(lambda: all_new(service, before) and settled(service), within=300, every=1, what="the end of the update")


def test_a_drained_node_hands_its_leads_over_and_a_second_one_waits_for_it(service):
    if not isinstance(service, kubernetes.Local):
        pytest.skip("only the volumes of the local cluster are known to stay on their nodes")
    mail.wait_for(lambda: settled(service), within=120, every=1, what="the cluster as it was before")
    partition = service.get("-n", NAMESPACE, "mailbox", "alice")["status"]["partition"]
    pod, before = leader_pod(service, partition), uids(service)
    hosts = {name: service.get("-n", NAMESPACE, "pod", name)["spec"]["nodeName"] for name in before}
    other = next(name for name in before if name != pod)

    def drain(host, seconds):
        service.kubectl("drain", host, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={seconds}s",
                        "--pod-selector=app.kubernetes.io/name=mailnode", timeout=seconds + 30)

    try:
        ledger = watch_mail(service, lambda: drain(hosts[pod], 120))
        assert_mail_went_on(ledger)
        assert service.condition("mailcluster", "mail")["status"] == "True", "two of three go on"
        with pytest.raises(RuntimeError) as refused:
            drain(hosts[other], 12)
        assert "disruption budget" in str(refused.value), refused.value
        now = uids(service)
        assert all(now[name] == before[name] for name in before if name != pod), (before, now)
        assert now[pod] != before[pod], "the pod that was drained waits for its node"
    finally:
        service.kubectl("uncordon", hosts[pod], hosts[other])
    mail.wait_for(lambda: settled(service) and service.condition("mailcluster", "mail", "Degraded").get("status") == "False",
                  within=180, every=1, what="all replicas on all nodes")


def test_volumes_are_grown_in_place_under_mail(service):
    if not isinstance(service, kubernetes.Local):
        pytest.skip("the storage class is changed")
    mail.wait_for(lambda: settled(service), within=120, every=1, what="the cluster as it was before")
    before = uids(service)

    def claims():
        found = service.get("-n", NAMESPACE, "pvc", "-l", "app.kubernetes.io/name=mailnode")["items"]
        return {claim["metadata"]["name"]: claim["spec"]["resources"]["requests"]["storage"] for claim in found}

    def template():
        found = service.get("-n", NAMESPACE, "statefulset", "mail")
        return found["metadata"]["uid"], found["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]

    def allow(yes):
        service.kubectl("patch", "storageclass", "local", "--type=merge", "-p", json.dumps({"allowVolumeExpansion": yes}))

    def degraded():
        return service.condition("mailcluster", "mail", "Degraded")

    names, (first, size) = [f"data-mail-{n}" for n in range(3)], template()
    assert (claims(), size) == (dict.fromkeys(names, "2Gi"), "2Gi")
    with pytest.raises(RuntimeError) as refused:
        change(service, {"storage": {"size": "1Gi"}})
    assert "storage.size cannot shrink" in str(refused.value), refused.value
    try:
        change(service, {"storage": {"size": "3Gi"}})
        told = mail.wait_for(lambda: degraded().get("reason") == "VolumesNotGrown" and degraded(), within=60, every=0.5,
                             what="a condition that says that the class does not allow it")
        assert "3 of 3 volumes" in told["message"] and "StorageClass local" in told["message"] \
            and "allowVolumeExpansion: true" in told["message"], told
        assert claims() == dict.fromkeys(names, "2Gi")

        def grow():
            allow(True)
            mail.wait_for(lambda: claims() == dict.fromkeys(names, "3Gi"), within=60, every=0.5, what="claims that ask for more")

        assert_mail_went_on(watch_mail(service, grow))
        second, size = mail.wait_for(lambda: template()[1] == "3Gi" and template(), within=60, every=0.5, what="the template for new nodes")
        assert second != first
        mail.wait_for(lambda: settled(service) and degraded().get("status") == "False", within=60, every=0.5, what="a cluster that is well")
    finally:
        allow(False)
    assert uids(service) == before
    owners = [pod["metadata"]["ownerReferences"][0]["uid"]
              for pod in service.get("-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/name=mailnode")["items"]]
    assert owners == [second] * 3, owners

    def taken_over():
        found = service.get("-n", NAMESPACE, "pvc", "-l", "app.kubernetes.io/name=mailnode")["items"]
        assert not any("deletionTimestamp" in claim["metadata"] for claim in found), found
        return [claim["metadata"]["ownerReferences"][0]["uid"] for claim in found] == [second] * 3

    # deletionPolicy is Delete: the claims belong to the StatefulSet, and must not go with the one before.
    mail.wait_for(taken_over, within=30, every=0.5, what="claims that belong to the new StatefulSet")


def test_create_change_and_delete_of_a_mailcluster(cluster):
    """One node of its own: a changed setting reaches it, what cannot change is refused, and deletion ends."""
    namespace = "mail-small"

    def spec(**smtp):
        return json.dumps({"apiVersion": "quorumail.io/v1alpha1", "kind": "MailCluster",
                           "metadata": {"name": "small", "namespace": namespace},
                           "spec": {"nodes": 1, "partitions": 4, "smtp": smtp,
                                    "storage": {"size": "1Gi", "deletionPolicy": "Delete"}}})

    def announced_size():
        with mail.smtplib.SMTP(*mail.split(cluster.address("service/small", 25, namespace)), timeout=5) as client:
            client.ehlo()
            return int(client.esmtp_features["size"])

    cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))
    try:
        cluster.apply(spec(maxMessageSize="10Mi"))
        cluster.wait("Ready", "mailcluster/small", namespace=namespace, within=120)
        mail.wait_for(lambda: announced_size() == 10 << 20, within=60, what="the first message size")
        cluster.apply(spec(maxMessageSize="1Mi"))
        mail.wait_for(lambda: announced_size() == 1 << 20, within=180, every=1, what="the changed message size")
        with pytest.raises(RuntimeError) as refused:
            cluster.kubectl("-n", namespace, "patch", "mailcluster", "small", "--type=merge", "-p", '{"spec":{"nodes":2}}')
        assert "nodes must be 1, 3, 5, 7 or 9" in str(refused.value), refused.value
        cluster.kubectl("-n", namespace, "delete", "mailcluster/small", "--timeout=60s")
        mail.wait_for(lambda: not cluster.get("-n", namespace, "statefulsets,pods,services,pvc")["items"], within=120, every=1,
                      what="the end of all that was made for it")
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--timeout=120s", timeout=150)
