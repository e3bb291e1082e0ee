//! Certificates: the cluster's own authority, the mailnodes' and the operator's certificates under it, and the
//! self-signed certificate for mail clients.
//!
//! Pure but for key generation: the time is passed in. Every node certificate carries [`NODE_NAME`] and every client
//! (operator, CLI) certificate [`OPERATOR_NAME`] as its only name, so that the role is what is verified, and neither
//! addresses nor pod names appear in a certificate. RFC 5280 (profile), RFC 9525 (names).

use std::{fmt, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// The name that every mailnode proves to have, and that clients verify.
pub const NODE_NAME: &str = "node.quorumail.internal";
/// The name that the operator, the CLI and `quorumail dev` prove to have.
pub const OPERATOR_NAME: &str = "operator.quorumail.internal";
/// How long an authority is valid.
pub const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(24 * 3650);
/// How long a node or client certificate is valid.
pub const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(24 * 90);
/// How long the self-signed certificate for mail clients is valid: people confirm it by hand, so it stays for a year.
pub const PUBLIC_LIFE: SignedDuration = SignedDuration::from_hours(24 * 365);
/// Certificates start this long before they are made, so that a clock that is behind accepts them.
const BACKDATE: SignedDuration = SignedDuration::from_hours(1);

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Key generation, encoding or signing.
    #[error("failed to make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// A PEM text that is no certificate.
    #[error("failed to read a certificate: {0}")]
    Read(String),
}

/// A certificate (chain) and its private key, both in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct CertifiedPem {
    /// The certificate.
    pub cert: String,
    /// The private key, PKCS#8.
    pub key: String,
}

impl fmt::Debug for CertifiedPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertifiedPem").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// What a certificate under the authority is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A mailnode: serves 9443 and 9444, and is a client of its peers.
    Node,
    /// The operator, the CLI or `quorumail dev`: a client of 9443.
    Operator,
}

/// Makes the authority of a cluster.
pub fn new_authority(cluster: &str, now: Timestamp) -> Result<CertifiedPem, PkiError> {
    let key = KeyPair::generate()?;
    let cert = authority_params(cluster, now)?.self_signed(&key)?;
    Ok(CertifiedPem { cert: cert.pem(), key: key.serialize_pem() })
}

/// A new certificate for the key of `authority`: what was issued under the old one stays valid under the new one.
pub fn renew_authority(
    cluster: &str,
    authority: &CertifiedPem,
    now: Timestamp,
) -> Result<CertifiedPem, PkiError> {
    let key = KeyPair::from_pem(&authority.key)?;
    let cert = authority_params(cluster, now)?.self_signed(&key)?;
    Ok(CertifiedPem { cert: cert.pem(), key: authority.key.clone() })
}

fn authority_params(cluster: &str, now: Timestamp) -> Result<CertificateParams, PkiError> {
    let mut params = params(&[], &format!("Quorumail authority of {cluster}"), now, AUTHORITY_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

/// Issues a certificate with a new key under `authority`.
pub fn issue(authority: &CertifiedPem, role: Role, now: Timestamp) -> Result<CertifiedPem, PkiError> {
    let (name, usages): (_, &[_]) = match role {
        Role::Node => {
            (NODE_NAME, &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth])
        }
        Role::Operator => (OPERATOR_NAME, &[ExtendedKeyUsagePurpose::ClientAuth]),
    };
    sign(authority, &[name.to_owned()], usages, now)
}

/// Issues a certificate with a new key under `authority` for a server with these host names; the first is the subject.
pub fn issue_server(
    authority: &CertifiedPem,
    names: &[String],
    now: Timestamp,
) -> Result<CertifiedPem, PkiError> {
    sign(authority, names, &[ExtendedKeyUsagePurpose::ServerAuth], now)
}

fn sign(
    authority: &CertifiedPem,
    names: &[String],
    usages: &[ExtendedKeyUsagePurpose],
    now: Timestamp,
) -> Result<CertifiedPem, PkiError> {
    let subject = names.first().map_or("quorumail", String::as_str);
    let mut params = params(names, subject, now, LEAF_LIFE)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params.use_authority_key_identifier_extension = true;
    let issuer = Issuer::from_ca_cert_pem(&authority.cert, KeyPair::from_pem(&authority.key)?)?;
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?;
    Ok(CertifiedPem { cert: cert.pem(), key: key.serialize_pem() })
}

/// Makes a self-signed certificate for mail clients. `names` are host names or IP addresses; the first is the subject.
pub fn self_signed(names: &[String], now: Timestamp) -> Result<CertifiedPem, PkiError> {
    let subject = names.first().map_or("quorumail", String::as_str);
    let mut params = params(names, subject, now, PUBLIC_LIFE)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    Ok(CertifiedPem { cert: cert.pem(), key: key.serialize_pem() })
}

fn params(
    names: &[String],
    subject: &str,
    now: Timestamp,
    life: SignedDuration,
) -> Result<CertificateParams, PkiError> {
    /// RFC 5280 appendix A.1, ub-common-name.
    const MAX_COMMON_NAME: usize = 64;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name.remove(DnType::CommonName);
    params
        .distinguished_name
        .push(DnType::CommonName, subject.chars().take(MAX_COMMON_NAME).collect::<String>());
    params.distinguished_name.push(DnType::OrganizationName, "Quorumail");
    let epoch = date_time_ymd(1970, 1, 1);
    let since_epoch = |at: Timestamp| Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0));
    params.not_before = epoch + since_epoch(now - BACKDATE);
    params.not_after = epoch + since_epoch(now + life);
    Ok(params)
}

