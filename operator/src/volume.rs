//! The Kubernetes objects of a BackupPolicy whose target is a volume: a pod that serves it as a bucket, which mailnodes and
//! operator reach alike. Pure: from the resource, and what is stored, to what is applied.
//!
//! The claim has no owner: no resource deletes a backup. Everything else goes with the policy and is made anew with it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy},
        core::v1::{
            Capabilities, Container, ContainerPort, HTTPGetAction, KeyToPath, PersistentVolumeClaim,
            PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec,
            PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, Secret, SecretVolumeSource,
            SecurityContext, Service, ServicePort, ServiceSpec, Volume, VolumeMount,
            VolumeResourceRequirements,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::{Resource as _, ResourceExt as _, api::ObjectMeta};
use quorumail_crds::{
    BackupPolicy, MailCluster, SecretRef,
    backup::{POLICY_LABEL, S3},
    condition::reason,
};
use quorumail_volume::{ACCESS_KEY_FILE, BUCKET, CERT_FILE, HEALTH_PATH, KEY_FILE, REGION, SECRET_KEY_FILE};

use crate::{
    pki::{self, CertifiedPem, PkiError},
    run::Failure,
    settings::FIELD_MANAGER,
};

/// Value of the label `app.kubernetes.io/name` of the pod.
const APP: &str = "backup-volume";
/// Name of the only port.
const PORT_NAME: &str = "s3";
/// The only port.
const PORT: u16 = 9000;
/// Keys of the Secret: the authority of the certificate, which clients trust, and its private key, which no pod sees.
const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const DATA_DIR: &str = "/data";
const CREDENTIALS_DIR: &str = "/etc/quorumail/credentials";
const TLS_DIR: &str = "/etc/quorumail/tls";
/// User and group of the server; also the group of the volume. That of mailnodes.
const USER: i64 = 10_001;
/// Requests that are under way have 20 s at the end; the rest is for a slow disk.
const TERMINATION_SECONDS: i64 = 30;
/// Longest name that a Service may have.
const MAX_NAME: usize = 63;

/// The name of everything that is made for a policy.
pub fn name(policy: &BackupPolicy) -> String {
    const SUFFIX: &str = "-backup-volume";
    let policy = policy.name_any();
    // The name of a Service begins with a letter.
    let whole = match policy.starts_with(|first: char| first.is_ascii_alphabetic()) {
        true => format!("{policy}{SUFFIX}"),
        false => format!("p-{policy}{SUFFIX}"),
    };
    if whole.len() <= MAX_NAME {
        return whole;
    }
    let hash = blake3::hash(policy.as_bytes()).to_hex();
    let kept: String = whole.chars().take(MAX_NAME - SUFFIX.len() - 9).collect();
    format!("{kept}-{}{SUFFIX}", &hash[..8])
}

/// The claim that is served; none where the target is no volume.
pub fn claim_name(policy: &BackupPolicy) -> Option<String> {
    let volume = policy.spec.target.volume.as_ref()?;
    Some(volume.claim_name.clone().unwrap_or_else(|| name(policy)))
}

fn host(policy: &BackupPolicy) -> String {
    format!("{}.{}.svc", name(policy), policy.namespace().unwrap_or_default())
}

/// As what the volume is served.
pub fn bucket(policy: &BackupPolicy) -> S3 {
    let secret = SecretRef { name: name(policy) };
    S3 {
        endpoint: format!("https://{}:{PORT}", host(policy)),
        bucket: BUCKET.to_owned(),
        // Whoever mounts the claim finds the repository in the directory of the bucket.
        prefix: String::new(),
        region: REGION.to_owned(),
        credentials_secret_ref: secret.clone(),
        force_path_style: true,
        ca_secret_ref: Some(secret),
    }
}

/// Whose claim a policy wants to serve too, when somebody else does: of two that serve one claim, the one that was made first.
pub fn rival<'a>(policy: &BackupPolicy, all: impl IntoIterator<Item = &'a BackupPolicy>) -> Option<Failure> {
    let claim = claim_name(policy)?;
    let age = |policy: &BackupPolicy| (policy.creation_timestamp(), policy.uid());
    let other = all.into_iter().find(|other| {
        other.namespace() == policy.namespace()
            && other.uid() != policy.uid()
            && claim_name(other).as_ref() == Some(&claim)
            && age(other) < age(policy)
    })?;
    let text = format!(
        "PersistentVolumeClaim {claim} is the one of BackupPolicy {}; name another in spec.target.volume.claimName",
        other.name_any()
    );
    Some(Failure::new(reason::CONFLICT, text))
}

