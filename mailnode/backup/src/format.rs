//! Names and records of the format: what `docs/reference/backup-format.md` describes. Every record is read with bounds:
//! whatever the bytes are, reading them answers a value or an error.

use std::{fmt, str::FromStr};

use jiff::tz::TimeZone;
use quorumail_store::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::RepositoryError;

/// The version of the format that this version writes; it reads all up to it.
pub const FORMAT: u8 = 1;

/// Keyed BLAKE3 of plain bytes.
pub(crate) type Hash = [u8; 32];

/// Names a pack: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackId(pub [u8; 16]);

impl PackId {
    pub(crate) fn random() -> Self {
        Self(rand::random())
    }

    /// The pack of an object's name.
    pub(crate) fn from_object(name: &str) -> Option<Self> {
        let (folder, hex) = name.strip_prefix("packs/")?.split_once('/')?;
        let id = u128::from_str_radix(hex, 16).ok()?;
        let id = Self(id.to_be_bytes());
        (hex.len() == 32 && hex.starts_with(folder) && id.object() == name).then_some(id)
    }

    /// The name of its object.
    pub(crate) fn object(&self) -> String {
        let hex = self.to_string();
        format!("packs/{}/{hex}", &hex[..2])
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a blob lies, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// Keyed BLAKE3 of the plain bytes.
    pub hash: [u8; 32],
    /// The pack that holds it.
    pub pack: PackId,
    /// Where in the pack it starts, in bytes.
    pub offset: u32,
    /// How long it is there, sealed, in bytes.
    pub len: u32,
}

/// Names a backup; sorts by the time of its start. `20261125T174800Z-1a2b3c`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

/// Of the 24 bits behind the time in a name; the others are milliseconds.
const RANDOM_BITS: u32 = 14;

impl BackupId {
    /// A fresh one for a backup that started at an instant.
    pub fn new(started: Timestamp) -> Self {
        let time = zoned(started).strftime("%Y%m%dT%H%M%SZ").to_string();
        // Two of one second sort as they were begun: the newest is the parent of the next.
        let millis = u32::try_from(started.0.rem_euclid(1000)).expect("it is less than 1000");
        Self(format!("{time}-{:06x}", millis << RANDOM_BITS | rand::random::<u32>() >> (32 - RANDOM_BITS)))
    }

    /// When it started, to the second.
    pub fn instant(&self) -> Timestamp {
        let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", &self.0[..16]);
        let zoned = time.and_then(|time| time.to_zoned(TimeZone::UTC));
        Timestamp(zoned.map_or(0, |time| time.timestamp().as_millisecond()))
    }

    /// The name of its manifest.
    pub(crate) fn object(&self) -> String {
        format!("backups/{self}")
    }
}

impl FromStr for BackupId {
    type Err = RepositoryError;

    fn from_str(text: &str) -> Result<Self, RepositoryError> {
        let is_id = text.len() == 23
            && text.is_ascii()
            && jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", &text[..16]).is_ok()
            && text.as_bytes()[16] == b'-'
            && text[17..].bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        if is_id {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(64).collect();
        Err(RepositoryError::BadConfiguration(format!(
            "`{shown}` does not name a backup; names are like 20261125T174800Z-1a2b3c"
        )))
    }
}

impl TryFrom<String> for BackupId {
    type Error = RepositoryError;
    fn try_from(text: String) -> Result<Self, RepositoryError> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pack of a group's root, by its place in the root's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PackBytes {
    pub(crate) id: PackId,
    /// Length of the whole object.
    pub(crate) bytes: u64,
}

/// Where a blob lies, by the number of its pack in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) pack: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// All that a group's backup consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupRoot {
    /// Packs that this root and its runs refer to, in order of first use.
    pub(crate) packs: Vec<PackBytes>,
    pub(crate) chunks: Vec<ChunkEntry>,
    pub(crate) runs: Vec<RunEntry>,
}

/// A part of the state: pairs in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkEntry {
    pub(crate) first_key: Vec<u8>,
    pub(crate) hash: Hash,
    pub(crate) at: Place,
    /// Messages in it, for the account of what its loss means.
    pub(crate) messages: u32,
}

/// The bodies of one range of body ids, [`RUN_BODIES`] ids each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunEntry {
    /// Number of the range.
    pub(crate) range: u64,
    pub(crate) hash: Hash,
    pub(crate) at: Place,
    /// BLAKE3 of ids and lengths in it: the same as in the parent, and it need not be read.
    pub(crate) ids: Hash,
    pub(crate) bodies: u32,
    /// Sum of the bodies' lengths.
    pub(crate) bytes: u64,
    /// Pack in the root's table, and sealed bytes in it that this run refers to.
    pub(crate) uses: Vec<(u32, u64)>,
}

