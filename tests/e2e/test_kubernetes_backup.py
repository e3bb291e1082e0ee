"""Promises of BackupPolicy, MailBackup and MailRestore, kept on a real Kubernetes with a real S3 service."""

import datetime
import imaplib
import ipaddress
import json
import shutil
import socket
import subprocess
import time

import pytest

import kubernetes
import mail
from dev import BIN
from repository import versitygw

NAMESPACE = "mail-backup"
PASSWORD = "correct horse battery staple"
ACCESS_KEY, SECRET_KEY, BUCKET = "e2e-access", "e2e-secret-key", "mail-backups"


class S3:
    """versitygw on a folder of this machine, at an address that pods reach."""

    def __init__(self, program, host, directory):
        self.command = [program, "--access", ACCESS_KEY, "--secret", SECRET_KEY]
        self.directory, self.host = directory, host
        for name in [f"root/{BUCKET}", "metadata"]:
            (directory / name).mkdir(parents=True)
        with socket.create_server((host, 0)) as free:
            self.address = f"{host}:{free.getsockname()[1]}"
        self.process = None

    def start(self):
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "--port", self.address, "posix", "--sidecar", str(self.directory / "metadata"),
                 str(self.directory / "root")], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        kubernetes.wait_port(self.address, within=20)

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def manifests(self, prefix="mail"):
        found = (self.directory / "root" / BUCKET / prefix).glob("backups/*")
        return sorted(path.name for path in found)

    def packs(self, prefix):
        return [path for path in (self.directory / "root" / BUCKET / prefix / "packs").glob("**/*") if path.is_file()]


@pytest.fixture(scope="module")
def s3(cluster, tmp_path_factory):
    program = shutil.which("versitygw", path=cluster.env["PATH"]) or versitygw()
    if not program:
        pytest.skip("versitygw is not built (make cluster)")
    if not isinstance(cluster, kubernetes.Local):
        pytest.skip("pods reach this machine only from the local cluster")
    # The host is the first address of the network whose second is the API server's.
    endpoint = cluster.get("endpoints", "kubernetes")["subsets"][0]["addresses"][0]["ip"]
    server = S3(program, str(ipaddress.ip_address(endpoint) - 1), tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


def resource(kind, name, spec, namespace=NAMESPACE):
    return json.dumps({"apiVersion": "quorumail.io/v1alpha1", "kind": kind,
                       "metadata": {"name": name, "namespace": namespace}, "spec": spec})


def secret(name, namespace=NAMESPACE, **values):
    return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
                       "stringData": values})


def bucket(s3, prefix):
    return {"s3": {"endpoint": f"http://{s3.address}", "bucket": BUCKET, "prefix": prefix,
                   "credentialsSecretRef": {"name": "backup-credentials"}}}


def policy(s3, name="nightly", key="backup-key", prefix="mail", namespace=NAMESPACE, **spec):
    return resource("BackupPolicy", name, {"schedule": "0 3 * * *", "target": bucket(s3, prefix),
                                           "encryptionKeySecretRef": {"name": key}, **spec}, namespace)


def secrets_of_backups(namespace=NAMESPACE):
    return [secret("backup-credentials", namespace, accessKeyId=ACCESS_KEY, secretAccessKey=SECRET_KEY),
            secret("backup-key", namespace, key="a passphrase that nobody guesses")]


@pytest.fixture(scope="module")
def service(cluster, s3):
    """A MailCluster of one node with a mailbox, and the Secrets of its backups."""
    cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}))
    try:
        cluster.apply("\n---\n".join([
            resource("MailCluster", "kept", {"nodes": 1, "partitions": 4, "storage": {"size": "1Gi", "deletionPolicy": "Delete"}}),
            resource("MailDomain", "example-org", {"domain": "example.org"}),
            secret("people", alice=PASSWORD),
            resource("Mailbox", "alice", {"address": "alice@example.org", "passwordSecretRef": {"name": "people", "key": "alice"}}),
            *secrets_of_backups(),
        ]))
        cluster.wait("Ready", "mailcluster/kept", "mailbox/alice", namespace=NAMESPACE)
        kubernetes.wait_port(cluster.address("service/kept", 25, NAMESPACE))
        yield cluster
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=180s", timeout=200)


