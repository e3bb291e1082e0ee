//! What is written: records, and where they lie.

use bytes::Bytes;

/// Whose record it is. The journal only carries it; consensus uses one stream per Raft group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// Where a record lies on this node's disk. Positions differ from replica to replica and must never be replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// Number of the segment: those of the log from 1 upwards, those of kept records from 2^62 upwards.
    pub segment: u64,
    /// Byte offset of the record's header in its segment file.
    pub offset: u64,
    /// Length of the payload in bytes, without the header.
    pub len: u32,
}

/// One record to append. The payload is given in pieces so that a large body is not copied to join its header;
/// they are written one after the other and read back as one.
#[derive(Debug, Clone)]
pub struct Record {
    /// Whose record it is.
    pub stream: StreamId,
    /// The payload's pieces; at most `Options::max_record_bytes` in all.
    pub payload: Vec<Bytes>,
}

/// Bytes of a record's payload that the side index holds and that are told without reading the record.
pub const HEAD_BYTES: usize = 64;

/// What a segment is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// What was appended, in order.
    Log,
    /// Copies that [`Journal::keep`](crate::Journal::keep) made.
    Kept,
}

impl Class {
    /// Of the segment with this number.
    pub fn of(segment: u64) -> Class {
        crate::segment::class(segment)
    }
}

/// A segment, as [`Journal::segments`](crate::Journal::segments) tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number, as in [`Position::segment`].
    pub number: u64,
    /// What it is for.
    pub class: Class,
    /// Length of its file in bytes: what recycling it gives back.
    pub bytes: u64,
    /// Records in it; of a segment that is still written to, those so far; none of one that is damaged and has no side
    /// index.
    pub records: u64,
    /// Whether nothing more will be written to it.
    pub sealed: bool,
}

/// A record, as the side index of its segment tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordInfo {
    /// Where it lies.
    pub position: Position,
    /// Whose it is.
    pub stream: StreamId,
    /// CRC-32C of the payload.
    pub crc: u32,
    /// The first [`HEAD_BYTES`] bytes of the payload, or all of a shorter one.
    pub head: Bytes,
}
