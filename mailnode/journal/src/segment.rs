//! Segment files: their names, how one is made so that it survives a crash, and how records are read from it.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    Position, ReadError,
    format::{Kind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader},
};

/// Segment files that are kept open for reading; the one used longest ago is closed first.
const OPEN_SEGMENTS: usize = 64;
/// Mail is private to the user that the server runs as.
const FILE_MODE: u32 = 0o600;
const SUFFIX: &str = ".seg";
const UNFINISHED: &str = ".tmp";

/// The file name of a segment.
pub(crate) fn name(number: u64) -> String {
    format!("{number:016}{SUFFIX}")
}

/// The numbers of the segments in a directory, in order.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let file_name = entry?.file_name();
        let number =
            file_name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(|stem| stem.parse().ok());
        // Only the exact spelling counts, so that `1.seg` beside `0000000000000001.seg` cannot be taken for it.
        numbers.extend(number.filter(|n| file_name.to_str() == Some(&name(*n))));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Removes what a crash in the middle of `create` has left.
pub(crate) fn remove_unfinished(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == &UNFINISHED[1..]) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Makes a segment. When this returns, its header and its name are on disk; a crash before leaves no segment, so a
/// header that does not fit is always damage. The file's cursor is behind the header.
pub(crate) fn create(dir: &Path, number: u64, previous_len: u64) -> io::Result<(File, SegmentHeader)> {
    let header = SegmentHeader { number, previous_len, salt: RandomState::new().build_hasher().finish() };
    let unfinished = dir.join(format!("{}{UNFINISHED}", name(number)));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&unfinished)?;
    file.write_all(&header.encode())?;
    file.sync_all()?;
    fs::rename(&unfinished, dir.join(name(number)))?;
    sync_dir(dir)?;
    Ok((file, header))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A segment that is open for reading.
struct OpenSegment {
    file: File,
    header: SegmentHeader,
}

/// Reads records from segments, with a bounded number of open files.
pub(crate) struct Reader {
    dir: PathBuf,
    open: Mutex<VecDeque<Arc<OpenSegment>>>,
}

impl Reader {
    pub(crate) fn new(dir: PathBuf) -> Reader {
        Reader { dir, open: Mutex::new(VecDeque::with_capacity(OPEN_SEGMENTS)) }
    }

    /// The payload of a record that has been written.
    pub(crate) fn read(&self, position: Position) -> Result<Bytes, ReadError> {
        let segment = self.segment(position)?;
        let mut header = [0; RECORD_HEADER];
        read_exact(&segment.file, &mut header, position)?;
        let header = RecordHeader::decode(&header, &segment.header, position.offset)
            .ok_or_else(|| damaged(position))?;
        if header.kind != Kind::Record || header.len != position.len {
            return Err(not_found(position));
        }
        let mut payload = vec![0; position.len as usize];
        let start = Position { offset: position.offset + RECORD_HEADER as u64, ..position };
        read_exact(&segment.file, &mut payload, start).map_err(|error| match error {
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
        let file = File::open(self.dir.join(&name)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => not_found(position),
            _ => ReadError::Io { segment: name.clone(), source },
        })?;
        let mut header = [0; SEGMENT_HEADER];
        read_exact(&file, &mut header, Position { offset: 0, ..position })?;
        match SegmentHeader::decode(&header) {
            Ok(header) if header.number == position.segment => Ok(OpenSegment { file, header }),
            _ => Err(ReadError::Damaged { segment: name, offset: 0 }),
        }
    }
}

fn read_exact(file: &File, into: &mut [u8], at: Position) -> Result<(), ReadError> {
    file.read_exact_at(into, at.offset).map_err(|source| match source.kind() {
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
