//! A disk in memory for deterministic simulation: what was not synced is lost, kept or torn at a crash.
//!
//! All that happens follows from the seed and the calls. Written bytes are held back, sector by sector, until their
//! file is synced; a crash keeps any subset of those sectors. Names that were changed and not synced are kept up to
//! some point, as a file system with a journal does. Time is simulated too: every call takes some, which is added up
//! for whoever drives the journal to wait for.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    disk::{DirLock, Disk, DiskFile},
    segment,
};

/// Unit in which writes become durable.
const SECTOR: usize = 512;

/// How long the calls take; each takes between half and one and a half of what is given.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// One read.
    pub read: Duration,
    /// One write into the page cache.
    pub write: Duration,
    /// One sync of a file or of the directory.
    pub sync: Duration,
}

/// How often calls fail with an I/O error, in millionths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Reads.
    pub read_errors: u32,
    /// Writes.
    pub write_errors: u32,
    /// Syncs of a file or of the directory.
    pub sync_errors: u32,
}

/// A simulated disk. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    /// Of which life of the node this handle is; those from before a crash answer errors only.
    life: u64,
}

#[derive(Debug)]
struct State {
    life: u64,
    locked: bool,
    random: u64,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    safe_names: BTreeMap<String, u64>,
    /// What was done to `safe_names` since the last sync of the directory, in order.
    renamed: Vec<NameChange>,
    capacity: u64,
    timing: Timing,
    faults: Faults,
    /// Writes and syncs until the power fails.
    until_power_fails: Option<u64>,
    clock: Duration,
    owed: Duration,
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(String, u64),
    Remove(String),
    Rename(String, String),
}

#[derive(Debug, Default)]
struct Inode {
    /// What is on the platter.
    safe: Vec<u8>,
    /// What was written since, by sector.
    dirty: BTreeMap<usize, [u8; SECTOR]>,
    len: usize,
    /// Hull of what was written since the last sync.
    written: Option<Range<usize>>,
    /// Hull of what the last sync brought to the platter, and a crash since.
    latest: Range<usize>,
}

impl Inode {
    fn sector(&self, number: usize) -> [u8; SECTOR] {
        if let Some(dirty) = self.dirty.get(&number) {
            return *dirty;
        }
        let mut sector = [0; SECTOR];
        let from = (number * SECTOR).min(self.safe.len());
        let known = &self.safe[from..self.safe.len().min(from + SECTOR)];
        sector[..known.len()].copy_from_slice(known);
        sector
    }

    fn read(&self, into: &mut [u8], offset: usize) {
        let mut done = 0;
        while done < into.len() {
            let at = offset + done;
            let sector = self.sector(at / SECTOR);
            let part = &sector[at % SECTOR..];
            let len = part.len().min(into.len() - done);
            into[done..done + len].copy_from_slice(&part[..len]);
            done += len;
        }
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        self.put(bytes, offset);
        self.written = hull(self.written.take(), offset..offset + bytes.len());
    }

    fn put(&mut self, bytes: &[u8], offset: usize) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done;
            let mut sector = self.sector(at / SECTOR);
            let len = (SECTOR - at % SECTOR).min(bytes.len() - done);
            sector[at % SECTOR..at % SECTOR + len].copy_from_slice(&bytes[done..done + len]);
            self.dirty.insert(at / SECTOR, sector);
            done += len;
        }
        self.len = self.len.max(offset + bytes.len());
    }

    fn set_len(&mut self, len: usize) {
        if len < self.len {
            // What lies behind reads as zeros when the file grows again.
            let zeros = vec![0; self.len - len];
            self.put(&zeros, len);
        }
        self.len = len;
    }

    /// Takes over the sectors and the length that `keep` chooses.
    fn settle(&mut self, mut keep: impl FnMut() -> bool) {
        let dirty = std::mem::take(&mut self.dirty);
        let chosen: Vec<(usize, [u8; SECTOR])> = dirty.into_iter().filter(|_| keep()).collect();
        if keep() {
            self.safe.resize(self.len, 0);
        }
        for (number, sector) in chosen {
            let from = number * SECTOR;
            if from < self.safe.len() {
                let to = self.safe.len().min(from + SECTOR);
                self.safe[from..to].copy_from_slice(&sector[..to - from]);
            }
        }
        self.len = self.safe.len();
    }

    fn sync(&mut self) {
        self.settle(|| true);
        if let Some(written) = self.written.take() {
            self.latest = written;
        }
    }

    fn crash(&mut self, keep: impl FnMut() -> bool) {
        self.settle(keep);
        let latest = hull(self.written.take(), self.latest.clone()).unwrap_or_default();
        self.latest = latest.start.min(self.len)..latest.end.min(self.len);
    }
}

