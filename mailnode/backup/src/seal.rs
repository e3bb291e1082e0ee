//! Sealing: AES-256-GCM with keys derived from the repository's master key, and what stands inside a seal.
//!
//! Every pack and every other object has a key of its own, derived from its random name, so that an object cannot pass for
//! another and nonces within a pack can be counted. Inside a seal stands the envelope: kind, whether it is compressed,
//! length and keyed hash of the plain bytes, then the bytes.

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::{
    RepositoryError,
    format::{FORMAT, Hash, PackId},
};

/// Bytes that a seal adds.
pub(crate) const TAG_LEN: usize = 16;
/// Bytes of an envelope in front of the content.
const ENVELOPE_LEN: usize = 38;
/// Longest plain content of a blob or object, in bytes: above what the store keeps as one body.
pub(crate) const MAX_PLAIN: usize = 128 << 20;
/// Shorter content is not worth compressing.
const MIN_COMPRESSED: usize = 64;
const ZSTD_LEVEL: i32 = 3;

/// Magic bytes of objects that are sealed as a whole.
const OBJECT_MAGIC: [u8; 4] = *b"QMBO";
/// Magic, format, three zeros, nonce.
const OBJECT_HEADER: usize = 20;

/// What a blob or object is; the first byte of its envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Chunk = 1,
    Body = 2,
    Run = 3,
    Root = 4,
    Resources = 5,
    Contents = 6,
    Manifest = 7,
    Archive = 8,
}

/// The keys of a repository.
pub(crate) struct Keys {
    hash: [u8; 32],
    cut: [u8; 32],
    packs: [u8; 32],
    objects: [u8; 32],
}

/// Seals and opens what belongs to one object.
pub(crate) struct Sealer(LessSafeKey);

impl Keys {
    pub(crate) fn new(master: &[u8; 32]) -> Self {
        Self {
            hash: blake3::derive_key("quorumail backup 1: hashes of blobs", master),
            cut: blake3::derive_key("quorumail backup 1: where state is cut", master),
            packs: blake3::derive_key("quorumail backup 1: packs", master),
            objects: blake3::derive_key("quorumail backup 1: objects", master),
        }
    }

    /// Of plain bytes.
    pub(crate) fn hash(&self, bytes: &[u8]) -> Hash {
        *blake3::keyed_hash(&self.hash, bytes).as_bytes()
    }

    /// Decides where state is cut: uniform over all values.
    pub(crate) fn cut(&self, key: &[u8]) -> u32 {
        let hash = blake3::keyed_hash(&self.cut, key);
        u32::from_le_bytes(hash.as_bytes()[..4].try_into().expect("a hash has 32 bytes"))
    }

    pub(crate) fn pack(&self, id: PackId) -> Sealer {
        Sealer::new(blake3::keyed_hash(&self.packs, &id.0).as_bytes())
    }

    fn object(&self, name: &str) -> Sealer {
        Sealer::new(blake3::keyed_hash(&self.objects, name.as_bytes()).as_bytes())
    }

    /// An object that is sealed as a whole.
    pub(crate) fn seal_object(&self, name: &str, kind: Kind, plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; 12] = rand::random();
        let mut out = Vec::with_capacity(OBJECT_HEADER + ENVELOPE_LEN + plain.len() / 2);
        out.extend_from_slice(&OBJECT_MAGIC);
        out.extend_from_slice(&[FORMAT, 0, 0, 0]);
        out.extend_from_slice(&nonce);
        let header = out.clone();
        wrap(kind, self.hash(plain), plain, None, &mut out);
        self.object(name).seal(nonce, &header, &mut out, OBJECT_HEADER);
        out
    }

    /// What [`Keys::seal_object`] sealed under this name.
    pub(crate) fn open_object(
        &self,
        name: &str,
        kind: Kind,
        sealed: &[u8],
    ) -> Result<Bytes, RepositoryError> {
        let damaged = |what: &str| RepositoryError::damaged(name, what);
        let (header, rest) =
            sealed.split_at_checked(OBJECT_HEADER).ok_or_else(|| damaged("it is cut off"))?;
        if header[..4] != OBJECT_MAGIC {
            return Err(damaged("it is no object of a backup repository"));
        }
        check_format(name, header[4])?;
        let nonce = header[8..].try_into().map_err(|_| damaged("it is cut off"))?;
        let mut rest = rest.to_vec();
        let opened =
            self.object(name).open(nonce, header, &mut rest).ok_or_else(|| damaged("its seal is broken"))?;
        let (hash, plain) = unwrap(kind, opened).map_err(damaged)?;
        if self.hash(&plain) != hash {
            return Err(damaged("its checksum is wrong"));
        }
        Ok(plain)
    }
}

