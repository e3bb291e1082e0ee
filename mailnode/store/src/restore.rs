//! Putting back what is in a backup, and taking in what comes from elsewhere: each message once, however often it is tried.
//!
//! A restored folder *reserves* the UIDs of its source: new mail gets UIDs behind them, and each reserved UID is given to
//! the message of the source that had it, once, in any order. What has been restored and expunged since does not come
//! back. Messages from elsewhere get the next UID; the folder remembers their source for as long as it exists.

use serde::{Deserialize, Serialize};

use crate::{
    Applied, Flags, FolderId, FolderSource, Quota, Refusal, RestorePlace, RestoredAs, SpecialUse, StoreError,
    Timestamp, Uid, UidValidity,
    body_table::{self, Arrived},
    error::Stop,
    flags::FlagSet,
    folder_name,
    folders::{self, Folder, Mailbox},
    keys,
    records::{self, Message},
    txn::{Txn, View},
    uids::{self, Holes},
};

/// UIDNEXT of a source at most: bounds the keys that one command writes (two for each 4,096 UIDs).
pub const MAX_SOURCE_UID: u32 = 1 << 26;
/// Highest MODSEQ of a source: what remains to 2^63 (RFC 7162 3.1) is never used up.
const MAX_SOURCE_MOD_SEQ: u64 = 1 << 62;
/// Seconds that a UIDVALIDITY may be ahead of the clock. One that is made without a pause is ahead of it; one at the end
/// of its range would leave none for later folders.
const UID_VALIDITY_AHEAD: u32 = 1_000_000;
/// Remembered sources that one command forgets.
pub(crate) const FORGET_AT_ONCE: usize = 10_000;

/// What a folder knows of what was restored into it. There is none for a folder that nothing was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestoreState {
    /// UIDVALIDITY of the folder that it is restored from, and the end of the reserved UIDs.
    pub(crate) source: Option<(UidValidity, Uid)>,
    /// Number of sources remembered.
    pub(crate) imported: u32,
}

impl FolderSource {
    fn check(&self, at: Timestamp) -> Result<(), Refusal> {
        let clock = u32::try_from(at.0.div_euclid(1000)).unwrap_or(1);
        let invalid = |text: String| Err(Refusal::Invalid(text));
        if self.uid_next.0 == 0 || self.uid_next.0 > MAX_SOURCE_UID {
            return invalid(format!(
                "a folder is restored with UIDs up to {MAX_SOURCE_UID}; import it, so that its messages get new ones"
            ));
        }
        if self.uid_validity.0 == 0 || self.uid_validity.0 > clock.saturating_add(UID_VALIDITY_AHEAD) {
            return invalid(format!("UIDVALIDITY {} lies in the future", self.uid_validity));
        }
        if self.highest_mod_seq.0 > MAX_SOURCE_MOD_SEQ {
            return invalid(format!("MODSEQ {} is too high", self.highest_mod_seq));
        }
        Ok(())
    }
}

impl Mailbox<'_, '_> {
    /// Makes a folder where it is missing. With a source, a folder that was never used is made ready for its messages.
    pub(crate) fn restore_folder(
        &mut self,
        name: &str,
        special_use: Option<SpecialUse>,
        subscribed: bool,
        source: Option<FolderSource>,
    ) -> Result<Applied, Stop> {
        let name = folder_name::normalize(name)?;
        if let Some(source) = &source {
            source.check(self.at())?;
        }
        let found = self.find(&name)?;
        let made = found.is_none();
        let mut folder = match found {
            Some(folder) => folder,
            None => {
                let all = folders::folders(self.txn, self.id)?;
                // The one that is used for it stays the one.
                let free =
                    special_use.filter(|wanted| all.iter().all(|f| f.state.special_use != Some(*wanted)));
                self.make_parents(&name)?;
                self.make(&name, free, subscribed)?
            }
        };
        if let Some(source) = source {
            self.make_ready(&mut folder, source)?;
        }
        Ok(Applied::RestoredFolder { folder: folder.id, uid_validity: folder.state.uid_validity, made })
    }

