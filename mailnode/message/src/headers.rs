//! The header section of a message as bytes, field by field, without understanding the fields. RFC 5322 2.2.
//!
//! Lenient: lines may end with LF alone, and names may be followed by white space (RFC 5322 4.5). The section ends
//! at the first line that is empty or no field.

use bytes::Bytes;

use crate::{Address, Domain, date::rfc5322_date};

/// A message with more Received fields than this goes in circles. RFC 5321 6.3 wants a limit of at least 100.
pub const MAX_RECEIVED: usize = 100;

/// One field of a header section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name without the colon, in the case it was written in.
    pub name: &'a [u8],
    /// The whole field with its folded lines and line ends.
    pub raw: &'a [u8],
}

impl Field<'_> {
    /// Whether it has this name; names are compared without case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// Walks the fields of a message.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

/// The fields of the message, in their order.
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let mut end = line_len(self.rest);
        let name = field_name(&self.rest[..end])?;
        while matches!(self.rest.get(end), Some(b' ' | b'\t')) {
            end += line_len(&self.rest[end..]);
        }
        let (raw, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(Field { name, raw })
    }
}

/// Length of the first line with its end; 0 only for nothing.
fn line_len(bytes: &[u8]) -> usize {
    bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1)
}

fn field_name(line: &[u8]) -> Option<&[u8]> {
    let colon = line.iter().position(|b| *b == b':')?;
    let name = line[..colon].trim_ascii_end();
    let printable = !name.is_empty() && name.iter().all(|b| (33..=126).contains(b));
    printable.then_some(name)
}

/// The header section with the line ends of its fields, without the empty line after it.
pub fn header_section(message: &[u8]) -> &[u8] {
    let length: usize = fields(message).map(|field| field.raw.len()).sum();
    &message[..length]
}

/// How many Received fields the message has. More than [`MAX_RECEIVED`]: refuse it with 554 5.4.6.
pub fn count_received(message: &[u8]) -> usize {
    fields(message).filter(|field| field.is("Received")).count()
}

/// Whether the message has a field of this name.
pub fn has_field(message: &[u8], name: &str) -> bool {
    fields(message).any(|field| field.is(name))
}

/// Whether the message has passed so many servers that it must run in a circle: refuse it with 554 5.4.6 (RFC 5321
/// 6.3).
pub fn loops(message: &[u8]) -> bool {
    count_received(message) > MAX_RECEIVED
}

/// The fields that a submitted message lacks and is given, to stand at its top: Date, From and Message-ID (RFC 6409
/// 8). Empty when nothing lacks. `id` is unique and made of letters and digits; `now_millis` is in milliseconds since
/// 1970.
pub fn missing_from_submission(
    message: &[u8],
    sender: &Address,
    now_millis: i64,
    id: &str,
    domain: &Domain,
) -> String {
    let mut added = String::new();
    if !has_field(message, "Date") {
        added.push_str(&format!("Date: {}\r\n", rfc5322_date(now_millis)));
    }
    if !has_field(message, "From") {
        added.push_str(&format!("From: <{sender}>\r\n"));
    }
    if !has_field(message, "Message-ID") {
        added.push_str(&format!("Message-ID: <{id}@{domain}>\r\n"));
    }
    added
}

/// The message with whole fields before it. A message that begins with its text has no header section at all: the new
/// one is closed by an empty line, or the text would become part of it.
pub fn prepend(top: &str, message: &[u8]) -> Bytes {
    let begins_with_header =
        message.is_empty() || message.starts_with(b"\r\n") || fields(message).next().is_some();
    let gap: &[u8] = if top.is_empty() || begins_with_header { b"" } else { b"\r\n" };
    [top.as_bytes(), gap, message].concat().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGE: &[u8] =
        b"Received: from a\r\n\tby b\r\nreceived: x\r\nSubject : hi\r\n folded\r\n\r\nReceived: body\r\n";

    fn complete(body: &[u8]) -> String {
        let domain = "example.org".parse().unwrap();
        let sender = "a@example.org".parse().unwrap();
        let done = prepend(&missing_from_submission(body, &sender, 0, "id1", &domain), body);
        String::from_utf8(done.to_vec()).unwrap()
    }

    #[test]
    fn fields_are_found_up_to_the_empty_line() {
        let names: Vec<_> = fields(MESSAGE).map(|f| String::from_utf8_lossy(f.name).into_owned()).collect();
        assert_eq!(names, ["Received", "received", "Subject"]);
        assert_eq!(count_received(MESSAGE), 2);
        assert!(has_field(MESSAGE, "SUBJECT") && !has_field(MESSAGE, "Date"));
        assert!(header_section(MESSAGE).ends_with(b" folded\r\n"));
    }

    #[test]
    fn a_submission_gets_the_date_and_message_id_it_lacks() {
        assert_eq!(
            complete(b"From: a@b\r\n\r\nx"),
            "Date: Thu, 01 Jan 1970 00:00:00 +0000\r\nMessage-ID: <id1@example.org>\r\nFrom: a@b\r\n\r\nx"
        );
        assert_eq!(
            complete(b"date: d\r\n\r\nx"),
            "From: <a@example.org>\r\nMessage-ID: <id1@example.org>\r\ndate: d\r\n\r\nx"
        );
        let whole = b"Date: d\r\nfrom: x\r\nMESSAGE-ID: <m>\r\n\r\nx";
        assert_eq!(complete(whole).as_bytes(), whole);
    }

    #[test]
    fn a_submission_without_a_header_section_keeps_its_text() {
        assert!(complete(b"just text\r\n").ends_with("<id1@example.org>\r\n\r\njust text\r\n"));
        assert!(complete(b"\r\ntext\r\n").ends_with("<id1@example.org>\r\n\r\ntext\r\n"));
        assert!(complete(b"").ends_with("<id1@example.org>\r\n"));
    }

    proptest! {
        #[test]
        fn fields_never_overlap_and_never_pass_the_end(message in proptest::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b' '), Just(b'a'), any::<u8>()], 0..400)) {
            let walked: Vec<u8> = fields(&message).flat_map(|field| field.raw.to_vec()).collect();
            prop_assert!(message.starts_with(&walked));
            prop_assert_eq!(walked.as_slice(), header_section(&message));
        }

        #[test]
        fn a_completed_submission_ends_with_what_was_submitted(body in proptest::collection::vec(any::<u8>(), 0..400)) {
            let domain = "example.org".parse().unwrap();
            let sender = "a@example.org".parse().unwrap();
            let done = prepend(&missing_from_submission(&body, &sender, 0, "id1", &domain), &body);
            prop_assert!(done.ends_with(&body));
            prop_assert!(has_field(&done, "Date") && has_field(&done, "Message-ID"));
        }
    }
}
