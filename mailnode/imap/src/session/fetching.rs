//! Reading messages from the backend in batches, so that neither a large folder, nor one of long messages, nor a slow
//! client makes the server hold more than two batches.

use std::{collections::VecDeque, sync::Arc};

use super::{Shared, ask};
use crate::{Digest, Failure, Found, Mailbox, Octets, fetch::Need, mime, sequence::Runs, view::View};

/// Messages that are asked for at once when their octets are wanted.
const BATCH_READ: usize = 128;
/// Messages that are asked for at once when the folder's list is enough.
const BATCH_LISTED: usize = 1000;
/// Messages of one command that cannot be read: with one more it is refused, as each may have been waited for.
const MAX_UNREADABLE: u32 = 100;
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
    /// How many are asked for at once: fewer after one among them could not be read, until it is known which.
    at_once: usize,
    unreadable: u32,
}

/// What came of reading a message.
pub(super) enum Read {
    Found(Found),
    Gone,
    /// Its octets cannot be had just now.
    Unreadable,
}

impl Read {
    pub(super) fn found(&self) -> Option<&Found> {
        match self {
            Read::Found(found) => Some(found),
            Read::Gone | Read::Unreadable => None,
        }
    }

    pub(super) fn found_mut(&mut self) -> Option<&mut Found> {
        match self {
            Read::Found(found) => Some(found),
            Read::Gone | Read::Unreadable => None,
        }
    }
}

impl From<Option<Found>> for Read {
    fn from(found: Option<Found>) -> Self {
        found.map_or(Self::Gone, Self::Found)
    }
}

/// A batch that has been read.
pub(super) type Batch = Vec<(Wanted, Read)>;

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
        let (digests, at_once, unreadable) = (Vec::new(), usize::MAX, 0);
        Self { shared, mailbox, folder, need, digests, numbers, waiting, at_once, unreadable }
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
        while !self.waiting.is_empty() {
            let count = self.waiting.len().min(self.at_once);
            match self.read(count).await {
                Ok(read) => {
                    self.at_once = self.at_once.saturating_mul(2);
                    return Ok(self.waiting.drain(..read.len()).zip(read).collect());
                }
                Err(Failure::Unreadable) if count > 1 => self.at_once = count / 2,
                Err(Failure::Unreadable) if self.unreadable < MAX_UNREADABLE => {
                    self.unreadable += 1;
                    return Ok(self.waiting.drain(..1).map(|wanted| (wanted, Read::Unreadable)).collect());
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(Vec::new())
    }

    /// Reads the first of those that wait, at most `count`.
    async fn read(&self, count: usize) -> Result<Vec<Read>, Failure> {
        let uids: Vec<u32> = self.waiting.iter().take(count).map(|wanted| wanted.uid).collect();
        let octets = match self.need {
            Need::Nothing => Octets::Nothing,
            Need::Prefix(octets) => Octets::Prefix(octets.max(1)),
            Need::Header => Octets::Prefix(HEADER_PREFIX),
            Need::Whole => Octets::Whole,
        };
        let found = self.ask(&uids, octets).await?;
        let mut read: Vec<Read> = found.into_iter().map(Read::from).collect();
        if self.need == Need::Header {
            for one in &mut read {
                let Some(found) = one.found_mut() else { continue };
                let cut = found.octets.len() < found.message.size as usize;
                if cut && mime::header_end(&found.octets).is_none() {
                    match self.ask(&[found.message.uid], Octets::Whole).await {
                        Ok(mut whole) => {
                            // It is gone when there is no answer; so is its header, as far as it was not read.
                            if let Some(whole) = whole.pop().flatten() {
                                found.octets = whole.octets;
                            }
                        }
                        Err(Failure::Unreadable) => *one = Read::Unreadable,
                        Err(failure) => return Err(failure),
                    }
                }
            }
        }
        Ok(read)
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
