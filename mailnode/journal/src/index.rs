//! The side index of a sealed segment: where each record lies, whose it is and how it begins, so that a journal can be
//! opened and a segment's content judged without reading it.
//!
//! It is a file beside the segment, `<segment>.idx`, and holds nothing that the segment does not: it is written without
//! sync, believed only when its checksums fit, and made anew otherwise. All integers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `QMINDEX1` |
//! | 8..12 | format version |
//! | 12..16 | CRC-32C of the entries |
//! | 16..24 | number of the segment |
//! | 24..32 | its salt |
//! | 32..40 | where its records end, the seal included |
//! | 40..48 | number of entries |
//! | 48..52 | CRC-32C of the bytes before |
//!
//! then entries, in order: offset (8), length of the payload (4), stream (4), CRC-32C of the payload (4), length of the
//! head (1), the head.

use std::io::{self, IoSlice};

use bytes::Bytes;

use crate::{
    HEAD_BYTES, Position, RecordInfo, StreamId,
    disk::Disk,
    format::{SegmentHeader, VERSION, u32_at, u64_at},
    segment,
};

const MAGIC: [u8; 8] = *b"QMINDEX1";
const HEADER: usize = 52;
/// Bytes of an entry before its head.
const ENTRY: usize = 21;

/// The entries of a segment, in the form in which they are written.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    bytes: Vec<u8>,
    pub(crate) records: u64,
}

impl Entries {
    /// Takes up a record; its payload may be given in pieces.
    pub(crate) fn push<'a>(
        &mut self,
        position: Position,
        stream: StreamId,
        crc: u32,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) {
        self.bytes.extend(position.offset.to_le_bytes());
        self.bytes.extend(position.len.to_le_bytes());
        self.bytes.extend(stream.0.to_le_bytes());
        self.bytes.extend(crc.to_le_bytes());
        let head = (position.len as usize).min(HEAD_BYTES);
        self.bytes.push(u8::try_from(head).expect("a head is short"));
        let until = self.bytes.len() + head;
        for piece in pieces {
            let rest = until - self.bytes.len();
            if rest == 0 {
                break;
            }
            self.bytes.extend_from_slice(&piece[..piece.len().min(rest)]);
        }
        assert_eq!(self.bytes.len(), until, "a payload is shorter than its length");
        self.records += 1;
    }

    /// How much there is, for [`Entries::cut`].
    pub(crate) fn mark(&self) -> (usize, u64) {
        (self.bytes.len(), self.records)
    }

    /// Forgets what was taken up since `mark`.
    pub(crate) fn cut(&mut self, (bytes, records): (usize, u64)) {
        self.bytes.truncate(bytes);
        self.records = records;
    }
}

/// A side index that was read and checked.
#[derive(Debug)]
pub(crate) struct Index {
    bytes: Bytes,
    pub(crate) number: u64,
    pub(crate) end: u64,
    pub(crate) records: u64,
}

fn encode_header(segment: &SegmentHeader, end: u64, entries: &Entries) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[0..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&crc32c::crc32c(&entries.bytes).to_le_bytes());
    out[16..24].copy_from_slice(&segment.number.to_le_bytes());
    out[24..32].copy_from_slice(&segment.salt.to_le_bytes());
    out[32..40].copy_from_slice(&end.to_le_bytes());
    out[40..48].copy_from_slice(&entries.records.to_le_bytes());
    let crc = crc32c::crc32c(&out[..48]);
    out[48..52].copy_from_slice(&crc.to_le_bytes());
    out
}

fn header_fits(bytes: &[u8], segment: &SegmentHeader) -> bool {
    bytes.len() >= HEADER
        && bytes[0..8] == MAGIC
        && u32_at(bytes, 8) == VERSION
        && u32_at(bytes, 48) == crc32c::crc32c(&bytes[..48])
        && u64_at(bytes, 16) == segment.number
        && u64_at(bytes, 24) == segment.salt
}

/// Writes the index of a segment. It can always be made anew, so a failure is only told.
pub(crate) fn write(disk: &dyn Disk, segment: &SegmentHeader, end: u64, entries: &Entries) {
    let name = segment::index_name(segment.number);
    let header = encode_header(segment, end, entries);
    let written = disk
        .create(&name, 0)
        .and_then(|file| file.write_at(&mut [IoSlice::new(&header), IoSlice::new(&entries.bytes)], 0));
    if let Err(error) = written {
        tracing::warn!(%error, name, "a side index could not be written; it will be made anew when it is needed");
        // What is left of it would not be believed anyway.
        let _ = disk.remove(&name);
    }
}

/// The number of records, from the header alone; none when there is no index that fits.
pub(crate) fn count(disk: &dyn Disk, segment: &SegmentHeader) -> io::Result<Option<u64>> {
    let file = match disk.open(&segment::index_name(segment.number)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut header = [0; HEADER];
    match file.read_at(&mut header, 0) {
        Ok(()) => Ok(header_fits(&header, segment).then(|| u64_at(&header, 40))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads an index; none when there is none that fits the segment.
pub(crate) fn read(disk: &dyn Disk, segment: &SegmentHeader) -> io::Result<Option<Index>> {
    let file = match disk.open(&segment::index_name(segment.number)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, 0)?;
    if !header_fits(&bytes, segment) || u32_at(&bytes, 12) != crc32c::crc32c(&bytes[HEADER..]) {
        return Ok(None);
    }
    let (end, records) = (u64_at(&bytes, 32), u64_at(&bytes, 40));
    let index = Index { bytes: Bytes::from(bytes).slice(HEADER..), number: segment.number, end, records };
    // The checksum fits what a writer wrote; that it is well formed is checked all the same before it is relied on.
    let whole = index.iter().map(|record| record.head.len() + ENTRY).sum::<usize>() == index.bytes.len();
    Ok((whole && index.iter().count() as u64 == records).then_some(index))
}

impl Index {
    /// From entries at hand.
    pub(crate) fn of(number: u64, end: u64, entries: Entries) -> Index {
        Index { number, end, records: entries.records, bytes: entries.bytes.into() }
    }

    /// All records, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = RecordInfo> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let entry = self.bytes.get(at..at + ENTRY)?;
            let head = usize::from(entry[20]);
            let position = Position { segment: self.number, offset: u64_at(entry, 0), len: u32_at(entry, 8) };
            let (stream, crc) = (StreamId(u32_at(entry, 12)), u32_at(entry, 16));
            let from = at + ENTRY;
            at = from + head;
            let fits = head <= HEAD_BYTES && at <= self.bytes.len();
            fits.then(|| RecordInfo { position, stream, crc, head: self.bytes.slice(from..at) })
        })
    }
}
