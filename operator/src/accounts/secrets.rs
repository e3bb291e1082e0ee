//! The credentials of mailboxes: read from the Secrets they refer to, or made where they refer to none.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use parking_lot::Mutex;
use quorumail_crds::{
    Mailbox,
    condition::{Observed, kind, reason},
};

use crate::{
    directory::Credential,
    mailbox::{ADDRESS_KEY, PASSWORD_KEY, credentials, credentials_name},
    settings::FIELD_MANAGER,
    stores::{Key, Stores},
};

/// Values of a Secret that are kept in memory; a larger one is read each time.
const MAX_CACHED: usize = 64 << 10;

/// Label with who made an object.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

pub(super) type Data = Arc<BTreeMap<String, ByteString>>;

/// What was read, with its version and, where there is one, the uid of its owner.
#[derive(Clone)]
pub(super) struct Read {
    pub(super) version: String,
    owner: Option<String>,
    /// Whether the operator made it, here or where a backup comes from.
    is_ours: bool,
    pub(super) data: Data,
}

/// Reads Secrets, each version once.
pub struct Secrets {
    pub(super) client: Client,
    stores: Arc<Stores>,
    cache: Mutex<HashMap<Key, Read>>,
}

fn no(reason: &'static str, message: String) -> Observed {
    Observed::no(kind::READY, reason, message)
}

impl Secrets {
    /// Nothing read yet.
    pub fn new(client: Client, stores: Arc<Stores>) -> Self {
        Self { client, stores, cache: Mutex::default() }
    }

    /// The credential of a mailbox, or why it has none. Makes a Secret where the mailbox refers to none.
    pub async fn credential(&self, mailbox: &Mailbox) -> Result<Result<Credential, Observed>, kube::Error> {
        let namespace = mailbox.namespace().unwrap_or_default();
        let Some(reference) = &mailbox.spec.password_secret_ref else {
            return self.generated(mailbox, namespace).await;
        };
        let Some(read) = self.read(&(namespace, reference.name.clone())).await? else {
            let text = format!(
                "Secret {} does not exist; make it with the password under key `{}`, or remove passwordSecretRef",
                reference.name, reference.key
            );
            return Ok(Err(no(reason::SECRET_NOT_FOUND, text)));
        };
        Ok(value(&read, &reference.name, &reference.key))
    }

    async fn generated(
        &self,
        mailbox: &Mailbox,
        namespace: String,
    ) -> Result<Result<Credential, Observed>, kube::Error> {
        let key = (namespace, credentials_name(mailbox));
        let read = match self.read(&key).await? {
            Some(read) if is_of_backup(&read, mailbox) => self.adopt(mailbox, &key, &read).await?,
            Some(read) => read,
            None => self.make(mailbox, &key).await?,
        };
        if read.owner != mailbox.metadata.uid {
            let text = format!(
                "Secret {} exists and was not made for this Mailbox; refer to it by passwordSecretRef, or delete it",
                key.1
            );
            return Ok(Err(no(reason::SECRET_INVALID, text)));
        }
        Ok(value(&read, &key.1, PASSWORD_KEY))
    }

