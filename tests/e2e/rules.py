"""The rules of the resource definitions, and for each of them what it refuses and what it takes."""

import copy

import yaml

import kubernetes

DEFINITIONS = sorted((kubernetes.ROOT / "charts" / "quorumail" / "files" / "crds").glob("*.yaml"))
KEY = {"name": "key"}
S3 = {"endpoint": "https://s3.example.org", "bucket": "mail", "credentialsSecretRef": {"name": "s3"}}
GONE = object()
LONG = ".".join(["a" * 63] * 3 + ["b" * 61])
assert len(LONG) == 253

# The least that each kind needs.
LEAST = {
    "MailCluster": {},
    "MailDomain": {"domain": "example.org"},
    "Mailbox": {"address": "alice@example.org"},
    "MailingList": {"address": "all@example.org"},
    "BackupPolicy": {"schedule": "@daily", "target": {"s3": S3}, "encryptionKeySecretRef": KEY},
    "MailBackup": {"policyRef": {"name": "nightly"}},
    "MailRestore": {"source": {"policyRef": {"name": "nightly"}}, "scope": {"cluster": {}}},
}

SIZE, SPAN = "must be a size such as 500M or 10Gi", "must be a duration such as 90s, 1h30m or 5d"
HOST, ADDRESS = "must be a host name in lower case", "in lower case"
CRON = 'schedule must have five fields, as in "0 3 * * *"'
CLUSTER = {"clusterRef": {"name": "other"}}

