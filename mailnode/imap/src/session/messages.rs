//! FETCH, STORE, COPY, MOVE, EXPUNGE and SEARCH. RFC 9051 6.4; RFC 4315 (UIDPLUS), RFC 6851 (MOVE), RFC 7162 (CONDSTORE).

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    Done, Reply, Session, Stop,
    fetching::{Batch, Read, Reading, Wanted},
    or_try_create,
};
use crate::{
    Closed, Failure, FlagChange, Flags, Mailbox, Message, Since, Stored,
    command::{Fetch, FetchItem, Search, SearchKey, Store},
    fetch::{self, Force, Need, Source},
    response::put,
    search::{self, Subject, Text},
    sequence::{Runs, SequenceSet},
    uid_set::UidSet,
    view::View,
};

/// Messages after which a long computation lets others run.
const YIELD_AFTER: usize = 64;
/// Messages that one change names: a larger one is made in steps, so that nobody waits long for what others do.
const CHANGED_AT_ONCE: usize = 1000;
/// Numbers of a SEARCH answer that are written in one go.
const NUMBERS_AT_ONCE: usize = 1000;

/// Messages that FETCH could not answer.
#[derive(Debug, Clone, Copy, Default)]
struct Lacking {
    gone: bool,
    unreadable: u32,
}

impl Session {
    /// What every command on messages begins with: the newest state, as far as it may be told now, and the numbers of the
    /// messages that are meant.
    async fn begin(
        &mut self,
        mailbox: &Arc<dyn Mailbox>,
        set: &SequenceSet,
        uid: bool,
    ) -> Result<Runs, Stop> {
        self.sync(mailbox, uid).await?;
        self.selected().resolve(set, uid).map_err(|why| Reply::bad(why).into())
    }

    fn writable(&mut self) -> Result<(), Stop> {
        if self.selected().folder.read_only {
            return Err(Failure::ReadOnly.into());
        }
        if self.selected().read_only {
            return Err(Reply::no("[READ-ONLY]", "the folder was opened read-only").into());
        }
        Ok(())
    }

    pub(super) async fn fetch(&mut self, mailbox: Arc<dyn Mailbox>, fetch: Fetch) -> Done {
        if fetch.changed_since.is_some() || fetch.items.contains(&FetchItem::ModSeq) {
            self.use_condstore();
        }
        let mut numbers = self.begin(&mailbox, &fetch.set, fetch.uid).await?;
        if let Some(since) = fetch.changed_since {
            numbers = self.changed_since(&mailbox, numbers, since).await?;
        }
        let shared = self.shared.clone();
        let view = self.selected();
        let seen = fetch::sets_seen(&fetch.items) && !view.read_only;
        let need = fetch::need(&fetch.items);
        let digests = fetch::digests(&fetch.items);
        let mut reading = Reading::new(shared, mailbox.clone(), view.folder.id, need, numbers).with(digests);
        let mut lacking = Lacking::default();
        reading.refill(view);
        let mut batch = reading.next().await?;
        while !batch.is_empty() {
            reading.refill(self.selected());
            // The next batch is read while this one goes out.
            let (written, next) = tokio::join!(
                self.write_batch(&mailbox, &fetch.items, seen, batch, &mut lacking),
                reading.next()
            );
            written?;
            batch = next?;
        }
        if lacking.unreadable > 0 {
            // RFC 5530 3: UNAVAILABLE is temporary, and it is tried to get them back.
            let few = lacking.unreadable;
            let text =
                format!("{few} of the messages cannot be read just now, all others were answered; try again");
            return Err(Reply::no("[UNAVAILABLE]", &text).into());
        }
        if lacking.gone && !fetch.uid {
            return Err(Reply::no("[EXPUNGEISSUED]", "some of the messages are gone").into());
        }
        Ok(Reply::ok("fetched"))
    }

