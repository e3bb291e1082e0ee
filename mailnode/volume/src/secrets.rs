//! Credentials and certificates from files, which are read again when they change, as mounted Secrets do.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use s3s::{S3Error, S3ErrorCode, S3Result, auth::SecretKey};

use crate::{ACCESS_KEY_FILE, CERT_FILE, KEY_FILE, SECRET_KEY_FILE, VolumeError};

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

fn read(path: &Path) -> Result<Vec<u8>, VolumeError> {
    let problem = |problem: String| VolumeError::File { path: path.to_owned(), problem };
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_FILE => Err(problem("it is longer than 1 MiB".to_owned())),
        _ => std::fs::read(path).map_err(|error| problem(error.to_string())),
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Pair {
    access_key: String,
    secret_key: String,
}

/// Who may do what the server does: whoever has the one pair of keys.
pub(crate) struct Credentials {
    directory: PathBuf,
    pair: RwLock<Pair>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Credentials {
    pub(crate) fn read(directory: &Path) -> Result<Self, VolumeError> {
        Ok(Self { directory: directory.to_owned(), pair: RwLock::new(read_pair(directory)?) })
    }

    /// Takes up what the files say now.
    pub(crate) fn read_again(&self) -> Result<(), VolumeError> {
        let found = read_pair(&self.directory)?;
        if *self.pair.read() != found {
            *self.pair.write() = found;
            tracing::info!("the credentials have changed");
        }
        Ok(())
    }
}

fn read_pair(directory: &Path) -> Result<Pair, VolumeError> {
    let text = |file: &str| {
        let path = directory.join(file);
        let text = String::from_utf8(read(&path)?).ok().map(|text| text.trim().to_owned());
        let text = text.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()));
        let problem = "it holds no key; write one of letters, digits and signs to it".to_owned();
        text.ok_or(VolumeError::File { path, problem })
    };
    Ok(Pair { access_key: text(ACCESS_KEY_FILE)?, secret_key: text(SECRET_KEY_FILE)? })
}

#[async_trait::async_trait]
impl s3s::auth::S3Auth for Credentials {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let pair = self.pair.read();
        if pair.access_key != access_key {
            return Err(S3Error::with_message(S3ErrorCode::InvalidAccessKeyId, "nobody has this access key"));
        }
        Ok(SecretKey::from(pair.secret_key.as_str()))
    }
}

/// A certificate that may change.
#[derive(Debug)]
pub(crate) struct Certificate {
    directory: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    pub(crate) fn read(directory: &Path) -> Result<Self, VolumeError> {
        let current = RwLock::new(Arc::new(read_certificate(directory)?));
        Ok(Self { directory: directory.to_owned(), current })
    }

    /// Takes up what the files say now: for connections that are made from now on.
    pub(crate) fn read_again(&self) -> Result<(), VolumeError> {
        let found = read_certificate(&self.directory)?;
        if self.current.read().cert != found.cert {
            *self.current.write() = Arc::new(found);
            tracing::info!("the certificate has changed");
        }
        Ok(())
    }
}

fn read_certificate(directory: &Path) -> Result<CertifiedKey, VolumeError> {
    let (cert_path, key_path) = (directory.join(CERT_FILE), directory.join(KEY_FILE));
    let problem = |path: &Path, problem: &str| VolumeError::File {
        path: path.to_owned(),
        problem: format!("{problem}; write PEM to it"),
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(&cert_path)?).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| problem(&cert_path, "it holds no certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?);
    let key = key.map_err(|_| problem(&key_path, "it holds no private key"))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key);
    let key = key.map_err(|_| problem(&key_path, "it holds a key of a sort that is not known"))?;
    let certified = CertifiedKey::new(chain, key);
    // A Secret may be changed between the two files.
    certified.keys_match().map_err(|_| problem(&key_path, "it does not belong to the certificate"))?;
    Ok(certified)
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }
}

#[cfg(test)]
mod tests {
    use s3s::auth::S3Auth as _;

    use super::*;

    #[tokio::test]
    async fn credentials_follow_their_files_and_are_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let write = |access: &str, secret: &str| {
            std::fs::write(dir.path().join(ACCESS_KEY_FILE), access).unwrap();
            std::fs::write(dir.path().join(SECRET_KEY_FILE), secret).unwrap();
        };
        assert!(Credentials::read(dir.path()).unwrap_err().to_string().contains(ACCESS_KEY_FILE));
        write("ak", "sk-one\n");
        let credentials = Credentials::read(dir.path()).unwrap();
        assert_eq!(credentials.get_secret_key("ak").await.unwrap().expose(), "sk-one");
        assert!(credentials.get_secret_key("other").await.is_err());
        write("ak", "sk-two");
        credentials.read_again().unwrap();
        assert_eq!(credentials.get_secret_key("ak").await.unwrap().expose(), "sk-two");
        write("ak", " ");
        let error = credentials.read_again().unwrap_err().to_string();
        assert!(error.contains(SECRET_KEY_FILE) && !format!("{credentials:?}").contains("sk-"), "{error}");
        assert_eq!(credentials.get_secret_key("ak").await.unwrap().expose(), "sk-two", "it goes on");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_and_the_one_before_stays() {
        let dir = tempfile::tempdir().unwrap();
        let make = || rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let write = |cert: &rcgen::CertifiedKey<rcgen::KeyPair>,
                     key: &rcgen::CertifiedKey<rcgen::KeyPair>| {
            std::fs::write(dir.path().join(CERT_FILE), cert.cert.pem()).unwrap();
            std::fs::write(dir.path().join(KEY_FILE), key.signing_key.serialize_pem()).unwrap();
        };
        let (first, second) = (make(), make());
        write(&first, &first);
        let certificate = Certificate::read(dir.path()).unwrap();
        let serves = |made: &rcgen::CertifiedKey<rcgen::KeyPair>| {
            certificate.current.read().cert == [made.cert.der().clone()]
        };
        write(&second, &first);
        assert!(certificate.read_again().unwrap_err().to_string().contains("does not belong"));
        assert!(serves(&first));
        write(&second, &second);
        certificate.read_again().unwrap();
        assert!(serves(&second));
    }
}
