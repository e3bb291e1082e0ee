//! A state machine that keeps everything in memory and, at checkpoints, in a file.
//!
//! It has two versions. The next one knows one more kind of command, mixes every command into the digest in another way and
//! writes another snapshot, all of it at format level 2. The present one fails on any of that, as a real one would.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use quorumail_consensus::{Committed, GroupId, MachineError, SnapshotReader, SnapshotWriter, StateMachine};
use quorumail_journal::Journal;

/// A command: its id and a body.
pub fn command(id: u64, body: &[u8]) -> Bytes {
    [&id.to_le_bytes()[..], body].concat().into()
}

/// Shorter bodies only count in the digest.
const KEPT_BODY: usize = 16 << 10;
/// Bytes in a chunk of a snapshot.
const CHUNK: usize = 4000;

/// A command that only the next version knows.
pub fn next_command(id: u64, body: &[u8]) -> Bytes {
    command(id, &[NEXT, body].concat())
}

/// How the body of such a command begins.
const NEXT: &[u8] = b"\xffnext";
/// The level at which the next version writes.
const NEXT_LEVEL: u32 = 2;

fn is_next(command: &[u8]) -> bool {
    command[8..].starts_with(NEXT)
}

fn id_of(command: &[u8]) -> u64 {
    u64::from_le_bytes(command[..8].try_into().expect("a command has an id"))
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
struct State {
    /// Answers by id, so that a repeated command is answered as before and changes nothing.
    answers: HashMap<u64, u64>,
    /// Ids in the order in which they took effect.
    order: Vec<u64>,
    /// Bodies of [`KEPT_BODY`] bytes and more, one behind the other, to give snapshots some size.
    bodies: Vec<u8>,
    /// Depends on every command and on their order.
    digest: u64,
    /// That of the last command.
    level: u32,
    /// Commands of the next kind.
    next: u64,
    position: Option<Vec<u8>>,
}

pub struct Toy {
    file: PathBuf,
    /// The highest format level that this version knows.
    max_level: u32,
    journal: Journal,
    groups: std::sync::Arc<Mutex<BTreeMap<GroupId, State>>>,
    /// One at a time writes the file.
    saving: Mutex<()>,
    /// Repeated commands met.
    pub repeated: AtomicU64,
    /// Bodies of the commands that were applied since the start, by log index, with the commands' ids.
    bodies: Mutex<BTreeMap<(GroupId, u64), (u64, Bytes)>>,
    /// Fails all further batches, and reads of bodies, when set.
    pub broken: std::sync::atomic::AtomicBool,
    /// Cannot be read in full when set: snapshots break off in the middle.
    pub unreadable: std::sync::atomic::AtomicBool,
}

impl Toy {
    pub fn open(file: PathBuf, journal: Journal, max_level: u32) -> Toy {
        let groups = match std::fs::read(&file) {
            Ok(bytes) => {
                postcard::from_bytes(&bytes).expect("a checkpoint that was renamed into place is whole")
            }
            Err(_) => BTreeMap::new(),
        };
        let groups = std::sync::Arc::new(Mutex::new(groups));
        Toy {
            file,
            max_level,
            journal,
            groups,
            saving: Mutex::new(()),
            repeated: AtomicU64::new(0),
            bodies: Mutex::default(),
            broken: false.into(),
            unreadable: false.into(),
        }
    }

    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    pub fn digest(&self, group: GroupId) -> (usize, u64) {
        self.groups.lock().get(&group).map_or((0, 0), |state| (state.order.len(), state.digest))
    }

    /// How many commands of the next kind were applied.
    pub fn next_commands(&self, group: GroupId) -> u64 {
        self.groups.lock().get(&group).map_or(0, |state| state.next)
    }

    /// The log index at which a command was applied.
    pub fn index_of(&self, group: GroupId, id: u64) -> Option<u64> {
        let bodies = self.bodies.lock();
        bodies.iter().find(|(at, (of, _))| at.0 == group && *of == id).map(|(at, _)| at.1)
    }

    pub fn ids(&self, group: GroupId) -> Vec<u64> {
        self.groups.lock().get(&group).map(|state| state.order.clone()).unwrap_or_default()
    }
}

impl StateMachine for Toy {
    fn position(&self, group: GroupId) -> Result<Option<Vec<u8>>, MachineError> {
        Ok(self.groups.lock().get(&group).and_then(|state| state.position.clone()))
    }

    fn apply(
        &self,
        group: GroupId,
        batch: Vec<Committed>,
        position: &[u8],
    ) -> Result<Vec<Bytes>, MachineError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(MachineError { group: group.0, reason: "broken on purpose".into() });
        }
        for committed in &batch {
            let len = u32::try_from(committed.command.len()).expect("commands are smaller than 4 GiB");
            let stored = self
                .journal
                .read_range(committed.record, committed.offset, len)
                .expect("the record is there");
            assert_eq!(stored, committed.command, "the journal holds the command where it says");
            assert!(committed.level <= self.max_level, "a level that is not known never comes here");
            let early = is_next(&committed.command) && committed.level < NEXT_LEVEL;
            assert!(!early, "nothing of a level comes before it was raised");
            let body = (id_of(&stored), stored.slice(8..));
            self.bodies.lock().insert((group, committed.index), body);
        }
        let mut groups = self.groups.lock();
        let state = groups.entry(group).or_default();
        state.position = Some(position.to_vec());
        let apply = |committed: Committed| {
            let id = id_of(&committed.command);
            let next = state.order.len() as u64;
            let answer = *state.answers.entry(id).or_insert(next);
            if answer == next {
                let mut hasher = DefaultHasher::new();
                (state.digest, &committed.command[..]).hash(&mut hasher);
                // What a command does depends on the level: replicas agree only if they see the same one.
                if committed.level >= NEXT_LEVEL {
                    committed.level.hash(&mut hasher);
                }
                state.level = committed.level;
                state.next += u64::from(is_next(&committed.command));
                state.digest = hasher.finish();
                state.order.push(id);
                let body = &committed.command[8..];
                if body.len() >= KEPT_BODY {
                    state.bodies.extend(body);
                }
            } else {
                self.repeated.fetch_add(1, Ordering::Relaxed);
            }
            Bytes::copy_from_slice(&answer.to_le_bytes())
        };
        Ok(batch.into_iter().map(apply).collect())
    }

    fn query(&self, group: GroupId, query: Bytes) -> Bytes {
        let groups = self.groups.lock();
        let count = groups.get(&group).map_or(0, |state| state.order.len() as u64);
        assert_eq!(&query[..], b"count");
        Bytes::copy_from_slice(&count.to_le_bytes())
    }

    fn snapshot(&self, group: GroupId) -> Result<Box<dyn SnapshotReader>, MachineError> {
        let state = self.groups.lock().get(&group).cloned().unwrap_or_default();
        let format = if state.level >= NEXT_LEVEL { 2 } else { 1 };
        let bytes = postcard::to_extend(&state, vec![format]).expect("the state can be encoded");
        let bytes = Bytes::from(bytes);
        let readable = match self.unreadable.load(Ordering::Relaxed) {
            true => bytes.len() / 2,
            false => bytes.len(),
        };
        let position = state.position.unwrap_or_default();
        Ok(Box::new(Reader { group, position, bytes, readable }))
    }

    fn install(&self, group: GroupId) -> Result<Box<dyn SnapshotWriter>, MachineError> {
        let max_level = self.max_level;
        Ok(Box::new(Writer { group, max_level, groups: self.groups.clone(), bytes: Vec::new() }))
    }

    fn remove(&self, group: GroupId) -> Result<(), MachineError> {
        self.groups.lock().remove(&group);
        self.checkpoint()
    }

    fn reach_level(&self, level: u32) -> Result<(), MachineError> {
        let wrong = |error: std::io::Error| MachineError { group: 0, reason: error.to_string() };
        std::fs::write(self.file.with_file_name(LEVEL_FILE), level.to_string()).map_err(wrong)
    }

    fn body(&self, group: GroupId, index: u64) -> Result<Option<Bytes>, MachineError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(MachineError { group: group.0, reason: "broken on purpose".into() });
        }
        Ok(self.bodies.lock().get(&(group, index)).map(|(_, body)| body.clone()))
    }

    fn checkpoint(&self) -> Result<(), MachineError> {
        let _turn = self.saving.lock();
        let bytes = postcard::to_stdvec(&*self.groups.lock()).expect("the state can be encoded");
        let wrong = |error: std::io::Error| MachineError { group: 0, reason: error.to_string() };
        let new = self.file.with_extension("new");
        std::fs::write(&new, bytes).map_err(wrong)?;
        std::fs::rename(&new, &self.file).map_err(wrong)
    }
}

