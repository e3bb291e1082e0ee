//! TLS of the listeners, with certificates that are loaded again when their files change.
//!
//! Kubernetes replaces the files of a mounted Secret by swapping a symbolic link, and cert-manager writes chain and key
//! one after the other, so the files are read every two seconds and compared by content: no event can be missed, and a
//! half-written pair is only logged and tried again. What does not load leaves the old certificates in use.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use quorumail_message::Domain;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_util::sync::CancellationToken;

use crate::{config, identity, refusals::Refusals};

/// How often the files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// Largest file that is read as a certificate or key.
const MAX_FILE: u64 = 1024 * 1024;
/// RFC 9113 3.2: what gRPC needs to be spoken.
const ALPN_HTTP2: &[u8] = b"h2";

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, unreadable or too large.
    #[error("failed to read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no PEM of the kind expected.
    #[error("{path} holds no usable {what} in PEM")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Key and certificate do not belong together, or rustls refuses them.
    #[error("certificate {path} cannot be used: {reason}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// In words; never anything of the key.
        reason: String,
    },
}

/// TLS of the SMTP and IMAP listeners: one configuration whose certificate changes underneath.
#[derive(Debug)]
pub struct PublicTls {
    files: config::PublicTls,
    current: RwLock<Arc<CertifiedKey>>,
    seen: Mutex<blake3::Hash>,
}

/// TLS between nodes and from the operator.
#[derive(Debug)]
pub struct InternalTls {
    /// Of connections, to and from others.
    pub refusals: Refusals,
    files: config::InternalTls,
    current: RwLock<Arc<Internal>>,
    seen: Mutex<blake3::Hash>,
}

/// Both sides of mutual TLS, made from the same files.
#[derive(Debug)]
struct Internal {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    leaf: CertificateDer<'static>,
    authority: String,
}

impl PublicTls {
    /// Loads the files.
    pub fn load(files: &config::PublicTls) -> Result<Arc<Self>, TlsError> {
        let read = Read::new(&[&files.cert, &files.key])?;
        let current = certified_key(&read, (&files.cert, 0), (&files.key, 1))?;
        let seen = Mutex::new(read.hash);
        Ok(Arc::new(Self { files: files.clone(), current: RwLock::new(Arc::new(current)), seen }))
    }

    /// What the listeners use; stays valid when the certificate changes.
    pub fn server_config(self: &Arc<Self>) -> Arc<ServerConfig> {
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(self) as _;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring offers the cipher suites of TLS 1.2 and 1.3");
        Arc::new(builder.with_no_client_auth().with_cert_resolver(resolver))
    }

    /// When the certificate expires, in Unix seconds.
    pub fn not_after(&self) -> Option<i64> {
        identity::not_after(self.current.read().cert.first()?)
    }

    /// Whether the certificate is for this host and was issued by somebody else than its own key's owner.
    pub fn is_issued_for(&self, host: &Domain) -> bool {
        let current = Arc::clone(&self.current.read());
        current.cert.first().is_some_and(|leaf| identity::is_issued_for(leaf, host.as_str()))
    }

    fn reload(&self) -> Result<bool, TlsError> {
        let read = Read::new(&[&self.files.cert, &self.files.key])?;
        if !changed(&self.seen, &read) {
            return Ok(false);
        }
        let key = certified_key(&read, (&self.files.cert, 0), (&self.files.key, 1))?;
        *self.current.write() = Arc::new(key);
        Ok(true)
    }
}

impl ResolvesServerCert for PublicTls {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read()))
    }
}

impl InternalTls {
    /// Loads the files.
    pub fn load(files: &config::InternalTls) -> Result<Arc<Self>, TlsError> {
        let read = Read::new(&[&files.ca, &files.cert, &files.key])?;
        let current = RwLock::new(Arc::new(internal(files, &read)?));
        let refusals = Refusals::default();
        Ok(Arc::new(Self { refusals, files: files.clone(), current, seen: Mutex::new(read.hash) }))
    }

    /// The authority that must have signed the certificates of others, in words.
    pub fn authority(&self) -> String {
        self.current.read().authority.clone()
    }

    /// Accepts clients whose certificate the cluster's authority signed.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().server)
    }

    /// Shows this node's certificate and verifies the server's.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.current.read().client)
    }

    /// When this node's certificate expires, in Unix seconds.
    pub fn not_after(&self) -> Option<i64> {
        identity::not_after(&self.current.read().leaf)
    }

    fn reload(&self) -> Result<bool, TlsError> {
        let read = Read::new(&[&self.files.ca, &self.files.cert, &self.files.key])?;
        if !changed(&self.seen, &read) {
            return Ok(false);
        }
        let new = internal(&self.files, &read)?;
        *self.current.write() = Arc::new(new);
        Ok(true)
    }
}

