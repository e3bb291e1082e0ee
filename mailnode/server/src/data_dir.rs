//! The data directory: whose it is, and that only one process has it.
//!
//! A volume that is mounted into the wrong pod, of another cluster or node, must never be written to: its journal would
//! be taken for this node's, and votes and mail of two nodes would mix. So the directory carries a small file that says
//! whose it is, made before anything else is, and looked at before anything is opened. What does not fit is refused
//! with a message that says what to do, and nothing is touched.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::unistd::AccessFlags;
use parking_lot::Mutex;
use quorumail_consensus::{LevelError, Levels};
use serde::{Deserialize, Serialize};

/// What the data directory as a whole looks like: which parts it has and where. Each part (journal, index) has a
/// version of its own besides. Goes up when an older version of this program could not use the directory any more.
pub const DATA_FORMAT: u32 = 2;

/// Name of the file that says whose the directory is.
const IDENTITY_FILE: &str = "identity.yaml";
/// What it is written as first.
const UNFINISHED: &str = "identity.yaml.new";
/// Bytes of an identity file, at most: what is longer is none.
const MAX_IDENTITY: u64 = 4096;
/// What a file system may bring along itself.
const NOT_COUNTED: [&str; 1] = ["lost+found"];
/// Names shown of what was found in a directory that is not ours.
const NAMES_SHOWN: usize = 3;

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error(
        "data directory {} is in use by another process; two nodes cannot share one, end the other or give this one \
         its own dataDir", dir.display()
    )]
    InUse {
        /// Which directory.
        dir: PathBuf,
    },
    /// It holds something, but nothing of Quorumail.
    #[error(
        "data directory {} is not empty and was not made by Quorumail (it holds {found}); point dataDir at an empty \
         directory or at this node's own", dir.display()
    )]
    Foreign {
        /// Which directory.
        dir: PathBuf,
        /// A few names.
        found: String,
    },
    /// The file that says whose it is cannot be understood.
    #[error(
        "{} is damaged ({reason}), so it cannot be told whose mail this is; restore that file (its lines are format, \
         cluster, node and level) if you know, or give this node an empty directory and let the other replicas fill it",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Written by another version.
    #[error(
        "data directory {} has format {found}, this version of Quorumail knows format {DATA_FORMAT}: start the version \
         that was running before (a downgrade across formats needs a restore from a backup)", dir.display()
    )]
    OtherFormat {
        /// Which directory.
        dir: PathBuf,
        /// The format in its identity.
        found: u32,
    },
    /// It may hold what this version does not know.
    #[error("data directory {} cannot be used: {source}", dir.display())]
    Level {
        /// Which directory.
        dir: PathBuf,
        /// Names both levels.
        source: LevelError,
    },
    /// It cannot be read or written.
    #[error(
        "data directory {} cannot be {wanted} by user {user} ({reason}): mount it for reading and writing, and make that \
         user its owner (in Kubernetes: fsGroup of the pod)", dir.display()
    )]
    NoAccess {
        /// Which directory.
        dir: PathBuf,
        /// `read` or `written`.
        wanted: &'static str,
        /// Who this process runs as.
        user: u32,
        /// The system's answer.
        reason: nix::Error,
    },
    /// It belongs to another cluster.
    #[error(
        "data directory {} belongs to cluster {found:?}, this node to cluster {expected:?}: mount this cluster's own \
         volume; only if the mail on this one is not needed any more, empty it first", dir.display()
    )]
    OtherCluster {
        /// Which directory.
        dir: PathBuf,
        /// The cluster in its identity.
        found: String,
        /// The cluster in the configuration.
        expected: String,
    },
    /// It belongs to another node.
    #[error(
        "data directory {} belongs to node {found}, this is node {expected}: nodes must keep their own volumes, check \
         which is mounted where", dir.display()
    )]
    OtherNode {
        /// Which directory.
        dir: PathBuf,
        /// The node in its identity.
        found: u64,
        /// The node in the configuration.
        expected: u64,
    },
    /// The operating system refused something.
    #[error("failed to {action} {}", path.display())]
    Io {
        /// What was being attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Whose a directory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    format: u32,
    cluster: String,
    node: u64,
    /// The highest format level of which anything may lie here.
    level: u32,
}

