//! The bodies of a group: how often each is used, and where this replica keeps it.
//!
//! Messages and queue entries name a body by [`BodyId`], which is the same on all replicas; one entry of this table
//! tells where it lies, so that compaction moves a body by changing one value. The number of references, the length and
//! the parts are replicated; where the bytes lie is this replica's own affair.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{
    BodyId, BodyRef, StoreError,
    error::Stop,
    keys,
    live::LiveChange,
    repair::Reads,
    txn::{Txn, View},
};

/// What replicas agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BodyState {
    /// Messages, queue entries and bodies that this one is part of; never zero in the table.
    pub(crate) references: u64,
    /// Length in bytes.
    pub(crate) len: u32,
    /// The bodies that it consists of, in order; empty when it lies in a record itself.
    pub(crate) parts: Vec<BodyId>,
}

/// An entry of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BodyEntry {
    pub(crate) state: BodyState,
    /// The record that holds it; none when it consists of parts.
    pub(crate) place: Option<BodyRef>,
}

/// A body that a command brought.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) id: BodyId,
    /// In bytes.
    pub(crate) len: u32,
    pub(crate) content: Content,
}

/// Where the bytes of a body are.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Record(BodyRef),
    /// In other bodies, whose references it takes over.
    Parts(Vec<BodyId>),
}

/// Which body a message or queue entry has, and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Body {
    pub(crate) id: BodyId,
    /// In bytes; this is RFC822.SIZE of a message.
    pub(crate) len: u32,
}

impl Arrived {
    pub(crate) fn body(&self) -> Body {
        Body { id: self.id, len: self.len }
    }
}

impl BodyState {
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("the state of a body holds no type that postcard refuses")
    }

    /// The state in front of a value, and the rest.
    pub(crate) fn split(value: &[u8]) -> Result<(Self, &[u8]), StoreError> {
        postcard::take_from_bytes(value)
            .map_err(|_| StoreError::Damaged("an entry of a body cannot be decoded"))
    }
}

impl BodyEntry {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Some(BodyRef { record, offset, .. }) = self.place else { return self.state.encode() };
        let place = (record.segment, record.offset, record.len, offset);
        postcard::to_extend(&place, self.state.encode()).expect("numbers can always be encoded")
    }

    pub(crate) fn decode(value: &[u8]) -> Result<Self, StoreError> {
        let (state, rest) = BodyState::split(value)?;
        if !state.parts.is_empty() {
            return Ok(Self { state, place: None });
        }
        let (segment, record_offset, record_len, offset) = postcard::from_bytes(rest)
            .map_err(|_| StoreError::Damaged("where a body lies cannot be decoded"))?;
        let record = quorumail_journal::Position { segment, offset: record_offset, len: record_len };
        let place = Some(BodyRef { record, offset, len: state.len });
        Ok(Self { state, place })
    }
}

/// The entry of a body; none when nothing refers to it.
pub(crate) fn find<V: View>(view: &V, id: BodyId) -> Result<Option<BodyEntry>, StoreError> {
    view.get(&keys::body(id))?.map(|value| BodyEntry::decode(&value)).transpose()
}

/// The entry of a body that something refers to.
pub(crate) fn named<V: View>(view: &V, id: BodyId) -> Result<BodyEntry, StoreError> {
    find(view, id)?.ok_or(StoreError::Damaged("a body that is referred to is not in the table"))
}

/// Enters a body with its first reference.
pub(crate) fn add(txn: &mut Txn<'_>, arrived: &Arrived) {
    let (parts, place) = match &arrived.content {
        Content::Record(place) => (Vec::new(), Some(*place)),
        Content::Parts(parts) => (parts.clone(), None),
    };
    if let Some(place) = place {
        txn.effects.bodies.push(LiveChange { record: place.record, came: true });
    }
    let state = BodyState { references: 1, len: arrived.len, parts };
    txn.put(keys::body(arrived.id), BodyEntry { state, place }.encode());
}

/// Lets a body go that came with a command and is not wanted.
pub(crate) fn forget(txn: &mut Txn<'_>, arrived: Arrived) -> Result<(), Stop> {
    match arrived.content {
        // Never entered.
        Content::Record(_) => Ok(()),
        Content::Parts(parts) => parts.into_iter().try_for_each(|part| release(txn, part)),
    }
}

/// The bytes of a body, or its first `prefix` bytes. The inner error tells people what could not be read.
pub(crate) fn read<V: View>(
    view: &V,
    bodies: &Reads<'_>,
    id: BodyId,
    prefix: Option<u32>,
) -> Result<Result<Bytes, String>, StoreError> {
    let BodyEntry { state, place } = named(view, id)?;
    if let Some(place) = place {
        return Ok(bodies.read(id, place, prefix));
    }
    let wanted = prefix.map_or(state.len, |prefix| prefix.min(state.len)) as usize;
    let mut whole = BytesMut::with_capacity(wanted);
    for part in state.parts {
        if whole.len() >= wanted {
            break;
        }
        let place =
            named(view, part)?.place.ok_or(StoreError::Damaged("a part of a body has parts itself"))?;
        let left = u32::try_from(wanted - whole.len()).unwrap_or(u32::MAX);
        match bodies.read(part, place, Some(left.min(place.len))) {
            Ok(bytes) => whole.extend_from_slice(&bytes),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    Ok(Ok(whole.freeze()))
}

/// One more reference.
pub(crate) fn retain(txn: &mut Txn<'_>, id: BodyId) -> Result<(), Stop> {
    let mut entry = named(txn, id)?;
    entry.state.references += 1;
    txn.put(keys::body(id), entry.encode());
    Ok(())
}

/// One reference less; the body goes with the last one.
pub(crate) fn release(txn: &mut Txn<'_>, id: BodyId) -> Result<(), Stop> {
    let mut entry = named(txn, id)?;
    entry.state.references =
        entry.state.references.checked_sub(1).expect("a body in the table has a reference");
    if entry.state.references == 0 {
        if let Some(place) = entry.place {
            txn.effects.bodies.push(LiveChange { record: place.record, came: false });
        }
        txn.remove(keys::body(id));
        for part in entry.state.parts {
            release(txn, part)?;
        }
    } else {
        txn.put(keys::body(id), entry.encode());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorumail_journal::Position;

    #[test]
    fn an_entry_comes_back_as_written_and_its_state_stands_in_front() {
        let record = Position { segment: 7, offset: 1 << 33, len: 9000 };
        let entry = BodyEntry {
            state: BodyState { references: 300, len: 8192, parts: Vec::new() },
            place: Some(BodyRef { record, offset: 100, len: 8192 }),
        };
        let value = entry.encode();
        assert_eq!(BodyEntry::decode(&value).unwrap(), entry);
        assert_eq!(value[..entry.state.encode().len()], entry.state.encode());
        assert!(BodyEntry::decode(&value[..value.len() - 1]).is_err() && BodyEntry::decode(b"").is_err());
    }
}
