//! From a bucket in a spec, or a volume that is served as one, and the Secrets that it refers to, to what opens the repository in it.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use quorumail_backup::{BackupKey, Limits, Location, RepositoryConfig, S3};
use quorumail_crds::{
    BackupPolicy,
    backup::{self, EncryptionKeyRef},
    condition::reason,
};

use crate::{run::Failure, volume};

/// Key of the Secret with the credentials: who it is.
pub const ACCESS_KEY: &str = "accessKeyId";
/// Key of the Secret with the credentials: the secret.
pub const SECRET_KEY: &str = "secretAccessKey";
/// Key of the Secret with the authorities.
pub const CA: &str = "ca.crt";

/// The bucket of a policy: the one that it names, or what its volume is served as.
pub fn bucket_of(policy: &BackupPolicy) -> Result<backup::S3, Failure> {
    match (&policy.spec.target.s3, &policy.spec.target.volume) {
        (Some(s3), None) => Ok(s3.clone()),
        (None, Some(_)) => Ok(volume::bucket(policy)),
        _ => Err(Failure::new(reason::INVALID_SPEC, "spec.target needs exactly one of s3 and volume")),
    }
}

/// A bucket, and the key of what is in it.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Where.
    pub s3: &'a backup::S3,
    /// With which key.
    pub key: &'a EncryptionKeyRef,
}

impl<'a> Wanted<'a> {
    /// Names of the Secrets that it refers to.
    pub fn secrets(&self) -> impl Iterator<Item = &'a str> {
        let ca = self.s3.ca_secret_ref.as_ref().map(|ca| ca.name.as_str());
        [self.s3.credentials_secret_ref.name.as_str(), self.key.name.as_str()].into_iter().chain(ca)
    }
}

/// Where a bucket and prefix are, to tell whether two runs meet there.
pub fn place(s3: &backup::S3) -> String {
    format!("{}/{}/{}", s3.endpoint.trim_end_matches('/'), s3.bucket, s3.prefix.trim_end_matches('/'))
}

/// The same of a policy; empty where its target is neither, with which no run begins.
pub fn place_of(policy: &BackupPolicy) -> String {
    bucket_of(policy).map(|s3| place(&s3)).unwrap_or_default()
}

/// Reads the Secrets.
pub async fn open(
    client: &Client,
    namespace: &str,
    wanted: Wanted<'_>,
    limits: Limits,
) -> Result<RepositoryConfig, Failure> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let read = async |name: &str| match api.get_opt(name).await {
        Ok(Some(secret)) => Ok(secret),
        Ok(None) => Err(missing(name)),
        Err(error) => Err(Failure::new(reason::FAILED, format!("failed to read Secret {name}: {error}"))),
    };
    let credentials = read(&wanted.s3.credentials_secret_ref.name).await?;
    let key = read(&wanted.key.name).await?;
    let ca = match &wanted.s3.ca_secret_ref {
        Some(ca) => Some(read(&ca.name).await?),
        None => None,
    };
    config(wanted, &credentials, &key, ca.as_ref(), limits)
}

/// What is told of a Secret that is not there.
pub fn missing(name: &str) -> Failure {
    Failure::new(reason::SECRET_NOT_FOUND, format!("Secret {name} does not exist; make it"))
}

fn config(
    wanted: Wanted<'_>,
    credentials: &Secret,
    key: &Secret,
    ca: Option<&Secret>,
    limits: Limits,
) -> Result<RepositoryConfig, Failure> {
    let Wanted { s3, key: reference } = wanted;
    let names = &s3.credentials_secret_ref.name;
    let key = BackupKey::parse(value(key, &reference.name, &reference.key)?).map_err(|error| {
        let text = format!("key `{}` of Secret {}: {error}", reference.key, reference.name);
        Failure::new(reason::SECRET_INVALID, text)
    })?;
    let ca_pem = match (&s3.ca_secret_ref, ca) {
        (Some(reference), Some(ca)) => Some(value(ca, &reference.name, CA)?.to_vec()),
        _ => None,
    };
    let location = Location::S3(S3 {
        endpoint: s3.endpoint.clone(),
        bucket: s3.bucket.clone(),
        prefix: s3.prefix.trim_end_matches('/').to_owned(),
        region: s3.region.clone(),
        access_key: text(credentials, names, ACCESS_KEY)?,
        secret_key: text(credentials, names, SECRET_KEY)?,
        force_path_style: s3.force_path_style,
        ca_pem,
    });
    Ok(RepositoryConfig { location, key, limits })
}

