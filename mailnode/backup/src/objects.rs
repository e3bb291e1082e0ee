//! Objects by name: one object store (S3 or a directory) with retries, a rate limit and errors that people understand.

use std::{ops::Range, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::FuturesUnordered};
use object_store::{
    BackoffConfig, Certificate, ClientOptions, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, RetryConfig,
    aws::AmazonS3Builder,
    client::{HttpError, HttpErrorKind},
    local::LocalFileSystem,
    path::Path,
};
use quorumail_store::Timestamp;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    Limits, Location, RepositoryError, S3,
    directory::{self, PIECE_BYTES},
};

/// Longer objects are uploaded in parts of this size.
const PART_BYTES: usize = 8 << 20;
/// Parts of one object in the air.
const PARTS_AT_ONCE: usize = 2;
/// Tries of a whole upload or read, each of requests that are tried again by themselves.
const TRIES: u32 = 5;
/// Waits between tries of a request.
const BACKOFF: BackoffConfig = BackoffConfig {
    init_backoff: Duration::from_millis(100),
    max_backoff: Duration::from_secs(15),
    base: 2.0,
};
const RETRIES: usize = 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest part of what a store answered that is shown.
const MAX_REASON: usize = 400;
/// Lowest rate limit, in bytes a second.
const MIN_RATE: u64 = 1024;

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Below the prefix.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// By the clock of the store.
    pub(crate) modified: Timestamp,
}

/// The objects of one repository.
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// Where it is no object store.
    directory: Option<PathBuf>,
    prefix: String,
    location: String,
    rate: Option<Rate>,
    retry_for: Duration,
}

/// Lets so many bytes a second pass.
struct Rate {
    bytes_per_second: u64,
    free: Mutex<Instant>,
}

impl Rate {
    async fn pass(&self, bytes: u64) {
        let wait_until = {
            let mut free = self.free.lock().await;
            let start = (*free).max(Instant::now());
            *free = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            start
        };
        tokio::time::sleep_until(wait_until).await;
    }
}

impl Objects {
    /// `create`: a directory that is not there is made.
    pub(crate) fn connect(
        location: &Location,
        limits: &Limits,
        create: bool,
    ) -> Result<Self, RepositoryError> {
        let directory = match location {
            Location::S3(_) => None,
            Location::Directory(path) => Some(path.clone()),
        };
        let (store, prefix): (Arc<dyn ObjectStore>, String) = match location {
            Location::S3(s3) => (Arc::new(connect_s3(s3, limits)?), s3.prefix.trim_matches('/').to_owned()),
            Location::Directory(path) => {
                let no_directory = |error: String| {
                    let path = path.display();
                    RepositoryError::BadConfiguration(format!("the directory {path} cannot be used: {error}"))
                };
                if create {
                    std::fs::create_dir_all(path).map_err(|error| no_directory(error.to_string()))?;
                } else if !path.is_dir() {
                    return Err(RepositoryError::NoRepository { location: location.to_string() });
                }
                let store = LocalFileSystem::new_with_prefix(path);
                (Arc::new(store.map_err(|error| no_directory(told(&error)))?.with_fsync(true)), String::new())
            }
        };
        let rate = limits
            .bytes_per_second
            .map(|bytes| Rate { bytes_per_second: bytes.max(MIN_RATE), free: Mutex::new(Instant::now()) });
        Ok(Self {
            store,
            directory,
            prefix,
            location: location.to_string(),
            rate,
            retry_for: limits.retry_for,
        })
    }

    pub(crate) fn location(&self) -> &str {
        &self.location
    }

    /// Writes an object, in parts when it is long; one of the same name is replaced.
    pub(crate) async fn put(&self, name: &str, bytes: Bytes) -> Result<(), RepositoryError> {
        self.retrying("writing", name, || async {
            if let Some(directory) = self.directory.as_ref().filter(|_| bytes.len() > PIECE_BYTES) {
                let written = directory::write(directory.join(name), &bytes, |bytes| self.pass(bytes)).await;
                return written.map_err(|error| object_store::Error::Generic {
                    store: "directory",
                    source: error.into(),
                });
            }
            if bytes.len() > PART_BYTES {
                return self.put_parts(name, &bytes).await;
            }
            self.pass(bytes.len()).await;
            self.store.put(&self.path(name), bytes.clone().into()).await.map(drop)
        })
        .await
    }