    /// Those of the numbers whose messages changed after a MODSEQ: what changed is looked at, not the folder.
    async fn changed_since(
        &mut self,
        mailbox: &Arc<dyn Mailbox>,
        numbers: Runs,
        since: u64,
    ) -> Result<Runs, Stop> {
        let (folder, uid_next) = (self.selected().folder.id, self.selected().folder.uid_next);
        let mut changed = UidSet::default();
        let mut after = Some((since, u32::MAX));
        while let Some(place) = after {
            // Expunges are of no interest here: those after the highest MODSEQ there is are none.
            let since = Since { mod_seq: u64::MAX >> 1, after: place, uid_next };
            let page = self.ask(mailbox.changes(folder, since)).await?;
            for message in page.changed {
                changed.insert(message.uid);
            }
            after = page.more;
        }
        let view = self.selected();
        let mut left = Runs::default();
        let mut wanted = numbers.0.iter().peekable();
        for number in changed.iter().filter_map(|uid| view.number_of(uid)) {
            while wanted.next_if(|(_, last)| *last < number).is_some() {}
            if wanted.peek().is_some_and(|(first, _)| *first <= number) {
                left.push(number, number);
            }
        }
        Ok(left)
    }

    async fn write_batch(
        &mut self,
        mailbox: &Arc<dyn Mailbox>,
        items: &[FetchItem],
        seen: bool,
        mut batch: Batch,
        lacking: &mut Lacking,
    ) -> Result<(), Closed> {
        let newly_seen = if seen { self.mark_seen(mailbox, &mut batch).await } else { UidSet::default() };
        for (wanted, found) in batch {
            let found = match found {
                Read::Found(found) => found,
                Read::Gone => {
                    lacking.gone = true;
                    continue;
                }
                Read::Unreadable => {
                    lacking.unreadable += 1;
                    continue;
                }
            };
            let flags = newly_seen.contains(wanted.uid);
            let force = Force { flags, mod_seq: flags && self.condstore };
            let mut source = Source::new(found.octets, fetch::digests(items), found.digests);
            let out = &mut self.connection.out;
            fetch::write(out, wanted.number, &found.message, items, force, Some(&mut source));
            self.connection.flush_when_full().await?;
        }
        // A long answer must not keep the thread from others: writing to a quick client never waits.
        tokio::task::yield_now().await;
        Ok(())
    }

    /// RFC 9051 6.4.5: reading a body sets `\Seen`, and the new flags are part of the answer. When it cannot be set now
    /// the message is shown all the same.
    async fn mark_seen(&mut self, mailbox: &Arc<dyn Mailbox>, batch: &mut Batch) -> UidSet {
        let folder = self.selected().folder.id;
        let there = batch.iter().filter_map(|(_, read)| read.found());
        let unseen = there.filter(|found| !found.message.flags.contains("\\Seen"));
        let uids: Vec<u32> = unseen.map(|found| found.message.uid).collect();
        if uids.is_empty() {
            return UidSet::default();
        }
        let flags = Flags::from(["\\Seen".to_owned()]);
        let Ok(stored) = self.ask(mailbox.store(folder, &uids, FlagChange::Add, flags, None)).await else {
            return UidSet::default();
        };
        self.selected().changed_by_us(stored.mod_seq);
        let mut changed: HashMap<u32, (u64, Flags)> =
            stored.messages.into_iter().map(|(uid, mod_seq, flags)| (uid, (mod_seq, flags))).collect();
        let mut seen = UidSet::default();
        for found in batch.iter_mut().filter_map(|(_, read)| read.found_mut()) {
            if let Some((mod_seq, flags)) = changed.remove(&found.message.uid) {
                found.message.mod_seq = mod_seq;
                found.message.flags = flags;
                seen.insert(found.message.uid);
            }
        }
        seen
    }

