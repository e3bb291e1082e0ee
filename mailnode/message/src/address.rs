//! Domains and addresses as types: what the rest of Quorumail compares and stores is always in one form.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Longest local part in octets. RFC 5321 4.5.3.1.1.
pub const MAX_LOCAL_PART: usize = 64;
/// Longest domain in octets. RFC 5321 4.5.3.1.2.
pub const MAX_DOMAIN: usize = 255;

/// Why a text is no address or domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no `@`, or nothing before it.
    #[error("an address has the form local-part@domain")]
    Form,
    /// RFC 5321 4.5.3.1.1.
    #[error("the local part is longer than {MAX_LOCAL_PART} octets")]
    LocalPartTooLong,
    /// A character that needs quoting, a control character or white space.
    #[error("the local part has a character that is not allowed")]
    LocalPartCharacter,
    /// RFC 5321 4.1.2 and RFC 1035 2.3.1.
    #[error("the domain is not a valid host name")]
    Domain,
}

/// A domain name in lower case, without a trailing dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(String);

impl Domain {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.is_empty() || name.len() > MAX_DOMAIN || !name.split('.').all(label_ok) {
            return Err(AddressError::Domain);
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

impl TryFrom<String> for Domain {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> Self {
        domain.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A mail address. The local part keeps the case it was written in; [`Address::key`] is what is compared.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    local: String,
    domain: Domain,
}

impl Address {
    /// The part before the `@`, as written.
    pub fn local(&self) -> &str {
        &self.local
    }

    /// The domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The form that is compared and looked up: all in lower case. RFC 5321 2.4 lets the receiving host decide
    /// whether the case of a local part matters; here it does not. It is an address itself, and its own key.
    pub fn key(&self) -> String {
        let local: String = self.local.chars().map(lower).collect();
        format!("{local}@{}", self.domain)
    }

    /// The same local part at another domain.
    pub fn at(&self, domain: &Domain) -> Self {
        Self { local: self.local.clone(), domain: domain.clone() }
    }
}

/// A character in lower case, if that is one character too: what several become need not be allowed in an address.
fn lower(c: char) -> char {
    let mut lower = c.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(only), None) => only,
        _ => c,
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Address {}

impl std::hash::Hash for Address {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Address {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (local, domain) = text.rsplit_once('@').ok_or(AddressError::Form)?;
        let local = match local.strip_prefix('"').and_then(|l| l.strip_suffix('"')) {
            Some(quoted) => quoted.to_owned(),
            None => local.to_owned(),
        };
        if local.is_empty() {
            return Err(AddressError::Form);
        }
        if local.len() > MAX_LOCAL_PART {
            return Err(AddressError::LocalPartTooLong);
        }
        // Dot-string only (RFC 5321 4.1.2): an address that needs quotes is refused, which keeps `<`, `>`, spaces and
        // control characters out of every place an address is later printed in.
        let atext = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
        if !local.chars().all(atext) || local.starts_with('.') || local.ends_with('.') || local.contains("..")
        {
            return Err(AddressError::LocalPartCharacter);
        }
        Ok(Self { local, domain: domain.parse()? })
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local, self.domain)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_taken_for_an_address_is_one_in_every_form(
            text in prop_oneof!["\\PC{0,40}", "[\\PC]{1,20}@[a-zA-Z0-9.-]{1,30}", "\"?[a-zA-Z0-9İẞΣ._+]{1,20}\"?@[a-zA-Z0-9.-]{1,30}"],
        ) {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(&address.to_string().parse::<Address>().unwrap(), &address);
                let by_key: Address = address.key().parse().unwrap();
                prop_assert_eq!(by_key.key(), address.key());
                prop_assert!(!address.to_string().contains(|c: char| c.is_control() || c.is_whitespace() || "<>\"".contains(c)));
            }
        }
    }

    #[test]
    fn addresses_are_compared_without_case() {
        let a: Address = "Alice@Example.ORG".parse().unwrap();
        let b: Address = "alice@example.org.".parse().unwrap();
        assert_eq!(a, b);
        assert_eq!(a.to_string(), "Alice@example.org");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "alice",
            "@x",
            "a@",
            "a b@x.org",
            "a\r\n@x.org",
            "<a@x.org>",
            "a..b@x.org",
            "a@-x.org",
            "a@x..org",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }
}
