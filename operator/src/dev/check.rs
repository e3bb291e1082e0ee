//! What the API server would say to a resource before it takes it: the schema of the CustomResourceDefinition, and
//! those of its rules that are about a single value.
//!
//! Not a full validator: it knows the parts of OpenAPI that our definitions use, and the rules on addresses and domains,
//! which are CEL there and code here. Rules that compare with the object before (immutable fields) have no meaning for a
//! file.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use quorumail_crds::{
    MAX_ADDRESS, MAX_DOMAIN, MAX_LIST_LOCAL, MailClusterSpec, MailDomainSpec, MailboxSpec, MailingListSpec,
    mailcluster::CERT_MANAGER,
};
use serde_json::Value;

/// What is wrong with the `spec` of a resource, as sentences about its fields. Empty: nothing.
pub fn schema(crd: &CustomResourceDefinition, resource: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let schema = crd.spec.versions.first().and_then(|version| version.schema.as_ref());
    let properties = schema.and_then(|s| s.open_api_v3_schema.as_ref()).and_then(|s| s.properties.as_ref());
    if let Some(spec) = properties.and_then(|properties| properties.get("spec")) {
        match resource.get("spec") {
            Some(value) => walk(&mut problems, "spec", value, spec),
            None => problems.push("spec is missing".to_owned()),
        }
    }
    for field in resource.as_object().into_iter().flat_map(|object| object.keys()) {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&field.as_str()) {
            problems.push(format!("{field} is not a field of this kind"));
        }
    }
    problems
}

fn walk(problems: &mut Vec<String>, path: &str, value: &Value, schema: &JSONSchemaProps) {
    if value.is_null() && schema.nullable == Some(true) {
        return;
    }
    if let Some(expected) = wrong_type(value, schema) {
        problems.push(format!("{path} must be {expected}"));
        return;
    }
    if let Some(allowed) = &schema.enum_
        && !allowed.iter().any(|one| one.0 == *value)
    {
        let names: Vec<String> =
            allowed.iter().map(|one| one.0.as_str().unwrap_or_default().to_owned()).collect();
        problems.push(format!("{path} must be one of {}", names.join(", ")));
    }
    match value {
        Value::Object(fields) => object(problems, path, fields, schema),
        Value::Array(items) => {
            let longest = schema.max_items.and_then(|max| usize::try_from(max).ok());
            if longest.is_some_and(|max| items.len() > max) {
                problems.push(format!("{path} has more than {} items", schema.max_items.unwrap_or_default()));
            }
            if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
                for (i, value) in items.iter().enumerate() {
                    walk(problems, &format!("{path}[{i}]"), value, item);
                }
            }
        }
        Value::String(text) => {
            let len = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
            if schema.min_length.is_some_and(|min| len < min) {
                problems.push(format!("{path} is too short"));
            }
            if schema.max_length.is_some_and(|max| len > max) {
                problems.push(format!(
                    "{path} is longer than {} characters",
                    schema.max_length.unwrap_or_default()
                ));
            }
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            let below = schema.minimum.is_some_and(|min| number < min);
            if below || schema.maximum.is_some_and(|max| number > max) {
                problems.push(format!("{path} is out of range"));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn object(
    problems: &mut Vec<String>,
    path: &str,
    fields: &serde_json::Map<String, Value>,
    schema: &JSONSchemaProps,
) {
    let known = schema.properties.as_ref();
    for (name, value) in fields {
        let path = format!("{path}.{name}");
        match (known.and_then(|known| known.get(name)), &schema.additional_properties) {
            (Some(field), _) => walk(problems, &path, value, field),
            (None, Some(JSONSchemaPropsOrBool::Schema(field))) => walk(problems, &path, value, field),
            (None, Some(JSONSchemaPropsOrBool::Bool(true))) => {}
            _ if schema.x_kubernetes_preserve_unknown_fields == Some(true) => {}
            _ => problems.push(format!("{path} is not a field of this kind")),
        }
    }
    for name in schema.required.iter().flatten() {
        if !fields.contains_key(name) {
            problems.push(format!("{path}.{name} is missing"));
        }
    }
}

/// What the schema wants instead, when the value is of another type.
fn wrong_type(value: &Value, schema: &JSONSchemaProps) -> Option<&'static str> {
    match schema.type_.as_deref()? {
        "object" => (!value.is_object()).then_some("an object"),
        "array" => (!value.is_array()).then_some("a list"),
        "string" => (!value.is_string()).then_some("a text (in quotes, if it looks like a number)"),
        "boolean" => (!value.is_boolean()).then_some("true or false"),
        "integer" => (value.as_i64().is_none() && value.as_u64().is_none()).then_some("a whole number"),
        "number" => (!value.is_number()).then_some("a number"),
        _ => None,
    }
}

/// What is wrong with the values of a MailCluster.
pub fn cluster(spec: &MailClusterSpec) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(hostname) = &spec.hostname
        && !is_host_name(hostname)
    {
        problems.push("spec.hostname must be a host name in lower case, as in mail.example.org".to_owned());
    }
    if !(1..=256).contains(&spec.partitions) {
        problems.push("spec.partitions must be between 1 and 256".to_owned());
    }
    let tls = &spec.tls;
    let given = [tls.secret_name.is_some(), tls.self_signed.is_some(), tls.issuer_ref.is_some()];
    if given.into_iter().filter(|given| *given).count() != 1 {
        problems.push("spec.tls needs exactly one of secretName, selfSigned and issuerRef".to_owned());
    }
    if tls.issuer_ref.as_ref().is_some_and(|issuer| {
        issuer.group == CERT_MANAGER && !["Issuer", "ClusterIssuer"].contains(&issuer.kind.as_str())
    }) {
        problems.push("spec.tls.issuerRef.kind must be Issuer or ClusterIssuer".to_owned());
    }
    problems
}

/// What is wrong with the values of a MailDomain.
pub fn domain(spec: &MailDomainSpec) -> Vec<String> {
    let mut problems = Vec::new();
    if !is_host_name(&spec.domain) {
        problems.push("spec.domain must be a host name in lower case, as in example.org".to_owned());
    }
    for alias in &spec.aliases {
        if !is_host_name(alias) {
            problems.push(format!("alias {alias:?} must be a host name in lower case, as in example.com"));
        }
    }
    if spec.aliases.contains(&spec.domain) {
        problems.push("a domain cannot be its own alias".to_owned());
    }
    if let Some(catch_all) = &spec.catch_all
        && !is_address(catch_all)
    {
        problems.push("spec.catchAll must be an address in lower case, as in alice@example.org".to_owned());
    }
    problems
}

/// What is wrong with the values of a Mailbox.
pub fn mailbox(spec: &MailboxSpec) -> Vec<String> {
    let mut problems = Vec::new();
    if !is_address(&spec.address) {
        let wanted = "must be local-part@domain in lower case, as in alice@example.org";
        problems.push(format!("spec.address {:?} {wanted}", spec.address));
    }
    let mut seen = BTreeSet::new();
    for alias in &spec.aliases {
        if !is_address(alias) {
            problems.push(format!(
                "alias {alias:?} must be local-part@domain in lower case, as in sales@example.org"
            ));
        }
        if *alias == spec.address || !seen.insert(alias) {
            problems.push(format!("alias {alias:?} is there already"));
        }
    }
    problems
}

/// What is wrong with the values of a MailingList.
pub fn list(spec: &MailingListSpec) -> Vec<String> {
    let mut problems = Vec::new();
    if !is_address(&spec.address) {
        let wanted = "must be local-part@domain in lower case, as in announce@example.org";
        problems.push(format!("spec.address {:?} {wanted}", spec.address));
    }
    if spec.address.find('@').is_some_and(|at| at > MAX_LIST_LOCAL) {
        problems.push(format!(
            "the local part of a list's address may have at most {MAX_LIST_LOCAL} characters: its other addresses are longer"
        ));
    }
    if spec.subject_prefix.as_ref().is_some_and(|prefix| !prefix.bytes().all(|b| (b' '..=b'~').contains(&b)))
    {
        problems.push("subjectPrefix must be printable ASCII, as in [announce]".to_owned());
    }
    problems
}

/// Labels of letters, digits and inner hyphens (RFC 1123 2.1), in lower case.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= MAX_DOMAIN && text.split('.').all(label)
}

