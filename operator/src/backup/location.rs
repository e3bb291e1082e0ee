//! Places of repositories as people write them: `s3://bucket/prefix`, `file:///directory`.

use std::{fmt, path::PathBuf, str::FromStr};

use quorumail_backup::{BackupKey, Limits, Location, RepositoryConfig, S3};

/// Where AWS is when no endpoint is named.
const DEFAULT_REGION: &str = "us-east-1";

/// A place, without what is needed to get there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// Of all keys; may be empty.
        prefix: String,
    },
    /// In a directory.
    Directory(PathBuf),
}

/// Text that names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no repository: write s3://BUCKET/PREFIX or file:///DIRECTORY")]
pub struct BadPlace(String);

impl FromStr for Place {
    type Err = BadPlace;

    fn from_str(text: &str) -> Result<Self, BadPlace> {
        let bad = || BadPlace(text.to_owned());
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_matches('/');
            let sound = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            if bucket.is_empty() || !bucket.chars().all(sound) || prefix.split('/').any(|part| part == "..") {
                return Err(bad());
            }
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() });
        }
        match text.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => Ok(Self::Directory(PathBuf::from(path))),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Directory(path) => write!(f, "file://{}", path.display()),
        }
    }
}

/// How to get to a bucket.
#[derive(Clone, Default)]
pub struct Access {
    /// URL; none: that of AWS in the region.
    pub endpoint: Option<String>,
    /// None: the first one of AWS, which most other stores take.
    pub region: Option<String>,
    /// Whether the bucket is a part of the path and not of the host's name.
    pub path_style: bool,
    /// PEM of authorities besides those of the system.
    pub ca_pem: Option<Vec<u8>>,
    /// Access key id.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: String,
}

/// All that is needed to use a repository.
pub fn repository_config(place: &Place, access: Access, key: BackupKey, limits: Limits) -> RepositoryConfig {
    let location = match place {
        Place::Directory(path) => Location::Directory(path.clone()),
        Place::S3 { bucket, prefix } => {
            let region = access.region.unwrap_or_else(|| DEFAULT_REGION.to_owned());
            Location::S3(S3 {
                endpoint: access.endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com")),
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                region,
                access_key: access.access_key,
                secret_key: access.secret_key,
                force_path_style: access.path_style,
                ca_pem: access.ca_pem,
            })
        }
    };
    RepositoryConfig { location, key, limits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for text in ["s3://mail", "s3://mail-1/a/b", "file:///var/backups"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        assert_eq!("s3://mail/a/".parse::<Place>().unwrap().to_string(), "s3://mail/a");
        for text in ["", "mail", "s3://", "s3:///a", "s3://a b/c", "s3://a/../b", "file://relative", "/dir"] {
            let error = text.parse::<Place>().unwrap_err().to_string();
            assert!(error.contains("s3://BUCKET"), "{error}");
        }
    }

    #[test]
    fn a_bucket_without_an_endpoint_is_at_aws() {
        let key = BackupKey::parse(b"correct horse battery staple").unwrap();
        let place = "s3://mail/a".parse().unwrap();
        let access = Access { region: Some("eu-central-1".to_owned()), ..Access::default() };
        let config = repository_config(&place, access, key, Limits::default());
        let Location::S3(s3) = config.location else { panic!("it lies in a bucket") };
        assert_eq!(
            (s3.endpoint.as_str(), s3.prefix.as_str()),
            ("https://s3.eu-central-1.amazonaws.com", "a")
        );
    }
}
