//! Prints how many appends of 8 KiB a second one group applies, how long a listing of many messages takes, and what a
//! large directory and a long queue cost:
//! `cargo run --release -p quorumail-store --example apply_rate [APPENDS]`. Bodies are not written: that is the journal's
//! part.

#![allow(clippy::print_stdout)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quorumail_journal::Position;
use quorumail_store::{
    Applied, Bodies, BodyId, BodyRef, Command, CommandId, DomainRecord, FolderId, LogCommand, MailboxId,
    MailboxRecord, ModSeq, Op, PartitionId, Permissions, Query, QueueClass, QueueEntry, QueueId,
    QueueRecipient, Quota, Reply, Resolution, Store, Timestamp, Uid, decode_outcome,
};

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
const MAILBOXES: u64 = 100;
const DIRECTORY: u64 = 100_000;
const WAITING: u64 = 1_000_000;

fn append(index: u64, mailbox: u64, body: &Bytes) -> LogCommand {
    let op = Op::Append {
        mailbox: MailboxId(mailbox),
        folder: "INBOX".to_owned(),
        flags: Default::default(),
        internal_date: Timestamp(1),
        quota: Quota::default(),
    };
    let command = Command { id: CommandId(index.into()), at: Timestamp(1), op, body: body.clone() }.encode();
    LogCommand { index, command, record: Position { segment: 1, offset: index, len: 9000 }, offset: 0 }
}

fn run(
    store: &Store,
    from: u64,
    count: u64,
    mailbox: impl Fn(u64) -> u64,
) -> Result<f64, Box<dyn std::error::Error>> {
    let body = Bytes::from(vec![b'x'; 8192]);
    let started = Instant::now();
    let mut index = from;
    while index < from + count {
        let batch = (index..index + BATCH).map(|n| append(n, mailbox(n), &body)).collect();
        index += BATCH;
        store.apply(1, batch, &index.to_be_bytes())?;
    }
    Ok((index - from) as f64 / started.elapsed().as_secs_f64())
}

/// Resident memory of this process, as Linux tells it.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.map_or("unknown".to_owned(), |line| line.trim().to_owned())
}

/// Fills the directory.
fn directory(store: &Store) -> Result<(), Box<dyn std::error::Error>> {
    let propose = |index: u64, op| {
        let id = CommandId(u128::from(index) << 64);
        let command = Command { id, at: Timestamp(1), op, body: Bytes::new() }.encode();
        LogCommand { index, command, record: Position { segment: 1, offset: index, len: 100 }, offset: 0 }
    };
    let domain = DomainRecord {
        domain: "example.org".parse()?,
        aliases: Vec::new(),
        catch_all: None,
        revision: String::new(),
    };
    store.apply(0, vec![propose(1, Op::PutDomain(domain))], b"")?;
    let record = |n: u64| -> Result<_, Box<dyn std::error::Error>> {
        Ok(MailboxRecord {
            id: MailboxId(0),
            address: format!("mailbox{n}@example.org").parse()?,
            partition: PartitionId(0),
            display_name: format!("Mailbox number {n}"),
            aliases: vec![format!("alias{n}@example.org").parse()?],
            password_hash: "$argon2id$v=19$m=19456,t=2,p=1$".repeat(3),
            quota: Quota::default(),
            suspended: false,
            permissions: Permissions { send: true, receive: true, login: true },
            revision: format!("{n:032}"),
        })
    };
    let started = Instant::now();
    for batch in 0..DIRECTORY / 100 {
        let mut commands = Vec::new();
        for n in batch * 100..(batch + 1) * 100 {
            commands.push(propose(n + 2, Op::PutMailbox { record: record(n)?, partitions: 16 }));
        }
        store.apply(0, commands, b"")?;
    }
    let rate = DIRECTORY as f64 / started.elapsed().as_secs_f64();
    println!("directory of {DIRECTORY} mailboxes: {rate:.0} changes/s, memory {}", memory());
    let address = "ALIAS77777@example.org".parse()?;
    let started = Instant::now();
    let found =
        (0..100_000).filter(|_| store.directory().resolve(&address) != Resolution::NoSuchUser).count();
    println!("resolving: {:?} each ({found} found)", started.elapsed() / 100_000);
    Ok(())
}

