//! Copies of records that are to outlive the segment they came in, in segments of their own.
//!
//! They are written and synced by whoever keeps them, never through the queue: the log's writer does not wait for them.

use std::{io, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    Position, Record,
    catalog::Catalog,
    format::{RECORD_HEADER, SEGMENT_HEADER},
    tail::{Outgoing, Tail},
};

/// Why records could not be kept. None of them is there then, and what was kept before is as safe as it was.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The disk is full. Try again when there is room.
    #[error("the disk has no room to keep records")]
    Full,
    /// The disk failed. A journal with a thread of its own ends the process on it; for one that is driven by hand, the
    /// pump fails with the next step, and the node must stop.
    #[error("failed to write kept records: {0}")]
    Io(#[source] io::Error),
}

/// Writes kept segments.
pub(crate) struct Keeper {
    catalog: Arc<Catalog>,
    segment_bytes: u64,
    tail: Mutex<Option<Tail>>,
}

impl Keeper {
    pub(crate) fn new(catalog: Arc<Catalog>, segment_bytes: u64) -> Keeper {
        Keeper { catalog, segment_bytes, tail: Mutex::new(None) }
    }

    /// Writes records and syncs them.
    pub(crate) fn keep(&self, records: &[Record]) -> io::Result<Vec<Position>> {
        let mut current = self.tail.lock();
        let mut positions = Vec::with_capacity(records.len());
        let mut rest = records;
        while !rest.is_empty() {
            let mut tail = match current.take() {
                Some(tail) if self.fits(tail.end, &rest[0]) || tail.end == SEGMENT_HEADER as u64 => tail,
                Some(mut full) => {
                    // If that fails, what is in it is safe all the same: it is sealed when the journal is opened.
                    full.seal(&self.catalog)?;
                    Tail::create(&self.catalog, self.catalog.next_kept(), 0)?
                }
                None => Tail::create(&self.catalog, self.catalog.next_kept(), 0)?,
            };
            let (outgoing, count) = self.place(&tail, rest);
            let here: Vec<Position> = outgoing.iter().map(|record| record.position).collect();
            let wrote = tail.write(outgoing.into_iter()).and_then(|()| tail.sync());
            if let Some(known) = self.catalog.state.lock().segments.get_mut(&tail.header.number) {
                known.records = Some(tail.entries.records);
            }
            *current = Some(tail);
            wrote?;
            positions.extend(here);
            rest = &rest[count..];
        }
        Ok(positions)
    }

    /// Seals a segment if it is the one that is written to.
    pub(crate) fn end_segment(&self, segment: u64) -> io::Result<()> {
        let mut current = self.tail.lock();
        match current.take() {
            Some(mut tail) if tail.header.number == segment => tail.seal(&self.catalog).map(drop),
            other => {
                *current = other;
                Ok(())
            }
        }
    }

    /// Whether a record has room at `end`, with the seal behind it.
    fn fits(&self, end: u64, record: &Record) -> bool {
        end + len_of(record) + 2 * RECORD_HEADER as u64 <= self.segment_bytes
    }

    /// Gives places to as many records as go into the segment, at least one.
    fn place<'a>(&self, tail: &Tail, records: &'a [Record]) -> (Vec<Outgoing<'a>>, usize) {
        let mut end = tail.end;
        let mut outgoing: Vec<Outgoing<'a>> = Vec::new();
        for record in records {
            if !outgoing.is_empty() && !self.fits(end, record) {
                break;
            }
            let len = u32::try_from(len_of(record)).expect("checked against max_record_bytes");
            let position = Position { segment: tail.header.number, offset: end, len };
            end = position.end();
            let payload_crc = checksum(&record.payload);
            outgoing.push(Outgoing {
                position,
                stream: record.stream,
                payload: &record.payload,
                payload_crc,
            });
        }
        let count = outgoing.len();
        (outgoing, count)
    }
}

fn len_of(record: &Record) -> u64 {
    record.payload.iter().map(|piece| piece.len() as u64).sum()
}

fn checksum(pieces: &[Bytes]) -> u32 {
    pieces.iter().fold(crc32c::crc32c(&[]), |crc, piece| crc32c::crc32c_append(crc, piece))
}

/// What a failure to keep means.
pub(crate) fn keep_error(error: io::Error) -> KeepError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => KeepError::Full,
        _ => KeepError::Io(error),
    }
}
