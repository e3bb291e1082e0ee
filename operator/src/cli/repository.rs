//! How the command line finds a repository of backups, and what opens it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use quorumail_backup::{BackupKey, Limits, RepositoryConfig};

use super::Failure;
use crate::backup::{
    location::Access,
    {Place, repository_config},
};

/// Longest file with a key or a credential that is read, in bytes.
const MAX_SECRET: u64 = 64 * 1024;
/// Where the environment names the file with the key.
const KEY_FILE: &str = "QUORUMAIL_BACKUP_KEY_FILE";

/// What opens a repository. Credentials come from the environment or from files, never from arguments, which other
/// people on the machine can see.
#[derive(Debug, Clone, Args)]
pub(super) struct AccessArgs {
    /// File with the key of the repository: 32 random bytes, their base64 or hex, or a passphrase.
    #[arg(long, value_name = "FILE", env = KEY_FILE)]
    key_file: Option<PathBuf>,
    /// URL of the object store [default: AWS].
    #[arg(long, value_name = "URL", env = "AWS_ENDPOINT_URL")]
    endpoint: Option<String>,
    /// Region of the bucket [default: us-east-1].
    #[arg(long, env = "AWS_REGION")]
    region: Option<String>,
    /// Writes the bucket into the path, as most stores but AWS want it.
    #[arg(long)]
    path_style: bool,
    /// PEM file of the authority that signed the object store's certificate.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// File with the access key id [default: AWS_ACCESS_KEY_ID].
    #[arg(long, value_name = "FILE")]
    access_key_file: Option<PathBuf>,
    /// File with the secret access key [default: AWS_SECRET_ACCESS_KEY].
    #[arg(long, value_name = "FILE")]
    secret_key_file: Option<PathBuf>,
    /// Bound on what is transferred, in bytes a second, as `20Mi`.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    rate: Option<u64>,
    /// Seconds for which a request that fails is tried again.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    retry_for: u32,
}

/// A repository that is written to.
#[derive(Debug, Clone, Args)]
pub(super) struct ToArgs {
    /// The repository: s3://BUCKET/PREFIX or file:///DIRECTORY; made where there is none.
    #[arg(long = "to", visible_alias = "from", value_name = "REPOSITORY")]
    place: Place,
    #[command(flatten)]
    access: AccessArgs,
}

/// A repository that is read.
#[derive(Debug, Clone, Args)]
pub(super) struct FromArgs {
    /// The repository: s3://BUCKET/PREFIX or file:///DIRECTORY.
    #[arg(long = "from", visible_alias = "to", value_name = "REPOSITORY")]
    place: Place,
    #[command(flatten)]
    access: AccessArgs,
}

impl ToArgs {
    pub(super) fn config(&self) -> Result<RepositoryConfig, Failure> {
        self.access.config(&self.place)
    }

    /// Bytes a second; zero: no bound.
    pub(super) fn rate(&self) -> u64 {
        self.access.rate.unwrap_or(0)
    }
}

impl FromArgs {
    pub(super) fn config(&self) -> Result<RepositoryConfig, Failure> {
        self.access.config(&self.place)
    }
}

impl AccessArgs {
    fn config(&self, place: &Place) -> Result<RepositoryConfig, Failure> {
        let key_file = self.key_file.as_deref().ok_or_else(|| {
            Failure::Usage(format!(
                "say --key-file, or set {KEY_FILE}; `quorumail backup key new` makes a key"
            ))
        })?;
        let key = read_key(key_file)?;
        let access = match place {
            Place::Directory(_) => Access::default(),
            Place::S3 { .. } => Access {
                endpoint: self.endpoint.clone(),
                region: self.region.clone(),
                path_style: self.path_style,
                ca_pem: self.ca_file.as_deref().map(read_secret).transpose()?,
                access_key: credential(
                    self.access_key_file.as_deref(),
                    "AWS_ACCESS_KEY_ID",
                    "--access-key-file",
                )?,
                secret_key: credential(
                    self.secret_key_file.as_deref(),
                    "AWS_SECRET_ACCESS_KEY",
                    "--secret-key-file",
                )?,
            },
        };
        let limits = Limits {
            bytes_per_second: self.rate,
            retry_for: Duration::from_secs(self.retry_for.into()),
            ..Limits::default()
        };
        Ok(repository_config(place, access, key, limits))
    }
}

/// Reads a key.
pub(super) fn read_key(path: &Path) -> Result<BackupKey, Failure> {
    BackupKey::parse(&read_secret(path)?)
        .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}

/// Makes a key; into a file of its own that only its owner can read, or onto standard output.
pub(super) fn new_key(file: Option<&Path>) -> Result<(), Failure> {
    let key: [u8; 32] = rand::random();
    let text = STANDARD.encode(key);
    let Some(path) = file else { return super::output::line(&text) };
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let write = |mut file: File| {
        writeln!(file, "{text}")?;
        file.sync_all()
    };
    made.and_then(write).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            Failure::Usage(format!("{} is there already; a key is never overwritten", path.display()))
        }
        _ => Failure::Failed(format!("failed to write {}: {error}", path.display())),
    })?;
    eprintln!(
        "keep {} apart from the backups: without it nobody can read them, and nobody can make it again",
        path.display()
    );
    Ok(())
}

fn credential(file: Option<&Path>, variable: &str, flag: &str) -> Result<String, Failure> {
    let text = match file {
        Some(path) => {
            let bytes = read_secret(path)?;
            String::from_utf8(bytes).map_err(|_| Failure::Usage(format!("{} is no text", path.display())))?
        }
        None => std::env::var(variable)
            .map_err(|_| Failure::Usage(format!("set {variable}, or say {flag}: s3:// needs credentials")))?,
    };
    Ok(text.trim().to_owned())
}

fn read_secret(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error: io::Error| Failure::Usage(format!("failed to read {}: {error}", path.display()));
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(MAX_SECRET).read_to_end(&mut bytes)).map_err(failed)?;
    Ok(bytes)
}

/// Sizes as in resources: `500`, `20Mi`, `1Gi`.
fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size: write bytes, or 512Ki, 20Mi, 1Gi");
    let (number, unit) = match text {
        _ if text.ends_with("Ki") => (&text[..text.len() - 2], 1u64 << 10),
        _ if text.ends_with("Mi") => (&text[..text.len() - 2], 1 << 20),
        _ if text.ends_with("Gi") => (&text[..text.len() - 2], 1 << 30),
        _ => (text, 1),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(unit).filter(|size| *size > 0).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_opens_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        new_key(Some(&path)).unwrap();
        let key = read_key(&path).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let error = new_key(Some(&path)).unwrap_err();
        assert!(matches!(&error, Failure::Usage(text) if text.contains("never overwritten")), "{error}");
        assert_eq!(read_key(&path).unwrap().to_text(), key.to_text());
    }

    #[test]
    fn sizes_are_read_as_in_resources() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("20Mi"), Ok(20 << 20));
        for bad in ["", "0", "x", "-1", "1.5Mi", "99999999999Gi"] {
            assert!(size(bad).unwrap_err().contains("20Mi"), "{bad}");
        }
    }
}