/// Fills a queue with entries that wait for tomorrow, and a few that are due.
fn queue(store: &Store) -> Result<(), Box<dyn std::error::Error>> {
    const GROUP: u32 = 2;
    let recipient = |next_attempt| -> Result<_, Box<dyn std::error::Error>> {
        Ok(QueueRecipient {
            address: "somebody@example.com".parse()?,
            class: QueueClass::Remote,
            attempts: 1,
            next_attempt: Timestamp(next_attempt),
            last_error: "451 4.3.0 try again later".to_owned(),
        })
    };
    let started = Instant::now();
    for batch in 0..WAITING / 100 {
        let mut commands = Vec::new();
        for n in batch * 100 + 1..=batch * 100 + 100 {
            let entry = QueueEntry {
                id: QueueId(u128::from(n) << 64 | 7),
                reverse_path: None,
                // The first hundred are due.
                recipients: vec![recipient(if n <= 100 { 0 } else { 86_400_000 + n as i64 })?],
                arrived: Timestamp(n as i64),
                size: 0,
                eight_bit: false,
            };
            let id = CommandId(u128::from(n) << 65);
            let command = Command { id, at: Timestamp(1), op: Op::Enqueue(entry), body: Bytes::new() };
            let record = Position { segment: 1, offset: n, len: 200 };
            commands.push(LogCommand { index: n, command: command.encode(), record, offset: 0 });
        }
        store.apply(GROUP, commands, b"")?;
    }
    let rate = WAITING as f64 / started.elapsed().as_secs_f64();
    println!("queue of {WAITING}: {rate:.0} entries/s, memory {}", memory());
    for (name, now) in [("100 due", 1), ("none due", -1)] {
        let started = Instant::now();
        for _ in 0..1000 {
            store.query(GROUP, &Query::QueueDue { now: Timestamp(now), limit: 100 });
        }
        println!("asking for what is due ({name}): {:?}", started.elapsed() / 1000);
    }
    Ok(())
}

/// Purges a mailbox, step by step, and says how long they take.
fn purge(store: &Store, mailbox: MailboxId) -> Result<(), Box<dyn std::error::Error>> {
    let (mut steps, mut slowest, started) = (0, Duration::ZERO, Instant::now());
    loop {
        steps += 1;
        let id = CommandId(u128::MAX - steps);
        let command = Command { id, at: Timestamp(1), op: Op::PurgeMailbox(mailbox), body: Bytes::new() };
        let record = Position { segment: 1, offset: u64::MAX, len: 100 };
        let index = u64::MAX - 1_000_000 + steps as u64;
        let begun = Instant::now();
        let command = LogCommand { index, command: command.encode(), record, offset: 0 };
        let outcomes = store.apply(1, vec![command], b"")?;
        slowest = slowest.max(begun.elapsed());
        let last = outcomes.last().ok_or("there is no answer")?;
        if !matches!(decode_outcome(last), Ok(Ok(Applied::More))) {
            break;
        }
    }
    println!("purging it: {steps} steps in {:?}, the slowest took {slowest:?}", started.elapsed());
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(100_000), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let store = Store::open(dir.path(), Arc::new(NoBodies))?;
    println!("empty store: memory {}", memory());
    println!("{MAILBOXES} mailboxes: {:.0} appends/s", run(&store, 1, count, |n| n % MAILBOXES)?);
    println!("one mailbox: {:.0} appends/s", run(&store, count + 1000, count, |_| 1_000_000)?);
    let started = Instant::now();
    store.checkpoint()?;
    println!("checkpoint: {:?}", started.elapsed());

    let (mailbox, folder) = (MailboxId(1_000_000), FolderId(1));
    let started = Instant::now();
    let select = Query::Select { mailbox, name: "INBOX".to_owned() };
    let Reply::Selected(Some(selection)) = store.query(1, &select) else {
        return Err("the folder is gone".into());
    };
    println!("selecting {} messages: {:?}", selection.folder.messages, started.elapsed());
    let (since, uids_from) = (ModSeq(selection.folder.highest_mod_seq.0 - 10), selection.folder.uid_next);
    let after = (since, Uid(u32::MAX));
    let started = Instant::now();
    store.query(1, &Query::Changes { mailbox, folder, since, after, uids_from, limit: 1000 });
    println!("the last 10 changes: {:?}", started.elapsed());
    println!("memory {}", memory());
    queue(&store)?;
    directory(&store)?;
    let started = Instant::now();
    drop(store);
    let store = Store::open(dir.path(), Arc::new(NoBodies))?;
    println!("restart: {:?}", started.elapsed());
    println!("{} mailboxes, memory {}", store.directory().mailboxes().len(), memory());
    purge(&store, mailbox)?;
    println!("memory {}", memory());
    Ok(())
}