/// Looks at the files until cancelled.
pub async fn watch(public: Arc<PublicTls>, internal: Arc<InternalTls>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(RELOAD_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = [false, false];
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let (p, i) = (Arc::clone(&public), Arc::clone(&internal));
        let Ok(outcomes) = tokio::task::spawn_blocking(move || [p.reload(), i.reload()]).await else {
            continue;
        };
        for ((outcome, failing), section) in
            outcomes.into_iter().zip(&mut failing).zip(["public", "internal"])
        {
            match outcome {
                Ok(true) => tracing::info!(section, "certificates were loaded again"),
                Err(error) if !*failing => {
                    tracing::error!(section, %error, "new certificates cannot be used; the old ones stay in use");
                    *failing = true;
                    continue;
                }
                // A failure that stays the same is told once; content that is seen unchanged tells nothing new.
                Ok(false) | Err(_) => continue,
            }
            *failing = false;
        }
    }
}

fn changed(seen: &Mutex<blake3::Hash>, read: &Read) -> bool {
    std::mem::replace(&mut *seen.lock(), read.hash) != read.hash
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Contents of files, and a hash over all.
struct Read {
    contents: Vec<Vec<u8>>,
    hash: blake3::Hash,
}

impl Read {
    fn new(paths: &[&PathBuf]) -> Result<Self, TlsError> {
        let mut hasher = blake3::Hasher::new();
        let mut contents = Vec::with_capacity(paths.len());
        for path in paths {
            let content =
                read_bounded(path).map_err(|source| TlsError::Read { path: (*path).clone(), source })?;
            hasher.update(&(content.len() as u64).to_le_bytes()).update(&content);
            contents.push(content);
        }
        Ok(Self { contents, hash: hasher.finalize() })
    }

    fn certificates(&self, path: &Path, index: usize) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let bad = || TlsError::Pem { path: path.to_owned(), what: "certificate" };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.contents[index])
            .collect::<Result<_, _>>()
            .map_err(|_| bad())?;
        if chain.is_empty() { Err(bad()) } else { Ok(chain) }
    }

    fn key(&self, path: &Path, index: usize) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&self.contents[index])
            .map_err(|_| TlsError::Pem { path: path.to_owned(), what: "private key" })
    }
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other("the file is larger than 1 MiB"));
    }
    Ok(content)
}

fn certified_key(read: &Read, cert: (&Path, usize), key: (&Path, usize)) -> Result<CertifiedKey, TlsError> {
    let chain = read.certificates(cert.0, cert.1)?;
    let key = read.key(key.0, key.1)?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| unusable(cert.0, &error))
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> TlsError {
    TlsError::Unusable { path: path.to_owned(), reason: error.to_string() }
}

fn internal(files: &config::InternalTls, read: &Read) -> Result<Internal, TlsError> {
    let mut roots = RootCertStore::empty();
    let authorities = read.certificates(&files.ca, 0)?;
    let authority =
        authorities.iter().filter_map(identity::subject_and_serial).collect::<Vec<_>>().join(" or ");
    for certificate in authorities {
        roots.add(certificate).map_err(|error| unusable(&files.ca, &error))?;
    }
    let roots = Arc::new(roots);
    let chain = read.certificates(&files.cert, 1)?;
    let leaf = chain[0].clone();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
        .build()
        .map_err(|error| unusable(&files.ca, &error))?;
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&files.cert, &error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), read.key(&files.key, 2)?)
        .map_err(|error| unusable(&files.cert, &error))?;
    server.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&files.cert, &error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, read.key(&files.key, 2)?)
        .map_err(|error| unusable(&files.cert, &error))?;
    client.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    Ok(Internal { server: Arc::new(server), client: Arc::new(client), leaf, authority })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_pair(dir: &Path, name: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
        std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    }

    fn public(dir: &Path) -> config::PublicTls {
        config::PublicTls { cert: dir.join("cert.pem"), key: dir.join("key.pem") }
    }

    #[test]
    fn a_changed_certificate_is_taken_and_a_bad_one_leaves_the_old() {
        let dir = tempfile::tempdir().unwrap();
        write_pair(dir.path(), "one.example");
        let tls = PublicTls::load(&public(dir.path())).unwrap();
        let first = tls.current.read().cert.clone();
        assert!(!tls.reload().unwrap());

        // A certificate without its key: what a reader sees between two writes.
        let old_key = std::fs::read(dir.path().join("key.pem")).unwrap();
        write_pair(dir.path(), "two.example");
        let new_key = std::fs::read(dir.path().join("key.pem")).unwrap();
        std::fs::write(dir.path().join("key.pem"), old_key).unwrap();
        assert!(matches!(tls.reload(), Err(TlsError::Unusable { .. })));
        assert_eq!(tls.current.read().cert, first);

        std::fs::write(dir.path().join("key.pem"), new_key).unwrap();
        assert!(tls.reload().unwrap());
        assert_ne!(tls.current.read().cert, first);
    }

    #[test]
    fn what_cannot_be_loaded_is_told_by_file() {
        let dir = tempfile::tempdir().unwrap();
        write_pair(dir.path(), "one.example");
        std::fs::write(dir.path().join("cert.pem"), "nothing").unwrap();
        let error = PublicTls::load(&public(dir.path())).unwrap_err().to_string();
        assert!(error.contains("cert.pem") && error.contains("certificate"), "{error}");
        std::fs::remove_file(dir.path().join("cert.pem")).unwrap();
        assert!(matches!(PublicTls::load(&public(dir.path())), Err(TlsError::Read { .. })));
    }
}
