//! One mailbox compared, step by step, with a model that a reader can see through.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*};
use quorumail_store::*;

use crate::{determinism::mailbox_op, world::*};

#[derive(Debug, Clone, PartialEq)]
struct ModelMessage {
    flags: Vec<String>,
    body: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
struct ModelFolder {
    name: String,
    next: u32,
    subscribed: bool,
    /// The name it was made special under.
    special: Option<&'static str>,
    messages: BTreeMap<u32, ModelMessage>,
    /// Known when it came with a restore.
    uid_validity: Option<u32>,
    /// What it is restored from: the UIDVALIDITY, and the UIDs that were not put back yet.
    source: Option<(u32, BTreeSet<u32>)>,
    /// Where the UIDs of the source end.
    end: u32,
    /// Of what was imported, the UID.
    imported: BTreeMap<u128, u32>,
}

/// A mailbox in maps. Folders get their ids in the order they are made.
#[derive(Debug, Clone, Default)]
struct Model {
    folders: BTreeMap<u64, ModelFolder>,
    last: u64,
    /// By number: when it was deleted, its folder and UID, and the message.
    deleted: BTreeMap<u64, (i64, String, u32, ModelMessage)>,
    last_deleted: u64,
}

type Refused = ();

/// Lower case and sorted is enough here: spelling is tested elsewhere.
fn flag_names(flags: &Flags) -> Result<Vec<String>, Refused> {
    if flags.iter().any(|flag| flag.0 == "\\Nonsense") {
        return Err(());
    }
    let mut names: Vec<_> = flags.iter().map(|flag| flag.0.to_lowercase()).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

fn normal(name: &str) -> Result<String, Refused> {
    match name {
        "inbox" => Ok("INBOX".to_owned()),
        name if name.contains("//") => Err(()),
        name => Ok(name.to_owned()),
    }
}

impl Model {
    fn find(&self, name: &str) -> Option<u64> {
        self.folders.iter().find(|(_, folder)| folder.name == name).map(|(id, _)| *id)
    }

    fn named(&self, name: &str) -> Result<u64, Refused> {
        self.find(&normal(name)?).ok_or(())
    }

    fn make(&mut self, name: &str, subscribed: bool) -> u64 {
        self.last += 1;
        let folder = ModelFolder { name: name.to_owned(), next: 1, subscribed, ..ModelFolder::default() };
        self.folders.insert(self.last, folder);
        self.last
    }

    fn make_with_parents(&mut self, name: &str, subscribed: bool) -> u64 {
        let levels: Vec<_> = name.split('/').collect();
        for depth in 1..levels.len() {
            let parent = levels[..depth].join("/");
            if self.find(&parent).is_none() {
                self.make(&parent, false);
            }
        }
        self.make(name, subscribed)
    }

    fn open(&mut self) {
        if self.find("INBOX").is_none() {
            self.make("INBOX", true);
        }
        for name in ["Archive", "Drafts", "Junk", "Sent", "Trash"] {
            if self.folders.values().any(|folder| folder.special == Some(name)) {
                continue;
            }
            let id = self.find(name).unwrap_or_else(|| self.make(name, true));
            self.folders.get_mut(&id).unwrap().special.get_or_insert(name);
        }
    }

    fn usage(&self) -> Usage {
        let all = || self.folders.values().flat_map(|folder| folder.messages.values());
        Usage { bytes: all().map(|message| message.body.len() as u64).sum(), messages: all().count() as u64 }
    }

    fn fits(&self, quota: Quota, bodies: &[&[u8]]) -> Result<(), Refused> {
        let usage = self.usage();
        let bytes: usize = bodies.iter().map(|body| body.len()).sum();
        let over_bytes = quota.bytes != 0 && bytes > 0 && usage.bytes + bytes as u64 > quota.bytes;
        let over_count = quota.messages != 0
            && !bodies.is_empty()
            && usage.messages + bodies.len() as u64 > quota.messages;
        if over_bytes || over_count { Err(()) } else { Ok(()) }
    }

    fn add(&mut self, folder: u64, message: ModelMessage) -> u32 {
        let folder = self.folders.get_mut(&folder).unwrap();
        folder.messages.insert(folder.next, message);
        folder.next += 1;
        folder.next - 1
    }

    fn keep(&mut self, at: i64, folder: &str, messages: impl IntoIterator<Item = (u32, ModelMessage)>) {
        for (uid, message) in messages {
            self.last_deleted += 1;
            self.deleted.insert(self.last_deleted, (at, folder.to_owned(), uid, message));
        }
    }

    fn undelete(&mut self, numbers: &[u64], below: &str, quota: Quota) -> Result<(), Refused> {
        let below = normal(below)?;
        let found: Vec<_> = numbers.iter().filter_map(|number| self.deleted.remove(number)).collect();
        let bodies: Vec<_> = found.iter().map(|(_, _, _, message)| &message.body[..]).collect();
        self.fits(quota, &bodies)?;
        for (_, folder, _, mut message) in found {
            let name = if below.is_empty() { folder } else { format!("{below}/{folder}") };
            let id = self.find(&name).unwrap_or_else(|| self.make_with_parents(&name, true));
            message.flags.retain(|flag| flag != "\\deleted");
            self.add(id, message);
        }
        Ok(())
    }

    fn picked(&self, folder: u64, uids: &[Uid]) -> Vec<(u32, ModelMessage)> {
        let messages = &self.folders[&folder].messages;
        let wanted = messages.iter().filter(|(uid, _)| uids.contains(&Uid(**uid)));
        wanted.map(|(uid, message)| (*uid, message.clone())).collect()
    }

    /// What the command makes of the model; an error leaves it for the caller to throw away.
    fn run(&mut self, at: i64, op: &Op, body: &[u8]) -> Result<Option<Vec<u32>>, Refused> {
        if self.folders.is_empty() && !matches!(op, Op::DropDeleted { .. }) {
            self.open();
        }
        match op {
            Op::OpenMailbox(_) => self.open(),
            Op::Append { folder, flags, quota, .. } => {
                let flags = flag_names(flags)?;
                let folder = self.named(folder)?;
                self.fits(*quota, &[body])?;
                return Ok(Some(vec![self.add(folder, ModelMessage { flags, body: body.to_vec() })]));
            }
            Op::CreateFolder { folder, .. } => {
                let name = normal(folder)?;
                if self.find(&name).is_some() {
                    return Err(());
                }
                self.make_with_parents(&name, false);
            }
            Op::DeleteFolder { folder, .. } => {
                let id = self.named(folder)?;
                if self.folders[&id].name == "INBOX" {
                    return Err(());
                }
                let gone = self.folders.remove(&id).unwrap();
                self.keep(at, &gone.name, gone.messages);
            }
            Op::RenameFolder { from, to, .. } => self.rename(from, to)?,
            Op::Subscribe { folder, subscribed, .. } => match self.find(&normal(folder)?) {
                Some(id) => self.folders.get_mut(&id).unwrap().subscribed = *subscribed,
                None if *subscribed => return Err(()),
                None => {}
            },
            Op::StoreFlags { folder, uids, mode, flags, .. } => {
                let flags = flag_names(flags)?;
                let folder = self.folders.get_mut(&folder.0).ok_or(())?;
                for (_, message) in folder.messages.iter_mut().filter(|(uid, _)| uids.contains(&Uid(**uid))) {
                    let mut new = message.flags.clone();
                    match mode {
                        StoreFlags::Replace => new = flags.clone(),
                        StoreFlags::Add => new.extend(flags.iter().cloned()),
                        StoreFlags::Remove => new.retain(|flag| !flags.contains(flag)),
                    }
                    new.sort();
                    new.dedup();
                    message.flags = new;
                }
            }
            Op::Copy { folder, uids, to, remove, quota, .. } => {
                self.folders.get(&folder.0).ok_or(())?;
                let target = self.named(to)?;
                let picked = self.picked(folder.0, uids);
                if !remove {
                    let bodies: Vec<_> = picked.iter().map(|(_, message)| &message.body[..]).collect();
                    self.fits(*quota, &bodies)?;
                }
                let mut new = Vec::new();
                for (uid, message) in picked {
                    new.push(self.add(target, message));
                    if *remove {
                        self.folders.get_mut(&folder.0).unwrap().messages.remove(&uid);
                    }
                }
                return Ok(Some(new));
            }
            Op::Expunge { folder, uids, .. } => {
                let folder = self.folders.get_mut(&folder.0).ok_or(())?;
                let goes = |uid: &u32, message: &ModelMessage| {
                    message.flags.contains(&"\\deleted".to_owned())
                        && uids.as_ref().is_none_or(|uids| uids.contains(&Uid(*uid)))
                };
                let (gone, left): (BTreeMap<_, _>, BTreeMap<_, _>) =
                    std::mem::take(&mut folder.messages).into_iter().partition(|(uid, m)| goes(uid, m));
                folder.messages = left;
                let (name, uids) = (folder.name.clone(), gone.keys().copied().collect());
                self.keep(at, &name, gone);
                return Ok(Some(uids));
            }
            Op::RestoreFolder { folder, source, .. } => self.restore_folder(folder, *source)?,
            Op::RestoreMessage { folder, place, flags, quota, .. } => {
                return self.restore_message(folder, *place, flags, *quota, body).map(|uid| Some(vec![uid]));
            }
            Op::Undelete { numbers, below, quota, .. } => self.undelete(numbers, below, *quota)?,
            // From the oldest on, up to the first that is kept.
            Op::DropDeleted { before, .. } => {
                while self.deleted.first_key_value().is_some_and(|(_, (at, ..))| *at < before.0) {
                    self.deleted.pop_first();
                }
            }
            other => panic!("{other:?}"),
        }
        Ok(None)
    }

    fn restore_folder(&mut self, name: &str, source: Option<FolderSource>) -> Result<(), Refused> {
        let name = normal(name)?;
        if source.is_some_and(|source| source.uid_next == Uid(0) || source.uid_validity.0 == u32::MAX) {
            return Err(());
        }
        let id = self.find(&name).unwrap_or_else(|| self.make_with_parents(&name, true));
        let folder = self.folders.get_mut(&id).unwrap();
        let Some(source) = source else { return Ok(()) };
        let (from, next) = (source.uid_validity.0, source.uid_next.0);
        if folder.next > 1 || folder.source.is_some() {
            let same = folder.source.as_ref().is_some_and(|(known, _)| *known == from);
            return if same || folder.uid_validity == Some(from) { Ok(()) } else { Err(()) };
        }
        folder.source = Some((from, (1..next).collect()));
        (folder.next, folder.end) = (next, next);
        if source.keep {
            folder.uid_validity = Some(from);
        }
        Ok(())
    }

    fn restore_message(
        &mut self,
        name: &str,
        place: RestorePlace,
        flags: &Flags,
        quota: Quota,
        body: &[u8],
    ) -> Result<u32, Refused> {
        let message = ModelMessage { flags: flag_names(flags)?, body: body.to_vec() };
        let id = self.named(name)?;
        let fits = self.fits(quota, &[body]);
        let folder = self.folders.get_mut(&id).unwrap();
        match place {
            RestorePlace::Next { source } => {
                if let Some(uid) = folder.imported.get(&source) {
                    return Ok(*uid);
                }
                fits?;
                folder.imported.insert(source, folder.next);
                Ok(self.add(id, message))
            }
            RestorePlace::Uid { source, uid } => {
                let same = folder.uid_validity == Some(source.0);
                let (from, waiting) = folder.source.as_mut().ok_or(())?;
                if *from != source.0 && !same {
                    return Err(());
                }
                if waiting.contains(&uid.0) {
                    fits?;
                    waiting.remove(&uid.0);
                    folder.messages.insert(uid.0, message);
                } else if uid.0 == 0 || uid.0 >= if same { folder.next } else { folder.end } {
                    return Err(());
                }
                Ok(uid.0)
            }
        }
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Refused> {
        let id = self.named(from)?;
        let to = normal(to)?;
        let from = self.folders[&id].name.clone();
        if self.find(&to).is_some() || to.starts_with(&format!("{from}/")) && from != "INBOX" {
            return Err(());
        }
        if from == "INBOX" {
            let subscribed = self.folders[&id].subscribed;
            let target = self.make_with_parents(&to, subscribed);
            for message in std::mem::take(&mut self.folders.get_mut(&id).unwrap().messages).into_values() {
                self.add(target, message);
            }
            return Ok(());
        }
        let below = format!("{from}/");
        let taken: Vec<_> = self.folders.values().map(|folder| folder.name.clone()).collect();
        let mut moved = Vec::new();
        for (id, folder) in &self.folders {
            if let Some(rest) = folder.name.strip_prefix(&below) {
                moved.push((*id, format!("{to}/{rest}")));
            }
        }
        if moved.iter().any(|(_, name)| taken.contains(name)) {
            return Err(());
        }
        let last = self.make_with_parents(&to, false);
        self.folders.remove(&last);
        self.last -= 1;
        for (id, name) in moved.into_iter().chain([(id, to)]) {
            self.folders.get_mut(&id).unwrap().name = name;
        }
        Ok(())
    }

    /// Compares everything that can be asked.
    fn compare(&self, node: &Node) {
        assert_eq!(node.usage(), self.usage());
        let deleted = node.deleted(u32::MAX).into_iter().map(|found| {
            let flags = flag_names(&found.flags).unwrap();
            let message = ModelMessage { flags, body: found.start.to_vec() };
            (found.number, (found.deleted_at.0, found.folder, found.uid.0, message))
        });
        assert_eq!(deleted.collect::<BTreeMap<_, _>>(), self.deleted);
        let folders = node.folders();
        assert_eq!(folders.len(), self.folders.len());
        for info in folders {
            let folder = &self.folders[&info.id.0];
            assert_eq!((&info.name, info.subscribed), (&folder.name, folder.subscribed));
            assert_eq!(info.uid_next, Uid(folder.next));
            assert!(folder.uid_validity.is_none_or(|kept| info.uid_validity == UidValidity(kept)));
            let unseen = folder.messages.values().filter(|m| !m.flags.contains(&"\\seen".to_owned())).count();
            assert_eq!((info.messages as usize, info.unseen as usize), (folder.messages.len(), unseen));
            let bytes: usize = folder.messages.values().map(|message| message.body.len()).sum();
            assert_eq!(info.bytes, bytes as u64);
            let found = node.messages(info.id);
            let uids: Vec<_> = found.iter().map(|message| message.uid).collect();
            assert_eq!(uids, folder.messages.keys().map(|uid| Uid(*uid)).collect::<Vec<_>>());
            let bodies = node.bodies_of(info.id, &uids);
            for ((meta, body), model) in found.iter().zip(bodies).zip(folder.messages.values()) {
                let got =
                    ModelMessage { flags: flag_names(&meta.flags).unwrap(), body: body.unwrap().to_vec() };
                assert_eq!((&got, meta.size as usize), (model, model.body.len()));
                assert!(meta.mod_seq <= info.highest_mod_seq);
            }
        }
    }
}

/// What a client that asks for changes knows of a folder.
#[derive(Default)]
struct Client {
    /// RFC 9051 2.3.1.1: under another UIDVALIDITY it is another folder.
    folders: BTreeMap<(FolderId, UidValidity), (ModSeq, BTreeMap<Uid, MessageMeta>)>,
}

impl Client {
    /// Brings the copy up to date with changes alone, and checks that it is what a full listing says.
    fn sync(&mut self, node: &Node) {
        for info in node.folders() {
            let (since, known) =
                self.folders.entry((info.id, info.uid_validity)).or_insert((ModSeq(0), BTreeMap::new()));
            let changes = node.changes(info.id, *since);
            match changes.vanished {
                Some(vanished) => vanished.iter().for_each(|uid| drop(known.remove(uid))),
                // A folder that came back under its old identity: all is listed again.
                None => {
                    assert_eq!(*since, ModSeq(0), "far fewer expunges than are remembered");
                    let in_use = uids_of(&changes.uids);
                    known.retain(|uid, _| in_use.contains(uid));
                }
            }
            known.extend(changes.changed.into_iter().map(|meta| (meta.uid, meta)));
            assert!(changes.folder.highest_mod_seq >= *since, "MODSEQ never falls");
            *since = changes.folder.highest_mod_seq;
            assert_eq!(known.values().cloned().collect::<Vec<_>>(), node.messages(info.id));
        }
    }
}

fn applied_uids(applied: &Applied) -> Option<Vec<u32>> {
    match applied {
        Applied::Appended { uid, .. } => Some(vec![uid.0]),
        Applied::Copied { uids, .. } => Some(uids.iter().map(|(_, new)| new.0).collect()),
        Applied::Expunged(uids) => Some(uids.iter().map(|uid| uid.0).collect()),
        Applied::Restored { uid, .. } => Some(vec![uid.0]),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mailbox_does_what_the_model_does(
        steps in vec((mailbox_op(1), vec(any::<u8>(), 0..30), prop::bool::weighted(0.3)), 1..80)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::open(&dir.path().join("index"));
        let (mut model, mut client) = (Model::default(), Client::default());
        for (at, (mut op, body, sync)) in steps.into_iter().enumerate() {
            let at = at as i64;
            set_mailbox(&mut op);
            let mut next = model.clone();
            let expected = next.run(at, &op, &body);
            let got = node.run_at(GROUP, at, op.clone(), &body);
            match (expected, got) {
                (Ok(uids), Ok(applied)) => {
                    assert_eq!(uids, applied_uids(&applied), "{op:?}");
                    model = next;
                }
                (Err(()), Err(_)) => {}
                (expected, got) => panic!("{op:?}: expected {expected:?}, got {got:?}"),
            }
            if sync {
                client.sync(&node);
            }
        }
        model.compare(&node);
        client.sync(&node);
        node.store.audit(GROUP).unwrap();
    }
}

/// The model has one mailbox and no conditional STORE (which has a test of its own).
pub fn set_mailbox(op: &mut Op) {
    match op {
        Op::OpenMailbox(mailbox)
        | Op::Append { mailbox, .. }
        | Op::CreateFolder { mailbox, .. }
        | Op::DeleteFolder { mailbox, .. }
        | Op::RenameFolder { mailbox, .. }
        | Op::Subscribe { mailbox, .. }
        | Op::Copy { mailbox, .. }
        | Op::Expunge { mailbox, .. }
        | Op::RestoreFolder { mailbox, .. }
        | Op::RestoreMessage { mailbox, .. }
        | Op::Undelete { mailbox, .. }
        | Op::DropDeleted { mailbox, .. } => *mailbox = MAILBOX,
        Op::StoreFlags { mailbox, unchanged_since, .. } => {
            *mailbox = MAILBOX;
            *unchanged_since = None;
        }
        other => panic!("{other:?}"),
    }
}