/// The range from the begin of the first to the end of the last.
fn hull(one: Option<Range<usize>>, other: Range<usize>) -> Option<Range<usize>> {
    match one.filter(|one| !one.is_empty()) {
        Some(one) if other.is_empty() => Some(one),
        Some(one) => Some(one.start.min(other.start)..one.end.max(other.end)),
        None => Some(other),
    }
}

impl State {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    fn take(&mut self, usual: Duration) {
        let micros = u64::try_from(usual.as_micros()).unwrap_or(u64::MAX / 2);
        let took = Duration::from_micros(micros / 2 + self.below(micros + 1));
        self.clock += took;
        self.owed += took;
    }

    fn fail_by_chance(&mut self, millionths: u32, what: &str) -> io::Result<()> {
        if millionths > 0 && self.below(1_000_000) < u64::from(millionths) {
            return Err(io::Error::other(format!("simulated I/O error on {what}")));
        }
        Ok(())
    }

    /// Counts a write or sync; an error when the power has failed.
    fn power(&mut self) -> io::Result<()> {
        match &mut self.until_power_fails {
            Some(0) => Err(io::Error::other("simulated loss of power")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn used(&self) -> u64 {
        self.inodes.values().map(|inode| inode.len as u64).sum()
    }

    fn grow(&self, from: u64, to: u64) -> io::Result<()> {
        if to > from && self.used().saturating_add(to - from) > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Forgets files that no name leads to.
    fn forget_unnamed(&mut self) {
        let State { inodes, names, safe_names, renamed, .. } = self;
        let pending: Vec<u64> = renamed
            .iter()
            .filter_map(|change| match change {
                NameChange::Set(_, inode) => Some(*inode),
                NameChange::Remove(_) | NameChange::Rename(..) => None,
            })
            .collect();
        inodes.retain(|inode, _| {
            names.values().chain(safe_names.values()).chain(&pending).any(|named| named == inode)
        });
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Set(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

impl SimDisk {
    /// An empty disk whose behaviour follows from `seed`.
    pub fn new(seed: u64) -> SimDisk {
        let state = State {
            life: 0,
            locked: false,
            random: seed,
            inodes: BTreeMap::new(),
            next_inode: 0,
            names: BTreeMap::new(),
            safe_names: BTreeMap::new(),
            renamed: Vec::new(),
            capacity: u64::MAX,
            timing: Timing::default(),
            faults: Faults::default(),
            until_power_fails: None,
            clock: Duration::ZERO,
            owed: Duration::ZERO,
        };
        SimDisk { state: Arc::new(Mutex::new(state)), life: 0 }
    }

    /// The node goes down: what was not synced is kept or lost by chance, and handles and locks of before are void.
    /// Answers the disk as the next life of the node sees it. Faults that were set stay set.
    #[must_use]
    pub fn crash(&self) -> SimDisk {
        let mut state = self.state.lock();
        state.life += 1;
        state.locked = false;
        state.until_power_fails = None;
        let changes = std::mem::take(&mut state.renamed);
        let kept = state.below(changes.len() as u64 + 1);
        for change in changes.into_iter().take(usize::try_from(kept).unwrap_or(usize::MAX)) {
            apply(&mut state.safe_names, &change);
        }
        state.names = state.safe_names.clone();
        state.forget_unnamed();
        // All, none or any of the sectors: each happens often enough to be met.
        let mode = state.below(4);
        let mut inodes = std::mem::take(&mut state.inodes);
        for inode in inodes.values_mut() {
            inode.crash(|| match mode {
                0 => true,
                1 => false,
                _ => state.below(2) == 0,
            });
        }
        state.inodes = inodes;
        SimDisk { state: Arc::clone(&self.state), life: state.life }
    }

    /// Sets how long calls take.
    pub fn set_timing(&self, timing: Timing) {
        self.state.lock().timing = timing;
    }

    /// Sets how often calls fail.
    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// Sets how many bytes all files may have together.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().capacity = bytes;
    }

    /// Lets the power fail after so many more writes and syncs: every later one answers an error, until
    /// [`SimDisk::crash`].
    pub fn fail_power_after(&self, operations: u64) {
        self.state.lock().until_power_fails = Some(operations);
    }

    /// Whether the power has failed as [`SimDisk::fail_power_after`] asked for, and the node has not crashed yet.
    pub fn has_lost_power(&self) -> bool {
        self.state.lock().until_power_fails == Some(0)
    }

    /// The simulated time that calls took since this was last asked.
    pub fn take_latency(&self) -> Duration {
        std::mem::take(&mut self.state.lock().owed)
    }

    /// Flips one bit, chosen by chance, among the synced bytes of all files. Answers where.
    ///
    /// What was synced last in a segment without a successor is spared: nothing on the disk vouches for it yet, so rot
    /// there looks like a write that never ended, and is not promised to be noticed.
    pub fn flip_bit(&self) -> Option<(String, u64)> {
        self.flip_bit_where(|_| true)
    }

    /// Flips one bit, chosen by chance, among the synced bytes of the sealed segments that `wanted` names by their numbers
    /// (see [`Class::of`](crate::Class::of)), and of their side indexes when `indexes` says so. Answers where; none when there is
    /// nothing that could rot.
    pub fn rot(&self, indexes: bool, wanted: impl Fn(u64) -> bool) -> Option<(String, u64)> {
        let safe_names: BTreeMap<String, u64> = self.state.lock().safe_names.clone();
        self.flip_bit_where(|name| {
            let of_index = if indexes { segment::number_of_index(name) } else { None };
            segment::number_of(name)
                .or(of_index)
                .is_some_and(|number| safe_names.contains_key(&segment::name(number + 1)) && wanted(number))
        })
    }

    fn flip_bit_where(&self, wanted: impl Fn(&str) -> bool) -> Option<(String, u64)> {
        let mut state = self.state.lock();
        let has_successor = |number| state.safe_names.contains_key(&segment::name(number + 1));
        let file = |(name, inode): (&String, &u64)| {
            let Inode { safe, latest, .. } = &state.inodes[inode];
            let last = segment::number_of(name).is_some_and(|number| !has_successor(number));
            let spared = if last { latest.clone() } else { 0..0 };
            (name.clone(), *inode, safe.len().saturating_sub(spared.len()), spared)
        };
        let files: Vec<_> = state.safe_names.iter().filter(|(name, _)| wanted(name)).map(file).collect();
        let all: usize = files.iter().map(|(_, _, len, _)| len).sum();
        let mut at = usize::try_from(state.below(all as u64)).unwrap_or(0);
        let bit = state.below(8);
        for (name, inode, len, spared) in files {
            if at < len {
                let at = if at >= spared.start { at + spared.len() } else { at };
                let inode = state.inodes.get_mut(&inode)?;
                inode.safe[at] ^= 1 << bit;
                if let Some(dirty) = inode.dirty.get_mut(&(at / SECTOR)) {
                    dirty[at % SECTOR] ^= 1 << bit;
                }
                return Some((name, at as u64));
            }
            at -= len;
        }
        None
    }

    fn with<T>(&self, run: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        if state.life != self.life {
            return Err(io::Error::other("the node that opened this has gone down"));
        }
        run(&mut state)
    }
}

impl Disk for SimDisk {
    fn lock(&self) -> io::Result<Option<DirLock>> {
        self.with(|state| {
            if std::mem::replace(&mut state.locked, true) {
                return Ok(None);
            }
            Ok(Some(Box::new(SimLock(self.clone())) as DirLock))
        })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.with(|state| Ok(state.names.keys().cloned().collect()))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        self.with(|state| {
            state.power()?;
            state.grow(0, len)?;
            state.next_inode += 1;
            let inode = state.next_inode;
            let len = usize::try_from(len).map_err(io::Error::other)?;
            state.inodes.insert(inode, Inode { len, ..Inode::default() });
            state.names.insert(name.to_owned(), inode);
            state.renamed.push(NameChange::Set(name.to_owned(), inode));
            state.forget_unnamed();
            Ok(Box::new(SimFile { disk: self.clone(), inode }) as Box<dyn DiskFile>)
        })
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.with(|state| {
            let inode = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
            Ok(Box::new(SimFile { disk: self.clone(), inode }) as Box<dyn DiskFile>)
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with(|state| {
            state.power()?;
            let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.names.insert(to.to_owned(), inode);
            state.renamed.push(NameChange::Rename(from.to_owned(), to.to_owned()));
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.with(|state| {
            state.power()?;
            state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
            state.renamed.push(NameChange::Remove(name.to_owned()));
            Ok(())
        })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.with(|state| {
            state.power()?;
            let (sync, errors) = (state.timing.sync, state.faults.sync_errors);
            state.take(sync);
            state.fail_by_chance(errors, "sync of the directory")?;
            state.renamed.clear();
            state.safe_names = state.names.clone();
            state.forget_unnamed();
            Ok(())
        })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.capacity.saturating_sub(state.used())))
    }

    fn now(&self) -> Duration {
        self.state.lock().clock
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/simulated").join(name)
    }
}

struct SimLock(SimDisk);

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if state.life == self.0.life {
            state.locked = false;
        }
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: u64,
}

impl SimFile {
    fn with<T>(&self, run: impl FnOnce(&mut State, &mut Inode) -> io::Result<T>) -> io::Result<T> {
        self.disk.with(|state| {
            // A file that was removed is still there for who has it open, but nobody asks for it by then.
            let mut inode = state.inodes.remove(&self.inode).ok_or(io::ErrorKind::NotFound)?;
            let answer = run(state, &mut inode);
            state.inodes.insert(self.inode, inode);
            answer
        })
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|_, inode| Ok(inode.len as u64))
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|state, inode| {
            let (read, errors) = (state.timing.read, state.faults.read_errors);
            state.take(read);
            state.fail_by_chance(errors, "read")?;
            let offset = usize::try_from(offset).map_err(io::Error::other)?;
            match offset.checked_add(into.len()) {
                Some(end) if end <= inode.len => inode.read(into, offset),
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
            Ok(())
        })
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.with(|state, inode| {
            let (write, errors) = (state.timing.write, state.faults.write_errors);
            state.take(write);
            let mut at = usize::try_from(offset).map_err(io::Error::other)?;
            for slice in slices.iter() {
                // Each piece may be the last that still gets there.
                state.power()?;
                state.fail_by_chance(errors, "write")?;
                // The inode is out of the map while it is at hand: its own length counts here.
                let (from, to) = (inode.len as u64, (at + slice.len()) as u64);
                if to > from && state.used().saturating_add(to) > state.capacity {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                inode.write(slice, at);
                at += slice.len();
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|state, inode| {
            state.power()?;
            if len > inode.len as u64 && state.used().saturating_add(len) > state.capacity {
                return Err(io::ErrorKind::StorageFull.into());
            }
            inode.set_len(usize::try_from(len).map_err(io::Error::other)?);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state, inode| {
            state.power()?;
            let (sync, errors) = (state.timing.sync, state.faults.sync_errors);
            state.take(sync);
            state.fail_by_chance(errors, "sync")?;
            inode.sync();
            Ok(())
        })
    }

    fn forget_cached(&self) -> io::Result<()> {
        self.with(|_, _| Ok(()))
    }
}
