//! The Kubernetes resources in a backup: what makes a MailCluster anew, as a list that `kubectl apply` takes. Pure.
//!
//! Kept is what people wrote, without what the API server and the operator add. Runs ([`RUNS`]) are no part of it: applied again
//! they would run again. Of Secrets only the keys that something refers to are kept, so that a backup never holds more than
//! Quorumail reads, and never the key that it is encrypted with. What the operator makes for its own connections to mailnodes
//! is left out too: it makes new ones, and whoever reads a backup must not pass for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use quorumail_crds::{BackupPolicy, MailCluster, MailDomain, Mailbox, MailingList};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    mailbox::{ADDRESS_KEY, PASSWORD_KEY, credentials_name},
    mailcluster::{
        certificates::{CERT_KEY, KEY_KEY},
        objects::public_secret,
    },
    runs::target,
};

/// Kinds that are kept, in the order in which they are applied: a Mailbox finds its Secret.
pub const KINDS: [&str; 6] =
    ["Secret", "MailCluster", "MailDomain", "Mailbox", "MailingList", "BackupPolicy"];
/// Kinds of Quorumail that are not kept.
pub const RUNS: [&str; 2] = ["MailBackup", "MailRestore"];
/// What kubectl remembers of what it applied: everything once more, and of a Secret also what nothing refers to.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What belongs to a MailCluster.
#[derive(Debug, Clone)]
pub struct Members {
    /// The MailCluster itself.
    pub cluster: Arc<MailCluster>,
    /// Its domains.
    pub domains: Vec<Arc<MailDomain>>,
    /// Its mailboxes.
    pub mailboxes: Vec<Arc<Mailbox>>,
    /// Its mailing lists.
    pub lists: Vec<Arc<MailingList>>,
    /// Its backups.
    pub policies: Vec<Arc<BackupPolicy>>,
    /// What may belong to it and cannot be read, as kind and name.
    pub unreadable: Vec<String>,
    /// How many more there are in other namespaces, which are not kept.
    pub elsewhere: usize,
}

/// A Secret that members refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Who does, for people.
    pub by: String,
    /// Its keys that are read.
    pub keys: BTreeSet<String>,
}

impl Members {
    /// Each of them, cleaned, in the order in which they are applied. Those that are being deleted are none any more.
    pub fn objects(&self) -> impl Iterator<Item = Value> {
        let cluster = std::iter::once(cleaned(&*self.cluster));
        let domains = self.domains.iter().filter(|o| stays(&***o)).map(|o| cleaned(&**o));
        let mailboxes = self.mailboxes.iter().filter(|o| stays(&***o)).map(|o| cleaned(&**o));
        let policies = self.policies.iter().filter(|o| stays(&***o)).map(|o| cleaned(&**o));
        let lists = self.lists.iter().filter(|o| stays(&***o)).map(|o| cleaned(&**o));
        cluster.chain(domains).chain(mailboxes).chain(lists).chain(policies)
    }

    /// The Secrets that they refer to, and those that the operator made for them, by name.
    pub fn secrets(&self) -> BTreeMap<String, Wanted> {
        let mut secrets = BTreeMap::<String, Wanted>::new();
        let mut want = |name: &str, by: String, keys: &[&str]| {
            let wanted =
                secrets.entry(name.to_owned()).or_insert_with(|| Wanted { by, keys: BTreeSet::new() });
            wanted.keys.extend(keys.iter().map(|key| (*key).to_owned()));
        };
        let (name, spec) = (self.cluster.name_any(), &self.cluster.spec);
        let by = format!("MailCluster {name}");
        want(&public_secret(&self.cluster), by.clone(), &[CERT_KEY, KEY_KEY]);
        if let Some(relay) = spec.smtp.relay.as_ref().and_then(|relay| relay.secret_ref.as_ref()) {
            want(&relay.name, by, &["username", "password"]);
        }
        for mailbox in self.mailboxes.iter().filter(|mailbox| stays(&***mailbox)) {
            let by = format!("Mailbox {}", mailbox.name_any());
            match &mailbox.spec.password_secret_ref {
                Some(reference) => want(&reference.name, by, &[&reference.key]),
                None => want(&credentials_name(mailbox), by, &[ADDRESS_KEY, PASSWORD_KEY]),
            }
        }
        let policies: Vec<_> = self.policies.iter().filter(|policy| stays(&***policy)).collect();
        for policy in &policies {
            // What the operator makes for a volume it makes anew.
            let Some(s3) = &policy.spec.target.s3 else { continue };
            let by = format!("BackupPolicy {}", policy.name_any());
            want(&s3.credentials_secret_ref.name, by.clone(), &[target::ACCESS_KEY, target::SECRET_KEY]);
            if let Some(ca) = &s3.ca_secret_ref {
                want(&ca.name, by, &[target::CA]);
            }
        }
        // Whoever reads a backup has its key; those of other policies would open other backups.
        for key in self.policies.iter().map(|policy| &policy.spec.encryption_key_secret_ref) {
            if let Some(wanted) = secrets.get_mut(&key.name) {
                wanted.keys.remove(&key.key);
            }
        }
        secrets.retain(|_, wanted| !wanted.keys.is_empty());
        secrets
    }
}