/// Read before anything else of the file, because a later format may have other fields.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// A data directory that is this node's own. Other processes are kept out as long as it lives.
#[derive(Debug)]
pub struct DataDir {
    dir: PathBuf,
    identity: Mutex<Identity>,
    _lock: File,
}

impl DataDir {
    /// Takes the directory for this node; makes it when it is not there, and claims it when it is empty.
    ///
    /// # Errors
    /// When it is in use, somebody else's, of another version, or cannot be read or written.
    pub fn open(dir: &Path, cluster: &str, node: u64, levels: Levels) -> Result<Self, DataDirError> {
        let at = |action| io_error(action, dir);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at("create data directory"))?;
        check_access(dir)?;
        // The directory itself is locked: nothing has to be written into one that may be somebody else's.
        let lock = File::open(dir).map_err(at("open data directory"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataDirError::InUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(at("lock data directory")(source)),
        }
        let mut identity =
            Identity { format: DATA_FORMAT, cluster: cluster.to_owned(), node, level: levels.min };
        match read(dir)? {
            Some(found) => {
                identity.level = found.level;
                check(dir, found, &identity, levels)?;
            }
            None => claim(dir, &identity)?,
        }
        Ok(Self { dir: dir.to_owned(), identity: Mutex::new(identity), _lock: lock })
    }

    /// The highest format level of which anything may lie here.
    pub fn level(&self) -> u32 {
        self.identity.lock().level
    }

    /// Notes, durably, that something of a format level may lie here: versions that do not know it refuse the directory from
    /// now on.
    ///
    /// # Errors
    /// When it cannot be written; then the level stays as it was.
    pub fn reach_level(&self, level: u32) -> io::Result<()> {
        let mut identity = self.identity.lock();
        let new = Identity { level: identity.level.max(level), ..identity.clone() };
        write(&self.dir, &new)?;
        *identity = new;
        Ok(())
    }

    /// Where the journal lies.
    pub fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// Where the index lies.
    pub fn index(&self) -> PathBuf {
        self.dir.join("index")
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { action, path, source }
}

/// Whether this process may read and write the directory. Tried before anything else, so that an error later on is none of
/// these.
fn check_access(dir: &Path) -> Result<(), DataDirError> {
    let user = nix::unistd::geteuid().as_raw();
    for (wanted, right) in [("read", AccessFlags::R_OK), ("written", AccessFlags::W_OK)] {
        nix::unistd::eaccess(dir, right | AccessFlags::X_OK).map_err(|reason| DataDirError::NoAccess {
            dir: dir.to_owned(),
            wanted,
            user,
            reason,
        })?;
    }
    Ok(())
}

/// The identity of a directory; none where there is none.
fn read(dir: &Path) -> Result<Option<Identity>, DataDirError> {
    let path = dir.join(IDENTITY_FILE);
    let damaged = |reason: String| DataDirError::Damaged { path: path.clone(), reason };
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("inspect", &path)(error)),
        Ok(found) if !found.is_file() => return Err(damaged("it is no file".to_owned())),
        Ok(found) if found.len() > MAX_IDENTITY => return Err(damaged("it is too long".to_owned())),
        Ok(_) => {}
    }
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(damaged(error.to_string())),
        Err(error) => return Err(io_error("read", &path)(error)),
    };
    let format: FormatOnly = serde_yaml::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if format.format != DATA_FORMAT {
        return Err(DataDirError::OtherFormat { dir: dir.to_owned(), found: format.format });
    }
    serde_yaml::from_str(&text).map(Some).map_err(|error| damaged(error.to_string()))
}

fn check(dir: &Path, found: Identity, wanted: &Identity, levels: Levels) -> Result<(), DataDirError> {
    let dir = dir.to_owned();
    if found.cluster != wanted.cluster {
        return Err(DataDirError::OtherCluster {
            dir,
            found: found.cluster,
            expected: wanted.cluster.clone(),
        });
    }
    if found.node != wanted.node {
        return Err(DataDirError::OtherNode { dir, found: found.node, expected: wanted.node });
    }
    levels.check(found.level).map_err(|source| DataDirError::Level { dir, source })
}