    fn make_ready(&mut self, folder: &mut Folder, source: FolderSource) -> Result<(), Stop> {
        let mut state = restore_state(self.txn, self, folder.id)?;
        let unused = folder.state.uid_next == Uid(1) && state.source.is_none();
        if !unused {
            let known = state.source.map(|(uid_validity, _)| uid_validity);
            if known == Some(source.uid_validity) || folder.state.uid_validity == source.uid_validity {
                return Ok(());
            }
            return Err(self.other_mail(folder, source.uid_validity).into());
        }
        if source.keep {
            folder.state.uid_validity = source.uid_validity;
            self.head.last_uid_validity = self.head.last_uid_validity.max(source.uid_validity.0);
            self.head.mod_seq = self.head.mod_seq.max(source.highest_mod_seq.0);
        }
        folder.state.highest_mod_seq = self.next_mod_seq();
        if source.keep {
            // Nothing is known of what its clients saw before.
            folder.state.vanished_floor = folder.state.highest_mod_seq;
        }
        folder.state.uid_next = source.uid_next;
        for (block, first, last) in uids::blocks(Uid(1), source.uid_next) {
            let reserved = Holes::of_range(first, last).encode();
            self.txn.put(keys::holes(self.id, folder.id, block), reserved.clone());
            self.txn.put(keys::reserved(self.id, folder.id, block), reserved);
        }
        state.source = Some((source.uid_validity, source.uid_next));
        self.save_restore_state(folder.id, &state);
        self.save_folder(folder);
        self.folder_changed(folder.id);
        self.list_changed();
        Ok(())
    }

    /// Puts a message back, or takes one in. One that was put before is left as it is now.
    pub(crate) fn restore_message(
        &mut self,
        name: &str,
        place: RestorePlace,
        flags: &Flags,
        internal_date: Timestamp,
        quota: Quota,
        arrived: Arrived,
    ) -> Result<Applied, Stop> {
        let flags = FlagSet::new(flags)?;
        let mut folder = self.named(name)?;
        let known = match place {
            RestorePlace::Uid { source, uid } => self.known_uid(&folder, source, uid)?,
            RestorePlace::Next { source } => self.known_source(folder.id, source)?,
        };
        let (id, uid_validity) = (folder.id, folder.state.uid_validity);
        let answer = |uid, was| Ok(Applied::Restored { folder: id, uid_validity, uid, was });
        if let Some(uid) = known {
            body_table::forget(self.txn, arrived)?;
            let there = self.message(folder.id, uid)?.is_some();
            return answer(uid, if there { RestoredAs::There } else { RestoredAs::Gone });
        }
        let body = arrived.body();
        self.check_quota(quota, 1, u64::from(body.len))?;
        let message = Message { body, mod_seq: self.next_mod_seq(), internal_date, flags };
        let uid = match place {
            RestorePlace::Uid { uid, .. } => {
                self.take_reserved(folder.id, uid)?;
                self.place(&mut folder, uid, &message)?;
                uid
            }
            RestorePlace::Next { source } => {
                let uid = self.add(&mut folder, &message)?;
                self.txn.put(keys::imported(self.id, folder.id, source), records::encode(&uid));
                let mut state = restore_state(self.txn, self, folder.id)?;
                state.imported += 1;
                self.save_restore_state(folder.id, &state);
                uid
            }
        };
        body_table::add(self.txn, &arrived);
        self.save_folder(&folder);
        self.folder_changed(folder.id);
        answer(uid, RestoredAs::New)
    }