fn stays<K: kube::Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_none()
}

fn cleaned<K: Serialize>(object: &K) -> Value {
    clean(serde_json::to_value(object).expect("resources are plain JSON"))
}

/// An object as a person would apply it: without its status and what the API server, kubectl and controllers add.
fn clean(mut object: Value) -> Value {
    let Some(fields) = object.as_object_mut() else { return object };
    fields.remove("status");
    let mut metadata = Map::new();
    if let Some(Value::Object(mut found)) = fields.remove("metadata") {
        if let Some(annotations) = found.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
        for key in ["name", "namespace", "labels", "annotations"] {
            let is_empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
            if let Some(value) = found.remove(key).filter(|value| !is_empty(value)) {
                metadata.insert(key.to_owned(), value);
            }
        }
    }
    fields.insert("metadata".to_owned(), metadata.into());
    object
}

/// A Secret with the keys that are wanted of it, and the keys that it does not have.
pub fn part_of(secret: &Secret, wanted: &Wanted) -> (Value, Vec<String>) {
    let mut part = secret.clone();
    let there = part.data.get_or_insert_default();
    there.retain(|key, _| wanted.keys.contains(key));
    let missing = wanted.keys.iter().filter(|key| !there.contains_key(*key)).cloned().collect();
    (cleaned(&part), missing)
}

/// A list with more bytes than it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("they have more than {} MiB", limit >> 20)]
pub struct TooLarge {
    limit: usize,
}

/// A list in the making.
#[derive(Debug)]
pub struct List {
    json: Vec<u8>,
    limit: usize,
}

const HEAD: &[u8] = br#"{"apiVersion":"v1","kind":"List","items":["#;
const END: &[u8] = b"]}";

impl List {
    /// An empty one that becomes at most so many bytes long.
    pub fn new(limit: usize) -> Self {
        Self { json: HEAD.to_vec(), limit }
    }

    /// Adds an object; one that does not fit is not added.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn add(&mut self, object: &Value) -> Result<(), TooLarge> {
        let before = self.json.len();
        if before > HEAD.len() {
            self.json.push(b',');
        }
        serde_json::to_writer(&mut self.json, object).expect("JSON is written to memory");
        if self.json.len() + END.len() > self.limit {
            self.json.truncate(before);
            return Err(TooLarge { limit: self.limit });
        }
        Ok(())
    }

    /// How long it is, for [`shorten`](Self::shorten).
    pub fn mark(&self) -> usize {
        self.json.len()
    }

    /// Takes out what was added since.
    pub fn shorten(&mut self, mark: usize) {
        self.json.truncate(mark);
    }

    /// The list.
    pub fn finish(mut self) -> Vec<u8> {
        self.json.extend_from_slice(END);
        self.json
    }
}

/// What was read out of a backup.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// In the order in which they are applied.
    pub objects: Vec<Value>,
    /// Secrets, whether they are among them or not.
    pub secrets: usize,
}

impl Found {
    /// As one object.
    pub fn list(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "List", "items": self.objects})
    }
}

