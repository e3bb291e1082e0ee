//! ENVELOPE: the header fields that mail lists show, with addresses taken apart. RFC 9051 7.5.2, RFC 5322 3.4.
//! Encoded words stay encoded: the client decodes them.

use crate::{
    mime,
    response::{Out, nil, nstring},
};

/// Most addresses of one field that are answered; a header with more is an attack or a mistake.
pub const MAX_ADDRESSES: usize = 2000;

/// What stands in an address field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `name <mailbox@host>`.
    Mailbox {
        /// Display name, unquoted; a comment after the address when there is none.
        name: Option<Vec<u8>>,
        /// Before the `@`.
        mailbox: Vec<u8>,
        /// After it; may be missing.
        host: Option<Vec<u8>>,
    },
    /// `name:`.
    GroupStart(Vec<u8>),
    /// `;`.
    GroupEnd,
}

/// Writes the envelope of a header.
pub fn write(out: &mut Out, header: &[u8]) {
    const NAMES: [&str; 10] =
        ["Date", "Subject", "From", "Sender", "Reply-To", "To", "Cc", "Bcc", "In-Reply-To", "Message-ID"];
    let mut values: [Option<Vec<u8>>; NAMES.len()] = Default::default();
    for (name, whole) in mime::fields(header) {
        if let Some(at) = NAMES.iter().position(|n| n.as_bytes().eq_ignore_ascii_case(name)) {
            values[at].get_or_insert_with(|| mime::value(whole));
        }
    }
    let [date, subject, from, sender, reply_to, to, cc, bcc, in_reply_to, message_id] = values;
    out.put(b"(");
    nstring(out, date.as_deref());
    out.put(b" ");
    nstring(out, subject.as_deref());
    let from = from.map(|value| addresses(&value)).unwrap_or_default();
    // RFC 9051 7.5.2: Sender and Reply-To are From when they are missing or empty.
    let or_from = |value: Option<Vec<u8>>| match value.map(|value| addresses(&value)) {
        Some(list) if !list.is_empty() => list,
        _ => from.clone(),
    };
    let list = |value: Option<Vec<u8>>| value.map(|value| addresses(&value)).unwrap_or_default();
    for field in [from.clone(), or_from(sender), or_from(reply_to), list(to), list(cc), list(bcc)] {
        out.put(b" ");
        write_addresses(out, &field);
    }
    for field in [in_reply_to, message_id] {
        out.put(b" ");
        nstring(out, field.as_deref());
    }
    out.put(b")");
}

fn write_addresses(out: &mut Out, list: &[Address]) {
    if list.is_empty() {
        return nil(out);
    }
    out.put(b"(");
    for address in list {
        let (name, mailbox, host) = match address {
            Address::Mailbox { name, mailbox, host } => {
                (name.as_deref(), Some(mailbox.as_slice()), host.as_deref())
            }
            // RFC 9051 7.5.2: a group starts with its name as mailbox and ends with nothing at all, both without host.
            Address::GroupStart(name) => (None, Some(name.as_slice()), None),
            Address::GroupEnd => (None, None, None),
        };
        out.put(b"(");
        nstring(out, name);
        out.put(b" NIL ");
        nstring(out, mailbox);
        out.put(b" ");
        // A missing host would mean a group, so that an address without one gets an empty host.
        match (address, host) {
            (Address::Mailbox { .. }, host) => nstring(out, Some(host.unwrap_or_default())),
            _ => nil(out),
        }
        out.put(b")");
    }
    out.put(b")");
}

/// Reads an unfolded address list, taking whatever real senders write.
pub fn addresses(value: &[u8]) -> Vec<Address> {
    let mut reader = Reader { bytes: value, at: 0 };
    let mut out = Vec::new();
    let mut in_group = false;
    let mut pending = Pending::default();
    while out.len() < MAX_ADDRESSES {
        match reader.token() {
            None => break,
            Some(Token::Special(b',')) => pending.finish(&mut out),
            Some(Token::Special(b';')) => {
                pending.finish(&mut out);
                if std::mem::take(&mut in_group) {
                    out.push(Address::GroupEnd);
                }
            }
            Some(Token::Special(b':')) if !in_group && pending.angle.is_none() => {
                out.push(Address::GroupStart(std::mem::take(&mut pending).phrase()));
                in_group = true;
            }
            Some(Token::Angle(address)) => pending.angle = Some(address),
            Some(Token::Comment(text)) => pending.comment = Some(text),
            Some(token) => pending.words.push(token),
        }
    }
    pending.finish(&mut out);
    if in_group {
        out.push(Address::GroupEnd);
    }
    out
}

#[derive(Debug)]
enum Token {
    /// An atom with dots in it.
    Atom {
        text: Vec<u8>,
        spaced: bool,
    },
    /// A quoted string, unquoted.
    Quoted {
        text: Vec<u8>,
        spaced: bool,
    },
    Comment(Vec<u8>),
    /// What stands between `<` and `>`.
    Angle(Vec<u8>),
    Special(u8),
}

/// The address being read.
#[derive(Default)]
struct Pending {
    words: Vec<Token>,
    angle: Option<Vec<u8>>,
    comment: Option<Vec<u8>>,
}

impl Pending {
    /// The words with single spaces where there was white space.
    fn phrase(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for word in &self.words {
            let (text, spaced) = match word {
                Token::Atom { text, spaced } | Token::Quoted { text, spaced } => (text.as_slice(), *spaced),
                Token::Special(b) => (std::slice::from_ref(b), false),
                Token::Comment(_) | Token::Angle(_) => continue,
            };
            if spaced && !out.is_empty() {
                out.push(b' ');
            }
            out.extend_from_slice(text);
        }
        out
    }

