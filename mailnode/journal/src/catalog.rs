//! Which segments there are, where the floor lies, and which files wait to be used again.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{
    disk::{Disk, DiskFile},
    failure::{self, Failure},
    format::{SegmentHeader, encode_floor},
    segment::{self, Salts, UNFINISHED},
};

/// Files of retired segments that are kept to be written over. Overwriting changes no metadata of the file system, so
/// syncing it is cheaper; more than what is written within some minutes need not be kept from others.
pub(crate) const POOL_SEGMENTS: usize = 8;
/// Name of the file that tells the floor.
pub(crate) const FLOOR_FILE: &str = "floor";

/// What is known of a segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// Length of the file.
    pub(crate) bytes: u64,
    /// Once it was counted.
    pub(crate) records: Option<u64>,
    pub(crate) sealed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) segments: BTreeMap<u64, Known>,
    /// Names of files that wait to be used again.
    pub(crate) pool: Vec<String>,
    pub(crate) floor: u64,
    /// Never given out twice in the life of a process, so that a stale position finds nothing rather than another body.
    next_kept: u64,
    salts: Option<Salts>,
    pub(crate) reused: u64,
    pub(crate) made: u64,
    pub(crate) recycled: u64,
}

/// All segments of a journal.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) disk: Arc<dyn Disk>,
    /// Length that a new file gets.
    pub(crate) segment_bytes: u64,
    pub(crate) state: Mutex<State>,
    /// Serialises what changes the floor.
    floor: Mutex<()>,
    failed: Mutex<Option<Failure>>,
}

impl Catalog {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        segment_bytes: u64,
        salts: Salts,
        floor: u64,
        segments: BTreeMap<u64, Known>,
        pool: Vec<String>,
    ) -> Catalog {
        // A retired file must not get the name of one that waits already.
        let waiting = pool.iter().filter_map(|file| segment::number_of_free(file));
        let newest = segments.keys().copied().chain(waiting).max().unwrap_or(0);
        let next_kept = segment::FIRST_KEPT.max(newest + 1);
        let state = State { segments, pool, floor, next_kept, salts: Some(salts), ..State::default() };
        Catalog {
            disk,
            segment_bytes,
            state: Mutex::new(state),
            floor: Mutex::new(()),
            failed: Mutex::new(None),
        }
    }

    /// Makes a segment, from a file that waits to be used again if there is one. When this returns, its header and its
    /// name are on disk; a crash before leaves no segment of that name, so a header that does not fit is always damage.
    pub(crate) fn create(
        &self,
        number: u64,
        previous_len: u64,
    ) -> io::Result<(Box<dyn DiskFile>, SegmentHeader)> {
        let (free, salt) = {
            let mut state = self.state.lock();
            (state.pool.pop(), state.salts.as_mut().map_or(0, Salts::next))
        };
        let header = SegmentHeader { class: segment::class(number), number, previous_len, salt };
        let reused = free.is_some();
        let (file, made_as) = match free {
            Some(name) => (self.disk.open(&name)?, name),
            None => {
                let name = format!("{}{UNFINISHED}", segment::name(number));
                let file = match self.disk.create(&name, self.segment_bytes) {
                    // Votes and the last mails may still find room that a whole segment does not.
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => self.disk.create(&name, 0)?,
                    other => other?,
                };
                (file, name)
            }
        };
        file.write_at(&mut [IoSlice::new(&header.encode())], 0)?;
        file.sync_data()?;
        self.disk.rename(&made_as, &segment::name(number))?;
        self.disk.sync_dir()?;
        let known = Known { bytes: file.len()?, records: None, sealed: false };
        let mut state = self.state.lock();
        state.segments.insert(number, known);
        if reused {
            state.reused += 1;
        } else {
            state.made += 1;
        }
        Ok((file, header))
    }

    /// Whether there is such a segment.
    pub(crate) fn has(&self, number: u64) -> bool {
        self.state.lock().segments.contains_key(&number)
    }

    /// Notes that a segment is complete.
    pub(crate) fn sealed(&self, number: u64, bytes: u64, records: u64) {
        let known = Known { bytes, records: Some(records), sealed: true };
        self.state.lock().segments.insert(number, known);
    }

    /// Takes a segment out: from now on it is not there, and its file waits to be used again or is gone. The caller has
    /// checked that it may go.
    pub(crate) fn retire(&self, number: u64) -> io::Result<()> {
        let (pooled, bytes) = {
            let mut state = self.state.lock();
            let bytes = state.segments.remove(&number).map_or(0, |known| known.bytes);
            (bytes == self.segment_bytes && state.pool.len() < POOL_SEGMENTS, bytes)
        };
        match self.disk.remove(&segment::index_name(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (name, free) = (segment::name(number), segment::free_name(number));
        if pooled {
            self.disk.rename(&name, &free)?;
        } else {
            self.disk.remove(&name)?;
        }
        // Only then may its content be written over: a name that came back would lead to it.
        self.disk.sync_dir()?;
        let mut state = self.state.lock();
        state.recycled += 1;
        if pooled {
            state.pool.push(free);
        }
        tracing::debug!(segment = name, bytes, pooled, "a segment was retired");
        Ok(())
    }

    /// Moves the floor up, durably. One that is not above the present one changes nothing.
    pub(crate) fn set_floor(&self, number: u64) -> io::Result<()> {
        let _one = self.floor.lock();
        {
            let state = self.state.lock();
            let newest = state.segments.range(..segment::FIRST_KEPT).next_back().map_or(0, |(n, _)| *n);
            assert!(number <= newest, "the floor {number} lies above the newest segment {newest}");
            if number <= state.floor {
                return Ok(());
            }
        }
        let unfinished = format!("{FLOOR_FILE}{UNFINISHED}");
        let file = self.disk.create(&unfinished, 0)?;
        file.write_at(&mut [IoSlice::new(&encode_floor(number))], 0)?;
        file.sync_data()?;
        self.disk.rename(&unfinished, FLOOR_FILE)?;
        self.disk.sync_dir()?;
        self.state.lock().floor = number;
        Ok(())
    }

    /// The number that the next kept segment gets.
    pub(crate) fn next_kept(&self) -> u64 {
        let mut state = self.state.lock();
        state.next_kept += 1;
        state.next_kept - 1
    }

    /// The oldest segment of the log that belongs to its last `bytes`, the newest at least.
    pub(crate) fn last_of_log(&self, bytes: u64) -> u64 {
        let state = self.state.lock();
        let mut oldest = None;
        let mut sum = 0u64;
        for (number, known) in state.segments.range(..segment::FIRST_KEPT).rev() {
            sum += known.bytes;
            if oldest.is_some() && sum > bytes {
                break;
            }
            oldest = Some(*number);
        }
        oldest.unwrap_or(state.floor)
    }

    /// Remembers that the disk failed, here and, if it still can, on the disk: nothing is written any more.
    pub(crate) fn fail(&self, failure: &Failure) {
        let mut failed = self.failed.lock();
        if failed.is_none() {
            *failed = Some(failure.clone());
            if !failure.full {
                failure::write_marker(&*self.disk, &failure.to_string());
            }
        }
    }

    /// The first failure, if there was one.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failed.lock().clone()
    }
}
