//! `quorumail check`: whether the operator is installed as it should be. What `helm test` runs; asks the API server only.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::Lease,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps, JSONSchemaPropsOrArray,
    },
};
use kube::{Api, Client, ResourceExt as _};
use serde::Serialize;

use super::{
    Failure,
    connect::Target,
    output::{self, Format},
};
use crate::lease::{LEASE_DURATION, LEASE_NAME};

/// How often the Lease is looked at until it is seen to change.
const LOOK: Duration = Duration::from_secs(1);
/// Missing fields that are named.
const MAX_NAMED: usize = 5;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    what: String,
    ok: bool,
    /// What was found, or what is wrong and what to do.
    found: String,
}

impl Finding {
    fn new(what: impl Into<String>, found: Result<String, String>) -> Self {
        let ok = found.is_ok();
        Self { what: what.into(), ok, found: found.unwrap_or_else(|why| why) }
    }
}

pub(super) async fn run(target: &Target, format: Format) -> Result<(), Failure> {
    if target.dev.is_some() || target.tls_dir.is_some() {
        let text = "an installation is checked in Kubernetes: leave --dev and --admin out";
        return Err(Failure::Usage(text.to_owned()));
    }
    let (client, namespace) = target.api_server().await?;
    let mut findings = vec![api_server(&client).await];
    if findings[0].ok {
        for definition in quorumail_crds::definitions() {
            findings.push(definition_of(&client, &definition).await);
        }
        findings.push(lease(&client, &namespace).await);
    }
    output::print(format, &findings, |findings| table(findings))?;
    match findings.iter().filter(|finding| !finding.ok).count() {
        0 => Ok(()),
        wrong => Err(Failure::Failed(format!("{wrong} of {} checks failed", findings.len()))),
    }
}

async fn api_server(client: &Client) -> Finding {
    let version = client.apiserver_version().await;
    let found = version.map(|version| version.git_version).map_err(|error| error.to_string());
    Finding::new("API server", found)
}

async fn definition_of(client: &Client, wanted: &CustomResourceDefinition) -> Finding {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = wanted.name_any();
    let found = api.get_opt(&name).await;
    let found = found.map_err(|error| error.to_string()).and_then(|found| judge(wanted, found.as_ref()));
    Finding::new(format!("CustomResourceDefinition {name}"), found)
}

/// Whether a definition is there, served, and knows every field that this build does.
fn judge(
    wanted: &CustomResourceDefinition,
    found: Option<&CustomResourceDefinition>,
) -> Result<String, String> {
    let found = found.ok_or("it is not there; install the chart, or apply manifests/quorumail.yaml")?;
    let conditions = found.status.as_ref().and_then(|status| status.conditions.as_ref());
    let established =
        conditions.into_iter().flatten().any(|c| c.type_ == "Established" && c.status == "True");
    if !established {
        return Err("the API server does not serve it yet (condition Established)".to_owned());
    }
    let mut missing = Vec::new();
    for version in &wanted.spec.versions {
        let other = found.spec.versions.iter().find(|other| other.name == version.name && other.served);
        let other =
            other.ok_or_else(|| format!("version {} is not served; upgrade the chart", version.name))?;
        if let (Some(wanted), Some(found)) = (schema_of(version), schema_of(other)) {
            missing_fields(wanted, found, "", &mut missing);
        }
    }
    if missing.is_empty() {
        return Ok("established, with every field of this version".to_owned());
    }
    let more = if missing.len() > MAX_NAMED { ", …" } else { "" };
    missing.truncate(MAX_NAMED);
    Err(format!("it is older than this version and lacks {}{more}; upgrade the chart", missing.join(", ")))
}

fn schema_of(version: &CustomResourceDefinitionVersion) -> Option<&JSONSchemaProps> {
    version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref())
}

