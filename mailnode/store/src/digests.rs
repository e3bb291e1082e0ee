//! Digests: what is computed from a message and asked for often, kept in the index so that the message need not be read
//! for it again (ENVELOPE and BODYSTRUCTURE of IMAP). What they are is not this crate's business: it keeps bytes.
//!
//! They are this replica's own: computed when they are first asked for, not replicated, in no snapshot and no
//! fingerprint. They go with their message, and with a copy or move within a replica they come along.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{StoreError, Uid, records};

/// Longest value that is kept for a message, in bytes: digests of a message that is all header or all structure are
/// computed each time.
const MAX_KEPT: usize = 16 * 1024;
/// Octets of messages that are read for the digests of one answer before it ends, unless it is empty.
pub(crate) const READ_AT_ONCE: u64 = 8 * 1024 * 1024;

/// Computes digests. Which kinds there are, and what the bytes mean, is between this and who asks.
pub trait Digests: Send + Sync {
    /// Goes up when a kind's bytes change: what an earlier version computed is computed again.
    fn version(&self) -> u8;
    /// How many octets from the start of a message are enough for most messages; none: it takes all.
    fn prefix(&self, kind: u8) -> Option<u32>;
    /// The digest of a message, or of its first octets when not `whole`. None: these octets are not enough, or there is
    /// no such kind.
    fn digest(&self, kind: u8, octets: &[u8], whole: bool) -> Option<Vec<u8>>;
}

/// Reads a message, or so many of its first octets.
pub(crate) type Read<'r> = dyn FnMut(Option<u32>) -> Result<Bytes, StoreError> + 'r;

/// The digests of a message that are kept, in one value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    version: u8,
    /// Kind and bytes.
    digests: Vec<(u8, Bytes)>,
}

/// Digests that were computed and are to be kept.
pub(crate) struct Fresh {
    pub(crate) uid: Uid,
    pub(crate) value: Vec<u8>,
}

/// Of a store that nobody told how.
pub(crate) struct NoDigests;

impl Digests for NoDigests {
    fn version(&self) -> u8 {
        0
    }

    fn prefix(&self, _: u8) -> Option<u32> {
        Some(0)
    }

    fn digest(&self, _: u8, _: &[u8], _: bool) -> Option<Vec<u8>> {
        None
    }
}

/// Answers the digests of messages.
pub(crate) struct Answering<'a> {
    digests: &'a dyn Digests,
    kinds: &'a [u8],
    /// Octets that may still be read.
    pub(crate) left: u64,
    pub(crate) fresh: Vec<Fresh>,
}

impl<'a> Answering<'a> {
    pub(crate) fn new(digests: &'a dyn Digests, kinds: &'a [u8]) -> Self {
        Self { digests, kinds, left: READ_AT_ONCE, fresh: Vec::new() }
    }

    /// Whether any are wanted.
    pub(crate) fn any(&self) -> bool {
        !self.kinds.is_empty()
    }

    /// The digests in the order asked, from what is kept or computed. `len`: of the message; `octets`: of it, as far as it
    /// was read.
    pub(crate) fn of(
        &mut self,
        uid: Uid,
        len: u32,
        kept: Option<&[u8]>,
        octets: &Bytes,
        read: &mut Read<'_>,
    ) -> Result<Vec<Bytes>, StoreError> {
        if !self.any() {
            return Ok(Vec::new());
        }
        let mut kept: Kept = kept.map(records::decode).transpose()?.unwrap_or_default();
        if kept.version != self.digests.version() {
            kept = Kept { version: self.digests.version(), digests: Vec::new() };
        }
        let (before, mut octets) = (kept.digests.len(), octets.clone());
        let mut found = Vec::with_capacity(self.kinds.len());
        for kind in self.kinds {
            let at = match kept.digests.iter().position(|(have, _)| have == kind) {
                Some(at) => at,
                None => {
                    let digest = self.compute(*kind, len, &mut octets, read)?;
                    kept.digests.push((*kind, digest.into()));
                    kept.digests.len() - 1
                }
            };
            found.push(kept.digests[at].1.clone());
        }
        if kept.digests.len() > before {
            let value = records::encode(&kept);
            if value.len() <= MAX_KEPT {
                self.fresh.push(Fresh { uid, value });
            }
        }
        Ok(found)
    }

    /// Computes one from as few octets as it takes.
    fn compute(
        &mut self,
        kind: u8,
        len: u32,
        octets: &mut Bytes,
        read: &mut Read<'_>,
    ) -> Result<Vec<u8>, StoreError> {
        let prefix = self.digests.prefix(kind).map_or(len, |prefix| prefix.min(len));
        for enough in [prefix, len] {
            if octets.len() < enough as usize {
                *octets = read((enough < len).then_some(enough))?;
                self.left = self.left.saturating_sub(octets.len() as u64);
            }
            if let Some(digest) = self.digests.digest(kind, octets, octets.len() == len as usize) {
                return Ok(digest);
            }
        }
        Err(StoreError::Bodies(format!("there is no digest of kind {kind}")))
    }
}
