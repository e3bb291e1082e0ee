//! Where message bodies lie. The state machine keeps references; the bytes stay in the node's journal.

use bytes::Bytes;
use quorumail_journal::Position;

/// Bytes inside a record of this node's journal. Local to a replica: never part of what replicas compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BodyRef {
    /// The record.
    pub record: Position,
    /// Where in the record's payload the body starts, in bytes.
    pub offset: u32,
    /// Length of the body in bytes; this is RFC822.SIZE of a message.
    pub len: u32,
}

/// Reads and keeps message bodies. Calls block on disk.
pub trait Bodies: Send + Sync {
    /// The body, or its first `prefix` bytes. The error tells people what could not be read.
    fn read(&self, body: BodyRef, prefix: Option<u32>) -> Result<Bytes, String>;

    /// Keeps bodies that arrived in a snapshot, and not in the log; they are durable on return. References are in the
    /// order of the bodies.
    fn keep(&self, bodies: Vec<Bytes>) -> Result<Vec<BodyRef>, String>;
}

impl BodyRef {
    /// Length of the encoded form.
    pub(crate) const ENCODED: usize = 28;

    /// Fixed length, so that a snapshot can replace it in front of a value without decoding the rest.
    pub(crate) fn encode(&self) -> [u8; Self::ENCODED] {
        let mut out = [0; Self::ENCODED];
        out[0..8].copy_from_slice(&self.record.segment.to_be_bytes());
        out[8..16].copy_from_slice(&self.record.offset.to_be_bytes());
        out[16..20].copy_from_slice(&self.record.len.to_be_bytes());
        out[20..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..28].copy_from_slice(&self.len.to_be_bytes());
        out
    }

    /// Splits what [`BodyRef::encode`] wrote from the rest of a value.
    pub(crate) fn split(value: &[u8]) -> Option<(Self, &[u8])> {
        let (segment, rest) = value.split_first_chunk::<8>()?;
        let (record_offset, rest) = rest.split_first_chunk::<8>()?;
        let (record_len, rest) = rest.split_first_chunk::<4>()?;
        let (offset, rest) = rest.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let record = Position {
            segment: u64::from_be_bytes(*segment),
            offset: u64::from_be_bytes(*record_offset),
            len: u32::from_be_bytes(*record_len),
        };
        Some((Self { record, offset: u32::from_be_bytes(*offset), len: u32::from_be_bytes(*len) }, rest))
    }
}
