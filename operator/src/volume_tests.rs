use jiff::SignedDuration;

use super::*;

fn policy_named(name: &str, volume: &str) -> BackupPolicy {
    let text = format!(
        "{{apiVersion: quorumail.io/v1alpha1, kind: BackupPolicy, metadata: {{name: {name}, namespace: ns, uid: u-{name}}}, \
         spec: {{schedule: '@daily', target: {{volume: {volume}}}, encryptionKeySecretRef: {{name: key}}}}}}"
    );
    serde_yaml::from_str(&text).unwrap()
}

fn policy(volume: &str) -> BackupPolicy {
    policy_named("nightly", volume)
}

fn objects(policy: &BackupPolicy) -> Objects {
    build(policy, None, "quorumail:1", "Never").unwrap()
}

fn pod_of(objects: &Objects) -> PodSpec {
    objects.deployment.spec.clone().unwrap().template.spec.unwrap()
}

fn value(secret: &Secret, key: &str) -> String {
    String::from_utf8(secret.data.as_ref().unwrap()[key].0.clone()).unwrap()
}

#[test]
fn the_claim_belongs_to_nobody_and_the_rest_to_the_policy() {
    let policy = policy("{size: 50Gi, storageClassName: slow}");
    let objects = objects(&policy);
    let claim = objects.claim.unwrap();
    assert_eq!(claim.metadata.name.as_deref(), Some("nightly-backup-volume"));
    assert!(claim.metadata.owner_references.is_none(), "no resource deletes a backup");
    let spec = claim.spec.unwrap();
    assert_eq!(spec.resources.unwrap().requests.unwrap()["storage"].0, "50Gi");
    assert_eq!(spec.storage_class_name.as_deref(), Some("slow"));
    let secret = secret(&policy, None, Timestamp::now()).unwrap();
    for meta in [objects.service.metadata, objects.deployment.metadata, secret.metadata] {
        assert!(is_ours(&policy, &meta, true));
        assert_eq!(meta.owner_references.unwrap()[0].kind, "BackupPolicy");
        assert_eq!(meta.labels.unwrap()[POLICY_LABEL], "nightly");
    }
    assert!(
        is_ours(&policy, &claim.metadata, false)
            && !is_ours(&policy_named("b", "{size: 1Gi}"), &claim.metadata, false)
    );
}

#[test]
fn a_claim_that_is_there_is_mounted_and_none_is_made() {
    let objects = objects(&policy("{claimName: mine}"));
    assert!(objects.claim.is_none());
    let data = pod_of(&objects).volumes.unwrap().remove(0);
    assert_eq!(data.persistent_volume_claim.unwrap().claim_name, "mine");
    assert!(build(
        &serde_yaml::from_str(
            "{apiVersion: quorumail.io/v1alpha1, kind: BackupPolicy, metadata: {name: n}, spec: {schedule: '@daily', target: {s3: \
             {endpoint: 'https://s3', bucket: b, credentialsSecretRef: {name: s3}}}, encryptionKeySecretRef: {name: key}}}"
        )
        .unwrap(),
        None,
        "i",
        "Never"
    )
    .is_none());
}

#[test]
fn one_pod_runs_at_a_time_without_privileges_and_sees_no_authority() {
    let objects = objects(&policy("{size: 1Gi}"));
    let spec = objects.deployment.spec.clone().unwrap();
    assert_eq!((spec.replicas, spec.strategy.unwrap().type_.as_deref()), (Some(1), Some("Recreate")));
    let pod = pod_of(&objects);
    let context = pod.security_context.unwrap();
    assert_eq!(
        (context.run_as_non_root, context.seccomp_profile.unwrap().type_),
        (Some(true), "RuntimeDefault".into())
    );
    assert_eq!(pod.automount_service_account_token, Some(false));
    let container = pod.containers[0].clone();
    let context = container.security_context.unwrap();
    assert_eq!(
        (context.read_only_root_filesystem, context.allow_privilege_escalation),
        (Some(true), Some(false))
    );
    assert_eq!(context.capabilities.unwrap().drop, Some(vec!["ALL".to_owned()]));
    assert!(container.resources.unwrap().limits.unwrap().contains_key("memory"));
    for volume in pod.volumes.unwrap() {
        let items = volume.secret.and_then(|secret| secret.items).unwrap_or_default();
        assert!(items.iter().all(|item| item.key != CA_KEY));
    }
}

#[test]
fn the_command_is_one_that_the_command_line_knows_and_the_port_is_the_one_of_the_service() {
    use clap::Parser as _;
    let policy = policy("{size: 1Gi}");
    let objects = objects(&policy);
    let container = pod_of(&objects).containers.remove(0);
    let line = container.command.unwrap().into_iter().chain(container.args.unwrap());
    crate::cli::Cli::try_parse_from(line).unwrap();
    let service = objects.service.spec.unwrap();
    assert_eq!(service.selector.unwrap(), objects.deployment.spec.unwrap().selector.match_labels.unwrap());
    let port = service.ports.unwrap()[0].port;
    assert_eq!(bucket(&policy).endpoint, format!("https://nightly-backup-volume.ns.svc:{port}"));
    assert_eq!(container.ports.unwrap()[0].container_port, port);
}

