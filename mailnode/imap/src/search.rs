//! SEARCH: which messages match. RFC 9051 6.4.4.
//!
//! Keys are first asked with number and UID, then with what the folder's list tells; only for a message where that does
//! not decide are octets asked for. Text is compared decoded (RFC 2047, RFC 2045 6, charsets) and without case.

use std::cell::OnceCell;

use bytes::Bytes;
use mail_parser::decoders::{
    base64::base64_decode, charsets::map::charset_decoder, quoted_printable::quoted_printable_decode,
};

use crate::{
    Message,
    command::{SearchKey, SearchReturn},
    date,
    fetch::Need,
    mime::{self, Content, Part},
    response::{Out, put},
    sequence::{Bound, Runs, SequenceSet},
};

/// Puts numbers for `*` into all sets of a key and sorts them, so that asking is quick.
pub(crate) fn prepare(key: SearchKey, last_number: u32, last_uid: u32) -> SearchKey {
    let again = |key| prepare(key, last_number, last_uid);
    match key {
        SearchKey::And(keys) => SearchKey::And(keys.into_iter().map(again).collect()),
        SearchKey::Or(a, b) => SearchKey::Or(Box::new(again(*a)), Box::new(again(*b))),
        SearchKey::Not(key) => SearchKey::Not(Box::new(again(*key))),
        SearchKey::Sequence(set) => SearchKey::Sequence(sorted(&set, last_number)),
        SearchKey::Uid(set) => SearchKey::Uid(sorted(&set, last_uid)),
        key => key,
    }
}

fn sorted(set: &SequenceSet, last: u32) -> SequenceSet {
    let bound = Bound::Number;
    SequenceSet(set.ranges(last).into_iter().map(|(low, high)| (bound(low), bound(high))).collect())
}

fn holds(set: &SequenceSet, number: u32) -> bool {
    let value = |bound: Bound| match bound {
        Bound::Number(n) => n,
        Bound::Last => u32::MAX,
    };
    let after = set.0.partition_point(|&(low, _)| value(low) <= number);
    after > 0 && number <= value(set.0[after - 1].1)
}

/// Whether a key asks for MODSEQ, so that the answer tells the highest one (RFC 7162 3.1.5).
pub(crate) fn asks_mod_seq(key: &SearchKey) -> bool {
    match key {
        SearchKey::ModSeq(_) => true,
        SearchKey::And(keys) => keys.iter().any(asks_mod_seq),
        SearchKey::Or(a, b) => asks_mod_seq(a) || asks_mod_seq(b),
        SearchKey::Not(key) => asks_mod_seq(key),
        _ => false,
    }
}

/// How much of a message a key needs when the list does not decide.
pub(crate) fn need(key: &SearchKey) -> Need {
    match key {
        SearchKey::And(keys) => keys.iter().map(need).max().unwrap_or(Need::Nothing),
        SearchKey::Or(a, b) => need(a).max(need(b)),
        SearchKey::Not(key) => need(key),
        SearchKey::Header(..) | SearchKey::SentBefore(_) | SearchKey::SentOn(_) | SearchKey::SentSince(_) => {
            Need::Header
        }
        SearchKey::Body(_) | SearchKey::Text(_) => Need::Whole,
        _ => Need::Nothing,
    }
}

/// A message as far as it is at hand.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) number: u32,
    pub(crate) uid: u32,
    /// What the folder's list tells.
    pub(crate) message: Option<&'a Message>,
    pub(crate) text: Option<&'a Text>,
}

