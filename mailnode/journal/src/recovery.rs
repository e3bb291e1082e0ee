//! What is done with the segments when a journal is opened.
//!
//! Segments of the log from the floor on are visited, in order: sealed ones through their side index, the newest one by
//! reading it. In that one the first invalid record is either where writing had come to when the node went down, and the
//! journal goes on there; or it is damage to something that had been safe, then the journal is refused. Segments below
//! the floor, and kept ones, only hold what others refer to: rot in them is left to whoever reads them, and to the scrubber.
//! Nothing is changed on disk before all that is checked has been found well.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};

use crate::{
    HEAD_BYTES, OpenError, Options, Position, StreamId,
    catalog::{Catalog, FLOOR_FILE, Known, POOL_SEGMENTS},
    disk::{Disk, DiskFile},
    format::{
        BadSegmentHeader, Kind, RECORD_HEADER, RECORD_MAGIC, RecordHeader, SEGMENT_HEADER, SegmentHeader,
        VERSION, decode_floor,
    },
    index::{self, Entries, Index},
    segment::{self, Salts, UNFINISHED},
    tail::Tail,
};

/// Read buffer of the scan, and step of the search for headers behind an invalid record.
const SCAN_BUFFER: usize = 1 << 20;

/// What was found: all segments, and where to write.
pub(crate) struct Recovered {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) tail: Tail,
}

/// Called for every record with the begin of its payload.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(Position, StreamId, &[u8]);

/// A segment.
struct Found {
    /// None: it is rotten, and no start needs what is in the segment.
    header: Option<SegmentHeader>,
    bytes: u64,
}

impl Found {
    fn header(&self) -> &SegmentHeader {
        self.header.as_ref().expect("a segment that a start needs was refused without its header")
    }
}

/// Opens what is on the disk, and makes a first segment where there is nothing.
pub(crate) fn recover(
    disk: Arc<dyn Disk>,
    options: &Options,
    visit: Visit<'_>,
) -> Result<Recovered, OpenError> {
    let at = |action| io_error(action, disk.path(""));
    let files = disk.list().map_err(at("list journal directory"))?;
    let floor = read_floor(&*disk)?;
    let found = find(&*disk, &files, floor)?;
    let (log, kept): (Vec<u64>, Vec<u64>) = found.keys().partition(|number| **number < segment::FIRST_KEPT);
    let floor = floor.unwrap_or(1);

    let mut known: BTreeMap<u64, Known> = BTreeMap::new();
    for (&number, Found { header, bytes }) in &found {
        let records = if header.is_some() { None } else { Some(0) };
        known.insert(number, Known { bytes: *bytes, records, sealed: true });
    }
    let mut newest = None;
    for number in log.iter().copied().filter(|number| *number >= floor) {
        match found.get(&(number + 1)) {
            Some(next) => {
                let records =
                    visit_sealed(&*disk, found[&number].header(), next.header().previous_len, visit)?;
                known.insert(
                    number,
                    Known { bytes: found[&number].bytes, records: Some(records), sealed: true },
                );
            }
            None => newest = Some(Scan::open(&*disk, number)?.run(visit)?),
        }
    }
    let unsealed = find_unsealed(&*disk, &kept, &found, &mut known)?;
    if let Some(scanned) = &newest {
        check_end(scanned)?;
    }

    // All is well: from here on it is written.
    let pool = tidy(&*disk, &files, &found, options.segment_bytes).map_err(at("tidy journal directory"))?;
    let salts = Salts(options.salt_seed);
    let catalog = Catalog::new(Arc::clone(&disk), options.segment_bytes, salts, floor, known, pool);
    for scanned in unsealed {
        let path = disk.path(&segment::name(scanned.header.number));
        let mut tail = settle(&*disk, scanned, options.segment_bytes)?;
        tail.seal(&catalog).map_err(io_error("seal", path))?;
    }
    let tail = match newest {
        Some(scanned) if scanned.sealed => {
            let (number, end) = (scanned.header.number, scanned.end);
            let records = scanned.entries.records;
            let tail = settle(&*disk, scanned, options.segment_bytes)?;
            index::write(&*disk, &tail.header, end, &tail.entries);
            catalog.sealed(number, tail.file.len().map_err(at("inspect segment in"))?, records);
            Tail::create(&catalog, number + 1, end).map_err(at("create segment in"))?
        }
        Some(scanned) => {
            let tail = settle(&*disk, scanned, options.segment_bytes)?;
            let mut state = catalog.state.lock();
            if let Some(known) = state.segments.get_mut(&tail.header.number) {
                known.sealed = false;
            }
            drop(state);
            tail
        }
        None => Tail::create(&catalog, 1, 0).map_err(at("create first segment in"))?,
    };
    Ok(Recovered { catalog: Arc::new(catalog), tail })
}

