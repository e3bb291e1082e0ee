"""What the operator promises: it loses no wish however often it is killed, mail does not need it or the API server, of several
operators one works, nodes come and go under load, and what cannot be is refused with words that help."""

import concurrent.futures
import contextlib
import imaplib
import json
import os
import random
import re
import smtplib
import socket
import subprocess
import threading
import time
import urllib.request

import pytest

import kubernetes
import mail
from dev import BIN
from rules import CHANGED, LEAST, MADE, has, rules, spec_of
from test_kubernetes import NAMESPACE, PASSWORD, open_imap, service, watch_mail  # noqa: F401 (service is a fixture)

SYSTEM = "quorumail-system"
OPERATOR = "quorumail-operator"


def thing(kind, name, spec, namespace=NAMESPACE, version="quorumail.io/v1alpha1", **metadata):
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace, **metadata}, "spec": spec}


def as_list(things):
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": things})


def only_local(cluster, why):
    if not isinstance(cluster, kubernetes.Local):
        pytest.skip(f"only the local cluster {why}")


# ---- killed again and again -------------------------------------------------------------------------------------

CHANGES, KILLS, BATCH = 1000, 50, 20
SITES = [f"s{number}.example" for number in range(6)]
PEOPLE, LISTS = 120, 12
WORDS = ["one small word", "another word", "a third word"]


