//! How the engine's messages travel in `peer.proto`. Heads are encoded with postcard; commands are separate fields.

use bytes::Bytes;
use quorumail_proto::peer::Append;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::types::{
    AppendRequest, AppendResult, Command, Entry, LogId, Membership, Payload, SnapshotMeta, Vote, log_id,
    term_of,
};

/// Version of the encodings below.
pub(crate) const FORMAT: u32 = 2;
/// Largest message of the peer service: a command of the largest size with room for its head.
pub const MAX_MESSAGE_BYTES: usize = 96 << 20;
/// Commands below this size are copied out of the message they came in, so that one small command kept in the cache
/// does not keep a whole large message in memory.
const COPY_BELOW: usize = 4 << 10;

/// A message that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("peer message cannot be decoded: {0}")]
pub(crate) struct WireError(String);

#[derive(Serialize, Deserialize)]
struct AppendHead {
    vote: Vote,
    prev: Option<LogId>,
    commit: Option<LogId>,
    entries: Vec<EntryHead>,
}

#[derive(Serialize, Deserialize)]
struct EntryHead {
    term: u64,
    index: u64,
    carries: Carries,
}

#[derive(Serialize, Deserialize)]
enum Carries {
    Blank,
    Command,
    Membership(Membership),
    Level(u32),
}

/// Metadata in a snapshot's first chunk.
#[derive(Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    /// The format level that stands where it was taken.
    pub(crate) level: u32,
}

pub(crate) fn encode(message: &impl Serialize) -> Bytes {
    postcard::to_stdvec(message).expect("the engine's messages can always be encoded").into()
}

pub(crate) fn decode<T: DeserializeOwned>(format: u32, bytes: &[u8]) -> Result<T, WireError> {
    if format != FORMAT {
        return Err(WireError(format!("format {format}, and this version knows format {FORMAT}")));
    }
    postcard::from_bytes(bytes).map_err(|error| WireError(error.to_string()))
}

/// Returns the message and the bytes of the commands in it.
pub(crate) fn encode_append(group: u32, request: AppendRequest) -> (Append, usize) {
    let mut commands = Vec::new();
    let mut bytes = 0;
    let entries = request.entries.into_iter().map(|entry| {
        let carries = match entry.payload {
            Payload::Blank => Carries::Blank,
            Payload::Membership(membership) => Carries::Membership(membership),
            Payload::Normal(Command::Level(level)) => Carries::Level(level),
            Payload::Normal(Command::Normal(command)) => {
                bytes += command.len();
                commands.push(command);
                Carries::Command
            }
        };
        EntryHead { term: term_of(&entry.log_id), index: entry.log_id.index, carries }
    });
    let entries = entries.collect();
    let head =
        AppendHead { vote: request.vote, prev: request.prev_log_id, commit: request.leader_commit, entries };
    let head = encode(&head);
    (Append { group, format: FORMAT, head, commands }, bytes)
}

pub(crate) fn decode_append(frame: Append) -> Result<AppendRequest, WireError> {
    let head: AppendHead = decode(frame.format, &frame.head)?;
    let mut commands = frame.commands.into_iter();
    let mut entries = Vec::with_capacity(head.entries.len());
    let mut previous = head.prev;
    for entry in head.entries {
        let id = log_id(entry.term, entry.index);
        // What the engine takes for granted of its peers is checked here, where it comes in.
        let follows = previous.map_or(id.index == 0, |previous| {
            previous.index.checked_add(1) == Some(id.index) && term_of(&id) >= term_of(&previous)
        });
        if !follows {
            return Err(WireError(format!("log entry {id} does not follow {previous:?}")));
        }
        previous = Some(id);
        let payload = match entry.carries {
            Carries::Blank => Payload::Blank,
            Carries::Membership(membership) => Payload::Membership(membership),
            Carries::Level(level) => Payload::Normal(Command::Level(level)),
            Carries::Command => {
                let command = commands.next().ok_or_else(|| WireError("a command is missing".into()))?;
                let small = command.len() < COPY_BELOW;
                Payload::Normal(Command::Normal(if small {
                    Bytes::copy_from_slice(&command)
                } else {
                    command
                }))
            }
        };
        entries.push(Entry { log_id: id, payload });
    }
    if commands.next().is_some() {
        return Err(WireError("a command belongs to no entry".into()));
    }
    Ok(AppendRequest { vote: head.vote, prev_log_id: head.prev, entries, leader_commit: head.commit })
}

