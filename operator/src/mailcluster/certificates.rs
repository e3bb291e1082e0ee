//! The certificates of a MailCluster: which of the stored ones stay, and which are made anew.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};

use crate::pki::{self, CertifiedPem, PkiError, Role};

/// Keys of TLS Secrets.
pub const CA_KEY: &str = "ca.crt";
/// Certificate chain.
pub const CERT_KEY: &str = "tls.crt";
/// Private key.
pub const KEY_KEY: &str = "tls.key";

/// What is stored in Secrets, as far as it is there.
#[derive(Debug, Default)]
pub struct Stored {
    /// `<mc>-ca`.
    pub authority: Option<Secret>,
    /// `<mc>-internal-tls`.
    pub node: Option<Secret>,
    /// `<mc>-operator-tls`.
    pub operator: Option<Secret>,
    /// `<mc>-tls`, unless another one is named.
    pub public: Option<Secret>,
}

/// What should be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificates {
    /// The cluster's own authority.
    pub authority: CertifiedPem,
    /// Of the mailnodes.
    pub node: CertifiedPem,
    /// Of the operator.
    pub operator: CertifiedPem,
    /// For mail clients, when it is self-signed.
    pub public: Option<CertifiedPem>,
}

/// A text from a Secret.
pub fn text(secret: &Secret, key: &str) -> Option<String> {
    let ByteString(bytes) = secret.data.as_ref()?.get(key)?;
    String::from_utf8(bytes.clone()).ok()
}

fn pair(secret: Option<&Secret>) -> Option<CertifiedPem> {
    let secret = secret?;
    Some(CertifiedPem { cert: text(secret, CERT_KEY)?, key: text(secret, KEY_KEY)? })
}

/// Keeps what is stored and still good, and makes the rest. `public_names`: for a self-signed certificate; empty: none.
pub fn current(
    stored: &Stored,
    cluster: &str,
    public_names: &[String],
    now: Timestamp,
) -> Result<Certificates, PkiError> {
    let authority = match pair(stored.authority.as_ref()) {
        Some(authority) if !pki::needs_renewal(&authority.cert, now) => authority,
        Some(authority) => {
            pki::renew_authority(cluster, &authority, now).or_else(|_| pki::new_authority(cluster, now))?
        }
        None => pki::new_authority(cluster, now)?,
    };
    let leaf = |secret: Option<&Secret>, role| match pair(secret) {
        Some(leaf)
            if secret.and_then(|s| text(s, CA_KEY)).as_ref() == Some(&authority.cert)
                && !pki::needs_renewal(&leaf.cert, now) =>
        {
            Ok(leaf)
        }
        _ => pki::issue(&authority, role, now),
    };
    let public = match pair(stored.public.as_ref()) {
        _ if public_names.is_empty() => None,
        Some(public) if is_for(&public, public_names) && !pki::needs_renewal(&public.cert, now) => {
            Some(public)
        }
        _ => Some(pki::self_signed(public_names, now)?),
    };
    Ok(Certificates {
        node: leaf(stored.node.as_ref(), Role::Node)?,
        operator: leaf(stored.operator.as_ref(), Role::Operator)?,
        authority,
        public,
    })
}

/// One that somebody else issued was there before and is not kept.
fn is_for(public: &CertifiedPem, names: &[String]) -> bool {
    pki::inspect(&public.cert).is_ok_and(|facts| facts.names == names && facts.is_self_signed)
}

/// The data of a TLS Secret.
pub fn data(pair: &CertifiedPem, authority: Option<&CertifiedPem>) -> BTreeMap<String, ByteString> {
    let mut data = BTreeMap::from([
        (CERT_KEY.to_owned(), ByteString(pair.cert.clone().into_bytes())),
        (KEY_KEY.to_owned(), ByteString(pair.key.clone().into_bytes())),
    ]);
    if let Some(authority) = authority {
        data.insert(CA_KEY.to_owned(), ByteString(authority.cert.clone().into_bytes()));
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;

    fn secret(pair: &CertifiedPem, authority: Option<&CertifiedPem>) -> Option<Secret> {
        Some(Secret { data: Some(data(pair, authority)), ..Secret::default() })
    }

    fn store(certificates: &Certificates) -> Stored {
        Stored {
            authority: secret(&certificates.authority, None),
            node: secret(&certificates.node, Some(&certificates.authority)),
            operator: secret(&certificates.operator, Some(&certificates.authority)),
            public: certificates.public.as_ref().and_then(|p| secret(p, None)),
        }
    }

    #[test]
    fn good_certificates_stay_and_old_ones_are_renewed() {
        let (now, names) = (Timestamp::now(), ["mail.example.org".to_owned()]);
        let first = current(&Stored::default(), "mail", &names, now).unwrap();
        assert_eq!(current(&store(&first), "mail", &names, now).unwrap(), first);

        let later =
            current(&store(&first), "mail", &names, now + SignedDuration::from_hours(24 * 61)).unwrap();
        assert_eq!((&later.authority, &later.public), (&first.authority, &first.public));
        assert!(later.node != first.node && later.operator != first.operator);
    }

    #[test]
    fn a_new_authority_or_another_host_name_brings_new_certificates() {
        let (now, names) = (Timestamp::now(), ["mail.example.org".to_owned()]);
        let first = current(&Stored::default(), "mail", &names, now).unwrap();
        let lost = Stored { authority: None, ..store(&first) };
        let second = current(&lost, "mail", &names, now).unwrap();
        assert!(second.node != first.node && second.public == first.public);
        let third = current(&store(&first), "mail", &["mx.example.org".to_owned()], now).unwrap();
        assert!(third.public != first.public && third.node == first.node);
        assert_eq!(current(&store(&first), "mail", &[], now).unwrap().public, None);
    }

    #[test]
    fn what_somebody_else_issued_is_not_kept_as_self_signed() {
        let (now, names) = (Timestamp::now(), [pki::NODE_NAME.to_owned()]);
        let authority = pki::new_authority("others", now).unwrap();
        let issued = pki::issue(&authority, Role::Node, now).unwrap();
        let stored = Stored { public: secret(&issued, None), ..Stored::default() };
        let public = current(&stored, "mail", &names, now).unwrap().public.unwrap();
        assert!(public != issued && pki::inspect(&public.cert).unwrap().is_self_signed);
    }
}
