//! A session's view of its selected folder: which message has which number, and what the client has not been told yet.
//! RFC 9051 2.3.1.2 and 7.5.1: numbers change only when an EXPUNGE is sent, and that may not happen at all times.

use std::{collections::BTreeSet, collections::HashSet, sync::Arc};

use crate::{
    Changes, Flags, Folder, Message, Millis,
    command::FetchItem,
    fetch::{self, Force},
    parse::SYSTEM_FLAGS,
    response::{Out, put},
    sequence::{SequenceSet, contains},
};

/// Different sets of flags that are shared between messages before unused ones are looked for.
const INTERNED: usize = 1024;

/// A message of the view. Kept small: a session holds one for each message of the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) uid: u32,
    pub(crate) size: u32,
    pub(crate) mod_seq: u64,
    pub(crate) internal_date: Millis,
    pub(crate) flags: Arc<Flags>,
    /// Expunged, but the client has not been told.
    pub(crate) gone: bool,
}

/// The selected folder.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) folder: Folder,
    pub(crate) read_only: bool,
    /// Ascending by UID; the number of a message is its place, from 1.
    entries: Vec<Entry>,
    /// How many the client knows of.
    announced: usize,
    /// UIDs whose new flags the client has not been told.
    news: BTreeSet<u32>,
    gone: usize,
    keywords: BTreeSet<String>,
    keywords_changed: bool,
    interned: HashSet<Arc<Flags>>,
}

impl View {
    pub(crate) fn new(folder: Folder, messages: Vec<Message>, read_only: bool) -> Self {
        let mut view = Self {
            folder,
            read_only,
            entries: Vec::with_capacity(messages.len()),
            announced: messages.len(),
            news: BTreeSet::new(),
            gone: 0,
            keywords: BTreeSet::new(),
            keywords_changed: false,
            interned: HashSet::new(),
        };
        for message in messages {
            view.push(message);
        }
        view
    }

    fn push(&mut self, message: Message) {
        assert!(
            self.entries.last().is_none_or(|last| last.uid < message.uid),
            "messages of a folder ascend by UID"
        );
        let flags = self.intern(message.flags);
        let Message { uid, mod_seq, internal_date, size, .. } = message;
        self.entries.push(Entry { uid, size, mod_seq, internal_date, flags, gone: false });
    }

    /// Most messages share a few sets of flags.
    fn intern(&mut self, flags: Flags) -> Arc<Flags> {
        if let Some(known) = self.interned.get(&flags) {
            return known.clone();
        }
        for keyword in flags.iter().filter(|flag| !flag.starts_with('\\')) {
            self.keywords_changed |= self.keywords.insert(keyword.clone());
        }
        if self.interned.len() >= INTERNED {
            self.interned.retain(|known| Arc::strong_count(known) > 1);
        }
        let flags = Arc::new(flags);
        if self.interned.len() < INTERNED {
            self.interned.insert(flags.clone());
        }
        flags
    }

    /// Takes in what changed. What the client has to be told waits for [`View::flush`].
    pub(crate) fn merge(&mut self, changes: Changes) {
        if changes.folder.highest_mod_seq < self.folder.highest_mod_seq {
            // An answer that was overtaken by a later one.
            return;
        }
        self.folder = changes.folder;
        match changes.vanished {
            Some(uids) => {
                for uid in uids {
                    self.expunged(uid);
                }
            }
            None => {
                let present: HashSet<u32> = changes.changed.iter().map(|message| message.uid).collect();
                let lost: Vec<u32> =
                    self.entries.iter().map(|entry| entry.uid).filter(|uid| !present.contains(uid)).collect();
                for uid in lost {
                    self.expunged(uid);
                }
            }
        }
        for message in changes.changed {
            match self.entries.binary_search_by_key(&message.uid, |entry| entry.uid) {
                Ok(at) => self.changed(at, message.mod_seq, message.flags, true),
                Err(at) if at == self.entries.len() => self.push(message),
                // A message below the last one that was never announced can only be one whose expunge was sent.
                Err(_) => {}
            }
        }
    }

    fn expunged(&mut self, uid: u32) {
        if let Ok(at) = self.entries.binary_search_by_key(&uid, |entry| entry.uid)
            && !std::mem::replace(&mut self.entries[at].gone, true)
        {
            self.gone += 1;
            self.news.remove(&uid);
        }
    }

