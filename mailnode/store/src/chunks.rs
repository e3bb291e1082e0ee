//! Bodies that come in chunks before their command. So a large message is many small entries of the log: no step of
//! replication is long, and smaller commands pass between.
//!
//! A chunk is a body of its own, held by an entry of this table until the command that names the upload is applied: its
//! body then consists of the chunks. What is never claimed is dropped an hour later by the janitor.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::{
    Applied, BodyId, Refusal, Store, StoreError, Timestamp, UploadId,
    body_table::{self, Arrived, Content},
    error::Stop,
    keys, records,
    txn::{Txn, View},
};

/// Chunks that may wait to be claimed in one group; a further one is refused.
pub(crate) const MAX_WAITING: u64 = 4096;
/// Chunks of one upload at most.
pub(crate) const MAX_CHUNKS: u32 = 1024;
/// Chunks that one command drops at most; the janitor comes again.
const DROP_AT_ONCE: usize = 1024;

/// A chunk that waits to be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chunk {
    pub(crate) body: BodyId,
    pub(crate) len: u32,
    /// When it came, by the proposer's clock.
    pub(crate) at: Timestamp,
}

/// Adds a chunk to an upload; one that is there already stays.
pub(crate) fn add(
    txn: &mut Txn<'_>,
    upload: UploadId,
    number: u32,
    at: Timestamp,
    arrived: &Arrived,
) -> Result<Applied, Stop> {
    if number >= MAX_CHUNKS {
        return Err(Refusal::Invalid(format!("an upload has at most {MAX_CHUNKS} chunks")).into());
    }
    let key = keys::chunk(upload, number);
    if txn.get(&key)?.is_none() {
        if waiting(txn)? >= MAX_WAITING {
            return Err(Refusal::Invalid("too many uploads are under way".to_owned()).into());
        }
        body_table::add(txn, arrived);
        txn.put(key, records::encode(&Chunk { body: arrived.id, len: arrived.len, at }));
        count(txn, 1)?;
    }
    Ok(Applied::Done)
}

/// Makes one body of an upload's chunks. Their references go over to it; further chunks of the upload go.
pub(crate) fn take(txn: &mut Txn<'_>, id: BodyId, upload: UploadId, chunks: u32) -> Result<Arrived, Stop> {
    if chunks == 0 || chunks > MAX_CHUNKS {
        return Err(Refusal::Invalid(format!("an upload has 1 to {MAX_CHUNKS} chunks")).into());
    }
    let (mut parts, mut len) = (Vec::with_capacity(chunks as usize), 0u32);
    for number in 0..chunks {
        let key = keys::chunk(upload, number);
        let value = txn.get(&key)?.ok_or(Refusal::Incomplete)?;
        let chunk: Chunk = records::decode(&value)?;
        parts.push(chunk.body);
        let sum = len.checked_add(chunk.len);
        len = sum.ok_or_else(|| Refusal::Invalid("a body is shorter than 4 GiB".to_owned()))?;
        txn.remove(key);
        count(txn, -1)?;
    }
    discard(txn, upload)?;
    Ok(Arrived { id, len, content: Content::Parts(parts) })
}

/// Drops an upload that no command will take.
pub(crate) fn discard(txn: &mut Txn<'_>, upload: UploadId) -> Result<(), Stop> {
    drop_where(txn, &keys::upload(upload), usize::MAX, |_| true)
}

/// Drops chunks that came before an instant, a bounded number at a time.
pub(crate) fn drop_before(txn: &mut Txn<'_>, before: Timestamp) -> Result<Applied, Stop> {
    drop_where(txn, &[keys::CHUNK], DROP_AT_ONCE, |chunk| chunk.at < before)?;
    Ok(Applied::Done)
}

fn drop_where(
    txn: &mut Txn<'_>,
    prefix: &[u8],
    limit: usize,
    wanted: impl Fn(&Chunk) -> bool,
) -> Result<(), Stop> {
    let mut found = Vec::new();
    txn.scan(prefix, prefix, &mut |key, value| {
        let chunk: Chunk = records::decode(value)?;
        if wanted(&chunk) {
            found.push((key.to_vec(), chunk.body));
        }
        Ok(if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    for (key, body) in found {
        txn.remove(key);
        count(txn, -1)?;
        body_table::release(txn, body)?;
    }
    Ok(())
}

/// Chunks that wait to be claimed.
pub(crate) fn waiting<V: View>(view: &V) -> Result<u64, StoreError> {
    Ok(view.get(&[keys::CHUNKS])?.map(|value| records::decode(&value)).transpose()?.unwrap_or(0))
}

impl Store {
    /// Whether chunks wait in a group that came before an instant: [`Op::DropChunks`](crate::Op::DropChunks) would drop
    /// them.
    pub fn has_uploads_before(&self, group: u32, before: Timestamp) -> Result<bool, StoreError> {
        let Some(view) = self.view(group)? else { return Ok(false) };
        let mut found = false;
        view.scan(&[keys::CHUNK], &[keys::CHUNK], &mut |_, value| {
            found = records::decode::<Chunk>(value)?.at < before;
            Ok(if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(found)
    }
}

fn count(txn: &mut Txn<'_>, step: i64) -> Result<(), Stop> {
    let sum = waiting(txn)?.checked_add_signed(step).expect("chunks are counted as they come and go");
    if sum == 0 {
        txn.remove(vec![keys::CHUNKS]);
    } else {
        txn.put(vec![keys::CHUNKS], records::encode(&sum));
    }
    Ok(())
}
