//! Deleted mail that is still kept: what there is of it, and bringing it back.

use bytes::Bytes;
use mail_parser::MessageParser;
use quorumail_proto::admin::{
    self, ListDeletedRequest, ListDeletedResponse, UndeleteRequest, UndeleteResponse,
};
use quorumail_store::{Applied, DeletedMessage, MAX_UNDELETED, Op, Query, Reply};
use tonic::Status;

use super::{WITHIN, failed, mailbox, unreadable};
use crate::groups::{self, Groups};

/// Octets of a message that are looked at for sender and subject.
const HEADER_BYTES: u32 = 8 * 1024;
/// Characters of each that are told.
const TOLD_CHARS: usize = 200;

pub(super) async fn list(
    groups: &Groups,
    request: ListDeletedRequest,
) -> Result<ListDeletedResponse, Status> {
    let record = mailbox::record(groups, &request.address).await?;
    // The store has a bound of its own.
    let limit = if request.limit == 0 { u32::MAX } else { request.limit };
    let prefix = if request.without_headers { 0 } else { HEADER_BYTES };
    let query = Query::Deleted { mailbox: record.id, after: request.after, limit, prefix };
    let reply = groups.query(Groups::group(record.partition), &query, WITHIN).await.map_err(unreadable)?;
    let Reply::Deleted(messages, kept) = reply else {
        return Err(Status::internal("the partition answered something else"));
    };
    Ok(ListDeletedResponse {
        messages: messages.into_iter().map(told).collect(),
        kept_messages: kept.messages,
        kept_bytes: kept.bytes,
    })
}

pub(super) async fn undelete(groups: &Groups, request: UndeleteRequest) -> Result<UndeleteResponse, Status> {
    if request.numbers.len() > MAX_UNDELETED {
        let text = format!("at most {MAX_UNDELETED} messages are brought back at a time");
        return Err(Status::invalid_argument(text));
    }
    let record = mailbox::record(groups, &request.address).await?;
    let op = Op::Undelete {
        mailbox: record.id,
        numbers: request.numbers,
        below: request.below,
        quota: record.quota,
    };
    let group = Groups::group(record.partition);
    let applied = groups.propose(group, groups::random_command(), op, Bytes::new(), WITHIN).await;
    match applied.map_err(failed)? {
        Applied::Undeleted { messages } => Ok(UndeleteResponse { messages }),
        other => Err(Status::internal(format!("the partition answered {other:?}"))),
    }
}

/// Deleted mailboxes, the next to be purged first.
pub(super) async fn mailboxes(groups: &Groups) -> Result<Vec<admin::DeletedMailbox>, Status> {
    groups.directory_is_current().await.map_err(unreadable)?;
    let mut deleted = groups.directory().deleted();
    deleted.sort_by_key(|mailbox| (mailbox.purge_at, mailbox.record.id));
    let told = deleted.into_iter().map(|mailbox| admin::DeletedMailbox {
        address: mailbox.record.address.to_string(),
        partition: mailbox.record.partition.0,
        purge_at: mailbox.purge_at.0,
        revision: mailbox.record.revision.clone(),
    });
    Ok(told.collect())
}

fn told(message: DeletedMessage) -> admin::DeletedMessage {
    let header = MessageParser::default().parse_headers(message.start.as_ref());
    let from = header.as_ref().and_then(|header| header.from()?.first()?.address());
    let subject = header.as_ref().and_then(|header| header.subject());
    admin::DeletedMessage {
        number: message.number,
        deleted_at: message.deleted_at.0,
        folder: message.folder,
        uid: message.uid.0,
        internal_date: message.internal_date.0,
        flags: message.flags.into_iter().map(|flag| flag.0).collect(),
        size: message.size,
        from: shown(from.unwrap_or_default()),
        subject: shown(subject.unwrap_or_default()),
    }
}

/// One line that does nothing to a terminal.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TOLD_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use quorumail_store::{Timestamp, Uid};

    use super::*;

    fn message(start: &'static [u8]) -> DeletedMessage {
        DeletedMessage {
            number: 4,
            deleted_at: Timestamp(5),
            folder: "INBOX".to_owned(),
            uid: Uid(6),
            internal_date: Timestamp(7),
            flags: Default::default(),
            size: 8,
            start: Bytes::from_static(start),
        }
    }

    #[test]
    fn sender_and_subject_are_told_decoded_and_on_one_line() {
        let told =
            told(message(b"From: A <a@x.org>\r\nSubject: =?utf-8?q?=C3=9Cber_=1B[2Juns?=\r\n\r\nbody"));
        assert_eq!((told.from.as_str(), told.subject.as_str()), ("a@x.org", "\u{dc}ber  [2Juns"));
    }

    #[test]
    fn a_message_without_a_header_is_listed_all_the_same() {
        for start in [b"".as_slice(), b"\xff\x00no header at all", b"Subject:", b"From: \r\n\r\n"] {
            let told = told(message(start));
            assert_eq!((told.number, told.from.as_str()), (4, ""), "{start:?}");
        }
    }
}
