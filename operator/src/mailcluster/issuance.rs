//! The certificate for mail clients from an issuer of cert-manager (`spec.tls.issuerRef`): the Certificate that is asked for, and what
//! came of it. Whoever issues it writes the Secret, and the mailnodes take it up as any other.
//!
//! cert-manager may not be installed, or be installed later, so its objects are dynamic ones, and are read with each round instead of
//! being watched. Nothing is written as long as the Certificate is as it should be.

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, Preconditions},
    core::GroupVersionKind,
};
use quorumail_crds::{
    MailCluster,
    condition::{Observed, find, kind, reason},
    mailcluster::CERT_MANAGER,
};
use serde_json::{Value, json};

use super::{
    Context, Error,
    certificates::{CERT_KEY, KEY_KEY, text},
    failed,
    objects::{CLUSTER_LABEL, Names, metadata, service_names},
};
use crate::{pki, settings::FIELD_MANAGER};

/// Annotation by which cert-manager says for which Certificate it wrote a Secret.
const WRITTEN_FOR: &str = "cert-manager.io/certificate-name";
/// Characters that are told of what cert-manager says.
const MAX_WORDS: usize = 600;

/// What there is of the certificate.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Issuance {
    /// The condition CertificateReady, where an issuer is asked.
    pub condition: Option<Observed>,
    /// What keeps mailnodes from being started; a condition of type Ready.
    pub problem: Option<Observed>,
}

fn resource() -> ApiResource {
    let kind = GroupVersionKind::gvk(CERT_MANAGER, "v1", "Certificate");
    ApiResource::from_gvk_with_plural(&kind, "certificates")
}

fn api(cluster: &MailCluster, context: &Context) -> Api<DynamicObject> {
    let namespace = cluster.namespace().unwrap_or_default();
    Api::namespaced_with(context.client.clone(), &namespace, &resource())
}

/// The Certificate, where an issuer is named. It goes with its MailCluster.
pub fn certificate(cluster: &MailCluster) -> Option<DynamicObject> {
    let issuer = cluster.spec.tls.issuer_ref.as_ref()?;
    let name = Names::new(&cluster.name_any()).public_tls;
    // No names of the Service beside a hostname: an issuer that the world trusts refuses all when it cannot vouch for one.
    let names = match &cluster.spec.hostname {
        Some(hostname) => vec![hostname.clone()],
        None => service_names(cluster).to_vec(),
    };
    let mut object = DynamicObject::new(&name, &resource());
    object.metadata = metadata(cluster, &name);
    object.data = json!({"spec": {
        "secretName": name,
        "dnsNames": names,
        "issuerRef": issuer,
        "usages": ["digital signature", "key encipherment", "server auth"],
        "privateKey": {"rotationPolicy": "Always"},
    }});
    Some(object)
}

/// Whether everything that is wanted is there as it is wanted. Others may have added to it.
fn holds(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| found.get(key).is_some_and(|found| holds(found, wanted)))
        }
        _ => found == wanted,
    }
}

fn is_as_wanted(found: &DynamicObject, wanted: &DynamicObject) -> bool {
    let meta =
        |object: &DynamicObject| json!({"labels": object.labels(), "owners": object.owner_references()});
    holds(&meta(found), &meta(wanted)) && holds(&found.data["spec"], &wanted.data["spec"])
}

/// Whether the operator made it, for this MailCluster or one of the same name before it.
fn is_ours(cluster: &MailCluster, found: &ObjectMeta) -> bool {
    let label = |key: &str| found.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    is_owned(cluster, found)
        || (label(CLUSTER_LABEL) == Some(cluster.name_any().as_str())
            && label("app.kubernetes.io/managed-by") == Some(FIELD_MANAGER))
}

fn is_owned(cluster: &MailCluster, found: &ObjectMeta) -> bool {
    found.owner_references.iter().flatten().any(|owner| Some(&owner.uid) == cluster.metadata.uid.as_ref())
}

