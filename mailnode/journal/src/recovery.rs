//! What is done with the segments when a journal is opened.
//!
//! Every record is read and checked. In every segment but the last one all must be valid to the last byte, for it was
//! synced before its successor was made (whose header tells its length). In the last segment the first invalid record
//! is either the torn end of what was being written when the node went down, then it is cut with all behind it; or
//! it is damage to something that had been safe, then nothing is touched and the journal is refused.

use std::{io, path::PathBuf};

use bytes::Bytes;

use crate::{
    OpenError, Position, StreamId,
    disk::{Disk, DiskFile},
    format::{
        BadSegmentHeader, Kind, RECORD_HEADER, RECORD_MAGIC, RecordHeader, SEGMENT_HEADER, SegmentHeader,
        VERSION,
    },
    segment::{self, Salts},
};

/// Read buffer of the scan, and step of the search for headers behind an invalid record.
const SCAN_BUFFER: usize = 1 << 20;

/// The last segment, open for appending, and the sums over all of them.
pub(crate) struct Recovered {
    pub(crate) file: Box<dyn DiskFile>,
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
    disk: &dyn Disk,
    salts: &mut Salts,
    mut visit: impl FnMut(Position, StreamId, Bytes),
) -> Result<Recovered, OpenError> {
    let at = |action| io_error(action, disk.path(""));
    segment::remove_unfinished(disk).map_err(at("clean journal directory"))?;
    let numbers = segment::list(disk).map_err(at("list journal directory"))?;
    let Some((&last, earlier)) = numbers.split_last() else {
        let (file, header) = segment::create(disk, 1, 0, salts).map_err(at("create first segment in"))?;
        let end = SEGMENT_HEADER as u64;
        return Ok(Recovered { file, header, end, marked: true, segments: 1, disk_bytes: end });
    };
    let mut disk_bytes = 0;
    let mut previous: Option<(u64, u64)> = None;
    for &number in earlier {
        let (_, end) = Scan::open(disk, number, previous)?.run(&mut visit)?;
        if let Some(torn) = end.invalid {
            return Err(damaged(number, end.valid_until, torn));
        }
        previous = Some((number, end.valid_until));
        disk_bytes += end.valid_until;
    }
    let scan = Scan::open(disk, last, previous)?;
    let header = scan.header;
    let (file, end) = scan.run(&mut visit)?;
    cut_torn_tail(disk, &*file, &header, &end)?;
    let disk_bytes = disk_bytes + end.valid_until;
    let segments = numbers.len() as u64;
    Ok(Recovered { file, header, end: end.valid_until, marked: end.marked, segments, disk_bytes })
}

/// Leaves the last segment without its torn tail and with everything in it on disk.
fn cut_torn_tail(
    disk: &dyn Disk,
    file: &dyn DiskFile,
    header: &SegmentHeader,
    end: &ScanEnd,
) -> Result<(), OpenError> {
    let at = |action| io_error(action, disk.path(&segment::name(header.number)));
    if let Some(reason) = end.invalid {
        if vouched_for(file, header, end.valid_until).map_err(at("search segment"))? {
            return Err(damaged(header.number, end.valid_until, reason));
        }
        let len = file.len().map_err(at("inspect segment"))?;
        tracing::warn!(
            segment = segment::name(header.number),
            offset = end.valid_until,
            bytes = len - end.valid_until,
            "cutting the torn tail of the journal"
        );
        file.set_len(end.valid_until).map_err(at("cut the torn tail of"))?;
    }
    // Records that a killed process had written but not synced are told to the visitor as safe, so they must be.
    file.sync_data().map_err(at("sync segment"))?;
    disk.sync_dir().map_err(at("sync directory of"))
}

/// Whether a header behind `invalid` says that the record there had been on disk.
fn vouched_for(file: &dyn DiskFile, segment: &SegmentHeader, invalid: u64) -> io::Result<bool> {
    let len = file.len()?;
    let mut window = vec![0; SCAN_BUFFER + RECORD_HEADER];
    let mut start = invalid;
    while start + RECORD_HEADER as u64 <= len {
        let size = window.len().min(usize::try_from(len - start).unwrap_or(usize::MAX));
        file.read_at(&mut window[..size], start)?;
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
    file: Box<dyn DiskFile>,
    header: SegmentHeader,
    len: u64,
    /// What was read ahead, and from where on in the file.
    buffer: Vec<u8>,
    buffered: u64,
}

impl Scan {
    /// Opens a segment and checks its header against the segment before it (number and length).
    fn open(disk: &dyn Disk, number: u64, previous: Option<(u64, u64)>) -> Result<Scan, OpenError> {
        if let Some((before, _)) = previous
            && before + 1 != number
        {
            return Err(OpenError::Missing { segment: segment::name(before + 1), dir: disk.path("") });
        }
        let path = disk.path(&segment::name(number));
        let at = |action| io_error(action, path.clone());
        let file = disk.open(&segment::name(number)).map_err(at("open segment"))?;
        let len = file.len().map_err(at("inspect segment"))?;
        let mut bytes = [0; SEGMENT_HEADER];
        if len < SEGMENT_HEADER as u64 {
            return Err(damaged(number, 0, "its header is cut off"));
        }
        file.read_at(&mut bytes, 0).map_err(at("read header of segment"))?;
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
        Ok(Scan { path, file, header, len, buffer: Vec::new(), buffered: 0 })
    }

    /// Visits records until the end or the first that is not valid.
    fn run(
        mut self,
        visit: &mut impl FnMut(Position, StreamId, Bytes),
    ) -> Result<(Box<dyn DiskFile>, ScanEnd), OpenError> {
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
        Ok((self.file, end))
    }

    /// Fills `into` with what the file has at `offset`, which lies within it.
    fn read(&mut self, into: &mut [u8], offset: u64) -> io::Result<()> {
        if into.len() >= SCAN_BUFFER {
            return self.file.read_at(into, offset);
        }
        let buffered = self.buffered..self.buffered + self.buffer.len() as u64;
        if !buffered.contains(&offset) || offset + into.len() as u64 > buffered.end {
            let ahead = (self.len - offset).min(SCAN_BUFFER as u64);
            self.buffer.resize(ahead as usize, 0);
            self.file.read_at(&mut self.buffer, offset)?;
            self.buffered = offset;
        }
        let from = (offset - self.buffered) as usize;
        into.copy_from_slice(&self.buffer[from..from + into.len()]);
        Ok(())
    }

    /// The record at `offset`, or what is wrong with it.
    fn next(&mut self, offset: u64) -> io::Result<Result<(RecordHeader, Bytes), &'static str>> {
        let left = self.len - offset;
        let mut bytes = [0; RECORD_HEADER];
        if left < RECORD_HEADER as u64 {
            return Ok(Err("a record's header is cut off"));
        }
        self.read(&mut bytes, offset)?;
        let Some(header) = RecordHeader::decode(&bytes, &self.header, offset) else {
            return Ok(Err("a record's header does not fit its checksum"));
        };
        if left - (RECORD_HEADER as u64) < u64::from(header.len) {
            return Ok(Err("a record is cut off"));
        }
        // The length is vouched for by the header's checksum and fits in the file.
        let mut payload = vec![0; header.len as usize];
        self.read(&mut payload, offset + RECORD_HEADER as u64)?;
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
