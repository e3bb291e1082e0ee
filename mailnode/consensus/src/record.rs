//! How the log of a group lies in the journal: one record for every log entry, vote, truncation, purge mark,
//! commit mark, grant of the right to vote and removal of the replica; and, before the journal's floor is moved, one
//! with all that the marks before it add up to. All but the entries' content lies within the head that the journal tells
//! without reading on.
//!
//! A record starts with its kind and the version of the format. A log entry has a head of fixed length, so the
//! command starts at [`COMMAND_OFFSET`] in the record's payload and is written as a piece of its own, not copied.

use bytes::Bytes;
use quorumail_journal::HEAD_BYTES;

use crate::types::{Command, Entry, LogId, Payload, Vote, log_id, term_of};

/// Version of the format below. Records of another version are refused.
const FORMAT: u8 = 2;

const KIND_ENTRY: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_TRUNCATE: u8 = 3;
const KIND_PURGE: u8 = 4;
const KIND_COMMITTED: u8 = 5;
const KIND_PROVEN: u8 = 6;
const KIND_BASE: u8 = 7;
const KIND_FORGOTTEN: u8 = 8;

const PAYLOAD_BLANK: u8 = 0;
const PAYLOAD_COMMAND: u8 = 1;
const PAYLOAD_MEMBERSHIP: u8 = 2;
const PAYLOAD_LEVEL: u8 = 3;

/// Where the command starts in the payload of a log entry's record:
/// kind (1), version (1), term (8), index (8), what is carried (1).
pub const COMMAND_OFFSET: u32 = 19;

/// A record that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("journal record of a group cannot be decoded: {0}")]
pub(crate) struct DecodeError(pub(crate) String);

/// What a record says.
#[derive(Debug)]
pub(crate) enum Decoded {
    /// A log entry lies here. Its content is only decoded on demand.
    Entry(LogId),
    Vote(Vote),
    /// Everything after it is gone.
    Truncate(Option<LogId>),
    /// Everything up to it is gone.
    Purge(LogId),
    Committed(Option<LogId>),
    /// This replica knows all that was committed before it started and may vote.
    Proven,
    /// What the marks before it add up to.
    Base(Base),
    /// The replica was removed: nothing of it is left but its vote.
    Forgotten,
}

/// What is known of a group besides its entries.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Base {
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    pub(crate) proven: bool,
    /// Whether the replica was removed: then only its vote is left.
    pub(crate) forgotten: bool,
}

/// Pieces of the record of a log entry.
pub(crate) fn encode_entry(entry: &Entry) -> Vec<Bytes> {
    let mut head = Vec::with_capacity(COMMAND_OFFSET as usize);
    head.extend([KIND_ENTRY, FORMAT]);
    head.extend(term_of(&entry.log_id).to_le_bytes());
    head.extend(entry.log_id.index.to_le_bytes());
    match &entry.payload {
        Payload::Blank => {
            head.push(PAYLOAD_BLANK);
            vec![head.into()]
        }
        Payload::Normal(Command::Normal(command)) => {
            head.push(PAYLOAD_COMMAND);
            vec![head.into(), command.clone()]
        }
        Payload::Normal(Command::Level(level)) => {
            head.push(PAYLOAD_LEVEL);
            head.extend(level.to_le_bytes());
            vec![head.into()]
        }
        Payload::Membership(membership) => {
            head.push(PAYLOAD_MEMBERSHIP);
            head.extend(postcard::to_stdvec(membership).expect("a membership can always be encoded"));
            vec![head.into()]
        }
    }
}

fn encode(kind: u8, content: &impl serde::Serialize) -> Vec<Bytes> {
    let head = vec![kind, FORMAT];
    let record = postcard::to_extend(content, head).expect("a mark in the log can always be encoded");
    assert!(record.len() <= HEAD_BYTES, "a mark of {} bytes does not fit into a record's head", record.len());
    vec![record.into()]
}

pub(crate) fn encode_vote(vote: &Vote) -> Vec<Bytes> {
    encode(KIND_VOTE, vote)
}

pub(crate) fn encode_truncate(last: &Option<LogId>) -> Vec<Bytes> {
    encode(KIND_TRUNCATE, last)
}

