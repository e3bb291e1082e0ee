//! Words of the grammar: atoms, strings, numbers, sets, flags, folder names. RFC 9051 9.

use bytes::Bytes;

use super::{MAX_KEYWORD, MAX_TAG};
use crate::{
    codec, mutf7,
    sequence::{Bound, SequenceSet},
};

/// What is wrong with a command, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ParseError(pub &'static str);

pub(super) type Parsed<T> = Result<T, ParseError>;

/// The system flags that can be stored, in the case they are kept in. RFC 9051 2.3.2.
pub(crate) const SYSTEM_FLAGS: [&str; 5] = ["\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft"];

/// A place in a frame.
pub(super) struct Lexer<'a> {
    frame: &'a Bytes,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(frame: &'a Bytes) -> Self {
        Self { frame, at: 0 }
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.frame.get(self.at).copied()
    }

    fn rest(&self) -> &'a [u8] {
        self.frame.get(self.at..).unwrap_or_default()
    }

    /// Takes `byte` if it is next.
    pub(super) fn eat(&mut self, byte: u8) -> bool {
        let here = self.peek() == Some(byte);
        self.at += usize::from(here);
        here
    }

    pub(super) fn expect(&mut self, byte: u8, why: &'static str) -> Parsed<()> {
        if self.eat(byte) { Ok(()) } else { Err(ParseError(why)) }
    }

    /// Exactly one space, as the grammar has it.
    pub(super) fn space(&mut self) -> Parsed<()> {
        self.expect(b' ', "an argument is missing")
    }

    pub(super) fn end(&self) -> Parsed<()> {
        if self.at >= self.frame.len() {
            Ok(())
        } else {
            Err(ParseError("there is more than the command takes"))
        }
    }

    fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = self.rest();
        let len = rest.iter().position(|&b| !wanted(b)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn ascii(&mut self, wanted: impl Fn(u8) -> bool) -> &'a str {
        std::str::from_utf8(self.take_while(|b| b.is_ascii() && wanted(b))).unwrap_or_default()
    }

    pub(super) fn tag(&mut self) -> Parsed<String> {
        let tag = self.ascii(|b| astring_char(b) && b != b'+');
        if tag.is_empty() || tag.len() > MAX_TAG || !matches!(self.peek(), Some(b' ')) {
            return Err(ParseError("a command starts with a tag"));
        }
        self.at += 1;
        Ok(tag.to_owned())
    }

    /// An atom in capitals: the name of a command, an item, an option.
    pub(super) fn word(&mut self) -> Parsed<String> {
        Ok(self.atom()?.to_ascii_uppercase())
    }

    pub(super) fn atom(&mut self) -> Parsed<&'a str> {
        let atom = self.ascii(atom_char);
        if atom.is_empty() { Err(ParseError("a word is missing")) } else { Ok(atom) }
    }

    /// Letters, digits, `.` and `-` in capitals: the name of a FETCH or SEARCH item, which `[` and `(` may follow.
    pub(super) fn item_word(&mut self) -> String {
        self.ascii(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-')).to_ascii_uppercase()
    }

    pub(super) fn number(&mut self) -> Parsed<u32> {
        u32::try_from(self.number64()?).map_err(|_| ParseError("a number is too large"))
    }

    /// RFC 7162 7 (mod-sequence-value): up to 2^63 - 1.
    pub(super) fn number64(&mut self) -> Parsed<u64> {
        let digits = self.ascii(|b| b.is_ascii_digit());
        if digits.is_empty() {
            return Err(ParseError("a number is missing"));
        }
        let number: u64 = digits.parse().map_err(|_| ParseError("a number is too large"))?;
        if i64::try_from(number).is_err() { Err(ParseError("a number is too large")) } else { Ok(number) }
    }

    /// A quoted string or a literal.
    pub(super) fn string(&mut self) -> Parsed<Bytes> {
        match self.peek() {
            Some(b'"') => self.quoted().map(Bytes::from),
            Some(b'{') => self.literal(),
            _ => Err(ParseError("a string is missing")),
        }
    }

    fn quoted(&mut self) -> Parsed<Vec<u8>> {
        self.at += 1;
        let mut out = Vec::new();
        loop {
            let byte = self.peek().ok_or(ParseError("a quoted string does not end"))?;
            self.at += 1;
            match byte {
                b'"' => return Ok(out),
                b'\\' => match self.peek() {
                    Some(escaped @ (b'"' | b'\\')) => {
                        self.at += 1;
                        out.push(escaped);
                    }
                    _ => return Err(ParseError("only \" and \\ follow a \\")),
                },
                b'\r' | b'\n' => return Err(ParseError("a quoted string does not end")),
                byte => out.push(byte),
            }
        }
    }

    /// The framer has seen to it that a literal announced at the end of a line is all there; elsewhere it is none.
    pub(super) fn literal(&mut self) -> Parsed<Bytes> {
        const WRONG: ParseError = ParseError("a literal is announced wrongly");
        let rest = self.rest();
        let line_end = rest.iter().position(|&b| b == b'\r').ok_or(WRONG)?;
        let found = codec::literal(&rest[..line_end]).ok_or(WRONG)?;
        if found.written != line_end || rest.get(line_end + 1) != Some(&b'\n') {
            return Err(WRONG);
        }
        let start = self.at + line_end + 2;
        let end = usize::try_from(found.octets).ok().and_then(|n| start.checked_add(n)).ok_or(WRONG)?;
        if end > self.frame.len() {
            return Err(WRONG);
        }
        self.at = end;
        Ok(self.frame.slice(start..end))
    }

    pub(super) fn astring(&mut self) -> Parsed<Bytes> {
        match self.peek() {
            Some(b'"' | b'{') => self.string(),
            _ => {
                let start = self.at;
                if self.take_while(astring_char).is_empty() {
                    return Err(ParseError("an argument is missing"));
                }
                Ok(self.frame.slice(start..self.at))
            }
        }
    }

    /// An astring that has to be UTF-8.
    pub(super) fn text(&mut self) -> Parsed<String> {
        let text = self.astring()?;
        String::from_utf8(text.into()).map_err(|_| ParseError("a string is not UTF-8"))
    }

    /// A folder name. Raw UTF-8 is taken as well as modified UTF-7: there are clients that send it.
    pub(super) fn folder(&mut self) -> Parsed<String> {
        folder_name(self.text()?)
    }

    /// The reference of LIST, which is mostly empty.
    pub(super) fn folder_or_empty(&mut self) -> Parsed<String> {
        let text = self.text()?;
        if text.is_empty() { Ok(text) } else { folder_name(text) }
    }

    /// A name in a list of header fields: RFC 5322 3.6.8 without what would need quoting in the answer.
    pub(super) fn field_name(&mut self) -> Parsed<String> {
        let name = self.text()?;
        let fits = !name.is_empty() && name.bytes().all(|b| atom_char(b) && b != b':');
        if fits { Ok(name) } else { Err(ParseError("a header field name is not valid")) }
    }

    /// FLAGS with its sign and suffix.
    pub(super) fn store_word(&mut self) -> String {
        self.ascii(|b| b.is_ascii_alphabetic() || matches!(b, b'+' | b'-' | b'.')).to_ascii_uppercase()
    }

    /// Leaves the rest of the command unread.
    pub(super) fn skip_rest(&mut self) {
        self.at = self.frame.len();
    }

    /// A pattern of LIST: an astring in which `%` and `*` may stand unquoted.
    pub(super) fn pattern(&mut self) -> Parsed<String> {
        let raw = match self.peek() {
            Some(b'"' | b'{') => self.string()?,
            _ => {
                let start = self.at;
                if self.take_while(|b| astring_char(b) || matches!(b, b'%' | b'*')).is_empty() {
                    return Err(ParseError("a pattern is missing"));
                }
                self.frame.slice(start..self.at)
            }
        };
        folder_name(String::from_utf8(raw.into()).map_err(|_| ParseError("a pattern is not UTF-8"))?)
    }

    pub(super) fn sequence_set(&mut self) -> Parsed<SequenceSet> {
        let mut ranges = Vec::new();
        loop {
            let first = self.bound()?;
            let last = if self.eat(b':') { self.bound()? } else { first };
            ranges.push((first, last));
            if !self.eat(b',') {
                return Ok(SequenceSet(ranges));
            }
        }
    }

    fn bound(&mut self) -> Parsed<Bound> {
        if self.eat(b'*') {
            return Ok(Bound::Last);
        }
        match self.number()? {
            0 => Err(ParseError("message numbers and UIDs start at 1")),
            number => Ok(Bound::Number(number)),
        }
    }

    /// A flag that can be stored, in the form it is kept in.
    pub(super) fn flag(&mut self) -> Parsed<String> {
        if self.eat(b'\\') {
            let name = self.atom()?;
            return SYSTEM_FLAGS
                .iter()
                .find(|known| known[1..].eq_ignore_ascii_case(name))
                .map(|&known| known.to_owned())
                .ok_or(ParseError("this system flag cannot be set"));
        }
        let keyword = self.atom()?;
        if keyword.len() > MAX_KEYWORD {
            Err(ParseError("a keyword is too long"))
        } else {
            Ok(keyword.to_owned())
        }
    }

    /// `(` and items with a space between them and `)`; may be empty.
    pub(super) fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        self.expect(b'(', "a list in parentheses is missing")?;
        let mut out = Vec::new();
        if self.eat(b')') {
            return Ok(out);
        }
        loop {
            out.push(item(self)?);
            if self.eat(b')') {
                return Ok(out);
            }
            self.expect(b' ', "a list does not end")?;
        }
    }
}

fn folder_name(wire: String) -> Parsed<String> {
    let name = if wire.is_ascii() {
        mutf7::decode(&wire).ok_or(ParseError("a folder name is not modified UTF-7"))?
    } else {
        wire
    };
    if name.chars().any(char::is_control) {
        return Err(ParseError("a folder name has control characters"));
    }
    Ok(if name.eq_ignore_ascii_case("INBOX") { "INBOX".to_owned() } else { name })
}

fn atom_char(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'(' | b')' | b'{' | b'%' | b'*' | b'"' | b'\\' | b']')
}

/// With `]`, and with 8-bit characters for clients that send names as raw UTF-8.
fn astring_char(byte: u8) -> bool {
    atom_char(byte) || byte == b']' || byte >= 0x80
}