def send(service, count, subject):
    address = service.address("service/kept", 25, NAMESPACE)
    sent = [mail.message("x@elsewhere.example", "alice@example.org", f"{subject} {n}") for n in range(count)]
    for msg in sent:
        mail.send(address, msg)
    return {msg["X-Token"] for msg in sent}


def imap(service):
    return mail.login(service.address("service/kept", 993, NAMESPACE), "alice@example.org", PASSWORD)


def status(service, kind, name, namespace=NAMESPACE):
    return service.get("-n", namespace, kind, name).get("status", {})


def ended(service, kind, name, within=60, namespace=NAMESPACE):
    """The status of a run once it has ended."""
    return mail.wait_for(lambda: (s := status(service, kind, name, namespace)).get("phase") in ("Succeeded", "Failed") and s,
                         within=within, every=0.5, what=f"the end of {kind} {name}")


def backups(service, policy="nightly"):
    return service.get("-n", NAMESPACE, "mailbackups", "-l", f"quorumail.io/backup-policy={policy}")["items"]


def by_hand(service, name, policy="nightly"):
    service.apply(resource("MailBackup", name, {"policyRef": {"name": policy}}))
    return ended(service, "mailbackup", name)


def kill_operator(service):
    service.kubectl("-n", "quorumail-system", "delete", "pods", "-l", "app.kubernetes.io/component=operator",
                    "--grace-period=0", "--force")


def throw_away(service):
    return service.get("-n", NAMESPACE, "mailclusters", "-l", "quorumail.io/rehearsal")["items"]


def nothing_is_left(service, cluster):
    """What a rehearsal made is gone: pods, volumes, Secrets, everything that has the name of its MailCluster."""
    def left():
        kinds = "mailclusters,statefulsets,pods,persistentvolumeclaims,secrets,configmaps,services,serviceaccounts"
        found = service.get("-n", NAMESPACE, kinds)["items"]
        return [f"{item['kind']} {item['metadata']['name']}" for item in found if cluster in item["metadata"]["name"]]

    mail.wait_for(lambda: not left(), within=120, every=1, what="the end of all that the rehearsal made")


def rehearsed(service, name, begun_after=None, within=300):
    """The record of a rehearsal that has ended; of one that was begun later, when an instant is given."""
    def record():
        found = status(service, "backuppolicy", name).get("rehearsal", {})
        later = begun_after is None or found.get("started", "") > begun_after
        return later and found.get("result") in ("Succeeded", "Failed") and found

    return mail.wait_for(record, within=within, every=0.5, what=f"the end of a rehearsal of {name}")


def schedule_of_rehearsal(service, name, schedule):
    service.kubectl("-n", NAMESPACE, "patch", "backuppolicy", name, "--type=merge", "-p",
                    json.dumps({"spec": {"rehearsal": {"schedule": schedule}}}))


def events_of(service, name):
    events = service.get("-n", NAMESPACE, "events.events.k8s.io")["items"]
    return {(event["type"], event["reason"]) for event in events if event["regarding"]["name"] == name}