    pub(super) async fn store(&mut self, mailbox: Arc<dyn Mailbox>, store: Store) -> Done {
        self.writable()?;
        if store.unchanged_since.is_some() {
            self.use_condstore();
        }
        let numbers = self.begin(&mailbox, &store.set, store.uid).await?;
        let folder = self.selected().folder.id;
        let (mut missing, mut left) = (false, Runs::default());
        let mut steps = Steps::new(numbers);
        while let Some(uids) = steps.next(self.selected(), &mut missing) {
            let change =
                mailbox.store(folder, &uids, store.change, store.flags.clone(), store.unchanged_since);
            let Stored { mod_seq, messages, modified } = self.ask(change).await?;
            missing |= messages.len() + modified.len() < uids.len();
            self.selected().changed_by_us(mod_seq);
            self.write_stored(&store, messages).await?;
            // RFC 7162 3.1.3: numbers or UIDs, as the command had them.
            for uid in modified {
                let name = if store.uid { Some(uid) } else { self.selected().number_of(uid) };
                name.into_iter().for_each(|name| left.push(name, name));
            }
        }
        if !left.is_empty() {
            return Ok(Reply { code: format!("[MODIFIED {left}]"), ..Reply::ok("some were left alone") });
        }
        if missing && !store.uid {
            return Err(Reply::no("[EXPUNGEISSUED]", "some of the messages are gone").into());
        }
        Ok(Reply::ok("stored"))
    }

    async fn write_stored(&mut self, store: &Store, messages: Vec<(u32, u64, Flags)>) -> Result<(), Closed> {
        let items: &[FetchItem] = if store.uid { &[FetchItem::Uid] } else { &[] };
        let force = Force { flags: !store.silent, mod_seq: self.condstore };
        let view = self.view.as_mut().expect("STORE is only run with a folder selected");
        let messages: Vec<Message> = messages
            .into_iter()
            .map(|(uid, mod_seq, flags)| Message { uid, mod_seq, flags, internal_date: 0, size: 0 })
            .collect();
        messages.iter().for_each(|message| view.note_keywords(message));
        view.write_new_keywords(&mut self.connection.out);
        if force == Force::default() {
            return Ok(());
        }
        for message in &messages {
            if let Some(number) = self.view.as_ref().and_then(|view| view.number_of(message.uid)) {
                fetch::write(&mut self.connection.out, number, message, items, force, None);
                self.connection.flush_when_full().await?;
            }
        }
        Ok(())
    }

    pub(super) async fn copy(
        &mut self,
        mailbox: Arc<dyn Mailbox>,
        uid: bool,
        set: SequenceSet,
        folder: &str,
        remove: bool,
    ) -> Done {
        if remove {
            self.writable()?;
        }
        let numbers = self.begin(&mailbox, &set, uid).await?;
        let from = self.selected().folder.id;
        let (mut validity, mut sources, mut targets) = (0, Runs::default(), Runs::default());
        let mut failed = None;
        let mut steps = Steps::new(numbers);
        while let Some(uids) = steps.next(self.selected(), &mut false) {
            match self.ask(mailbox.copy(from, &uids, folder, remove)).await {
                Ok((uid_validity, pairs)) => {
                    validity = uid_validity;
                    for (source, target) in pairs {
                        sources.push(source, source);
                        targets.push(target, target);
                    }
                }
                Err(failure) => {
                    failed = Some(failure);
                    break;
                }
            }
        }
        if failed.is_some() && !remove && !targets.is_empty() {
            self.take_back(&mailbox, folder, &targets).await;
            targets = Runs::default();
        }
        let mut code = String::new();
        if !targets.is_empty() {
            code = format!("[COPYUID {validity} {sources} {targets}]");
        }
        if remove && !code.is_empty() {
            // RFC 6851 4.3: of a MOVE it is told before the messages go; also of one that went only part of its way.
            put!(&mut self.connection.out, "* OK {code} moved\r\n");
            code.clear();
        }
        self.sync_after(&mailbox).await?;
        match failed {
            Some(failure) => Err(or_try_create(failure)),
            None => Ok(Reply { code, ..Reply::ok(if remove { "moved" } else { "copied" }) }),
        }
    }

