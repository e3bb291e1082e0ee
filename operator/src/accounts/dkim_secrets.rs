//! The Secrets in which the DKIM keys of domains are kept.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use quorumail_crds::{
    DeletionPolicy, MailDomain,
    condition::{Observed, kind, reason},
    maildomain::DnsState,
};

use super::secrets::{Data, Secrets};
use crate::{
    dkim::{self, StoredKey},
    settings::FIELD_MANAGER,
    stores::Key,
};

/// Key of the value in the Secret: the keys with their history, JSON.
const KEYS: &str = "keys.json";

/// Name of the Secret of a domain's keys.
pub fn dkim_secret_name(domain: &MailDomain) -> String {
    format!("{}-dkim", domain.name_any())
}

/// The Secret. It goes with its MailDomain only where the domain's mailboxes do as well.
fn secret(domain: &MailDomain, text: String) -> Secret {
    let owner = domain.controller_owner_ref(&()).map(|owner| vec![owner]);
    Secret {
        metadata: ObjectMeta {
            name: Some(dkim_secret_name(domain)),
            namespace: domain.namespace(),
            labels: Some(BTreeMap::from([
                ("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned()),
                ("app.kubernetes.io/part-of".to_owned(), "quorumail".to_owned()),
            ])),
            owner_references: owner.filter(|_| domain.spec.deletion_policy == DeletionPolicy::Delete),
            ..ObjectMeta::default()
        },
        string_data: Some([(KEYS.to_owned(), text)].into()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

impl Secrets {
    /// The keys of a domain, or why it has none that can be used. Makes, replaces and forgets keys as it is time to.
    pub async fn dkim_keys(
        &self,
        domain: &MailDomain,
        now: Timestamp,
    ) -> Result<Result<Vec<StoredKey>, Observed>, kube::Error> {
        let key = (domain.namespace().unwrap_or_default(), dkim_secret_name(domain));
        let read = match self.read(&key).await? {
            // The watch may not have told yet of one that was made a moment ago: keys are not made on its word.
            None => self.api(&key).get_opt(&key.1).await?.map(|secret| self.remember(&key, &secret)),
            read => read,
        };
        let (version, keys) = match read {
            None => (None, Vec::new()),
            Some(read) => match keys_of(&read.data, &key) {
                Ok(keys) => (Some(read.version), keys),
                Err(observed) => return Ok(Err(observed)),
            },
        };
        let records = domain.status.as_ref().map_or(&[][..], |status| &status.dns_records);
        let seen = |selector: &str| {
            let name = format!("{selector}._domainkey.{}", domain.spec.domain.to_lowercase());
            records.iter().any(|record| record.name == name && record.state == DnsState::Present)
        };
        let plan = dkim::plan(&keys, &domain.spec.dkim, seen, now);
        if plan.keys == keys && plan.make.is_empty() {
            return Ok(Ok(keys));
        }
        let made = tokio::task::spawn_blocking(move || dkim::carry_out(plan, now)).await;
        let keys = match made {
            Ok(Ok(keys)) => keys,
            Ok(Err(error)) => return Ok(Err(unusable(&key, &error.to_string()))),
            Err(error) => return Ok(Err(unusable(&key, &format!("a key could not be made: {error}")))),
        };
        self.write_keys(domain, &key, version, &keys).await?;
        for one in keys.iter().filter(|one| one.created == now) {
            tracing::info!(domain = domain.spec.domain, selector = one.selector, "a DKIM key was made");
        }
        Ok(Ok(keys))
    }

    fn api(&self, key: &Key) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &key.0)
    }

    /// Writes the keys; refused when somebody wrote since they were read, and then tried again with what stands there.
    async fn write_keys(
        &self,
        domain: &MailDomain,
        key: &Key,
        version: Option<String>,
        keys: &[StoredKey],
    ) -> Result<(), kube::Error> {
        let api = self.api(key);
        let text = dkim::write(keys);
        let written = match version {
            None => {
                let params =
                    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                api.create(&params, &secret(domain, text)).await?
            }
            Some(version) => {
                let body = serde_json::json!({
                    "metadata": {"resourceVersion": version},
                    "stringData": {KEYS: text},
                });
                let params =
                    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
                api.patch(&key.1, &params, &Patch::Merge(body)).await?
            }
        };
        self.remember(key, &written);
        Ok(())
    }
}

fn keys_of(data: &Data, key: &Key) -> Result<Vec<StoredKey>, Observed> {
    let Some(value) = data.get(KEYS) else {
        return Err(unusable(key, &format!("has no key `{KEYS}`")));
    };
    dkim::read(&value.0).map_err(|error| unusable(key, &format!("key `{KEYS}` {error}")))
}

fn unusable(key: &Key, why: &str) -> Observed {
    let text = format!(
        "Secret {}: {why}; put a copy of it back, or delete it to have new keys made, whose records then have to be published",
        key.1
    );
    Observed::no(kind::DKIM_READY, reason::SECRET_INVALID, text)
}
