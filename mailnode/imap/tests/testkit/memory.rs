use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use quorumail_imap::{
    Backend, Changes, Digest, Failure, FlagChange, Flags, Folder, Found, LoginFailure, Mailbox, Message,
    Millis, Octets, SHARED_NAMESPACE, Selection, Since, SpecialUse, Stored, UidSet,
};
use tokio::sync::watch;

/// Octets of bodies in one answer: small, so that asking again is exercised.
const MAX_BODIES: usize = 300_000;
/// Changed messages in one page: small, so that several are exercised.
const PAGE: usize = 3;
/// Messages that one EXPUNGE takes out.
const EXPUNGED_AT_ONCE: usize = 2;

struct Kept {
    message: Message,
    body: Bytes,
}

struct KeptFolder {
    id: u64,
    special_use: Option<SpecialUse>,
    subscribed: bool,
    uid_validity: u32,
    uid_next: u32,
    mod_seq: u64,
    messages: BTreeMap<u32, Kept>,
    vanished: Vec<(u64, u32)>,
}

#[derive(Default)]
struct State {
    folders: BTreeMap<String, KeptFolder>,
    next_id: u64,
}

/// One mailbox, in memory.
pub struct Memory(Arc<Store>);

impl std::ops::Deref for Memory {
    type Target = Store;
    fn deref(&self) -> &Store {
        &self.0
    }
}

pub struct Store {
    state: Mutex<State>,
    version: watch::Sender<u64>,
    /// The most octets of bodies that one answer held.
    pub largest_answer: AtomicUsize,
    pub body_calls: AtomicUsize,
    /// How often messages were asked for, with octets or without.
    pub list_calls: AtomicUsize,
    /// Copies that are made before further ones are refused.
    pub copies_left: AtomicUsize,
    /// UIDs of which the octets cannot be read, in any folder.
    pub unreadable: Mutex<BTreeSet<u32>>,
    /// Forgets what was expunged, so that changes() has to answer all there is.
    pub forget: std::sync::atomic::AtomicBool,
}

impl Memory {
    pub fn new() -> Self {
        let memory = Store {
            state: Mutex::default(),
            version: watch::Sender::new(0),
            largest_answer: AtomicUsize::new(0),
            body_calls: AtomicUsize::new(0),
            list_calls: AtomicUsize::new(0),
            copies_left: AtomicUsize::new(usize::MAX),
            unreadable: Mutex::default(),
            forget: false.into(),
        };
        let special = [
            ("INBOX", None),
            ("Archive", Some(SpecialUse::Archive)),
            ("Drafts", Some(SpecialUse::Drafts)),
            ("Junk", Some(SpecialUse::Junk)),
            ("Sent", Some(SpecialUse::Sent)),
            ("Trash", Some(SpecialUse::Trash)),
        ];
        for (name, special_use) in special {
            memory.make(name, special_use).unwrap();
        }
        Self(Arc::new(memory))
    }
}

impl Store {
    fn make(&self, name: &str, special_use: Option<SpecialUse>) -> Result<(), Failure> {
        let mut state = self.state.lock().unwrap();
        if state.folders.contains_key(name) {
            return Err(Failure::AlreadyExists);
        }
        let mut ends: Vec<usize> = name.match_indices('/').map(|(at, _)| at).collect();
        ends.push(name.len());
        for end in ends {
            if state.folders.contains_key(&name[..end]) {
                continue;
            }
            state.next_id += 1;
            let id = state.next_id;
            let kept = KeptFolder {
                id,
                special_use: special_use.filter(|_| end == name.len()),
                subscribed: true,
                uid_validity: 1000 + id as u32,
                uid_next: 1,
                mod_seq: 1,
                messages: BTreeMap::new(),
                vanished: Vec::new(),
            };
            state.folders.insert(name[..end].to_owned(), kept);
        }
        drop(state);
        self.bump();
        Ok(())
    }

