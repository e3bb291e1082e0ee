//! Applying one command: once, however often it is proposed, and wholly or not at all.

use bytes::Bytes;
use quorumail_journal::mutation::{self, Mutation};

use crate::{
    Applied, BodyId, Command, CommandError, CommandId, Op, Outcome, Refusal, StoreError, Timestamp, UploadId,
    accounts,
    body_table::{Arrived, Content},
    chunks, encode_outcome,
    error::Stop,
    folders::{self, Mailbox},
    keys, lists, queue,
    store::LogCommand,
    txn::{Txn, View},
};

/// For so many log entries back the outcome of a command is remembered.
pub const REMEMBERED_COMMANDS: u64 = 65_536;

/// Applies a command and answers its encoded outcome.
pub(crate) fn one(txn: &mut Txn<'_>, group: u32, log: LogCommand) -> Result<Bytes, StoreError> {
    let command = match Command::decode(&log.command) {
        Ok(command) => command,
        // The same bytes on every replica, and the same answer. It has no id to remember.
        Err(CommandError::Malformed) => {
            return Ok(encode_outcome(&Err(Refusal::Invalid(CommandError::Malformed.to_string()))));
        }
        // A later version knows what it means: going on without it would make replicas differ.
        Err(error @ CommandError::Format(_)) => return Err(error.into()),
    };
    let (index, id, upload) = (log.index, command.id, command.op.upload());
    if let Some(outcome) = remembered(txn, id, index)? {
        // Proposed again with chunks of its own: they are not needed.
        discard(txn, upload)?;
        return Ok(outcome);
    }
    let place = log
        .body(command.body.len())
        .ok_or(StoreError::Damaged("a command lies beyond 4 GiB in its record"))?;
    let arrived = Arrived { id: BodyId(index), len: place.len, content: Content::Record(place) };
    txn.mark();
    let keeps = Command::keeps_deleted(&log.command);
    let outcome: Outcome = match execute(txn, group, command.at, keeps, command.op, arrived) {
        Ok(applied) => Ok(applied),
        Err(Stop::Refused(refusal)) => {
            txn.roll_back();
            discard(txn, upload)?;
            if refusal == Refusal::Incomplete {
                return Ok(encode_outcome(&Err(refusal)));
            }
            Err(refusal)
        }
        Err(Stop::Failed(error)) => return Err(error),
    };
    let outcome = encode_outcome(&outcome);
    remember(txn, id, index, &outcome)?;
    Ok(outcome)
}

fn discard(txn: &mut Txn<'_>, upload: Option<UploadId>) -> Result<(), StoreError> {
    let Some(upload) = upload else { return Ok(()) };
    chunks::discard(txn, upload).map_err(|stop| match stop {
        Stop::Failed(error) => error,
        Stop::Refused(refusal) => unreachable!("dropping chunks is never refused: {refusal}"),
    })
}

/// The outcome of a command that was applied within the window.
fn remembered(txn: &Txn<'_>, id: CommandId, index: u64) -> Result<Option<Bytes>, StoreError> {
    if mutation::is(Mutation::ForgetCommandIds) {
        return Ok(None);
    }
    let Some(value) = txn.get(&keys::remembered(id))? else { return Ok(None) };
    let (applied_at, outcome) = split_index(&value)?;
    let within = applied_at.saturating_add(REMEMBERED_COMMANDS) > index;
    Ok(within.then(|| Bytes::copy_from_slice(outcome)))
}

/// Remembers an outcome in the ring slot of its index. What the slot held before is out of the window and goes: so
/// nothing has to be searched for, and the ring's keys never move.
fn remember(txn: &mut Txn<'_>, id: CommandId, index: u64, outcome: &[u8]) -> Result<(), StoreError> {
    let slot = keys::recent(index % REMEMBERED_COMMANDS);
    if let Some(value) = txn.get(&slot)? {
        let (old_index, old_id) = split_index(&value)?;
        let old_id = old_id.try_into().map_err(|_| StoreError::Damaged("a remembered command has no id"))?;
        let key = keys::remembered(CommandId(u128::from_be_bytes(old_id)));
        // The id may have been used again since, at a later index.
        if let Some(value) = txn.get(&key)?
            && split_index(&value)?.0 == old_index
        {
            txn.remove(key);
        }
    }
    txn.put(slot, [&index.to_be_bytes()[..], &id.0.to_be_bytes()].concat());
    txn.put(keys::remembered(id), [&index.to_be_bytes()[..], outcome].concat());
    Ok(())
}

fn split_index(value: &[u8]) -> Result<(u64, &[u8]), StoreError> {
    let (index, rest) =
        value.split_first_chunk::<8>().ok_or(StoreError::Damaged("a remembered command has no index"))?;
    Ok((u64::from_be_bytes(*index), rest))
}

