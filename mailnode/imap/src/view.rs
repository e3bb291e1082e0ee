//! A session's view of its selected folder: which message has which number, and what the client has not been told yet.
//! RFC 9051 2.3.1.2 and 7.5.1: numbers change only when an EXPUNGE is sent, and that may not happen at all times.
//!
//! It holds UIDs only, so that its size hardly depends on the folder's; flags and the rest are asked for when a command
//! needs them.

use std::collections::BTreeSet;

use crate::{
    Changes, Folder, Message, Selection, Since,
    command::FetchItem,
    fetch::{self, Force},
    parse::SYSTEM_FLAGS,
    response::{Out, put},
    sequence::{Runs, SequenceSet},
    uid_set::UidSet,
};

/// EXPUNGEs that are written in one go.
const EXPUNGES_AT_ONCE: u32 = 1000;

/// The selected folder.
#[derive(Debug)]
pub(crate) struct View {
    /// Its counters are those of the last page of changes; its MODSEQ is that up to which all changes are known.
    pub(crate) folder: Folder,
    pub(crate) read_only: bool,
    /// The number of a message is its place in here, from 1.
    uids: UidSet,
    /// How many the client knows of.
    announced: u32,
    /// Expunged, but the client has not been told.
    gone: UidSet,
    /// Messages whose new flags the client has not been told.
    news: Vec<Message>,
    /// Messages from this UID on are new to the client: it asks for their flags itself.
    new_from: u32,
    /// MODSEQs that changes of this session's own gave: the client was told in the answers to its commands.
    own: BTreeSet<u64>,
    keywords: BTreeSet<String>,
    keywords_changed: bool,
    restored: bool,
}

impl View {
    pub(crate) fn new(selection: Selection, read_only: bool) -> Self {
        let Selection { folder, uids, keywords } = selection;
        Self {
            read_only,
            announced: uids.len(),
            uids,
            gone: UidSet::default(),
            news: Vec::new(),
            new_from: folder.uid_next,
            own: BTreeSet::new(),
            keywords,
            keywords_changed: false,
            restored: false,
            folder,
        }
    }

    /// What the first page of changes is asked with.
    pub(crate) fn since(&self) -> Since {
        let mod_seq = self.folder.highest_mod_seq;
        Since { mod_seq, after: (mod_seq, u32::MAX), uid_next: self.folder.uid_next }
    }

    /// Takes in a page of what changed, and answers what the next one is asked with. What the client has to be told waits
    /// for [`View::flush`].
    pub(crate) fn merge(&mut self, changes: Changes) -> Option<Since> {
        let Changes { folder, uids, vanished, changed, more } = changes;
        self.restored |= folder.uid_validity != self.folder.uid_validity;
        match vanished {
            Some(gone) => {
                for uid in gone.into_iter().filter(|uid| self.uids.contains(*uid)) {
                    self.gone.insert(uid);
                }
            }
            None => {
                let mut lost = self.uids.clone();
                lost.remove_all(&UidSet::from_ranges(uids.iter().copied()));
                for uid in lost.iter() {
                    self.gone.insert(uid);
                }
            }
        }
        let known_next = self.folder.uid_next;
        for (first, last) in uids.into_iter().filter(|(_, last)| *last >= known_next) {
            self.uids.push(first.max(known_next), last);
        }
        for message in changed {
            self.note_keywords(&message);
            self.restored |= message.uid < known_next && !self.uids.contains(message.uid);
            let old = message.uid < self.new_from && self.uids.contains(message.uid);
            if old && !self.gone.contains(message.uid) && !self.own.contains(&message.mod_seq) {
                self.news.push(message);
            }
        }
        let (known, now) = (self.folder.highest_mod_seq, folder.highest_mod_seq);
        self.folder = Folder { highest_mod_seq: known, ..folder };
        if let Some(after) = more {
            return Some(Since { mod_seq: now, after, uid_next: self.folder.uid_next });
        }
        self.folder.highest_mod_seq = now;
        self.new_from = self.folder.uid_next;
        self.own.clear();
        None
    }

    /// Whether a restore has put messages below those that were there, or given the folder another UIDVALIDITY. A session
    /// cannot be told of either (RFC 9051 2.3.1.1): it has to select the folder again.
    pub(crate) fn was_restored(&self) -> bool {
        self.restored
    }

    /// Notes the MODSEQ of a change that this session made.
    pub(crate) fn changed_by_us(&mut self, mod_seq: Option<u64>) {
        self.own.extend(mod_seq);
    }

    pub(crate) fn note_keywords(&mut self, message: &Message) {
        for keyword in message.flags.iter().filter(|flag| !flag.starts_with('\\')) {
            if !self.keywords.contains(keyword) {
                self.keywords_changed |= self.keywords.insert(keyword.clone());
            }
        }
    }

    /// Writes what the client has not been told; answers whether there is more. `expunges`: whether numbers may change
    /// now (RFC 9051 7.5.1: not while FETCH, STORE or SEARCH by number runs).
    pub(crate) fn flush(&mut self, out: &mut Out, expunges: bool, condstore: bool) -> bool {
        if expunges && !self.gone.is_empty() {
            self.flush_expunges(out);
            if !self.gone.is_empty() {
                return true;
            }
        }
        if self.uids.len() > self.announced {
            put!(out, "* {} EXISTS\r\n", self.uids.len());
            self.announced = self.uids.len();
        }
        self.write_new_keywords(out);
        let items = [FetchItem::Uid, FetchItem::Flags];
        let force = Force { flags: true, mod_seq: condstore };
        for message in std::mem::take(&mut self.news) {
            if let Some(number) = self.number_of(message.uid) {
                fetch::write(out, number, &message, &items, force, None);
            }
        }
        false
    }