    fn bump(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Mail arrives, as if through another node.
    pub fn deliver(&self, folder: &str, body: impl Into<Bytes>) -> u32 {
        let mut state = self.state.lock().unwrap();
        let uid = state.folders.get_mut(folder).unwrap().add(Flags::new(), 0, body.into());
        drop(state);
        self.bump();
        uid
    }

    pub fn remove(&self, folder: &str, uids: &[u32]) {
        let mut state = self.state.lock().unwrap();
        let kept = state.folders.get_mut(folder).unwrap();
        kept.mod_seq += 1;
        for uid in uids {
            kept.messages.remove(uid).unwrap();
            kept.vanished.push((kept.mod_seq, *uid));
        }
        drop(state);
        self.bump();
    }

    pub fn flags(&self, folder: &str, uid: u32) -> Flags {
        self.state.lock().unwrap().folders[folder].messages[&uid].message.flags.clone()
    }

    pub fn set_flags(&self, folder: &str, uid: u32, flags: &[&str]) {
        let mut state = self.state.lock().unwrap();
        let kept = state.folders.get_mut(folder).unwrap();
        kept.mod_seq += 1;
        let mod_seq = kept.mod_seq;
        let message = &mut kept.messages.get_mut(&uid).unwrap().message;
        message.mod_seq = mod_seq;
        message.flags = flags.iter().map(|f| (*f).to_owned()).collect();
        drop(state);
        self.bump();
    }

    pub fn bodies_of(&self, folder: &str) -> Vec<Bytes> {
        self.state.lock().unwrap().folders[folder]
            .messages
            .values()
            .map(|stored| stored.body.clone())
            .collect()
    }

    fn by_id<T>(&self, id: u64, with: impl FnOnce(&str, &mut KeptFolder) -> T) -> Result<T, Failure> {
        let mut state = self.state.lock().unwrap();
        let found = state.folders.iter_mut().find(|(_, kept)| kept.id == id).ok_or(Failure::NonExistent)?;
        Ok(with(found.0, found.1))
    }
}

impl KeptFolder {
    fn add(&mut self, flags: Flags, internal_date: Millis, body: Bytes) -> u32 {
        self.mod_seq += 1;
        let uid = self.uid_next;
        self.uid_next += 1;
        let message = Message { uid, mod_seq: self.mod_seq, flags, internal_date, size: body.len() as u32 };
        self.messages.insert(uid, Kept { message, body });
        uid
    }

    fn folder(&self, name: &str) -> Folder {
        let all = || self.messages.values();
        Folder {
            id: self.id,
            name: name.to_owned(),
            special_use: self.special_use,
            subscribed: self.subscribed,
            read_only: name.starts_with(SHARED_NAMESPACE),
            uid_validity: self.uid_validity,
            uid_next: self.uid_next,
            highest_mod_seq: self.mod_seq,
            messages: self.messages.len() as u32,
            unseen: all().filter(|s| !s.message.flags.contains("\\Seen")).count() as u32,
            bytes: all().map(|s| u64::from(s.message.size)).sum(),
        }
    }
}

#[async_trait]
impl Backend for Memory {
    async fn login(&self, user: &str, password: &str, _: IpAddr) -> Result<Arc<dyn Mailbox>, LoginFailure> {
        match (user, password) {
            (super::USER, super::PASSWORD) => Ok(self.0.clone()),
            ("throttled", _) => Err(LoginFailure::Throttled),
            _ => Err(LoginFailure::Denied),
        }
    }
}

#[async_trait]
impl Mailbox for Store {
    async fn folders(&self) -> Result<Vec<Folder>, Failure> {
        Ok(self.state.lock().unwrap().folders.iter().map(|(name, kept)| kept.folder(name)).collect())
    }

    async fn folder(&self, name: &str) -> Result<Folder, Failure> {
        let state = self.state.lock().unwrap();
        state.folders.get(name).map(|kept| kept.folder(name)).ok_or(Failure::NonExistent)
    }

    async fn select(&self, name: &str) -> Result<Selection, Failure> {
        let folder = self.folder(name).await?;
        self.by_id(folder.id, |_, kept| Selection {
            uids: UidSet::from_ranges(kept.messages.keys().map(|uid| (*uid, *uid))),
            keywords: kept
                .messages
                .values()
                .flat_map(|s| s.message.flags.iter().filter(|flag| !flag.starts_with('\\')).cloned())
                .collect(),
            folder,
        })
    }