    /// RFC 9051 6.4.7: a COPY that fails leaves the target as it was. Of one that was made in several steps, the copies
    /// are expunged again, as far as the target can be asked.
    async fn take_back(&mut self, mailbox: &Arc<dyn Mailbox>, folder: &str, copies: &Runs) {
        let Ok(target) = self.ask(mailbox.folder(folder)).await else { return };
        let copies: Vec<u32> = copies.iter().collect();
        for uids in copies.chunks(CHANGED_AT_ONCE) {
            let deleted = Flags::from(["\\Deleted".to_owned()]);
            let mark = mailbox.store(target.id, uids, FlagChange::Add, deleted, None);
            if self.ask(mark).await.is_err()
                || self.ask(mailbox.expunge(target.id, Some(uids))).await.is_err()
            {
                return;
            }
        }
    }

    pub(super) async fn expunge(&mut self, mailbox: Arc<dyn Mailbox>, set: Option<SequenceSet>) -> Done {
        self.writable()?;
        let folder = self.selected().folder.id;
        match set {
            None => {
                while !self.ask(mailbox.expunge(folder, None)).await?.is_empty() {
                    self.sync_after(&mailbox).await?;
                }
            }
            Some(set) => {
                let numbers = self.begin(&mailbox, &set, true).await?;
                let mut steps = Steps::new(numbers);
                while let Some(uids) = steps.next(self.selected(), &mut false) {
                    self.ask(mailbox.expunge(folder, Some(&uids))).await?;
                }
            }
        }
        self.sync_after(&mailbox).await?;
        Ok(Reply::ok("expunged"))
    }

    pub(super) async fn search(&mut self, mailbox: Arc<dyn Mailbox>, tag: &str, search: Search) -> Done {
        if !search.charset_known {
            return Err(Reply::no("[BADCHARSET (US-ASCII UTF-8)]", "this charset is not known").into());
        }
        let asks_mod_seq = search::asks_mod_seq(&search.key);
        if asks_mod_seq {
            self.use_condstore();
        }
        self.sync(&mailbox, search.uid).await?;
        let view = self.selected();
        let key = search::prepare(search.key, view.len(), view.last_uid());
        let (numbers, highest) = self.search_numbers(&mailbox, &key, asks_mod_seq).await?;
        let view = self.selected();
        let found =
            if search.uid { numbers.iter().map(|number| view.uid_of(number)).collect() } else { numbers };
        match search.results {
            Some(wanted) => {
                let out = &mut self.connection.out;
                search::write_extended(out, tag, search.uid, wanted, &found, highest);
            }
            None => self.write_found(&found, highest).await?,
        }
        Ok(Reply::ok("searched"))
    }

    async fn write_found(&mut self, found: &Runs, highest: Option<u64>) -> Result<(), Closed> {
        self.connection.out.put(b"* SEARCH");
        for (at, number) in found.iter().enumerate() {
            put!(&mut self.connection.out, " {number}");
            if at.is_multiple_of(NUMBERS_AT_ONCE) {
                self.connection.flush_when_full().await?;
            }
        }
        if let Some(highest) = highest {
            put!(&mut self.connection.out, " (MODSEQ {highest})");
        }
        self.connection.out.put(b"\r\n");
        Ok(())
    }

