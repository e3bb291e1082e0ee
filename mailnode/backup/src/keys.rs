//! Slots: the repository's master key, sealed under each key that opens it.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use crate::{
    BackupKey, RepositoryError,
    config::Kind,
    format::FORMAT,
    seal::{Sealer, TAG_LEN, check_format},
};

/// What argon2id takes for a new slot: 64 MiB and three passes (RFC 9106 4, second recommendation).
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// A slot that asks for more than this is not tried: whoever can write to the bucket could stop us with it.
const MAX_MEMORY_KIB: u32 = 256 * 1024;
const MAX_PASSES: u32 = 16;
const MAX_LANES: u32 = 16;

/// The object `keys/<id>`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Slot {
    format: u8,
    /// None: the key is random and is only hashed.
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2id: Option<Stretch>,
    nonce: String,
    sealed: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stretch {
    salt: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Slot {
    /// Seals the master key under a user's key; answers the id as well.
    pub(crate) fn new(key: &BackupKey, master: &[u8; 32]) -> (String, Self) {
        let argon2id = match key.kind() {
            Kind::Random(_) => None,
            Kind::Passphrase(_) => Some(Stretch {
                salt: BASE64_STANDARD.encode(rand::random::<[u8; 16]>()),
                memory_kib: MEMORY_KIB,
                passes: PASSES,
                lanes: LANES,
            }),
        };
        let derived = derive(key, argon2id.as_ref()).expect("fresh parameters fit the key");
        let id = id(&derived);
        let nonce: [u8; 12] = rand::random();
        let mut sealed = master.to_vec();
        Sealer::new(&derived).seal(nonce, id.as_bytes(), &mut sealed, 0);
        let slot = Self {
            format: FORMAT,
            argon2id,
            nonce: BASE64_STANDARD.encode(nonce),
            sealed: BASE64_STANDARD.encode(sealed),
        };
        (id, slot)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a slot is plain JSON")
    }

    pub(crate) fn decode(object: &str, bytes: &[u8]) -> Result<Self, RepositoryError> {
        #[derive(Deserialize)]
        struct Head {
            format: u8,
        }
        let bad = |_| RepositoryError::damaged(object, "it is no slot of a key");
        check_format(object, serde_json::from_slice::<Head>(bytes).map_err(bad)?.format)?;
        serde_json::from_slice(bytes).map_err(bad)
    }

    /// The master key, when this is the key's slot.
    pub(crate) fn open(&self, name: &str, key: &BackupKey) -> Option<[u8; 32]> {
        let derived = derive(key, self.argon2id.as_ref())?;
        let id = id(&derived);
        if id != name {
            return None;
        }
        let nonce = BASE64_STANDARD.decode(&self.nonce).ok()?.try_into().ok()?;
        let mut sealed =
            BASE64_STANDARD.decode(&self.sealed).ok().filter(|sealed| sealed.len() == 32 + TAG_LEN)?;
        Sealer::new(&derived).open(nonce, id.as_bytes(), &mut sealed)?.try_into().ok()
    }
}

/// None when the slot is for a key of another kind, or makes no sense.
fn derive(key: &BackupKey, stretch: Option<&Stretch>) -> Option<[u8; 32]> {
    match (key.kind(), stretch) {
        (Kind::Random(bytes), None) => {
            Some(blake3::derive_key("quorumail backup 1: slot of a random key", bytes))
        }
        (Kind::Passphrase(text), Some(Stretch { salt, memory_kib, passes, lanes })) => {
            if *memory_kib > MAX_MEMORY_KIB || *passes > MAX_PASSES || *lanes > MAX_LANES {
                return None;
            }
            let params = argon2::Params::new(*memory_kib, *passes, *lanes, Some(32)).ok()?;
            let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
            let mut out = [0; 32];
            argon2.hash_password_into(text.as_bytes(), &BASE64_STANDARD.decode(salt).ok()?, &mut out).ok()?;
            Some(out)
        }
        _ => None,
    }
}

/// Tells keys apart without telling anything of them.
fn id(derived: &[u8; 32]) -> String {
    let hash = blake3::derive_key("quorumail backup 1: id of a key", derived);
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_slot_opens_for_its_key_alone() {
        let master = [42; 32];
        let random = BackupKey::parse(&[0xfe; 32]).unwrap();
        let words = BackupKey::parse(b"correct horse battery staple").unwrap();
        let others = BackupKey::parse(b"incorrect horse battery staple").unwrap();
        for (key, wrong) in [(&random, &words), (&words, &random), (&words, &others)] {
            let (id, slot) = Slot::new(key, &master);
            let slot = Slot::decode("keys/x", &slot.encode()).unwrap();
            assert_eq!(slot.open(&id, key), Some(master));
            assert_eq!(slot.open(&id, wrong), None);
            assert_eq!(slot.open("0011223344556677", key), None);
        }
    }

    #[test]
    fn a_slot_that_asks_for_too_much_is_not_tried() {
        let words = BackupKey::parse(b"correct horse battery staple").unwrap();
        let (id, mut slot) = Slot::new(&words, &[1; 32]);
        slot.argon2id.as_mut().unwrap().memory_kib = u32::MAX;
        assert_eq!(slot.open(&id, &words), None);
    }

    #[test]
    fn a_slot_of_the_next_format_is_refused_with_both() {
        let error = Slot::decode("keys/a", br#"{"format": 2, "other": 1}"#).unwrap_err();
        assert_eq!(error.reason(), "NewerFormat");
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(Slot::decode("keys/a", &bytes).is_err());
        }
    }
}
