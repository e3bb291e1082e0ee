//! Serves a directory, a mounted volume as a rule, as a bucket of S3: where backups go when there is no object store.
//!
//! The parts of S3 that `quorumail-backup` uses, and no more: objects are put (also only when there is none yet), read
//! (also in ranges), listed and deleted, and put in parts. One bucket, one pair of credentials, signatures of version 4 in
//! the header, bodies that are signed too. Signatures and XML are the library s3s's; storage ([`store`]), listing,
//! uploads in parts and everything around HTTP and TLS are here.
//!
//! - Nothing is answered before it is on the disk: the file is synced, renamed into place, and its folders are synced.
//! - An object is a file of its name below the bucket's folder, so that whoever mounts the volume can use it as a
//!   directory. What is not complete yet lies beside that folder and is never seen.
//! - One server at a time: the directory is locked.
//! - All that is held in memory is bounded: connections, requests, what of a body waits to be written, names of a listing.
//!
//! What is stored is encrypted already by those who store it.

mod listing;
mod names;
mod s3;
mod secrets;
mod server;
mod store;
mod uploads;

use std::path::PathBuf;

pub use self::server::{Options, Server};

/// The bucket that the command line serves, and the folder of the directory that it is in.
pub const BUCKET: &str = "backups";
/// The region that requests must be signed for.
pub const REGION: &str = "us-east-1";
/// File with the access key, in the directory of the credentials.
pub const ACCESS_KEY_FILE: &str = "accessKeyId";
/// File with the secret key.
pub const SECRET_KEY_FILE: &str = "secretAccessKey";
/// File with the certificate chain, in the directory for TLS.
pub const CERT_FILE: &str = "tls.crt";
/// File with the private key.
pub const KEY_FILE: &str = "tls.key";
/// Answers whether the directory can be used; asks for no credentials.
pub const HEALTH_PATH: &str = "/healthz";

/// Why a directory cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The directory cannot be used.
    #[error("the directory {} cannot be used: {source}; mount a volume there that this user may write to", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody else serves it.
    #[error("another server uses the directory {}; end that one first", .0.display())]
    InUse(PathBuf),
    /// No name of a bucket.
    #[error("`{0}` is no name of a bucket; use lower-case letters, digits and hyphens")]
    Bucket(String),
    /// A file with credentials, certificate or key.
    #[error("{} cannot be used: {problem}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
}