/// The highest format level that an append request brings; none when it raises none.
pub(crate) fn level_in(request: &AppendRequest) -> Option<u32> {
    let level = |entry: &Entry| match entry.payload {
        Payload::Normal(Command::Level(level)) => Some(level),
        _ => None,
    };
    request.entries.iter().filter_map(level).max()
}

pub(crate) fn encode_append_result(result: &AppendResult) -> Bytes {
    encode(result)
}

pub(crate) fn decode_append_result(format: u32, bytes: &[u8]) -> Result<AppendResult, WireError> {
    decode(format, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn whatever_bytes_a_peer_sends_are_refused_or_understood(
            head in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            commands in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..8), 0..4),
        ) {
            let commands = commands.into_iter().map(Bytes::from).collect();
            let _ = decode_append(Append { group: 1, format: FORMAT, head: head.clone().into(), commands });
            let _ = decode_append_result(FORMAT, &head);
            let _ = decode::<SnapshotHead>(FORMAT, &head);
        }

        #[test]
        fn a_spoilt_append_request_is_refused_or_its_entries_follow_each_other(
            at in proptest::num::usize::ANY, flip in 1u8.., cut in proptest::num::usize::ANY,
        ) {
            let (mut frame, _) = encode_append(4, request(&[b"one", b"two"]));
            let mut head = frame.head.to_vec();
            let len = head.len();
            head[at % len] ^= flip;
            head.truncate(len - cut % 3);
            frame.head = head.into();
            if let Ok(request) = decode_append(frame) {
                let first = request.prev_log_id.map_or(0, |id| id.index + 1);
                for (index, entry) in (first..).zip(request.entries) {
                    proptest::prop_assert_eq!(entry.log_id.index, index);
                }
            }
        }
    }

    #[test]
    fn an_index_that_nothing_can_follow_is_refused() {
        let mut request = request(&[b"one"]);
        request.prev_log_id = Some(log_id(2, u64::MAX));
        assert!(decode_append(encode_append(4, request).0).is_err());
    }

    fn request(commands: &[&'static [u8]]) -> AppendRequest {
        let entry = |(index, command): (usize, &&'static [u8])| Entry {
            log_id: log_id(2, 8 + index as u64),
            payload: Payload::Normal(Command::Normal(Bytes::from_static(command))),
        };
        let mut entries: Vec<Entry> = commands.iter().enumerate().map(entry).collect();
        entries.push(Entry {
            log_id: log_id(3, 8 + entries.len() as u64),
            payload: Payload::Normal(Command::Level(2)),
        });
        entries.push(Entry { log_id: log_id(3, 8 + entries.len() as u64), payload: Payload::Blank });
        AppendRequest {
            vote: Vote::new_committed(3, 1),
            prev_log_id: Some(log_id(2, 7)),
            entries,
            leader_commit: Some(log_id(2, 6)),
        }
    }

    #[test]
    fn an_append_request_comes_out_as_it_went_in() {
        let sent = request(&[b"one", b"", b"three"]);
        let (frame, bytes) = encode_append(4, sent.clone());
        assert_eq!((frame.group, bytes), (4, 8));
        let received = decode_append(frame).unwrap();
        assert_eq!(received.entries, sent.entries);
        assert_eq!(
            (received.vote, received.prev_log_id, received.leader_commit),
            (sent.vote, sent.prev_log_id, sent.leader_commit)
        );
    }

    #[test]
    fn messages_of_the_next_version_are_refused_with_both() {
        let (mut frame, _) = encode_append(0, request(&[b"one"]));
        frame.format += 1;
        let error = decode_append(frame).unwrap_err().to_string();
        let both = [FORMAT + 1, FORMAT].map(|format| format!("format {format}"));
        assert!(both.iter().all(|format| error.contains(format)), "{error}");
        assert!(
            decode::<SnapshotHead>(FORMAT + 1, &[]).is_err_and(|error| error.to_string().contains(&both[0]))
        );
    }

    #[test]
    fn frames_with_gaps_or_missing_commands_are_refused() {
        let mut gap = request(&[b"one", b"two"]);
        gap.entries.remove(0);
        assert!(decode_append(encode_append(0, gap).0).is_err());
        let (mut frame, _) = encode_append(0, request(&[b"one"]));
        frame.commands.clear();
        assert!(decode_append(frame).is_err());
        let (mut frame, _) = encode_append(0, request(&[b"one"]));
        frame.commands.push(Bytes::from_static(b"stray"));
        assert!(decode_append(frame).is_err());
    }
}