def test_a_policy_backs_up_at_once_and_a_restore_brings_deleted_mail_back(service, s3):
    tokens = send(service, 20, "kept")
    started = time.monotonic()
    service.apply(policy(s3))
    mail.wait_for(lambda: status(service, "backuppolicy", "nightly").get("lastSuccessfulTime"), within=60, every=0.5,
                  what="the first backup")
    print(f"the first backup was there {time.monotonic() - started:.1f} s after its policy")
    [first] = backups(service)
    assert first["status"]["phase"] == "Succeeded", first
    assert first["status"]["messages"] >= 20 and first["status"]["partitions"] == 4, first
    assert [first["status"]["id"]] == s3.manifests(), "what the status tells is in the bucket, and nothing else is"
    told = mail.wait_for(lambda: (s := status(service, "backuppolicy", "nightly")).get("retention", {}).get("applied") and s,
                         within=60, every=0.5, what="retention")
    assert told["backups"] == 1 and told["storedBytes"] > 0 and told["nextScheduleTime"] > told["lastScheduleTime"], told
    assert service.condition("backuppolicy", "nightly", "LastBackupSucceeded", NAMESPACE)["status"] == "True"

    client = imap(service)
    client.select("INBOX")
    client.uid("STORE", "1:*", "+FLAGS.SILENT", "(\\Deleted)")
    client.expunge()
    client.logout()
    assert set(mail.tokens(imap(service))) == set()
    restore = {"source": {"policyRef": {"name": "nightly"}}, "scope": {"mailbox": "alice@example.org"},
               "target": {"folderPrefix": "Restored"}}
    service.apply(resource("MailRestore", "again", restore))
    done = ended(service, "mailrestore", "again")
    assert done["phase"] == "Succeeded" and done["verified"], done
    assert done["restored"]["messages"] == 20 and done["backup"] == first["status"]["id"], done
    assert set(mail.tokens(imap(service), "Restored/INBOX")) == tokens
    # Twice makes no duplicates.
    service.apply(resource("MailRestore", "twice", restore))
    done = ended(service, "mailrestore", "twice")
    assert done["phase"] == "Succeeded" and done["restored"]["messages"] == 0, done
    assert sorted(mail.tokens(imap(service), "Restored/INBOX").elements()) == sorted(tokens)


def test_what_is_wrong_is_told_with_what_to_do_and_ends_when_it_is_put_right(service, s3):
    service.apply(policy(s3, "wrong", key="no-such-secret"))

    def reason():
        return service.condition("backuppolicy", "wrong", namespace=NAMESPACE).get("reason")

    mail.wait_for(lambda: reason() == "SecretNotFound", within=30, what="SecretNotFound")
    assert "no-such-secret" in service.condition("backuppolicy", "wrong", namespace=NAMESPACE)["message"]
    # The prefix is locked with another key.
    service.apply(secret("no-such-secret", key="another passphrase, long enough"))
    mail.wait_for(lambda: reason() == "LastBackupFailed", within=60, every=0.5, what="a failed backup")
    [failed] = backups(service, "wrong")
    assert failed["status"]["phase"] == "Failed" and "key" in failed["status"]["error"], failed
    ready = next(c for c in failed["status"]["conditions"] if c["type"] == "Ready")
    assert ready["reason"] == "WrongKey", ready
    service.apply(secret("no-such-secret", key="a passphrase that nobody guesses"))
    # It is made again a minute after it failed.
    mail.wait_for(lambda: status(service, "backuppolicy", "wrong").get("lastSuccessfulTime"), within=120, every=1,
                  what="a backup once the key is right")
    service.kubectl("-n", NAMESPACE, "delete", "backuppolicy/wrong", "--timeout=30s")


def test_a_backup_without_an_s3_service_fails_with_a_reason_and_blocks_nothing(service, s3):
    before = s3.manifests()
    s3.stop()
    try:
        service.apply(policy(s3, deadline="20s"))
        down = by_hand(service, "while-down")
        assert down["phase"] == "Failed" and down["error"], down
        assert s3.manifests() == before, "nothing half-written is a backup"
    finally:
        s3.start()
    service.apply(policy(s3))
    up = by_hand(service, "while-up")
    assert up["phase"] == "Succeeded" and up["id"] in s3.manifests(), up


def test_the_operator_killed_in_the_middle_leaves_no_run_behind(service, s3):
    send(service, 200, "many")
    service.apply(resource("MailBackup", "survivor", {"policyRef": {"name": "nightly"}}))
    mail.wait_for(lambda: status(service, "mailbackup", "survivor").get("phase") in ("Running", "Succeeded"), within=60,
                  every=0.1, what="the begin of the backup")
    kill_operator(service)
    done = ended(service, "mailbackup", "survivor", within=180)
    assert done["phase"] == "Succeeded" and done["id"] in s3.manifests(), done
    print(f"the backup was begun {done['attempts']} times")
    tokens = mail.tokens(imap(service))
    service.apply(resource("MailRestore", "survivor", {
        "source": {"backupRef": {"name": "survivor"}}, "scope": {"mailbox": "alice@example.org"},
        "target": {"folderPrefix": "Survived"}}))
    mail.wait_for(lambda: status(service, "mailrestore", "survivor").get("phase") in ("Running", "Succeeded"), within=60,
                  every=0.1, what="the begin of the restore")
    kill_operator(service)
    done = ended(service, "mailrestore", "survivor", within=180)
    assert done["phase"] == "Succeeded" and done["verified"], done
    assert mail.tokens(imap(service), "Survived/INBOX") == tokens, "all of it, and nothing twice"
    print(f"the restore was begun {done['attempts']} times")