    /// The UID when it was given to a message already; none when it is reserved.
    fn known_uid(&self, folder: &Folder, source: UidValidity, uid: Uid) -> Result<Option<Uid>, Stop> {
        let reserved = match restore_state(self.txn, self, folder.id)?.source {
            Some((from, end)) if from == source => Some(end),
            _ => None,
        };
        let same = folder.state.uid_validity == source;
        if reserved.is_none() && !same {
            return Err(self.other_mail(folder, source).into());
        }
        let end = if same { folder.state.uid_next } else { reserved.unwrap_or(Uid(0)) };
        if uid.0 == 0 || uid >= end {
            return Err(Refusal::Invalid(format!(
                "folder {} has no room for UID {uid}: it was made ready for UIDs below {end}",
                folder.state.name
            ))
            .into());
        }
        let free = self.holes_at(&keys::reserved(self.id, folder.id, uids::block(uid)))?;
        Ok(if free.is_some_and(|free| free.contains(uid)) { None } else { Some(uid) })
    }

    fn known_source(&self, folder: FolderId, source: u128) -> Result<Option<Uid>, Stop> {
        let value = self.txn.get(&keys::imported(self.id, folder, source))?;
        Ok(value.map(|value| records::decode(&value)).transpose()?)
    }

    /// The UID is in use from now on.
    fn take_reserved(&mut self, folder: FolderId, uid: Uid) -> Result<(), Stop> {
        let block = uids::block(uid);
        for key in [keys::reserved(self.id, folder, block), keys::holes(self.id, folder, block)] {
            let holes = self.holes_at(&key)?;
            let mut holes = holes.ok_or(StoreError::Damaged("a reserved UID is no hole"))?;
            holes.remove(uid);
            if holes.is_empty() {
                self.txn.remove(key);
            } else {
                self.txn.put(key, holes.encode());
            }
        }
        Ok(())
    }

    fn holes_at(&self, key: &[u8]) -> Result<Option<Holes>, Stop> {
        Ok(self.txn.get(key)?.map(|value| Holes::decode(&value)).transpose()?)
    }

    fn other_mail(&self, folder: &Folder, source: UidValidity) -> Refusal {
        Refusal::Conflict(format!(
            "folder {} holds other mail (its UIDVALIDITY is {}, that of the source {source}); restore it under a prefix",
            folder.state.name, folder.state.uid_validity
        ))
    }

    fn save_restore_state(&mut self, folder: FolderId, state: &RestoreState) {
        self.txn.put(keys::folder(keys::RESTORE, self.id, folder), records::encode(state));
    }

    /// Number of sources that a folder remembers.
    pub(crate) fn imported(&self, folder: FolderId) -> Result<usize, Stop> {
        Ok(restore_state(self.txn, self, folder)?.imported as usize)
    }

    /// Forgets some of the sources that a folder remembers.
    pub(crate) fn forget_sources(&mut self, folder: FolderId, at_most: usize) -> Result<(), Stop> {
        let mut state = restore_state(self.txn, self, folder)?;
        let prefix = keys::folder(keys::IMPORTED, self.id, folder);
        let mut gone = Vec::new();
        self.txn.scan(&prefix, &prefix, &mut |key, _| {
            if gone.len() == at_most {
                return Ok(std::ops::ControlFlow::Break(()));
            }
            gone.push(key.to_vec());
            Ok(std::ops::ControlFlow::Continue(()))
        })?;
        let count = u32::try_from(gone.len()).unwrap_or(u32::MAX);
        state.imported = state.imported.checked_sub(count).expect("a folder counts the sources it remembers");
        gone.into_iter().for_each(|key| self.txn.remove(key));
        self.save_restore_state(folder, &state);
        Ok(())
    }
}

fn restore_state(
    txn: &Txn<'_>,
    mailbox: &Mailbox<'_, '_>,
    folder: FolderId,
) -> Result<RestoreState, StoreError> {
    let value = txn.get(&keys::folder(keys::RESTORE, mailbox.id, folder))?;
    value.map_or(Ok(RestoreState::default()), |value| records::decode(&value))
}
