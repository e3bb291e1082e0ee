//! FETCH, STORE, COPY, MOVE, EXPUNGE and SEARCH. RFC 9051 6.4; RFC 4315 (UIDPLUS), RFC 6851 (MOVE), RFC 7162 (CONDSTORE).

use std::{collections::HashMap, collections::HashSet, sync::Arc};

use super::{
    Done, Reply, Session, Stop,
    fetching::{Batch, Reading, Wanted},
    or_try_create,
};
use crate::{
    Closed, FlagChange, Flags, Mailbox,
    command::{Fetch, FetchItem, Search, SearchKey, Store},
    fetch::{self, Force, Need, Source},
    response::put,
    search::{self, Text},
    sequence::{SequenceSet, compact},
};

/// Messages after which a long computation lets others run.
const YIELD_AFTER: usize = 64;

impl Session {
    /// What every command on messages begins with: the newest state, as far as it may be told now, and the messages
    /// that are meant.
    async fn begin(
        &mut self,
        mailbox: &Arc<dyn Mailbox>,
        set: &SequenceSet,
        uid: bool,
    ) -> Result<Vec<u32>, Stop> {
        self.sync(mailbox).await?;
        self.tell(uid);
        self.selected().resolve(set, uid).map_err(|why| Reply::bad(why).into())
    }

    fn writable(&mut self) -> Result<(), Stop> {
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
        let shared = self.shared.clone();
        let view = self.selected();
        if let Some(since) = fetch.changed_since {
            numbers.retain(|&number| view.entry(number).mod_seq > since);
        }
        let seen = fetch::sets_seen(&fetch.items) && !view.read_only;
        let wanted = numbers.iter().map(|&number| Wanted::new(number, view.entry(number)));
        let mut reading =
            Reading::new(shared, mailbox.clone(), view.folder.id, fetch::need(&fetch.items), wanted);
        let mut missing = false;
        let mut batch = reading.next().await?;
        while !batch.is_empty() {
            // The next batch is read while this one goes out.
            let (written, next) = tokio::join!(
                self.write_batch(&mailbox, &fetch.items, seen, batch, &mut missing),
                reading.next()
            );
            written?;
            batch = next?;
        }
        if missing && !fetch.uid {
            return Err(Reply::no("[EXPUNGEISSUED]", "some of the messages are gone").into());
        }
        Ok(Reply::ok("fetched"))
    }

    async fn write_batch(
        &mut self,
        mailbox: &Arc<dyn Mailbox>,
        items: &[FetchItem],
        seen: bool,
        batch: Batch,
        missing: &mut bool,
    ) -> Result<(), Closed> {
        let newly_seen = if seen { self.mark_seen(mailbox, &batch).await } else { HashSet::new() };
        for (wanted, body) in batch {
            let Some(octets) = body else {
                *missing = true;
                continue;
            };
            let flags = newly_seen.contains(&wanted.uid);
            let force = Force { flags, mod_seq: flags && self.condstore };
            let view = self.view.as_ref().expect("FETCH is only run with a folder selected");
            let mut source = Source::new(octets);
            let entry = view.entry(wanted.number);
            fetch::write(&mut self.connection.out, wanted.number, entry, items, force, Some(&mut source));
            self.connection.flush_when_full().await?;
        }
        // A long answer must not keep the thread from others: writing to a quick client never waits.
        tokio::task::yield_now().await;
        Ok(())
    }

    /// RFC 9051 6.4.5: reading a body sets `\Seen`, and the new flags are part of the answer. When it cannot be set now
    /// the message is shown all the same.
    async fn mark_seen(&mut self, mailbox: &Arc<dyn Mailbox>, batch: &Batch) -> HashSet<u32> {
        let view = self.selected();
        let folder = view.folder.id;
        let unseen = |w: &Wanted| !view.entry(w.number).flags.contains("\\Seen");
        let there = batch.iter().filter(|(_, body)| body.is_some()).map(|(wanted, _)| wanted);
        let uids: Vec<u32> = there.filter(|wanted| unseen(wanted)).map(|wanted| wanted.uid).collect();
        if uids.is_empty() {
            return HashSet::new();
        }
        let flags = Flags::from(["\\Seen".to_owned()]);
        let Ok((changed, _)) = self.ask(mailbox.store(folder, &uids, FlagChange::Add, flags, None)).await
        else {
            return HashSet::new();
        };
        let view = self.selected();
        let changed = changed.into_iter().map(|(uid, mod_seq, flags)| {
            view.stored(uid, mod_seq, flags);
            uid
        });
        changed.collect()
    }

