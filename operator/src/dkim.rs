//! The DKIM keys of a domain: which there are, which of them sign, and when one follows another. Pure, but for making keys.
//!
//! A key is made and its record published first. It signs once the record is seen in DNS; the first key of an algorithm signs at
//! once, for unsigned mail is no better than mail whose record is not there yet. A replaced key's record stays for a time:
//! mail that it signed may still be under way.

use std::{collections::BTreeSet, fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use quorumail_authentication::{Algorithm, SigningKey};
use quorumail_crds::maildomain::{Dkim, DkimAlgorithm};
use rsa::pkcs8::EncodePrivateKey as _;
use serde::{Deserialize, Serialize};

use crate::directory::DkimKey;

/// RFC 8301 3.2.
const RSA_BITS: usize = 2048;
/// Keys of a domain that a Secret may hold; more were not made here.
const MAX_KEYS: usize = 16;

/// A key with its history.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredKey {
    /// Names its record under the domain.
    pub selector: String,
    /// How it signs.
    pub algorithm: DkimAlgorithm,
    /// PKCS #8, base64. Secret.
    private_key: String,
    /// When it was made.
    pub created: Timestamp,
    /// Since when it signs; none: its record is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Timestamp>,
    /// Since when it signs no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<Timestamp>,
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredKey")
            .field("selector", &self.selector)
            .field("algorithm", &self.algorithm)
            .field("active", &self.active)
            .field("retired", &self.retired)
            .finish_non_exhaustive()
    }
}

/// Why keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// They were changed by somebody.
    #[error("is not what the operator wrote there: {0}")]
    Unreadable(String),
    /// No key could be made.
    #[error("a key could not be made")]
    NotMade,
}

impl StoredKey {
    /// A new key, which does not sign yet. Takes up to seconds for RSA: call it off the async threads.
    pub fn make(algorithm: DkimAlgorithm, now: Timestamp) -> Result<Self, KeysError> {
        let (letter, private) = match algorithm {
            DkimAlgorithm::Rsa2048 => {
                let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, RSA_BITS)
                    .map_err(|_| KeysError::NotMade)?;
                let der = key.to_pkcs8_der().map_err(|_| KeysError::NotMade)?;
                ('r', STANDARD.encode(der.as_bytes()))
            }
            DkimAlgorithm::Ed25519 => {
                let random = ring::rand::SystemRandom::new();
                let der = ring::signature::Ed25519KeyPair::generate_pkcs8(&random)
                    .map_err(|_| KeysError::NotMade)?;
                ('e', STANDARD.encode(der.as_ref()))
            }
        };
        // The day is for people; the rest keeps two keys of one day, or of two clusters, apart.
        let selector = format!("{letter}{}-{:06x}", now.strftime("%Y%m%d"), rand::random::<u32>() >> 8);
        let key =
            Self { selector, algorithm, private_key: private, created: now, active: None, retired: None };
        key.signing_key().map(|_| key)
    }

    fn signs(&self) -> bool {
        self.active.is_some() && self.retired.is_none()
    }

    fn waits(&self) -> bool {
        self.active.is_none() && self.retired.is_none()
    }

    fn der(&self) -> Result<Vec<u8>, KeysError> {
        let wrong = || KeysError::Unreadable(format!("the key of selector {:?} is no base64", self.selector));
        STANDARD.decode(&self.private_key).map_err(|_| wrong())
    }

    fn signing_key(&self) -> Result<SigningKey, KeysError> {
        SigningKey::from_pkcs8(&self.selector, algorithm(self.algorithm), &self.der()?)
            .map_err(|error| KeysError::Unreadable(error.to_string()))
    }

    /// The text of its TXT record.
    pub fn record(&self) -> Result<String, KeysError> {
        Ok(self.signing_key()?.record())
    }
}

fn algorithm(algorithm: DkimAlgorithm) -> Algorithm {
    match algorithm {
        DkimAlgorithm::Rsa2048 => Algorithm::Rsa,
        DkimAlgorithm::Ed25519 => Algorithm::Ed25519,
    }
}

