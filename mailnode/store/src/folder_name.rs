//! Names of folders: which are allowed, and how they are compared. RFC 9051 5.1.

use crate::Refusal;

/// Between levels.
pub(crate) const SEPARATOR: char = '/';
/// The folder that every mailbox has; its name is compared without case (RFC 9051 5.1).
pub(crate) const INBOX: &str = "INBOX";
/// Longest level in bytes.
pub(crate) const MAX_LEVEL_BYTES: usize = 255;
/// Longest full name in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 1000;

/// The name in the form that is stored. A separator at the end is taken off: with it a client tells that it will make
/// folders below (RFC 9051 6.3.4).
pub(crate) fn normalize(name: &str) -> Result<String, Refusal> {
    let name = name.strip_suffix(SEPARATOR).unwrap_or(name);
    let (first, rest) = name.split_once(SEPARATOR).map_or((name, None), |(first, rest)| (first, Some(rest)));
    let first = if first.eq_ignore_ascii_case(INBOX) { INBOX } else { first };
    let name = match rest {
        Some(rest) => format!("{first}{SEPARATOR}{rest}"),
        None => first.to_owned(),
    };
    check(&name)?;
    Ok(name)
}

/// Refuses what cannot be stored.
pub(crate) fn check(name: &str) -> Result<(), Refusal> {
    let invalid = |why: &str| Err(Refusal::Invalid(format!("a folder name {why}")));
    if name.len() > MAX_NAME_BYTES {
        return invalid(&format!("may have at most {MAX_NAME_BYTES} bytes"));
    }
    if name.split(SEPARATOR).any(str::is_empty) {
        return invalid("may not have an empty level");
    }
    if name.split(SEPARATOR).any(|level| level.len() > MAX_LEVEL_BYTES) {
        return invalid(&format!("may have at most {MAX_LEVEL_BYTES} bytes a level"));
    }
    if name.chars().any(char::is_control) {
        return invalid("may not have control characters");
    }
    Ok(())
}

/// The levels above a name, the highest first.
pub(crate) fn parents(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices(SEPARATOR).map(|(at, _)| &name[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inbox_has_one_spelling() {
        assert_eq!(normalize("inBox").unwrap(), "INBOX");
        assert_eq!(normalize("Inbox/a").unwrap(), "INBOX/a");
        assert_eq!(normalize("a/inbox/").unwrap(), "a/inbox");
    }

    #[test]
    fn names_that_cannot_be_stored_are_refused() {
        let long = "x".repeat(256);
        let deep = "abcd/".repeat(201);
        for name in ["", "/", "/a", "a//b", "a\u{0}b", "a\r\n", &long, &deep] {
            assert!(normalize(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn parents_come_highest_first() {
        assert_eq!(parents("a/b/c").collect::<Vec<_>>(), ["a", "a/b"]);
        assert_eq!(parents("a").count(), 0);
    }
}