def test_retention_follows_its_policy_without_a_backup(service, s3):
    service.apply(policy(s3, "aged", prefix="aged"))
    mail.wait_for(lambda: status(service, "backuppolicy", "aged").get("lastSuccessfulTime"), within=60, every=0.5,
                  what="the first backup")
    made = [by_hand(service, f"aged-{number}", "aged")["id"] for number in range(2)]
    mail.wait_for(lambda: status(service, "backuppolicy", "aged").get("backups") == 3, within=60, every=0.5,
                  what="retention after the last backup")
    assert len(s3.manifests("aged")) == 3
    service.apply(policy(s3, "aged", prefix="aged", retention={"last": 1, "daily": 0, "weekly": 0, "monthly": 0, "yearly": 0}))
    mail.wait_for(lambda: s3.manifests("aged") == made[1:], within=60, every=0.5, what="the end of all but the newest")
    told = mail.wait_for(lambda: (s := status(service, "backuppolicy", "aged")).get("backups") == 1 and s["retention"],
                         within=60, every=0.5, what="what retention did")
    assert told["deleted"] == 2 and told["kept"] == 1 and told["failures"] == 0 and told["next"] > told["applied"], told
    mail.wait_for(lambda: service.condition("mailbackup", "aged-0", namespace=NAMESPACE)["reason"] == "Pruned", within=60,
                  every=0.5, what="a MailBackup that says so")
    service.kubectl("-n", NAMESPACE, "delete", "backuppolicy/aged", "--timeout=30s")


RARELY, EVERY_MINUTE = "0 5 1 1 *", "* * * * *"


def test_a_rehearsal_restores_everything_proves_it_and_leaves_nothing(service, s3):
    send(service, 10, "rehearsed")
    service.apply(policy(s3, "proven", prefix="proven", rehearsal={"schedule": RARELY, "deadline": "10m"}))
    made = mail.wait_for(lambda: throw_away(service), within=90, every=0.2, what="the MailCluster of the rehearsal")
    cluster = made[0]["metadata"]["name"]
    assert made[0]["spec"]["nodes"] == 1 and made[0]["spec"]["storage"]["deletionPolicy"] == "Delete", made
    # It counts as nobody's: what names no MailCluster still finds the one that there is.
    service.apply(resource("MailDomain", "meanwhile", {"domain": "meanwhile.example"}))
    service.wait("Ready", "maildomain/meanwhile", namespace=NAMESPACE, within=30)
    record = rehearsed(service, "proven")
    assert record["result"] == "Succeeded", record
    [backup] = backups(service, "proven")
    assert record["backup"] == backup["status"]["id"] and record["messages"] == backup["status"]["messages"], (record, backup)
    assert record["compared"] == record["messages"] and record["mailboxes"] >= 1 and record["duration"], record
    print(f"rehearsed {record['messages']} messages in {record['duration']}")
    told = status(service, "backuppolicy", "proven")
    assert told["lastRehearsedTime"] == record["finished"] and told["nextRehearsalTime"] > record["finished"], told
    assert service.condition("backuppolicy", "proven", "RehearsalSucceeded", NAMESPACE)["status"] == "True"
    mail.wait_for(lambda: ("Normal", "RehearsalSucceeded") in events_of(service, "proven"), what="the Event")
    nothing_is_left(service, cluster)
    assert service.condition("mailcluster", "kept", namespace=NAMESPACE)["status"] == "True"


