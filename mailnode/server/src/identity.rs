//! Who is at the other end of a mutual TLS connection, told by the names in the certificate.
//!
//! The cluster's own authority signs all certificates, so a certificate that verifies belongs to the cluster; its
//! subject alternative names (RFC 5280 4.2.1.6) tell in which role.

use rustls::{client::verify_server_name, server::ParsedCertificate};
use rustls_pki_types::{CertificateDer, ServerName};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

/// Name in the certificate of every mailnode; also what clients verify a server as.
pub const NODE_NAME: &str = "node.quorumail.internal";
/// Name in the certificates of the operator and the CLI.
pub const OPERATOR_NAME: &str = "operator.quorumail.internal";

/// In which role a client may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Another mailnode.
    Node,
    /// The operator or the CLI.
    Operator,
}

/// The role that a certificate gives; none when it names no role or cannot be read.
pub fn role(certificate: &CertificateDer<'_>) -> Option<Role> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let named = |name: &str| {
        names
            .value
            .general_names
            .iter()
            .any(|n| matches!(n, GeneralName::DNSName(dns) if dns.eq_ignore_ascii_case(name)))
    };
    if named(NODE_NAME) {
        Some(Role::Node)
    } else if named(OPERATOR_NAME) {
        Some(Role::Operator)
    } else {
        None
    }
}

/// Which certificate it is, as `openssl x509 -noout -subject -serial` tells it; none when it cannot be read.
pub fn subject_and_serial(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let serial: String = certificate.raw_serial().iter().map(|byte| format!("{byte:02X}")).collect();
    Some(format!("{} (serial {serial})", certificate.subject()))
}

/// When a certificate expires, in Unix seconds; none when it cannot be read.
pub fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// Whether a certificate is for this host (RFC 6125 6.4), and is not signed by itself.
pub fn is_issued_for(certificate: &CertificateDer<'_>, host: &str) -> bool {
    let Ok((_, read)) = x509_parser::certificate::X509Certificate::from_der(certificate) else {
        return false;
    };
    let (Ok(parsed), Ok(name)) = (ParsedCertificate::try_from(certificate), ServerName::try_from(host))
    else {
        return false;
    };
    read.issuer() != read.subject() && verify_server_name(&parsed, &name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn the_names_of_a_certificate_give_its_role() {
        assert_eq!(role(&certificate(&["other.example", NODE_NAME])), Some(Role::Node));
        assert_eq!(role(&certificate(&[OPERATOR_NAME])), Some(Role::Operator));
        assert_eq!(role(&certificate(&["mail.example.org"])), None);
        assert_eq!(role(&CertificateDer::from(vec![1, 2, 3])), None);
    }

    #[test]
    fn a_certificate_that_signs_itself_is_nobodys_word() {
        let alone = certificate(&["mail.example.org"]);
        assert!(!is_issued_for(&alone, "mail.example.org"));
        let authority = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority");
        let issuer = rcgen::Issuer::new(params, authority);
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["mail.example.org".to_owned()]).unwrap();
        let issued = params.signed_by(&key, &issuer).unwrap().der().clone();
        assert!(is_issued_for(&issued, "mail.example.org"));
        assert!(!is_issued_for(&issued, "mail.example.net"));
        assert!(!is_issued_for(&CertificateDer::from(vec![1, 2]), "mail.example.org"));
    }
}
