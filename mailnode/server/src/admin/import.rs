//! `ImportMailbox`: folders and messages as a stream into a mailbox, each answered when it is durable. Everything may be
//! sent again: the store adds each message once (`RestoreMessage`).

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use quorumail_consensus::GroupId;
use quorumail_proto::admin::{
    FindImportedRequest, FindImportedResponse, FolderImported, ImportFolder, ImportItem, ImportResult,
    MailMessage, MessageImported, import_folder::Uids, import_item::Item, import_result::Result as Imported,
    message_imported::Outcome,
};
use quorumail_store::{
    Applied, Flag, Flags, FolderSource, ListId, MAX_SOURCE_UID, MailboxId, ModSeq, Op, Query, Quota, Reply,
    RestorePlace, RestoredAs, Timestamp, Uid, UidValidity,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{AdminService, mailbox, unreadable};
use crate::{
    disk::Disk,
    groups::{self, CommandFailure, Groups},
};

/// For one command: an election may come in between.
const WITHIN: Duration = Duration::from_secs(30);
/// Between two items of the caller.
const STALLED: Duration = Duration::from_secs(300);
/// Messages that are written at a time where their UIDs are known. New UIDs are given one after the other, so that the
/// order of the source stays.
const WINDOW: usize = 32;
/// Bytes of bodies that are held at a time, unless a single one is longer.
const WINDOW_BYTES: usize = 16 * 1024 * 1024;
/// Longest message: what the store holds in chunks without crowding out others.
const MAX_MESSAGE: u64 = 256 * 1024 * 1024;
/// Sources that are looked for in one call.
const MAX_SOURCES: usize = 1000;
/// Answers that the caller has not taken.
const ANSWERS: usize = 64;
/// UIDs that may have been given in the source after it was copied: nobody gets them again where its identity is kept.
const UIDS_AFTER: u32 = 100_000;
/// MODSEQs in the same way.
const MOD_SEQS_AFTER: u64 = 1 << 32;
/// RFC 9051 2.3.2, and what the store takes of keywords.
const SYSTEM_FLAGS: [&str; 5] = ["\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen"];
const MAX_KEYWORDS: usize = 64;
const MAX_KEYWORD_BYTES: usize = 128;

/// The answers of an import.
pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<ImportResult, Status>> + Send>>;

pub(super) async fn run(service: &AdminService, mut items: Streaming<ImportItem>) -> Result<Answers, Status> {
    let permit = mailbox::room()?;
    let first = tokio::time::timeout(STALLED, items.message()).await.map_err(|_| stalled())??;
    let Some(Item::Start(start)) = first.and_then(|item| item.item) else {
        return Err(Status::invalid_argument("an import begins with the mailbox that it goes into"));
    };
    let (group, mailbox) = mailbox::place(&service.groups, &start.address).await?;
    let (send, receive) = mpsc::channel(ANSWERS);
    let import = Import {
        groups: Arc::clone(&service.groups),
        disk: Arc::clone(&service.disk),
        group,
        mailbox,
        folder: None,
        coming: None,
        number: 0,
        in_flight: FuturesUnordered::new(),
        bytes: 0,
        send: send.clone(),
    };
    tokio::spawn(async move {
        let _permit = permit;
        if let Err(status) = import.run(items).await {
            // A caller that is gone needs no answer.
            let _ = send.send(Err(status)).await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(receive)))
}

/// Which sources a folder remembers.
pub(super) async fn find(
    groups: &Groups,
    request: FindImportedRequest,
) -> Result<FindImportedResponse, Status> {
    if request.sources.len() > MAX_SOURCES {
        return Err(Status::invalid_argument(format!(
            "at most {MAX_SOURCES} sources are looked for at a time"
        )));
    }
    let (group, mailbox) = mailbox::place(groups, &request.address).await?;
    let sources = request.sources.into_iter().map(source).collect::<Result<_, _>>()?;
    let query = Query::Imported { mailbox, folder: request.folder, sources };
    let reply = groups.query(group, &query, WITHIN).await.map_err(unreadable)?;
    match reply {
        Reply::Imported(known) => Ok(FindImportedResponse { known }),
        _ => Err(Status::internal("the partition answered something else")),
    }
}

fn source(bytes: Vec<u8>) -> Result<u128, Status> {
    let bytes: [u8; 16] = bytes
        .try_into()
        .map_err(|_| Status::invalid_argument("a message that gets a new UID needs a source of 16 bytes"))?;
    Ok(u128::from_be_bytes(bytes))
}

fn stalled() -> Status {
    Status::deadline_exceeded(
        "nothing came for too long; send again, what is there already is not added twice",
    )
}

/// The folder that messages go into.
#[derive(Clone)]
struct Current {
    name: String,
    /// UIDVALIDITY of the source; none when messages get new UIDs.
    source: Option<UidValidity>,
    /// Why its messages are refused.
    refused: Option<String>,
}

/// A message whose body is not complete.
struct Coming {
    message: MailMessage,
    body: BytesMut,
    /// Bytes that came: of one that is refused they are not kept.
    came: u64,
    refused: Option<String>,
}

struct Import {
    groups: Arc<Groups>,
    disk: Arc<Disk>,
    group: GroupId,
    mailbox: MailboxId,
    folder: Option<Current>,
    coming: Option<Coming>,
    number: u64,
    /// With the length of the body.
    in_flight: FuturesUnordered<BoxFuture<'static, (usize, Result<MessageImported, Status>)>>,
    bytes: usize,
    send: mpsc::Sender<Result<ImportResult, Status>>,
}

impl Import {
    async fn run(mut self, mut items: Streaming<ImportItem>) -> Result<(), Status> {
        let mut ended = false;
        loop {
            let window = if self.keeps_order() { 1 } else { WINDOW };
            let full = self.in_flight.len() >= window || self.bytes >= WINDOW_BYTES;
            tokio::select! {
                Some((bytes, done)) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    self.bytes -= bytes;
                    self.answer(Imported::Message(done?)).await?;
                }
                item = tokio::time::timeout(STALLED, items.message()), if !full && !ended => {
                    match item.map_err(|_| stalled())?? {
                        Some(item) => self.take(item).await?,
                        None => ended = true,
                    }
                }
                else => break,
            }
        }
        match self.coming {
            Some(_) => Err(Status::invalid_argument("the import ended in the middle of a message")),
            None => Ok(()),
        }
    }

    fn keeps_order(&self) -> bool {
        self.folder.as_ref().is_some_and(|folder| folder.source.is_none())
    }

    async fn take(&mut self, item: ImportItem) -> Result<(), Status> {
        match (item.item, &mut self.coming) {
            (Some(Item::Body(piece)), Some(coming)) => {
                coming.add(&piece)?;
                self.begin()
            }
            (_, Some(_)) => Err(Status::invalid_argument("a message is shorter than was said")),
            (Some(Item::Folder(folder)), None) => self.prepare(folder).await,
            (Some(Item::Message(message)), None) => {
                if self.disk.is_nearly_full() {
                    return Err(Status::unavailable("the disk of this node is nearly full; free some space"));
                }
                let current = self.folder.as_ref();
                let current = current.ok_or_else(|| Status::invalid_argument("a message has no folder"))?;
                self.coming = Some(Coming::new(message, current));
                self.begin()
            }
            _ => Err(Status::invalid_argument("an item of the import is out of place")),
        }
    }

    /// Makes the folder.
    async fn prepare(&mut self, import: ImportFolder) -> Result<(), Status> {
        let uids = import.uids();
        let folder = import.folder.ok_or_else(|| Status::invalid_argument("a folder is empty"))?;
        let source = (uids != Uids::New).then(|| FolderSource {
            uid_validity: UidValidity(folder.uid_validity),
            uid_next: match folder.uid_next {
                next if next > MAX_SOURCE_UID => Uid(next),
                next => Uid(next.saturating_add(UIDS_AFTER).min(MAX_SOURCE_UID)),
            },
            highest_mod_seq: ModSeq(folder.highest_mod_seq.saturating_add(MOD_SEQS_AFTER)),
            keep: uids == Uids::Keep,
        });
        let op = Op::RestoreFolder {
            mailbox: self.mailbox,
            folder: folder.name.clone(),
            special_use: mailbox::special_use_in(&folder.special_use)?,
            subscribed: folder.subscribed,
            source,
        };
        let made = self.groups.propose(self.group, groups::random_command(), op, Bytes::new(), WITHIN).await;
        let mut answer = FolderImported { name: folder.name.clone(), ..FolderImported::default() };
        match made {
            Ok(Applied::RestoredFolder { uid_validity, made, .. }) => {
                (answer.uid_validity, answer.made) = (uid_validity.0, made);
            }
            Ok(other) => return Err(unexpected(&other)),
            Err(CommandFailure::Refused(refusal)) => answer.refused = refusal.to_string(),
            Err(CommandFailure::Unavailable(reason)) => return Err(Status::unavailable(reason)),
        }
        self.folder = Some(Current {
            name: folder.name,
            source: source.map(|source| source.uid_validity),
            refused: Some(answer.refused.clone()).filter(|reason| !reason.is_empty()),
        });
        self.answer(Imported::Folder(answer)).await
    }

    /// Starts to write the message when it is complete.
    fn begin(&mut self) -> Result<(), Status> {
        let Some(coming) = self.coming.take_if(|coming| coming.is_complete()) else { return Ok(()) };
        let current = self.folder.clone().expect("a message that comes has a folder");
        let number = self.number;
        self.number += 1;
        let Coming { message, body, refused, .. } = coming;
        if let Some(reason) = refused {
            let refused =
                MessageImported { number, outcome: Outcome::Refused.into(), reason, uid: message.uid };
            self.in_flight.push(std::future::ready((0, Ok(refused))).boxed());
            return Ok(());
        }
        let place = match current.source {
            Some(source) => RestorePlace::Uid { source, uid: Uid(message.uid) },
            None => RestorePlace::Next { source: source(message.source)? },
        };
        // As it is now: it may have been raised, or the mailbox deleted, since the import began.
        let directory = self.groups.directory();
        let quota = match directory.mailbox(self.mailbox) {
            Some(record) => record.quota,
            // An archive has none.
            None if directory.archived_list(ListId(self.mailbox.0)).is_some() => Quota::default(),
            None => return Err(Status::not_found("the mailbox was deleted")),
        };
        let op = Op::RestoreMessage {
            mailbox: self.mailbox,
            folder: current.name,
            place,
            flags: importable(message.flags),
            internal_date: Timestamp(message.internal_date),
            quota,
        };
        let (groups, group, bytes) = (Arc::clone(&self.groups), self.group, body.len());
        self.bytes += bytes;
        let write = async move {
            let written = groups.propose(group, groups::random_command(), op, body.freeze(), WITHIN).await;
            (bytes, outcome(number, message.uid, written))
        };
        self.in_flight.push(write.boxed());
        Ok(())
    }

    async fn answer(&mut self, result: Imported) -> Result<(), Status> {
        let answer = ImportResult { result: Some(result) };
        let sent = tokio::time::timeout(STALLED, self.send.send(Ok(answer))).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the caller went away")),
            Err(_) => Err(stalled()),
        }
    }
}