class Wishes:
    """What is to be there: random changes of it, and the objects that ask for it. The same seed makes the same changes."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.objects = {}
        self.generation = 0
        self.touched = set()
        self.leaving = []
        # What the keys of the Secret `words` hold.
        self.words = {f"key-{number}": WORDS[0] for number in range(12)}

    def of(self, kind):
        return {key[1]: wanted for key, wanted in self.objects.items() if key[0] == kind}

    def object(self, key):
        kind, subject = key
        name, spec, labels = self.objects[key]
        return thing(kind, name, {**spec, "domain" if kind == "MailDomain" else "address": subject}, labels=labels)

    def put(self, kind, subject, spec, labels=None):
        key = (kind, subject)
        # A new object each time: one of the same name may still be on its way out.
        self.generation += key not in self.objects
        name = self.objects[key][0] if key in self.objects else f"w-{self.generation}-" + re.sub("[^a-z0-9]+", "-", subject)
        self.objects[key] = (name, spec, labels or {})
        self.touched.add(key)

    def remove(self, kind, subject):
        key = (kind, subject)
        self.leaving.append(f"{kind.lower()}/{self.objects.pop(key)[0]}")
        self.touched.discard(key)

    def change(self):
        """One change."""
        choose = self.random
        kind = choose.choices(["Mailbox", "MailDomain", "MailingList", "Secret"], [75, 8, 12, 5])[0]
        if kind == "Secret":
            self.words[choose.choice(sorted(self.words))] = choose.choice(WORDS)
            return
        sites = sorted(self.of("MailDomain"))
        if kind == "MailDomain" or not sites:
            site = choose.choice(SITES)
            others = [key for key in self.objects if key[1].endswith(f"@{site}")]
            if site in sites and not others and choose.random() < 0.3:
                return self.remove("MailDomain", site)
            return self.put("MailDomain", site, self.domain(site))
        site = choose.choice(sites)
        if kind == "Mailbox":
            address = f"p{choose.randrange(PEOPLE // len(SITES))}@{site}"
        else:
            address = f"l{choose.randrange(LISTS // len(SITES))}@{site}"
        if (kind, address) in self.objects and choose.random() < 0.25:
            return self.remove(kind, address)
        if kind == "Mailbox":
            return self.put(kind, address, self.mailbox(address), {"team": choose.choice(["red", "blue"])})
        return self.put(kind, address, self.list())

    def domain(self, site):
        choose = self.random
        spec = {"dkim": {"algorithms": []}, "deletionPolicy": choose.choice(["Retain", "Delete"])}
        if choose.random() < 0.5:
            spec["aliases"] = [f"alias.{site}"]
        if choose.random() < 0.3:
            spec["catchAll"] = "alice@example.org"
        if choose.random() < 0.3:
            spec["mtaSts"] = {"mode": choose.choice(["Testing", "Enforce"])}
        return spec

    def mailbox(self, address):
        choose = self.random
        local, site = address.split("@")
        spec = {"displayName": f"Person {choose.randrange(1000)}", "suspended": choose.random() < 0.15,
                "deletionPolicy": choose.choice(["Retain", "Delete"]),
                "passwordSecretRef": {"name": "words", "key": choose.choice(sorted(self.words))},
                "permissions": {name: choose.random() < 0.8 for name in ["send", "receive", "login"]}}
        if choose.random() < 0.6:
            spec["quota"] = {"storage": f"{choose.randrange(1, 50)}Mi", "messages": choose.randrange(1, 1000)}
        spec["aliases"] = [f"{local}.{tail}@{site}" for tail in ["x", "y"] if choose.random() < 0.4]
        return spec

    def list(self):
        choose = self.random
        spec = {"posting": choose.choice(["Members", "Moderated", "Anyone", "Owners"]),
                "subscription": choose.choice(["Open", "Confirm", "Approve", "Closed"]),
                "replyTo": choose.choice(["Sender", "List"]), "subjectPrefix": f"[{choose.randrange(1000)}]",
                "members": [{"address": f"friend{number}@elsewhere.example", "role": choose.choice(["Member", "Moderator", "Owner"])}
                            for number in sorted(choose.sample(range(20), choose.randrange(1, 5)))]}
        if choose.random() < 0.5:
            spec["memberSelector"] = {"matchLabels": {"team": choose.choice(["red", "blue"])}}
        return spec

    def members(self, address):
        """Of a list, by address."""
        spec = self.objects["MailingList", address][1]
        found = {member["address"]: member["role"].lower() for member in spec["members"]}
        team = spec.get("memberSelector", {}).get("matchLabels", {}).get("team")
        found.update({who: "member" for who, wanted in self.of("Mailbox").items() if wanted[2].get("team") == team})
        return found


def send_wishes(cluster, wishes):
    """Tells the API server what is new: a batch as people apply and prune it, all at once."""
    touched, leaving = sorted(wishes.touched), wishes.leaving
    wishes.touched, wishes.leaving = set(), []
    words = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "words", "namespace": NAMESPACE},
             "stringData": dict(wishes.words)}
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-",
                    input=as_list([words, *(wishes.object(key) for key in touched)]))
    if leaving:
        cluster.kubectl("-n", NAMESPACE, "delete", "--wait=false", "--ignore-not-found", *leaving)


class HostOperator:
    """The operator as a process of this machine, which is killed and started again without the kubelet's waiting longer each
    time. It works without the Lease: nobody would take over within 15 s otherwise."""

    def __init__(self, cluster, directory):
        self.cluster, self.log, self.process, self.kills = cluster, directory / "operator.log", None, 0
        dns = cluster.get("-n", "kube-system", "services")["items"]
        address = next(s["spec"]["clusterIP"] for s in dns if any(p["port"] == 53 for p in s["spec"]["ports"]))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.resolver = directory / "resolv.conf"
        self.resolver.write_text(f"nameserver {address}\nsearch svc.cluster.local cluster.local\noptions ndots:5\n")
        container = cluster.get("-n", SYSTEM, "deployment", OPERATOR)["spec"]["template"]["spec"]["containers"][0]
        self.environment = {"MAILNODE_IMAGE": container["image"], "IMAGE_PULL_POLICY": container["imagePullPolicy"],
                            "POD_NAMESPACE": SYSTEM, "NO_LEADER_ELECTION": "true", "NO_PROBES": "true",
                            "LISTEN": f"127.0.0.1:{self.port}"}

    def start(self):
        # Names of pods are known to the cluster's DNS alone.
        line = f"mount --bind {self.resolver} /etc/resolv.conf && exec {BIN / 'operator'}"
        self.process = subprocess.Popen(["unshare", "--mount", "sh", "-c", line], env={**self.cluster.env, **self.environment},
                                        stdout=subprocess.DEVNULL, stderr=open(self.log, "ab"))

    def kill(self):
        assert self.process.poll() is None, f"the operator ended by itself: {self.log.read_text()[-2000:]}"
        self.process.kill()
        self.process.wait()
        self.kills += 1

    def metric(self, name):
        """Sum of a metric; zero while it has no value."""
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5).read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def replicas(cluster, count):
    cluster.kubectl("-n", SYSTEM, "scale", f"deployment/{OPERATOR}", f"--replicas={count}")
    cluster.kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{OPERATOR}", "--timeout=120s")
    if count == 0:
        mail.wait_for(lambda: not operator_pods(cluster), within=60, what="the end of the operators")


def operator_pods(cluster):
    return cluster.get("-n", SYSTEM, "pods", "-l", "app.kubernetes.io/component=operator")["items"]


@pytest.fixture
def host_operator(service, tmp_path):  # noqa: F811
    only_local(service, "lets a program of this machine reach pods")
    replicas(service, 0)
    operator = HostOperator(service, tmp_path)
    operator.start()
    yield operator
    if operator.process.poll() is None:
        operator.process.kill()
        operator.process.wait()
    replicas(service, 2)


def settled(cluster, wishes):
    """Whether exactly what is wanted is there, and Ready in its newest version."""
    for kind in ["MailDomain", "Mailbox", "MailingList"]:
        wanted = {name for name, _, _ in wishes.of(kind).values()}
        found = {t["metadata"]["name"]: t for t in cluster.get("-n", NAMESPACE, kind.lower())["items"]
                 if t["metadata"]["name"].startswith("w-")}
        assert set(found) == wanted, (kind, set(found) ^ wanted)
        for name, one in found.items():
            generation, status = one["metadata"]["generation"], one.get("status", {})
            ready = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), {})
            assert ready.get("status") == "True", (name, ready)
            assert status["observedGeneration"] == ready["observedGeneration"] == generation, (name, status)
    return True


def quorumail(cluster, *command):
    line = [str(BIN / "quorumail"), "-n", NAMESPACE, "-o", "json", *command]
    return json.loads(kubernetes.run(*line, env=cluster.env, timeout=60))


def accepted(address, recipients):
    """Which recipients an MX takes mail for. Nothing is sent."""
    found = {}
    host, port = mail.split(address)
    for start in range(0, len(recipients), 50):
        with smtplib.SMTP(host, port, timeout=30, local_hostname="client.test.example") as client:
            client.ehlo()
            client.mail("sender@elsewhere.example")
            for recipient in recipients[start:start + 50]:
                found[recipient] = client.rcpt(recipient)[0] == 250
            client.rset()
    return found


def expected_recipients(wishes):
    """Every address that was ever thought of, and whether mail for it is to be taken."""
    boxes, sites = wishes.of("Mailbox"), wishes.of("MailDomain")
    takes = {}
    for address, (_, spec, _) in boxes.items():
        for name in [address, *spec["aliases"]]:
            takes[name] = spec["permissions"]["receive"]
    takes.update({address: True for address in wishes.of("MailingList") if wishes.objects["MailingList", address][1]["posting"] != "Owners"})
    found = {}
    for site in SITES:
        locals_ = [f"p{n}{tail}" for n in range(PEOPLE // len(SITES)) for tail in ["", ".x", ".y"]] + \
            [f"l{n}" for n in range(LISTS // len(SITES))] + ["nobody"]
        spec = sites[site][1] if site in sites else None
        for local in locals_:
            address = f"{local}@{site}"
            if ("MailingList", address) in wishes.objects and address not in takes:
                continue  # refused or not by its author: the list's members say that it is there
            caught = spec is not None and "catchAll" in spec
            found[address] = takes.get(address, caught)
            # Through another name of the domain.
            if local in ["p0", "nobody"]:
                found[f"{local}@alias.{site}"] = spec is not None and bool(spec.get("aliases")) and takes.get(address, caught)
    return found


def opens(address, who, word):
    """Whether a password opens a mailbox."""
    try:
        mail.login(address, who, word).logout()
    except imaplib.IMAP4.error:
        return False
    return True


def differences(expected, found):
    return {key: {"expected": expected.get(key), "found": found.get(key)} for key in {*expected, *found} if expected.get(key) != found.get(key)}


def assert_directory_is(cluster, wishes):
    """The mailnodes hold what is wished, no more and no less, as their clients see it."""
    boxes = wishes.of("Mailbox")
    usage = {row["address"] for row in quorumail(cluster, "mailbox", "usage")}
    assert usage == {*boxes, "alice@example.org", "bob@example.org"}, usage ^ {*boxes}
    lists = {row["address"] for row in quorumail(cluster, "list", "status")}
    assert lists == set(wishes.of("MailingList")), lists ^ set(wishes.of("MailingList"))
    for address in lists:
        members = {row["address"]: row["role"].lower() for row in quorumail(cluster, "list", "members", address)}
        assert members == wishes.members(address), (address, differences(wishes.members(address), members))
    expected = expected_recipients(wishes)
    found = accepted(cluster.address("service/mail", 25), sorted(expected))
    assert found == expected, differences(expected, found)
    imap = cluster.address("service/mail", 993)
    expected = {who: spec["permissions"]["login"] and not spec["suspended"] for who, (_, spec, _) in boxes.items()}
    # Of those who may not log in a few: an address with too many failures is let in no more.
    for who in [who for who, may in expected.items() if not may][5:]:
        del expected[who]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        words = {who: wishes.words[boxes[who][1]["passwordSecretRef"]["key"]] for who in expected}
        found = dict(zip(words, pool.map(lambda who: opens(imap, who, words[who]), words)))
    assert found == expected, differences(expected, found)


def test_an_operator_killed_50_times_during_1000_changes_loses_none(service, host_operator):  # noqa: F811
    seed = int(os.environ.get("QUORUMAIL_OPERATOR_SEED") or random.randrange(1 << 30))
    print(f"QUORUMAIL_OPERATOR_SEED={seed}")
    wishes, moments, done = Wishes(seed), random.Random(seed + 1), threading.Event()
    begun = time.monotonic()
    assert host_operator.kills == 0

    def apply_changes():
        try:
            for number in range(CHANGES):
                wishes.change()
                if (number + 1) % BATCH == 0:
                    send_wishes(service, wishes)
        finally:
            done.set()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        applying = pool.submit(apply_changes)
        while not done.is_set() or host_operator.kills < KILLS:
            # Mostly in the middle of work, sometimes before it has begun or when it is over.
            time.sleep(moments.choice([0.3, 0.8, 1.2, 1.6, 2.5]))
            if host_operator.kills < KILLS:
                host_operator.kill()
                host_operator.start()
        applying.result()
    changed = time.monotonic()
    mail.wait_for(lambda: settled(service, wishes), within=90, every=0.5, what="everything Ready as it is wished")
    print(f"{CHANGES} changes and {KILLS} kills in {changed - begun:.0f} s, all as wished {time.monotonic() - changed:.0f} s later: "
          + ", ".join(f"{len(wishes.of(kind))} {kind}" for kind in ["MailDomain", "Mailbox", "MailingList"]))
    # The first that comes fresh has seen every Secret; the second compares every field by its fingerprint, and finds nothing to say.
    for _ in range(2):
        host_operator.kill()
        host_operator.start()
        mail.wait_for(lambda: host_operator.metric('quorumail_operator_reconciles_total{controller="accounts",result="ok"}') >= 1,
                      within=30, what="a first round of a fresh operator")
    assert host_operator.metric("quorumail_operator_directory_changes_total") == 0
    assert_directory_is(service, wishes)
    for (kind, subject), (name, _, _) in list(wishes.objects.items()):
        if kind != "MailDomain":
            wishes.remove(kind, subject)
    send_wishes(service, wishes)
    for site in list(wishes.of("MailDomain")):
        wishes.remove("MailDomain", site)
    send_wishes(service, wishes)
    mail.wait_for(lambda: settled(service, wishes), within=60, every=0.5, what="the end of everything")
    assert not any(accepted(service.address("service/mail", 25), [f"p0@{site}" for site in SITES]).values())


# ---- of several operators one works -------------------------------------------------------------------------------

TAKES_OVER = 30


def make_mailbox(cluster, name, within):
    """A Mailbox is made and Ready; how long that took."""
    begun = time.monotonic()
    cluster.apply(json.dumps(thing("Mailbox", name, {"address": f"{name}@example.org", "deletionPolicy": "Delete"})))
    cluster.wait("Ready", f"mailbox/{name}", within=within)
    return time.monotonic() - begun


def holder(cluster):
    return cluster.get("-n", SYSTEM, "lease", OPERATOR)["spec"].get("holderIdentity")


def working(cluster):
    """The operators that say of themselves that they work."""
    found = set()
    for pod in operator_pods(cluster):
        with contextlib.suppress(OSError, KeyError):
            text = urllib.request.urlopen(f"http://{pod['status']['podIP']}:8080/metrics", timeout=2).read().decode()
            if "quorumail_operator_leader 1" in text.splitlines():
                found.add(pod["metadata"]["name"])
    return found


def test_of_two_operators_one_works_and_the_other_takes_over(service):  # noqa: F811
    only_local(service, "lets this machine kill a process of a pod")
    replicas(service, 2)
    mail.wait_for(lambda: working(service) == {holder(service)}, within=60, what="an operator that holds the Lease and works")
    seen, stop = [], threading.Event()

    def watch():
        while not stop.is_set():
            seen.append(frozenset(working(service)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    times = []
    try:
        for turn in range(3):
            lost = holder(service)
            # Otherwise it is back within a second, and goes on by its own name.
            service.kill_pod_for_good(lost, SYSTEM, "operator")
            times.append(make_mailbox(service, f"turn-{turn}", TAKES_OVER))
            assert holder(service) != lost
            service.kubectl("-n", SYSTEM, "rollout", "status", f"deployment/{OPERATOR}", "--timeout=60s")
        lost = holder(service)
        service.kill_pod(lost, namespace=SYSTEM, program="operator")
        times.append(make_mailbox(service, "turn-3", TAKES_OVER))
    finally:
        stop.set()
        watcher.join()
    print("seconds until a change was taken: " + ", ".join(f"{t:.1f}" for t in times[:3]) + f"; killed in place: {times[3]:.1f}")
    assert all(len(names) <= 1 for names in seen), set(seen)
    # Whoever is lost in a turn comes back under another name.
    assert len(set().union(*seen)) >= 4, set().union(*seen)
    service.kubectl("-n", NAMESPACE, "delete", *(f"mailbox/turn-{turn}" for turn in range(4)), "--timeout=60s")


# ---- the API server is gone ---------------------------------------------------------------------------------------

OUTAGE = float(os.environ.get("QUORUMAIL_API_OUTAGE") or 30)


def restarts(cluster):
    """By pod of ours, how often its container was started again."""
    found = {}
    for namespace in [SYSTEM, NAMESPACE]:
        for pod in cluster.get("-n", namespace, "pods")["items"]:
            for status in pod["status"].get("containerStatuses", []):
                found[pod["metadata"]["name"]] = status["restartCount"]
    return found


def test_mail_flows_while_the_api_server_is_gone(service):  # noqa: F811
    only_local(service, "can do without its API server")
    before, imap = restarts(service), service.address("service/mail", 993)
    took = {}

    def outage():
        service.stop_api()
        try:
            with pytest.raises(RuntimeError):
                service.kubectl("get", "nodes", "--request-timeout=2s")
            end, read = time.monotonic() + OUTAGE, 0
            while time.monotonic() < end:
                client = mail.login(imap, "alice@example.org", PASSWORD)
                count = len(mail.tokens(client))
                client.logout()
                assert count > read, "no mail came in between"
                read = count
                time.sleep(1)
        finally:
            service.start_api()
        took["change"] = make_mailbox(service, "after-outage", 60)

    ledger = watch_mail(service, outage)
    print(f"{OUTAGE:.0f} s without an API server: a change right after it was taken within {took['change']:.1f} s")
    assert not ledger.refused and ledger.longest_pause() < 5, (len(ledger.refused), ledger.longest_pause())
    service.wait("Ready", "mailcluster/mail", within=60)
    after = restarts(service)
    # The operator that held the Lease ends when it cannot renew it, and waits for the API server from then on.
    again = {pod: after[pod] - count for pod, count in before.items()}
    assert all(count <= pod.startswith(OPERATOR) for pod, count in again.items()), again
    service.kubectl("-n", NAMESPACE, "delete", "mailbox/after-outage", "--timeout=60s")


# ---- nodes come and go --------------------------------------------------------------------------------------------

def test_nodes_from_3_to_5_and_back_under_load(service):  # noqa: F811
    def scale(count):
        service.kubectl("-n", NAMESPACE, "patch", "mailcluster", "mail", "--type=merge", "-p", json.dumps({"spec": {"nodes": count}}))

        def there():
            one = service.get("-n", NAMESPACE, "mailcluster", "mail")
            status = one["status"]
            ready = next(c for c in status["conditions"] if c["type"] == "Ready")
            parts, nodes = status["partitions"], status["nodes"]
            return status["observedGeneration"] == one["metadata"]["generation"] and ready["status"] == "True" \
                and len(nodes) == status["readyNodes"] == count and parts["moving"] == parts["underReplicated"] == 0 \
                and all(not n["leaving"] and n["replicas"] == n["targetReplicas"] > 0 for n in nodes) and status
        begun = time.monotonic()
        status = mail.wait_for(there, within=240, every=0.5, what=f"{count} nodes with all their replicas")
        held = [node["replicas"] for node in status["nodes"]]
        assert sum(held) == 3 * status["partitions"]["total"], held
        print(f"{count} nodes after {time.monotonic() - begun:.0f} s, replicas {held}")

    def claims():
        return {claim["metadata"]["name"] for claim in service.get("-n", NAMESPACE, "pvc")["items"]}

    def there_and_back():
        scale(5)
        assert claims() == {f"data-mail-{number}" for number in range(5)}
        scale(3)

    ledger = watch_mail(service, there_and_back)
    # Nobody is sent to a pod that is gone: a client would wait for it in vain.
    assert ledger.longest_pause() < 10 and len(ledger.unknown) <= 2, ledger.unknown

    def pods():
        return {pod["metadata"]["name"] for pod in service.get("-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/name=mailnode")["items"]}
    # The status is there as soon as the two have nothing left to do; they may still be ending.
    mail.wait_for(lambda: pods() == {"mail-0", "mail-1", "mail-2"}, within=60, what="the end of two pods")
    # deletionPolicy Delete: the volumes go with their nodes.
    mail.wait_for(lambda: claims() == {f"data-mail-{number}" for number in range(3)}, within=60, what="the end of two claims")


# ---- what cannot be is refused ------------------------------------------------------------------------------------

RULES = "rules"


def paused(kind, name, *changes):
    """An object that the operator leaves alone."""
    return thing(kind, name, spec_of(kind, *changes), namespace=RULES, annotations={"quorumail.io/paused": "true"})


@pytest.fixture(scope="module")
def answers(cluster):
    """What the API server says to every case, by its name: its refusal, or nothing."""
    cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": RULES}}))
    before = [paused(kind, f"changed-{n}", first) for n, (kind, first, _, _) in enumerate(CHANGED)]
    after = [paused(kind, f"changed-{n}", first, then) for n, (kind, first, then, _) in enumerate(CHANGED)]
    made = [paused(kind, changes.get("metadata.name", f"made-{n}"), changes) for n, (kind, changes, _) in enumerate(MADE)]
    cluster.apply(as_list(before))

    def ask(things):
        tool = [*cluster.kubectl_line(), "apply", "--dry-run=server", "-f", "-"]
        done = subprocess.run(tool, input=as_list(things), env=cluster.env, text=True, capture_output=True, timeout=300)
        found = {}
        for part in re.split(r"(?m)^(?=Error from server|The \w+ \")", done.stderr):
            if name := re.search(r'"([^"]+)" is invalid', part):
                found[name[1]] = part
            else:
                assert "Error" not in part and "unknown field" not in part, part
        return found, done.stdout

    told = {}
    for things in [made, after]:
        refusals, taken = ask(things)
        for one in things:
            name = one["metadata"]["name"]
            told[one["kind"], name] = refusals.get(name, "")
            assert name in refusals or f"/{name} " in taken, f"{name}: neither taken nor refused"
    yield told
    cluster.kubectl("delete", "namespace", RULES, "--timeout=120s", timeout=150)


def judged(answers, case, name, kind, words):
    told = answers[kind, name]
    if words is None:
        assert not told, f"{case} is refused: {told}"
    else:
        assert words in told, f"{case} is {'refused otherwise: ' + told if told else 'accepted'}"


@pytest.mark.parametrize("number", range(len(MADE)), ids=lambda n: f"{MADE[n][0]}-{n}")
def test_an_object_is_taken_or_refused_with_words_that_help(answers, number):
    kind, changes, words = MADE[number]
    judged(answers, MADE[number], changes.get("metadata.name", f"made-{number}"), kind, words)


@pytest.mark.parametrize("number", range(len(CHANGED)), ids=lambda n: f"{CHANGED[n][0]}-{n}")
def test_a_change_is_taken_or_refused_with_words_that_help(answers, number):
    kind, _, _, words = CHANGED[number]
    judged(answers, CHANGED[number], f"changed-{number}", kind, words)


def test_the_tables_have_a_refused_and_a_taken_case_for_every_rule(answers):
    found = list(rules())
    assert len(found) > 80 and {kind for kind, *_ in found} == set(LEAST)
    for rule in found:
        assert_in_tables(answers, *rule)


def assert_in_tables(answers, kind, path, message, compares):
    helps = re.compile(r"must|as in|such as|make|leave|set |needs|at most|list nothing")
    where = f"{kind} {'.'.join(path)}: {message}"
    field = path[1:] if path[:1] == ["spec"] else path
    # A message may belong to several fields: a refusal names the field that it is about.
    refused = [told for (of, _), told in answers.items() if of == kind and message in told]
    if len(path) > 1:
        refused = [told for told in refused if ".".join(path).replace(".[]", "") in told]
    assert refused, f"no case is refused by {where}"
    assert helps.search(message), f"{where} does not say what to do"
    if compares:
        specs = [spec_of(kind, first, then) for of, first, then, words in CHANGED if of == kind and words is None]
    else:
        specs = [spec_of(kind, changes) for of, changes, words in MADE if of == kind and words is None]
    # What is not written has its default, and stays as it was.
    assert any(compares or has(spec, field) for spec in specs), f"no taken case has the field of {where}"
