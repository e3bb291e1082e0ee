//! Log-in: who somebody is, from a full address and a password.
//!
//! Answers take the same work for known and unknown users. Hashes are checked on blocking threads, as many at a time
//! as there are processors, so that log-ins cannot starve mail. A log-in that was verified a moment ago is recognised
//! from memory: clients such as imaplib scripts log in again for every look at the mailbox.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use quorumail_message::Address;
use quorumail_store::{MailboxId, MailboxRecord};
use tokio::sync::Semaphore;

use crate::{
    groups::{self, Groups},
    throttle::Throttle,
    verify,
};

/// How long a verified log-in is recognised without checking the hash again.
const CACHE_TIME: Duration = Duration::from_secs(300);
/// Verified log-ins remembered.
const CACHE_SIZE: usize = 50_000;
/// How long a log-in may wait for its turn to be checked.
const QUEUE_TIME: Duration = Duration::from_secs(10);
/// Log-ins waiting for their turn; further ones are told to come back.
const QUEUE_SIZE: usize = 1000;
/// Times of last log-ins remembered.
const LAST_LOGINS: usize = 1_000_000;

/// Why a log-in failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Unknown user, wrong password or no permission.
    Denied,
    /// Too many failures before; nothing was checked.
    Throttled,
    /// The directory cannot be asked, or too many log-ins wait.
    Unavailable,
}

/// What somebody logs in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To send mail. Whether the mailbox may is checked with its first message, so that the answer can say it.
    Send,
    /// To read mail.
    Read,
}

/// Checks log-ins.
pub struct Authenticator {
    groups: Arc<Groups>,
    throttle: Throttle,
    checks: Arc<Semaphore>,
    waiting: Semaphore,
    cache: Mutex<Cache>,
    last_logins: Mutex<HashMap<MailboxId, i64>>,
}

/// Log-ins verified lately. Holds no password: a keyed hash with a key that lives and dies with the process.
struct Cache {
    key: [u8; 32],
    verified: HashMap<MailboxId, Verified>,
}

struct Verified {
    password: blake3::Hash,
    /// Of the directory's hash that the password was checked against: a changed password ends the entry.
    directory: blake3::Hash,
    until: Instant,
}