impl Coming {
    fn new(message: MailMessage, current: &Current) -> Self {
        let refused = match &current.refused {
            None if message.size > MAX_MESSAGE => {
                Some(format!("the message has {} bytes, more than {MAX_MESSAGE}", message.size))
            }
            other => other.clone(),
        };
        Self { message, body: BytesMut::new(), came: 0, refused }
    }

    fn add(&mut self, piece: &[u8]) -> Result<(), Status> {
        self.came += piece.len() as u64;
        if self.came > self.message.size {
            return Err(Status::invalid_argument("a message is longer than was said"));
        }
        if self.refused.is_none() {
            self.body.extend_from_slice(piece);
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.came == self.message.size
    }
}

fn outcome(
    number: u64,
    wanted: u32,
    written: Result<Applied, CommandFailure>,
) -> Result<MessageImported, Status> {
    let answer =
        |outcome: Outcome, uid, reason| Ok(MessageImported { number, outcome: outcome.into(), reason, uid });
    match written {
        Ok(Applied::Restored { uid, was, .. }) => {
            let outcome = match was {
                RestoredAs::New => Outcome::Added,
                RestoredAs::There => Outcome::AlreadyThere,
                RestoredAs::Gone => Outcome::Gone,
            };
            answer(outcome, uid.0, String::new())
        }
        Ok(other) => Err(unexpected(&other)),
        Err(CommandFailure::Refused(refusal)) => answer(Outcome::Refused, wanted, refusal.to_string()),
        Err(CommandFailure::Unavailable(reason)) => Err(Status::unavailable(reason)),
    }
}

fn unexpected(applied: &Applied) -> Status {
    tracing::error!(?applied, "a partition gave an answer of the wrong kind");
    Status::internal("a partition gave an answer of the wrong kind")
}

/// The flags that the store takes: other servers have some that it does not.
fn importable(flags: Vec<String>) -> Flags {
    let is_system = |flag: &str| SYSTEM_FLAGS.iter().any(|known| known.eq_ignore_ascii_case(flag));
    let is_keyword = |flag: &str| {
        let atom = |b: u8| b.is_ascii_graphic() && !b"(){%*\"\\]".contains(&b);
        !flag.is_empty() && flag.len() <= MAX_KEYWORD_BYTES && flag.bytes().all(atom)
    };
    let (system, other): (Vec<_>, Vec<_>) = flags.into_iter().partition(|flag| is_system(flag));
    let keywords = other.into_iter().filter(|flag| is_keyword(flag)).take(MAX_KEYWORDS);
    system.into_iter().chain(keywords).map(Flag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_other_servers_that_cannot_be_kept_are_left_out() {
        let given =
            ["\\seen", "\\Recent", "\\X", "$Forwarded", "a b", "", "w{rk"].map(str::to_owned).to_vec();
        let kept: Vec<_> = importable(given).into_iter().map(|flag| flag.0).collect();
        assert_eq!(kept, ["$Forwarded", "\\seen"]);
        let many = (0..200).map(|number| format!("k{number}")).collect();
        assert_eq!(importable(many).len(), MAX_KEYWORDS);
    }

    #[test]
    fn a_body_is_as_long_as_was_said() {
        let current = Current { name: "INBOX".to_owned(), source: None, refused: None };
        let mut coming = Coming::new(MailMessage { size: 3, ..MailMessage::default() }, &current);
        assert!(coming.add(b"ab").is_ok() && !coming.is_complete());
        assert!(coming.add(b"c").is_ok() && coming.is_complete());
        assert!(coming.add(b"d").is_err());
        let huge = MailMessage { size: MAX_MESSAGE + 1, ..MailMessage::default() };
        let mut huge = Coming::new(huge, &current);
        huge.add(b"some").unwrap();
        assert!(huge.refused.is_some() && huge.body.is_empty());
    }
}
