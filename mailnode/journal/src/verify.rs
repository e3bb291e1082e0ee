//! Looking for records that are not what was written.

use std::io;

use crate::{
    OpenError, Position, ReadError, RecordInfo,
    disk::{Disk, DiskFile},
    format::{Kind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader},
    index::Index,
    mutation::{self, Mutation},
    recovery, segment,
};

/// What a scan of a segment found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScanReport {
    /// Records read.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Records that are not what was written, or cannot be read, as the side index has them.
    pub damaged: Vec<RecordInfo>,
    /// Where it is damaged when the side index was lost as well: what lies behind cannot be told.
    pub lost_from: Option<u64>,
}

/// The side index of a sealed segment, made anew if need be.
pub(crate) fn index_of(disk: &dyn Disk, number: u64) -> Result<Index, ReadError> {
    recovery::index_of(disk, number).map_err(|error| match error {
        OpenError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            segment::not_found(Position { segment: number, offset: 0, len: 0 })
        }
        OpenError::Io { source, .. } => ReadError::Io { segment: segment::name(number), source },
        OpenError::Damaged { segment, offset, .. } => ReadError::Damaged { segment, offset },
        _ => ReadError::Damaged { segment: segment::name(number), offset: 0 },
    })
}

/// Reads a segment and compares it with its side index.
pub(crate) fn scan(
    disk: &dyn Disk,
    number: u64,
    pace: &mut dyn FnMut(u64) -> bool,
) -> Result<ScanReport, ReadError> {
    let mut report = ScanReport::default();
    let index = match index_of(disk, number) {
        Ok(index) => index,
        Err(ReadError::Damaged { offset, .. }) => {
            report.lost_from = Some(offset);
            return Ok(report);
        }
        Err(other) => return Err(other),
    };
    let name = segment::name(number);
    let file = disk.open(&name).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => segment::not_found(Position { segment: number, offset: 0, len: 0 }),
        _ => ReadError::Io { segment: name.clone(), source },
    })?;
    // Otherwise what is in memory would be looked at, not what is on the disk.
    file.forget_cached().map_err(|source| ReadError::Io { segment: name, source })?;
    let mut header = [0; SEGMENT_HEADER];
    let header = match file.read_at(&mut header, 0).map(|()| SegmentHeader::decode(&header)) {
        Ok(Ok(header)) if header.number == number => header,
        _ => {
            report.lost_from = Some(0);
            return Ok(report);
        }
    };
    let mut buffer = Vec::new();
    for record in index.iter() {
        if !is_well(&*file, &header, &record, &mut buffer) && !mutation::is(Mutation::CallRotGood) {
            report.damaged.push(record);
        }
        report.records += 1;
        report.bytes += buffer.len() as u64;
        if !pace(buffer.len() as u64) {
            break;
        }
    }
    Ok(report)
}

/// Whether a damaged record would be what was written if its payload went on with `bytes` from `offset` on. None when that
/// cannot be told: what stands before may be damaged as well, or the checksum is lost.
pub(crate) fn would_mend(
    disk: &dyn Disk,
    is_sealed: bool,
    position: Position,
    offset: u32,
    bytes: &[u8],
) -> Option<bool> {
    if u64::from(offset) + bytes.len() as u64 != u64::from(position.len) {
        return Some(false);
    }
    let entry = match is_sealed {
        true => index_of(disk, position.segment).ok()?.iter().find(|record| record.position == position),
        false => None,
    };
    let file = disk.open(&segment::name(position.segment)).ok()?;
    let known = entry.as_ref().and_then(|record| record.head.get(..offset as usize));
    let (start, is_certain) = match known {
        Some(start) => (start.to_vec(), true),
        None => {
            let mut start = vec![0; offset as usize];
            file.read_at(&mut start, position.offset + RECORD_HEADER as u64).ok()?;
            (start, offset == 0)
        }
    };
    let expected = match entry {
        Some(record) => record.crc,
        None => payload_crc(&*file, position)?,
    };
    let fits = crc32c::crc32c_append(crc32c::crc32c(&start), bytes) == expected;
    (fits || is_certain).then_some(fits)
}

/// The checksum in a record's header, if the header is well.
fn payload_crc(file: &dyn DiskFile, position: Position) -> Option<u32> {
    let (mut segment, mut record) = ([0; SEGMENT_HEADER], [0; RECORD_HEADER]);
    file.read_at(&mut segment, 0).ok()?;
    file.read_at(&mut record, position.offset).ok()?;
    let segment = SegmentHeader::decode(&segment).ok()?;
    let header = RecordHeader::decode(&record, &segment, position.offset)?;
    (header.len == position.len).then_some(header.payload_crc)
}

fn is_well(file: &dyn DiskFile, segment: &SegmentHeader, record: &RecordInfo, buffer: &mut Vec<u8>) -> bool {
    buffer.resize(RECORD_HEADER + record.position.len as usize, 0);
    if file.read_at(buffer, record.position.offset).is_err() {
        return false;
    }
    let Some((header, payload)) = buffer.split_first_chunk::<RECORD_HEADER>() else { return false };
    let expected = |header: RecordHeader| {
        header.kind == Kind::Record
            && (header.len, header.stream) == (record.position.len, record.stream)
            && header.payload_crc == record.crc
    };
    RecordHeader::decode(header, segment, record.position.offset).is_some_and(expected)
        && crc32c::crc32c(payload) == record.crc
}
