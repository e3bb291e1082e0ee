//! What the bytes of a segment mean. All integers are little-endian.
//!
//! A segment begins with a header of 48 bytes:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `QMJOURNL` |
//! | 8..12 | format version |
//! | 12..16 | class: 0 the log, 1 kept records |
//! | 16..24 | number of this segment |
//! | 24..32 | length of the segment before it (zero when there is none): it was synced before this one was made |
//! | 32..40 | salt, random for each segment |
//! | 40..44 | zero |
//! | 44..48 | CRC-32C of the bytes before |
//!
//! and goes on with records, without gaps: a header of 32 bytes and the payload. The file has its full length from the
//! start, so behind the last record lie zeros, or what another segment left there that the file was before.
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | `QMR1` |
//! | 4..8 | length of the payload |
//! | 8..12 | stream |
//! | 12..16 | kind: 0 a record, 1 a mark, 2 a seal |
//! | 16..24 | synced: offset in this segment before which all was on disk when this record was written |
//! | 24..28 | CRC-32C of the payload |
//! | 28..32 | CRC-32C of the segment's salt and number, this record's offset and the bytes before |
//!
//! The second checksum covers the first, so a valid header vouches for its payload; and a record is valid only where
//! it was written: bytes that a sender puts into a mail cannot pass for a record, because the salt is not known
//! outside. `synced` is what tells a damaged middle from a torn tail. A power loss may keep later pages of the
//! last batch and lose earlier ones, so a valid record behind an invalid one proves nothing by itself; a header whose
//! `synced` lies behind the invalid record proves that this one had been on disk. A mark is an empty record which the
//! writer leaves, without a sync of its own, when it becomes idle, so that the last batch is vouched for as well. A seal
//! is an empty record too: it ends a segment and is synced with all before it, before a successor is made. What lies
//! behind it means nothing.
//!
//! The file `floor` tells below which segment of the log nothing is needed to rebuild the logs:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `QMFLOOR1` |
//! | 8..12 | format version |
//! | 12..16 | zero |
//! | 16..24 | number of the segment |
//! | 24..28 | CRC-32C of the bytes before |

use crate::{Class, Position, StreamId};

/// Length of a segment's header.
pub(crate) const SEGMENT_HEADER: usize = 48;
/// Length of a record's header.
pub(crate) const RECORD_HEADER: usize = 32;
/// The format that is read and written.
pub(crate) const VERSION: u32 = 2;
/// How every record begins.
pub(crate) const RECORD_MAGIC: [u8; 4] = *b"QMR1";

/// Length of the file that tells the floor.
pub(crate) const FLOOR_BYTES: usize = 28;

const SEGMENT_MAGIC: [u8; 8] = *b"QMJOURNL";
const FLOOR_MAGIC: [u8; 8] = *b"QMFLOOR1";

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) class: Class,
    pub(crate) number: u64,
    pub(crate) previous_len: u64,
    pub(crate) salt: u64,
}

/// Why a segment's header was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadSegmentHeader {
    Foreign,
    Damaged,
    Version(u32),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        out[0..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let class: u32 = match self.class {
            Class::Log => 0,
            Class::Kept => 1,
        };
        out[12..16].copy_from_slice(&class.to_le_bytes());
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..32].copy_from_slice(&self.previous_len.to_le_bytes());
        out[32..40].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32c::crc32c(&out[..44]);
        out[44..48].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; SEGMENT_HEADER]) -> Result<SegmentHeader, BadSegmentHeader> {
        if bytes[0..8] != SEGMENT_MAGIC {
            return Err(BadSegmentHeader::Foreign);
        }
        if u32_at(bytes, 44) != crc32c::crc32c(&bytes[..44]) {
            return Err(BadSegmentHeader::Damaged);
        }
        let class = match u32_at(bytes, 12) {
            0 => Class::Log,
            1 => Class::Kept,
            _ => return Err(BadSegmentHeader::Damaged),
        };
        match u32_at(bytes, 8) {
            VERSION => Ok(SegmentHeader {
                class,
                number: u64_at(bytes, 16),
                previous_len: u64_at(bytes, 24),
                salt: u64_at(bytes, 32),
            }),
            other => Err(BadSegmentHeader::Version(other)),
        }
    }
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A caller's record.
    Record,
    /// The writer's own note that all before it is on disk.
    Mark,
    /// The last of its segment.
    Seal,
}

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: Kind,
    pub(crate) stream: StreamId,
    pub(crate) len: u32,
    pub(crate) synced: u64,
    pub(crate) payload_crc: u32,
}

impl RecordHeader {
    /// A mark or a seal.
    pub(crate) fn note(kind: Kind, synced: u64) -> RecordHeader {
        let payload_crc = crc32c::crc32c(&[]);
        RecordHeader { kind, stream: StreamId(0), len: 0, synced, payload_crc }
    }

