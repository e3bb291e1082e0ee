//! What is done with the segments when a journal is opened.
//!
//! Every record is read and checked. In every segment but the last one all must be valid to the last byte, for it was
//! synced before its successor was made (whose header tells its length). In the last segment the first invalid record
//! is either the torn end of what was being written when the node went down, then it is cut with all behind it; or
//! it is damage to something that had been safe, then nothing is touched and the journal is refused.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use crate::{
    OpenError, Position, StreamId,
    format::{
        BadSegmentHeader, Kind, RECORD_HEADER, RECORD_MAGIC, RecordHeader, SEGMENT_HEADER, SegmentHeader,
        VERSION,
    },
    segment,
};

/// Read buffer of the scan, and step of the search for headers behind an invalid record.
const SCAN_BUFFER: usize = 1 << 20;

/// The last segment, open for appending, and the sums over all of them.
pub(crate) struct Recovered {
    pub(crate) file: File,
    pub(crate) header: SegmentHeader,
    /// Where the next record goes; all before it is on disk.
    pub(crate) end: u64,
    /// Whether the last record is a mark or there is none, so that no mark is owed.
    pub(crate) marked: bool,
    pub(crate) segments: u64,
    pub(crate) disk_bytes: u64,
}

/// Reads all segments of a directory, cuts a torn tail, and makes a first segment where there is none.
pub(crate) fn recover(
    dir: &Path,
    mut visit: impl FnMut(Position, StreamId, Bytes),
) -> Result<Recovered, OpenError> {
    let at = |action, path: &Path| io_error(action, path.to_owned());
    segment::remove_unfinished(dir).map_err(at("clean journal directory", dir))?;
    let numbers = segment::list(dir).map_err(at("list journal directory", dir))?;
    let Some((&last, earlier)) = numbers.split_last() else {
        let (file, header) = segment::create(dir, 1, 0).map_err(at("create first segment in", dir))?;
        let end = SEGMENT_HEADER as u64;
        return Ok(Recovered { file, header, end, marked: true, segments: 1, disk_bytes: end });
    };
    let mut disk_bytes = 0;
    let mut previous: Option<(u64, u64)> = None;
    for &number in earlier {
        let scan = Scan::open(dir, number, previous)?;
        let end = scan.run(&mut visit)?;
        if let Some(torn) = end.invalid {
            return Err(damaged(number, end.valid_until, torn));
        }
        previous = Some((number, end.valid_until));
        disk_bytes += end.valid_until;
    }
    let scan = Scan::open(dir, last, previous)?;
    let header = scan.header;
    let end = scan.run(&mut visit)?;
    let path = dir.join(segment::name(last));
    let file = reopen(&path, &header, &end)?;
    let disk_bytes = disk_bytes + end.valid_until;
    let segments = numbers.len() as u64;
    Ok(Recovered { file, header, end: end.valid_until, marked: end.marked, segments, disk_bytes })
}

/// Opens the last segment for appending, without its torn tail and with everything in it on disk.
fn reopen(path: &Path, header: &SegmentHeader, end: &ScanEnd) -> Result<File, OpenError> {
    let at = |action| io_error(action, path.to_owned());
    let mut file =
        OpenOptions::new().read(true).write(true).open(path).map_err(at("open segment for appending"))?;
    if let Some(reason) = end.invalid {
        if vouched_for(&file, header, end.valid_until).map_err(at("search segment"))? {
            return Err(damaged(header.number, end.valid_until, reason));
        }
        let len = file.metadata().map_err(at("inspect segment"))?.len();
        tracing::warn!(
            segment = segment::name(header.number),
            offset = end.valid_until,
            bytes = len - end.valid_until,
            "cutting the torn tail of the journal"
        );
        file.set_len(end.valid_until).map_err(at("cut the torn tail of"))?;
    }
    // Records that a killed process had written but not synced are told to the visitor as safe, so they must be.
    file.sync_all().map_err(at("sync segment"))?;
    if let Some(dir) = path.parent() {
        segment::sync_dir(dir).map_err(at("sync directory of"))?;
    }
    file.seek(SeekFrom::Start(end.valid_until)).map_err(at("seek in segment"))?;
    Ok(file)
}