/// Whether Secret `<mc>-tls` is somebody else's: neither made by the operator nor written for its Certificate.
fn is_foreign(cluster: &MailCluster, secret: &Secret) -> bool {
    let written_for = secret.annotations().get(WRITTEN_FOR);
    !is_ours(cluster, &secret.metadata) && written_for != Some(&Names::new(&cluster.name_any()).public_tls)
}

fn conflict(kind: &'static str, name: &str) -> Observed {
    let text = format!(
        "Secret {name} is there already and is not the operator's: delete it, or have spec.tls.secretName name it"
    );
    Observed::no(kind, reason::CONFLICT, text)
}

/// What a Certificate says of itself, as the condition CertificateReady.
pub fn observed(certificate: &DynamicObject) -> Observed {
    let (name, kind) = (certificate.name_any(), kind::CERTIFICATE_READY);
    let conditions = certificate.data.pointer("/status/conditions").and_then(Value::as_array);
    // What was said of an earlier version of it says nothing of this one.
    let is_current = |condition: &Value| {
        condition["observedGeneration"]
            .as_i64()
            .is_none_or(|seen| Some(seen) >= certificate.metadata.generation)
    };
    let of = |type_: &str| {
        conditions.into_iter().flatten().find(|condition| condition["type"] == type_ && is_current(condition))
    };
    let words = |condition: &Value| -> String {
        condition["message"].as_str().unwrap_or_default().chars().take(MAX_WORDS).collect()
    };
    let ready = of("Ready");
    if let Some(ready) = ready.filter(|ready| ready["status"] == "True") {
        return Observed::yes(kind, reason::ISSUED, format!("Certificate {name}: {}", words(ready)));
    }
    let more = format!("`kubectl describe certificate {name}` tells more");
    if let Some(failed) = of("Issuing").filter(|issuing| issuing["reason"] == "Failed") {
        let text = format!("Certificate {name} could not be issued: {}; {more}", words(failed));
        return Observed::no(kind, reason::NOT_ISSUED, text);
    }
    let text = match ready {
        Some(ready) => format!("Certificate {name} is not ready yet: {}; {more}", words(ready)),
        None => format!("Certificate {name} waits for cert-manager; {more}"),
    };
    Observed::no(kind, reason::PENDING, text)
}

/// That cert-manager's resource types are not there, or that the operator may not use them.
fn unavailable(error: &kube::Error) -> Option<Observed> {
    let kube::Error::Api(status) = error else { return None };
    let text = match status.code {
        404 => {
            "spec.tls.issuerRef needs cert-manager, and there is no resource type certificates.cert-manager.io: install it, \
             or use spec.tls.secretName or selfSigned"
        }
        403 => {
            "the operator may not use certificates.cert-manager.io, which spec.tls.issuerRef needs: upgrade the chart, \
             or what gives the operator its rights"
        }
        _ => return None,
    };
    Some(Observed::no(kind::CERTIFICATE_READY, reason::NO_CERT_MANAGER, text))
}

fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Has the certificate issued where that is asked, and ends that where it is not any more. `stored`: Secret `<mc>-tls`, unless another
/// one is named.
pub async fn bring_about(
    cluster: &MailCluster,
    context: &Context,
    stored: Option<&Secret>,
) -> Result<Issuance, Error> {
    let name = Names::new(&cluster.name_any()).public_tls;
    let foreign = stored.is_some_and(|secret| is_foreign(cluster, secret));
    let Some(wanted) = certificate(cluster) else {
        let others = withdraw(cluster, context, stored).await?;
        let problem = (foreign || others).then(|| conflict(kind::READY, &name));
        return Ok(Issuance { condition: None, problem });
    };
    if foreign {
        let condition = Some(conflict(kind::CERTIFICATE_READY, &name));
        return Ok(Issuance { condition, problem: Some(conflict(kind::READY, &name)) });
    }
    if let Some(secret) = stored.filter(|secret| is_owned(cluster, &secret.metadata)) {
        let_go(cluster, context, secret).await?;
    }
    let condition = ask(cluster, context, &wanted).await?;
    Ok(Issuance { problem: missing(stored, &condition), condition: Some(condition) })
}