    pub(crate) fn encode(&self, segment: &SegmentHeader, offset: u64) -> [u8; RECORD_HEADER] {
        let mut out = [0; RECORD_HEADER];
        out[0..4].copy_from_slice(&RECORD_MAGIC);
        out[4..8].copy_from_slice(&self.len.to_le_bytes());
        out[8..12].copy_from_slice(&self.stream.0.to_le_bytes());
        let kind: u32 = match self.kind {
            Kind::Record => 0,
            Kind::Mark => 1,
            Kind::Seal => 2,
        };
        out[12..16].copy_from_slice(&kind.to_le_bytes());
        out[16..24].copy_from_slice(&self.synced.to_le_bytes());
        out[24..28].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = header_crc(&out, segment, offset);
        out[28..32].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header, if these bytes are one that was written at this place.
    pub(crate) fn decode(
        bytes: &[u8; RECORD_HEADER],
        segment: &SegmentHeader,
        offset: u64,
    ) -> Option<RecordHeader> {
        if bytes[0..4] != RECORD_MAGIC || u32_at(bytes, 28) != header_crc(bytes, segment, offset) {
            return None;
        }
        let kind = match u32_at(bytes, 12) {
            0 => Kind::Record,
            1 => Kind::Mark,
            2 => Kind::Seal,
            _ => return None,
        };
        Some(RecordHeader {
            kind,
            stream: StreamId(u32_at(bytes, 8)),
            len: u32_at(bytes, 4),
            synced: u64_at(bytes, 16),
            payload_crc: u32_at(bytes, 24),
        })
    }
}

impl Position {
    /// Offset of what follows the record.
    pub(crate) fn end(&self) -> u64 {
        self.offset + RECORD_HEADER as u64 + u64::from(self.len)
    }
}

/// What the file `floor` holds.
pub(crate) fn encode_floor(segment: u64) -> [u8; FLOOR_BYTES] {
    let mut out = [0; FLOOR_BYTES];
    out[0..8].copy_from_slice(&FLOOR_MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[16..24].copy_from_slice(&segment.to_le_bytes());
    let crc = crc32c::crc32c(&out[..24]);
    out[24..28].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Reads what [`encode_floor`] wrote.
pub(crate) fn decode_floor(bytes: &[u8]) -> Result<u64, BadSegmentHeader> {
    if bytes.len() != FLOOR_BYTES || bytes[0..8] != FLOOR_MAGIC {
        return Err(BadSegmentHeader::Foreign);
    }
    if u32_at(bytes, 24) != crc32c::crc32c(&bytes[..24]) {
        return Err(BadSegmentHeader::Damaged);
    }
    match u32_at(bytes, 8) {
        VERSION => Ok(u64_at(bytes, 16)),
        other => Err(BadSegmentHeader::Version(other)),
    }
}

fn header_crc(bytes: &[u8; RECORD_HEADER], segment: &SegmentHeader, offset: u64) -> u32 {
    let mut place = [0; 24];
    place[0..8].copy_from_slice(&segment.salt.to_le_bytes());
    place[8..16].copy_from_slice(&segment.number.to_le_bytes());
    place[16..24].copy_from_slice(&offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), &bytes[..28])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: SegmentHeader =
        SegmentHeader { class: Class::Log, number: 7, previous_len: 99, salt: 0x1234_5678_9abc_def0 };

    #[test]
    fn a_segment_header_reads_back_and_every_flipped_bit_is_noticed() {
        let bytes = SEGMENT.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(SEGMENT));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            let expected = if bit < 64 { BadSegmentHeader::Foreign } else { BadSegmentHeader::Damaged };
            assert_eq!(SegmentHeader::decode(&damaged), Err(expected), "bit {bit}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = SEGMENT.encode();
        bytes[8] = 9;
        let crc = crc32c::crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Err(BadSegmentHeader::Version(9)));
    }

    #[test]
    fn a_record_header_is_valid_only_where_it_was_written() {
        let header =
            RecordHeader { kind: Kind::Record, stream: StreamId(3), len: 5, synced: 48, payload_crc: 17 };
        let bytes = header.encode(&SEGMENT, 100);
        assert_eq!(RecordHeader::decode(&bytes, &SEGMENT, 100), Some(header));
        assert_eq!(RecordHeader::decode(&bytes, &SEGMENT, 101), None);
        assert_eq!(RecordHeader::decode(&bytes, &SegmentHeader { number: 8, ..SEGMENT }, 100), None);
        assert_eq!(RecordHeader::decode(&bytes, &SegmentHeader { salt: 1, ..SEGMENT }, 100), None);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&damaged, &SEGMENT, 100), None, "bit {bit}");
        }
    }
}
