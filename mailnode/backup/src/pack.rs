//! Packs: sealed blobs one after the other, and a sealed table of contents at the end.
//!
//! Header: magic, format, three zeros, the pack's id. Each blob's nonce is the offset at which it starts. Footer: offset
//! and length of the table, magic. Every byte belongs to one of these, so a check of a pack covers all of it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    RepositoryError,
    format::{BlobRef, FORMAT, Hash, PackId, decode, encode},
    seal::{self, Compressor, Keys, Kind, Sealer, check_format, compressor, unwrap},
};

const MAGIC: [u8; 4] = *b"QMPK";
const END_MAGIC: [u8; 4] = *b"QMPE";
const HEADER_LEN: usize = 24;
const FOOTER_LEN: usize = 12;
/// A pack is closed once it has this size.
pub(crate) const PACK_BYTES: usize = 16 << 20;

/// An entry of the table of contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    kind: u8,
    hash: Hash,
    offset: u32,
    len: u32,
}

/// A pack that is being filled.
pub(crate) struct PackWriter {
    pub(crate) id: PackId,
    sealer: Sealer,
    buffer: Vec<u8>,
    entries: Vec<Entry>,
    compressor: Option<Compressor>,
}

impl PackWriter {
    pub(crate) fn new(keys: &Keys) -> Self {
        let id = PackId::random();
        let mut buffer = Vec::with_capacity(1 << 20);
        buffer.extend_from_slice(&MAGIC);
        buffer.extend_from_slice(&[FORMAT, 0, 0, 0]);
        buffer.extend_from_slice(&id.0);
        Self { id, sealer: keys.pack(id), buffer, entries: Vec::new(), compressor: compressor() }
    }

    /// Adds a blob. The plain bytes are at most [`seal::MAX_PLAIN`] long.
    pub(crate) fn add(&mut self, kind: Kind, hash: Hash, plain: &[u8]) -> BlobRef {
        assert!(plain.len() <= seal::MAX_PLAIN, "a blob of {} bytes is too long", plain.len());
        let start = self.buffer.len();
        seal::wrap(kind, hash, plain, self.compressor.as_mut(), &mut self.buffer);
        self.sealer.seal(nonce(start), &[], &mut self.buffer, start);
        let offset = u32::try_from(start).expect("a pack is closed long before it has 4 GiB");
        let len = u32::try_from(self.buffer.len() - start).expect("a blob is shorter than 4 GiB");
        self.entries.push(Entry { kind: kind as u8, hash, offset, len });
        BlobRef { hash, pack: self.id, offset, len }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.buffer.len() >= PACK_BYTES
    }

    /// The object.
    pub(crate) fn finish(mut self) -> (PackId, Bytes) {
        let start = self.buffer.len();
        let contents = encode(&self.entries);
        seal::wrap(Kind::Contents, [0; 32], &contents, None, &mut self.buffer);
        self.sealer.seal(nonce(start), &[], &mut self.buffer, start);
        let len = self.buffer.len() - start;
        for number in [start, len] {
            let number = u32::try_from(number).expect("a pack is closed long before it has 4 GiB");
            self.buffer.extend_from_slice(&number.to_le_bytes());
        }
        self.buffer.extend_from_slice(&END_MAGIC);
        (self.id, self.buffer.into())
    }
}

fn nonce(offset: usize) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&(offset as u64).to_le_bytes());
    nonce
}

/// Opens a blob that was read from its pack, and checks that it is the one that is meant.
pub(crate) fn open(keys: &Keys, kind: Kind, blob: &BlobRef, sealed: &[u8]) -> Result<Bytes, RepositoryError> {
    let (hash, plain) = open_at(keys, kind, blob.pack, blob.offset, sealed)?;
    if hash != blob.hash {
        return Err(RepositoryError::damaged(
            blob.pack.object(),
            format!("at {} lies another blob", blob.offset),
        ));
    }
    Ok(plain)
}

/// Opens whatever blob lies at a place; its own hash is checked.
pub(crate) fn open_at(
    keys: &Keys,
    kind: Kind,
    pack: PackId,
    offset: u32,
    sealed: &[u8],
) -> Result<(Hash, Bytes), RepositoryError> {
    let damaged =
        |what: &str| RepositoryError::damaged(pack.object(), format!("the blob at {offset}: {what}"));
    let mut sealed = sealed.to_vec();
    let opened = keys.pack(pack).open(nonce(offset as usize), &[], &mut sealed);
    let (hash, plain) =
        unwrap(kind, opened.ok_or_else(|| damaged("its seal is broken"))?).map_err(damaged)?;
    if keys.hash(&plain) != hash {
        return Err(damaged("its checksum is wrong"));
    }
    Ok((hash, plain))
}

/// What a check of a whole pack found.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    pub(crate) blobs: u64,
    /// Offsets of blobs that are bad, and why.
    pub(crate) bad: Vec<(u32, String)>,
}

