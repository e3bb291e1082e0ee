//! The text of a message on its way in: finds its end, takes the dots off, and sees what must not be in it.
//!
//! RFC 5321 2.3.8 and 4.1.1.4: only CRLF ends a line, and only CRLF.CRLF ends the text. A text with another line end
//! is refused as a whole. Where such a text has what a laxer server would take for its end, it is not known any more
//! what the client means by what follows (SMTP smuggling), and the session has to end.

use bytes::Bytes;
use std::sync::Arc;

use crate::{Budget, budget::Reservation};

/// First size of a message's buffer; it doubles from there.
const FIRST_BUFFER: usize = 16 * 1024;
/// A text that is refused is still read up to its end, but not more than this beyond the largest message.
const DRAIN_SLACK: usize = 64 * 1024;

/// Why a text is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    BareLineEnd,
    Nul,
    LineTooLong,
    TooLarge,
    Memory,
}

/// What has come to an end.
#[derive(Debug)]
pub(crate) enum End {
    /// The text, at its end.
    Complete,
    /// The text is refused and something in it may have been meant as its end.
    InDoubt,
    /// The text is refused and too long to be read to its end.
    Endless,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    LineStart,
    Text,
    /// After a CR, which is not in the body yet.
    Cr,
    /// After a dot at the start of a line, which is not in the body.
    Dot,
    /// After a dot and a CR, neither in the body.
    DotCr,
}

/// How far a line is that ends with any of CR, LF and CRLF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LaxLine {
    Start,
    Dot,
    Text,
}

/// Reads one text.
#[derive(Debug)]
pub(crate) struct Scanner {
    at: At,
    lax: LaxLine,
    line: usize,
    seen: usize,
    body: Vec<u8>,
    reservation: Reservation,
    max_size: usize,
    max_line: usize,
    fault: Option<Fault>,
    eight_bit: bool,
}

impl Scanner {
    pub(crate) fn new(max_size: usize, max_line: usize, memory: Arc<Budget>) -> Self {
        Self {
            at: At::LineStart,
            lax: LaxLine::Start,
            line: 0,
            seen: 0,
            body: Vec::new(),
            reservation: Reservation::new(memory),
            max_size,
            max_line,
            fault: None,
            eight_bit: false,
        }
    }

    /// Takes octets; answers how many it used, and the end when it was among them.
    pub(crate) fn feed(&mut self, input: &[u8]) -> (usize, Option<End>) {
        let mut used = 0;
        while let Some(&octet) = input.get(used) {
            if self.at == At::Text && !matches!(octet, b'\r' | b'\n' | 0) {
                let rest = &input[used..];
                let run = rest.iter().position(|b| matches!(b, b'\r' | b'\n' | 0)).unwrap_or(rest.len());
                self.lax = if self.lax == LaxLine::Start && rest[..run] == *b"." {
                    LaxLine::Dot
                } else {
                    LaxLine::Text
                };
                self.text(&rest[..run]);
                used += run;
            } else {
                used += 1;
                if let Some(end) = self.octet(octet) {
                    return (used, Some(end));
                }
            }
            if self.seen > self.max_size.saturating_mul(2).saturating_add(DRAIN_SLACK) {
                return (used, Some(End::Endless));
            }
        }
        (used, None)
    }