/// What the Secret should hold: what is stored and still good stays, the rest is made.
pub fn secret(policy: &BackupPolicy, stored: Option<&Secret>, now: Timestamp) -> Result<Secret, PkiError> {
    let text = |key: &str| -> Option<String> {
        let ByteString(bytes) = stored?.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.clone()).ok().filter(|text| !text.is_empty())
    };
    let pair = |cert: &str, key: &str| Some(CertifiedPem { cert: text(cert)?, key: text(key)? });
    let of = name(policy);
    let authority = match pair(CA_CERT, CA_KEY) {
        Some(authority) if !pki::needs_renewal(&authority.cert, now) => authority,
        // With the key that it has: nobody who trusts it has to be told.
        Some(authority) => {
            pki::renew_authority(&of, &authority, now).or_else(|_| pki::new_authority(&of, now))?
        }
        None => pki::new_authority(&of, now)?,
    };
    let host = host(policy);
    let names = [host.clone(), format!("{host}.cluster.local")];
    let server = match pair(CERT_FILE, KEY_FILE) {
        Some(server)
            if text(CA_CERT).as_ref() == Some(&authority.cert)
                && !pki::needs_renewal(&server.cert, now)
                && pki::inspect(&server.cert).is_ok_and(|facts| facts.names == names) =>
        {
            server
        }
        _ => pki::issue_server(&authority, &names, now)?,
    };
    let random = || format!("{:032x}", rand::random::<u128>());
    let data = [
        (ACCESS_KEY_FILE, text(ACCESS_KEY_FILE).unwrap_or_else(|| random()[..20].to_owned())),
        (SECRET_KEY_FILE, text(SECRET_KEY_FILE).unwrap_or_else(|| random() + &random())),
        (CA_CERT, authority.cert),
        (CA_KEY, authority.key),
        (CERT_FILE, server.cert),
        (KEY_FILE, server.key),
    ];
    let data = data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
    Ok(Secret {
        metadata: metadata(policy, true),
        type_: Some("Opaque".to_owned()),
        data: Some(data.collect()),
        ..Secret::default()
    })
}

fn selector(policy: &BackupPolicy) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), APP.to_owned()),
        (POLICY_LABEL.to_owned(), policy.name_any()),
    ])
}

/// Selects the pods.
pub fn pod_selector(policy: &BackupPolicy) -> String {
    format!("app.kubernetes.io/name={APP},{POLICY_LABEL}={}", policy.name_any())
}

fn labels(policy: &BackupPolicy) -> BTreeMap<String, String> {
    let mut labels = selector(policy);
    labels.insert("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned());
    labels.insert("app.kubernetes.io/part-of".to_owned(), "quorumail".to_owned());
    labels
}

/// `owned`: it goes with the policy.
fn metadata(policy: &BackupPolicy, owned: bool) -> ObjectMeta {
    ObjectMeta {
        name: Some(name(policy)),
        namespace: policy.namespace(),
        labels: Some(labels(policy)),
        owner_references: policy.controller_owner_ref(&()).filter(|_| owned).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// Whether an object that has our name is ours, as far as is told of it.
pub fn is_ours(policy: &BackupPolicy, meta: &ObjectMeta, owned: bool) -> bool {
    match owned {
        true => {
            let mut owners = meta.owner_references.iter().flatten();
            owners.any(|owner| Some(&owner.uid) == policy.metadata.uid.as_ref())
        }
        // It outlives policies, and belongs to the next one of the same name.
        false => {
            let label = meta.labels.as_ref().and_then(|labels| labels.get(POLICY_LABEL));
            label == Some(&policy.name_any())
        }
    }
}

/// What is applied beside the Secret.
#[derive(Debug, Clone)]
pub struct Objects {
    /// None where there is one by name.
    pub claim: Option<PersistentVolumeClaim>,
    /// Under which name the pod is reached.
    pub service: Service,
    /// One pod: the next one begins when the one before has ended.
    pub deployment: Deployment,
}

/// Builds them; none where the target is no volume. `cluster`: what is backed up, whose tolerations count.
pub fn build(
    policy: &BackupPolicy,
    cluster: Option<&MailCluster>,
    image: &str,
    pull_policy: &str,
) -> Option<Objects> {
    let claim = claim_name(policy)?;
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels(policy)), ..ObjectMeta::default() }),
        spec: Some(pod(policy, cluster, claim, image, pull_policy)),
    };
    let match_labels = Some(selector(policy));
    Some(Objects {
        claim: new_claim(policy),
        service: service(policy),
        deployment: Deployment {
            metadata: metadata(policy, true),
            spec: Some(DeploymentSpec {
                replicas: Some(1),
                strategy: Some(DeploymentStrategy {
                    type_: Some("Recreate".to_owned()),
                    rolling_update: None,
                }),
                selector: LabelSelector { match_labels, ..LabelSelector::default() },
                template,
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        },
    })
}

fn new_claim(policy: &BackupPolicy) -> Option<PersistentVolumeClaim> {
    let volume = policy.spec.target.volume.as_ref()?;
    let size = Quantity(volume.size.as_ref()?.to_string());
    Some(PersistentVolumeClaim {
        metadata: metadata(policy, false),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: volume.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), size)].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    })
}