/// The floor, if one was ever set.
fn read_floor(disk: &dyn Disk) -> Result<Option<u64>, OpenError> {
    let at = |action| io_error(action, disk.path(FLOOR_FILE));
    let file = match disk.open(FLOOR_FILE) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at("open")(error)),
    };
    let len = file.len().map_err(at("inspect"))?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0).min(1024)];
    file.read_at(&mut bytes, 0).map_err(at("read"))?;
    decode_floor(&bytes).map(Some).map_err(|bad| refuse(FLOOR_FILE.to_owned(), bad))
}

/// Reads the headers of all segments and checks that the log has no gap from the floor on.
fn find(disk: &dyn Disk, files: &[String], floor: Option<u64>) -> Result<BTreeMap<u64, Found>, OpenError> {
    let mut found = BTreeMap::new();
    let (was_set, floor) = (floor.is_some(), floor.unwrap_or(1));
    for number in files.iter().filter_map(|file| segment::number_of(file)) {
        let is_needed = (floor..segment::FIRST_KEPT).contains(&number);
        let header = match open(disk, number) {
            Ok((_, header)) => Some(header),
            Err(error @ (OpenError::Damaged { .. } | OpenError::Foreign { .. })) if !is_needed => {
                tracing::error!(%error, "a segment that is not needed for the start is left as it is");
                None
            }
            Err(error) => return Err(error),
        };
        let name = segment::name(number);
        let len = disk.open(&name).and_then(|file| file.len());
        let bytes = len.map_err(io_error("inspect", disk.path(&name)))?;
        found.insert(number, Found { header, bytes });
    }
    if found.is_empty() && !was_set {
        return Ok(found);
    }
    let newest = found.range(..segment::FIRST_KEPT).next_back().map_or(floor, |(number, _)| *number);
    match (floor..=newest.max(floor)).find(|number| !found.contains_key(number)) {
        Some(missing) => Err(OpenError::Missing { segment: segment::name(missing), dir: disk.path("") }),
        None => Ok(found),
    }
}

/// Opens a segment and checks its header.
fn open(disk: &dyn Disk, number: u64) -> Result<(Box<dyn DiskFile>, SegmentHeader), OpenError> {
    let name = segment::name(number);
    let at = |action| io_error(action, disk.path(&name));
    let file = disk.open(&name).map_err(at("open segment"))?;
    let mut bytes = [0; SEGMENT_HEADER];
    if let Err(error) = file.read_at(&mut bytes, 0) {
        return Err(match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged(number, 0, "its header is cut off"),
            _ => at("read header of segment")(error),
        });
    }
    let header = SegmentHeader::decode(&bytes).map_err(|bad| refuse(name.clone(), bad))?;
    if header.number != number || header.class != segment::class(number) {
        return Err(damaged(number, 0, "its header names another segment"));
    }
    Ok((file, header))
}

fn refuse(file: String, bad: BadSegmentHeader) -> OpenError {
    match bad {
        BadSegmentHeader::Foreign => OpenError::Foreign { file },
        BadSegmentHeader::Damaged => {
            OpenError::Damaged { segment: file, offset: 0, reason: "its header's checksum does not fit" }
        }
        BadSegmentHeader::Version(found) => OpenError::Version { segment: file, found, expected: VERSION },
    }
}

