//! Signs mail of our own people with the keys of its author's domain.
//!
//! Keys come from the directory, where every node has them. They are read into a form that signs once, not for each
//! message.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use quorumail_authentication::{self as authentication, Algorithm, SigningKey};
use quorumail_message::{Address, Domain};
use quorumail_store::{Directory, DkimAlgorithm, DkimKey};

/// Domains whose keys are held ready; with more, they are all read again.
const MAX_READY: usize = 1024;

/// Keys of a domain: as the directory has them, and ready to sign.
type Ready = (Arc<[DkimKey]>, Arc<[SigningKey]>);

/// Signs messages.
#[derive(Default)]
pub struct Signer {
    ready: Mutex<HashMap<Domain, Ready>>,
}

impl Signer {
    /// The DKIM-Signature fields to stand at the top of the message; empty where its author's domain has no keys, or the
    /// author is not one of `owns`: nobody vouches for mail in another's name.
    pub async fn sign(
        self: &Arc<Self>,
        directory: &Directory,
        message: &Bytes,
        owns: impl Fn(&Address) -> bool,
        at: i64,
    ) -> String {
        let Some(author) = authentication::author(message) else { return String::new() };
        let Ok(author) = author.parse::<Address>() else { return String::new() };
        if !owns(&author) {
            return String::new();
        }
        self.sign_as(directory, author.domain(), message, at).await
    }

    /// As [`Signer::sign`], in the name of a domain that the caller answers for: a list's, for what the list sends.
    pub async fn sign_as(
        self: &Arc<Self>,
        directory: &Directory,
        domain: &Domain,
        message: &Bytes,
        at: i64,
    ) -> String {
        let domain = domain.clone();
        let Some(keys) = directory.dkim_keys(&domain) else { return String::new() };
        let (signer, message) = (Arc::clone(self), message.clone());
        // A millisecond for RSA, and more to hash a large body.
        let signed = tokio::task::spawn_blocking(move || {
            let keys = signer.ready(&domain, keys);
            authentication::sign(&message, &domain, &keys, at)
        });
        signed.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a message could not be signed");
            String::new()
        })
    }

    fn ready(&self, domain: &Domain, keys: Arc<[DkimKey]>) -> Arc<[SigningKey]> {
        if let Some((known, ready)) = self.ready.lock().get(domain)
            && Arc::ptr_eq(known, &keys)
        {
            return Arc::clone(ready);
        }
        let read = |key: &DkimKey| {
            let algorithm = match key.algorithm {
                DkimAlgorithm::Rsa => Algorithm::Rsa,
                DkimAlgorithm::Ed25519 => Algorithm::Ed25519,
            };
            SigningKey::from_pkcs8(&key.selector, algorithm, &key.private)
                .inspect_err(|error| tracing::error!(%domain, %error, "a DKIM key cannot be used"))
                .ok()
        };
        let ready: Arc<[SigningKey]> = keys.iter().filter_map(read).collect();
        let mut all = self.ready.lock();
        if all.len() >= MAX_READY {
            all.clear();
        }
        all.insert(domain.clone(), (keys, Arc::clone(&ready)));
        ready
    }
}