/// A dot-string (RFC 5321 4.1.2) without quotes, `@`, and a host name; in lower case.
fn is_address(text: &str) -> bool {
    const ATOM: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+/=?^_`{|}~-";
    let Some((local, domain)) = text.split_once('@') else { return false };
    let atom = |atom: &str| !atom.is_empty() && atom.bytes().all(|b| ATOM.contains(&b));
    text.len() <= MAX_ADDRESS && local.len() <= 64 && local.split('.').all(atom) && is_host_name(domain)
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt as _;
    use quorumail_crds::Mailbox;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_misspelt_field_is_named() {
        let resource = json!({"spec": {"adress": "a@example.org", "suspended": "yes", "quota": {"messages": 0},
            "permissions": {"fly": true}, "deletionPolicy": "Maybe"}, "data": {}});
        let problems = schema(&Mailbox::crd(), &resource);
        for expected in [
            "spec.adress is not a field of this kind",
            "spec.address is missing",
            "spec.suspended must be true or false",
            "spec.quota.messages is out of range",
            "spec.permissions.fly is not a field of this kind",
            "spec.deletionPolicy must be one of Retain, Delete",
            "data is not a field of this kind",
        ] {
            assert!(problems.iter().any(|p| p == expected), "{expected:?} is not among {problems:#?}");
        }
        assert_eq!(problems.len(), 7, "{problems:#?}");
    }

    #[test]
    fn a_full_mailbox_is_taken() {
        let resource = json!({"spec": {"address": "a@example.org", "displayName": "A", "aliases": ["b@example.org"],
            "passwordSecretRef": {"name": "s", "key": "k"}, "quota": {"storage": "1Gi", "messages": 5},
            "suspended": true, "permissions": {"send": false}, "deletionPolicy": "Delete", "gracePeriod": "1h"}});
        assert_eq!(schema(&Mailbox::crd(), &resource), Vec::<String>::new());
    }

    #[test]
    fn a_certificate_comes_from_one_place() {
        let problems = |tls: &str| cluster(&serde_yaml::from_str(&format!("{{{tls}}}")).unwrap());
        for good in [
            "",
            "tls: {secretName: a}",
            "tls: {issuerRef: {name: a, kind: ClusterIssuer}}",
            "tls: {issuerRef: {name: a, kind: X, group: x.org}}",
        ] {
            assert_eq!(problems(good), Vec::<String>::new(), "{good}");
        }
        for bad in
            ["tls: {}", "tls: {secretName: a, issuerRef: {name: a}}", "tls: {issuerRef: {name: a, kind: X}}"]
        {
            assert_eq!(problems(bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn addresses_are_judged_as_the_resource_definition_does() {
        for good in ["a@example.org", "first.last+tag@mail.example.org", "o'brien@x", "1@a-b.c"] {
            assert!(is_address(good), "{good}");
        }
        let long = format!("{}@example.org", "a".repeat(65));
        for bad in [
            "a",
            "@example.org",
            "a@",
            "A@example.org",
            "a..b@example.org",
            ".a@example.org",
            "a@-x.org",
            "a@x..org",
            "a b@example.org",
            "a@b@c.org",
            &long,
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