    pub(super) async fn store(&mut self, mailbox: Arc<dyn Mailbox>, store: Store) -> Done {
        self.writable()?;
        if store.unchanged_since.is_some() {
            self.use_condstore();
        }
        let numbers = self.begin(&mailbox, &store.set, store.uid).await?;
        let view = self.selected();
        let folder = view.folder.id;
        let there: Vec<u32> = numbers.iter().copied().filter(|&n| !view.entry(n).gone).collect();
        let missing = there.len() < numbers.len();
        let uids: Vec<u32> = there.iter().map(|&number| view.entry(number).uid).collect();
        if uids.is_empty() {
            return Ok(Reply::ok("nothing to change"));
        }
        let change = mailbox.store(folder, &uids, store.change, store.flags, store.unchanged_since);
        let (changed, modified) = self.ask(change).await?;
        let changed: HashMap<u32, (u64, Flags)> =
            changed.into_iter().map(|(uid, m, flags)| (uid, (m, flags))).collect();
        let left: HashSet<u32> = modified.iter().copied().collect();
        let condstore = self.condstore;
        let view = self.view.as_mut().expect("STORE is only run with a folder selected");
        for (&uid, (mod_seq, flags)) in &changed {
            view.stored(uid, *mod_seq, flags.clone());
        }
        view.write_new_keywords(&mut self.connection.out);
        let items: &[FetchItem] = if store.uid { &[FetchItem::Uid] } else { &[] };
        let force = Force { flags: !store.silent, mod_seq: condstore };
        if !store.silent || condstore {
            for (&number, uid) in there.iter().zip(&uids).filter(|(_, uid)| !left.contains(uid)) {
                debug_assert_eq!(view.entry(number).uid, *uid);
                fetch::write(&mut self.connection.out, number, view.entry(number), items, force, None);
                self.connection.flush_when_full().await?;
            }
        }
        if !modified.is_empty() {
            // RFC 7162 3.1.3: numbers or UIDs, as the command had them.
            let view = self.selected();
            let number = |uid: &u32| view.by_uid(*uid).map(|(number, _)| number);
            let mut names: Vec<u32> =
                if store.uid { modified } else { modified.iter().filter_map(number).collect() };
            names.sort_unstable();
            return Ok(Reply {
                code: format!("[MODIFIED {}]", compact(&names)),
                ..Reply::ok("some were left alone")
            });
        }
        if missing && !store.uid {
            return Err(Reply::no("[EXPUNGEISSUED]", "some of the messages are gone").into());
        }
        Ok(Reply::ok("stored"))
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
        let view = self.selected();
        let from = view.folder.id;
        let uids: Vec<u32> =
            numbers.iter().map(|&n| view.entry(n)).filter(|e| !e.gone).map(|e| e.uid).collect();
        if uids.is_empty() {
            return Ok(Reply::ok("there is nothing to copy"));
        }
        let (validity, pairs) =
            self.ask(mailbox.copy(from, &uids, folder, remove)).await.map_err(or_try_create)?;
        let (sources, targets): (Vec<u32>, Vec<u32>) = pairs.into_iter().unzip();
        let mut code = String::new();
        if !sources.is_empty() {
            code = format!("[COPYUID {validity} {} {}]", compact(&sources), compact(&targets));
        }
        if remove && !code.is_empty() {
            // RFC 6851 4.3: of a MOVE it is told before the messages go.
            put!(&mut self.connection.out, "* OK {code} moved\r\n");
            code.clear();
        }
        self.sync_after(&mailbox).await?;
        Ok(Reply { code, ..Reply::ok(if remove { "moved" } else { "copied" }) })
    }

    pub(super) async fn expunge(&mut self, mailbox: Arc<dyn Mailbox>, set: Option<SequenceSet>) -> Done {
        self.writable()?;
        let folder = self.selected().folder.id;
        match set {
            None => self.ask(mailbox.expunge(folder, None)).await?,
            Some(set) => {
                let numbers = self.begin(&mailbox, &set, true).await?;
                let view = self.selected();
                let uids: Vec<u32> = numbers.iter().map(|&number| view.entry(number).uid).collect();
                self.ask(mailbox.expunge(folder, Some(&uids))).await?
            }
        };
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
        self.sync(&mailbox).await?;
        self.tell(search.uid);
        let view = self.selected();
        let last_number = u32::try_from(view.len()).expect("a folder has fewer than 2^32 messages");
        let last_uid = view.known().last().map_or(0, |(_, entry)| entry.uid);
        let key = search::prepare(search.key, last_number, last_uid);
        let mut numbers = self.search_numbers(&mailbox, &key).await?;
        numbers.sort_unstable();
        let view = self.selected();
        let mod_seq = asks_mod_seq.then(|| numbers.iter().map(|&n| view.entry(n).mod_seq).max()).flatten();
        let found = if search.uid { numbers.iter().map(|&n| view.entry(n).uid).collect() } else { numbers };
        search::write(&mut self.connection.out, tag, search.uid, search.results, &found, mod_seq);
        Ok(Reply::ok("searched"))
    }

    async fn search_numbers(
        &mut self,
        mailbox: &Arc<dyn Mailbox>,
        key: &SearchKey,
    ) -> Result<Vec<u32>, Stop> {
        let shared = self.shared.clone();
        let view = self.selected();
        let mut found = Vec::new();
        let mut open = Vec::new();
        for (number, entry) in view.known().filter(|(_, entry)| !entry.gone) {
            match search::matches(key, number, entry, None) {
                Some(true) => found.push(number),
                Some(false) => {}
                None => open.push(Wanted::new(number, entry)),
            }
        }
        let need = search::need(key).max(Need::Header);
        let mut reading = Reading::new(shared, mailbox.clone(), view.folder.id, need, open);
        let mut batch = reading.next().await?;
        while !batch.is_empty() {
            let view = self.selected();
            let matching = async {
                for (at, (wanted, body)) in batch.into_iter().enumerate() {
                    let entry = view.entry(wanted.number);
                    let hit = |octets| search::matches(key, wanted.number, entry, Some(&Text::new(octets)));
                    if body.and_then(hit) == Some(true) {
                        found.push(wanted.number);
                    }
                    if at % YIELD_AFTER == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            };
            let ((), next) = tokio::join!(matching, reading.next());
            batch = next?;
        }
        Ok(found)
    }
}
