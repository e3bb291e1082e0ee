//! What `crdgen` writes is checked in, and what is checked in is what `crdgen` writes.

use std::{fs, path::PathBuf};

fn assert_current(path: &str, expected: &str) {
    let full = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    let found = fs::read_to_string(&full).unwrap_or_default();
    assert!(found == expected, "{path} is stale; run `cargo run -p quorumail-crds --bin crdgen`");
}

#[test]
fn checked_in_definitions_are_current() {
    for crd in quorumail_crds::definitions() {
        let name = crd.spec.names.kind.to_lowercase();
        assert_current(&format!("crds/yaml/{name}.yaml"), &serde_yaml::to_string(&crd).unwrap());
    }
}

#[test]
fn checked_in_reference_pages_are_current() {
    for crd in quorumail_crds::definitions() {
        let name = crd.spec.names.kind.to_lowercase();
        assert_current(&format!("docs/reference/{name}.md"), &quorumail_crds::reference::page(&crd));
    }
}

#[test]
fn every_field_is_documented_and_every_rule_has_a_message() {
    fn walk(path: &str, schema: &serde_json::Value) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            assert!(rule["message"].is_string(), "{path}: {} has no message", rule["rule"]);
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(
                field["description"].as_str().is_some_and(|d| !d.is_empty()),
                "{path} has no description"
            );
            walk(&path, field);
            walk(&path, &field["items"]);
        }
    }
    for crd in quorumail_crds::definitions() {
        let schema =
            serde_json::to_value(&crd).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
        for part in ["spec", "status"] {
            walk(&format!("{}.{part}", crd.spec.names.kind), &schema["properties"][part]);
        }
    }
}

#[test]
fn a_minimal_resource_gets_the_defaults() {
    let text = "{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {name: mail}, spec: {}}";
    let cluster: quorumail_crds::MailCluster = serde_yaml::from_str(text).unwrap();
    assert_eq!((cluster.spec.nodes, cluster.spec.partitions), (3, 16));
    assert_eq!(cluster.spec.storage.size.bytes(), 10 << 30);
    assert_eq!(cluster.spec.smtp.max_message_size.bytes(), 25 << 20);
    assert!(cluster.spec.tls.self_signed.is_some());
}

#[test]
fn a_minimal_policy_keeps_a_year_of_backups_and_a_restore_names_what_is_wanted() {
    let text = r#"{apiVersion: quorumail.io/v1alpha1, kind: BackupPolicy, metadata: {name: nightly}, spec: {schedule: "0 3 * * *",
      target: {s3: {endpoint: "https://s3.example.org", bucket: b, credentialsSecretRef: {name: s3}}},
      encryptionKeySecretRef: {name: key}}}"#;
    let policy: quorumail_crds::BackupPolicy = serde_yaml::from_str(text).unwrap();
    let kept = policy.spec.retention;
    assert_eq!((kept.last, kept.daily, kept.weekly, kept.monthly, kept.yearly), (3, 7, 5, 12, 0));
    assert_eq!((policy.spec.time_zone.as_str(), policy.spec.deadline.as_str()), ("UTC", "6h"));
    assert_eq!(policy.spec.encryption_key_secret_ref.key, "key");
    assert!(policy.spec.target.s3.unwrap().force_path_style && !policy.spec.suspend);
    let text = "{apiVersion: quorumail.io/v1alpha1, kind: MailRestore, metadata: {name: r}, spec: {source: {backupRef: {name: b}}, \
                scope: {cluster: {}}}}";
    let restore: quorumail_crds::MailRestore = serde_yaml::from_str(text).unwrap();
    assert!(restore.spec.scope.cluster.is_some() && restore.spec.target.folder_prefix.is_none());
}

#[test]
fn every_promised_rule_is_there_in_its_words() {
    let rules = |crd: &str| {
        let crd = quorumail_crds::definitions().into_iter().find(|d| d.spec.names.kind == crd).unwrap();
        serde_json::to_string(&crd).unwrap()
    };
    for (crd, message) in [
        ("BackupPolicy", "retention must keep something"),
        ("BackupPolicy", "schedule must have five fields"),
        ("BackupPolicy", "clusterRef cannot be changed"),
        ("BackupPolicy", "rehearsal.deadline must be longer than nothing"),
        ("BackupPolicy", "s3.endpoint must be a URL"),
        ("BackupPolicy", "target needs exactly one of s3 and volume"),
        ("BackupPolicy", "target cannot be changed from s3 to volume"),
        ("BackupPolicy", "volume needs exactly one of size and claimName"),
        ("BackupPolicy", "volume.storageClassName cannot be changed"),
        ("MailBackup", "spec cannot be changed: make another MailBackup"),
        ("MailRestore", "spec cannot be changed: make another MailRestore"),
        ("MailRestore", "source needs exactly one of backupRef, policyRef and s3"),
        ("MailRestore", "scope needs exactly one of cluster, domain, mailbox and folder"),
        ("BackupPolicy", "continuous.maxLag must be longer than nothing"),
        ("MailRestore", "pointInTime chooses the backup itself"),
        ("MailRestore", "target.mailbox needs scope.mailbox or scope.folder"),
    ] {
        assert!(rules(crd).contains(message), "{crd} has no rule {message:?}");
    }
}
