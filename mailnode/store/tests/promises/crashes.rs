//! What is left of an index whose unsynced end was lost is what some prefix of the log makes.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::world::*;
use quorumail_store::*;

const BATCHES: u64 = 60;
const CHECKPOINT_AFTER: u64 = 25;

fn journal_file(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "jnl")).max().unwrap()
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Writes batches and answers the fingerprint after each.
fn written(dir: &Path, checkpoint_after: Option<u64>) -> Vec<[u8; 32]> {
    let node = Node::open(dir);
    let mut fingerprints = vec![node.store.fingerprint(GROUP).unwrap()];
    for batch in 0..BATCHES {
        let command = |n: u64| {
            let op = append("INBOX", &["\\Seen"], NO_QUOTA);
            let index = batch * 3 + n + 1;
            (
                index,
                Command { id: CommandId(index.into()), at: Timestamp(1), op, body: vec![b'x'; 50].into() },
            )
        };
        node.apply(GROUP, &[command(0), command(1), command(2)]);
        if checkpoint_after == Some(batch + 1) {
            node.store.checkpoint().unwrap();
        }
        fingerprints.push(node.store.fingerprint(GROUP).unwrap());
    }
    fingerprints
}

/// Opens a damaged index and answers how many batches it holds, all of them whole.
fn batches_left(dir: &Path, fingerprints: &[[u8; 32]]) -> u64 {
    let node = Node::open(dir);
    let position = node.position(GROUP);
    assert_eq!(position % 3, 0, "a batch is there as a whole or not at all");
    assert_eq!(node.store.fingerprint(GROUP).unwrap(), fingerprints[(position / 3) as usize]);
    // And it goes on from there.
    let op = append("INBOX", &[], NO_QUOTA);
    let command = Command { id: CommandId(1 << 90), at: Timestamp(1), op, body: "y".into() };
    assert!(node.apply(GROUP, &[(position + 1, command)])[0].is_ok());
    position / 3
}

#[test]
fn a_torn_index_holds_a_prefix_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let fingerprints = written(&whole, None);
    let used =
        fs::read(journal_file(&whole)).unwrap().iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    let mut seen = Vec::new();
    for cut in 0..24u64 {
        let torn = dir.path().join(format!("torn{cut}"));
        copy_dir(&whole, &torn);
        let file = fs::OpenOptions::new().write(true).open(journal_file(&torn)).unwrap();
        // From the end down to where the format number is written, at odd places.
        file.set_len(used - cut * (used - 200) / 24 - u64::from(cut > 0)).unwrap();
        drop(file);
        seen.push(batches_left(&torn, &fingerprints));
    }
    assert_eq!(seen[0], BATCHES);
    assert!(seen.is_sorted_by(|a, b| a >= b) && seen[23] < BATCHES / 8, "{seen:?}");
}

#[test]
fn a_hole_in_what_was_not_synced_leaves_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let fingerprints = written(&whole, Some(CHECKPOINT_AFTER));
    let journal = fs::read(journal_file(&whole)).unwrap();
    let used = journal.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let (mut refused, mut kept) = (0, Vec::new());
    for hole in (4096..used).step_by(4096) {
        let damaged = dir.path().join(format!("hole{hole}"));
        copy_dir(&whole, &damaged);
        let mut bytes = journal.clone();
        bytes[hole..(hole + 4096).min(used)].fill(0);
        fs::write(journal_file(&damaged), &bytes).unwrap();
        match Store::open(&damaged, Arc::new(MemoryBodies::default())) {
            Ok(store) => {
                drop(store);
                kept.push(batches_left(&damaged, &fingerprints));
            }
            // Before the checkpoint: what was safe is gone, and that is said rather than served.
            Err(StoreError::Damaged(_) | StoreError::Index(_)) => {
                assert!(kept.is_empty(), "a hole at {hole}, after the checkpoint, is not refused");
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 2 && kept.len() > 4, "{refused} {kept:?}");
    assert!(kept.iter().all(|batches| *batches >= CHECKPOINT_AFTER), "{kept:?}");
}