/// Reads keys from the value of a Secret, or a file.
pub fn read(text: &[u8]) -> Result<Vec<StoredKey>, KeysError> {
    // What a parser says could quote the text.
    let unreadable = |why: &str| KeysError::Unreadable(why.to_owned());
    let keys: Vec<StoredKey> =
        serde_json::from_slice(text).map_err(|_| unreadable("it is no list of keys"))?;
    if keys.len() > MAX_KEYS {
        return Err(unreadable("it has too many keys"));
    }
    let selectors: BTreeSet<&str> = keys.iter().map(|key| key.selector.as_str()).collect();
    if selectors.len() != keys.len() {
        return Err(unreadable("a selector is there twice"));
    }
    keys.iter().try_for_each(|key| key.signing_key().map(drop))?;
    Ok(keys)
}

/// The text that [`read`] reads.
pub fn write(keys: &[StoredKey]) -> String {
    serde_json::to_string_pretty(keys).expect("keys are what JSON can say")
}

/// The keys that sign now, for the mailnodes.
pub fn signing(keys: &[StoredKey]) -> Vec<DkimKey> {
    let ready = |key: &StoredKey| {
        Some(DkimKey {
            selector: key.selector.clone(),
            algorithm: algorithm(key.algorithm),
            private: key.der().ok()?,
        })
    };
    keys.iter().filter(|key| key.signs()).filter_map(ready).collect()
}

/// What should become of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The keys that stay, as they should be.
    pub keys: Vec<StoredKey>,
    /// Keys to make; they sign at once where `true`.
    pub make: Vec<(DkimAlgorithm, bool)>,
}

/// Decides. `seen`: whether the record of a selector is seen in DNS.
pub fn plan(keys: &[StoredKey], spec: &Dkim, seen: impl Fn(&str) -> bool, now: Timestamp) -> Plan {
    let age = |since: Timestamp| Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let mut plan = Plan { keys: keys.to_vec(), make: Vec::new() };
    for algorithm in [DkimAlgorithm::Rsa2048, DkimAlgorithm::Ed25519] {
        let wanted = spec.algorithms.contains(&algorithm);
        let mut own: Vec<&mut StoredKey> =
            plan.keys.iter_mut().filter(|key| key.algorithm == algorithm).collect();
        if !wanted {
            // One that never signed goes at the end, with the others whose time is over.
            own.iter_mut().filter(|key| key.retired.is_none()).for_each(|key| key.retired = Some(now));
            continue;
        }
        // The youngest that waits takes over once it is seen, or where nothing signs.
        own.sort_by_key(|key| key.created);
        let nothing_signs = !own.iter().any(|key| key.signs());
        let next = own.iter().rposition(|key| key.waits() && (nothing_signs || seen(&key.selector)));
        if let Some(next) = next {
            own[next].active = Some(now);
            for (place, key) in own.iter_mut().enumerate() {
                if place != next && key.retired.is_none() && (key.signs() || place < next) {
                    key.retired = Some(now);
                }
            }
        }
        let due = |key: &&mut StoredKey| {
            let rotation = spec.rotation.duration();
            key.signs() && !rotation.is_zero() && age(key.created) >= rotation
        };
        let is_waiting = own.iter().any(|key| key.waits());
        match own.iter().any(|key| key.signs()) {
            false => plan.make.push((algorithm, true)),
            true if own.iter().any(due) && !is_waiting => plan.make.push((algorithm, false)),
            true => {}
        }
    }
    let overlap = spec.overlap.duration();
    plan.keys.retain(|key| key.retired.is_none_or(|retired| key.active.is_some() && age(retired) < overlap));
    plan
}

