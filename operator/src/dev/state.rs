//! The directory in which `quorumail dev` keeps what it made: certificates, generated passwords, the nodes' data.
//!
//! With `--data` it stays, and a later run goes on with it; without, it is a temporary directory that goes at the end.
//!
//! ```text
//! lock               held while a `quorumail dev` runs here
//! cluster.json       which nodes there are; what `quorumail --dev DIR` reads
//! credentials.json   passwords made for mailboxes without passwordSecretRef, by address
//! dkim.json          DKIM keys, by domain; mode 0600
//! dns.json           the DNS records that the domains need, by domain
//! pki/*/             ca.crt, tls.crt, tls.key of authority, node, operator and public
//! relay-password     of the relay's Secret, where there is one
//! node-N/            mailnode.yaml, mailnode.log, and data/
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rand::Rng as _;
use serde::{Deserialize, Serialize};

use quorumail_crds::maildomain::DnsRecord;

use crate::dkim::StoredKey;
use crate::{
    mailcluster::certificates::{CA_KEY, CERT_KEY, KEY_KEY},
    pki::{self, CertifiedPem, PkiError, Role},
    shape::Shape,
};

/// Passwords by address. Mode 0600 from its beginning.
pub const CREDENTIALS: &str = "credentials.json";
/// Which nodes there are.
const CLUSTER: &str = "cluster.json";
/// Characters of a generated password: none that are read for another; 20 of 56 are more than 116 bits.
const PASSWORD_ALPHABET: &[u8] = b"abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
const PASSWORD_LENGTH: usize = 20;

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The operating system refused something.
    #[error("failed to {action} {}: {source}", path.display())]
    Io {
        /// What was being attempted.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another run has it.
    #[error("another quorumail dev runs in {}", .0.display())]
    InUse(PathBuf),
    /// It is of another shape than what is asked.
    #[error("{} holds {kept}, not the {asked} that are asked for; leave that out, or use another --data", path.display())]
    OtherShape {
        /// The directory.
        path: PathBuf,
        /// What it was made with.
        kept: String,
        /// What is asked now.
        asked: String,
    },
    /// A file is not what was written there.
    #[error("failed to understand {}: {message}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// Which nodes there are, for those who come later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Unique; nodes of another cluster are refused as peers.
    pub id: String,
    /// Its nodes.
    #[serde(flatten)]
    pub shape: Shape,
    /// Number of partitions.
    pub partitions: u32,
    /// `host:port` of each node's admin service, by its number.
    pub admin: Vec<String>,
}

/// The directory.
#[derive(Debug)]
pub struct State {
    dir: PathBuf,
    /// Removes the directory when it is dropped.
    temporary: Option<tempfile::TempDir>,
    _lock: File,
}

/// The certificates.
pub struct Certificates {
    /// Of the cluster's own authority.
    pub authority: CertifiedPem,
    /// For calls to the admin services.
    pub operator: CertifiedPem,
}

impl State {
    /// Opens `dir`, made where it is not there, or a temporary directory.
    pub fn open(dir: Option<&Path>) -> Result<Self, StateError> {
        let temporary = match dir {
            Some(_) => None,
            None => Some(
                tempfile::Builder::new()
                    .prefix("quorumail-dev-")
                    .tempdir()
                    .map_err(failed("make a temporary directory in", &std::env::temp_dir()))?,
            ),
        };
        let dir = dir.or(temporary.as_ref().map(tempfile::TempDir::path)).unwrap_or(Path::new("."));
        make_dir(dir)?;
        // Children run elsewhere and are told absolute paths.
        let dir = fs::canonicalize(dir).map_err(failed("find", dir))?;
        let path = dir.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir, temporary, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateError::InUse(dir)),
            Err(TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
        }
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Whether it goes at the end.
    pub fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// Directory of a node, made where it is not there.
    pub fn node_dir(&self, node: u64) -> Result<PathBuf, StateError> {
        let dir = self.dir.join(format!("node-{node}"));
        make_dir(&dir.join("data"))?;
        Ok(dir)
    }

