//! Certificates, seen as a client.

use std::{io, net::IpAddr, path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use tokio_rustls::TlsConnector;

use super::{Target, TlsMode, transaction::Trouble};

/// Where systems keep the certificates they trust: Debian and distroless images, Red Hat, Alpine and macOS.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The two ways to look at a server's certificate.
#[derive(Debug)]
pub struct Tls {
    any: Arc<ClientConfig>,
    verified: Arc<ClientConfig>,
}

impl Tls {
    /// Trusts these for [`TlsMode::Required`].
    pub fn with_roots(roots: RootCertStore) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = || {
            ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .expect("ring has cipher suites for TLS 1.2 and 1.3")
        };
        let any = builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(Arc::clone(&provider))))
            .with_no_client_auth();
        let verified = builder().with_root_certificates(roots).with_no_client_auth();
        Self { any: Arc::new(any), verified: Arc::new(verified) }
    }

    /// Trusts what the system trusts: the file that `SSL_CERT_FILE` names, or the system's own.
    pub fn from_system() -> io::Result<Self> {
        let named = std::env::var_os("SSL_CERT_FILE");
        let mut candidates = named.iter().map(Path::new).chain(SYSTEM_ROOTS.iter().map(Path::new));
        let Some(file) = candidates.find(|file| file.exists()) else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no file with trusted certificates is known",
            ));
        };
        let failed =
            |error| io::Error::other(format!("failed to read certificates from {}: {error}", file.display()));
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(file).map_err(failed)? {
            // One that this library cannot read is skipped; the others are still worth something.
            let _ = roots.add(certificate.map_err(failed)?);
        }
        Ok(Self::with_roots(roots))
    }

    pub(super) fn connector(&self, mode: TlsMode) -> TlsConnector {
        TlsConnector::from(Arc::clone(if mode == TlsMode::Required { &self.verified } else { &self.any }))
    }
}

/// The name for SNI and the certificate.
pub(super) fn server_name(target: &Target) -> Result<ServerName<'static>, Trouble> {
    if let Ok(address) = target.host.parse::<IpAddr>() {
        return Ok(address.into());
    }
    ServerName::try_from(target.host.clone())
        .map_err(|_| Trouble::Tls("the host's name is no DNS name".into()))
}

/// Takes any certificate, but still has the handshake signed with its key: see [`TlsMode::Opportunistic`].
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