/// Whether a message matches. None: not decided without what is not at hand.
pub(crate) fn matches(key: &SearchKey, subject: Subject<'_>) -> Option<bool> {
    let again = |key| matches(key, subject);
    let Subject { number, uid, message, text } = subject;
    match key {
        SearchKey::All => Some(true),
        SearchKey::Never => Some(false),
        SearchKey::And(keys) => {
            // What is at hand is asked first: one no spares the rest of the message.
            let mut open = false;
            for answer in keys.iter().map(again) {
                match answer {
                    Some(true) => {}
                    Some(false) => return Some(false),
                    None => open = true,
                }
            }
            (!open).then_some(true)
        }
        SearchKey::Or(a, b) => match (again(a), again(b)) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (Some(false), Some(false)) => Some(false),
            _ => None,
        },
        SearchKey::Not(key) => again(key).map(|answer| !answer),
        SearchKey::Sequence(set) => Some(holds(set, number)),
        SearchKey::Uid(set) => Some(holds(set, uid)),
        SearchKey::Flag(flag) => message.map(|m| m.flags.iter().any(|have| have.eq_ignore_ascii_case(flag))),
        SearchKey::Larger(size) => message.map(|m| u64::from(m.size) > *size),
        SearchKey::Smaller(size) => message.map(|m| u64::from(m.size) < *size),
        SearchKey::Before(day) => message.map(|m| date::day_of(m.internal_date) < *day),
        SearchKey::On(day) => message.map(|m| date::day_of(m.internal_date) == *day),
        SearchKey::Since(day) => message.map(|m| date::day_of(m.internal_date) >= *day),
        SearchKey::ModSeq(at_least) => message.map(|m| m.mod_seq >= *at_least),
        SearchKey::SentBefore(day) => text.map(|text| text.sent().is_some_and(|sent| sent < *day)),
        SearchKey::SentOn(day) => text.map(|text| text.sent().is_some_and(|sent| sent == *day)),
        SearchKey::SentSince(day) => text.map(|text| text.sent().is_some_and(|sent| sent >= *day)),
        SearchKey::Header(name, needle) => text.map(|text| text.header_has(name, needle)),
        SearchKey::Body(needle) => text.map(|text| text.body().contains(needle.as_str())),
        SearchKey::Text(needle) => {
            text.map(|text| text.header().contains(needle.as_str()) || text.body().contains(needle.as_str()))
        }
    }
}

/// A message as text: decoded when it is first asked for.
pub(crate) struct Text {
    octets: Bytes,
    header: OnceCell<String>,
    body: OnceCell<String>,
}

impl Text {
    pub(crate) fn new(octets: Bytes) -> Self {
        Self { octets, header: OnceCell::new(), body: OnceCell::new() }
    }

    fn raw_header(&self) -> &[u8] {
        &self.octets[..mime::header_end(&self.octets).unwrap_or(self.octets.len())]
    }

    fn sent(&self) -> Option<i64> {
        let value = mime::field(self.raw_header(), "Date")?;
        date::day_of_field(&String::from_utf8_lossy(&value))
    }

    /// RFC 9051 6.4.4 (HEADER): an empty needle means that the field is there.
    fn header_has(&self, name: &str, needle: &str) -> bool {
        mime::fields(self.raw_header())
            .filter(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes()))
            .any(|(_, whole)| decode_words(&mime::value(whole)).to_lowercase().contains(needle))
    }

    fn header(&self) -> &str {
        self.header.get_or_init(|| header_text(self.raw_header()))
    }

    fn body(&self) -> &str {
        self.body.get_or_init(|| {
            let mut out = String::new();
            part_text(&self.octets, &mime::walk(&self.octets), &mut out);
            out
        })
    }
}

fn header_text(header: &[u8]) -> String {
    let mut out = String::new();
    for (name, whole) in mime::fields(header) {
        out.push_str(&String::from_utf8_lossy(name).to_lowercase());
        out.push_str(": ");
        out.push_str(&decode_words(&mime::value(whole)).to_lowercase());
        out.push('\n');
    }
    out
}

fn part_text(message: &[u8], part: &Part, out: &mut String) {
    match &part.content {
        Content::Multipart(parts) => parts.iter().for_each(|child| part_text(message, child, out)),
        Content::Message(inner) => {
            out.push_str(&header_text(&message[inner.header.clone()]));
            part_text(message, inner, out);
        }
        Content::Leaf if part.content_type.kind.eq_ignore_ascii_case(b"text") => {
            let raw = &message[part.body.clone()];
            let encoding =
                mime::field(&message[part.header.clone()], "Content-Transfer-Encoding").unwrap_or_default();
            let decoded = match encoding.to_ascii_lowercase().as_slice() {
                b"base64" => base64_decode(raw),
                b"quoted-printable" => quoted_printable_decode(raw),
                _ => None,
            };
            let charset = part.content_type.parameter("charset").unwrap_or(b"utf-8");
            out.push_str(&decode_charset(charset, decoded.as_deref().unwrap_or(raw)).to_lowercase());
            out.push('\n');
        }
        Content::Leaf => {}
    }
}

