//! Where message bodies lie. The index keeps references; the bytes stay in the node's journal.

use std::sync::mpsc;

use bytes::Bytes;
use quorumail_journal::{Journal, Position, Record, StreamId};

/// The stream of bodies that came in snapshots: they belong to no log, and whoever reads the journal for the logs
/// passes over them.
pub const KEPT_BODIES: StreamId = StreamId(u32::MAX);
/// Longest body that is kept, in bytes; the longest record of a journal with the usual limits.
const MAX_KEPT_BODY: usize = 96 << 20;

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

/// Bodies in the node's journal.
#[derive(Clone)]
pub struct JournalBodies {
    journal: Journal,
}

impl JournalBodies {
    /// Bodies of the logs in this journal, and kept ones next to them in [`KEPT_BODIES`].
    pub fn new(journal: Journal) -> Self {
        Self { journal }
    }
}

impl Bodies for JournalBodies {
    fn read(&self, body: BodyRef, prefix: Option<u32>) -> Result<Bytes, String> {
        let len = prefix.map_or(body.len, |prefix| prefix.min(body.len));
        let bytes =
            self.journal.read_range(body.record, body.offset, len).map_err(|error| error.to_string())?;
        // A slice keeps its whole record in memory: not for the headers of large messages.
        Ok(if len < body.record.len / 2 { Bytes::copy_from_slice(&bytes) } else { bytes })
    }

    fn keep(&self, bodies: Vec<Bytes>) -> Result<Vec<BodyRef>, String> {
        if let Some(long) = bodies.iter().find(|body| body.len() > MAX_KEPT_BODY) {
            return Err(format!("a body of {} bytes is longer than {MAX_KEPT_BODY}", long.len()));
        }
        let records =
            bodies.into_iter().map(|body| Record { stream: KEPT_BODIES, payload: vec![body] }).collect();
        let (tell, told) = mpsc::sync_channel(1);
        let positions = self.journal.append(records, move || {
            // The receiver waits below.
            let _ = tell.send(());
        });
        told.recv().map_err(|_| "the journal ended before the bodies were on disk".to_owned())?;
        Ok(positions.into_iter().map(|record| BodyRef { record, offset: 0, len: record.len }).collect())
    }
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
