//! What is written: records, and where they lie.

use bytes::Bytes;

/// Whose record it is. The journal only carries it; consensus uses one stream per Raft group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// Where a record lies on this node's disk. Positions differ from replica to replica and must never be replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// Number of the segment, from 1 upwards.
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