    async fn changes(&self, folder: u64, since: Since) -> Result<Changes, Failure> {
        let forget = self.forget.load(Ordering::SeqCst);
        self.by_id(folder, |name, kept| {
            let all = kept.messages.values().map(|s| s.message.clone());
            let mut changed: Vec<Message> = all.filter(|m| (m.mod_seq, m.uid) > since.after).collect();
            changed.sort_by_key(|m| (m.mod_seq, m.uid));
            let more = (changed.len() > PAGE).then(|| (changed[PAGE - 1].mod_seq, changed[PAGE - 1].uid));
            changed.truncate(PAGE);
            let from = if forget { 1 } else { since.uid_next };
            let vanished = kept.vanished.iter().filter(|(at, _)| *at > since.mod_seq).map(|(_, uid)| *uid);
            Changes {
                folder: kept.folder(name),
                uids: kept.messages.range(from..).map(|(uid, _)| (*uid, *uid)).collect(),
                vanished: (!forget).then(|| vanished.collect()),
                changed,
                more,
            }
        })
    }

    async fn messages(
        &self,
        folder: u64,
        uids: &[u32],
        octets: Octets,
        digests: &[Digest],
    ) -> Result<Vec<Option<Found>>, Failure> {
        self.list_calls.fetch_add(1, Ordering::SeqCst);
        if octets != Octets::Nothing {
            self.body_calls.fetch_add(1, Ordering::SeqCst);
        }
        let reads = octets != Octets::Nothing || !digests.is_empty();
        if reads && uids.iter().any(|uid| self.unreadable.lock().unwrap().contains(uid)) {
            return Err(Failure::Unreadable);
        }
        self.by_id(folder, |_, kept| {
            let mut sum = 0;
            let mut out = Vec::new();
            for uid in uids {
                let found = kept.messages.get(uid).map(|s| {
                    let octets = match octets {
                        Octets::Nothing => Bytes::new(),
                        Octets::Prefix(most) => s.body.slice(..s.body.len().min(most as usize)),
                        Octets::Whole => s.body.clone(),
                    };
                    let digest = |digest: &Digest| digest.compute(&s.body, true).unwrap().into();
                    let digests = digests.iter().map(digest).collect();
                    Found { message: s.message.clone(), octets, digests }
                });
                sum += found.as_ref().map_or(0, |found| found.octets.len());
                if !out.is_empty() && sum > MAX_BODIES {
                    break;
                }
                self.largest_answer.fetch_max(sum, Ordering::SeqCst);
                out.push(found);
            }
            out
        })
    }

    async fn append(
        &self,
        name: &str,
        flags: Flags,
        date: Option<Millis>,
        body: Bytes,
    ) -> Result<(u32, u32), Failure> {
        let mut state = self.state.lock().unwrap();
        let kept = state.folders.get_mut(name).ok_or(Failure::NonExistent)?;
        let uid = kept.add(flags, date.unwrap_or(0), body);
        let validity = kept.uid_validity;
        drop(state);
        self.bump();
        Ok((validity, uid))
    }

    async fn create(&self, folder: &str, special_use: Option<SpecialUse>) -> Result<(), Failure> {
        self.make(folder, special_use)
    }

    async fn delete(&self, folder: &str) -> Result<(), Failure> {
        self.state.lock().unwrap().folders.remove(folder).ok_or(Failure::NonExistent)?;
        self.bump();
        Ok(())
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        let mut state = self.state.lock().unwrap();
        if state.folders.contains_key(to) {
            return Err(Failure::AlreadyExists);
        }
        let below = format!("{from}/");
        let names: Vec<String> =
            state.folders.keys().filter(|name| *name == from || name.starts_with(&below)).cloned().collect();
        if names.is_empty() {
            return Err(Failure::NonExistent);
        }
        for name in names {
            let kept = state.folders.remove(&name).unwrap();
            state.folders.insert(format!("{to}{}", &name[from.len()..]), kept);
        }
        drop(state);
        self.bump();
        Ok(())
    }