/// From when to when a certificate is valid, the DNS names and addresses it is for, and whether somebody else issued it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Start of its validity.
    pub not_before: Timestamp,
    /// End of its validity.
    pub not_after: Timestamp,
    /// DNS names and IP addresses of the subject alternative name extension.
    pub names: Vec<String>,
    /// Whether its issuer is its subject.
    pub is_self_signed: bool,
}

/// Reads the first certificate of a PEM text.
pub fn inspect(cert_pem: &str) -> Result<CertificateFacts, PkiError> {
    use x509_parser::extensions::GeneralName;
    let read = |what: &dyn fmt::Display| PkiError::Read(what.to_string());
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).map_err(|e| read(&e))?;
    let cert = pem.parse_x509().map_err(|e| read(&e))?;
    let instant =
        |at: x509_parser::time::ASN1Time| Timestamp::from_second(at.timestamp()).map_err(|e| read(&e));
    let san = cert.subject_alternative_name().map_err(|e| read(&e))?;
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(dns) => Some((*dns).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(std::net::Ipv4Addr::from(v4).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string()),
        },
        _ => None,
    };
    Ok(CertificateFacts {
        not_before: instant(cert.validity().not_before)?,
        not_after: instant(cert.validity().not_after)?,
        names: san.map(|san| san.value.general_names.iter().filter_map(name).collect()).unwrap_or_default(),
        is_self_signed: cert.issuer() == cert.subject(),
    })
}

/// When a certificate is to be renewed: after two thirds of its life, which leaves the last third for repair.
pub fn renew_at(facts: &CertificateFacts) -> Timestamp {
    let life = facts.not_after.duration_since(facts.not_before);
    facts.not_before + life / 3 * 2
}

/// Whether a certificate cannot be read, or is due for renewal.
pub fn needs_renewal(cert_pem: &str, now: Timestamp) -> bool {
    inspect(cert_pem).map_or(true, |facts| now < facts.not_before || now >= renew_at(&facts))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};

    fn now() -> Timestamp {
        Timestamp::now()
    }

    fn chain(pem: &CertifiedPem) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let cert = CertificateDer::from_pem_slice(pem.cert.as_bytes()).unwrap();
        (vec![cert], PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).unwrap())
    }

    /// Runs a TLS handshake in memory; answers the first error of either side.
    fn handshake(
        trust: &CertifiedPem,
        server: &CertifiedPem,
        client: &CertifiedPem,
        name: &'static str,
    ) -> Result<(), rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(chain(trust).0.remove(0)).unwrap();
        let roots = Arc::new(roots);
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let (cert, key) = chain(server);
        let server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(cert, key)?;
        let (cert, key) = chain(client);
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(cert, key)?;
        let mut server = rustls::ServerConnection::new(Arc::new(server))?;
        let mut client =
            rustls::ClientConnection::new(Arc::new(client), ServerName::try_from(name).unwrap())?;
        for _ in 0..10 {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert!(!server.is_handshaking() && !client.is_handshaking());
        Ok(())
    }

    #[test]
    fn nodes_and_operators_of_one_authority_trust_each_other() {
        let authority = new_authority("mail", now()).unwrap();
        let node = issue(&authority, Role::Node, now()).unwrap();
        let operator = issue(&authority, Role::Operator, now()).unwrap();
        handshake(&authority, &node, &operator, NODE_NAME).unwrap();
        handshake(&authority, &node, &node, NODE_NAME).unwrap();
        assert!(handshake(&authority, &node, &operator, OPERATOR_NAME).is_err(), "a node has one name only");
        assert!(
            handshake(&authority, &operator, &node, OPERATOR_NAME).is_err(),
            "an operator is never a server"
        );
    }

    #[test]
    fn another_authority_is_not_trusted() {
        let ours = new_authority("mail", now()).unwrap();
        let theirs = new_authority("mail", now()).unwrap();
        let node = issue(&ours, Role::Node, now()).unwrap();
        let stranger = issue(&theirs, Role::Operator, now()).unwrap();
        assert!(handshake(&ours, &node, &stranger, NODE_NAME).is_err());
    }

    #[test]
    fn a_renewed_authority_keeps_what_it_issued_valid() {
        let before = new_authority("mail", now()).unwrap();
        let node = issue(&before, Role::Node, now()).unwrap();
        let after = renew_authority("mail", &before, now()).unwrap();
        let operator = issue(&after, Role::Operator, now()).unwrap();
        handshake(&after, &node, &operator, NODE_NAME).unwrap();
        handshake(&before, &node, &operator, NODE_NAME).unwrap();
    }

    #[test]
    fn certificates_are_renewed_after_two_thirds_of_their_life() {
        let start = now();
        let authority = new_authority("mail", start).unwrap();
        let node = issue(&authority, Role::Node, start).unwrap();
        assert!(!needs_renewal(&node.cert, start));
        assert!(!needs_renewal(&node.cert, start + SignedDuration::from_hours(24 * 59)));
        assert!(needs_renewal(&node.cert, start + SignedDuration::from_hours(24 * 60)));
        assert!(needs_renewal("no certificate", start));
    }

    #[test]
    fn a_public_certificate_carries_all_its_names() {
        let names = ["mail.example.org".to_owned(), "127.0.0.1".to_owned()];
        let cert = self_signed(&names, now()).unwrap();
        assert_eq!(inspect(&cert.cert).unwrap().names, names);
    }

    #[test]
    fn private_keys_are_not_printed() {
        let authority = new_authority("mail", now()).unwrap();
        assert!(!format!("{authority:?}").contains("PRIVATE"));
    }
}
