//! Where a repository lies, what opens it, and what using it may cost.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::RepositoryError;

/// Shortest passphrase, in characters.
pub const MIN_PASSPHRASE: usize = 20;
/// Longest key that is read, in bytes.
const MAX_KEY: usize = 4096;

/// All that is needed to use a repository.
#[derive(Debug, Clone)]
pub struct RepositoryConfig {
    /// Where it lies.
    pub location: Location,
    /// What opens it.
    pub key: BackupKey,
    /// What using it may cost.
    pub limits: Limits,
}

/// Where a repository lies.
#[derive(Debug, Clone)]
pub enum Location {
    /// In an object store.
    S3(S3),
    /// In a directory, a mounted volume as a rule.
    Directory(PathBuf),
}

/// An object store that speaks S3.
#[derive(Clone)]
pub struct S3 {
    /// URL, `https://s3.example.org`; with `http` nothing but what is sealed anyway is seen on the way.
    pub endpoint: String,
    /// The bucket, which must exist.
    pub bucket: String,
    /// Path within the bucket; may be empty.
    pub prefix: String,
    /// Empty: `us-east-1`, which most stores other than AWS take.
    pub region: String,
    /// Access key id.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: String,
    /// Bucket in the path instead of the host's name.
    pub force_path_style: bool,
    /// PEM of the CAs to trust instead of the system's.
    pub ca_pem: Option<Vec<u8>>,
}

/// What using a repository may cost.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Up and down together, in bytes a second; none: as fast as it goes. At least 1 KiB/s.
    pub bytes_per_second: Option<u64>,
    /// Ends each long call (a group's backup, a load, a verification, a prune); none: no end.
    pub deadline: Option<Duration>,
    /// Longest wait for one answer of the object store.
    pub request_timeout: Duration,
    /// For so long a failed request is tried again.
    pub retry_for: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes_per_second: None,
            deadline: None,
            request_timeout: Duration::from_secs(120),
            retry_for: Duration::from_secs(120),
        }
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3")
            .field("endpoint", &self.endpoint)
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("region", &self.region)
            .field("force_path_style", &self.force_path_style)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3(S3 { endpoint, bucket, prefix, .. }) => {
                write!(f, "s3://{bucket}/{} at {endpoint}", prefix.trim_matches('/'))
            }
            Self::Directory(path) => path.display().fmt(f),
        }
    }
}

/// What the user keeps to open a repository.
#[derive(Clone)]
pub struct BackupKey(Arc<Kind>);

pub(crate) enum Kind {
    /// 256 bits that nobody can guess.
    Random([u8; 32]),
    /// Words that people chose; stretched by argon2id.
    Passphrase(String),
}

impl fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupKey")
    }
}

impl BackupKey {
    /// Reads what a Secret or a file holds: hex or base64 of 32 bytes, 32 bytes that are no text, or a passphrase of at
    /// least [`MIN_PASSPHRASE`] characters. White space around text does not count.
    ///
    /// # Errors
    /// [`RepositoryError::BadConfiguration`] for everything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, RepositoryError> {
        let bad =
            |reason: &str| Err(RepositoryError::BadConfiguration(format!("the encryption key {reason}")));
        if bytes.len() > MAX_KEY {
            return bad("is longer than 4096 bytes; give 32 random bytes, in base64 or hex if you like");
        }
        let text =
            std::str::from_utf8(bytes).ok().map(str::trim).filter(|text| !text.chars().any(char::is_control));
        let Some(text) = text else {
            return match bytes.try_into() {
                Ok(key) => Ok(Self(Arc::new(Kind::Random(key)))),
                Err(_) => bad("is neither text nor 32 bytes; give 32 random bytes, or their base64 or hex"),
            };
        };
        if let Some(key) = hex(text).or_else(|| BASE64_STANDARD.decode(text).ok()?.try_into().ok()) {
            return Ok(Self(Arc::new(Kind::Random(key))));
        }
        if text.chars().count() < MIN_PASSPHRASE {
            return bad(
                "is a passphrase of fewer than 20 characters; give a longer one, or 32 random bytes in base64",
            );
        }
        Ok(Self(Arc::new(Kind::Passphrase(text.to_owned()))))
    }

    /// What [`BackupKey::parse`] makes the same key of, to hand it on to another program.
    pub fn to_text(&self) -> String {
        match &*self.0 {
            Kind::Random(key) => BASE64_STANDARD.encode(key),
            Kind::Passphrase(text) => text.clone(),
        }
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.0
    }
}

fn hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut key = [0; 32];
    for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(bytes: &[u8]) -> Option<[u8; 32]> {
        match BackupKey::parse(bytes).ok()?.kind() {
            Kind::Random(key) => Some(*key),
            Kind::Passphrase(_) => None,
        }
    }

    #[test]
    fn a_key_is_the_same_in_all_its_forms() {
        let key: [u8; 32] = std::array::from_fn(|i| i as u8);
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let base64 = BASE64_STANDARD.encode(key) + "\n";
        for form in [&key[..], hex.as_bytes(), hex.to_uppercase().as_bytes(), base64.as_bytes()] {
            assert_eq!(random(form), Some(key));
        }
        let parsed = BackupKey::parse(&key).unwrap();
        assert_eq!(random(parsed.to_text().as_bytes()), Some(key));
    }

    #[test]
    fn a_passphrase_must_be_long_and_bytes_must_be_32() {
        assert!(matches!(
            BackupKey::parse(b" correct horse battery staple\n").unwrap().kind(),
            Kind::Passphrase(words) if words == "correct horse battery staple"
        ));
        for bad in [&b"too short"[..], b"", &[0; 31], &[0xff; 33], &[b'x'; 5000]] {
            let error = BackupKey::parse(bad).unwrap_err();
            assert!(error.reason() == "BadConfiguration" && error.to_string().contains("give"), "{error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let s3 = S3 {
            endpoint: "https://s3".into(),
            bucket: "b".into(),
            prefix: String::new(),
            region: String::new(),
            access_key: "AK-known".into(),
            secret_key: "SK-secret".into(),
            force_path_style: true,
            ca_pem: None,
        };
        let key = BackupKey::parse(b"correct horse battery staple").unwrap();
        let config = RepositoryConfig { location: Location::S3(s3), key, limits: Limits::default() };
        let shown = format!("{config:?} {}", config.location);
        assert!(!shown.contains("SK-secret") && !shown.contains("horse"), "{shown}");
    }
}