    /// The body with whether it has octets above 127, or why it is refused. The reservation covers the body.
    pub(crate) fn finish(self) -> Result<(Bytes, bool, Reservation), Fault> {
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok((Bytes::from(self.body), self.eight_bit, self.reservation)),
        }
    }

    fn octet(&mut self, octet: u8) -> Option<End> {
        if let Some(end) = self.lax_line(octet) {
            return Some(end);
        }
        match (self.at, octet) {
            (At::DotCr, b'\n') => return Some(End::Complete),
            (At::Cr, b'\n') => {
                self.push(b"\r\n");
                self.line = 0;
                self.at = At::LineStart;
            }
            (At::Cr | At::DotCr, _) => {
                self.refuse(Fault::BareLineEnd);
                self.seen += 1;
                self.at = At::Text;
                return self.plain(octet);
            }
            (At::Dot, b'\r') => self.at = At::DotCr,
            (At::LineStart, b'.') => {
                self.seen += 1;
                self.at = At::Dot;
            }
            _ => return self.plain(octet),
        }
        None
    }

    /// An octet that no dot or CR before it gives a meaning.
    fn plain(&mut self, octet: u8) -> Option<End> {
        match octet {
            b'\r' => self.at = At::Cr,
            b'\n' => {
                self.refuse(Fault::BareLineEnd);
                self.seen += 1;
                self.line = 0;
                self.at = At::Text;
            }
            0 => {
                self.refuse(Fault::Nul);
                self.seen += 1;
                self.at = At::Text;
            }
            _ => {
                self.at = At::Text;
                self.text(&[octet]);
            }
        }
        None
    }

    /// Follows the lines as a server would see them that takes any line end, and says when such a server may see the
    /// end of the text where this one does not.
    fn lax_line(&mut self, octet: u8) -> Option<End> {
        let line_end = matches!(octet, b'\r' | b'\n');
        let proper = match octet {
            b'\n' => matches!(self.at, At::Cr | At::DotCr),
            // A CR may yet become proper by the LF after it.
            b'\r' => true,
            _ => !matches!(self.at, At::Cr | At::DotCr),
        };
        // CRLF.CR followed by no LF: the CR was an end to a lax reader.
        let dot_cr_broken = self.at == At::DotCr && octet != b'\n';
        let lone_dot = line_end && self.lax == LaxLine::Dot;
        let mixed = self.fault == Some(Fault::BareLineEnd) && self.at != At::Dot;
        let doubt = dot_cr_broken || lone_dot && (!proper || mixed);
        self.lax = match (self.lax, octet) {
            (_, b'\r' | b'\n') => LaxLine::Start,
            (LaxLine::Start, b'.') => LaxLine::Dot,
            _ => LaxLine::Text,
        };
        if doubt {
            self.refuse(Fault::BareLineEnd);
            return Some(End::InDoubt);
        }
        None
    }

    fn text(&mut self, run: &[u8]) {
        // The CRLF counts as well (RFC 5321 4.5.3.1.6).
        let line_room = self.max_line.saturating_sub(self.line + 2);
        let body_room = self.max_size.saturating_sub(self.body.len());
        // Of both limits the one that is hit first, however the octets were cut up on the way.
        if run.len() > line_room && line_room <= body_room {
            self.refuse(Fault::LineTooLong);
        }
        self.line += run.len();
        self.eight_bit |= !run.is_ascii();
        self.push(run);
    }

    fn push(&mut self, octets: &[u8]) {
        self.seen += octets.len();
        if self.fault.is_some() {
            return;
        }
        let len = self.body.len() + octets.len();
        if len > self.max_size {
            return self.refuse(Fault::TooLarge);
        }
        while len > self.body.capacity() {
            let more = self.body.capacity().max(FIRST_BUFFER);
            if !self.reservation.grow(more) {
                return self.refuse(Fault::Memory);
            }
            self.body.reserve_exact(self.body.capacity() - self.body.len() + more);
        }
        self.body.extend_from_slice(octets);
    }

    /// Keeps the first fault and no body.
    fn refuse(&mut self, fault: Fault) {
        // An odd line end outranks the others: it decides how the end of the text is looked for.
        if self.fault.is_none() || fault == Fault::BareLineEnd {
            self.fault = Some(fault);
        }
        self.body = Vec::new();
        self.reservation.release();
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, num, prelude::*};

    use super::*;

    fn scan(input: &[u8]) -> (Option<End>, usize, Result<Vec<u8>, Fault>) {
        let mut scanner = Scanner::new(1000, 100, Budget::new(1 << 20));
        let (used, end) = scanner.feed(input);
        (end, used, scanner.finish().map(|(body, _, _)| body.to_vec()))
    }

    /// What is likely to matter, and the rest.
    fn octets() -> impl Strategy<Value = Vec<u8>> {
        let likely = prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'.'), Just(0), Just(b'a'), Just(0xE4)];
        collection::vec(prop_oneof![8 => likely, 1 => num::u8::ANY], 0..120)
    }

    /// Lines as RFC 5321 wants them, without their ends.
    fn lines() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let octet = prop_oneof![Just(b'.'), Just(b'a'), Just(0xFF), 1u8..=9, 11u8..=12];
        collection::vec(collection::vec(octet, 0..20), 0..20)
    }

    proptest! {
        #[test]
        fn how_the_octets_were_cut_up_on_the_way_makes_no_difference(text in octets(), pieces in collection::vec(1usize..9, 0..60)) {
            let whole = scan(&text);
            let mut scanner = Scanner::new(1000, 100, Budget::new(1 << 20));
            let (mut used, mut end) = (0, None);
            let mut sizes = pieces.into_iter();
            while used < text.len() && end.is_none() {
                let until = text.len().min(used + sizes.next().unwrap_or(1));
                let (more, ended) = scanner.feed(&text[used..until]);
                used += more;
                end = ended;
            }
            prop_assert_eq!(format!("{:?}", (end, used)), format!("{:?}", (&whole.0, whole.1)));
            prop_assert_eq!(scanner.finish().map(|(body, _, _)| body.to_vec()), whole.2);
        }

        #[test]
        fn what_a_client_sends_as_it_should_arrives_as_it_was(lines in lines(), after in octets()) {
            let mut sent = Vec::new();
            for line in &lines {
                if line.first() == Some(&b'.') {
                    sent.push(b'.');
                }
                sent.extend_from_slice(line);
                sent.extend_from_slice(b"\r\n");
            }
            sent.extend_from_slice(b".\r\n");
            let len = sent.len();
            sent.extend_from_slice(&after);
            let (end, used, body) = scan(&sent);
            prop_assert!(matches!(end, Some(End::Complete)));
            prop_assert_eq!(used, len);
            let expected: Vec<u8> = lines.iter().flat_map(|line| [&line[..], b"\r\n"].concat()).collect();
            prop_assert_eq!(body.unwrap(), expected);
        }

        #[test]
        fn no_text_with_another_line_end_or_a_nul_is_taken(text in octets()) {
            if let (Some(End::Complete), used, Ok(body)) = scan(&text) {
                let ends = body.windows(2).filter(|pair| pair == b"\r\n").count();
                let (crs, lfs) = [b'\r', b'\n'].map(|end| body.iter().filter(|octet| **octet == end).count()).into();
                prop_assert_eq!((crs, lfs), (ends, ends));
                prop_assert!(!body.contains(&0));
                prop_assert!(body.len() < used);
            }
        }
    }

    #[test]
    fn dots_are_taken_off_and_the_end_is_found() {
        let (end, used, body) = scan(b"a\r\n..b\r\n.c\r\n\r\n.\r\nQUIT\r\n");
        assert!(matches!(end, Some(End::Complete)));
        assert_eq!(used, 18 - 1);
        assert_eq!(body.unwrap(), b"a\r\n.b\r\nc\r\n\r\n");
        let (end, _, body) = scan(b".\r\n");
        assert!(matches!(end, Some(End::Complete)));
        assert_eq!(body.unwrap(), b"");
    }

    #[test]
    fn a_line_end_other_than_crlf_refuses_the_text() {
        for text in [&b"a\nb\r\n.\r\n"[..], b"a\rb\r\n.\r\n", b"\n\r\n.\r\n", b"a\r\r\n.\r\n"] {
            let (end, used, body) = scan(text);
            assert!(matches!(end, Some(End::Complete)), "{text:?}");
            assert_eq!(used, text.len());
            assert_eq!(body.unwrap_err(), Fault::BareLineEnd);
        }
    }

    #[test]
    fn an_end_that_others_may_see_puts_the_text_in_doubt() {
        for text in [
            &b"a\n.\nb\r\n.\r\n"[..],
            b"a\r\n.\nb\r\n.\r\n",
            b"a\n.\r\nb\r\n.\r\n",
            b"a\r.\rb\r\n.\r\n",
            b"a\r\n.\rb\r\n.\r\n",
            b"a\r.\r\nb\r\n.\r\n",
            b"a\r\n.\r\r\n",
        ] {
            let (end, used, body) = scan(text);
            assert!(matches!(end, Some(End::InDoubt)), "{text:?} {end:?}");
            assert!(used < text.len(), "{text:?}");
            assert_eq!(body.unwrap_err(), Fault::BareLineEnd);
        }
    }

    #[test]
    fn bounds_are_kept() {
        let long = [b"x".repeat(99), b"\r\n.\r\n".to_vec()].concat();
        assert_eq!(scan(&long).2.unwrap_err(), Fault::LineTooLong);
        let fits = [b"x".repeat(98), b"\r\n.\r\n".to_vec()].concat();
        assert_eq!(scan(&fits).2.unwrap().len(), 100);
        let large = [b"x\r\n".repeat(400), b".\r\n".to_vec()].concat();
        assert_eq!(scan(&large).2.unwrap_err(), Fault::TooLarge);
        let endless = b"x\r\n".repeat(40_000);
        assert!(matches!(scan(&endless).0, Some(End::Endless)));
        assert_eq!(scan(b"a\0b\r\n.\r\n").2.unwrap_err(), Fault::Nul);
    }

    #[test]
    fn memory_of_all_texts_is_bounded() {
        let memory = Budget::new(FIRST_BUFFER as u64 * 3);
        let mut first = Scanner::new(1 << 20, 100, Arc::clone(&memory));
        let mut second = Scanner::new(1 << 20, 100, Arc::clone(&memory));
        let text = b"xxxxxxxx\r\n".repeat(2000);
        first.feed(&text);
        second.feed(&text);
        second.feed(b".\r\n");
        assert_eq!(second.finish().unwrap_err(), Fault::Memory);
        first.feed(b".\r\n");
        assert_eq!(first.finish().unwrap().0.len(), text.len());
        assert_eq!(memory.used(), 0);
    }
}
