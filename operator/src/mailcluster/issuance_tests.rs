use jiff::Timestamp;

use super::*;
use crate::mailcluster::certificates::data;

fn cluster(spec: &str) -> MailCluster {
    let text = format!(
        "{{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {{name: mc, namespace: ns, uid: u1}}, spec: {spec}}}"
    );
    serde_yaml::from_str(&text).unwrap()
}

const ISSUED: &str = "{hostname: mail.example.org, tls: {issuerRef: {name: public, kind: ClusterIssuer}}}";

fn wanted() -> DynamicObject {
    certificate(&cluster(ISSUED)).unwrap()
}

#[test]
fn the_issuer_is_asked_for_a_certificate_for_the_hostname() {
    // By way of a value: its fields are in order.
    let value = serde_json::to_value(wanted()).unwrap();
    assert_eq!(serde_yaml::to_string(&value).unwrap(), include_str!("certificate.yaml"));
}

#[test]
fn without_a_hostname_it_is_for_the_names_of_the_service() {
    let object = certificate(&cluster("{tls: {issuerRef: {name: private}}}")).unwrap();
    assert_eq!(object.data["spec"]["dnsNames"], json!(["mc.ns.svc", "mc.ns.svc.cluster.local"]));
    let issuer = json!({"name": "private", "kind": "Issuer", "group": "cert-manager.io"});
    assert_eq!(object.data["spec"]["issuerRef"], issuer);
}

#[test]
fn no_issuer_is_asked_where_none_is_named() {
    for spec in ["{}", "{tls: {selfSigned: {}}}", "{tls: {secretName: mine}}"] {
        assert!(certificate(&cluster(spec)).is_none(), "{spec}");
    }
}

#[test]
fn a_certificate_is_written_again_only_when_it_is_not_as_asked() {
    let wanted = wanted();
    let mut found = wanted.clone();
    assert!(is_as_wanted(&found, &wanted));
    // What the API server, cert-manager and people add.
    found.data["spec"]["duration"] = "2160h".into();
    found.data["spec"]["privateKey"]["algorithm"] = "RSA".into();
    found.data["status"] = json!({"revision": 1});
    found.metadata.labels.get_or_insert_default().insert("team".to_owned(), "mail".to_owned());
    assert!(is_as_wanted(&found, &wanted));

    let mut changed = found.clone();
    changed.data["spec"]["dnsNames"] = json!(["mail.example.org", "mx.example.org"]);
    assert!(!is_as_wanted(&changed, &wanted));
    let mut changed = found.clone();
    changed.metadata.owner_references.as_mut().unwrap()[0].uid = "u0".to_owned();
    assert!(!is_as_wanted(&changed, &wanted), "of the MailCluster before");
    found.data["spec"].as_object_mut().unwrap().remove("usages");
    assert!(!is_as_wanted(&found, &wanted));
}

fn told(conditions: Value) -> Observed {
    let mut certificate = wanted();
    certificate.metadata.generation = Some(2);
    certificate.data["status"] = json!({"conditions": conditions});
    observed(&certificate)
}

#[test]
fn the_condition_says_what_cert_manager_says() {
    let ready = |status: &str, generation: i64| json!({"type": "Ready", "status": status, "message": "some words", "observedGeneration": generation});
    let failed = json!({"type": "Issuing", "status": "False", "reason": "Failed", "message": "no such zone", "observedGeneration": 2});
    let cases = [
        (json!([]), Some(false), reason::PENDING, "waits for cert-manager"),
        (json!([ready("True", 2)]), Some(true), reason::ISSUED, "some words"),
        (json!([ready("True", 1)]), Some(false), reason::PENDING, "waits for cert-manager"),
        (json!([ready("False", 2)]), Some(false), reason::PENDING, "some words"),
        (json!([ready("False", 2), failed]), Some(false), reason::NOT_ISSUED, "no such zone"),
    ];
    for (conditions, status, reason, words) in cases {
        let observed = told(conditions.clone());
        assert_eq!((observed.status, observed.reason), (status, reason), "{conditions}");
        assert!(observed.message.contains(words) && observed.message.contains("mc-tls"), "{observed:?}");
    }
}

#[test]
fn mailnodes_wait_for_the_secret_and_for_nothing_else() {
    let pair = pki::self_signed(&["mail.example.org".to_owned()], Timestamp::now()).unwrap();
    let secret = Secret { data: Some(data(&pair, None)), ..Secret::default() };
    let (pending, issued) = (told(json!([])), told(json!([{"type": "Ready", "status": "True"}])));
    assert_eq!(
        missing(Some(&secret), &pending),
        None,
        "that of the time before serves until the new one is there"
    );
    let problem = missing(None, &pending).unwrap();
    assert_eq!(
        (problem.kind, problem.reason, &problem.message),
        (kind::READY, reason::PENDING, &pending.message)
    );
    assert_eq!(missing(Some(&Secret::default()), &issued).unwrap().status, Some(false));
}

#[test]
fn a_secret_of_somebody_else_is_told_from_the_operators_own() {
    let cluster = cluster(ISSUED);
    let secret =
        |metadata: &str| Secret { metadata: serde_yaml::from_str(metadata).unwrap(), ..Secret::default() };
    let made = Secret { metadata: metadata(&cluster, "mc-tls"), ..Secret::default() };
    assert!(!is_foreign(&cluster, &made));
    let let_go = "{name: mc-tls, labels: {quorumail.io/cluster: mc, app.kubernetes.io/managed-by: quorumail-operator}}";
    assert!(!is_foreign(&cluster, &secret(let_go)));
    assert!(!is_foreign(
        &cluster,
        &secret("{name: mc-tls, annotations: {cert-manager.io/certificate-name: mc-tls}}")
    ));
    for others in [
        "{name: mc-tls}",
        "{name: mc-tls, annotations: {cert-manager.io/certificate-name: mail}}",
        "{name: mc-tls, labels: {quorumail.io/cluster: other, app.kubernetes.io/managed-by: quorumail-operator}}",
    ] {
        assert!(is_foreign(&cluster, &secret(others)), "{others}");
    }
}

#[test]
fn what_is_missing_is_told_with_what_to_do() {
    let error = |code: u16| {
        let status = kube::core::Status::failure("no", "Reason").with_code(code);
        unavailable(&kube::Error::Api(Box::new(status)))
    };
    assert!(error(404).unwrap().message.contains("install it"));
    assert!(error(403).unwrap().message.contains("upgrade the chart"));
    assert_eq!(error(500), None);
}