    fn changed(&mut self, at: usize, mod_seq: u64, flags: Flags, tell: bool) {
        if self.entries[at].mod_seq >= mod_seq {
            return;
        }
        let flags = self.intern(flags);
        let entry = &mut self.entries[at];
        entry.mod_seq = mod_seq;
        entry.flags = flags;
        if tell && !entry.gone {
            self.news.insert(entry.uid);
        }
    }

    /// Takes in the outcome of a STORE of this session, of which the client is told in its answer.
    pub(crate) fn stored(&mut self, uid: u32, mod_seq: u64, flags: Flags) {
        if let Ok(at) = self.entries.binary_search_by_key(&uid, |entry| entry.uid) {
            self.changed(at, mod_seq, flags, false);
            self.news.remove(&uid);
        }
    }

    /// Writes what the client has not been told. `expunges`: whether numbers may change now (RFC 9051 7.5.1: not while
    /// FETCH, STORE or SEARCH by number runs).
    pub(crate) fn flush(&mut self, out: &mut Out, expunges: bool, condstore: bool) {
        if expunges && self.gone > 0 {
            self.flush_expunges(out);
        }
        if self.entries.len() > self.announced {
            put!(out, "* {} EXISTS\r\n", self.entries.len());
            self.announced = self.entries.len();
        }
        self.write_new_keywords(out);
        let items = [FetchItem::Uid, FetchItem::Flags];
        for uid in std::mem::take(&mut self.news) {
            if let Ok(at) = self.entries.binary_search_by_key(&uid, |entry| entry.uid) {
                let force = Force { flags: true, mod_seq: condstore };
                fetch::write(out, number(at), &self.entries[at], &items, force, None);
            }
        }
    }

    fn flush_expunges(&mut self, out: &mut Out) {
        let mut before = 0;
        for (at, entry) in self.entries.iter().enumerate() {
            if !entry.gone {
                continue;
            }
            // What came and went unannounced is nobody's business.
            if at < self.announced {
                put!(out, "* {} EXPUNGE\r\n", number(at - before));
                before += 1;
            }
        }
        self.announced -= before;
        self.entries.retain(|entry| !entry.gone);
        self.gone = 0;
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
    pub(crate) fn len(&self) -> usize {
        self.announced
    }

    /// Messages that the client knows of, with their numbers.
    pub(crate) fn known(&self) -> impl Iterator<Item = (u32, &Entry)> {
        self.entries[..self.announced].iter().enumerate().map(|(at, entry)| (number(at), entry))
    }

    /// A message by UID, with its number.
    pub(crate) fn by_uid(&self, uid: u32) -> Option<(u32, &Entry)> {
        let at = self.entries.binary_search_by_key(&uid, |entry| entry.uid).ok()?;
        (at < self.announced).then(|| (number(at), &self.entries[at]))
    }

    /// Numbers that a set means. Err: it names a number that is not there, which is an error in the client (RFC 9051 9,
    /// seq-number); UIDs that are not there are passed over.
    pub(crate) fn resolve(&self, set: &SequenceSet, uid: bool) -> Result<Vec<u32>, &'static str> {
        let last = if uid {
            self.known().last().map_or(0, |(_, entry)| entry.uid)
        } else {
            number(self.announced) - 1
        };
        let ranges = set.ranges(last);
        if uid {
            return Ok(self
                .known()
                .filter(|(_, e)| contains(&ranges, e.uid))
                .map(|(number, _)| number)
                .collect());
        }
        if ranges.iter().any(|&(low, high)| low == 0 || high > last) {
            return Err("there is no such message number");
        }
        Ok(ranges.into_iter().flat_map(|(low, high)| low..=high).collect())
    }

    /// A message by number.
    pub(crate) fn entry(&self, number: u32) -> &Entry {
        &self.entries[number as usize - 1]
    }

    /// The first message without `\Seen`.
    pub(crate) fn first_unseen(&self) -> Option<u32> {
        self.known().find(|(_, entry)| !entry.flags.contains("\\Seen")).map(|(number, _)| number)
    }

    /// Writes the count, for SELECT.
    pub(crate) fn write_exists(&mut self, out: &mut Out) {
        put!(out, "* {} EXISTS\r\n", self.announced);
    }
}

fn number(at: usize) -> u32 {
    u32::try_from(at + 1).expect("a folder has fewer than 2^32 messages: each has its own UID")
}