    fn flush_expunges(&mut self, out: &mut Out) {
        let lowest = self.gone.take_lowest(EXPUNGES_AT_ONCE);
        let mut told = 0;
        for number in lowest.iter().filter_map(|uid| self.uids.number_of(uid)) {
            // What came and went unannounced is nobody's business.
            if number <= self.announced {
                put!(out, "* {} EXPUNGE\r\n", number - told);
                told += 1;
            }
        }
        self.announced -= told;
        self.uids.remove_all(&lowest);
    }

    /// Writes `* FLAGS` when there are keywords that the client has not been told.
    pub(crate) fn write_new_keywords(&mut self, out: &mut Out) {
        if self.keywords_changed {
            self.write_flags(out);
        }
    }

    /// Writes `* FLAGS`.
    pub(crate) fn write_flags(&mut self, out: &mut Out) {
        self.keywords_changed = false;
        out.put(b"* FLAGS (");
        out.text(&SYSTEM_FLAGS.join(" "));
        for keyword in &self.keywords {
            put!(out, " {keyword}");
        }
        out.put(b")\r\n");
    }

    /// Keywords in use.
    pub(crate) fn keywords(&self) -> &BTreeSet<String> {
        &self.keywords
    }

    /// How many messages the client may name by number.
    pub(crate) fn len(&self) -> u32 {
        self.announced
    }

    /// The UID of a number that the client knows.
    pub(crate) fn uid_of(&self, number: u32) -> u32 {
        self.uids.uid_of(number).expect("numbers are asked for within what the client was told")
    }

    /// The number of a message that the client knows.
    pub(crate) fn number_of(&self, uid: u32) -> Option<u32> {
        self.uids.number_of(uid).filter(|number| *number <= self.announced)
    }

    /// Whether a message is known to be expunged.
    pub(crate) fn is_gone(&self, uid: u32) -> bool {
        self.gone.contains(uid)
    }

    /// The highest UID that the client knows; 0 for none.
    pub(crate) fn last_uid(&self) -> u32 {
        self.uids.uid_of(self.announced).unwrap_or(0)
    }

    /// Numbers that a set means. Err: it names a number that is not there, which is an error in the client (RFC 9051 9,
    /// seq-number); UIDs that are not there are passed over.
    pub(crate) fn resolve(&self, set: &SequenceSet, uid: bool) -> Result<Runs, &'static str> {
        if !uid {
            let ranges = set.ranges(self.announced);
            if ranges.iter().any(|&(low, high)| low == 0 || high > self.announced) {
                return Err("there is no such message number");
            }
            return Ok(Runs(ranges));
        }
        let mut runs = Runs::default();
        for (low, high) in set.ranges(self.last_uid()) {
            let first = self.uids.below(low) + 1;
            let last = self.uids.below(high) + u32::from(self.uids.contains(high));
            if first <= last.min(self.announced) {
                runs.push(first, last.min(self.announced));
            }
        }
        Ok(runs)
    }

    /// Writes the count, for SELECT.
    pub(crate) fn write_exists(&mut self, out: &mut Out) {
        put!(out, "* {} EXISTS\r\n", self.announced);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Flags;

    fn folder(uid_next: u32, mod_seq: u64) -> Folder {
        Folder {
            id: 1,
            name: "INBOX".to_owned(),
            special_use: None,
            read_only: false,
            subscribed: true,
            uid_validity: 7,
            uid_next,
            highest_mod_seq: mod_seq,
            messages: 0,
            unseen: 0,
            bytes: 0,
        }
    }

    /// A session that knows UID 100 alone.
    fn view() -> View {
        let uids = UidSet::from_ranges([(100, 100)]);
        View::new(Selection { folder: folder(101, 10), uids, keywords: BTreeSet::new() }, false)
    }

    fn changes(folder: Folder, uids: &[(u32, u32)], changed: &[u32]) -> Changes {
        let mod_seq = folder.highest_mod_seq;
        let message =
            |uid: &u32| Message { uid: *uid, mod_seq, flags: Flags::default(), internal_date: 0, size: 1 };
        let changed = changed.iter().map(message).collect();
        Changes { folder, uids: uids.to_vec(), vanished: Some(Vec::new()), changed, more: None }
    }

    #[test]
    fn new_and_changed_messages_are_no_restore() {
        let mut view = view();
        let next = changes(folder(102, 11), &[(101, 101)], &[100, 101]);
        assert_eq!((view.merge(next), view.was_restored()), (None, false));
        let next = changes(folder(102, 12), &[], &[101]);
        assert_eq!((view.merge(next), view.was_restored()), (None, false));
    }

    #[test]
    fn a_message_below_those_that_were_there_is_a_restore() {
        let mut view = view();
        view.merge(changes(folder(101, 11), &[], &[5]));
        assert!(view.was_restored());
    }

    #[test]
    fn another_uidvalidity_is_a_restore() {
        let mut view = view();
        view.merge(changes(Folder { uid_validity: 6, ..folder(101, 11) }, &[], &[]));
        assert!(view.was_restored());
    }
}