    async fn subscribe(&self, folder: &str, subscribed: bool) -> Result<(), Failure> {
        let mut state = self.state.lock().unwrap();
        state.folders.get_mut(folder).ok_or(Failure::NonExistent)?.subscribed = subscribed;
        Ok(())
    }

    async fn store(
        &self,
        folder: u64,
        uids: &[u32],
        change: FlagChange,
        flags: Flags,
        unchanged_since: Option<u64>,
    ) -> Result<Stored, Failure> {
        let outcome = self.by_id(folder, |_, kept| {
            let mut stored = Stored::default();
            let next = kept.mod_seq + 1;
            for uid in uids {
                let Some(Kept { message, .. }) = kept.messages.get_mut(uid) else { continue };
                if unchanged_since.is_some_and(|since| message.mod_seq > since) {
                    stored.modified.push(*uid);
                    continue;
                }
                let new = match change {
                    FlagChange::Replace => flags.clone(),
                    FlagChange::Add => message.flags.union(&flags).cloned().collect(),
                    FlagChange::Remove => message.flags.difference(&flags).cloned().collect(),
                };
                if new != message.flags {
                    message.flags = new;
                    message.mod_seq = next;
                    kept.mod_seq = next;
                    stored.mod_seq = Some(next);
                }
                stored.messages.push((*uid, message.mod_seq, message.flags.clone()));
            }
            stored
        });
        self.bump();
        outcome
    }

    async fn copy(
        &self,
        folder: u64,
        uids: &[u32],
        to: &str,
        remove: bool,
    ) -> Result<(u32, Vec<(u32, u32)>), Failure> {
        let mut state = self.state.lock().unwrap();
        if !state.folders.contains_key(to) {
            return Err(Failure::NonExistent);
        }
        let left = self.copies_left.load(Ordering::SeqCst);
        let left = left.checked_sub(uids.len()).ok_or(Failure::OverQuota)?;
        self.copies_left.store(left, Ordering::SeqCst);
        let source = state.folders.values_mut().find(|kept| kept.id == folder).ok_or(Failure::NonExistent)?;
        let mut taken = Vec::new();
        for uid in uids {
            if let Some(Kept { message, body }) = source.messages.get(uid) {
                taken.push((message.clone(), body.clone()));
            }
            if remove && source.messages.remove(uid).is_some() {
                source.mod_seq += 1;
                source.vanished.push((source.mod_seq, *uid));
            }
        }
        let target = state.folders.get_mut(to).unwrap();
        let pairs = taken
            .into_iter()
            .map(|(message, body)| (message.uid, target.add(message.flags, message.internal_date, body)))
            .collect();
        let validity = target.uid_validity;
        drop(state);
        self.bump();
        Ok((validity, pairs))
    }

    async fn expunge(&self, folder: u64, uids: Option<&[u32]>) -> Result<Vec<u32>, Failure> {
        let outcome = self.by_id(folder, |_, kept| {
            let wanted = |uid: &u32| uids.is_none_or(|uids| uids.contains(uid));
            let deleted = |s: &Kept| s.message.flags.contains("\\Deleted");
            let gone: Vec<u32> = kept
                .messages
                .iter()
                .filter(|(uid, s)| wanted(uid) && deleted(s))
                .map(|(uid, _)| *uid)
                .take(if uids.is_some() { usize::MAX } else { EXPUNGED_AT_ONCE })
                .collect();
            for uid in &gone {
                kept.messages.remove(uid);
                kept.mod_seq += 1;
                kept.vanished.push((kept.mod_seq, *uid));
            }
            gone
        });
        self.bump();
        outcome
    }

    async fn wait(&self, folder: u64, since: u64, at_most: Duration) {
        let mut version = self.version.subscribe();
        let changed = async {
            while self.by_id(folder, |_, kept| kept.mod_seq <= since).unwrap_or(false) {
                version.changed().await.unwrap();
            }
        };
        let _ = tokio::time::timeout(at_most, changed).await;
    }
}