    /// Decides on the number of nodes and partitions of a new cluster: what is asked, else 3 and 16. One that was kept is
    /// begun as it was: its nodes can be changed once they run, its partitions cannot.
    pub fn shape(&self, nodes: Option<u64>, partitions: Option<u32>) -> Result<Cluster, StateError> {
        let Some(kept) = cluster(&self.dir)? else {
            let (nodes, partitions) = (nodes.unwrap_or(3), partitions.unwrap_or(16));
            let id = format!("dev-{:016x}", rand::random::<u64>());
            let shape = Shape::founded(nodes);
            return Ok(Cluster { id, shape, partitions, admin: Vec::new() });
        };
        if let Some(asked) = partitions.filter(|asked| *asked != kept.partitions) {
            let (kept, asked) = (format!("{} partitions", kept.partitions), asked.to_string());
            return Err(StateError::OtherShape { path: self.dir.clone(), kept, asked });
        }
        Ok(kept)
    }

    /// Removes the data of a node that is no part of the cluster any more.
    pub fn remove_node(&self, node: u64) -> Result<(), StateError> {
        let dir = self.dir.join(format!("node-{node}"));
        fs::remove_dir_all(&dir).map_err(failed("remove", &dir))
    }

    /// Keeps it.
    pub fn save_cluster(&self, cluster: &Cluster) -> Result<(), StateError> {
        let text = serde_json::to_string_pretty(cluster).expect("it has nothing that JSON cannot say");
        write(&self.dir.join(CLUSTER), text.as_bytes())
    }

    /// Directory with `ca.crt`, `tls.crt` and `tls.key` of a role.
    pub fn pki_dir(&self, role: &str) -> PathBuf {
        pki_dir(&self.dir, role)
    }

    /// The certificates: what is kept and still good, and new ones for the rest.
    pub fn certificates(&self, public_names: &[String], now: Timestamp) -> Result<Certificates, StateError> {
        let authority = match self.kept("authority", now) {
            Some(authority) => authority,
            None => pki::new_authority("quorumail dev", now)?,
        };
        self.keep("authority", &authority, None)?;
        let is_ours =
            |role| fs::read_to_string(self.pki_dir(role).join(CA_KEY)).is_ok_and(|ca| ca == authority.cert);
        let leaf = |name, role| match self.kept(name, now).filter(|_| is_ours(name)) {
            Some(leaf) => Ok(leaf),
            None => pki::issue(&authority, role, now),
        };
        self.keep("node", &leaf("node", Role::Node)?, Some(&authority))?;
        let operator = leaf("operator", Role::Operator)?;
        self.keep("operator", &operator, Some(&authority))?;
        let has_names = |public: &CertifiedPem| {
            pki::inspect(&public.cert).is_ok_and(|facts| public_names.iter().all(|n| facts.names.contains(n)))
        };
        let public = match self.kept("public", now).filter(has_names) {
            Some(public) => public,
            None => pki::self_signed(public_names, now)?,
        };
        self.keep("public", &public, None)?;
        Ok(Certificates { authority, operator })
    }

    fn kept(&self, role: &str, now: Timestamp) -> Option<CertifiedPem> {
        let dir = self.pki_dir(role);
        let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
        let pair = CertifiedPem { cert: read(CERT_KEY)?, key: read(KEY_KEY)? };
        (!pki::needs_renewal(&pair.cert, now)).then_some(pair)
    }

    fn keep(
        &self,
        role: &str,
        pair: &CertifiedPem,
        authority: Option<&CertifiedPem>,
    ) -> Result<(), StateError> {
        let dir = self.pki_dir(role);
        make_dir(&dir)?;
        if let Some(authority) = authority {
            write(&dir.join(CA_KEY), authority.cert.as_bytes())?;
        }
        write(&dir.join(KEY_KEY), pair.key.as_bytes())?;
        write(&dir.join(CERT_KEY), pair.cert.as_bytes())
    }
}

/// Directory of a role's certificates.
pub fn pki_dir(dir: &Path, role: &str) -> PathBuf {
    dir.join("pki").join(role)
}

/// What a directory was made with; `None` when it is new.
pub fn cluster(dir: &Path) -> Result<Option<Cluster>, StateError> {
    read_json(&dir.join(CLUSTER))
}

/// Generated passwords, by address.
pub fn credentials(dir: &Path) -> Result<BTreeMap<String, String>, StateError> {
    Ok(read_json(&dir.join(CREDENTIALS))?.unwrap_or_default())
}

/// Keeps them.
pub fn save_credentials(dir: &Path, credentials: &BTreeMap<String, String>) -> Result<(), StateError> {
    let text = serde_json::to_string_pretty(credentials).expect("texts are what JSON can say");
    write(&dir.join(CREDENTIALS), text.as_bytes())
}