    fn finish(&mut self, out: &mut Vec<Address>) {
        let pending = std::mem::take(self);
        let phrase = pending.phrase();
        let (name, address) = match pending.angle {
            Some(address) => (Some(phrase).filter(|p| !p.is_empty()).or(pending.comment), address),
            None if phrase.is_empty() => return,
            None => (pending.comment, phrase),
        };
        let at = address.iter().rposition(|&b| b == b'@');
        let (mailbox, host) = match at {
            Some(at) => (address[..at].to_vec(), Some(address[at + 1..].to_vec())),
            None => (address, None),
        };
        if mailbox.is_empty() && host.is_none() && name.is_none() {
            return;
        }
        out.push(Address::Mailbox { name, mailbox, host });
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn token(&mut self) -> Option<Token> {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_whitespace()) {
            self.at += 1;
        }
        let spaced = self.at > start;
        Some(match self.peek()? {
            b'"' => Token::Quoted { text: self.quoted(), spaced },
            b'(' => Token::Comment(self.comment()),
            b'<' => Token::Angle(self.angle()),
            special @ (b',' | b';' | b':' | b'@' | b'>' | b')') => {
                self.at += 1;
                Token::Special(special)
            }
            _ => {
                let start = self.at;
                while self.peek().is_some_and(|b| !b.is_ascii_whitespace() && !b"\"(),;:<>@".contains(&b)) {
                    self.at += 1;
                }
                Token::Atom { text: self.bytes[start..self.at].to_vec(), spaced }
            }
        })
    }

    fn quoted(&mut self) -> Vec<u8> {
        self.at += 1;
        let mut out = Vec::new();
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'"' => break,
                b'\\' => {
                    out.extend(self.peek());
                    self.at += 1;
                }
                byte => out.push(byte),
            }
        }
        out
    }

    fn comment(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut depth = 0usize;
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'(' if depth == 0 => depth = 1,
                b'(' => {
                    depth += 1;
                    out.push(byte);
                }
                b')' if depth == 1 => break,
                b')' => {
                    depth -= 1;
                    out.push(byte);
                }
                b'\\' => {
                    out.extend(self.peek());
                    self.at += 1;
                }
                byte => out.push(byte),
            }
        }
        out
    }

    /// The address between angle brackets, without white space, quotes and an obsolete route (RFC 5322 4.4).
    fn angle(&mut self) -> Vec<u8> {
        self.at += 1;
        let mut out = Vec::new();
        while let Some(byte) = self.peek() {
            match byte {
                b'>' => {
                    self.at += 1;
                    break;
                }
                b'"' => out.extend(self.quoted()),
                b'(' => drop(self.comment()),
                byte => {
                    self.at += 1;
                    if !byte.is_ascii_whitespace() {
                        out.push(byte);
                    }
                }
            }
        }
        if out.first() == Some(&b'@')
            && let Some(colon) = out.iter().position(|&b| b == b':')
        {
            out.drain(..=colon);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(value: &str) -> String {
        let mut out = Out::default();
        write_addresses(&mut out, &addresses(value.as_bytes()));
        String::from_utf8(out.into_bytes()).unwrap()
    }

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(
            shown("Alice B. <alice@example.org>, bob@example.org"),
            r#"(("Alice B." NIL "alice" "example.org")(NIL NIL "bob" "example.org"))"#
        );
        assert_eq!(shown(r#""B, \"C\"" <"b c"@x.org>"#), r#"(("B, \"C\"" NIL "b c" "x.org"))"#);
        assert_eq!(shown("a@x.org (Ann (X))"), r#"(("Ann (X)" NIL "a" "x.org"))"#);
        assert_eq!(shown("=?utf-8?q?J=C3=BC?= <j@x>"), r#"(("=?utf-8?q?J=C3=BC?=" NIL "j" "x"))"#);
        assert_eq!(
            shown("team: a@x, b@y;, c@z"),
            r#"((NIL NIL "team" NIL)(NIL NIL "a" "x")(NIL NIL "b" "y")(NIL NIL NIL NIL)(NIL NIL "c" "z"))"#
        );
        assert_eq!(
            shown("undisclosed-recipients:;"),
            r#"((NIL NIL "undisclosed-recipients" NIL)(NIL NIL NIL NIL))"#
        );
        assert_eq!(shown("<@r1,@r2:a@x>"), r#"((NIL NIL "a" "x"))"#);
        assert_eq!(shown("root"), r#"((NIL NIL "root" ""))"#);
        assert_eq!(shown(" , "), "NIL");
    }

    #[test]
    fn a_missing_sender_is_the_author() {
        let mut out = Out::default();
        write(&mut out, b"From: a@x\r\nSubject: two\r\n lines\r\nMESSAGE-ID : <1@x>\r\n\r\n");
        let from = r#"((NIL NIL "a" "x"))"#;
        let want = format!(r#"(NIL "two lines" {from} {from} {from} NIL NIL NIL NIL "<1@x>")"#);
        assert_eq!(String::from_utf8(out.into_bytes()).unwrap(), want);
    }

    proptest! {
        #[test]
        fn any_value_can_be_read(value in proptest::collection::vec(prop_oneof![
            Just(b'<'), Just(b'>'), Just(b'"'), Just(b'\\'), Just(b'('), Just(b')'), Just(b','), Just(b';'), Just(b':'),
            Just(b'@'), Just(b' '), Just(b'a'), any::<u8>()], 0..60)) {
            let mut out = Out::default();
            write_addresses(&mut out, &addresses(&value));
        }
    }
}