/// Reads a list back; with `namespace` its objects go there instead of where they were.
///
/// # Errors
/// What is wrong with it.
pub fn read(json: &[u8], with_secrets: bool, namespace: Option<&str>) -> Result<Found, String> {
    let list: Value = serde_json::from_slice(json).map_err(|error| format!("they are no JSON: {error}"))?;
    let Value::Object(mut list) = list else { return Err("they are no list".to_owned()) };
    let Some(Value::Array(items)) = list.remove("items") else { return Err("they are no list".to_owned()) };
    let kind = |object: &Value| object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    let secrets = items.iter().filter(|object| kind(object) == "Secret").count();
    let mut objects: Vec<Value> =
        items.into_iter().filter(|object| with_secrets || kind(object) != "Secret").map(clean).collect();
    objects.sort_by_key(|object| KINDS.iter().position(|known| *known == kind(object)));
    if let Some(namespace) = namespace {
        for metadata in objects.iter_mut().filter_map(|object| object.get_mut("metadata")) {
            metadata["namespace"] = namespace.into();
        }
    }
    Ok(Found { objects, secrets })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn object<K: serde::de::DeserializeOwned>(text: &str) -> Arc<K> {
        Arc::new(serde_yaml::from_str(text).unwrap())
    }

    fn policy(name: &str, key: &str, rest: &str) -> Arc<BackupPolicy> {
        object(&format!(
            "{{apiVersion: quorumail.io/v1alpha1, kind: BackupPolicy, metadata: {{name: {name}, namespace: mail}}, spec: {{schedule: '@daily', \
             target: {{s3: {{endpoint: 'https://s3', bucket: b, credentialsSecretRef: {{name: s3}}{rest}}}}}, encryptionKeySecretRef: {key}}}}}"
        ))
    }

    fn members() -> Members {
        Members {
            cluster: object(
                "{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {name: main, namespace: mail}, \
                 spec: {nodes: 1, smtp: {relay: {host: relay, secretRef: {name: relay}}}}}",
            ),
            domains: vec![object(
                "{apiVersion: quorumail.io/v1alpha1, kind: MailDomain, metadata: {name: d, namespace: mail}, spec: {domain: example.org}}",
            )],
            mailboxes: vec![
                object(
                    "{apiVersion: quorumail.io/v1alpha1, kind: Mailbox, metadata: {name: alice, namespace: mail, uid: m-1, generation: 3, \
                     resourceVersion: '17', creationTimestamp: '2026-11-25T17:48:00Z', finalizers: [quorumail.io/accounts], labels: {team: a}, \
                     managedFields: [{manager: kubectl}], annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}', note: x}, \
                     ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: c, uid: c-1}]}, \
                     spec: {address: alice@example.org, passwordSecretRef: {name: people, key: alice}}, status: {partition: 3}}",
                ),
                object(
                    "{apiVersion: quorumail.io/v1alpha1, kind: Mailbox, metadata: {name: bob, namespace: mail}, spec: {address: bob@example.org}}",
                ),
                object(
                    "{apiVersion: quorumail.io/v1alpha1, kind: Mailbox, metadata: {name: gone, namespace: mail, \
                     deletionTimestamp: '2026-11-25T17:48:00Z'}, spec: {address: gone@example.org}}",
                ),
            ],
            lists: Vec::new(),
            policies: vec![policy("nightly", "{name: key}", ", caSecretRef: {name: ca}")],
            unreadable: Vec::new(),
            elsewhere: 0,
        }
    }

    #[test]
    fn every_kind_is_kept_or_left_out_on_purpose() {
        let kinds: BTreeSet<_> =
            quorumail_crds::definitions().into_iter().map(|crd| crd.spec.names.kind).collect();
        let known: BTreeSet<_> = KINDS[1..].iter().chain(&RUNS).map(|kind| (*kind).to_owned()).collect();
        assert_eq!(kinds, known);
    }

    #[test]
    fn an_object_is_kept_as_a_person_would_apply_it() {
        let objects: Vec<Value> = members().objects().collect();
        let names: Vec<_> = objects
            .iter()
            .map(|o| format!("{} {}", o["kind"], o["metadata"]["name"]).replace('"', ""))
            .collect();
        assert_eq!(
            names,
            ["MailCluster main", "MailDomain d", "Mailbox alice", "Mailbox bob", "BackupPolicy nightly"]
        );
        let expected = json!({
            "apiVersion": "quorumail.io/v1alpha1", "kind": "Mailbox",
            "metadata": {"name": "alice", "namespace": "mail", "labels": {"team": "a"}, "annotations": {"note": "x"}},
            "spec": {"address": "alice@example.org", "passwordSecretRef": {"name": "people", "key": "alice"},
                "suspended": false, "permissions": {"send": true, "receive": true, "login": true},
                "deletionPolicy": "Retain", "gracePeriod": "720h"},
        });
        assert_eq!(objects[2], expected);
        assert_eq!(objects[3]["metadata"], json!({"name": "bob", "namespace": "mail"}));
        assert!(objects.iter().all(|object| object.get("status").is_none()));
    }

    #[test]
    fn the_secrets_that_something_refers_to_are_wanted_and_no_more_of_them() {
        let wanted = |members: &Members| -> Vec<String> {
            members
                .secrets()
                .into_iter()
                .map(|(name, wanted)| {
                    format!("{name} {} for {}", Vec::from_iter(wanted.keys).join("+"), wanted.by)
                })
                .collect()
        };
        let mut members = members();
        let all = [
            "bob-credentials address+password for Mailbox bob",
            "ca ca.crt for BackupPolicy nightly",
            "main-tls tls.crt+tls.key for MailCluster main",
            "people alice for Mailbox alice",
            "relay password+username for MailCluster main",
            "s3 accessKeyId+secretAccessKey for BackupPolicy nightly",
        ];
        assert_eq!(wanted(&members), all);
        // The key is in a Secret that holds something else as well, and somebody refers to the key of another policy.
        members.policies = vec![
            policy("nightly", "{name: s3, key: key}", ", caSecretRef: {name: ca}"),
            policy("other", "{name: people, key: alice}", ""),
        ];
        let without: Vec<_> = all.iter().filter(|line| !line.starts_with("people")).copied().collect();
        assert_eq!(wanted(&members), without);
    }

    #[test]
    fn of_a_secret_the_wanted_keys_are_kept() {
        let mut secret = Secret::default();
        secret.metadata.name = Some("people".to_owned());
        secret.metadata.uid = Some("s-1".to_owned());
        secret.metadata.annotations = Some([(LAST_APPLIED.to_owned(), "everything".to_owned())].into());
        secret.type_ = Some("Opaque".to_owned());
        let entry = |key: &str| (key.to_owned(), ByteString(b"secret".to_vec()));
        secret.data = Some([entry("alice"), entry("card")].into());
        let keys = ["alice", "bob"].map(str::to_owned).into();
        let (part, missing) = part_of(&secret, &Wanted { by: String::new(), keys });
        let expected = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "people"}, "type": "Opaque",
            "data": {"alice": "c2VjcmV0"}});
        assert_eq!((part, missing), (expected, vec!["bob".to_owned()]));
    }

    #[test]
    fn a_list_is_read_back_in_the_order_in_which_it_is_applied() {
        let mut list = List::new(1 << 20);
        for object in members().objects() {
            list.add(&object).unwrap();
        }
        list.add(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "people", "namespace": "mail"}})).unwrap();
        let json = list.finish();
        let kinds = |found: &Found| {
            Vec::from_iter(found.objects.iter().map(|o| o["kind"].as_str().unwrap().to_owned()))
        };
        let found = read(&json, false, None).unwrap();
        assert_eq!(
            (kinds(&found), found.secrets),
            (
                ["MailCluster", "MailDomain", "Mailbox", "Mailbox", "BackupPolicy"].map(str::to_owned).into(),
                1
            )
        );
        let found = read(&json, true, Some("other")).unwrap();
        assert_eq!(kinds(&found)[0], "Secret");
        assert!(found.objects.iter().all(|object| object["metadata"]["namespace"] == "other"));
        // As earlier versions wrote them.
        let old = br#"{"items": [{"kind": "Mailbox", "metadata": {"name": "a", "namespace": null, "labels": null}, "status": {}}]}"#;
        assert_eq!(
            read(old, false, None).unwrap().objects,
            [json!({"kind": "Mailbox", "metadata": {"name": "a"}})]
        );
        for bad in ["", "[]", "{}", r#"{"items": 3}"#] {
            assert!(read(bad.as_bytes(), true, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_has_a_bound_and_stays_whole() {
        let mut list = List::new(100);
        list.add(&json!({"kind": "A"})).unwrap();
        let mark = list.mark();
        list.add(&json!({"kind": "B"})).unwrap();
        assert!(list.add(&json!({"kind": "C", "name": "x".repeat(100)})).is_err());
        list.shorten(mark);
        assert_eq!(read(&list.finish(), true, None).unwrap().objects, [json!({"kind": "A", "metadata": {}})]);
    }

    #[test]
    fn ten_thousand_mailboxes_and_their_secrets_have_room() {
        let mut members = members();
        let address = |n: usize| format!("somebody.with.a.longer.name.{n}@department.example.org");
        members.mailboxes = (0..10_000)
            .map(|n| {
                let mut mailbox = (*members.mailboxes[0]).clone();
                mailbox.metadata.name = Some(format!("somebody-with-a-longer-name-{n}"));
                mailbox.spec.address = address(n);
                mailbox.spec.aliases = (0..3).map(|alias| format!("{alias}.{}", address(n))).collect();
                mailbox.spec.password_secret_ref = None;
                Arc::new(mailbox)
            })
            .collect();
        let mut list = List::new(quorumail_backup::MAX_RESOURCES);
        members.objects().for_each(|object| list.add(&object).unwrap());
        for (name, wanted) in members.secrets() {
            let mut secret = Secret::default();
            secret.metadata.name = Some(name);
            secret.data =
                Some(wanted.keys.iter().map(|key| (key.clone(), ByteString(vec![7; 100]))).collect());
            list.add(&part_of(&secret, &wanted).0).unwrap();
        }
        let bytes = list.finish().len();
        assert!(bytes < quorumail_backup::MAX_RESOURCES / 2, "{bytes} bytes");
    }
}