impl Sealer {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("the key has 256 bits")))
    }

    /// Seals `buffer[from..]` in place.
    pub(crate) fn seal(&self, nonce: [u8; 12], aad: &[u8], buffer: &mut Vec<u8>, from: usize) {
        let tag = self
            .0
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                &mut buffer[from..],
            )
            .expect("what is sealed is far shorter than AES-GCM's limit of 64 GiB");
        buffer.extend_from_slice(tag.as_ref());
    }

    /// Opens in place; none when the seal is broken.
    pub(crate) fn open<'a>(&self, nonce: [u8; 12], aad: &[u8], sealed: &'a mut [u8]) -> Option<&'a [u8]> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.open_in_place(nonce, Aad::from(aad), sealed).ok().map(|plain| &*plain)
    }
}

pub(crate) fn check_format(object: &str, found: u8) -> Result<(), RepositoryError> {
    match found {
        1..=FORMAT => Ok(()),
        0 => Err(RepositoryError::damaged(object, "it says format 0")),
        found => Err(RepositoryError::NewerFormat {
            object: object.to_owned(),
            found: found.into(),
            known: FORMAT.into(),
        }),
    }
}

/// A compressor to be used again and again.
pub(crate) type Compressor = zstd::bulk::Compressor<'static>;

/// A fresh one.
pub(crate) fn compressor() -> Option<Compressor> {
    Compressor::new(ZSTD_LEVEL).ok()
}

/// Appends the envelope and the content, compressed when that makes it shorter.
pub(crate) fn wrap(
    kind: Kind,
    hash: Hash,
    plain: &[u8],
    compressor: Option<&mut Compressor>,
    out: &mut Vec<u8>,
) {
    let compressed = (plain.len() >= MIN_COMPRESSED)
        .then(|| match compressor {
            Some(compressor) => compressor.compress(plain),
            None => zstd::bulk::compress(plain, ZSTD_LEVEL),
        })
        .and_then(Result::ok)
        .filter(|compressed| compressed.len() < plain.len());
    let len = u32::try_from(plain.len()).expect("what is stored is checked to be below 4 GiB");
    out.push(kind as u8);
    out.push(compressed.is_some().into());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&hash);
    out.extend_from_slice(compressed.as_deref().unwrap_or(plain));
}

/// The hash in an envelope, and its content. The error says what is wrong.
pub(crate) fn unwrap(kind: Kind, envelope: &[u8]) -> Result<(Hash, Bytes), &'static str> {
    let (head, content) = envelope.split_at_checked(ENVELOPE_LEN).ok_or("its envelope is cut off")?;
    if head[0] != kind as u8 {
        return Err("it is of another kind than expected");
    }
    let len = u32::from_le_bytes(head[2..6].try_into().map_err(|_| "its envelope is cut off")?) as usize;
    let hash = head[6..].try_into().map_err(|_| "its envelope is cut off")?;
    if len > MAX_PLAIN {
        return Err("it is longer than any blob may be");
    }
    let plain = match head[1] {
        0 => content.to_vec(),
        1 => zstd::bulk::decompress(content, len).map_err(|_| "it cannot be decompressed")?,
        _ => return Err("it is compressed in an unknown way"),
    };
    if plain.len() != len {
        return Err("its length is wrong");
    }
    Ok((hash, plain.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_object_opens_only_under_its_name_and_key_and_with_every_bit_as_it_was() {
        let keys = Keys::new(&[7; 32]);
        let plain =
            b"a manifest, a manifest, a manifest, a manifest, a manifest, a manifest, a manifest".to_vec();
        let sealed = keys.seal_object("backups/a", Kind::Manifest, &plain);
        assert_eq!(keys.open_object("backups/a", Kind::Manifest, &sealed).unwrap(), plain);
        assert!(keys.open_object("backups/b", Kind::Manifest, &sealed).unwrap_err().is_damage());
        assert!(keys.open_object("backups/a", Kind::Archive, &sealed).unwrap_err().is_damage());
        assert!(Keys::new(&[8; 32]).open_object("backups/a", Kind::Manifest, &sealed).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = keys.open_object("backups/a", Kind::Manifest, &flipped).unwrap_err();
            assert!(error.is_damage() && error.to_string().contains("backups/a"), "bit {bit}: {error}");
        }
        let mut newer = sealed;
        newer[4] = FORMAT + 1;
        let error = keys.open_object("backups/a", Kind::Manifest, &newer).unwrap_err();
        assert_eq!(error.reason(), "NewerFormat");
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let keys = Keys::new(&[7; 32]);
            prop_assert!(keys.open_object("x", Kind::Manifest, &bytes).is_err());
            // Authentic, and nonsense all the same.
            for kind in [Kind::Chunk, Kind::Body, Kind::Manifest] {
                let _ = unwrap(kind, &bytes);
            }
            let mut framed = vec![Kind::Body as u8, 1];
            framed.extend_from_slice(&bytes);
            let _ = unwrap(Kind::Body, &framed);
        }

        #[test]
        fn content_comes_back_from_its_envelope(plain in prop::collection::vec(0u8..4, 0..2000)) {
            let mut out = Vec::new();
            wrap(Kind::Body, [1; 32], &plain, compressor().as_mut(), &mut out);
            prop_assert_eq!(unwrap(Kind::Body, &out), Ok(([1; 32], Bytes::from(plain))));
        }
    }
}