#[test]
fn the_pod_runs_where_mailnodes_may() {
    let cluster = serde_yaml::from_str(
        "{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {name: mc}, spec: {scheduling: {nodeSelector: {disk: big}, \
         tolerations: [{key: mail, operator: Exists}]}}}",
    )
    .unwrap();
    let pod = pod_of(&build(&policy("{size: 1Gi}"), Some(&cluster), "i", "Never").unwrap());
    assert_eq!(pod.node_selector.unwrap()["disk"], "big");
    assert_eq!(pod.tolerations.unwrap()[0].key.as_deref(), Some("mail"));
}

#[test]
fn names_are_those_of_services_and_differ_where_policies_do() {
    let long = "a".repeat(60);
    let names = ["nightly", "2nd", &long, &format!("{long}b")]
        .map(|policy| name(&policy_named(policy, "{size: 1Gi}")));
    for name in &names {
        assert!(name.len() <= MAX_NAME && name.starts_with(|c: char| c.is_ascii_lowercase()), "{name}");
    }
    assert_eq!(names[1], "p-2nd-backup-volume");
    assert_ne!(names[2], names[3]);
}

#[test]
fn credentials_stay_and_a_certificate_is_renewed_before_it_ends_under_the_same_authority() {
    let (policy, now) = (policy("{size: 1Gi}"), Timestamp::now());
    let first = secret(&policy, None, now).unwrap();
    assert_eq!(secret(&policy, Some(&first), now).unwrap(), first);
    assert!(value(&first, SECRET_KEY_FILE).len() == 64 && value(&first, ACCESS_KEY_FILE).len() == 20);
    assert_ne!(value(&first, SECRET_KEY_FILE), value(&secret(&policy, None, now).unwrap(), SECRET_KEY_FILE));
    let later = secret(&policy, Some(&first), now + SignedDuration::from_hours(24 * 61)).unwrap();
    for key in [ACCESS_KEY_FILE, SECRET_KEY_FILE, CA_CERT, CA_KEY] {
        assert_eq!(value(&later, key), value(&first, key), "{key}");
    }
    assert_ne!(value(&later, CERT_FILE), value(&first, CERT_FILE));
    let names = pki::inspect(&value(&first, CERT_FILE)).unwrap().names;
    assert!(names.contains(&"nightly-backup-volume.ns.svc".to_owned()), "{names:?}");
    let mut other = policy_named("nightly", "{size: 1Gi}");
    other.metadata.namespace = Some("elsewhere".to_owned());
    assert_ne!(value(&secret(&other, Some(&first), now).unwrap(), CERT_FILE), value(&first, CERT_FILE));
}

#[test]
fn of_two_policies_with_one_claim_the_first_has_it() {
    let at = |policy: BackupPolicy, second: i64| BackupPolicy {
        metadata: ObjectMeta {
            creation_timestamp: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                Timestamp::from_second(second).unwrap(),
            )),
            ..policy.metadata
        },
        ..policy
    };
    let first = at(policy_named("a", "{size: 1Gi}"), 1);
    let second = at(policy_named("b", "{claimName: a-backup-volume}"), 2);
    let third = at(policy_named("c", "{claimName: other}"), 3);
    let all = [first, second, third];
    let found = rival(&all[1], &all).unwrap();
    assert!(found.reason == reason::CONFLICT && found.message.contains("BackupPolicy a;"), "{found:?}");
    assert_eq!((rival(&all[0], &all), rival(&all[2], &all)), (None, None));
}

#[test]
fn what_the_pod_waits_for_is_told_with_what_to_do() {
    let policy = policy("{size: 1Gi}");
    let pod = |status: &str| -> Pod { serde_yaml::from_str(&format!("{{status: {status}}}")).unwrap() };
    let told = |pods: &[Pod]| not_ready(&policy, pods).map(|failure| failure.message).unwrap_or_default();
    assert_eq!(told(&[pod("{conditions: [{type: Ready, status: 'True'}]}")]), "");
    let text = told(&[pod(
        "{conditions: [{type: PodScheduled, status: 'False', message: 'persistentvolumeclaim \"mine\" not found'}]}",
    )]);
    assert!(text.contains("\"mine\" not found") && text.contains("kubectl describe pod"), "{text}");
    let text =
        told(&[pod("{containerStatuses: [{name: c, image: i, imageID: '', ready: false, restartCount: 3, \
                           state: {waiting: {reason: CrashLoopBackOff, message: back-off}}}]}")]);
    assert!(text.contains("CrashLoopBackOff: back-off"), "{text}");
    assert!(told(&[]).contains("it is being started"));
}

#[tokio::test]
async fn the_server_takes_what_is_made_for_it_and_clients_trust_it_by_the_name_of_the_service() {
    use rustls::pki_types::pem::PemObject as _;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let policy = policy("{size: 1Gi}");
    let made = secret(&policy, None, Timestamp::now()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (key, value) in made.data.as_ref().unwrap() {
        std::fs::write(dir.path().join(key), &value.0).unwrap();
    }
    let options = quorumail_volume::Options {
        directory: dir.path().to_owned(),
        bucket: BUCKET.to_owned(),
        credentials: dir.path().to_owned(),
        tls: Some(dir.path().to_owned()),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = quorumail_volume::Server::open(&options).unwrap();
    let server = tokio::spawn(server.serve(listener, std::future::pending()));

    let mut roots = rustls::RootCertStore::empty();
    let ca = value(&made, CA_CERT);
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let connect = async |name: String| {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from(name).unwrap();
        tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream).await
    };
    let mut stream = connect(host(&policy)).await.unwrap();
    stream
        .write_all(format!("GET {HEALTH_PATH} HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(connect("another.ns.svc".to_owned()).await.is_err());
    server.abort();
}