/// Whether a header behind `invalid` says that the record there had been on disk.
fn vouched_for(file: &File, segment: &SegmentHeader, invalid: u64) -> io::Result<bool> {
    let len = file.metadata()?.len();
    let mut window = vec![0; SCAN_BUFFER + RECORD_HEADER];
    let mut start = invalid;
    while start + RECORD_HEADER as u64 <= len {
        let size = window.len().min(usize::try_from(len - start).unwrap_or(usize::MAX));
        file.read_exact_at(&mut window[..size], start)?;
        for (at, candidate) in window[..size].windows(RECORD_HEADER).enumerate() {
            if !candidate.starts_with(&RECORD_MAGIC) {
                continue;
            }
            let mut bytes = [0; RECORD_HEADER];
            bytes.copy_from_slice(candidate);
            if RecordHeader::decode(&bytes, segment, start + at as u64)
                .is_some_and(|header| header.synced > invalid)
            {
                return Ok(true);
            }
        }
        start += SCAN_BUFFER as u64;
    }
    Ok(false)
}

/// Where a scan ended.
struct ScanEnd {
    /// End of the last valid record.
    valid_until: u64,
    /// What is wrong with the bytes that follow, if any do.
    invalid: Option<&'static str>,
    marked: bool,
}

/// One segment being read from its begin.
struct Scan {
    path: PathBuf,
    reader: BufReader<File>,
    header: SegmentHeader,
    len: u64,
}

impl Scan {
    /// Opens a segment and checks its header against the segment before it (number and length).
    fn open(dir: &Path, number: u64, previous: Option<(u64, u64)>) -> Result<Scan, OpenError> {
        if let Some((before, _)) = previous
            && before + 1 != number
        {
            return Err(OpenError::Missing { segment: segment::name(before + 1), dir: dir.to_owned() });
        }
        let path = dir.join(segment::name(number));
        let at = |action| io_error(action, path.clone());
        let file = File::open(&path).map_err(at("open segment"))?;
        let len = file.metadata().map_err(at("inspect segment"))?.len();
        let mut reader = BufReader::with_capacity(SCAN_BUFFER, file);
        let mut bytes = [0; SEGMENT_HEADER];
        if len < SEGMENT_HEADER as u64 {
            return Err(damaged(number, 0, "its header is cut off"));
        }
        reader.read_exact(&mut bytes).map_err(at("read header of segment"))?;
        let header = SegmentHeader::decode(&bytes).map_err(|bad| match bad {
            BadSegmentHeader::Damaged => damaged(number, 0, "its header's checksum does not fit"),
            BadSegmentHeader::Version(found) => {
                OpenError::Version { segment: segment::name(number), found, expected: VERSION }
            }
        })?;
        if header.number != number {
            return Err(damaged(number, 0, "its header names another segment"));
        }
        if let Some((before, end)) = previous
            && header.previous_len != end
        {
            return Err(damaged(before, end, "it is shorter than its successor remembers"));
        }
        Ok(Scan { path, reader, header, len })
    }

    /// Visits records until the end or the first that is not valid.
    fn run(mut self, visit: &mut impl FnMut(Position, StreamId, Bytes)) -> Result<ScanEnd, OpenError> {
        let mut end = ScanEnd { valid_until: SEGMENT_HEADER as u64, invalid: None, marked: true };
        while end.valid_until < self.len {
            match self.next(end.valid_until).map_err(io_error("read segment", self.path.clone()))? {
                Ok((header, payload)) => {
                    let position =
                        Position { segment: self.header.number, offset: end.valid_until, len: header.len };
                    end.valid_until = position.end();
                    end.marked = header.kind == Kind::Mark;
                    if header.kind == Kind::Record {
                        visit(position, header.stream, payload);
                    }
                }
                Err(reason) => {
                    end.invalid = Some(reason);
                    break;
                }
            }
        }
        Ok(end)
    }

    /// The record at `offset`, or what is wrong with it.
    fn next(&mut self, offset: u64) -> io::Result<Result<(RecordHeader, Bytes), &'static str>> {
        let left = self.len - offset;
        let mut bytes = [0; RECORD_HEADER];
        if left < RECORD_HEADER as u64 {
            return Ok(Err("a record's header is cut off"));
        }
        self.reader.read_exact(&mut bytes)?;
        let Some(header) = RecordHeader::decode(&bytes, &self.header, offset) else {
            return Ok(Err("a record's header does not fit its checksum"));
        };
        if left - (RECORD_HEADER as u64) < u64::from(header.len) {
            return Ok(Err("a record is cut off"));
        }
        // The length is vouched for by the header's checksum and fits in the file.
        let mut payload = vec![0; header.len as usize];
        self.reader.read_exact(&mut payload)?;
        if crc32c::crc32c(&payload) != header.payload_crc {
            return Ok(Err("a record's payload does not fit its checksum"));
        }
        Ok(Ok((header, Bytes::from(payload))))
    }
}

fn damaged(segment: u64, offset: u64, reason: &'static str) -> OpenError {
    OpenError::Damaged { segment: segment::name(segment), offset, reason }
}

pub(crate) fn io_error(action: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { action, path, source }
}
