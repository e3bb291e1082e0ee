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