def test_the_operator_killed_in_the_middle_of_a_rehearsal_leaves_nothing_and_blocks_nothing(service, s3):
    before = status(service, "backuppolicy", "proven")["rehearsal"]["started"]
    schedule_of_rehearsal(service, "proven", EVERY_MINUTE)
    [made] = mail.wait_for(lambda: throw_away(service), within=90, every=0.1, what="the MailCluster of the rehearsal")
    kill_operator(service)
    schedule_of_rehearsal(service, "proven", RARELY)
    record = rehearsed(service, "proven", begun_after=before)
    assert record["result"] == "Succeeded" and record["attempts"] >= 2, record
    nothing_is_left(service, made["metadata"]["name"])
    mail.wait_for(lambda: not throw_away(service), within=60, every=0.5, what="the end of the second MailCluster")


def test_a_rehearsal_of_a_damaged_backup_fails_with_a_reason_and_leaves_nothing(service, s3):
    pack = max(s3.packs("proven"), key=lambda path: path.stat().st_size)
    whole = pack.read_bytes()
    damaged = bytearray(whole)
    # A bit in the first quarter: in a blob, and not in the table of contents behind them.
    damaged[len(damaged) // 4] ^= 0x40
    pack.write_bytes(damaged)
    before = status(service, "backuppolicy", "proven")["rehearsal"]["started"]
    schedule_of_rehearsal(service, "proven", EVERY_MINUTE)
    [made] = mail.wait_for(lambda: throw_away(service), within=90, every=0.1, what="the MailCluster of the rehearsal")
    schedule_of_rehearsal(service, "proven", RARELY)
    record = rehearsed(service, "proven", begun_after=before)
    pack.write_bytes(whole)
    assert record["result"] == "Failed" and record["failures"] == 1, record
    assert pack.name in record["error"], record
    condition = service.condition("backuppolicy", "proven", "RehearsalSucceeded", NAMESPACE)
    assert condition["status"] == "False" and pack.name in condition["message"], condition
    mail.wait_for(lambda: ("Warning", "RehearsalFailed") in events_of(service, "proven"), what="the Event")
    nothing_is_left(service, made["metadata"]["name"])
    service.kubectl("-n", NAMESPACE, "delete", "backuppolicy/proven", "--timeout=30s")


def test_point_in_time_restore_brings_back_what_was_deleted(service, s3):
    service.apply(policy(s3, "always", prefix="always", continuous={"maxLag": "2s"}))
    mail.wait_for(lambda: service.condition("backuppolicy", "always", "ArchivingHealthy", NAMESPACE).get("status") == "True",
                  within=150, every=1, what="the archive")
    assert status(service, "backuppolicy", "always")["archiveLag"]
    tokens = send(service, 5, "instant")
    mail.wait_for(lambda: tokens <= set(mail.tokens(imap(service))), what="the mail")
    instant = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
    client = imap(service)
    client.select("INBOX")
    client.uid("STORE", "1:*", "+FLAGS.SILENT", "(\\Deleted)")
    client.expunge()
    client.logout()

    def restore(name, at):
        service.apply(resource("MailRestore", name, {
            "source": {"policyRef": {"name": "always"}}, "pointInTime": at, "scope": {"mailbox": "alice@example.org"},
            "target": {"folderPrefix": "Before"}}))
        return ended(service, "mailrestore", name)

    outside = restore("long-ago", "2001-02-03T04:05:06Z")
    assert outside["phase"] == "Failed" and "points in time can be restored in" in outside["error"], outside
    condition = service.condition("mailrestore", "long-ago", namespace=NAMESPACE)
    assert condition["reason"] == "OutsideWindow", condition
    # The archive reaches the instant a few seconds later.
    attempts = iter(range(100))
    done = mail.wait_for(lambda: (found := restore(f"before-{next(attempts)}", instant))["phase"] == "Succeeded" and found,
                         within=60, every=1, what="a restore to the instant")
    assert done["verified"], done
    assert tokens <= set(mail.tokens(imap(service), "Before/INBOX"))
    service.kubectl("-n", NAMESPACE, "delete", "backuppolicy/always", "--timeout=30s")


VOLUME_POD = "app.kubernetes.io/name=backup-volume,quorumail.io/backup-policy=on-volume"


def volume_pods(service):
    return [pod["metadata"]["name"] for pod in service.get("-n", NAMESPACE, "pods", "-l", VOLUME_POD)["items"]]


def volume_policy(**target):
    return resource("BackupPolicy", "on-volume", {"schedule": RARELY, "target": {"volume": target},
                                                  "encryptionKeySecretRef": {"name": "backup-key"}})


def exists(service, kind, name):
    return bool(service.kubectl("-n", NAMESPACE, "get", kind, name, "--ignore-not-found", "-o", "name").strip())


def test_a_volume_keeps_backups_through_the_loss_of_its_pod_and_of_its_policy(service):
    tokens = send(service, 20, "on a volume")
    mail.wait_for(lambda: tokens <= set(mail.tokens(imap(service))), what="the mail")
    claim = "on-volume-backup-volume"
    service.apply(volume_policy(size="1Gi"))
    try:
        mail.wait_for(lambda: status(service, "backuppolicy", "on-volume").get("lastSuccessfulTime"), within=180, every=0.5,
                      what="the first backup on a volume")
        [first] = backups(service, "on-volume")
        assert first["status"]["phase"] == "Succeeded" and first["status"]["messages"] >= 20, first
        assert service.condition("backuppolicy", "on-volume", namespace=NAMESPACE)["status"] == "True"

        # A backup that finds the pod gone waits for the next one.
        [pod] = volume_pods(service)
        service.kubectl("-n", NAMESPACE, "delete", "pod", pod, "--grace-period=0", "--force")
        service.apply(resource("MailBackup", "without-a-pod", {"policyRef": {"name": "on-volume"}}))
        done = ended(service, "mailbackup", "without-a-pod", within=240)
        assert done["phase"] == "Succeeded", done
        assert volume_pods(service) != [pod]
        # Likewise one that is killed in the middle of a restore.
        restore = {"source": {"backupRef": {"name": "without-a-pod"}}, "scope": {"mailbox": "alice@example.org"}}
        service.apply(resource("MailRestore", "from-volume", {**restore, "target": {"folderPrefix": "Volume"}}))
        mail.wait_for(lambda: status(service, "mailrestore", "from-volume").get("phase") in ("Running", "Succeeded"), within=60,
                      every=0.1, what="the begin of the restore")
        [pod] = volume_pods(service)
        service.kubectl("-n", NAMESPACE, "delete", "pod", pod, "--grace-period=0", "--force")
        done = ended(service, "mailrestore", "from-volume", within=240)
        assert done["phase"] == "Succeeded" and done["verified"], done
        assert tokens <= set(mail.tokens(imap(service), "Volume/INBOX"))

        # Deleting the policy deletes what serves the volume, and no backup.
        service.kubectl("-n", NAMESPACE, "delete", "backuppolicy/on-volume", "--timeout=30s")
        mail.wait_for(lambda: not any(exists(service, kind, claim) for kind in ("deployment", "service", "secret"))
                      and not volume_pods(service), within=120, every=1, what="the end of what served the volume")
        assert exists(service, "persistentvolumeclaim", claim)
        service.apply(volume_policy(claimName=claim))
        service.apply(resource("MailRestore", "from-claim", {
            "source": {"policyRef": {"name": "on-volume"}}, "scope": {"mailbox": "alice@example.org"},
            "target": {"folderPrefix": "Claim"}}))
        done = ended(service, "mailrestore", "from-claim", within=240)
        assert done["phase"] == "Succeeded" and done["verified"], done
        assert tokens <= set(mail.tokens(imap(service), "Claim/INBOX"))
        service.apply(volume_policy(claimName="no-such-claim"))
        mail.wait_for(lambda: service.condition("backuppolicy", "on-volume", namespace=NAMESPACE).get("reason") == "VolumeNotReady",
                      within=60, what="VolumeNotReady")
        assert "no-such-claim" in service.condition("backuppolicy", "on-volume", namespace=NAMESPACE)["message"]
    finally:
        service.kubectl("-n", NAMESPACE, "delete", "backuppolicy/on-volume", "--ignore-not-found", "--timeout=60s")
        service.kubectl("-n", NAMESPACE, "delete", "persistentvolumeclaim", claim, "--ignore-not-found", "--wait=false")


LOST, AGAIN = "mail-lost", "mail-again"
NAMES = ["alice", "bob"]


def queue(service, namespace):
    command = [str(BIN / "quorumail"), "--namespace", namespace, "-o", "json", "queue", "list"]
    return json.loads(kubernetes.run(*command, env=service.env, timeout=60))


def login(service, cluster, namespace, name, password=PASSWORD):
    return mail.login(service.address(f"service/{cluster}", 993, namespace), f"{name}@example.org", password)


def cluster_in(service, namespace):
    """A namespace with a MailCluster whose outgoing mail waits, and the Secrets of its backups."""
    service.apply(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))
    spec = {"nodes": 1, "partitions": 4, "storage": {"size": "1Gi", "deletionPolicy": "Delete"},
            "smtp": {"relay": {"host": "127.0.0.1", "port": 1}}}
    service.apply("\n---\n".join([resource("MailCluster", "mail", spec, namespace), *secrets_of_backups(namespace)]))