fn decode_charset(charset: &[u8], octets: &[u8]) -> String {
    match charset_decoder(charset) {
        Some(decode) if !charset.eq_ignore_ascii_case(b"utf-8") => decode(octets),
        _ => String::from_utf8_lossy(octets).into_owned(),
    }
}

/// Decodes encoded words; white space between two of them goes. RFC 2047 6.2.
fn decode_words(value: &[u8]) -> String {
    let mut out = String::new();
    let mut at = 0;
    let mut word_end = None;
    while at < value.len() {
        if let Some((text, len)) = encoded_word(&value[at..]) {
            if let Some(end) = word_end {
                out.truncate(end);
            }
            out.push_str(&text);
            word_end = Some(out.len());
            at += len;
            continue;
        }
        let next =
            value[at + 1..].windows(2).position(|w| w == b"=?").map_or(value.len(), |found| at + 1 + found);
        let plain = &value[at..next];
        if !plain.iter().all(|b| matches!(b, b' ' | b'\t')) {
            word_end = None;
        }
        out.push_str(&String::from_utf8_lossy(plain));
        at = next;
    }
    out
}

fn encoded_word(bytes: &[u8]) -> Option<(String, usize)> {
    /// RFC 2047 2 allows 75; senders that fold badly write longer ones.
    const MAX_WORD: usize = 1000;
    let inner = bytes.strip_prefix(b"=?")?;
    let mut parts = inner[..inner.len().min(MAX_WORD)].splitn(4, |&b| b == b'?');
    let (charset, encoding, text, rest) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if rest.first() != Some(&b'=') || text.contains(&b' ') {
        return None;
    }
    let decoded = match encoding {
        b"B" | b"b" => base64_decode(text)?,
        b"Q" | b"q" => {
            let spaced: Vec<u8> = text.iter().map(|&b| if b == b'_' { b' ' } else { b }).collect();
            quoted_printable_decode(&spaced)?
        }
        _ => return None,
    };
    let len = b"=?????=".len() - 1 + charset.len() + encoding.len() + text.len();
    // RFC 2231 5: a language may follow the charset.
    let charset = charset.split(|&b| b == b'*').next().unwrap_or(charset);
    Some((decode_charset(charset, &decoded), len))
}