/// Body ids in the range of a run.
pub(crate) const RUN_BODIES: u64 = 8192;

/// Where the bodies of one range lie, ascending by id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BodyRun {
    /// In order of first use.
    pub(crate) packs: Vec<PackId>,
    pub(crate) bodies: Vec<RunBody>,
}

/// A body in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunBody {
    pub(crate) id: u64,
    pub(crate) hash: Hash,
    /// The pack's number is of the run's own table.
    pub(crate) at: Place,
    /// Length in bytes, plain.
    pub(crate) len: u32,
}

impl BodyRun {
    /// Where a body of it lies.
    pub(crate) fn blob(&self, body: &RunBody) -> Option<BlobRef> {
        let pack = *self.packs.get(body.at.pack as usize)?;
        Some(BlobRef { hash: body.hash, pack, offset: body.at.offset, len: body.at.len })
    }
}

impl GroupRoot {
    /// Where a blob of its own lies.
    pub(crate) fn blob(&self, hash: Hash, at: Place) -> Option<BlobRef> {
        let pack = self.packs.get(at.pack as usize)?.id;
        Some(BlobRef { hash, pack, offset: at.offset, len: at.len })
    }
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("records of the format hold no type that postcard refuses")
}

/// Reads a record that takes up all of `bytes`.
pub(crate) fn decode<T: DeserializeOwned>(object: &str, bytes: &[u8]) -> Result<T, RepositoryError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(RepositoryError::damaged(object, "its record cannot be decoded")),
    }
}

fn zoned(at: Timestamp) -> jiff::Zoned {
    jiff::Timestamp::from_millisecond(at.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_zoned(TimeZone::UTC)
}

/// For people: `2026-11-25T17:48:00Z`.
pub(crate) fn instant(at: Timestamp) -> String {
    zoned(at).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_the_instant_to_the_millisecond() {
        let ids: Vec<String> =
            (0..3000).map(|at| BackupId::new(Timestamp(1_795_600_000_000 + at)).to_string()).collect();
        assert!(ids.is_sorted());
        assert!(ids.iter().all(|id| id.parse::<BackupId>().is_ok_and(|read| read.to_string() == *id)));
    }

    #[test]
    fn ids_come_back_from_their_names() {
        let pack = PackId::random();
        assert_eq!(PackId::from_object(&pack.object()), Some(pack));
        for bad in ["packs/00/1", "packs/xx/00000000000000000000000000000000", "keys/a", "packs/+1/+1"] {
            assert_eq!(PackId::from_object(bad), None, "{bad}");
        }
        let started = Timestamp(1_795_628_880_000);
        let id = BackupId::new(started);
        assert!(id.to_string().starts_with("20261125T") && id.instant() == started, "{id}");
        assert_eq!(id.to_string().parse::<BackupId>().unwrap(), id);
        for bad in ["", "20261125T174800Z-1A2B3C", "20261325T174800Z-1a2b3c", "2026112ßT174800Z-1a2b3"] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad}");
        }
    }
}