# Kind, what is different from the least, and words of the refusal; None where it is accepted.
MADE = [
    ("MailCluster", {"nodes": 2}, "nodes must be 1, 3, 5, 7 or 9"),
    ("MailCluster", {"nodes": 0}, "nodes must be"),
    ("MailCluster", {"nodes": 9, "partitions": 256}, None),
    ("MailCluster", {"partitions": 0}, "partitions must be between 1 and 256"),
    ("MailCluster", {"partitions": 257}, "partitions must be between 1 and 256"),
    ("MailCluster", {"hostname": "Mail.example.org"}, "hostname must be a host name in lower case"),
    ("MailCluster", {"hostname": "mail.example.org."}, "hostname must be a host name"),
    ("MailCluster", {"hostname": LONG}, None),
    ("MailCluster", {"hostname": LONG + "b"}, "253"),
    ("MailCluster", {"allowedNamespaces": ["No Name"]}, "must be names of namespaces"),
    ("MailCluster", {"allowedNamespaces": ["*", "a"]}, "list nothing beside it"),
    ("MailCluster", {"allowedNamespaces": ["a", "b-c"]}, None),
    ("MailCluster", {"allowedNamespaces": ["*"]}, None),
    ("MailCluster", {"deletedMail.keep": "14 days"}, SPAN),
    ("MailCluster", {"deletedMail.keep": "0s"}, None),
    ("MailCluster", {"monitoring.blockLists": {"lists": ["zen"], "addresses": ["mail.example.org"]}}, "every address must be an IP address"),
    ("MailCluster", {"monitoring.blockLists": {"lists": ["zen.example_org"]}}, "every list must be a host name"),
    ("MailCluster", {"monitoring.blockLists": {"lists": ["zen.example.org"], "addresses": ["192.0.2.25", "2001:db8::25"]}}, None),
    ("MailCluster", {"service": {"externalTrafficPolicy": "Local"}}, "needs service.type NodePort or LoadBalancer"),
    ("MailCluster", {"service": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}}, None),
    ("MailCluster", {"smtp.maxMessageSize": "10 MB"}, SIZE),
    ("MailCluster", {"smtp.maxMessageSize": "65Mi"}, "smtp.maxMessageSize must be between 64Ki and 64Mi"),
    ("MailCluster", {"smtp.maxMessageSize": "1k"}, "smtp.maxMessageSize must be between 64Ki and 64Mi"),
    ("MailCluster", {"smtp.maxMessageSize": "64Mi"}, None),
    ("MailCluster", {"smtp.relay": {"host": "relay.example", "tls": "None", "secretRef": KEY}}, "a password is never sent in the clear"),
    ("MailCluster", {"smtp.relay": {"host": "relay.example", "tls": "Required", "secretRef": KEY}}, None),
    ("MailCluster", {"smtp.retry.initial": "soon"}, SPAN),
    ("MailCluster", {"smtp.retry.max": "4hours"}, SPAN),
    ("MailCluster", {"smtp.retry.giveUpAfter": "5D"}, SPAN),
    ("MailCluster", {"smtp.retry": {"initial": "1m", "max": "4h", "giveUpAfter": "5d"}}, None),
    ("MailCluster", {"update.progressDeadline": "soon"}, SPAN),
    ("MailCluster", {"update.progressDeadline": "15m"}, None),
    ("MailCluster", {"storage.size": "ten"}, SIZE),
    ("MailCluster", {"storage.size": "0Gi"}, "storage.size must be greater than zero"),
    ("MailCluster", {"storage": {"size": "1Ti", "storageClassName": "fast"}}, None),
    ("MailCluster", {"tls": {"secretName": "a", "selfSigned": {}}}, "tls needs exactly one of secretName, selfSigned and issuerRef"),
    ("MailCluster", {"tls": {"secretName": "a", "issuerRef": {"name": "a"}}}, "tls needs exactly one of secretName, selfSigned and issuerRef"),
    ("MailCluster", {"tls": {"selfSigned": {}, "issuerRef": {"name": "a"}}}, "tls needs exactly one of secretName, selfSigned and issuerRef"),
    ("MailCluster", {"tls": {}}, "tls needs exactly one of secretName, selfSigned and issuerRef"),
    ("MailCluster", {"tls": {"secretName": "a"}}, None),
    ("MailCluster", {"tls": {"issuerRef": {"name": "a"}}}, None),
    ("MailCluster", {"tls": {"issuerRef": {"name": "a", "kind": "ClusterIssuer"}}}, None),
    ("MailCluster", {"tls": {"issuerRef": {"name": "a", "kind": "Private", "group": "issuers.example.org"}}}, None),
    ("MailCluster", {"tls": {"issuerRef": {"name": "a", "kind": "Private"}}}, "issuerRef.kind must be Issuer or ClusterIssuer"),
    ("MailCluster", {"metadata.name": "m" * 41}, "at most 40 lower-case letters"),
    ("MailCluster", {"metadata.name": "1mail"}, "starting with a letter"),
    ("MailCluster", {"metadata.name": "m" * 40}, None),

    ("MailDomain", {"domain": "Example.org"}, HOST),
    ("MailDomain", {"domain": "bücher.example"}, "xn--bcher-kva.example"),
    ("MailDomain", {"domain": "-a.example"}, HOST),
    ("MailDomain", {"domain": "a..example"}, HOST),
    ("MailDomain", {"domain": "a" * 64 + ".example"}, HOST),
    ("MailDomain", {"domain": LONG + "b"}, "253"),
    ("MailDomain", {"domain": LONG}, None),
    ("MailDomain", {"domain": "xn--bcher-kva.example", "aliases": ["xn--bcher-kva.test"]}, None),
    ("MailDomain", {"aliases": ["example.org"]}, "a domain cannot be its own alias: leave it out"),
    ("MailDomain", {"aliases": ["bücher.example"]}, "every alias must be a host name in lower case"),
    ("MailDomain", {"catchAll": "alice"}, "catchAll must be an address in lower case"),
    ("MailDomain", {"catchAll": "alice@example.org"}, None),
    ("MailDomain", {"dkim.algorithms": ["Ed25519", "Ed25519"]}, "must name each algorithm once"),
    ("MailDomain", {"dkim": {"algorithms": ["Ed25519"], "rotation": "90d", "overlap": "1d"}}, None),
    ("MailDomain", {"dkim.rotation": "half a year"}, SPAN),
    ("MailDomain", {"dkim.overlap": "-1d"}, SPAN),
    ("MailDomain", {"dmarc.rua": "mailto:a@example.org, b"}, "dmarc.rua must be an address"),
    ("MailDomain", {"dmarc.rua": "reports@example.org"}, None),
    ("MailDomain", {"spf.include": ["include:relay.example"]}, "spf.include must be names of domains"),
    ("MailDomain", {"spf.include": ["_spf.example.com", "spf_s1.example.com"]}, None),
    ("MailDomain", {"tlsRpt.rua": "https://example.org"}, "tlsRpt.rua must be an address"),
    ("MailDomain", {"tlsRpt.rua": "reports@example.org"}, None),
    ("MailDomain", {"metadata.name": "d" * 249}, "at most 248 characters"),
    ("MailDomain", {"metadata.name": "d" * 248}, None),

    ("Mailbox", {"address": "alice"}, "address must be local-part@domain"),
    ("Mailbox", {"address": "Alice@example.org"}, "in lower case"),
    ("Mailbox", {"address": "jürgen@example.org"}, "ASCII"),
    ("Mailbox", {"address": "alice@bücher.example"}, "xn--bcher-kva.example"),
    ("Mailbox", {"address": "a..b@example.org"}, "address must be"),
    ("Mailbox", {"address": "a@b@example.org"}, "address must be"),
    ("Mailbox", {"address": "a" * 65 + "@example.org"}, "address must be"),
    ("Mailbox", {"address": "a@" + LONG + "b"}, "address must be"),
    ("Mailbox", {"address": "a" * 64 + "@" + LONG}, None),
    ("Mailbox", {"address": "o'brien+x@xn--bcher-kva.example"}, None),
    ("Mailbox", {"aliases": ["alice@example.org"]}, "an address cannot be its own alias: leave it out"),
    ("Mailbox", {"aliases": ["sales"]}, "every alias must be local-part@domain"),
    ("Mailbox", {"aliases": ["sales@example.org"]}, None),
    ("Mailbox", {"gracePeriod": "1 month"}, SPAN),
    ("Mailbox", {"gracePeriod": ""}, "gracePeriod"),
    ("Mailbox", {"gracePeriod": "30d"}, None),
    ("Mailbox", {"quota.storage": "lots"}, SIZE),
    ("Mailbox", {"quota.storage": "0"}, "leave it out for no limit"),
    ("Mailbox", {"quota.messages": 0}, "quota.messages"),
    ("Mailbox", {"quota": {"storage": "1Gi", "messages": 1}}, None),
    ("Mailbox", {"metadata.name": "m" * 241}, "at most 240 characters"),
    ("Mailbox", {"metadata.name": "m" * 240}, None),

    ("MailingList", {"address": "all"}, "address must be local-part@domain"),
    ("MailingList", {"address": "a" * 33 + "@example.org"}, "at most 32 characters, since its other addresses are longer: make it shorter"),
    ("MailingList", {"address": "a" * 32 + "@example.org"}, None),
    ("MailingList", {"maxMessageSize": "big"}, SIZE),
    ("MailingList", {"maxMessageSize": "0"}, "leave it out for no limit"),
    ("MailingList", {"subjectPrefix": "[müll]"}, "subjectPrefix must be printable ASCII"),
    ("MailingList", {"subjectPrefix": "[all]", "maxMessageSize": "1M"}, None),
    ("MailingList", {"archive": "Members"}, None),
    ("MailingList", {"metadata.name": "l" * 253}, None),

    ("BackupPolicy", {"schedule": "at night"}, CRON),
    ("BackupPolicy", {"schedule": "0 3 * * 1-5"}, None),
    ("BackupPolicy", {"timeZone": "Europe/"}, "timeZone must be a name of the time zone database"),
    ("BackupPolicy", {"timeZone": "Europe/Berlin"}, None),
    ("BackupPolicy", {"bytesPerSecond": "fast"}, SIZE),
    ("BackupPolicy", {"bytesPerSecond": "0"}, "bytesPerSecond must be greater than zero"),
    ("BackupPolicy", {"continuous.maxLag": "1 minute"}, SPAN),
    ("BackupPolicy", {"continuous.maxLag": "0s"}, "continuous.maxLag must be longer than nothing"),
    ("BackupPolicy", {"deadline": "never"}, SPAN),
    ("BackupPolicy", {"deadline": "0h"}, "deadline must be longer than nothing"),
    ("BackupPolicy", {"rehearsal": {"schedule": "@daily", "deadline": "an hour"}}, SPAN),
    ("BackupPolicy", {"rehearsal": {"schedule": "@daily", "deadline": "0s"}}, "rehearsal.deadline must be longer than nothing"),
    ("BackupPolicy", {"rehearsal": {"schedule": "sometimes"}}, CRON),
    ("BackupPolicy", {"bytesPerSecond": "20Mi", "continuous.maxLag": "1m", "deadline": "1h",
                      "rehearsal": {"schedule": "@weekly", "deadline": "1h"}}, None),
    ("BackupPolicy", {"retention": dict.fromkeys(["last", "daily", "weekly", "monthly", "yearly"], 0)}, "retention must keep something"),
    ("BackupPolicy", {"retention": {"last": 1}}, None),
    ("BackupPolicy", {"target": {}}, "target needs exactly one of s3 and volume"),
    ("BackupPolicy", {"target.volume.size": "1Gi"}, "target needs exactly one of s3 and volume"),
    ("BackupPolicy", {"target.s3.bucket": "s3://mail"}, "s3.bucket must be the name of a bucket"),
    ("BackupPolicy", {"target.s3.endpoint": "s3.example.org"}, "s3.endpoint must be a URL"),
    ("BackupPolicy", {"target.s3.prefix": "../mail"}, "s3.prefix must be a path such as mail/backups"),
    ("BackupPolicy", {"target.s3.prefix": "mail/backups"}, None),
    ("BackupPolicy", {"target": {"volume": {}}}, "volume needs exactly one of size and claimName"),
    ("BackupPolicy", {"target": {"volume": {"claimName": "a", "storageClassName": "fast"}}}, "leave it out beside volume.claimName"),
    ("BackupPolicy", {"target": {"volume": {"size": "big"}}}, SIZE),
    ("BackupPolicy", {"target": {"volume": {"size": "0Gi"}}}, "volume.size must be greater than zero"),
    ("BackupPolicy", {"target": {"volume": {"size": "50Gi", "storageClassName": "fast"}}}, None),
    ("BackupPolicy", {"metadata.name": "b" * 64}, "becomes a label"),
    ("BackupPolicy", {"metadata.name": "b" * 63}, None),

    ("MailBackup", {}, None),

    ("MailRestore", {"pointInTime": "2026-11-25T17:48:00Z", "source": {"backupRef": {"name": "x"}}}, "pointInTime chooses the backup itself"),
    ("MailRestore", {"pointInTime": "2026-11-25T17:48:00Z"}, None),
    ("MailRestore", {"target.mailbox": "bob@example.org"}, "target.mailbox needs scope.mailbox or scope.folder"),
    ("MailRestore", {"scope": {"mailbox": "alice@example.org"}, "target.mailbox": "Bob"}, "target.mailbox must be an address"),
    ("MailRestore", {"scope": {"mailbox": "alice@example.org"}, "target": {"mailbox": "bob@example.org", "folderPrefix": "Restored"}}, None),
    ("MailRestore", {"scope": {"cluster": {}, "domain": "example.org"}}, "scope needs exactly one of"),
    ("MailRestore", {"scope": {}}, "scope needs exactly one of"),
    ("MailRestore", {"scope": {"domain": "Example"}}, "scope.domain must be a host name"),
    ("MailRestore", {"scope": {"domain": "example.org"}}, None),
    ("MailRestore", {"scope": {"mailbox": "alice"}}, "scope.mailbox must be an address"),
    ("MailRestore", {"scope": {"folder": {"mailbox": "alice", "name": "INBOX"}}}, "scope.folder.mailbox must be an address"),
    ("MailRestore", {"scope": {"folder": {"mailbox": "alice@example.org", "name": "INBOX"}}}, None),
    ("MailRestore", {"source": {}}, "source needs exactly one of"),
    ("MailRestore", {"source": {"s3": S3}}, "set both or neither"),
    ("MailRestore", {"source.id": "x"}, "source.id belongs to source.s3"),
    ("MailRestore", {"source": {"s3": {**S3, "bucket": "/mail"}, "encryptionKeySecretRef": KEY}}, "s3.bucket must be"),
    ("MailRestore", {"source": {"s3": {**S3, "endpoint": "ftp://s3.example.org"}, "encryptionKeySecretRef": KEY}}, "s3.endpoint must be"),
    ("MailRestore", {"source": {"s3": {**S3, "prefix": "/mail"}, "encryptionKeySecretRef": KEY}}, "s3.prefix must be"),
    ("MailRestore", {"source": {"s3": {**S3, "prefix": "mail"}, "encryptionKeySecretRef": KEY, "id": "x"}}, None),
    ("MailRestore", {"target.folderPrefix": "/Restored"}, "target.folderPrefix must be the name of a folder"),
]