    /// The numbers of the messages that match and, when `all` of them are looked at for it, their highest MODSEQ.
    async fn search_numbers(
        &mut self,
        mailbox: &Arc<dyn Mailbox>,
        key: &SearchKey,
        all: bool,
    ) -> Result<(Runs, Option<u64>), Stop> {
        let shared = self.shared.clone();
        let view = self.selected();
        let folder = view.folder.id;
        let (mut found, mut highest) = (Runs::default(), None);
        let mut open = Runs::default();
        for number in 1..=view.len() {
            if (number as usize).is_multiple_of(NUMBERS_AT_ONCE) {
                tokio::task::yield_now().await;
            }
            let uid = view.uid_of(number);
            if view.is_gone(uid) {
                continue;
            }
            match search::matches(key, Subject { number, uid, message: None, text: None }) {
                Some(false) => {}
                Some(true) if !all => found.push(number, number),
                _ => open.push(number, number),
            }
        }
        if open.is_empty() {
            return Ok((found, None));
        }
        // Numbers found so far are told from those that follow by where they stand.
        let mut decided: UidSet = UidSet::from_ranges(found.0);
        let mut listing = Reading::new(shared.clone(), mailbox.clone(), folder, Need::Nothing, open);
        listing.refill(self.selected());
        let mut batch = listing.next().await?;
        while !batch.is_empty() {
            listing.refill(self.selected());
            let mut unread = Runs::default();
            for (at, (wanted, listed)) in batch.iter().enumerate() {
                let Some(listed) = listed.found() else { continue };
                let message = Some(&listed.message);
                let Wanted { number, uid } = *wanted;
                match search::matches(key, Subject { number, uid, message, text: None }) {
                    Some(false) => {}
                    Some(true) => {
                        decided.insert(number);
                        highest = highest.max(Some(listed.message.mod_seq));
                    }
                    None => unread.push(number, number),
                }
                if at.is_multiple_of(YIELD_AFTER) {
                    tokio::task::yield_now().await;
                }
            }
            let need = search::need(key).max(Need::Header);
            let mut reading = Reading::new(shared.clone(), mailbox.clone(), folder, need, unread);
            let (read, next) =
                tokio::join!(search_read(key, self.selected(), &mut reading, &mut decided), listing.next());
            highest = highest.max(read?);
            batch = next?;
        }
        Ok((decided.iter().collect(), highest.filter(|_| all)))
    }
}

/// Reads messages and looks which match; answers the highest MODSEQ of those.
async fn search_read(
    key: &SearchKey,
    view: &View,
    reading: &mut Reading,
    found: &mut UidSet,
) -> Result<Option<u64>, Stop> {
    let mut highest = None;
    loop {
        reading.refill(view);
        let batch = reading.next().await?;
        if batch.is_empty() {
            return Ok(highest);
        }
        for (at, (wanted, read)) in batch.into_iter().enumerate() {
            let read = match read {
                Read::Found(read) => read,
                Read::Gone => continue,
                // Whether it matches cannot be told, and an answer without it would say that it does not.
                Read::Unreadable => return Err(Failure::Unreadable.into()),
            };
            let text = Text::new(read.octets);
            let Wanted { number, uid } = wanted;
            let subject = Subject { number, uid, message: Some(&read.message), text: Some(&text) };
            if search::matches(key, subject) == Some(true) {
                found.insert(number);
                highest = highest.max(Some(read.message.mod_seq));
            }
            if at.is_multiple_of(YIELD_AFTER) {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Numbers whose messages are changed in steps.
struct Steps(VecDeque<(u32, u32)>);

impl Steps {
    fn new(numbers: Runs) -> Self {
        Self(numbers.0.into())
    }

    /// The UIDs of the next step, without those that are known to be gone.
    fn next(&mut self, view: &View, missing: &mut bool) -> Option<Vec<u32>> {
        let mut uids = Vec::new();
        while uids.len() < CHANGED_AT_ONCE
            && let Some((first, last)) = self.0.pop_front()
        {
            if first < last {
                self.0.push_front((first + 1, last));
            }
            let uid = view.uid_of(first);
            if view.is_gone(uid) {
                *missing = true;
            } else {
                uids.push(uid);
            }
        }
        (!uids.is_empty()).then_some(uids)
    }
}
