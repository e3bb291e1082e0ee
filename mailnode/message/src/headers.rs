//! Header fields of a message, found without parsing what is in them. RFC 5322 2.2, RFC 6409 8.

use bytes::Bytes;

use crate::{Address, received::date};

/// More trace fields than this mean that a message runs in a circle. RFC 5321 6.3 asks for a threshold of at least 100.
pub const MAX_HOPS: usize = 100;

/// One header field as it stands in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Before the colon, without white space.
    pub name: &'a str,
    /// After the colon, with folds, without the last CRLF.
    pub value: &'a [u8],
    /// The whole field with its last CRLF.
    pub raw: &'a [u8],
}

/// The header fields from the top; ends at the empty line, at the end of the message, or at a line that is no field.
#[derive(Debug, Clone)]
pub struct Fields<'a>(&'a [u8]);

/// The header fields of a message with CRLF (or, leniently, LF) line ends.
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields(message)
}

/// Length of the first line with its line end.
fn line_length(octets: &[u8]) -> usize {
    octets.iter().position(|b| *b == b'\n').map_or(octets.len(), |end| end + 1)
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let rest = self.0;
        let mut length = line_length(rest);
        let colon = rest[..length].iter().position(|b| *b == b':')?;
        let name = std::str::from_utf8(&rest[..colon]).ok()?.trim_end_matches([' ', '\t']);
        // RFC 5322 2.2: printable US-ASCII without the colon.
        if name.is_empty() || !name.bytes().all(|b| (33..127).contains(&b)) {
            return None;
        }
        while rest.get(length).is_some_and(|b| matches!(b, b' ' | b'\t')) {
            length += line_length(&rest[length..]);
        }
        let (raw, rest) = rest.split_at(length);
        self.0 = rest;
        let value = &raw[colon + 1..];
        let value = value.strip_suffix(b"\n").unwrap_or(value);
        let value = value.strip_suffix(b"\r").unwrap_or(value);
        Some(Field { name, value, raw })
    }
}

/// The first field of this name, in any case.
pub fn find<'a>(message: &'a [u8], name: &str) -> Option<Field<'a>> {
    fields(message).find(|field| field.name.eq_ignore_ascii_case(name))
}

/// The header section with its CRLFs, without the empty line.
pub fn section(message: &[u8]) -> &[u8] {
    let length = fields(message).map(|field| field.raw.len()).sum();
    &message[..length]
}

/// Number of Received fields.
pub fn hops(message: &[u8]) -> usize {
    fields(message).filter(|field| field.name.eq_ignore_ascii_case("Received")).count()
}

/// Whether the message runs in a circle and is to be refused with 554 5.4.6 (RFC 5321 6.3).
pub fn loops(message: &[u8]) -> bool {
    hops(message) > MAX_HOPS
}

/// The fields that a submitted message lacks and is given (RFC 6409 8): Date, Message-ID and From; to stand at its
/// top. `at_millis`: now, since 1970; `id`: unique, for the Message-ID. Empty when nothing lacks.
pub fn missing_from_submission(
    message: &[u8],
    sender: &Address,
    at_millis: i64,
    id: &str,
    hostname: &str,
) -> String {
    let mut added = String::new();
    if find(message, "Date").is_none() {
        added.push_str(&format!("Date: {}\r\n", date(at_millis)));
    }
    if find(message, "From").is_none() {
        added.push_str(&format!("From: {sender}\r\n"));
    }
    if find(message, "Message-ID").is_none() {
        added.push_str(&format!("Message-ID: <{id}@{hostname}>\r\n"));
    }
    if !added.is_empty() && !starts_with_header(message) {
        // A message that is all text: without the empty line its first line would become a field.
        added.push_str("\r\n");
    }
    added
}

fn starts_with_header(message: &[u8]) -> bool {
    message.is_empty() || message.starts_with(b"\r\n") || fields(message).next().is_some()
}

/// The message with `top` before it. Adds the empty line where `message` does not begin with header fields.
pub fn prepend(top: &str, message: &[u8]) -> Bytes {
    let gap: &[u8] = if top.ends_with("\r\n\r\n") || starts_with_header(message) { b"" } else { b"\r\n" };
    [top.as_bytes(), gap, message].concat().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGE: &[u8] = b"Received: by a\r\n\tfor b\r\nreceived : by c\r\nSubject: x\r\n y: z\r\n\r\nReceived: not a field\r\n";

    #[test]
    fn fields_are_found_with_their_folds() {
        let names: Vec<&str> = fields(MESSAGE).map(|f| f.name).collect();
        assert_eq!(names, ["Received", "received", "Subject"]);
        assert_eq!(find(MESSAGE, "SUBJECT").unwrap().value, b" x\r\n y: z");
        assert_eq!(hops(MESSAGE), 2);
        assert!(MESSAGE[section(MESSAGE).len()..].starts_with(b"\r\nReceived"));
    }

    #[test]
    fn a_circle_is_seen_at_the_threshold() {
        let message = |hops: usize| ["Received: by a\r\n".repeat(hops), "\r\nx\r\n".into()].concat();
        assert!(!loops(message(MAX_HOPS).as_bytes()));
        assert!(loops(message(MAX_HOPS + 1).as_bytes()));
    }

    #[test]
    fn a_submission_gets_what_it_lacks_and_nothing_else() {
        let sender: Address = "alice@example.org".parse().unwrap();
        let add =
            |message: &str| missing_from_submission(message.as_bytes(), &sender, 0, "abc", "mx.example.org");
        assert_eq!(
            add("Subject: x\r\n\r\ntext\r\n"),
            "Date: Thu, 1 Jan 1970 00:00:00 +0000\r\nFrom: alice@example.org\r\nMessage-ID: <abc@mx.example.org>\r\n"
        );
        assert_eq!(add("Date: d\r\nFrom: a\r\nmessage-id: <x>\r\n\r\n"), "");
        assert!(add("only text\r\n").ends_with("\r\n\r\n"));
        let whole = prepend("Received: by a\r\n", b"only text\r\n");
        assert_eq!(whole, &b"Received: by a\r\n\r\nonly text\r\n"[..]);
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(message in prop::collection::vec(prop_oneof![Just(b':'), Just(b'\r'), Just(b'\n'), Just(b' '), any::<u8>()], 0..300)) {
            let length: usize = fields(&message).map(|f| f.raw.len()).sum();
            prop_assert!(length <= message.len());
            section(&message);
        }
    }
}