/// Visits a segment that has a successor; answers how many records it has.
fn visit_sealed(
    disk: &dyn Disk,
    header: &SegmentHeader,
    end: u64,
    visit: Visit<'_>,
) -> Result<u64, OpenError> {
    let number = header.number;
    let name = segment::index_name(number);
    let index = index::read(disk, header).map_err(io_error("read", disk.path(&name)))?;
    if let Some(index) = index.filter(|index| index.end == end) {
        for record in index.iter() {
            visit(record.position, record.stream, &record.head);
        }
        return Ok(index.records);
    }
    let scanned = Scan::open(disk, number)?.run(visit)?;
    let index = rebuilt(disk, scanned, Some(end))?;
    Ok(index.records)
}

/// Makes the side index of a sealed segment anew from what a scan of it found.
fn rebuilt(disk: &dyn Disk, scanned: Scanned, end: Option<u64>) -> Result<Index, OpenError> {
    let number = scanned.header.number;
    if !scanned.sealed {
        return Err(damaged(number, scanned.end, scanned.invalid.unwrap_or("it has no seal")));
    }
    if end.is_some_and(|end| end != scanned.end) {
        return Err(damaged(number, scanned.end, "it ends elsewhere than its successor remembers"));
    }
    tracing::info!(segment = segment::name(number), "the side index of a segment was made anew");
    index::write(disk, &scanned.header, scanned.end, &scanned.entries);
    Ok(Index::of(number, scanned.end, scanned.entries))
}

/// The side index of a sealed segment, made anew if need be.
pub(crate) fn index_of(disk: &dyn Disk, number: u64) -> Result<Index, OpenError> {
    let (_, header) = open(disk, number)?;
    let name = segment::index_name(number);
    match index::read(disk, &header).map_err(io_error("read", disk.path(&name)))? {
        Some(index) => Ok(index),
        None => rebuilt(disk, Scan::open(disk, number)?.run(&mut |_, _, _| {})?, None),
    }
}

/// Looks at the kept segments; answers those that a crash left without a seal. Where something has rotted that had been safe,
/// nothing is written any more, as in a sealed one.
fn find_unsealed(
    disk: &dyn Disk,
    kept: &[u64],
    found: &BTreeMap<u64, Found>,
    known: &mut BTreeMap<u64, Known>,
) -> Result<Vec<Scanned>, OpenError> {
    let mut unsealed = Vec::new();
    for &number in kept {
        let Some(header) = &found[&number].header else { continue };
        let name = segment::index_name(number);
        let count = index::count(disk, header);
        let count = count.map_err(io_error("read", disk.path(&name)))?;
        let records = match count {
            Some(records) => records,
            None => {
                let scanned = Scan::open(disk, number)?.run(&mut |_, _, _| {})?;
                let records = scanned.entries.records;
                if scanned.sealed {
                    rebuilt(disk, scanned, None)?;
                } else if let Err(error) = check_end(&scanned) {
                    tracing::error!(%error, "a segment that is not needed for the start is left as it is");
                } else {
                    unsealed.push(scanned);
                }
                records
            }
        };
        if let Some(known) = known.get_mut(&number) {
            known.records = Some(records);
        }
    }
    Ok(unsealed)
}

/// Reads a whole segment from the device and checks every record.
pub(crate) fn verify(disk: &dyn Disk, number: u64, may_be_open: bool) -> Result<(), OpenError> {
    let scan = Scan::open(disk, number)?;
    scan.file.forget_cached().map_err(io_error("read anew", disk.path(&segment::name(number))))?;
    let scanned = scan.run(&mut |_, _, _| {})?;
    if scanned.sealed {
        return Ok(());
    }
    if !may_be_open {
        return Err(damaged(number, scanned.end, scanned.invalid.unwrap_or("it has no seal")));
    }
    check_end(&scanned)
}

