//! Segment files: their names, how one is made so that it survives a crash, and how records are read from it.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, IoSlice},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    Position, ReadError,
    disk::{Disk, DiskFile},
    format::{Kind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader},
};

/// Segment files that are kept open for reading; the one used longest ago is closed first.
const OPEN_SEGMENTS: usize = 64;
const SUFFIX: &str = ".seg";
const UNFINISHED: &str = ".tmp";

/// The file name of a segment.
pub(crate) fn name(number: u64) -> String {
    format!("{number:016}{SUFFIX}")
}

/// The numbers of the segments on a disk, in order.
pub(crate) fn list(disk: &dyn Disk) -> io::Result<Vec<u64>> {
    // Only the exact spelling counts, so that `1.seg` beside `0000000000000001.seg` cannot be taken for it.
    let number = |file: &String| {
        let number = file.strip_suffix(SUFFIX)?.parse().ok()?;
        (*file == name(number)).then_some(number)
    };
    let mut numbers: Vec<u64> = disk.list()?.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Removes what a crash in the middle of `create` has left.
pub(crate) fn remove_unfinished(disk: &dyn Disk) -> io::Result<()> {
    for name in disk.list()?.iter().filter(|name| name.ends_with(UNFINISHED)) {
        disk.remove(name)?;
    }
    Ok(())
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

/// Makes a segment. When this returns, its header and its name are on disk; a crash before leaves no segment, so a
/// header that does not fit is always damage.
pub(crate) fn create(
    disk: &dyn Disk,
    number: u64,
    previous_len: u64,
    salts: &mut Salts,
) -> io::Result<(Box<dyn DiskFile>, SegmentHeader)> {
    let header = SegmentHeader { number, previous_len, salt: salts.next() };
    let unfinished = format!("{}{UNFINISHED}", name(number));
    let file = disk.create(&unfinished, 0)?;
    file.write_at(&mut [IoSlice::new(&header.encode())], 0)?;
    file.sync_data()?;
    disk.rename(&unfinished, &name(number))?;
    disk.sync_dir()?;
    Ok((file, header))
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

fn damaged(position: Position) -> ReadError {
    ReadError::Damaged { segment: name(position.segment), offset: position.offset }
}