/// Where a node keeps the level that it has reached.
const LEVEL_FILE: &str = "level";

/// The level that a node's directory is at.
pub fn level_of(dir: &std::path::Path, lowest: u32) -> u32 {
    let kept = std::fs::read_to_string(dir.join(LEVEL_FILE));
    kept.map_or(lowest, |text| text.parse().expect("a number"))
}

struct Reader {
    group: GroupId,
    position: Vec<u8>,
    bytes: Bytes,
    readable: usize,
}

impl SnapshotReader for Reader {
    fn position(&self) -> &[u8] {
        &self.position
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, MachineError> {
        let len = self.bytes.len().min(CHUNK);
        if len > self.readable {
            return Err(MachineError { group: self.group.0, reason: "rotten on purpose".into() });
        }
        self.readable -= len;
        Ok((len > 0).then(|| self.bytes.split_to(len)))
    }
}

struct Writer {
    group: GroupId,
    max_level: u32,
    groups: std::sync::Arc<Mutex<BTreeMap<GroupId, State>>>,
    bytes: Vec<u8>,
}

impl SnapshotWriter for Writer {
    fn write(&mut self, chunk: Bytes) -> Result<(), MachineError> {
        self.bytes.extend(chunk);
        Ok(())
    }

    fn finish(self: Box<Self>, position: &[u8]) -> Result<(), MachineError> {
        assert!(u32::from(self.bytes[0]) <= self.max_level, "a snapshot that is not known never comes here");
        let mut state: State = postcard::from_bytes(&self.bytes[1..])
            .map_err(|error| MachineError { group: self.group.0, reason: error.to_string() })?;
        state.position = Some(position.to_vec());
        self.groups.lock().insert(self.group, state);
        Ok(())
    }
}