    /// Tries again what the retries of single requests below do not cover: requests that are not repeated by themselves, and
    /// uploads that the store has lost.
    async fn retrying<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        action: &'static str,
        name: &str,
        attempt: impl Fn() -> F,
    ) -> Result<T, RepositoryError> {
        let (began, mut tries) = (Instant::now(), 1);
        loop {
            match attempt().await.map_err(|error| self.classify(action, name, &error)) {
                Err(
                    error @ (RepositoryError::StorageFailed { .. } | RepositoryError::Unreachable { .. }),
                ) if tries < TRIES && began.elapsed() < self.retry_for => {
                    tracing::warn!(name, %error, "to be tried again");
                    tokio::time::sleep(Duration::from_millis(100 << tries)).await;
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    async fn put_parts(&self, name: &str, bytes: &Bytes) -> object_store::Result<()> {
        let mut upload = self.store.put_multipart(&self.path(name)).await?;
        let sent = self.send_parts(upload.as_mut(), bytes).await;
        let result = match sent {
            Ok(()) => upload.complete().await.map(drop),
            Err(error) => Err(error),
        };
        if result.is_err() {
            // The store drops what is not completed by itself in time; we need not insist.
            if let Err(error) = upload.abort().await {
                tracing::debug!(name, %error, "an upload that failed could not be given up");
            }
        }
        match result {
            // The store has lost the upload, and not the bucket.
            Err(error @ object_store::Error::NotFound { .. }) if in_full(&error).contains("NoSuchUpload") => {
                Err(object_store::Error::Generic { store: "upload", source: error.into() })
            }
            result => result,
        }
    }

    async fn send_parts(&self, upload: &mut dyn MultipartUpload, bytes: &Bytes) -> object_store::Result<()> {
        let mut under_way = FuturesUnordered::new();
        for start in (0..bytes.len()).step_by(PART_BYTES) {
            if under_way.len() >= PARTS_AT_ONCE {
                under_way.next().await.transpose()?;
            }
            let part = bytes.slice(start..bytes.len().min(start + PART_BYTES));
            self.pass(part.len()).await;
            under_way.push(upload.put_part(part.into()));
        }
        under_way.try_collect().await
    }

    /// Writes an object unless there is one of this name; answers whether it did.
    pub(crate) async fn put_new(&self, name: &str, bytes: Bytes) -> Result<bool, RepositoryError> {
        let made = self.retrying("writing", name, || async {
            self.pass(bytes.len()).await;
            match self.store.put_opts(&self.path(name), bytes.clone().into(), PutMode::Create.into()).await {
                Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
                result => result.map(|_| true),
            }
        });
        // Ours all the same, when only the answer to a first try was lost.
        Ok(made.await? || self.get(name).await? == bytes)
    }

    pub(crate) async fn get(&self, name: &str) -> Result<Bytes, RepositoryError> {
        self.retrying("reading", name, || async {
            let found = self.store.get(&self.path(name)).await?;
            let bytes = found.bytes().await?;
            // Once it is here: the server does not wait for us.
            self.pass(bytes.len()).await;
            Ok(bytes)
        })
        .await
    }

    /// A part of an object; shorter when the object ends before.
    pub(crate) async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, RepositoryError> {
        self.retrying("reading", name, || async {
            self.pass(usize::try_from(range.end - range.start).unwrap_or(usize::MAX)).await;
            self.store.get_range(&self.path(name), range.clone()).await
        })
        .await
    }

    /// All objects whose names start with `prefix`, which ends with a slash or is empty; ascending by name. Some 200 bytes
    /// of memory each: a repository of a terabyte has 65,000 packs.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<Listed>, RepositoryError> {
        self.list_after(prefix, None).await
    }

    /// The same, only of names that come after another one.
    pub(crate) async fn list_after(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<Listed>, RepositoryError> {
        let path = self.path(prefix);
        let after = after.map(|after| self.path(after));
        let below =
            if self.prefix.is_empty() { 0 } else { Path::from(self.prefix.as_str()).as_ref().len() + 1 };
        let listed = |meta: ObjectMeta| Listed {
            name: meta.location.as_ref().get(below..).unwrap_or_default().to_owned(),
            bytes: meta.size,
            modified: Timestamp(meta.last_modified.timestamp_millis()),
        };
        let found = self.retrying("listing", prefix, || async {
            let prefix = (!path.as_ref().is_empty()).then_some(&path);
            let found = match &after {
                Some(after) => self.store.list_with_offset(prefix, after),
                None => self.store.list(prefix),
            };
            found.map_ok(listed).try_collect::<Vec<_>>().await
        });
        let mut found = found.await?;
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Removes an object; there may be none.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), RepositoryError> {
        self.retrying("removing", name, || async {
            match self.store.delete(&self.path(name)).await {
                Err(object_store::Error::NotFound { .. }) => Ok(()),
                result => result,
            }
        })
        .await
    }

    async fn pass(&self, bytes: usize) {
        if let Some(rate) = &self.rate {
            rate.pass(bytes as u64).await;
        }
    }

    fn path(&self, name: &str) -> Path {
        Path::from(format!("{}/{name}", self.prefix))
    }

    fn classify(&self, action: &'static str, name: &str, error: &object_store::Error) -> RepositoryError {
        use object_store::Error;
        let location = self.location.clone();
        let whole = in_full(error);
        let reason = told(error);
        if whole.contains("NoSuchBucket") {
            return RepositoryError::WrongBucket { location };
        }
        if is_unreachable(error) {
            return RepositoryError::Unreachable { location, reason };
        }
        const REFUSED: [&str; 7] = [
            "AccessDenied",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "AuthorizationHeaderMalformed",
            "PermanentRedirect",
            "InvalidRegion",
            "XAdminUserNotFound",
        ];
        match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                RepositoryError::AccessDenied { location, reason }
            }
            _ if REFUSED.iter().any(|code| whole.contains(code)) => {
                RepositoryError::AccessDenied { location, reason }
            }
            // A gateway in front of the store has answers of its own for what it does not find.
            Error::NotFound { .. } if !self.location.starts_with("s3://") || whole.contains("NoSuchKey") => {
                RepositoryError::Missing { object: name.to_owned() }
            }
            // Behind its end: of a directory, and of S3 (416).
            _ if whole.contains("Requested range was invalid") || whole.contains("InvalidRange") => {
                RepositoryError::damaged(name, "it is cut off")
            }
            _ => RepositoryError::StorageFailed { action, object: name.to_owned(), reason },
        }
    }
}

fn connect_s3(s3: &S3, limits: &Limits) -> Result<impl ObjectStore, RepositoryError> {
    let bad = RepositoryError::BadConfiguration;
    if !s3.endpoint.starts_with("http://") && !s3.endpoint.starts_with("https://") {
        return Err(bad(format!("the endpoint `{}` must start with https:// or http://", s3.endpoint)));
    }
    if s3.bucket.is_empty() {
        return Err(bad("no bucket is given; name the bucket that backups go to".to_owned()));
    }
    let mut options = ClientOptions::new()
        .with_allow_http(s3.endpoint.starts_with("http://"))
        .with_timeout(limits.request_timeout)
        .with_connect_timeout(CONNECT_TIMEOUT.min(limits.request_timeout));
    if let Some(pem) = &s3.ca_pem {
        let certificates = Certificate::from_pem_bundle(pem);
        let certificates =
            certificates.map_err(|error| bad(format!("the CA cannot be read: {}", told(&error))))?;
        if certificates.is_empty() {
            return Err(bad("the CA holds no certificate; give it as PEM".to_owned()));
        }
        options = options.with_no_system_certificates(true);
        options = certificates.into_iter().fold(options, ClientOptions::with_root_certificate);
    }
    // Installed already, as a rule; this is for programs that only use a repository.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let region = if s3.region.is_empty() { "us-east-1" } else { &s3.region };
    AmazonS3Builder::new()
        .with_client_options(options)
        .with_retry(RetryConfig { backoff: BACKOFF, max_retries: RETRIES, retry_timeout: limits.retry_for })
        .with_endpoint(s3.endpoint.trim_end_matches('/'))
        .with_bucket_name(&s3.bucket)
        .with_region(region)
        .with_access_key_id(&s3.access_key)
        .with_secret_access_key(&s3.secret_key)
        .with_virtual_hosted_style_request(!s3.force_path_style)
        .build()
        .map_err(|error| bad(format!("the object store cannot be used: {}", told(&error))))
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// An error with its causes, for people.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut told = in_full(error);
    if let Some((end, _)) = told.char_indices().nth(MAX_REASON) {
        told.truncate(end);
    }
    told
}

/// An error with its causes, each once.
fn in_full(error: &(dyn std::error::Error + 'static)) -> String {
    let mut told = String::new();
    for cause in causes(error) {
        let cause = cause.to_string();
        if !told.contains(&cause) {
            told = if told.is_empty() { cause } else { format!("{told}: {cause}") };
        }
    }
    told
}

fn is_unreachable(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).any(|cause| {
        cause.downcast_ref::<HttpError>().is_some_and(|error| {
            matches!(error.kind(), HttpErrorKind::Connect | HttpErrorKind::Timeout | HttpErrorKind::Request)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(dir: &std::path::Path) -> Objects {
        Objects::connect(&Location::Directory(dir.to_owned()), &Limits::default(), true).unwrap()
    }

    #[tokio::test]
    async fn objects_in_a_directory_come_back_and_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let objects = objects(&dir.path().join("new"));
        let long = Bytes::from(vec![7; PART_BYTES * 2 + 5]);
        objects.put("packs/aa/b", long.clone()).await.unwrap();
        assert_eq!(objects.get("packs/aa/b").await.unwrap(), long);
        assert_eq!(objects.get_range("packs/aa/b", 3..9).await.unwrap(), long.slice(3..9));
        assert!(objects.put_new("a", Bytes::from_static(b"1")).await.unwrap());
        assert!(objects.put_new("a", Bytes::from_static(b"1")).await.unwrap(), "the same again is ours");
        assert!(!objects.put_new("a", Bytes::from_static(b"2")).await.unwrap());
        let names: Vec<_> = objects.list("").await.unwrap().into_iter().map(|found| found.name).collect();
        assert_eq!(names, ["a", "packs/aa/b"]);
        objects.delete("a").await.unwrap();
        objects.delete("a").await.unwrap();
        assert_eq!(objects.get("a").await.unwrap_err().reason(), "Missing");
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_limit_holds() {
        let rate = Rate { bytes_per_second: 1000, free: Mutex::new(Instant::now()) };
        let start = Instant::now();
        for _ in 0..11 {
            rate.pass(500).await;
        }
        assert_eq!(start.elapsed().as_millis() / 100, 50);
    }

    #[test]
    fn a_configuration_that_cannot_work_says_what_to_do() {
        let s3 = S3 {
            endpoint: "s3.example.org".into(),
            bucket: "b".into(),
            prefix: String::new(),
            region: String::new(),
            access_key: String::new(),
            secret_key: String::new(),
            force_path_style: true,
            ca_pem: None,
        };
        let problem = |s3: S3| {
            let error =
                Objects::connect(&Location::S3(s3), &Limits::default(), false).err().expect("it is refused");
            assert_eq!(error.reason(), "BadConfiguration");
            error.to_string()
        };
        assert!(problem(s3.clone()).contains("https://"));
        let s3 = S3 { endpoint: "https://s3".into(), ..s3 };
        assert!(problem(S3 { bucket: String::new(), ..s3.clone() }).contains("bucket"));
        assert!(problem(S3 { ca_pem: Some(b"no PEM".to_vec()), ..s3 }).contains("CA"));
    }
}