/// Carries a plan out: makes what has to be made. Call it off the async threads.
pub fn carry_out(plan: Plan, now: Timestamp) -> Result<Vec<StoredKey>, KeysError> {
    let mut keys = plan.keys;
    for (algorithm, at_once) in plan.make {
        let key = StoredKey::make(algorithm, now)?;
        keys.push(StoredKey { active: at_once.then_some(now), ..key });
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + day * DAY).unwrap()
    }

    fn ed25519() -> Dkim {
        Dkim { algorithms: vec![DkimAlgorithm::Ed25519], ..Dkim::default() }
    }

    fn selectors(keys: &[DkimKey]) -> Vec<&str> {
        keys.iter().map(|key| key.selector.as_str()).collect()
    }

    #[test]
    fn the_first_keys_sign_at_once_one_of_each_algorithm() {
        let keys = carry_out(plan(&[], &Dkim::default(), |_| false, at(0)), at(0)).unwrap();
        let made: Vec<_> = keys.iter().map(|key| (key.algorithm, key.signs())).collect();
        assert_eq!(made, [(DkimAlgorithm::Rsa2048, true), (DkimAlgorithm::Ed25519, true)]);
        assert_eq!(signing(&keys).len(), 2);
        assert!(keys[0].record().unwrap().starts_with("v=DKIM1; k=rsa; p=MII"));
        assert!(keys[0].selector.starts_with("r20231114-"), "{}", keys[0].selector);
        assert_eq!(read(write(&keys).as_bytes()).unwrap(), keys);
        // And then nothing more is to be done.
        assert_eq!(plan(&keys, &Dkim::default(), |_| false, at(1)), Plan { keys, make: vec![] });
    }

    #[test]
    fn a_key_is_replaced_once_the_new_ones_record_is_seen_and_its_own_stays_for_the_overlap() {
        let first = carry_out(plan(&[], &ed25519(), |_| false, at(0)), at(0)).unwrap();
        let before = plan(&first, &ed25519(), |_| true, at(179));
        assert!(before.make.is_empty() && before.keys == first);
        // Made and published, and not used before it is seen, however long that takes.
        let both = carry_out(plan(&first, &ed25519(), |_| true, at(180)), at(180)).unwrap();
        assert_eq!(selectors(&signing(&both)), [first[0].selector.as_str()]);
        let waiting = plan(&both, &ed25519(), |selector| selector == first[0].selector, at(400));
        assert_eq!(waiting, Plan { keys: both.clone(), make: vec![] });
        let taken = plan(&both, &ed25519(), |_| true, at(401));
        assert_eq!(selectors(&signing(&taken.keys)), [both[1].selector.as_str()]);
        assert_eq!(taken.keys.len(), 2);
        assert_eq!(plan(&taken.keys, &ed25519(), |_| true, at(407)).keys.len(), 2);
        assert_eq!(plan(&taken.keys, &ed25519(), |_| true, at(408)).keys.len(), 1);
    }

    #[test]
    fn an_algorithm_that_is_not_wanted_any_more_signs_no_more() {
        let keys = carry_out(plan(&[], &Dkim::default(), |_| false, at(0)), at(0)).unwrap();
        let left = plan(&keys, &ed25519(), |_| true, at(1));
        assert_eq!(left.keys.len(), 2);
        assert_eq!(selectors(&signing(&left.keys)), [keys[1].selector.as_str()]);
        let none = Dkim { algorithms: vec![], ..Dkim::default() };
        assert!(signing(&plan(&keys, &none, |_| true, at(1)).keys).is_empty());
        // Wanted again, it gets a new key at once.
        let again = plan(&left.keys, &Dkim::default(), |_| true, at(2));
        assert_eq!(again.make, [(DkimAlgorithm::Rsa2048, true)]);
    }

    #[test]
    fn keys_are_never_printed() {
        let keys = carry_out(plan(&[], &ed25519(), |_| false, at(0)), at(0)).unwrap();
        let text = format!("{keys:?} {:?}", signing(&keys));
        assert!(!text.contains(&keys[0].private_key), "{text}");
        let broken = write(&keys).replace(&keys[0].private_key[..8], "AAAAAAAA");
        let error = read(broken.as_bytes()).unwrap_err().to_string();
        assert!(!error.contains(&keys[0].private_key[8..]), "{error}");
        assert!(read(b"[{}]").is_err());
    }
}