fn service(policy: &BackupPolicy) -> Service {
    Service {
        metadata: metadata(policy, true),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(selector(policy)),
            ports: Some(vec![ServicePort {
                name: Some(PORT_NAME.to_owned()),
                port: i32::from(PORT),
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::String(PORT_NAME.to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn pod(
    policy: &BackupPolicy,
    cluster: Option<&MailCluster>,
    claim: String,
    image: &str,
    pull_policy: &str,
) -> PodSpec {
    let scheduling = cluster.map(|cluster| cluster.spec.scheduling.clone()).unwrap_or_default();
    let secret = |volume: &str, keys: &[&str]| {
        let item = |key: &&str| KeyToPath { key: (*key).to_owned(), path: (*key).to_owned(), mode: None };
        Volume {
            name: volume.to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(name(policy)),
                // Readable for the group only.
                default_mode: Some(0o440),
                items: Some(keys.iter().map(item).collect()),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        }
    };
    let data = Volume {
        name: "data".to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim,
            read_only: None,
        }),
        ..Volume::default()
    };
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(TERMINATION_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        node_selector: (!scheduling.node_selector.is_empty()).then_some(scheduling.node_selector),
        tolerations: (!scheduling.tolerations.is_empty()).then_some(scheduling.tolerations),
        containers: vec![container(image, pull_policy)],
        volumes: Some(vec![
            data,
            secret("credentials", &[ACCESS_KEY_FILE, SECRET_KEY_FILE]),
            secret("tls", &[CERT_FILE, KEY_FILE]),
        ]),
        ..PodSpec::default()
    }
}

fn container(image: &str, pull_policy: &str) -> Container {
    let args =
        ["volume", "serve", "--directory", DATA_DIR, "--credentials", CREDENTIALS_DIR, "--tls", TLS_DIR];
    let mut args: Vec<_> = args.map(str::to_owned).into();
    args.extend(["--listen".to_owned(), format!("0.0.0.0:{PORT}")]);
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    };
    let quantities = |pairs: &[(&str, &str)]| {
        Some(pairs.iter().map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned()))).collect())
    };
    Container {
        name: APP.to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some(pull_policy.to_owned()),
        command: Some(vec!["quorumail".to_owned()]),
        args: Some(args),
        ports: Some(vec![ContainerPort {
            name: Some(PORT_NAME.to_owned()),
            container_port: i32::from(PORT),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        // What is held in memory is bounded; files that were written count until they are on the disk.
        resources: Some(ResourceRequirements {
            requests: quantities(&[("cpu", "50m"), ("memory", "64Mi")]),
            limits: quantities(&[("memory", "512Mi")]),
            ..ResourceRequirements::default()
        }),
        startup_probe: Some(probe(2, 60)),
        liveness_probe: Some(probe(10, 6)),
        readiness_probe: Some(probe(2, 2)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![
            mount("data", DATA_DIR, false),
            mount("credentials", CREDENTIALS_DIR, true),
            mount("tls", TLS_DIR, true),
        ]),
        ..Container::default()
    }
}

fn probe(period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(HEALTH_PATH.to_owned()),
            port: IntOrString::String(PORT_NAME.to_owned()),
            scheme: Some("HTTPS".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        success_threshold: Some(1),
        ..Probe::default()
    }
}

/// What keeps the volume from being served, from its pods; none when one is Ready.
pub fn not_ready(policy: &BackupPolicy, pods: &[Pod]) -> Option<Failure> {
    let there = || pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let condition = |pod: &Pod, kind: &str| {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == kind).cloned()
    };
    if there().any(|pod| condition(pod, "Ready").is_some_and(|ready| ready.status == "True")) {
        return None;
    }
    let why = there().find_map(|pod| {
        let scheduled = condition(pod, "PodScheduled").filter(|scheduled| scheduled.status == "False");
        let waiting = || {
            let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
            let waiting = containers.first()?.state.as_ref()?.waiting.clone()?;
            Some([waiting.reason, waiting.message].into_iter().flatten().collect::<Vec<_>>().join(": "))
        };
        scheduled.and_then(|scheduled| scheduled.message).or_else(waiting).filter(|why| !why.is_empty())
    });
    let why = why.unwrap_or_else(|| "it is being started".to_owned());
    let name = name(policy);
    let text = format!(
        "the pod that serves the volume with backups is not Ready: {why}. If that stays so, see \
         `kubectl describe pod -l {}` and the logs of Deployment {name}, and PersistentVolumeClaim {}",
        pod_selector(policy),
        claim_name(policy).unwrap_or_default()
    );
    Some(Failure::new(reason::VOLUME_NOT_READY, text))
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