/// Refuses a segment whose end is not where writing had come to, but damage to what had been safe.
fn check_end(scanned: &Scanned) -> Result<(), OpenError> {
    match scanned.behind {
        Behind::Safe => {
            let reason = scanned.invalid.unwrap_or("a record is not what was written");
            Err(damaged(scanned.header.number, scanned.end, reason))
        }
        Behind::Nothing | Behind::Unsynced => Ok(()),
    }
}

/// Leaves a segment so that it can be written on, with everything in it on disk.
fn settle(disk: &dyn Disk, scanned: Scanned, segment_bytes: u64) -> Result<Tail, OpenError> {
    let Scanned { file, header, end, marked, behind, entries, .. } = scanned;
    let name = segment::name(header.number);
    let at = |action| io_error(action, disk.path(&name));
    if matches!(behind, Behind::Unsynced) {
        // Records behind a lost one could be met again when what is written next happens to end where one begins.
        tracing::warn!(segment = name, offset = end, "cutting the torn tail of the journal");
        file.set_len(end).map_err(at("cut the torn tail of"))?;
        match file.set_len(segment_bytes.max(end)) {
            // The space is taken as it is written.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
            other => other.map_err(at("reserve space for"))?,
        }
    }
    // Records that a killed process had written but not synced are told to the visitor as safe, so they must be.
    file.sync_data().map_err(at("sync segment"))?;
    disk.sync_dir().map_err(at("sync directory of"))?;
    Ok(Tail { file, header, end, synced: end, entries, marked })
}

/// Removes what crashes have left; answers the files that wait to be used again.
fn tidy(
    disk: &dyn Disk,
    files: &[String],
    found: &BTreeMap<u64, Found>,
    segment_bytes: u64,
) -> io::Result<Vec<String>> {
    let mut pool = Vec::new();
    for file in files {
        let orphan = segment::number_of_index(file).is_some_and(|number| !found.contains_key(&number));
        let free = segment::is_free(file);
        if free && pool.len() < POOL_SEGMENTS && disk.open(file)?.len()? == segment_bytes {
            pool.push(file.clone());
        } else if free || orphan || file.ends_with(UNFINISHED) {
            disk.remove(file)?;
        }
    }
    pool.sort();
    disk.sync_dir()?;
    Ok(pool)
}

/// What lies behind the last valid record of a segment without a seal.
#[derive(Debug, Clone, Copy)]
enum Behind {
    /// Nothing that was ever a record of this segment.
    Nothing,
    /// Records of this segment that had not been safe.
    Unsynced,
    /// A record which says that what should be before it had been safe.
    Safe,
}

/// What a scan found.
pub(crate) struct Scanned {
    file: Box<dyn DiskFile>,
    header: SegmentHeader,
    /// End of the last valid record.
    end: u64,
    sealed: bool,
    /// What is wrong with the bytes that follow.
    invalid: Option<&'static str>,
    behind: Behind,
    marked: bool,
    entries: Entries,
}

/// One segment being read from its begin.
struct Scan {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    header: SegmentHeader,
    len: u64,
    /// What was read ahead, and from where on in the file.
    buffer: Vec<u8>,
    buffered: u64,
}

impl Scan {
    fn open(disk: &dyn Disk, number: u64) -> Result<Scan, OpenError> {
        let path = disk.path(&segment::name(number));
        let (file, header) = open(disk, number)?;
        let len = file.len().map_err(io_error("inspect segment", path.clone()))?;
        Ok(Scan { path, file, header, len, buffer: Vec::new(), buffered: 0 })
    }