VOLUME = {"target": {"volume": {"size": "1Gi", "storageClassName": "slow"}}}

# Kind, what is different from the least at first, what is changed then, and words of the refusal; None where it is accepted.
CHANGED = [
    ("MailCluster", {}, {"nodes": 5}, None),
    ("MailCluster", {}, {"partitions": 32}, "partitions cannot be changed yet: make a new MailCluster"),
    ("MailCluster", {}, {"storage.size": "1Gi"}, "storage.size cannot shrink, since Kubernetes makes no volume smaller"),
    ("MailCluster", {}, {"storage.size": "20000Mi"}, None),
    ("MailCluster", {}, {"storage.storageClassName": "fast"}, "storageClassName cannot be changed"),
    ("MailCluster", {"storage.storageClassName": "slow"}, {"storage.storageClassName": "fast"}, "storageClassName cannot be changed"),
    ("MailCluster", {"storage.storageClassName": "slow"}, {"storage.deletionPolicy": "Delete"}, None),
    ("MailDomain", {}, {"domain": "other.example"}, "domain cannot be changed: make a MailDomain for the other domain"),
    ("MailDomain", {}, CLUSTER, "clusterRef cannot be changed: delete the MailDomain"),
    ("MailDomain", CLUSTER, {"aliases": ["example.com"]}, None),
    ("Mailbox", {}, {"address": "bob@example.org"}, "address cannot be changed: make a new Mailbox, or add an alias"),
    ("Mailbox", CLUSTER, {"clusterRef": GONE}, "clusterRef cannot be changed: delete the Mailbox"),
    ("Mailbox", CLUSTER, {"suspended": True}, None),
    ("MailingList", {}, {"address": "some@example.org"}, "address cannot be changed: make a new MailingList"),
    ("MailingList", CLUSTER, {"clusterRef.name": "third"}, "clusterRef cannot be changed: delete the MailingList"),
    ("MailingList", CLUSTER, {"posting": "Anyone"}, None),
    ("BackupPolicy", CLUSTER, {"clusterRef.name": "third"}, "clusterRef cannot be changed: make another BackupPolicy"),
    ("BackupPolicy", {}, {"target": {"volume": {"size": "1Gi"}}}, "target cannot be changed from s3 to volume or back"),
    ("BackupPolicy", VOLUME, {"target.volume.storageClassName": "fast"}, "volume.storageClassName cannot be changed"),
    ("BackupPolicy", {**CLUSTER, **VOLUME}, {"target.volume.size": "2Gi"}, None),
    ("MailBackup", {}, {"policyRef.name": "hourly"}, "spec cannot be changed: make another MailBackup"),
    ("MailBackup", {}, {}, None),
    ("MailRestore", {}, {"scope": {"domain": "example.org"}}, "spec cannot be changed: make another MailRestore"),
    ("MailRestore", {}, {}, None),
]


