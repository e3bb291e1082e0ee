//! Where message bodies lie. The index keeps references; the bytes stay in the node's journal.

use bytes::Bytes;
use quorumail_journal::{Class, Journal, Position, Record, RecordInfo, SegmentInfo, StreamId};

use crate::{BodyId, BodyRecord, Segment, Segments};

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

/// What stands in front of a kept body in its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeptHead {
    pub(crate) group: u32,
    pub(crate) body: BodyId,
}

impl KeptHead {
    /// Version of the format; its first byte.
    const FORMAT: u8 = 1;
    /// Length in bytes.
    pub(crate) const LEN: usize = 13;

    pub(crate) fn decode(head: &[u8]) -> Option<Self> {
        let [Self::FORMAT, rest @ ..] = head else { return None };
        let (group, rest) = rest.split_first_chunk::<4>()?;
        let body = rest.first_chunk::<8>()?;
        Some(Self { group: u32::from_le_bytes(*group), body: BodyId(u64::from_le_bytes(*body)) })
    }

    fn not_understood(head: &[u8]) -> String {
        let found = head.first().copied().unwrap_or_default();
        format!("a kept body has format {found}, and this version knows format {}", Self::FORMAT)
    }

    pub(crate) fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [Self::FORMAT; Self::LEN];
        out[1..5].copy_from_slice(&self.group.to_le_bytes());
        out[5..13].copy_from_slice(&self.body.0.to_le_bytes());
        out
    }
}

/// Reads and keeps message bodies. Calls block on disk.
pub trait Bodies: Send + Sync {
    /// The body, or its first `prefix` bytes. The error tells people what could not be read.
    fn read(&self, body: BodyRef, prefix: Option<u32>) -> Result<Bytes, String>;

    /// Keeps bodies of a group that arrived in a snapshot, and not in the log; they are durable on return. References are
    /// in the order of the bodies.
    fn keep(&self, group: u32, bodies: Vec<(BodyId, Bytes)>) -> Result<Vec<BodyRef>, String>;
}

/// Tells from the first bytes of a record of a log which log index the command in it has: none when it carries no
/// command. The error says in words what is not understood.
pub type CommandIndex = fn(&[u8]) -> Result<Option<u64>, String>;

/// Bodies in the node's journal.
#[derive(Clone)]
pub struct JournalBodies {
    pub(crate) journal: Journal,
    command_index: CommandIndex,
}

impl JournalBodies {
    /// Bodies of the logs in this journal, and kept ones next to them in [`KEPT_BODIES`].
    pub fn new(journal: Journal, command_index: CommandIndex) -> Self {
        Self { journal, command_index }
    }

    pub(crate) fn owner(&self, info: &RecordInfo) -> Result<Option<BodyRecord>, String> {
        let owner = if info.stream == KEPT_BODIES {
            let head = KeptHead::decode(&info.head).ok_or_else(|| KeptHead::not_understood(&info.head))?;
            Some((head.group, head.body))
        } else {
            (self.command_index)(&info.head)?.map(|index| (info.stream.0, BodyId(index)))
        };
        Ok(owner.map(|(group, body)| BodyRecord { record: info.position, group, body }))
    }
}

impl Segments for JournalBodies {
    fn sealed(&self) -> Vec<Segment> {
        let floor = self.journal.stats().floor;
        let segments = self.journal.segments().unwrap_or_else(|error| {
            tracing::warn!(%error, "the segments of the journal cannot be told; nothing is compacted");
            Vec::new()
        });
        let free = |info: &SegmentInfo| info.sealed && (info.class == Class::Kept || info.number < floor);
        segments
            .into_iter()
            .filter(free)
            .map(|info| Segment { number: info.number, bytes: info.bytes })
            .collect()
    }

    fn records(&self, segment: u64) -> Result<Vec<BodyRecord>, String> {
        let records = self.journal.records(segment).map_err(|error| error.to_string())?;
        records.iter().filter_map(|info| self.owner(info).transpose()).collect()
    }

    fn recycle(&self, segment: u64) -> Result<(), String> {
        self.journal.recycle(segment).map_err(|error| error.to_string())
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

    fn keep(&self, group: u32, bodies: Vec<(BodyId, Bytes)>) -> Result<Vec<BodyRef>, String> {
        if let Some((_, long)) = bodies.iter().find(|(_, body)| body.len() > MAX_KEPT_BODY) {
            return Err(format!("a body of {} bytes is longer than {MAX_KEPT_BODY}", long.len()));
        }
        let record = |(body, bytes): (BodyId, Bytes)| {
            let head = KeptHead { group, body }.encode();
            Record { stream: KEPT_BODIES, payload: vec![Bytes::copy_from_slice(&head), bytes] }
        };
        let records: Vec<Record> = bodies.into_iter().map(record).collect();
        let positions = self.journal.keep(&records).map_err(|error| error.to_string())?;
        let place = |record: Position| {
            let offset = KeptHead::LEN as u32;
            BodyRef { record, offset, len: record.len - offset }
        };
        Ok(positions.into_iter().map(place).collect())
    }
}

/// For tests of a store without mail.
#[cfg(test)]
pub(crate) struct NoBodies;

#[cfg(test)]
impl Bodies for NoBodies {
    fn read(&self, _: BodyRef, _: Option<u32>) -> Result<Bytes, String> {
        Err("there are no bodies".to_owned())
    }

    fn keep(&self, _: u32, _: Vec<(BodyId, Bytes)>) -> Result<Vec<BodyRef>, String> {
        Err("there are no bodies".to_owned())
    }
}