    async fn make(&self, mailbox: &Mailbox, key: &Key) -> Result<Read, kube::Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.0);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match api.create(&params, &credentials(mailbox)).await {
            Ok(secret) => Ok(self.remember(key, &secret)),
            // It was made a moment ago and the watch has not told yet.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Ok(self.remember(key, &api.get(&key.1).await?))
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the mailbox the owner of a Secret that came out of a backup.
    async fn adopt(&self, mailbox: &Mailbox, key: &Key, read: &Read) -> Result<Read, kube::Error> {
        let owner = mailbox.controller_owner_ref(&());
        let patch =
            serde_json::json!({"metadata": {"resourceVersion": read.version, "ownerReferences": [owner]}});
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.0);
        Ok(self.remember(key, &api.patch(&key.1, &params, &Patch::Merge(patch)).await?))
    }

    /// Deletes the Secret that was made for a mailbox which refers to its own now.
    pub async fn discard(&self, mailbox: &Mailbox) -> Result<(), kube::Error> {
        let name = credentials_name(mailbox);
        let namespace = mailbox.namespace().unwrap_or_default();
        let referred = mailbox.spec.password_secret_ref.as_ref().is_some_and(|r| r.name == name);
        if referred || self.stores.secret_version(&(namespace.clone(), name.clone())).is_none() {
            return Ok(());
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let Some(found) = api.get_metadata_opt(&name).await? else { return Ok(()) };
        if !found.owner_references().iter().any(|o| Some(&o.uid) == mailbox.metadata.uid.as_ref()) {
            return Ok(());
        }
        let exactly = Preconditions { uid: found.uid(), resource_version: None };
        match api
            .delete(&name, &DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() })
            .await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn read(&self, key: &Key) -> Result<Option<Read>, kube::Error> {
        let Some(version) = self.stores.secret_version(key) else {
            self.cache.lock().remove(key);
            return Ok(None);
        };
        if let Some(read) = self.cache.lock().get(key)
            && read.version == version
        {
            return Ok(Some(read.clone()));
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.0);
        Ok(api.get_opt(&key.1).await?.map(|secret| self.remember(key, &secret)))
    }

    pub(super) fn remember(&self, key: &Key, secret: &Secret) -> Read {
        let read = Read {
            version: secret.resource_version().unwrap_or_default(),
            owner: secret.owner_references().first().map(|o| o.uid.clone()),
            is_ours: secret.labels().get(MANAGED_BY).is_some_and(|manager| manager == FIELD_MANAGER),
            data: Arc::new(secret.data.clone().unwrap_or_default()),
        };
        let size: usize = read.data.values().map(|v| v.0.len()).sum();
        if size <= MAX_CACHED {
            self.cache.lock().insert(key.clone(), read.clone());
        }
        read
    }

    /// Forgets Secrets that are gone.
    pub fn prune(&self) {
        self.cache.lock().retain(|key, _| self.stores.secret_version(key).is_some());
    }
}

/// Whether a Secret was made for a mailbox of this address and has come back without its owner, as one from a backup does.
fn is_of_backup(read: &Read, mailbox: &Mailbox) -> bool {
    let address = read.data.get(ADDRESS_KEY).map(|address| address.0.as_slice());
    read.owner.is_none() && read.is_ours && address == Some(mailbox.spec.address.as_bytes())
}

fn value(read: &Read, name: &str, key: &str) -> Result<Credential, Observed> {
    let Some(ByteString(value)) = read.data.get(key) else {
        return Err(no(reason::SECRET_NOT_FOUND, format!("Secret {name} has no key `{key}`; add it")));
    };
    Credential::from_secret(value).map_err(|error| {
        no(reason::SECRET_INVALID, format!("key `{key}` of Secret {name} {error}; put a password there"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_secret_that_was_made_for_the_address_and_has_no_owner_comes_from_a_backup() {
        let mailbox: Mailbox = serde_yaml::from_str(
            "{apiVersion: quorumail.io/v1alpha1, kind: Mailbox, metadata: {name: a, uid: m-2}, spec: {address: a@example.org}}",
        )
        .unwrap();
        let read = |owner: Option<&str>, is_ours, address: &str| Read {
            version: "1".to_owned(),
            owner: owner.map(str::to_owned),
            is_ours,
            data: Arc::new([(ADDRESS_KEY.to_owned(), ByteString(address.into()))].into()),
        };
        for (read, expected) in [
            (read(None, true, "a@example.org"), true),
            (read(None, false, "a@example.org"), false),
            (read(None, true, "b@example.org"), false),
            (read(Some("m-1"), true, "a@example.org"), false),
        ] {
            assert_eq!(is_of_backup(&read, &mailbox), expected, "{:?} {}", read.owner, read.is_ours);
        }
    }
}