/// Writes an ESEARCH answer (RFC 4731 3.1). `mod_seq`: the highest of the messages found, when it was asked for.
pub(crate) fn write_extended(
    out: &mut Out,
    tag: &str,
    uid: bool,
    wanted: SearchReturn,
    found: &Runs,
    mod_seq: Option<u64>,
) {
    put!(out, "* ESEARCH (TAG \"{tag}\")");
    if uid {
        out.put(b" UID");
    }
    if let Some((min, max)) = found.ends() {
        if wanted.min {
            put!(out, " MIN {min}");
        }
        if wanted.max {
            put!(out, " MAX {max}");
        }
        if wanted.all {
            put!(out, " ALL {found}");
        }
    }
    if wanted.count {
        put!(out, " COUNT {}", found.len());
    }
    if let Some(highest) = mod_seq {
        put!(out, " MODSEQ {highest}");
    }
    out.put(b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Flags;

    const MAIL: &str = "From: =?ISO-8859-1?Q?J=FCrgen?= =?utf-8?B?IE3DvGxsZXI=?= <j@x>\r\nSubject: Hallo\r\n Welt\r\n\
        Date: Fri, 1 May 2020 23:30:00 -0500\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\
        Content-Transfer-Encoding: base64\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nR3LDnMOfZSBh\r\ndXMgS8O2bG4=\r\n\
        --b\r\nContent-Type: application/x\r\n\r\nbinary\r\n--b--\r\n";

    fn message(flags: &[&str]) -> Message {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect::<Flags>();
        Message { uid: 7, size: 100, mod_seq: 5, internal_date: 0, flags }
    }

    fn found(key: SearchKey) -> bool {
        let (message, text) = (message(&["\\Seen", "Work"]), Text::new(Bytes::from_static(MAIL.as_bytes())));
        let subject = Subject { number: 3, uid: 7, message: Some(&message), text: Some(&text) };
        matches(&prepare(key, 3, 9), subject).unwrap()
    }

    #[test]
    fn text_is_compared_decoded_and_without_case() {
        assert!(found(SearchKey::Header("FROM".into(), "jürgen müller".into())));
        assert!(found(SearchKey::Header("SUBJECT".into(), "hallo welt".into())));
        assert!(
            found(SearchKey::Header("SUBJECT".into(), String::new()))
                && !found(SearchKey::Header("CC".into(), String::new()))
        );
        assert!(found(SearchKey::Body("grüße aus köln".into())) && found(SearchKey::Text("grüße".into())));
        assert!(!found(SearchKey::Body("jürgen".into())) && found(SearchKey::Text("jürgen".into())));
        assert!(!found(SearchKey::Text("binary".into())));
    }

    #[test]
    fn keys_combine() {
        let flag = |name: &str| SearchKey::Flag(name.into());
        let not = |key| SearchKey::Not(Box::new(key));
        assert!(found(SearchKey::And(vec![flag("\\Seen"), flag("work"), not(flag("\\Deleted"))])));
        assert!(found(SearchKey::Or(
            Box::new(SearchKey::Never),
            Box::new(SearchKey::Uid(SequenceSet(vec![(Bound::Number(5), Bound::Last)])))
        )));
        assert!(!found(SearchKey::Sequence(SequenceSet(vec![(Bound::Number(1), Bound::Number(2))]))));
        let may = date::parse_day("1-May-2020").unwrap();
        assert!(
            found(SearchKey::SentOn(may))
                && found(SearchKey::SentSince(may))
                && !found(SearchKey::SentBefore(may))
        );
        assert!(found(SearchKey::On(0)) && found(SearchKey::Before(1)) && !found(SearchKey::Since(1)));
        assert!(
            found(SearchKey::Larger(99)) && !found(SearchKey::Smaller(100)) && found(SearchKey::ModSeq(5))
        );
    }

    #[test]
    fn no_more_is_wanted_than_decides() {
        let message = message(&[]);
        let listed = Subject { number: 1, uid: 7, message: Some(&message), text: None };
        let named = Subject { message: None, ..listed };
        let body = || SearchKey::Body("x".into());
        let seen = || SearchKey::Flag("\\Seen".into());
        let first = || SearchKey::Sequence(SequenceSet(vec![(Bound::Number(2), Bound::Number(3))]));
        assert_eq!(matches(&SearchKey::And(vec![body(), seen()]), listed), Some(false));
        assert_eq!(matches(&SearchKey::And(vec![body(), SearchKey::All]), listed), None);
        assert_eq!(matches(&SearchKey::Or(Box::new(body()), Box::new(SearchKey::All)), listed), Some(true));
        assert_eq!(matches(&SearchKey::And(vec![seen(), first()]), named), Some(false));
        assert_eq!(matches(&seen(), named), None);
    }

    #[test]
    fn extended_answers_are_written_as_asked() {
        let shown = |found: &[u32], mod_seq| {
            let mut out = Out::default();
            let all = SearchReturn { min: true, max: true, all: true, count: true };
            write_extended(&mut out, "a1", true, all, &found.iter().copied().collect(), mod_seq);
            String::from_utf8(out.into_bytes()).unwrap()
        };
        assert_eq!(
            shown(&[2, 3, 9], Some(7)),
            "* ESEARCH (TAG \"a1\") UID MIN 2 MAX 9 ALL 2:3,9 COUNT 3 MODSEQ 7\r\n"
        );
        assert_eq!(shown(&[], None), "* ESEARCH (TAG \"a1\") UID COUNT 0\r\n");
    }

    proptest! {
        #[test]
        fn any_message_can_be_searched(octets: Vec<u8>, words in "(=\\?(utf-8|iso-8859-1|x)\\?[QqBb]\\?[A-Za-z0-9=_]{0,9}\\?=?[ a]?){0,4}") {
            let text = Text::new(octets.into());
            let _ = (text.body().len(), text.header().len(), text.sent());
            let _ = decode_words(words.as_bytes());
        }
    }
}
