//! Prints what large folders cost: whether appends depend on the size of the folder, and what opening one costs.
//! `cargo run --release -p quorumail-store --example large_folder [MESSAGES]`. Bodies are not written: that is the
//! journal's part.

#![allow(clippy::print_stdout)]

use std::{path::Path, sync::Arc, time::Instant};

use bytes::Bytes;
use quorumail_journal::Position;
use quorumail_store::{
    Bodies, BodyId, BodyRef, Command, CommandId, FolderId, LogCommand, MailboxId, ModSeq, Octets, Op, Query,
    Quota, Reply, Store, StoreFlags, Timestamp, Uid,
};

type Failure = Box<dyn std::error::Error>;

struct NoBodies;

impl Bodies for NoBodies {
    fn read(&self, _: BodyRef, _: Option<u32>) -> Result<Bytes, String> {
        Err("this example keeps no bodies".to_owned())
    }
    fn keep(&self, _: u32, _: Vec<(BodyId, Bytes)>) -> Result<Vec<BodyRef>, String> {
        Err("this example keeps no bodies".to_owned())
    }
}

const BATCH: u64 = 32;
/// Messages in the store before the appends that are timed, and the number of those.
const BEFORE: u64 = 100_000;
const TIMED: u64 = 20_000;
const LARGE: MailboxId = MailboxId(1);
const INBOX: FolderId = FolderId(1);

struct Log {
    store: Store,
    index: u64,
}

impl Log {
    fn open(dir: &Path) -> Result<Self, Failure> {
        Ok(Self { store: Store::open(dir, Arc::new(NoBodies))?, index: 0 })
    }

    fn command(&mut self, op: Op, body: Bytes) -> LogCommand {
        self.index += 1;
        let (index, id) = (self.index, CommandId(self.index.into()));
        let command = Command { id, at: Timestamp(1), op, body }.encode();
        LogCommand { index, command, record: Position { segment: 1, offset: index, len: 9000 }, offset: 0 }
    }

    fn apply(&mut self, op: Op) -> Result<(), Failure> {
        let command = self.command(op, Bytes::new());
        self.store.apply(1, vec![command], &self.index.to_be_bytes())?;
        Ok(())
    }

    /// Appends to mailboxes in turn; answers how many a second.
    fn append(&mut self, count: u64, mailboxes: u64) -> Result<f64, Failure> {
        let body = Bytes::from(vec![b'x'; 8192]);
        let started = Instant::now();
        for batch in 0..count / BATCH {
            let commands = (0..BATCH).map(|n| {
                let op = Op::Append {
                    mailbox: MailboxId(1 + (batch * BATCH + n) % mailboxes),
                    folder: "INBOX".to_owned(),
                    flags: Default::default(),
                    internal_date: Timestamp(1),
                    quota: Quota::default(),
                };
                self.command(op, body.clone())
            });
            let commands = commands.collect();
            self.store.apply(1, commands, &self.index.to_be_bytes())?;
        }
        Ok(count as f64 / started.elapsed().as_secs_f64())
    }

    fn select(&self, title: &str) -> Result<Vec<Uid>, Failure> {
        let started = Instant::now();
        let query = Query::Select { mailbox: LARGE, name: "INBOX".to_owned() }.encode();
        let reply = self.store.query_bytes(1, query);
        let Ok(Reply::Selected(Some(selection))) = Reply::decode(&reply) else {
            return Err("the folder is gone".into());
        };
        let ranges = selection.uids.ranges()?;
        println!(
            "{title}: {:?}, {} messages, {} bytes",
            started.elapsed(),
            selection.folder.messages,
            reply.len()
        );
        Ok(ranges.into_iter().flat_map(|(first, last)| (first.0..=last.0).map(Uid)).collect())
    }

    fn list(&self, title: &str, uids: &[Uid]) -> Result<(), Failure> {
        let started = Instant::now();
        for uids in uids.chunks(1000) {
            let (octets, max_bytes) = (Octets::Nothing, 0);
            let query = Query::Messages {
                mailbox: LARGE,
                folder: INBOX,
                uids: uids.to_vec(),
                octets,
                digests: Vec::new(),
                max_bytes,
            };
            Reply::decode(&self.store.query_bytes(1, query.encode()))?;
        }
        println!("{title}: {:?} for {} messages", started.elapsed(), uids.len());
        Ok(())
    }
}

/// Resident memory of this process, as Linux tells it.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.map_or("unknown".to_owned(), |line| line.trim().to_owned())
}

fn main() -> Result<(), Failure> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    for size in [10, 1000, BEFORE] {
        let dir = tempfile::tempdir()?;
        let mut log = Log::open(dir.path())?;
        let mailboxes = BEFORE / size;
        log.append(BEFORE, mailboxes)?;
        println!("folders of {size}: {:.0} appends/s", log.append(TIMED, mailboxes)?);
    }

    let dir = tempfile::tempdir()?;
    let mut log = Log::open(dir.path())?;
    println!("filling: {:.0} appends/s, memory {}", log.append(count, 1)?, memory());
    let uids = log.select("select, warm")?;
    log.store.checkpoint()?;
    let index = log.index;
    drop(log);
    let started = Instant::now();
    let mut log = Log { index, ..Log::open(dir.path())? };
    println!("restart: {:?}, memory {}", started.elapsed(), memory());
    log.select("select, first after the restart")?;
    log.select("select, again")?;
    log.list("list of the last, first", &uids[uids.len().saturating_sub(10_000)..])?;
    log.list("list of the last, again", &uids[uids.len().saturating_sub(10_000)..])?;
    log.list("list of all", &uids)?;

    let started = Instant::now();
    for uids in uids.chunks(1000) {
        let uids = uids.iter().copied().filter(|uid| uid.0 % 2 == 0).collect();
        let flags = [quorumail_store::Flag("\\Deleted".to_owned())].into();
        let mode = StoreFlags::Add;
        log.apply(Op::StoreFlags {
            mailbox: LARGE,
            folder: INBOX,
            uids,
            mode,
            flags,
            unchanged_since: None,
        })?;
    }
    println!("marking every other one: {:?}", started.elapsed());
    let started = Instant::now();
    for _ in 0..=count / 20_000 {
        log.apply(Op::Expunge { mailbox: LARGE, folder: INBOX, uids: None })?;
    }
    println!("expunging them: {:?}", started.elapsed());
    log.select("select with a hole at every other UID")?;
    let (since, after) = (ModSeq(1), (ModSeq(u64::MAX >> 1), Uid(0)));
    let uids_from = Uid(u32::try_from(count)?);
    let query =
        Query::Changes { mailbox: LARGE, folder: INBOX, since: after.0, after, uids_from, limit: 1000 };
    let started = Instant::now();
    log.store.query(1, &query);
    println!("nothing changed: {:?}", started.elapsed());
    let query = Query::Changes { mailbox: LARGE, folder: INBOX, since, after, uids_from, limit: 1000 };
    let started = Instant::now();
    log.store.query(1, &query);
    println!("too much was expunged: {:?}, memory {}", started.elapsed(), memory());
    Ok(())
}
