//! The queue of a partition: its entries, and the index in memory that orders them.
//!
//! The order lives in memory only: entries come and go at the front all the time, and an ordered range of an LSM tree
//! from which the front is always removed is slow to read. It is built from the entries at start, takes two keys of 24
//! bytes for an entry whose recipients are of one class, and does not take part in what replicas compare.

use std::collections::BTreeSet;

use crate::{
    Address, Applied, BodyId, QueueClass, QueueEntry, QueueId, QueueRecipient, Refusal, Timestamp,
    body_table::{self, Arrived},
    error::Stop,
    keys,
    records::{self, Queued},
    store::Change,
    txn::{Txn, View},
};

/// All classes, in the order of their counters.
pub(crate) const CLASSES: [QueueClass; 4] =
    [QueueClass::Local, QueueClass::Remote, QueueClass::Bad, QueueClass::Held];

/// What of an entry the index knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueueFacts {
    arrived: Timestamp,
    /// The earliest next attempt of a recipient that is worked on; none when all wait for a person.
    due: Option<Timestamp>,
    /// Recipients by class.
    recipients: [u32; CLASSES.len()],
}

impl QueueFacts {
    pub(crate) fn new(entry: &QueueEntry) -> Self {
        let mut facts = Self { arrived: entry.arrived, due: None, recipients: [0; CLASSES.len()] };
        for recipient in &entry.recipients {
            facts.recipients[class_number(recipient.class)] += 1;
            if matches!(recipient.class, QueueClass::Local | QueueClass::Remote) {
                facts.due =
                    Some(facts.due.map_or(recipient.next_attempt, |due| due.min(recipient.next_attempt)));
            }
        }
        facts
    }
}

fn class_number(class: QueueClass) -> usize {
    match class {
        QueueClass::Local => 0,
        QueueClass::Remote => 1,
        QueueClass::Bad => 2,
        QueueClass::Held => 3,
    }
}

/// An entry before and after a command.
#[derive(Debug)]
pub(crate) struct QueueChange {
    id: QueueId,
    before: Option<QueueFacts>,
    after: Option<QueueFacts>,
}

/// Entries by an instant, and by id where that is equal. Packed, because a queue may hold a million of them: the instant
/// with its sign turned, then the id, big endian.
#[derive(Debug, Default, PartialEq, Eq)]
struct Order(BTreeSet<[u8; 24]>);

impl Order {
    fn key(at: Timestamp, id: QueueId) -> [u8; 24] {
        let mut key = [0; 24];
        key[..8].copy_from_slice(&(at.0 ^ i64::MIN).to_be_bytes());
        key[8..].copy_from_slice(&id.0.to_be_bytes());
        key
    }

    fn insert(&mut self, at: Timestamp, id: QueueId) {
        self.0.insert(Self::key(at, id));
    }

    fn remove(&mut self, at: Timestamp, id: QueueId) {
        self.0.remove(&Self::key(at, id));
    }

    /// Ascending.
    fn iter(&self) -> impl Iterator<Item = (Timestamp, QueueId)> + '_ {
        self.0.iter().map(|key| {
            let (at, id) = key.split_first_chunk::<8>().expect("a key has 24 bytes");
            let id = id.try_into().expect("a key has 24 bytes");
            (Timestamp(i64::from_be_bytes(*at) ^ i64::MIN), QueueId(u128::from_be_bytes(id)))
        })
    }
}

/// The order of a group's queue.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueIndex {
    due: Order,
    arrived: [Order; CLASSES.len()],
    recipients: [u64; CLASSES.len()],
}

impl QueueIndex {
    pub(crate) fn add(&mut self, id: QueueId, facts: &QueueFacts) {
        if let Some(due) = facts.due {
            self.due.insert(due, id);
        }
        for (class, count) in facts.recipients.iter().enumerate().filter(|(_, count)| **count > 0) {
            self.arrived[class].insert(facts.arrived, id);
            self.recipients[class] += u64::from(*count);
        }
    }

    fn remove(&mut self, id: QueueId, facts: &QueueFacts) {
        if let Some(due) = facts.due {
            self.due.remove(due, id);
        }
        for (class, count) in facts.recipients.iter().enumerate().filter(|(_, count)| **count > 0) {
            self.arrived[class].remove(facts.arrived, id);
            let left = self.recipients[class].checked_sub(u64::from(*count));
            self.recipients[class] = left.expect("the queue index counts every recipient once");
        }
    }

