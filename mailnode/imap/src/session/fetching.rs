//! Reading messages from the backend in batches, so that neither a folder of long messages nor a slow client makes the
//! server hold more than two batches.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::{Shared, ask};
use crate::{Failure, Mailbox, fetch::Need, mime, view::Entry};

/// Octets of messages that are asked for at once; a longer message is asked for alone.
const BATCH_OCTETS: u64 = 1024 * 1024;
/// Messages that are asked for at once.
const BATCH_MESSAGES: usize = 128;
/// Octets of a message that mostly hold its header.
const HEADER_PREFIX: u32 = 16 * 1024;

/// A message to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) number: u32,
    pub(super) uid: u32,
    size: u32,
}

impl Wanted {
    pub(super) fn new(number: u32, entry: &Entry) -> Self {
        Self { number, uid: entry.uid, size: entry.size }
    }
}

/// Messages to be read, in batches.
pub(super) struct Reading {
    shared: Arc<Shared>,
    mailbox: Arc<dyn Mailbox>,
    folder: u64,
    need: Need,
    waiting: VecDeque<Wanted>,
}

/// A batch that has been read; None for a message that is gone.
pub(super) type Batch = Vec<(Wanted, Option<Bytes>)>;

impl Reading {
    pub(super) fn new(
        shared: Arc<Shared>,
        mailbox: Arc<dyn Mailbox>,
        folder: u64,
        need: Need,
        waiting: impl IntoIterator<Item = Wanted>,
    ) -> Self {
        Self { shared, mailbox, folder, need, waiting: waiting.into_iter().collect() }
    }

    /// The next batch; empty at the end.
    pub(super) async fn next(&mut self) -> Result<Batch, Failure> {
        let wanted = self.take();
        if self.need == Need::Nothing || wanted.is_empty() {
            return Ok(wanted.into_iter().map(|wanted| (wanted, Some(Bytes::new()))).collect());
        }
        let uids: Vec<u32> = wanted.iter().map(|wanted| wanted.uid).collect();
        let mut bodies = self.bodies(&uids, self.prefix()).await?;
        if self.need == Need::Header {
            for (wanted, body) in wanted.iter().zip(&mut bodies) {
                let cut = |octets: &Bytes| {
                    octets.len() < wanted.size as usize && mime::header_end(octets).is_none()
                };
                if body.as_ref().is_some_and(cut) {
                    *body = self.bodies(&[wanted.uid], 0).await?.pop().flatten();
                }
            }
        }
        Ok(wanted.into_iter().zip(bodies).collect())
    }

    fn prefix(&self) -> u32 {
        match self.need {
            Need::Header => HEADER_PREFIX,
            // Zero would mean all.
            Need::Prefix(octets) => octets.max(1),
            Need::Nothing | Need::Whole => 0,
        }
    }

    fn take(&mut self) -> Vec<Wanted> {
        let most = match self.need {
            Need::Nothing => 0,
            Need::Whole => u32::MAX,
            Need::Header | Need::Prefix(_) => self.prefix(),
        };
        let mut octets = 0;
        let mut out = Vec::new();
        while let Some(&next) = self.waiting.front() {
            octets += u64::from(next.size.min(most));
            if !out.is_empty() && (octets > BATCH_OCTETS || out.len() >= BATCH_MESSAGES) {
                break;
            }
            out.push(next);
            self.waiting.pop_front();
        }
        out
    }

    /// The backend answers fewer than asked where its own bound is smaller.
    async fn bodies(&self, uids: &[u32], prefix: u32) -> Result<Vec<Option<Bytes>>, Failure> {
        let mut out: Vec<Option<Bytes>> = Vec::with_capacity(uids.len());
        while out.len() < uids.len() {
            let more =
                ask(&self.shared, self.mailbox.bodies(self.folder, &uids[out.len()..], prefix)).await?;
            if more.is_empty() || more.len() > uids.len() - out.len() {
                // Against its contract; asking again would not end.
                return Err(Failure::Unavailable);
            }
            out.extend(more);
        }
        Ok(out)
    }
}