    /// Visits records until the seal, the end, or the first that is not valid.
    fn run(mut self, visit: Visit<'_>) -> Result<Scanned, OpenError> {
        let path = self.path.clone();
        let at = || io_error("read segment", path.clone());
        let (mut end, mut marked, mut sealed) = (SEGMENT_HEADER as u64, true, false);
        let (mut invalid, mut behind) = (None, Behind::Nothing);
        let mut entries = Entries::default();
        let mut payload = Vec::new();
        while end < self.len && !sealed {
            match self.next(end, &mut payload).map_err(at())? {
                Ok(record) => {
                    let position = Position { segment: self.header.number, offset: end, len: record.len };
                    end = position.end();
                    marked = record.kind == Kind::Mark;
                    sealed = record.kind == Kind::Seal;
                    if record.kind == Kind::Record {
                        let head = &payload[..payload.len().min(HEAD_BYTES)];
                        entries.push(position, record.stream, record.payload_crc, [head]);
                        visit(position, record.stream, head);
                    }
                }
                Err(reason) => {
                    invalid = Some(reason);
                    behind = self.search(end).map_err(at())?;
                    break;
                }
            }
        }
        Ok(Scanned { file: self.file, header: self.header, end, sealed, invalid, behind, marked, entries })
    }

    /// Looks for records of this segment from `end` on.
    fn search(&self, end: u64) -> io::Result<Behind> {
        let mut behind = Behind::Nothing;
        let mut window = vec![0; SCAN_BUFFER + RECORD_HEADER];
        let mut start = end;
        while start + RECORD_HEADER as u64 <= self.len {
            let size = window.len().min(usize::try_from(self.len - start).unwrap_or(usize::MAX));
            let window = &mut window[..size];
            self.file.read_at(window, start)?;
            let mut at = 0;
            // Most of it is zeros as a rule.
            while at + RECORD_HEADER <= size && at < SCAN_BUFFER {
                if window[at..].first_chunk::<16>().is_some_and(|some| u128::from_ne_bytes(*some) == 0) {
                    at += 16;
                    continue;
                }
                if window[at..].starts_with(&RECORD_MAGIC)
                    && let Some(bytes) = window[at..].first_chunk::<RECORD_HEADER>()
                    && let Some(header) = RecordHeader::decode(bytes, &self.header, start + at as u64)
                {
                    if header.synced > end {
                        return Ok(Behind::Safe);
                    }
                    behind = Behind::Unsynced;
                }
                at += 1;
            }
            start += SCAN_BUFFER as u64;
        }
        Ok(behind)
    }

    /// Fills `into` with what the file has at `offset`, which lies within it.
    fn read(&mut self, into: &mut [u8], offset: u64) -> io::Result<()> {
        if into.len() >= SCAN_BUFFER {
            return self.file.read_at(into, offset);
        }
        let buffered = self.buffered..self.buffered + self.buffer.len() as u64;
        if !buffered.contains(&offset) || offset + into.len() as u64 > buffered.end {
            let ahead = (self.len - offset).min(SCAN_BUFFER as u64);
            self.buffer.resize(ahead as usize, 0);
            self.file.read_at(&mut self.buffer, offset)?;
            self.buffered = offset;
        }
        let from = (offset - self.buffered) as usize;
        into.copy_from_slice(&self.buffer[from..from + into.len()]);
        Ok(())
    }

    /// The record at `offset`, or what is wrong with it.
    fn next(&mut self, offset: u64, payload: &mut Vec<u8>) -> io::Result<Result<RecordHeader, &'static str>> {
        let left = self.len - offset;
        let mut bytes = [0; RECORD_HEADER];
        if left < RECORD_HEADER as u64 {
            return Ok(Err("a record's header is cut off"));
        }
        self.read(&mut bytes, offset)?;
        let Some(header) = RecordHeader::decode(&bytes, &self.header, offset) else {
            return Ok(Err("a record's header does not fit its checksum"));
        };
        if left - (RECORD_HEADER as u64) < u64::from(header.len) {
            return Ok(Err("a record is cut off"));
        }
        // The length is vouched for by the header's checksum and fits in the file.
        payload.resize(header.len as usize, 0);
        self.read(payload, offset + RECORD_HEADER as u64)?;
        if crc32c::crc32c(payload) != header.payload_crc {
            return Ok(Err("a record's payload does not fit its checksum"));
        }
        Ok(Ok(header))
    }
}

pub(crate) fn damaged(segment: u64, offset: u64, reason: &'static str) -> OpenError {
    OpenError::Damaged { segment: segment::name(segment), offset, reason }
}

pub(crate) fn io_error(action: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { action, path, source }
}