pub(crate) fn encode_purge(upto: &LogId) -> Vec<Bytes> {
    encode(KIND_PURGE, upto)
}

pub(crate) fn encode_committed(committed: &Option<LogId>) -> Vec<Bytes> {
    encode(KIND_COMMITTED, committed)
}

pub(crate) fn encode_proven() -> Vec<Bytes> {
    encode(KIND_PROVEN, &())
}

pub(crate) fn encode_base(base: &Base) -> Vec<Bytes> {
    encode(KIND_BASE, base)
}

pub(crate) fn encode_forgotten() -> Vec<Bytes> {
    encode(KIND_FORGOTTEN, &())
}

/// Reads what a record says from its head, of a log entry only its log id.
pub(crate) fn decode(payload: &[u8]) -> Result<Decoded, DecodeError> {
    let [kind, format, rest @ ..] = payload else {
        return Err(DecodeError(format!("{} bytes are too few", payload.len())));
    };
    if *format != FORMAT {
        return Err(unknown_format(*format));
    }
    let wrong = |error: postcard::Error| DecodeError(format!("kind {kind}: {error}"));
    Ok(match *kind {
        KIND_ENTRY => Decoded::Entry(entry_head(rest)?.0),
        KIND_VOTE => Decoded::Vote(postcard::from_bytes(rest).map_err(wrong)?),
        KIND_TRUNCATE => Decoded::Truncate(postcard::from_bytes(rest).map_err(wrong)?),
        KIND_PURGE => Decoded::Purge(postcard::from_bytes(rest).map_err(wrong)?),
        KIND_COMMITTED => Decoded::Committed(postcard::from_bytes(rest).map_err(wrong)?),
        KIND_PROVEN => Decoded::Proven,
        KIND_BASE => Decoded::Base(postcard::from_bytes(rest).map_err(wrong)?),
        KIND_FORGOTTEN => Decoded::Forgotten,
        other => return Err(DecodeError(format!("kind {other} is not known"))),
    })
}

fn unknown_format(format: u8) -> DecodeError {
    DecodeError(format!("format {format}, and this version knows format {FORMAT}"))
}

/// The log index of the command that a record carries, told from its first bytes (at least [`COMMAND_OFFSET`]); none
/// when it carries no command.
///
/// # Errors
/// In words, when the bytes are no record of a log, or one of a later version.
pub fn command_index(head: &[u8]) -> Result<Option<u64>, String> {
    match decode(head).map_err(|error| error.to_string())? {
        Decoded::Entry(_) => {
            let (log_id, carried) = entry_head(&head[2..]).map_err(|error| error.to_string())?;
            Ok((carried == PAYLOAD_COMMAND).then_some(log_id.index))
        }
        _ => Ok(None),
    }
}

