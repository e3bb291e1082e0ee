//! Segment files: what they are called, and how records are read from them.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    Class, Position, ReadError,
    disk::{Disk, DiskFile},
    format::{Kind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader},
};

/// Segment files that are kept open for reading; the one used longest ago is closed first.
const OPEN_SEGMENTS: usize = 64;
/// Kept segments are numbered from here, so that the log's numbers stay without gaps.
pub(crate) const FIRST_KEPT: u64 = 1 << 62;
const LOG: &str = ".seg";
const KEPT: &str = ".kept";
const INDEX: &str = ".idx";
const FREE: &str = ".free";
/// Of files that are being made; a crash may leave them.
pub(crate) const UNFINISHED: &str = ".tmp";

/// What a segment of that number is for.
pub(crate) fn class(number: u64) -> Class {
    if number < FIRST_KEPT { Class::Log } else { Class::Kept }
}

/// The file name of a segment.
pub(crate) fn name(number: u64) -> String {
    match class(number) {
        Class::Log => format!("{number:016}{LOG}"),
        Class::Kept => format!("{:016}{KEPT}", number - FIRST_KEPT),
    }
}

/// The file name of a segment's side index.
pub(crate) fn index_name(number: u64) -> String {
    format!("{}{INDEX}", name(number))
}

/// The name that a segment's file has while it waits to be used again.
pub(crate) fn free_name(number: u64) -> String {
    format!("{}{FREE}", name(number))
}

/// Whether a file waits to be used again.
pub(crate) fn is_free(file: &str) -> bool {
    file.ends_with(FREE)
}

/// The number of the segment whose file name this is. Only the exact spelling counts, so that `1.seg` beside
/// `0000000000000001.seg` cannot be taken for it.
pub(crate) fn number_of(file: &str) -> Option<u64> {
    let number = match (file.strip_suffix(LOG), file.strip_suffix(KEPT)) {
        (Some(stem), _) => stem.parse().ok()?,
        (_, Some(stem)) => FIRST_KEPT.checked_add(stem.parse().ok()?)?,
        (None, None) => return None,
    };
    (file == name(number)).then_some(number)
}

/// The number of the segment that a file was which waits to be used again.
pub(crate) fn number_of_free(file: &str) -> Option<u64> {
    number_of(file.strip_suffix(FREE)?)
}

/// The number of the segment whose side index has this file name.
pub(crate) fn number_of_index(file: &str) -> Option<u64> {
    number_of(file.strip_suffix(INDEX)?)
}

/// Where the salts of segments come from: the system, or a seed.
#[derive(Debug, Clone)]
pub(crate) struct Salts(pub(crate) Option<u64>);

impl Salts {
    pub(crate) fn next(&mut self) -> u64 {
        match &mut self.0 {
            None => RandomState::new().build_hasher().finish(),
            Some(seed) => {
                // SplitMix64.
                *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^ (z >> 31)
            }
        }
    }
}

/// A segment that is open for reading.
struct OpenSegment {
    file: Box<dyn DiskFile>,
    header: SegmentHeader,
}

/// Reads records from segments, with a bounded number of open files.
pub(crate) struct Reader {
    disk: Arc<dyn Disk>,
    open: Mutex<VecDeque<Arc<OpenSegment>>>,
}

impl Reader {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Reader {
        Reader { disk, open: Mutex::new(VecDeque::with_capacity(OPEN_SEGMENTS)) }
    }

    /// The payload of a record that has been written.
    pub(crate) fn read(&self, position: Position) -> Result<Bytes, ReadError> {
        let segment = self.segment(position)?;
        let mut header = [0; RECORD_HEADER];
        read_exact(&*segment.file, &mut header, position)?;
        let header = RecordHeader::decode(&header, &segment.header, position.offset)
            .ok_or_else(|| damaged(position))?;
        if header.kind != Kind::Record || header.len != position.len {
            return Err(not_found(position));
        }
        let mut payload = vec![0; position.len as usize];
        let start = Position { offset: position.offset + RECORD_HEADER as u64, ..position };
        read_exact(&*segment.file, &mut payload, start).map_err(|error| match error {
            ReadError::NotFound { .. } => damaged(position),
            other => other,
        })?;
        if crc32c::crc32c(&payload) != header.payload_crc {
            return Err(damaged(position));
        }
        Ok(Bytes::from(payload))
    }

    /// The header of a segment.
    pub(crate) fn header(&self, number: u64) -> Result<SegmentHeader, ReadError> {
        let position = Position { segment: number, offset: 0, len: 0 };
        Ok(self.segment(position)?.header)
    }

    /// Closes a segment whose file is about to become another one.
    pub(crate) fn forget(&self, number: u64) {
        self.open.lock().retain(|segment| segment.header.number != number);
    }

    fn segment(&self, position: Position) -> Result<Arc<OpenSegment>, ReadError> {
        let mut open = self.open.lock();
        if let Some(at) = open.iter().position(|segment| segment.header.number == position.segment) {
            let segment = open.remove(at).expect("the index was found in this very list");
            open.push_back(Arc::clone(&segment));
            return Ok(segment);
        }
        drop(open);
        let segment = Arc::new(self.open(position)?);
        let mut open = self.open.lock();
        while open.len() >= OPEN_SEGMENTS {
            open.pop_front();
        }
        open.push_back(Arc::clone(&segment));
        Ok(segment)
    }

    fn open(&self, position: Position) -> Result<OpenSegment, ReadError> {
        let name = name(position.segment);
        let file = self.disk.open(&name).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => not_found(position),
            _ => ReadError::Io { segment: name.clone(), source },
        })?;
        let mut header = [0; SEGMENT_HEADER];
        read_exact(&*file, &mut header, Position { offset: 0, ..position })?;
        match SegmentHeader::decode(&header) {
            Ok(header) if header.number == position.segment => Ok(OpenSegment { file, header }),
            _ => Err(ReadError::Damaged { segment: name, offset: 0 }),
        }
    }
}

fn read_exact(file: &dyn DiskFile, into: &mut [u8], at: Position) -> Result<(), ReadError> {
    file.read_at(into, at.offset).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => not_found(at),
        _ => ReadError::Io { segment: name(at.segment), source },
    })
}

pub(crate) fn not_found(position: Position) -> ReadError {
    ReadError::NotFound { segment: name(position.segment), offset: position.offset }
}

pub(crate) fn damaged(position: Position) -> ReadError {
    ReadError::Damaged { segment: name(position.segment), offset: position.offset }
}