/// Fields that `wanted` has and `found` has not, as paths.
fn missing_fields(wanted: &JSONSchemaProps, found: &JSONSchemaProps, path: &str, missing: &mut Vec<String>) {
    for (name, field) in wanted.properties.iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match found.properties.as_ref().and_then(|properties| properties.get(name)) {
            Some(other) => missing_fields(field, other, &path, missing),
            None => missing.push(path),
        }
    }
    if let (Some(JSONSchemaPropsOrArray::Schema(wanted)), Some(JSONSchemaPropsOrArray::Schema(found))) =
        (&wanted.items, &found.items)
    {
        missing_fields(wanted, found, &format!("{path}[]"), missing);
    }
}

/// Whether an operator works: it is seen to renew the Lease, so that no two clocks are compared.
async fn lease(client: &Client, namespace: &str) -> Finding {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let look = async || -> Result<_, String> {
        let found = api.get_opt(LEASE_NAME).await.map_err(|error| error.to_string())?;
        let spec = found.and_then(|lease| lease.spec).unwrap_or_default();
        Ok((spec.holder_identity.filter(|holder| !holder.is_empty()), spec.renew_time))
    };
    let watched = async {
        let (_, first) = look().await?;
        let until = tokio::time::Instant::now() + LEASE_DURATION;
        while tokio::time::Instant::now() < until {
            tokio::time::sleep(LOOK).await;
            if let (Some(holder), renewed) = look().await?
                && renewed != first
            {
                return Ok(format!("renewed by {holder}"));
            }
        }
        let seconds = LEASE_DURATION.as_secs();
        Err(format!(
            "no operator renewed it within {seconds} s; see kubectl -n {namespace} get pods and their logs"
        ))
    };
    Finding::new(format!("Lease {namespace}/{LEASE_NAME}"), watched.await)
}

fn table(findings: &[Finding]) -> String {
    let cells = findings.iter().map(|finding| {
        let state = if finding.ok { "ok" } else { "WRONG" };
        [state.to_owned(), finding.what.clone(), finding.found.clone()]
    });
    output::table(["CHECK", "OF", "FOUND"], cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn established(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
        let status = serde_json::json!({"acceptedNames": {"kind": "K", "plural": "ks"}, "conditions": [
            {"type": "Established", "status": "True", "reason": "r", "message": "m"}]});
        definition.status = Some(serde_json::from_value(status).unwrap());
        definition
    }

    #[test]
    fn a_definition_must_be_there_served_and_as_new_as_this_build() {
        for wanted in quorumail_crds::definitions() {
            judge(&wanted, Some(&established(wanted.clone()))).unwrap();
            assert!(judge(&wanted, None).unwrap_err().contains("not there"));
            assert!(judge(&wanted, Some(&wanted)).unwrap_err().contains("Established"));
        }
    }

    #[test]
    fn an_older_definition_is_told_by_the_fields_that_it_lacks() {
        let wanted = quorumail_crds::definitions().remove(0);
        let mut old = serde_json::to_value(established(wanted.clone())).unwrap();
        let root = &mut old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        root["spec"]["properties"].as_object_mut().unwrap().remove("allowedNamespaces");
        let nodes = &mut root["status"]["properties"]["nodes"]["items"]["properties"];
        nodes.as_object_mut().unwrap().remove("zone");
        let old: CustomResourceDefinition = serde_json::from_value(old).unwrap();
        let why = judge(&wanted, Some(&old)).unwrap_err();
        assert!(why.contains("lacks spec.allowedNamespaces, status.nodes[].zone; upgrade"), "{why}");
    }

    #[test]
    fn what_is_wrong_stands_out() {
        let findings = [
            Finding::new("API server", Ok("v1.34.4".to_owned())),
            Finding::new("Lease ns/l", Err("nobody renewed it".to_owned())),
        ];
        let text = table(&findings);
        assert!(text.lines().nth(1).unwrap().starts_with("ok"), "{text}");
        assert!(text.lines().nth(2).unwrap().starts_with("WRONG"), "{text}");
    }
}