/// DKIM keys by domain. Mode 0600 from its beginning.
const DKIM: &str = "dkim.json";
/// DNS records by domain.
const DNS: &str = "dns.json";

/// DKIM keys, by domain.
pub fn dkim_keys(dir: &Path) -> Result<BTreeMap<String, Vec<StoredKey>>, StateError> {
    Ok(read_json(&dir.join(DKIM))?.unwrap_or_default())
}

/// Keeps them.
pub fn save_dkim_keys(dir: &Path, keys: &BTreeMap<String, Vec<StoredKey>>) -> Result<(), StateError> {
    let text = serde_json::to_string_pretty(keys).expect("keys are what JSON can say");
    write(&dir.join(DKIM), text.as_bytes())
}

/// The DNS records that domains need, by domain.
pub fn dns_records(dir: &Path) -> Result<BTreeMap<String, Vec<DnsRecord>>, StateError> {
    Ok(read_json(&dir.join(DNS))?.unwrap_or_default())
}

/// Keeps them.
pub fn save_dns_records(dir: &Path, records: &BTreeMap<String, Vec<DnsRecord>>) -> Result<(), StateError> {
    let text = serde_json::to_string_pretty(records).expect("records are what JSON can say");
    write(&dir.join(DNS), text.as_bytes())
}

/// A password that nobody knows yet.
pub fn new_password() -> String {
    let mut rng = rand::rng();
    (0..PASSWORD_LENGTH)
        .map(|_| char::from(PASSWORD_ALPHABET[rng.random_range(0..PASSWORD_ALPHABET.len())]))
        .collect()
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| StateError::Malformed { path: path.to_owned(), message: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path)(source)),
    }
}

/// Puts a file in place in one step, readable by its owner only. A file that is as it should be is not touched.
pub fn write(path: &Path, content: &[u8]) -> Result<(), StateError> {
    if fs::read(path).is_ok_and(|kept| kept == content) {
        return Ok(());
    }
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let put = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    put().map_err(failed("write", path))
}

fn make_dir(dir: &Path) -> Result<(), StateError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make directory", dir))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_temporary_directory_goes_at_the_end_and_another_stays() {
        let state = State::open(None).unwrap();
        let path = state.path().to_owned();
        assert!(path.is_dir());
        drop(state);
        assert!(!path.exists());

        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("a/b");
        let state = State::open(Some(&kept)).unwrap();
        assert!(matches!(State::open(Some(&kept)), Err(StateError::InUse(_))));
        drop(state);
        assert!(kept.is_dir());
        State::open(Some(&kept)).unwrap();
    }

    #[test]
    fn the_partitions_of_a_kept_directory_cannot_change_and_its_nodes_are_begun_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(Some(dir.path())).unwrap();
        let fresh = state.shape(None, Some(8)).unwrap();
        assert_eq!((fresh.shape.running, fresh.partitions), (3, 8));
        state.save_cluster(&fresh).unwrap();
        assert_eq!(state.shape(None, None).unwrap(), fresh);
        assert_eq!(state.shape(Some(3), Some(8)).unwrap(), fresh);
        assert_eq!(state.shape(Some(5), None).unwrap(), fresh);
        let error = state.shape(None, Some(16)).unwrap_err().to_string();
        assert!(error.contains("holds 8 partitions, not the 16"), "{error}");
    }

    #[test]
    fn certificates_are_kept_until_they_are_due() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(Some(dir.path())).unwrap();
        let now = Timestamp::now();
        let names = ["localhost".to_owned()];
        let first = state.certificates(&names, now).unwrap();
        let second = state.certificates(&names, now).unwrap();
        assert!(first.authority == second.authority && first.operator == second.operator);
        let later = state.certificates(&names, now + jiff::SignedDuration::from_hours(24 * 80)).unwrap();
        assert!(first.authority == later.authority && first.operator != later.operator);
        for file in ["authority/tls.key", "node/tls.key", "operator/tls.key", "public/tls.key"] {
            let mode = fs::metadata(dir.path().join("pki").join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn passwords_are_kept_for_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let one: BTreeMap<_, _> = [("bob@example.org".to_owned(), new_password())].into();
        save_credentials(dir.path(), &one).unwrap();
        assert_eq!(credentials(dir.path()).unwrap(), one);
        let mode = fs::metadata(dir.path().join(CREDENTIALS)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(new_password(), new_password());
        assert_eq!(new_password().len(), PASSWORD_LENGTH);
    }
}
