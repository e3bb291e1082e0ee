//! Who is at the other end of a mutual TLS connection, told by the names in the certificate.
//!
//! The cluster's own authority signs all certificates, so a certificate that verifies belongs to the cluster; its
//! subject alternative names (RFC 5280 4.2.1.6) tell in which role.

use rustls_pki_types::CertificateDer;
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
}