impl Authenticator {
    /// For the accounts of this directory.
    pub fn new(groups: Arc<Groups>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            groups,
            throttle: Throttle::default(),
            checks: Arc::new(Semaphore::new(processors)),
            waiting: Semaphore::new(QUEUE_SIZE),
            cache: Mutex::new(Cache { key: rand::random(), verified: HashMap::new() }),
            last_logins: Mutex::default(),
        }
    }

    /// The mailbox that the user name and password belong to.
    pub async fn login(
        &self,
        user: &str,
        password: &str,
        remote: IpAddr,
        purpose: Purpose,
    ) -> Result<Arc<MailboxRecord>, Failure> {
        let name: Option<Address> = user.parse().ok();
        let key = name.as_ref().map_or_else(|| user.to_lowercase(), Address::key);
        let Some(attempt) = self.throttle.attempt(remote, &key, QUEUE_TIME).await else {
            return Err(Failure::Throttled);
        };
        let checked = self.check(name.as_ref(), password).await;
        if !matches!(checked, Err(Failure::Denied)) {
            attempt.forgive();
        }
        let record = checked?;
        if record.suspended || (purpose == Purpose::Read && !record.permissions.login) {
            return Err(Failure::Denied);
        }
        self.remember(record.id);
        Ok(record)
    }

    async fn check(&self, name: Option<&Address>, password: &str) -> Result<Arc<MailboxRecord>, Failure> {
        let record = self.lookup(name);
        if self.verify(record.as_ref(), password).await? {
            return record.ok_or(Failure::Denied);
        }
        // The replica here may not have a new account or password yet.
        self.groups.directory_is_current().await.map_err(|_| Failure::Unavailable)?;
        let current = self.lookup(name);
        let hash =
            |record: &Option<Arc<MailboxRecord>>| record.as_ref().map(|record| record.password_hash.clone());
        if hash(&current) != hash(&record) && self.verify(current.as_ref(), password).await? {
            return current.ok_or(Failure::Denied);
        }
        Err(Failure::Denied)
    }

    /// When the mailbox was last logged in to at this node, in Unix seconds; zero: not since it started.
    pub fn last_login(&self, mailbox: MailboxId) -> i64 {
        self.last_logins.lock().get(&mailbox).copied().unwrap_or(0)
    }

    fn remember(&self, mailbox: MailboxId) {
        let mut logins = self.last_logins.lock();
        if logins.len() < LAST_LOGINS || logins.contains_key(&mailbox) {
            logins.insert(mailbox, groups::now().0 / 1000);
        }
    }

    fn lookup(&self, name: Option<&Address>) -> Option<Arc<MailboxRecord>> {
        self.groups.directory().login(name?)
    }

    async fn verify(&self, record: Option<&Arc<MailboxRecord>>, password: &str) -> Result<bool, Failure> {
        if let Some(record) = record
            && self.cache.lock().knows(record, password, Instant::now())
        {
            return Ok(true);
        }
        let hash = record.map(|record| record.password_hash.clone()).filter(|hash| !hash.is_empty());
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| verify::DUMMY_HASH.to_owned());
        let owned = password.to_owned();
        let Ok(_place) = self.waiting.try_acquire() else { return Err(Failure::Unavailable) };
        let checks = Arc::clone(&self.checks).acquire_owned();
        let Ok(Ok(turn)) = tokio::time::timeout(QUEUE_TIME, checks).await else {
            return Err(Failure::Unavailable);
        };
        let check = tokio::task::spawn_blocking(move || {
            let matches = verify::matches(&owned, &hash);
            // Held by the check itself: a client that goes away does not make room for another check.
            drop(turn);
            matches
        });
        // A check that panicked over a strange hash has not matched.
        let verified = check.await.unwrap_or(false) && known;
        if let Some(record) = record.filter(|_| verified) {
            self.cache.lock().add(record, password, Instant::now());
        }
        Ok(verified)
    }
}

impl Cache {
    fn knows(&self, record: &MailboxRecord, password: &str, now: Instant) -> bool {
        // Comparing two blake3::Hash takes the same time wherever they differ.
        self.verified.get(&record.id).is_some_and(|entry| {
            entry.until > now
                && entry.directory == blake3::hash(record.password_hash.as_bytes())
                && entry.password == blake3::keyed_hash(&self.key, password.as_bytes())
        })
    }

    fn add(&mut self, record: &MailboxRecord, password: &str, now: Instant) {
        if self.verified.len() >= CACHE_SIZE {
            self.verified.retain(|_, entry| entry.until > now);
        }
        if self.verified.len() >= CACHE_SIZE {
            // Rather check hashes again than keep a queue of who came first.
            self.verified.clear();
        }
        let entry = Verified {
            password: blake3::keyed_hash(&self.key, password.as_bytes()),
            directory: blake3::hash(record.password_hash.as_bytes()),
            until: now + CACHE_TIME,
        };
        self.verified.insert(record.id, entry);
    }
}

#[cfg(test)]
mod tests {
    use quorumail_store::{PartitionId, Permissions, Quota};

    use super::*;

    fn record(hash: &str) -> MailboxRecord {
        MailboxRecord {
            id: MailboxId(1),
            address: "alice@example.org".parse().unwrap(),
            partition: PartitionId(1),
            display_name: String::new(),
            aliases: Vec::new(),
            password_hash: hash.to_owned(),
            quota: Quota::default(),
            suspended: false,
            permissions: Permissions { send: true, receive: true, login: true },
            revision: String::new(),
        }
    }

    #[test]
    fn a_verified_login_is_recognised_until_it_expires_or_the_password_changes() {
        let mut cache = Cache { key: [7; 32], verified: HashMap::new() };
        let now = Instant::now();
        cache.add(&record("hash"), "secret", now);
        assert!(cache.knows(&record("hash"), "secret", now));
        assert!(!cache.knows(&record("hash"), "Secret", now));
        assert!(!cache.knows(&record("other hash"), "secret", now));
        assert!(!cache.knows(&record("hash"), "secret", now + CACHE_TIME));
    }
}