/// Checks every byte of a pack. An error concerns the pack as a whole.
pub(crate) fn check(keys: &Keys, id: PackId, bytes: &[u8]) -> Result<Checked, RepositoryError> {
    let damaged = |what: &str| RepositoryError::damaged(id.object(), what);
    let (entries, end) = contents(keys, id, bytes)?;
    let mut checked = Checked::default();
    let mut next = HEADER_LEN;
    for entry in &entries {
        let (start, stop) = (entry.offset as usize, entry.offset as usize + entry.len as usize);
        if start != next || stop > end {
            return Err(damaged("its table of contents does not fit it"));
        }
        next = stop;
        let kind =
            kind_of(entry.kind).ok_or_else(|| damaged("its table of contents names an unknown kind"))?;
        checked.blobs += 1;
        let blob = BlobRef { hash: entry.hash, pack: id, offset: entry.offset, len: entry.len };
        if let Err(error) = open(keys, kind, &blob, &bytes[start..stop]) {
            checked.bad.push((entry.offset, error.to_string()));
        }
    }
    if next != end {
        return Err(damaged("its table of contents does not cover it"));
    }
    Ok(checked)
}

/// The table of contents, and where it starts.
fn contents(keys: &Keys, id: PackId, bytes: &[u8]) -> Result<(Vec<Entry>, usize), RepositoryError> {
    let damaged = |what: &str| RepositoryError::damaged(id.object(), what);
    if bytes.len() < HEADER_LEN + FOOTER_LEN {
        return Err(damaged("it is cut off"));
    }
    if bytes[..4] != MAGIC {
        return Err(damaged("it is no pack"));
    }
    check_format(&id.object(), bytes[4])?;
    if bytes[5..8] != [0; 3] || bytes[8..HEADER_LEN] != id.0 {
        return Err(damaged("its header is wrong"));
    }
    let footer = &bytes[bytes.len() - FOOTER_LEN..];
    let number = |at: usize| {
        let bytes = footer[at..at + 4].try_into().expect("four bytes of twelve");
        u32::from_le_bytes(bytes) as usize
    };
    let (start, len) = (number(0), number(4));
    if footer[8..] != END_MAGIC
        || start < HEADER_LEN
        || start.checked_add(len + FOOTER_LEN) != Some(bytes.len())
    {
        return Err(damaged("its footer is wrong"));
    }
    let mut sealed = bytes[start..start + len].to_vec();
    let opened = keys.pack(id).open(nonce(start), &[], &mut sealed);
    let opened = opened.ok_or_else(|| damaged("the seal of its table of contents is broken"))?;
    let (_, plain) = unwrap(Kind::Contents, opened).map_err(damaged)?;
    Ok((decode(&id.object(), &plain)?, start))
}

fn kind_of(kind: u8) -> Option<Kind> {
    [Kind::Chunk, Kind::Body, Kind::Run, Kind::Root, Kind::Resources]
        .into_iter()
        .find(|known| *known as u8 == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(keys: &Keys) -> (Vec<(Kind, Vec<u8>, BlobRef)>, PackId, Bytes) {
        let mut writer = PackWriter::new(keys);
        let contents = [
            (Kind::Body, b"Subject: x\r\n\r\n".repeat(10)),
            (Kind::Chunk, Vec::new()),
            (Kind::Run, vec![1, 2, 3]),
        ];
        let blobs = contents.map(|(kind, plain)| {
            let blob = writer.add(kind, keys.hash(&plain), &plain);
            (kind, plain, blob)
        });
        let (id, bytes) = writer.finish();
        (blobs.to_vec(), id, bytes)
    }

    fn slice<'a>(bytes: &'a [u8], blob: &BlobRef) -> &'a [u8] {
        &bytes[blob.offset as usize..(blob.offset + blob.len) as usize]
    }

    #[test]
    fn blobs_come_back_and_the_pack_checks() {
        let keys = Keys::new(&[1; 32]);
        let (blobs, id, bytes) = sample(&keys);
        for (kind, plain, blob) in &blobs {
            assert_eq!(open(&keys, *kind, blob, slice(&bytes, blob)).unwrap(), *plain);
        }
        let checked = check(&keys, id, &bytes).unwrap();
        assert!(checked.blobs == 3 && checked.bad.is_empty());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let keys = Keys::new(&[1; 32]);
        let (blobs, id, bytes) = sample(&keys);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            match check(&keys, id, &flipped) {
                Ok(checked) => {
                    let hit = |blob: &BlobRef| {
                        (blob.offset as usize..(blob.offset + blob.len) as usize).contains(&(bit / 8))
                    };
                    let (_, _, blob) = blobs.iter().find(|(_, _, blob)| hit(blob)).expect("a blob was hit");
                    assert!(
                        checked.bad.len() == 1 && checked.bad[0].0 == blob.offset,
                        "bit {bit}: {checked:?}"
                    );
                }
                Err(error) => assert!(error.is_damage(), "bit {bit}: {error}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), header: bool) {
            let keys = Keys::new(&[1; 32]);
            let id = PackId([9; 16]);
            let mut all = Vec::new();
            if header {
                all.extend_from_slice(&MAGIC);
                all.extend_from_slice(&[FORMAT, 0, 0, 0]);
                all.extend_from_slice(&id.0);
            }
            all.extend_from_slice(&bytes);
            if header && bytes.len() > 8 {
                all.extend_from_slice(&END_MAGIC);
            }
            prop_assert!(check(&keys, id, &all).is_err());
            prop_assert!(open_at(&keys, Kind::Body, id, 24, &bytes).is_err());
            let _ = decode::<Vec<Entry>>("x", &bytes);
            let _ = decode::<crate::format::GroupRoot>("x", &bytes);
            let _ = decode::<crate::format::BodyRun>("x", &bytes);
        }
    }
}
