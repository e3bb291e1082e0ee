//! Replies of the server. RFC 5321 4.2, RFC 2034.

use std::borrow::Cow;

use crate::Reject;

/// Longest text of a reply, so that with code and CRLF a line stays within 512 octets (RFC 5321 4.5.3.1.5).
const MAX_TEXT: usize = 490;

/// One reply of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    /// RFC 5321 4.2.1.
    pub(crate) code: u16,
    /// RFC 3463; empty where RFC 2034 wants none (2yz to EHLO, 3yz).
    pub(crate) enhanced: &'static str,
    /// What a person reads.
    pub(crate) text: Cow<'static, str>,
}

impl Reply {
    pub(crate) fn new(code: u16, enhanced: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, enhanced, text: text.into() }
    }

    /// Appends the line.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.code.to_string().as_bytes());
        out.push(b' ');
        if !self.enhanced.is_empty() {
            out.extend_from_slice(self.enhanced.as_bytes());
            out.push(b' ');
        }
        // Texts may come from a backend, and from there from other systems: nothing in them can end the line.
        out.extend(
            self.text.bytes().take(MAX_TEXT).map(|b| if (0x20..0x7f).contains(&b) { b } else { b'?' }),
        );
        out.extend_from_slice(b"\r\n");
    }
}

impl From<Reject> for Reply {
    fn from(reject: Reject) -> Self {
        // A backend that answers with something else than a refusal must not turn it into an acceptance.
        let code = if (400..600).contains(&reject.code) { reject.code } else { 451 };
        Self { code, enhanced: reject.enhanced, text: Cow::Owned(reject.text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_add_a_line() {
        let mut out = Vec::new();
        Reply::from(Reject { code: 250, enhanced: "5.0.0", text: "a\r\n250 ok".into() }).write(&mut out);
        assert_eq!(out, b"451 5.0.0 a??250 ok\r\n");
    }
}
