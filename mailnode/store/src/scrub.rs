//! What a rotten record means to the store: nothing, a body that is referred to, or a log that would not open.

use std::ops::ControlFlow;

use quorumail_journal::{Class, Position};

use crate::{
    BodyRecord, LostBody, Store, StoreError, bodies::JournalBodies, body_table::BodyEntry, compaction::Live,
    keys, txn::View,
};

/// What is wrong in a segment, as the journal sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes read.
    pub bytes: u64,
    /// Records that are not what was written; with the body that each may hold, by its head.
    pub rotten: Vec<(Position, Option<BodyRecord>)>,
    /// From here on nothing can be told but by whoever knows what should be there: the side index was lost as well.
    pub lost_from: Option<u64>,
}

/// What is wrong in a segment, and who needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Bodies that are referred to.
    pub bodies: Vec<LostBody>,
    /// Rotten records that a log needs: the segment is read when the node starts.
    pub log: Vec<Position>,
    /// Rotten records that nobody needs.
    pub dead: Vec<Position>,
}

impl Store {
    /// Who needs what a scan of a segment found rotten. `is_log`: whether the logs need the segment.
    ///
    /// # Errors
    /// When the index fails.
    pub fn judge(&self, segment: u64, found: &Scrubbed, is_log: bool) -> Result<Findings, StoreError> {
        let owned: Vec<BodyRecord> = found.rotten.iter().filter_map(|(_, owner)| *owner).collect();
        let mut lost = self.live_among(&owned)?;
        if let Some(from) = found.lost_from {
            let behind = self.live_in(segment)?;
            let unread = |live: &Live| {
                live.place.record.offset >= from && self.0.bodies.read(live.place, None).is_err()
            };
            lost.extend(behind.into_iter().filter(unread));
        }
        let bodies: Vec<LostBody> =
            lost.into_iter().map(|Live { group, body, place }| LostBody { group, body, place }).collect();
        let needed = |position: &Position| bodies.iter().any(|lost| lost.place.record == *position);
        let rest = found.rotten.iter().map(|(position, _)| *position).filter(|position| !needed(position));
        let rest: Vec<Position> = rest.collect();
        let (log, dead) = if is_log { (rest, Vec::new()) } else { (Vec::new(), rest) };
        Ok(Findings { bodies, log, dead })
    }

    /// All bodies that lie in a segment, from the tables of all groups: for a segment that cannot tell itself.
    pub(crate) fn live_in(&self, segment: u64) -> Result<Vec<Live>, StoreError> {
        let mut found = Vec::new();
        for group in self.groups() {
            let Some(view) = self.view(group.number)? else { continue };
            view.scan(&[keys::BODY], &[keys::BODY], &mut |key, value| {
                let place = BodyEntry::decode(value)?.place;
                if let Some(place) = place.filter(|place| place.record.segment == segment) {
                    let body = keys::body_of(key).ok_or(StoreError::Damaged("a key of a body is none"))?;
                    found.push(Live { group: group.number, body, place });
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(found)
    }
}

impl JournalBodies {
    /// The first sealed segment from a number on, and whether the logs need it.
    pub fn next_sealed(&self, from: u64) -> Result<Option<(u64, bool)>, String> {
        let floor = self.journal.stats().floor;
        let segments = self.journal.segments().map_err(|error| error.to_string())?;
        let next =
            segments.iter().filter(|info| info.sealed && info.number >= from).min_by_key(|info| info.number);
        Ok(next.map(|info| (info.number, info.class == Class::Log && info.number >= floor)))
    }

    /// Has nothing more written to a segment in which something has rotted, if it is one of kept bodies: at the next start
    /// it would be read to its end, and the start refused. Answers whether the logs need the segment: then they must leave
    /// it behind.
    pub fn leave(&self, segment: u64) -> bool {
        let is_log = Class::of(segment) == Class::Log;
        if !is_log && let Err(error) = self.journal.end_segment(segment) {
            tracing::warn!(segment, %error, "a segment in which something has rotted could not be ended");
        }
        is_log && segment >= self.journal.stats().floor
    }

    /// Reads a sealed segment from the disk and looks for records that are not what was written. `pace` is called with the
    /// number of bytes after each: it may wait, or break off.
    ///
    /// # Errors
    /// In words, when the segment is not there any more or cannot be opened.
    pub fn scrub(
        &self,
        segment: u64,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Scrubbed, String> {
        let report = self.journal.scan(segment, &mut |bytes| pace(bytes).is_continue());
        let report = report.map_err(|error| error.to_string())?;
        // A head that is not understood belongs to nobody; it was checked against the side index's own checksum.
        let owned = |info| self.owner(info).ok().flatten();
        let rotten = report.damaged.iter().map(|info| (info.position, owned(info))).collect();
        Ok(Scrubbed { bytes: report.bytes, rotten, lost_from: report.lost_from })
    }

    /// Whether a lost body could be these bytes, by the checksum of the record that held it; none when that cannot be told.
    pub fn would_mend(&self, lost: &LostBody, bytes: &[u8]) -> Option<bool> {
        self.journal.would_mend(lost.place.record, lost.place.offset, bytes)
    }
}
