//! Bodies that this replica's disk has lost: who wants them back, and how they come back.
//!
//! A body that comes from another replica is kept as a new record, which is on disk before the table of bodies points to
//! it. Whatever crash comes between, the table points to the lost record or to the good one; the rotten record is dead
//! from then on, and its segment goes as any other.

use bytes::Bytes;

use crate::{
    Bodies, BodyId, BodyRef, Store, StoreError,
    body_table::{self, BodyEntry},
    compaction::Live,
};

/// A body that is referred to and cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LostBody {
    /// Of which group.
    pub group: u32,
    /// Which one.
    pub body: BodyId,
    /// Where it should be.
    pub place: BodyRef,
}

/// Gets lost bodies back. Asked by whoever needs one now; calls block until it is there, for a bounded time.
pub trait Repair: Send + Sync {
    /// The whole body. The error tells people why it cannot be had.
    fn body(&self, lost: LostBody) -> Result<Bytes, String>;
}

/// Reads the bodies of a group, and has those repaired that cannot be read.
#[derive(Clone, Copy)]
pub(crate) struct Reads<'a> {
    pub(crate) group: u32,
    pub(crate) bodies: &'a dyn Bodies,
    pub(crate) repair: Option<&'a dyn Repair>,
}

impl Reads<'_> {
    /// The body, or its first `prefix` bytes. The error tells people what could not be read.
    pub(crate) fn read(&self, body: BodyId, place: BodyRef, prefix: Option<u32>) -> Result<Bytes, String> {
        let reason = match self.bodies.read(place, prefix) {
            Ok(bytes) => return Ok(bytes),
            Err(reason) => reason,
        };
        let Some(repair) = self.repair else { return Err(reason) };
        let lost = LostBody { group: self.group, body, place };
        let whole = repair.body(lost).map_err(|error| format!("{reason}; {error}"))?;
        if whole.len() != place.len as usize {
            return Err(format!("{reason}; what came instead has {} bytes", whole.len()));
        }
        Ok(prefix.map_or_else(|| whole.clone(), |prefix| whole.slice(..whole.len().min(prefix as usize))))
    }
}

impl Store {
    /// Who gets lost bodies back, from now on; told once. Until then whoever needs one is refused.
    pub fn repair_with(&self, repair: std::sync::Arc<dyn Repair>) {
        // Told again: the first one stays.
        let _ = self.0.repair.set(repair);
    }

    /// Reads bodies of a group as they are now, and has them repaired.
    pub(crate) fn reads(&self, group: u32) -> Reads<'_> {
        let repair = self.0.repair.get().map(AsRef::as_ref);
        Reads { group, bodies: self.0.bodies.as_ref(), repair }
    }

    /// A body that lies in a record of its own, for another replica; none when nothing here refers to it. Nothing is
    /// repaired for it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn body(&self, group: u32, body: BodyId) -> Result<Option<Bytes>, StoreError> {
        let _reading = self.0.readers.enter();
        let Some(place) = self.place_of(group, body)? else { return Ok(None) };
        self.0.bodies.read(place, None).map(Some).map_err(StoreError::Bodies)
    }

    /// Where a body lies now; none when nothing refers to it, or when it consists of others.
    ///
    /// # Errors
    /// When the index fails.
    pub fn place_of(&self, group: u32, body: BodyId) -> Result<Option<BodyRef>, StoreError> {
        let Some(view) = self.view(group)? else { return Ok(None) };
        Ok(body_table::find(&view, body)?.and_then(|entry: BodyEntry| entry.place))
    }

    /// Keeps a lost body anew, durably, and points the table to it if that still points to where it was lost.
    ///
    /// # Errors
    /// When the bytes have not the length of the body, or cannot be kept. All is as before then.
    pub fn restore(&self, lost: &LostBody, bytes: Bytes) -> Result<(), StoreError> {
        let (wanted, found) = (lost.place.len, bytes.len());
        if found != wanted as usize {
            return Err(StoreError::Bodies(format!("a body of {wanted} bytes came back with {found}")));
        }
        let live = Live { group: lost.group, body: lost.body, place: lost.place };
        self.move_bodies(lost.group, vec![(live, bytes)])
    }
}