def fill_mailboxes(service, namespace):
    """Mail by SMTP and IMAP: folders, flags, keywords, dates, holes between UIDs, and an entry in the queue."""
    address = service.address("service/mail", 25, namespace)
    for number in range(30):
        mail.send(address, mail.message("x@elsewhere.example", f"{NAMES[number % 2]}@example.org", f"m{number}"))
    client = login(service, "mail", namespace, "alice")
    for folder in ["Projects", "Projects/2026"]:
        assert client.create(f'"{folder}"')[0] == "OK"
    client.subscribe('"Projects/2026"')
    for number in range(12):
        flags = ["", r"(\Seen)", r"(\Answered $Forwarded)"][number % 3]
        body = f"From: a@example.org\r\nSubject: appended {number}\r\n\r\nline {number}\r\n".encode()
        date = imaplib.Time2Internaldate(1_500_000_000 + number * 86_400)
        assert client.append('"Projects/2026"', flags or None, date, body)[0] == "OK"
    client.select('"Projects/2026"')
    client.uid("STORE", "3,7:9", "+FLAGS", r"(\Deleted)")
    assert client.expunge()[0] == "OK"
    client.logout()
    submission = service.address("service/mail", 587, namespace)
    msg = mail.message("alice@example.org", "someone@remote.example", "waits")
    mail.submit(submission, "alice@example.org", PASSWORD, msg)


