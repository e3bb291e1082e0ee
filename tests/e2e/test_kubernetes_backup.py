"""Promises of BackupPolicy, MailBackup and MailRestore, kept on a real Kubernetes with a real S3 service."""

import ipaddress
import json
import shutil
import socket
import subprocess
import time

import pytest

import kubernetes
import mail
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

    def manifests(self):
        found = (self.directory / "root" / BUCKET).glob("**/backups/*")
        return sorted(path.name for path in found)


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


def resource(kind, name, spec):
    return json.dumps({"apiVersion": "quorumail.io/v1alpha1", "kind": kind,
                       "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})


def secret(name, **values):
    return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE},
                       "stringData": values})


def policy(s3, name="nightly", key="backup-key", **spec):
    target = {"s3": {"endpoint": f"http://{s3.address}", "bucket": BUCKET, "prefix": "mail",
                     "credentialsSecretRef": {"name": "backup-credentials"}}}
    return resource("BackupPolicy", name, {"schedule": "0 3 * * *", "target": target, "encryptionKeySecretRef": {"name": key}, **spec})


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
            secret("backup-credentials", accessKeyId=ACCESS_KEY, secretAccessKey=SECRET_KEY),
            secret("backup-key", key="a passphrase that nobody guesses"),
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


def status(service, kind, name):
    return service.get("-n", NAMESPACE, kind, name).get("status", {})


def ended(service, kind, name, within=60):
    """The status of a run once it has ended."""
    return mail.wait_for(lambda: (s := status(service, kind, name)).get("phase") in ("Succeeded", "Failed") and s,
                         within=within, every=0.5, what=f"the end of {kind} {name}")


def backups(service, policy="nightly"):
    return service.get("-n", NAMESPACE, "mailbackups", "-l", f"quorumail.io/backup-policy={policy}")["items"]


def by_hand(service, name, policy="nightly"):
    service.apply(resource("MailBackup", name, {"policyRef": {"name": policy}}))
    return ended(service, "mailbackup", name)


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
    told = status(service, "backuppolicy", "nightly")
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
    service.kubectl("-n", "quorumail-system", "delete", "pods", "-l", "app.kubernetes.io/component=operator",
                    "--grace-period=0", "--force")
    done = ended(service, "mailbackup", "survivor", within=180)
    assert done["phase"] == "Succeeded" and done["id"] in s3.manifests(), done
    print(f"begun {done['attempts']} times")


def test_a_wrong_resource_of_backups_is_refused_with_a_plain_message(service, s3):
    no_source = {"source": {}, "scope": {"mailbox": "alice@example.org"}}
    two_scopes = {"source": {"policyRef": {"name": "nightly"}}, "scope": {"mailbox": "a@example.org", "domain": "example.org"}}
    for text, word in [(policy(s3, "bad", schedule="daily"), "five fields"), (policy(s3, "bad", retention={
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