def spec_of(kind, *changes):
    """The least spec with values set, or taken out, at paths such as `quota.storage`, one change after the other."""
    spec = copy.deepcopy(LEAST[kind])
    for path, value in (item for change in changes for item in change.items()):
        if path.startswith("metadata."):
            continue
        *parents, last = path.split(".")
        place = spec
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is GONE:
            place.pop(last)
        else:
            place[last] = copy.deepcopy(value)
    return spec


def rules():
    """Every rule of the definitions: kind, path of the field, message, and whether it compares with what was."""
    def walk(kind, path, schema):
        for rule in schema.get("x-kubernetes-validations", []):
            yield kind, path, rule["message"], "oldSelf" in rule["rule"]
        for name, field in schema.get("properties", {}).items():
            yield from walk(kind, [*path, name], field)
        if isinstance(schema.get("items"), dict):
            yield from walk(kind, [*path, "[]"], schema["items"])

    for path in DEFINITIONS:
        definition = yaml.safe_load(path.read_text())["spec"]
        schema = definition["versions"][0]["schema"]["openAPIV3Schema"]
        yield from walk(definition["names"]["kind"], [], schema)


def has(value, path):
    """Whether a field is set."""
    for name in path:
        if name == "[]":
            return bool(value)
        if name not in value:
            return False
        value = value[name]
    return True
