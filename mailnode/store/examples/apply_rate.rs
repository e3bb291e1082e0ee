//! Prints how many appends of 8 KiB a second one group applies, and how long a listing of many messages takes:
//! `cargo run --release -p quorumail-store --example apply_rate [APPENDS]`. Bodies are not written: that is the journal's
//! part.

#![allow(clippy::print_stdout)]

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use quorumail_journal::Position;
use quorumail_store::{
    Bodies, BodyRef, Command, CommandId, FolderId, LogCommand, MailboxId, ModSeq, Op, Query, Quota, Reply,
    Store, Timestamp,
};

struct NoBodies;

impl Bodies for NoBodies {
    fn read(&self, _: BodyRef, _: Option<u32>) -> Result<Bytes, String> {
        Err("this example keeps no bodies".to_owned())
    }
    fn keep(&self, _: Vec<Bytes>) -> Result<Vec<BodyRef>, String> {
        Err("this example keeps no bodies".to_owned())
    }
}

const BATCH: u64 = 32;
const MAILBOXES: u64 = 100;

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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(100_000), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let store = Store::open(dir.path(), Arc::new(NoBodies))?;
    println!("{MAILBOXES} mailboxes: {:.0} appends/s", run(&store, 1, count, |n| n % MAILBOXES)?);
    println!("one mailbox: {:.0} appends/s", run(&store, count + 1000, count, |_| 1_000_000)?);
    let started = Instant::now();
    store.checkpoint()?;
    println!("checkpoint: {:?}", started.elapsed());

    let (mailbox, folder) = (MailboxId(1_000_000), FolderId(1));
    let started = Instant::now();
    let Reply::Messages(Some((info, messages))) = store.query(1, &Query::Messages { mailbox, folder }) else {
        return Err("the folder is gone".into());
    };
    println!("listing {} messages: {:?}", messages.len(), started.elapsed());
    let since = ModSeq(info.highest_mod_seq.0 - 10);
    let started = Instant::now();
    store.query(1, &Query::Changes { mailbox, folder, since });
    println!("the last 10 changes: {:?}", started.elapsed());
    let started = Instant::now();
    drop(store);
    let store = Store::open(dir.path(), Arc::new(NoBodies))?;
    println!("restart: {:?}", started.elapsed());
    println!("position after it: {:?}", store.position(1)?);
    Ok(())
}
