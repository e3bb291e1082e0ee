//! The end of a segment that is being written.

use std::io::{self, IoSlice};

use bytes::Bytes;

use crate::{
    Position, StreamId,
    catalog::Catalog,
    disk::DiskFile,
    format::{Kind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader},
    index::{self, Entries},
};

/// A record on its way to the disk.
pub(crate) struct Outgoing<'a> {
    pub(crate) position: Position,
    pub(crate) stream: StreamId,
    pub(crate) payload: &'a [Bytes],
    pub(crate) payload_crc: u32,
}

/// A segment that is written to.
pub(crate) struct Tail {
    pub(crate) file: Box<dyn DiskFile>,
    pub(crate) header: SegmentHeader,
    /// Where the records end.
    pub(crate) end: u64,
    /// Before which offset all is on disk.
    pub(crate) synced: u64,
    /// What the side index will hold.
    pub(crate) entries: Entries,
    /// Whether a mark stands at the end, or nothing does.
    pub(crate) marked: bool,
}

impl Tail {
    /// Begins a segment.
    pub(crate) fn create(catalog: &Catalog, number: u64, previous_len: u64) -> io::Result<Tail> {
        let (file, header) = catalog.create(number, previous_len)?;
        let end = SEGMENT_HEADER as u64;
        Ok(Tail { file, header, end, synced: end, entries: Entries::default(), marked: true })
    }

    /// Writes records, which follow each other without a gap. After an error the end is where it was.
    pub(crate) fn write<'a>(&mut self, records: impl Iterator<Item = Outgoing<'a>>) -> io::Result<()> {
        let mark = self.entries.mark();
        let mut end = self.end;
        let mut parts: Vec<([u8; RECORD_HEADER], &'a [Bytes])> = Vec::with_capacity(records.size_hint().0);
        for record in records {
            assert_eq!(record.position.segment, self.header.number, "a record is of another segment");
            assert_eq!(record.position.offset, end, "positions leave a gap");
            end = record.position.end();
            let header = RecordHeader {
                kind: Kind::Record,
                stream: record.stream,
                len: record.position.len,
                synced: self.synced,
                payload_crc: record.payload_crc,
            };
            parts.push((header.encode(&self.header, record.position.offset), record.payload));
            let pieces = record.payload.iter().map(|piece| &piece[..]);
            self.entries.push(record.position, record.stream, record.payload_crc, pieces);
        }
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(parts.len() * 3);
        for (header, payload) in &parts {
            slices.push(IoSlice::new(header));
            slices.extend(payload.iter().filter(|piece| !piece.is_empty()).map(|p| IoSlice::new(p)));
        }
        self.file.write_at(&mut slices, self.end).inspect_err(|_| self.entries.cut(mark))?;
        self.end = end;
        self.marked = false;
        Ok(())
    }

    /// Writes an empty record of the journal's own.
    pub(crate) fn note(&mut self, kind: Kind) -> io::Result<()> {
        let note = RecordHeader::note(kind, self.synced).encode(&self.header, self.end);
        self.file.write_at(&mut [IoSlice::new(&note)], self.end)?;
        self.end += RECORD_HEADER as u64;
        self.marked = true;
        Ok(())
    }

    /// Brings all that was written to disk; false when it was there already.
    pub(crate) fn sync(&mut self) -> io::Result<bool> {
        if self.synced == self.end {
            return Ok(false);
        }
        self.file.sync_data()?;
        self.synced = self.end;
        Ok(true)
    }

    /// Ends the segment: the seal and all before it are on disk on return, and its side index is written. Answers where
    /// it ends.
    pub(crate) fn seal(&mut self, catalog: &Catalog) -> io::Result<u64> {
        self.note(Kind::Seal)?;
        self.sync()?;
        index::write(&*catalog.disk, &self.header, self.end, &self.entries);
        catalog.sealed(self.header.number, self.file.len()?, self.entries.records);
        Ok(self.end)
    }
}