fn execute(
    txn: &mut Txn<'_>,
    group: u32,
    at: Timestamp,
    keeps: bool,
    op: Op,
    arrived: Arrived,
) -> Result<Applied, Stop> {
    let is_directory = matches!(
        op,
        Op::PutDomain(_)
            | Op::PutSigningDomain { .. }
            | Op::DeleteDomain(_)
            | Op::PutMailbox { .. }
            | Op::DeleteMailbox { .. }
            | Op::ForgetMailbox(_)
            | Op::PutList { .. }
            | Op::PutArchivedList { .. }
            | Op::DeleteList(_)
    );
    if is_directory != (group == 0) {
        return Err(Refusal::Invalid(format!("group {group} does not take this command")).into());
    }
    match op {
        Op::WithUpload { upload, chunks, op } => {
            let takes_body = matches!(
                *op,
                Op::Append { .. } | Op::Enqueue(_) | Op::RestoreMessage { .. } | Op::PostToList(_)
            );
            if !takes_body {
                return Err(Refusal::Invalid("the command takes no body".to_owned()).into());
            }
            let arrived = chunks::take(txn, arrived.id, upload, chunks)?;
            execute(txn, group, at, keeps, *op, arrived)
        }
        Op::Chunk { upload, number } => chunks::add(txn, upload, number, at, &arrived),
        Op::DropChunks(before) => chunks::drop_before(txn, before),
        Op::PutDomain(record) => accounts::put_domain(txn, record, None),
        Op::PutSigningDomain { record, keys, sts } => accounts::put_domain(txn, record, Some((keys, sts))),
        Op::DeleteDomain(domain) => accounts::delete_domain(txn, &domain),
        Op::PutMailbox { record, partitions } => accounts::put_mailbox(txn, record, partitions, at),
        Op::DeleteMailbox { address, purge_at } => accounts::delete_mailbox(txn, &address, purge_at),
        Op::ForgetMailbox(id) => accounts::forget_mailbox(txn, id),
        Op::PurgeMailbox(mailbox) => folders::purge(txn, group, mailbox, at),
        Op::Enqueue(entry) => queue::enqueue(txn, group, entry, arrived),
        Op::UpdateQueue { id, done, changed } => queue::update(txn, group, id, &done, changed),
        Op::PutList { record, partitions } => accounts::put_list(txn, record, partitions, None),
        Op::PutArchivedList { record, partitions, archive } => {
            accounts::put_list(txn, record, partitions, Some(archive))
        }
        Op::DeleteList(address) => accounts::delete_list(txn, &address),
        Op::PostToList(post) => lists::post(txn, group, post, arrived),
        Op::ExpandPost { list, post, after, entries, next } => {
            lists::expand(txn, group, (list, post), after.as_ref(), entries, next)
        }
        Op::DecidePost { list, post, approve } => lists::decide(txn, group, (list, post), approve),
        Op::ChangeSubscriber { list, address, change } => lists::subscriber(txn, list, address, change, at),
        Op::ForgetList(list) => lists::forget(txn, group, list, at),
        Op::OpenArchive(list) => lists::open_archive(txn, group, list, at),
        Op::ArchivePost { list, post } => lists::archive(txn, group, (list, post), at),
        // Purged meanwhile: it is not to be made again.
        Op::DropDeleted { mailbox, .. } if folders::mailbox_head(txn, mailbox)?.is_none() => {
            Ok(Applied::Done)
        }
        Op::OpenMailbox(mailbox)
        | Op::Append { mailbox, .. }
        | Op::CreateFolder { mailbox, .. }
        | Op::DeleteFolder { mailbox, .. }
        | Op::RenameFolder { mailbox, .. }
        | Op::Subscribe { mailbox, .. }
        | Op::StoreFlags { mailbox, .. }
        | Op::Copy { mailbox, .. }
        | Op::Expunge { mailbox, .. }
        | Op::RestoreFolder { mailbox, .. }
        | Op::RestoreMessage { mailbox, .. }
        | Op::Undelete { mailbox, .. }
        | Op::DropDeleted { mailbox, .. } => {
            let mut mailbox = Mailbox::open(txn, group, mailbox, at)?;
            mailbox.keeps = keeps;
            let applied = in_mailbox(&mut mailbox, op, arrived)?;
            mailbox.save();
            Ok(applied)
        }
    }
}

fn in_mailbox(open: &mut Mailbox<'_, '_>, op: Op, arrived: Arrived) -> Result<Applied, Stop> {
    match op {
        Op::OpenMailbox(_) => {
            open.make_special_folders()?;
            Ok(Applied::Done)
        }
        Op::Append { folder, flags, internal_date, quota, .. } => {
            open.append(&folder, &flags, internal_date, quota, arrived)
        }
        Op::CreateFolder { folder, special_use, .. } => open.create_folder(&folder, special_use),
        Op::DeleteFolder { folder, .. } => open.delete_folder(&folder),
        Op::RenameFolder { from, to, .. } => open.rename_folder(&from, &to),
        Op::Subscribe { folder, subscribed, .. } => open.subscribe(&folder, subscribed),
        Op::StoreFlags { folder, uids, mode, flags, unchanged_since, .. } => {
            open.store_flags(folder, uids, mode, &flags, unchanged_since)
        }
        Op::Copy { folder, uids, to, remove, quota, .. } => open.copy(folder, uids, &to, remove, quota),
        Op::Expunge { folder, uids, .. } => open.expunge(folder, uids),
        Op::RestoreFolder { folder, special_use, subscribed, source, .. } => {
            open.restore_folder(&folder, special_use, subscribed, source)
        }
        Op::RestoreMessage { folder, place, flags, internal_date, quota, .. } => {
            open.restore_message(&folder, place, &flags, internal_date, quota, arrived)
        }
        Op::Undelete { numbers, below, quota, .. } => open.undelete(numbers, &below, quota),
        Op::DropDeleted { before, .. } => open.drop_deleted(before),
        other => unreachable!("{other:?} is no command of a mailbox"),
    }
}
