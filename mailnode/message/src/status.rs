//! Enhanced status codes. RFC 3463.

use std::fmt;

/// An enhanced status code such as 5.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EnhancedStatus {
    /// 2 (done), 4 (not now) or 5 (never).
    pub class: u8,
    /// At most three digits.
    pub subject: u16,
    /// At most three digits.
    pub detail: u16,
}

impl EnhancedStatus {
    /// RFC 3463 3.1: no more is known than that it failed for good.
    pub const FAILED: Self = Self::new(5, 0, 0);
    /// RFC 3463 3.5: delivery time expired.
    pub const EXPIRED: Self = Self::new(4, 4, 7);

    /// The code of three numbers; `class` is 2, 4 or 5.
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        Self { class, subject, detail }
    }

    /// The code in a reply of SMTP: after the three digits of the reply code (RFC 2034 4), or at the very beginning
    /// when `reply` is only its text.
    pub fn find(reply: &str) -> Option<Self> {
        let text = match reply.as_bytes() {
            [a, b, c, b' ' | b'-', ..] if [a, b, c].iter().all(|d| d.is_ascii_digit()) => &reply[4..],
            _ => reply,
        };
        let code = text.split_ascii_whitespace().next()?;
        let mut parts = code.split('.');
        let (class, subject, detail) = (parts.next()?, parts.next()?, parts.next()?);
        let class = match class {
            "2" => 2,
            "4" => 4,
            "5" => 5,
            _ => return None,
        };
        if parts.next().is_some() {
            return None;
        }
        Some(Self { class, subject: part(subject)?, detail: part(detail)? })
    }
}

fn part(text: &str) -> Option<u16> {
    let digits = (1..=3).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

impl fmt::Display for EnhancedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_status_of_a_reply_is_found() {
        let find = |text| EnhancedStatus::find(text).map(|status| status.to_string());
        assert_eq!(find("550 5.1.1 no such user").as_deref(), Some("5.1.1"));
        assert_eq!(find("550-5.1.1 no such user").as_deref(), Some("5.1.1"));
        assert_eq!(find("4.2.2 full").as_deref(), Some("4.2.2"));
        for none in [
            "",
            "550",
            "550 no",
            "550 3.1.1 x",
            "550 5.1 x",
            "550 5.1.1.1 x",
            "550 5.1.1234",
            "550 5.+1.1",
            "5.1.\u{661}",
        ] {
            assert_eq!(find(none), None, "{none:?}");
        }
    }

    proptest! {
        #[test]
        fn no_reply_makes_it_panic(reply in ".*") {
            let _ = EnhancedStatus::find(&reply);
        }
    }
}