fn value<'s>(secret: &'s Secret, name: &str, key: &str) -> Result<&'s [u8], Failure> {
    let value = secret.data.as_ref().and_then(|data| data.get(key)).filter(|value| !value.0.is_empty());
    value.map(|value| value.0.as_slice()).ok_or_else(|| {
        Failure::new(reason::SECRET_NOT_FOUND, format!("Secret {name} has no key `{key}`; add it"))
    })
}

fn text(secret: &Secret, name: &str, key: &str) -> Result<String, Failure> {
    let text = std::str::from_utf8(value(secret, name, key)?).map_err(|_| {
        Failure::new(
            reason::SECRET_INVALID,
            format!("key `{key}` of Secret {name} is no text; put the S3 credential there"),
        )
    })?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn s3() -> backup::S3 {
        serde_yaml::from_str(
            "{endpoint: 'https://s3.example.org', bucket: b, prefix: mail/, credentialsSecretRef: {name: s3}, caSecretRef: {name: ca}}",
        )
        .unwrap()
    }

    fn secret(entries: &[(&str, &str)]) -> Secret {
        let entry = |(key, value): &(&str, &str)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()));
        Secret { data: Some(entries.iter().map(entry).collect()), ..Secret::default() }
    }

    fn build(credentials: &Secret, key: &Secret, ca: &Secret) -> Result<RepositoryConfig, Failure> {
        let (s3, reference) = (s3(), EncryptionKeyRef { name: "backup-key".into(), key: "key".into() });
        config(Wanted { s3: &s3, key: &reference }, credentials, key, Some(ca), Limits::default())
    }

    #[test]
    fn secrets_open_the_repository() {
        let credentials = secret(&[(ACCESS_KEY, "AKIA\n"), (SECRET_KEY, "s3cr3t")]);
        let key = secret(&[("key", "a passphrase that is long enough")]);
        let config = build(&credentials, &key, &secret(&[(CA, "PEM")])).unwrap();
        let Location::S3(s3) = config.location else { panic!("not S3") };
        assert_eq!((s3.access_key.as_str(), s3.prefix.as_str()), ("AKIA", "mail"), "as `echo` writes it");
        assert_eq!((s3.ca_pem.as_deref(), s3.force_path_style), (Some(b"PEM".as_slice()), true));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let credentials = secret(&[(ACCESS_KEY, "AKIA"), (SECRET_KEY, "s3cr3t")]);
        let (key, ca) = (secret(&[("key", "a passphrase that is long enough")]), secret(&[(CA, "PEM")]));
        let failure = build(&secret(&[(ACCESS_KEY, "AKIA")]), &key, &ca).unwrap_err();
        assert_eq!(failure.reason, reason::SECRET_NOT_FOUND);
        assert_eq!(failure.message, "Secret s3 has no key `secretAccessKey`; add it");
        let failure = build(&credentials, &secret(&[("key", "short")]), &ca).unwrap_err();
        assert_eq!(failure.reason, reason::SECRET_INVALID);
        assert!(failure.message.starts_with("key `key` of Secret backup-key: "), "{}", failure.message);
        let failure = build(&credentials, &key, &secret(&[])).unwrap_err();
        assert_eq!(failure.message, "Secret ca has no key `ca.crt`; add it");
    }
}