/// Log id and kind of payload, from a record's bytes after kind and version.
fn entry_head(rest: &[u8]) -> Result<(LogId, u8), DecodeError> {
    let short = || DecodeError("head of a log entry is cut".into());
    let (term, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (index, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let carried = *rest.first().ok_or_else(short)?;
    Ok((log_id(u64::from_le_bytes(*term), u64::from_le_bytes(*index)), carried))
}

/// Reads a whole log entry; the command shares the payload's memory.
pub(crate) fn decode_entry(payload: &Bytes) -> Result<Entry, DecodeError> {
    match payload.get(..2) {
        Some([KIND_ENTRY, FORMAT]) => {}
        Some([KIND_ENTRY, format]) => return Err(unknown_format(*format)),
        _ => return Err(DecodeError("not a log entry".into())),
    }
    let (log_id, carried) = entry_head(&payload[2..])?;
    let content = payload.slice(COMMAND_OFFSET as usize..);
    let payload = match carried {
        PAYLOAD_BLANK => Payload::Blank,
        PAYLOAD_COMMAND => Payload::Normal(Command::Normal(content)),
        PAYLOAD_LEVEL => {
            let level =
                content[..].try_into().map_err(|_| DecodeError("a level has not four bytes".into()))?;
            Payload::Normal(Command::Level(u32::from_le_bytes(level)))
        }
        PAYLOAD_MEMBERSHIP => Payload::Membership(
            postcard::from_bytes(&content).map_err(|error| DecodeError(format!("membership: {error}")))?,
        ),
        other => return Err(DecodeError(format!("payload kind {other} is not known"))),
    };
    Ok(Entry { log_id, payload })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Membership;
    use proptest::prelude::*;

    fn joined(pieces: Vec<Bytes>) -> Bytes {
        pieces.concat().into()
    }

    proptest! {
        #[test]
        fn a_command_lies_where_its_offset_says(term: u64, index: u64, command: Vec<u8>) {
            let entry = Entry { log_id: log_id(term, index), payload: Payload::Normal(Command::Normal(command.clone().into())) };
            let record = joined(encode_entry(&entry));
            prop_assert_eq!(&record[COMMAND_OFFSET as usize..], &command[..]);
            let read = decode_entry(&record).unwrap();
            prop_assert_eq!(read.log_id, entry.log_id);
            prop_assert!(matches!(read.payload, Payload::Normal(Command::Normal(found)) if found == command));
            prop_assert!(matches!(decode(&record).unwrap(), Decoded::Entry(id) if id == entry.log_id));
        }

        #[test]
        fn damaged_records_are_refused_and_never_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let _ = decode_entry(&bytes.into());
        }
    }

    #[test]
    fn records_of_the_next_version_are_refused_with_both() {
        let entry = Entry { log_id: log_id(3, 7), payload: Payload::Normal(Command::Normal("x".into())) };
        let vote = Vote::new_committed(5, 2);
        let records =
            [encode_entry(&entry), encode_vote(&vote), encode_purge(&log_id(1, 1)), encode_proven()];
        for record in records {
            let mut record = joined(record).to_vec();
            record[1] += 1;
            let (next, both) = (FORMAT + 1, |error: DecodeError| {
                let error = error.to_string();
                error.contains(&format!("format {}", FORMAT + 1))
                    && error.contains(&format!("format {FORMAT}"))
            });
            assert!(decode(&record).is_err_and(both), "format {next}");
            assert!(command_index(&record).is_err());
            if record[0] == KIND_ENTRY {
                assert!(decode_entry(&record.into()).is_err_and(both), "format {next}");
            }
        }
    }

    #[test]
    fn membership_votes_and_marks_come_back_as_written() {
        let membership = Membership::new_with_defaults(vec![[1, 2, 3].into()], [4]);
        let entry = Entry { log_id: log_id(3, 7), payload: Payload::Membership(membership.clone()) };
        let read = decode_entry(&joined(encode_entry(&entry))).unwrap();
        assert!(matches!(read.payload, Payload::Membership(found) if found == membership));

        let entry = Entry { log_id: log_id(3, 8), payload: Payload::Normal(Command::Level(7)) };
        let record = joined(encode_entry(&entry));
        assert_eq!(decode_entry(&record).unwrap(), entry);
        assert_eq!(command_index(&record), Ok(None));

        let vote = Vote::new_committed(5, 2);
        assert!(
            matches!(decode(&joined(encode_vote(&vote))).unwrap(), Decoded::Vote(found) if found == vote)
        );
        let id = log_id(5, 9);
        assert!(matches!(decode(&joined(encode_purge(&id))).unwrap(), Decoded::Purge(found) if found == id));
        assert!(matches!(decode(&joined(encode_truncate(&None))).unwrap(), Decoded::Truncate(None)));
        assert!(
            matches!(decode(&joined(encode_committed(&Some(id)))).unwrap(), Decoded::Committed(Some(found)) if found == id)
        );
        assert!(matches!(decode(&joined(encode_proven())).unwrap(), Decoded::Proven));
        // As large as it can become in the life of a cluster.
        let far = log_id(1 << 40, 1 << 54);
        let base = Base {
            vote: Some(Vote::new_committed(1 << 40, 1 << 30)),
            purged: Some(far),
            committed: Some(far),
            proven: true,
            forgotten: false,
        };
        assert!(
            matches!(decode(&joined(encode_base(&base))).unwrap(), Decoded::Base(found) if found == base)
        );
        assert!(matches!(decode(&joined(encode_forgotten())).unwrap(), Decoded::Forgotten));
    }
}