    pub(crate) fn apply(&mut self, changes: &[QueueChange]) {
        for change in changes {
            if let Some(before) = &change.before {
                self.remove(change.id, before);
            }
            if let Some(after) = &change.after {
                self.add(change.id, after);
            }
        }
    }

    /// Entries due at `now`, earliest first.
    pub(crate) fn due(&self, now: Timestamp, limit: u32) -> Vec<QueueId> {
        let due = self.due.iter().take_while(|(due, _)| *due <= now);
        due.take(limit as usize).map(|(_, id)| id).collect()
    }

    /// The earliest next attempt.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.due.iter().next().map(|(due, _)| due)
    }

    /// Entries, oldest first.
    pub(crate) fn oldest(&self, class: Option<QueueClass>, limit: u32) -> Vec<QueueId> {
        let limit = limit as usize;
        let first = |class: usize| self.arrived[class].iter().take(limit);
        match class {
            Some(class) => first(class_number(class)).map(|(_, id)| id).collect(),
            None => {
                // An entry may have recipients of several classes.
                let all: BTreeSet<_> = (0..CLASSES.len()).flat_map(first).collect();
                all.into_iter().take(limit).map(|(_, id)| id).collect()
            }
        }
    }

    /// Class, recipients, arrival of the oldest.
    pub(crate) fn counts(&self) -> Vec<(QueueClass, u64, Option<Timestamp>)> {
        let one = |class: QueueClass| {
            let number = class_number(class);
            (class, self.recipients[number], self.arrived[number].iter().next().map(|(at, _)| at))
        };
        CLASSES.into_iter().map(one).collect()
    }
}

pub(crate) fn enqueue(
    txn: &mut Txn<'_>,
    group: u32,
    mut entry: QueueEntry,
    arrived: Arrived,
) -> Result<Applied, Stop> {
    if entry.recipients.is_empty() {
        return Err(Refusal::Invalid("a queue entry needs a recipient".to_owned()).into());
    }
    let key = keys::queue(entry.id);
    if txn.get(&key)?.is_some() {
        return Err(Refusal::AlreadyExists(format!("queue entry {}", entry.id)).into());
    }
    entry.size = arrived.len;
    body_table::add(txn, &arrived);
    put_new(txn, group, key, entry, arrived.id);
    Ok(Applied::Done)
}

/// Adds an entry with a body that is there already, whose reference it takes over.
pub(crate) fn add(txn: &mut Txn<'_>, group: u32, entry: QueueEntry, body: BodyId) -> Result<(), Stop> {
    if entry.recipients.is_empty() {
        return Err(Refusal::Invalid("a queue entry needs a recipient".to_owned()).into());
    }
    let key = keys::queue(entry.id);
    if txn.get(&key)?.is_some() {
        return Err(Refusal::AlreadyExists(format!("queue entry {}", entry.id)).into());
    }
    put_new(txn, group, key, entry, body);
    Ok(())
}

fn put_new(txn: &mut Txn<'_>, group: u32, key: Vec<u8>, entry: QueueEntry, body: BodyId) {
    let after = Some(QueueFacts::new(&entry));
    txn.effects.queue.push(QueueChange { id: entry.id, before: None, after });
    txn.effects.changes.push(Change::Queue { group });
    txn.put(key, records::encode(&Queued { body, entry }));
}

pub(crate) fn update(
    txn: &mut Txn<'_>,
    group: u32,
    id: QueueId,
    done: &[Address],
    changed: Vec<QueueRecipient>,
) -> Result<Applied, Stop> {
    let key = keys::queue(id);
    let value = txn.get(&key)?.ok_or_else(|| Refusal::NotFound(format!("queue entry {id}")))?;
    let mut queued: Queued = records::decode(&value)?;
    let before = Some(QueueFacts::new(&queued.entry));
    queued.entry.recipients.retain(|recipient| !done.contains(&recipient.address));
    for new in changed {
        for recipient in queued.entry.recipients.iter_mut().filter(|r| r.address == new.address) {
            *recipient = new.clone();
        }
    }
    let after = if queued.entry.recipients.is_empty() {
        txn.remove(key);
        body_table::release(txn, queued.body)?;
        None
    } else {
        txn.put(key, records::encode(&queued));
        Some(QueueFacts::new(&queued.entry))
    };
    txn.effects.queue.push(QueueChange { id, before, after });
    txn.effects.changes.push(Change::Queue { group });
    Ok(Applied::Done)
}