/// Why mailnodes cannot start without the Secret, in the words of the condition.
fn missing(stored: Option<&Secret>, condition: &Observed) -> Option<Observed> {
    let usable =
        stored.is_some_and(|secret| [CERT_KEY, KEY_KEY].iter().all(|key| text(secret, key).is_some()));
    (!usable).then(|| match condition.status {
        Some(true) => Observed::no(
            kind::READY,
            reason::PENDING,
            "the certificate is issued, and its Secret not seen yet",
        ),
        _ => Observed { kind: kind::READY, ..condition.clone() },
    })
}

/// Applies the Certificate unless it is there as it should be.
async fn ask(cluster: &MailCluster, context: &Context, wanted: &DynamicObject) -> Result<Observed, Error> {
    let (name, api) = (wanted.name_any(), api(cluster, context));
    let cannot = |action, error| {
        unavailable(&error).ok_or_else(|| failed(action, format!("Certificate {name}"))(error))
    };
    let found = match api.get(&name).await {
        Ok(found) => Some(found),
        // The object or its type: applying it tells which.
        Err(error) if is_not_found(&error) => None,
        Err(error) => return cannot("read", error),
    };
    if let Some(found) = &found {
        if !is_ours(cluster, &found.metadata) {
            let text = format!(
                "Certificate {name} is there already and is not the operator's: delete it, or have spec.tls.secretName \
                 name the Secret that it fills"
            );
            return Ok(Observed::no(kind::CERTIFICATE_READY, reason::CONFLICT, text));
        }
        if is_as_wanted(found, wanted) {
            return Ok(observed(found));
        }
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch(&name, &params, &Patch::Apply(wanted)).await {
        Ok(applied) => Ok(observed(&applied)),
        Err(error) => cannot("apply", error),
    }
}

/// Leaves the Secret to cert-manager, with what is in it until it is written anew: it does not go with the MailCluster any more.
async fn let_go(cluster: &MailCluster, context: &Context, secret: &Secret) -> Result<(), Error> {
    let others: Vec<_> = secret
        .owner_references()
        .iter()
        .filter(|owner| Some(&owner.uid) != cluster.metadata.uid.as_ref())
        .collect();
    let body = json!({"metadata": {"ownerReferences": others, "resourceVersion": secret.resource_version()}});
    let secrets: Api<Secret> =
        Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let name = secret.name_any();
    let patched = secrets.patch_metadata(&name, &params, &Patch::Merge(body)).await;
    patched.map(drop).map_err(failed("change the owner of", format!("Secret {name}")))
}

/// Deletes the Certificate of the time before; whether there is one that is somebody else's and fills the operator's own Secret.
/// It is looked for only where there may be one: an issuer was asked, or what is in the Secret is not the operator's.
async fn withdraw(cluster: &MailCluster, context: &Context, stored: Option<&Secret>) -> Result<bool, Error> {
    let was_asked = cluster
        .status
        .as_ref()
        .is_some_and(|status| find(&status.conditions, kind::CERTIFICATE_READY).is_some());
    let is_issued = stored.is_some_and(|secret| {
        let facts = text(secret, CERT_KEY).map(|cert| pki::inspect(&cert));
        facts.is_some_and(|facts| facts.is_ok_and(|facts| !facts.is_self_signed))
    });
    if !was_asked && !is_issued {
        return Ok(false);
    }
    let (name, api) = (Names::new(&cluster.name_any()).public_tls, api(cluster, context));
    let found = match api.get_metadata(&name).await {
        Ok(found) => found,
        Err(error) if unavailable(&error).is_some() => return Ok(false),
        Err(error) => return Err(failed("read", format!("Certificate {name}"))(error)),
    };
    if !is_ours(cluster, &found.metadata) {
        return Ok(is_issued);
    }
    let exactly = Preconditions { uid: found.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
    match api.delete(&name, &params).await {
        Ok(_) => Ok(false),
        Err(error) if is_not_found(&error) => Ok(false),
        Err(error) => Err(failed("delete", format!("Certificate {name}"))(error)),
    }
}

#[cfg(test)]
#[path = "issuance_tests.rs"]
mod tests;
