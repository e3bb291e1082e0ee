//! Flags of a message in the form that is stored: system flags as bits, keywords as text. RFC 9051 2.3.2.

use serde::{Deserialize, Serialize};

use crate::{Flag, Flags, Refusal, StoreFlags};

/// Most keywords on one message.
pub(crate) const MAX_KEYWORDS: usize = 64;
/// Longest keyword in bytes.
pub(crate) const MAX_KEYWORD_BYTES: usize = 128;

const SYSTEM: [&str; 5] = ["\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen"];
const DELETED: u8 = 1 << 1;
const SEEN: u8 = 1 << 4;

/// The flags of one message. Keywords are sorted by their text without case and stand there once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FlagSet {
    system: u8,
    keywords: Vec<String>,
}

impl FlagSet {
    /// From the flags of a command. `\Recent` is left out (RFC 9051 2.3.2: clients cannot set it); another unknown
    /// system flag, or one that cannot be an atom, is refused.
    pub(crate) fn new(flags: &Flags) -> Result<Self, Refusal> {
        let mut set = Self::default();
        for Flag(text) in flags {
            if let Some(bit) = SYSTEM.iter().position(|name| name.eq_ignore_ascii_case(text)) {
                set.system |= 1 << bit;
            } else if text.eq_ignore_ascii_case("\\Recent") {
                continue;
            } else if is_keyword(text) {
                set.add_keyword(text)?;
            } else {
                return Err(Refusal::Invalid(format!("{} is not a flag", text.escape_debug())));
            }
        }
        Ok(set)
    }

    /// As clients see them.
    pub(crate) fn to_flags(&self) -> Flags {
        let system = SYSTEM.iter().enumerate().filter(|(bit, _)| self.system & (1 << bit) != 0);
        let system = system.map(|(_, name)| Flag((*name).to_owned()));
        system.chain(self.keywords.iter().map(|keyword| Flag(keyword.clone()))).collect()
    }

    /// The set after a STORE. Of a keyword that is there already, the spelling stays.
    pub(crate) fn stored(&self, mode: StoreFlags, other: &Self) -> Result<Self, Refusal> {
        let mut set = self.clone();
        match mode {
            StoreFlags::Add => set.system |= other.system,
            StoreFlags::Remove => set.system &= !other.system,
            StoreFlags::Replace => set.system = other.system,
        }
        if mode != StoreFlags::Add {
            let keep = mode == StoreFlags::Replace;
            set.keywords.retain(|keyword| other.find(keyword).is_ok() == keep);
        }
        if mode != StoreFlags::Remove {
            for keyword in &other.keywords {
                set.add_keyword(keyword)?;
            }
        }
        Ok(set)
    }

    /// Keywords, sorted by their text without case.
    pub(crate) fn keywords(&self) -> &[String] {
        &self.keywords
    }

    pub(crate) fn seen(&self) -> bool {
        self.system & SEEN != 0
    }

    pub(crate) fn deleted(&self) -> bool {
        self.system & DELETED != 0
    }

    fn find(&self, keyword: &str) -> Result<usize, usize> {
        let wanted = keyword.to_ascii_lowercase();
        self.keywords.binary_search_by(|have| have.to_ascii_lowercase().cmp(&wanted))
    }

    fn add_keyword(&mut self, keyword: &str) -> Result<(), Refusal> {
        let Err(place) = self.find(keyword) else { return Ok(()) };
        if self.keywords.len() >= MAX_KEYWORDS {
            return Err(Refusal::Invalid(format!("a message may have at most {MAX_KEYWORDS} keywords")));
        }
        self.keywords.insert(place, keyword.to_owned());
        Ok(())
    }
}

/// RFC 9051 section 9: flag-keyword is an atom.
fn is_keyword(text: &str) -> bool {
    let atom = |b: u8| b.is_ascii_graphic() && !b"(){%*\"\\]".contains(&b);
    !text.is_empty() && text.len() <= MAX_KEYWORD_BYTES && text.bytes().all(atom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> FlagSet {
        FlagSet::new(&names.iter().map(|name| Flag((*name).to_owned())).collect()).unwrap()
    }

    #[test]
    fn keywords_are_compared_without_case_and_keep_their_first_spelling() {
        let have = set(&["\\seen", "Work"]);
        let after = have.stored(StoreFlags::Add, &set(&["wORK", "b"])).unwrap();
        assert_eq!(after, set(&["\\Seen", "b", "Work"]));
        let replaced = after.stored(StoreFlags::Replace, &set(&["WORK"])).unwrap();
        assert_eq!(replaced.to_flags().into_iter().map(|f| f.0).collect::<Vec<_>>(), ["Work"]);
        assert_eq!(after.stored(StoreFlags::Remove, &set(&["work", "\\Seen"])).unwrap(), set(&["b"]));
    }

    #[test]
    fn what_is_no_flag_is_refused() {
        for text in ["", "a b", "\\Other", "x\r\n", "(", "k\u{e4}se"] {
            let flags = [Flag(text.to_owned())].into_iter().collect();
            assert!(FlagSet::new(&flags).is_err(), "{text:?}");
        }
        assert_eq!(set(&["\\Recent"]), FlagSet::default());
    }
}