def resources_in(service, s3, key, backup, *options):
    command = [str(BIN / "quorumail"), "--namespace", AGAIN, "backup", "show", backup, "--resources", *options,
               "--from", f"s3://{BUCKET}/lost", "--endpoint", f"http://{s3.address}", "--path-style", "--key-file", str(key)]
    env = {**service.env, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    return kubernetes.run(*command, env=env, timeout=60)


def test_disaster_recovery_brings_everything_back(service, s3, tmp_path):
    namespaces = [LOST, AGAIN]
    try:
        cluster_in(service, LOST)
        service.apply("\n---\n".join([
            resource("MailDomain", "example-org", {"domain": "example.org"}, LOST),
            secret("people", LOST, **{name: PASSWORD for name in NAMES}),
            *(resource("Mailbox", name, {"address": f"{name}@example.org", "passwordSecretRef": {"name": "people", "key": name}},
                       LOST) for name in NAMES),
            resource("Mailbox", "carol", {"address": "carol@example.org"}, LOST)]))
        mailboxes = [f"mailbox/{name}" for name in [*NAMES, "carol"]]
        service.wait("Ready", "mailcluster/mail", *mailboxes, namespace=LOST)
        generated = service.secret("carol-credentials", "password", LOST)
        kubernetes.wait_port(service.address("service/mail", 25, LOST))
        fill_mailboxes(service, LOST)
        before = mail.wait_for(lambda: (found := {name: mail.contents(login(service, "mail", LOST, name)) for name in NAMES})
                               and sum(len(m) for folders in found.values() for _, m in folders.values()) == 38 and found,
                               what="all mail in its mailboxes")
        subscribed = mail.folders(login(service, "mail", LOST, "alice"))
        held = mail.wait_for(lambda: queue(service, LOST), what="the entry that waits")
        service.apply(policy(s3, "last", prefix="lost", namespace=LOST, includeSecrets=True))
        mail.wait_for(lambda: status(service, "backuppolicy", "last", LOST).get("lastSuccessfulTime"), within=60, every=0.5,
                      what="the last backup")
        [made] = service.get("-n", LOST, "mailbackups")["items"]
        # The MailCluster, its MailDomain, three Mailboxes and the BackupPolicy; what they refer to, a certificate and a password
        # that the operator made.
        assert made["status"]["resources"] == {"objects": 6, "secrets": 4}, made
        backup = made["status"]["id"]
        service.kubectl("delete", "namespace", LOST, "--timeout=180s", timeout=200)
        namespaces.remove(LOST)

        # Nothing but the bucket and the key.
        began = time.monotonic()
        service.apply(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": AGAIN}}))
        service.apply(secrets_of_backups(AGAIN)[1])
        key = tmp_path / "backup.key"
        key.write_text("a passphrase that nobody guesses")
        assert "kind: Secret" not in resources_in(service, s3, key, backup)
        kept = json.loads(resources_in(service, s3, key, backup, "--with-secrets", "-o", "json"))
        names = {(item["kind"], item["metadata"]["name"]) for item in kept["items"]}
        assert ("Secret", "people") in names and ("Secret", "backup-key") not in names, names
        service.apply(resources_in(service, s3, key, backup, "--with-secrets"))
        source = {**bucket(s3, "lost"), "encryptionKeySecretRef": {"name": "backup-key"}, "id": backup}
        service.apply(resource("MailRestore", "everything", {"source": source, "scope": {"cluster": {}}}, AGAIN))
        done = ended(service, "mailrestore", "everything", within=240, namespace=AGAIN)
        assert done["phase"] == "Succeeded" and done["verified"] and done["restored"]["messages"] == 38, done
        # A restore goes to the pod; the Service of the new cluster may get its route a moment later.
        kubernetes.wait_port(service.address("service/mail", 993, AGAIN))
        for name in NAMES:
            found = mail.contents(login(service, "mail", AGAIN, name))
            for folder, expected in before[name].items():
                if expected[1]:
                    assert found[folder] == expected, f"{name}: {folder} is not what it was"
        print(f"from nothing to the last message: {time.monotonic() - began:.1f} s, of which the restore took {done['duration']}")
        service.wait("Ready", *mailboxes, namespace=AGAIN, within=60)
        login(service, "mail", AGAIN, "carol", generated).logout()
        assert mail.folders(login(service, "mail", AGAIN, "alice")) == subscribed
        with pytest.raises(imaplib.IMAP4.error):
            login(service, "mail", AGAIN, "alice", "wrong")
        waiting = queue(service, AGAIN)
        assert [entry["id"] for entry in waiting] == [entry["id"] for entry in held]
        assert {r["class"] for entry in waiting for r in entry["recipients"]} == {"held"}, waiting
    finally:
        for namespace in namespaces:
            service.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=180s", timeout=200)


def test_a_wrong_resource_of_backups_is_refused_with_a_plain_message(service, s3):
    no_source = {"source": {}, "scope": {"mailbox": "alice@example.org"}}
    two_scopes = {"source": {"policyRef": {"name": "nightly"}}, "scope": {"mailbox": "a@example.org", "domain": "example.org"}}
    for text, word in [(policy(s3, "bad", schedule="daily"), "five fields"),
            (policy(s3, "bad", rehearsal={"schedule": "daily"}), "five fields"), (policy(s3, "bad", retention={
            "last": 0, "daily": 0, "weekly": 0, "monthly": 0, "yearly": 0}), "keep something"),
            (resource("MailRestore", "bad", no_source), "exactly one of backupRef"),
            (resource("MailRestore", "bad", two_scopes), "exactly one of cluster")]:
        with pytest.raises(RuntimeError) as refused:
            service.apply(text)
        assert word in str(refused.value), refused.value
    with pytest.raises(RuntimeError) as refused:
        service.kubectl("-n", NAMESPACE, "patch", "mailrestore", "again", "--type=merge", "-p",
                        json.dumps({"spec": {"target": {"folderPrefix": "Other"}}}))
    assert "cannot be changed" in str(refused.value), refused.value
