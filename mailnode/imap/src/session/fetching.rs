//! Reading messages from the backend in batches, so that neither a large folder, nor one of long messages, nor a slow
//! client makes the server hold more than two batches.

use std::{collections::VecDeque, sync::Arc};

use super::{Shared, ask};
use crate::{Digest, Failure, Found, Mailbox, Octets, fetch::Need, mime, sequence::Runs, view::View};

/// Messages that are asked for at once when their octets are wanted.
const BATCH_READ: usize = 128;
/// Messages that are asked for at once when the folder's list is enough.
const BATCH_LISTED: usize = 1000;
/// Octets of a message that mostly hold its header.
const HEADER_PREFIX: u32 = 16 * 1024;

/// A message to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) number: u32,
    pub(super) uid: u32,
}

/// Messages to be read, in batches.
pub(super) struct Reading {
    shared: Arc<Shared>,
    mailbox: Arc<dyn Mailbox>,
    folder: u64,
    need: Need,
    digests: Vec<Digest>,
    /// Numbers that were not looked up yet.
    numbers: VecDeque<(u32, u32)>,
    /// The next ones, looked up.
    waiting: VecDeque<Wanted>,
}

/// A batch that has been read; None for a message that is gone.
pub(super) type Batch = Vec<(Wanted, Option<Found>)>;

impl Reading {
    /// Messages by number.
    pub(super) fn new(
        shared: Arc<Shared>,
        mailbox: Arc<dyn Mailbox>,
        folder: u64,
        need: Need,
        numbers: Runs,
    ) -> Self {
        let (numbers, waiting) = (numbers.0.into(), VecDeque::new());
        Self { shared, mailbox, folder, need, digests: Vec::new(), numbers, waiting }
    }

    /// With digests.
    pub(super) fn with(self, digests: Vec<Digest>) -> Self {
        Self { digests, ..self }
    }

    /// Looks up what the next batch is about; to be called before [`Reading::next`].
    pub(super) fn refill(&mut self, view: &View) {
        let most = if self.need == Need::Nothing { BATCH_LISTED } else { BATCH_READ };
        while self.waiting.len() < most {
            let Some((first, last)) = self.numbers.pop_front() else { return };
            self.waiting.push_back(Wanted { number: first, uid: view.uid_of(first) });
            if first < last {
                self.numbers.push_front((first + 1, last));
            }
        }
    }

    /// The next batch; empty at the end.
    pub(super) async fn next(&mut self) -> Result<Batch, Failure> {
        let uids: Vec<u32> = self.waiting.iter().map(|wanted| wanted.uid).collect();
        if uids.is_empty() {
            return Ok(Vec::new());
        }
        let octets = match self.need {
            Need::Nothing => Octets::Nothing,
            Need::Prefix(octets) => Octets::Prefix(octets.max(1)),
            Need::Header => Octets::Prefix(HEADER_PREFIX),
            Need::Whole => Octets::Whole,
        };
        let mut found = self.ask(&uids, octets).await?;
        if self.need == Need::Header {
            for found in found.iter_mut().flatten() {
                let cut = found.octets.len() < found.message.size as usize;
                if cut && mime::header_end(&found.octets).is_none() {
                    // It is gone when there is no answer; so is its header, as far as it was not read.
                    if let Some(whole) = self.ask(&[found.message.uid], Octets::Whole).await?.pop().flatten()
                    {
                        found.octets = whole.octets;
                    }
                }
            }
        }
        Ok(self.waiting.drain(..found.len()).zip(found).collect())
    }

    async fn ask(&self, uids: &[u32], octets: Octets) -> Result<Vec<Option<Found>>, Failure> {
        let found =
            ask(&self.shared, self.mailbox.messages(self.folder, uids, octets, &self.digests)).await?;
        let digested = |found: &Found| found.digests.len() == self.digests.len();
        if found.is_empty() || found.len() > uids.len() || !found.iter().flatten().all(digested) {
            // Against its contract; asking again would not end.
            return Err(Failure::Unavailable);
        }
        Ok(found)
    }
}
