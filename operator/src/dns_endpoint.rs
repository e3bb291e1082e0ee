//! The records of a domain as a DNSEndpoint, from which external-dns publishes them where its CRD is installed.

use std::collections::BTreeMap;

use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use quorumail_crds::{MailDomain, maildomain::DnsRecord};
use serde_json::json;

use crate::{dns::TTL, settings::FIELD_MANAGER};

fn resource() -> ApiResource {
    let kind = GroupVersionKind::gvk("externaldns.k8s.io", "v1alpha1", "DNSEndpoint");
    ApiResource::from_gvk_with_plural(&kind, "dnsendpoints")
}

/// The object. It goes with its MailDomain.
pub fn endpoint(domain: &MailDomain, records: &[DnsRecord]) -> DynamicObject {
    let mut sets: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for record in records {
        // external-dns refuses targets with a final dot; a text is its own matter.
        let value = match record.type_.as_str() {
            "TXT" => record.value.as_str(),
            _ => record.value.trim_end_matches('.'),
        };
        sets.entry((&record.name, &record.type_)).or_default().push(value);
    }
    let endpoints: Vec<_> = sets
        .into_iter()
        .map(|((name, type_), targets)| {
            json!({"dnsName": name, "recordType": type_, "recordTTL": TTL, "targets": targets})
        })
        .collect();
    let mut object = DynamicObject::new(&domain.name_any(), &resource());
    object.metadata.namespace = domain.namespace();
    object.metadata.owner_references = domain.controller_owner_ref(&()).map(|owner| vec![owner]);
    object.metadata.labels = Some(BTreeMap::from([
        ("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned()),
        ("app.kubernetes.io/part-of".to_owned(), "quorumail".to_owned()),
    ]));
    object.data = json!({"spec": {"endpoints": endpoints}});
    object
}

/// Applies it. False: the CRD is not installed, or the operator may not.
pub async fn publish(
    client: &Client,
    domain: &MailDomain,
    records: &[DnsRecord],
) -> Result<bool, kube::Error> {
    let namespace = domain.namespace().unwrap_or_default();
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource());
    let object = endpoint(domain, records);
    match api.patch(&object.name_any(), &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(&object)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns;

    #[test]
    fn records_of_one_name_and_type_are_one_endpoint() {
        let domain: MailDomain = serde_yaml::from_str(
            "{apiVersion: quorumail.io/v1alpha1, kind: MailDomain, metadata: {name: x, namespace: n, uid: u}, \
             spec: {domain: x.org}}",
        )
        .unwrap();
        let mut records = dns::records(&domain.spec, "mail.x.org", &[]);
        records.push(DnsRecord { value: "20 b.x.org.".to_owned(), ..records[0].clone() });
        let object = endpoint(&domain, &records);
        assert_eq!(object.types.as_ref().unwrap().kind, "DNSEndpoint");
        assert_eq!(object.owner_references()[0].uid, "u");
        let endpoints = object.data["spec"]["endpoints"].as_array().unwrap();
        let find = |name: &str, type_: &str| {
            endpoints.iter().find(|e| e["dnsName"] == name && e["recordType"] == type_).unwrap()["targets"]
                .clone()
        };
        assert_eq!(find("x.org", "MX"), json!(["10 mail.x.org", "20 b.x.org"]));
        assert_eq!(find("_imaps._tcp.x.org", "SRV"), json!(["0 1 993 mail.x.org"]));
        assert_eq!(find("_dmarc.x.org", "TXT"), json!(["v=DMARC1; p=none"]));
    }
}