/// Writes the identity into an empty directory, durably.
fn claim(dir: &Path, identity: &Identity) -> Result<(), DataDirError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("list data directory", dir))? {
        let name = entry.map_err(io_error("list data directory", dir))?.file_name();
        let name = name.to_string_lossy().into_owned();
        // The rest of a claim that a crash cut off.
        if name != UNFINISHED && !NOT_COUNTED.contains(&name.as_str()) {
            found.push(name);
        }
    }
    if !found.is_empty() {
        found.sort_unstable();
        found.truncate(NAMES_SHOWN);
        return Err(DataDirError::Foreign { dir: dir.to_owned(), found: found.join(", ") });
    }
    write(dir, identity).map_err(io_error("write", &dir.join(IDENTITY_FILE)))
}

/// Writes the identity so that the file is the old or the new one whatever happens.
fn write(dir: &Path, identity: &Identity) -> io::Result<()> {
    let (new, path) = (dir.join(UNFINISHED), dir.join(IDENTITY_FILE));
    let text = serde_yaml::to_string(identity).map_err(io::Error::other)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELS: Levels = Levels { min: 1, max: 1 };

    fn open(dir: &Path, cluster: &str, node: u64) -> Result<DataDir, DataDirError> {
        DataDir::open(dir, cluster, node, LEVELS)
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn an_empty_directory_is_claimed_and_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("new/data");
        let first = open(&data, "mail", 2).unwrap();
        assert_eq!(first.journal(), data.join("journal"));
        assert!(matches!(open(&data, "mail", 2), Err(DataDirError::InUse { .. })));
        drop(first);
        open(&data, "mail", 2).unwrap();
        assert_eq!(names(&data), [IDENTITY_FILE]);
    }

    #[test]
    fn a_level_that_was_reached_is_kept_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let next = Levels { min: 1, max: 3 };
        let data = DataDir::open(dir.path(), "mail", 2, next).unwrap();
        assert_eq!(data.level(), 1);
        data.reach_level(3).unwrap();
        data.reach_level(2).unwrap();
        assert_eq!(data.level(), 3);
        drop(data);
        assert_eq!(DataDir::open(dir.path(), "mail", 2, next).unwrap().level(), 3);
        assert!(matches!(open(dir.path(), "mail", 2), Err(DataDirError::Level { .. })));
    }

    #[test]
    fn a_file_systems_own_directory_and_a_cut_off_claim_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        fs::write(dir.path().join("identity.yaml.new"), "form").unwrap();
        open(dir.path(), "mail", 0).unwrap();
        assert_eq!(names(dir.path()), [IDENTITY_FILE, "lost+found"]);
    }

    #[test]
    fn what_is_not_this_nodes_is_refused_untouched_with_what_to_do() {
        let refused = |make: &dyn Fn(&Path), hints: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            make(dir.path());
            let before = names(dir.path());
            let error = open(dir.path(), "mail", 1).unwrap_err().to_string();
            for hint in hints {
                assert!(error.contains(hint), "{hint:?} is missing in: {error}");
            }
            assert_eq!(names(dir.path()), before, "{error}");
        };
        let identity =
            |text: &'static str| move |dir: &Path| fs::write(dir.join(IDENTITY_FILE), text).unwrap();
        refused(
            &|dir| {
                for name in ["photos", "a", "b", "c"] {
                    fs::write(dir.join(name), "").unwrap();
                }
            },
            &["not made by Quorumail", "it holds a, b, c", "empty directory"],
        );
        refused(&|dir| fs::create_dir(dir.join("journal")).unwrap(), &["it holds journal"]);
        refused(
            &identity("format: 2\ncluster: other\nnode: 1\nlevel: 1\n"),
            &["\"other\"", "\"mail\"", "own volume"],
        );
        refused(
            &identity("format: 2\ncluster: mail\nnode: 7\nlevel: 1\n"),
            &["node 7", "node 1", "which is mounted"],
        );
        refused(&identity("format: 99\ncluster: mail\nnew: field\n"), &["format 99", "before"]);
        refused(&identity("format: 2\ncluster: mail\nnode: 1\n"), &["damaged", "level"]);
        refused(
            &identity("format: 2\ncluster: mail\nnode: 1\nlevel: 2\n"),
            &["level 2", "levels 1 to 1", "no way back"],
        );
        refused(&identity("\u{0}\u{1}"), &["damaged", IDENTITY_FILE]);
        refused(&|dir| fs::create_dir(dir.join(IDENTITY_FILE)).unwrap(), &["it is no file"]);
        refused(&|dir| fs::write(dir.join(IDENTITY_FILE), vec![b'x'; 5000]).unwrap(), &["too long"]);
    }
}
