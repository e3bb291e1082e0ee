//! Encoding of answers: quoted strings and literals, flags, numbers. RFC 9051 9.
//!
//! An answer is a row of pieces, so that a body goes out as the slice it came in as, without being copied.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{Flags, mutf7};

/// Bodies from this size on are not copied into the answer.
const BY_REFERENCE: usize = 4096;
/// Strings up to this length are quoted when they can be.
const MAX_QUOTED: usize = 1024;

/// An answer in the making.
#[derive(Debug, Default)]
pub struct Out {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl Out {
    /// Adds octets.
    pub fn put(&mut self, bytes: &[u8]) {
        self.tail.put_slice(bytes);
        self.len += bytes.len();
    }

    /// Adds text.
    pub fn text(&mut self, text: &str) {
        self.put(text.as_bytes());
    }

    /// Adds a line.
    pub fn line(&mut self, text: &str) {
        self.put(text.as_bytes());
        self.put(b"\r\n");
    }

    /// Adds octets of a body, by reference when they are many.
    pub fn slice(&mut self, bytes: Bytes) {
        if bytes.len() < BY_REFERENCE {
            return self.put(&bytes);
        }
        self.len += bytes.len();
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
        self.pieces.push_back(bytes);
    }

    /// Octets waiting.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The next piece to write.
    pub fn next_piece(&mut self) -> Option<Bytes> {
        let piece = match self.pieces.pop_front() {
            Some(piece) => piece,
            None if self.tail.is_empty() => return None,
            None => self.tail.split().freeze(),
        };
        self.len -= piece.len();
        Some(piece)
    }

    /// All in one, for tests and short answers.
    pub fn into_bytes(mut self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len);
        while let Some(piece) = self.next_piece() {
            all.extend_from_slice(&piece);
        }
        all
    }
}

impl std::fmt::Write for Out {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

/// Formats into an [`Out`].
macro_rules! put {
    ($out:expr, $($arg:tt)*) => {
        std::fmt::Write::write_fmt($out, format_args!($($arg)*)).expect("writing to memory does not fail")
    };
}
pub(crate) use put;

/// NIL.
pub fn nil(out: &mut Out) {
    out.put(b"NIL");
}

/// A string, or NIL for none.
pub fn nstring(out: &mut Out, value: Option<&[u8]>) {
    match value {
        Some(value) => string(out, value),
        None => nil(out),
    }
}

/// A quoted string where it can be one, else a literal.
pub fn string(out: &mut Out, value: &[u8]) {
    let plain = |b: &u8| matches!(b, b' '..=b'~' | b'\t');
    if value.len() > MAX_QUOTED || !value.iter().all(plain) {
        put!(out, "{{{}}}\r\n", value.len());
        return out.put(value);
    }
    out.put(b"\"");
    for part in value.split_inclusive(|b| matches!(b, b'"' | b'\\')) {
        match part.split_last() {
            Some((last @ (b'"' | b'\\'), before)) => {
                out.put(before);
                out.put(&[b'\\', *last]);
            }
            _ => out.put(part),
        }
    }
    out.put(b"\"");
}

/// A literal, by reference when it is long.
pub fn literal(out: &mut Out, value: Bytes) {
    put!(out, "{{{}}}\r\n", value.len());
    out.slice(value);
}

/// A folder name, in modified UTF-7 and quoted unless it is an atom.
pub fn folder(out: &mut Out, name: &str) {
    let wire = mutf7::encode(name);
    let atom =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_' | b'&' | b'+' | b',');
    // NIL is an atom that stands for something else.
    if !wire.is_empty() && wire.bytes().all(atom) && !wire.eq_ignore_ascii_case("NIL") {
        out.put(wire.as_bytes());
    } else {
        string(out, wire.as_bytes());
    }
}

/// Flags in parentheses.
pub fn flags(out: &mut Out, flags: &Flags) {
    out.put(b"(");
    for (at, flag) in flags.iter().enumerate() {
        if at > 0 {
            out.put(b" ");
        }
        out.put(flag.as_bytes());
    }
    out.put(b")");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(write: impl FnOnce(&mut Out)) -> Vec<u8> {
        let mut out = Out::default();
        write(&mut out);
        let len = out.len();
        let bytes = out.into_bytes();
        assert_eq!(bytes.len(), len);
        bytes
    }

    #[test]
    fn strings_are_quoted_or_literal() {
        assert_eq!(shown(|o| string(o, b"a \"b\\")), br#""a \"b\\""#);
        assert_eq!(shown(|o| string(o, b"a\r\nb")), b"{4}\r\na\r\nb");
        assert_eq!(shown(|o| string(o, "ü".as_bytes())), "{2}\r\nü".as_bytes());
        assert_eq!(shown(|o| nstring(o, None)), b"NIL");
    }

    #[test]
    fn folder_names_are_atoms_where_they_can_be() {
        assert_eq!(shown(|o| folder(o, "a/b")), b"a/b");
        assert_eq!(shown(|o| folder(o, "a b")), b"\"a b\"");
        assert_eq!(shown(|o| folder(o, "nil")), b"\"nil\"");
        assert_eq!(shown(|o| folder(o, "Entwürfe")), b"Entw&APw-rfe");
    }

    #[test]
    fn long_bodies_go_out_uncopied_and_in_order() {
        let body = Bytes::from(vec![b'x'; BY_REFERENCE]);
        let mut out = Out::default();
        out.put(b"a");
        literal(&mut out, body.clone());
        out.put(b"b");
        assert_eq!(out.next_piece().unwrap(), Bytes::from_static(b"a{4096}\r\n"));
        assert_eq!(out.next_piece().unwrap().as_ptr(), body.as_ptr());
        assert_eq!(out.next_piece().unwrap(), Bytes::from_static(b"b"));
        assert!(out.next_piece().is_none() && out.is_empty());
    }
}
