//! Framing: bytes in, whole commands out. A machine without I/O. RFC 9051 2.2.1, RFC 7888 (LITERAL+).
//!
//! A command is a line, but a line that ends in `{n}` goes on with `n` octets and another line. For a synchronizing
//! literal the client waits until it is invited, so a refused one costs nothing; a non-synchronizing literal
//! (`{n+}`) comes without being invited and has to be read and thrown away when it is too long.
//! Frames keep literals in place, announcement included, and the parser reads them there without copying.

use bytes::{Buf, Bytes, BytesMut};

/// Longest command without the message of an APPEND, short literals included. RFC 7162 4 asks for 8192 at least; sets
/// of UIDs get long.
pub const MAX_COMMAND: usize = 64 * 1024;
/// Longest literal of anything but a message.
pub const MAX_LITERAL: u64 = 8 * 1024;
/// Longest command before log-in: a name and a password.
pub const MAX_COMMAND_BEFORE_LOGIN: usize = 8 * 1024;
/// Longest literal before log-in. RFC 7888 5 bounds non-synchronizing literals alike for LITERAL-.
pub const MAX_LITERAL_BEFORE_LOGIN: u64 = 4096;
/// A refused non-synchronizing literal is read and thrown away up to this multiple of the largest message; a longer
/// one ends the connection.
const DISCARD_FACTOR: u64 = 4;
/// Octets to read at once while a line is awaited.
const READ_LINE: usize = 2 * 1024;
/// Octets to read at once within a literal: what a client can make the server hold beside the command at hand.
const READ_LITERAL: usize = 64 * 1024;
/// Longest announcement of a literal with its CRLF that is still recognised in a line that is thrown away.
const MAX_ANNOUNCEMENT: usize = 32;
/// Capacity above which the buffer is given back once it is empty.
const KEEP_CAPACITY: usize = 64 * 1024;

/// What the framer found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A whole command, without the CRLF at its end.
    Command(Bytes),
    /// The client waits for `+` before it sends a literal.
    Continue,
    /// A command that is not taken; the input goes on after it.
    Refused(Refusal),
    /// The input cannot be followed any further: the connection has to end.
    Fatal(&'static str),
}

/// A command that the framer refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The start of the command, for its tag.
    pub start: Bytes,
    /// Whether the message of an APPEND was too big: `NO [TOOBIG]` and not BAD.
    pub too_big: bool,
    /// What is wrong.
    pub why: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Looking for the end of a line; everything before the offset has been looked at.
    Line { scanned: usize },
    /// Waiting until the buffer holds this many octets.
    Literal { until: usize },
    /// Throwing away a refused literal and the rest of its command.
    Discard { octets: u64, line: bool },
}

/// Splits the input of one connection into commands.
#[derive(Debug)]
pub struct Framer {
    buffer: BytesMut,
    state: State,
    /// Octets of literals in the frame at hand.
    literals: usize,
    /// Octets of the message literal of an APPEND in the frame at hand.
    message: usize,
    /// Start of the line at hand within the frame.
    line_start: usize,
    max_message: u64,
    authenticated: bool,
}

impl Framer {
    /// For a new connection. `max_message`: octets of the longest message in an APPEND.
    pub fn new(max_message: u64) -> Self {
        Self {
            buffer: BytesMut::new(),
            state: State::Line { scanned: 0 },
            literals: 0,
            message: 0,
            line_start: 0,
            max_message,
            authenticated: false,
        }
    }

    /// Raises the bounds after log-in.
    pub fn authenticated(&mut self) {
        self.authenticated = true;
    }

    /// How much to read at once: little while a line is awaited, so that an idle connection holds little, and more
    /// within a literal.
    pub fn read_at_once(&self) -> usize {
        match self.state {
            State::Literal { until } => {
                until.saturating_sub(self.buffer.len()).clamp(READ_LINE, READ_LITERAL)
            }
            State::Line { .. } => READ_LINE,
            State::Discard { .. } => READ_LITERAL,
        }
    }

    /// Where to read into. Read a bounded piece and only when [`Framer::next_input`] has nothing: then the buffer
    /// never holds more than one command and that piece.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Throws away what was read but not used: what came in plain text before TLS must not count (RFC 9051 11.1).
    pub fn clear(&mut self) {
        let (max_message, authenticated) = (self.max_message, self.authenticated);
        *self = Self { authenticated, ..Self::new(max_message) };
    }

    /// The next command, if the buffer holds all of it.
    pub fn next_input(&mut self) -> Option<Input> {
        loop {
            match self.state {
                State::Line { scanned } => {
                    let Some(at) = find_lf(&self.buffer[scanned..]) else {
                        self.state = State::Line { scanned: self.buffer.len() };
                        return self.check_length();
                    };
                    let end = scanned + at + 1;
                    if let Some(input) = self.line(end) {
                        return Some(input);
                    }
                }
                State::Literal { until } if self.buffer.len() >= until => {
                    self.line_start = until;
                    self.state = State::Line { scanned: until };
                }
                State::Literal { .. } => return None,
                State::Discard { octets: 0, line: false } => self.reset(),
                State::Discard { octets: 0, line: true } => {
                    let Some(at) = find_lf(&self.buffer) else {
                        self.keep_tail();
                        return None;
                    };
                    // The rest of the command may announce another literal that comes uninvited.
                    let announced = literal(strip_crlf(&self.buffer[..=at]).unwrap_or_default());
                    let more =
                        announced.and_then(|found| found.non_sync.then_some(found.octets)).unwrap_or(0);
                    self.buffer.advance(at + 1);
                    if more > self.discard_limit() {
                        return Some(Input::Fatal("a literal is too long"));
                    }
                    self.state = State::Discard { octets: more, line: more > 0 };
                }
                State::Discard { octets, line } => {
                    if self.buffer.is_empty() {
                        return None;
                    }
                    let here = self.buffer.len().min(usize::try_from(octets).unwrap_or(usize::MAX));
                    self.buffer.advance(here);
                    self.state = State::Discard { octets: octets - here as u64, line };
                }
            }
        }
    }

    /// One line that is no command (an answer to a SASL challenge, DONE), without its CRLF. Err: too long or not
    /// ended properly.
    pub fn next_line(&mut self) -> Option<Result<Bytes, &'static str>> {
        let limit = if self.authenticated { MAX_COMMAND } else { MAX_COMMAND_BEFORE_LOGIN };
        let Some(at) = find_lf(&self.buffer) else {
            return (self.buffer.len() > limit).then_some(Err("a line is too long"));
        };
        let line = self.buffer.split_to(at + 1).freeze();
        self.reset();
        Some(match strip_crlf(&line) {
            Some(text) if text.len() <= limit => Ok(line.slice(..text.len())),
            Some(_) => Err("a line is too long"),
            None => Err("lines end in CRLF"),
        })
    }

    /// A line of the frame ends at `end` (LF included): the command is whole, or a literal follows.
    fn line(&mut self, end: usize) -> Option<Input> {
        let Some(line) = strip_crlf(&self.buffer[self.line_start..end]) else {
            return Some(self.refuse(end, None, false, "lines end in CRLF"));
        };
        let text_end = self.line_start + line.len();
        let found = literal(line);
        if end - self.message > self.max_command() {
            return Some(self.refuse(end, found, false, "the command is too long"));
        }
        let Some(found) = found else {
            let frame = self.buffer.split_to(end).freeze().slice(..text_end);
            self.reset();
            return Some(Input::Command(frame));
        };
        let for_message = self.authenticated && is_append(&self.buffer[..end]);
        let room = if for_message && found.octets > MAX_LITERAL { self.message == 0 } else { true };
        let max = match (for_message, self.authenticated) {
            (true, _) => self.max_message,
            (false, true) => MAX_LITERAL,
            (false, false) => MAX_LITERAL_BEFORE_LOGIN,
        };
        let Some(octets) = usize::try_from(found.octets).ok().filter(|_| found.octets <= max && room) else {
            return Some(self.refuse(end, Some(found), for_message, "a literal is too long"));
        };
        if for_message && self.message == 0 && found.octets > MAX_LITERAL {
            self.message = octets;
        } else {
            self.literals += octets;
            if self.literals > self.max_command() {
                return Some(self.refuse(end, Some(found), false, "the command is too long"));
            }
        }
        self.state = State::Literal { until: end + octets };
        (!found.non_sync).then_some(Input::Continue)
    }

    fn max_command(&self) -> usize {
        if self.authenticated { MAX_COMMAND } else { MAX_COMMAND_BEFORE_LOGIN }
    }

    fn discard_limit(&self) -> u64 {
        if self.authenticated { self.max_message.saturating_mul(DISCARD_FACTOR) } else { MAX_COMMAND as u64 }
    }

    /// A line without an end must not grow for ever.
    fn check_length(&mut self) -> Option<Input> {
        if self.buffer.len() - self.message <= self.max_command() {
            return None;
        }
        let start = self.start();
        self.reset();
        self.keep_tail();
        self.state = State::Discard { octets: 0, line: true };
        Some(Input::Refused(Refusal { start, too_big: false, why: "the command is too long" }))
    }

    fn refuse(&mut self, end: usize, announced: Option<Literal>, too_big: bool, why: &'static str) -> Input {
        let start = self.start();
        self.buffer.advance(end);
        self.reset();
        if let Some(announced) = announced.filter(|announced| announced.non_sync) {
            if announced.octets > self.discard_limit() {
                return Input::Fatal(why);
            }
            self.state = State::Discard { octets: announced.octets, line: true };
        }
        Input::Refused(Refusal { start, too_big, why })
    }

    /// Forgets all but what may be the start of an announcement: the line that is thrown away may end in one.
    fn keep_tail(&mut self) {
        let forget = self.buffer.len().saturating_sub(MAX_ANNOUNCEMENT);
        self.buffer.advance(forget);
    }

    /// As much of the frame as may hold its tag.
    fn start(&self) -> Bytes {
        const TAG_WITHIN: usize = 256;
        Bytes::copy_from_slice(&self.buffer[..self.buffer.len().min(TAG_WITHIN)])
    }

    fn reset(&mut self) {
        self.state = State::Line { scanned: 0 };
        self.literals = 0;
        self.message = 0;
        self.line_start = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > KEEP_CAPACITY {
            self.buffer = BytesMut::new();
        }
    }
}

/// The announcement of a literal at the end of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Literal {
    /// Its length.
    pub(crate) octets: u64,
    /// `{n+}`.
    pub(crate) non_sync: bool,
    /// Length of the announcement itself.
    pub(crate) written: usize,
}

/// Finds `{n}` or `{n+}` at the end of a line without its CRLF. A number too large for 64 bits reads as the largest.
pub(crate) fn literal(line: &[u8]) -> Option<Literal> {
    let inner = line.strip_suffix(b"}")?;
    let (inner, non_sync) = match inner.strip_suffix(b"+") {
        Some(inner) => (inner, true),
        None => (inner, false),
    };
    let digits = inner.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let (before, number) = inner.split_at(inner.len() - digits);
    if digits == 0 || before.last() != Some(&b'{') {
        return None;
    }
    let octets = number
        .iter()
        .try_fold(0u64, |sum, b| sum.checked_mul(10)?.checked_add(u64::from(b - b'0')))
        .unwrap_or(u64::MAX);
    Some(Literal { octets, non_sync, written: digits + 2 + usize::from(non_sync) })
}

/// Whether a frame starts with a tag and APPEND.
fn is_append(frame: &[u8]) -> bool {
    let Some(space) = frame.iter().position(|b| !b.is_ascii_graphic()).filter(|&at| frame[at] == b' ') else {
        return false;
    };
    frame[space + 1..].get(..7).is_some_and(|word| word.eq_ignore_ascii_case(b"APPEND "))
}

fn find_lf(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&b| b == b'\n')
}

fn strip_crlf(line: &[u8]) -> Option<&[u8]> {
    line.strip_suffix(b"\r\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: u64 = 100_000;

    fn feed(input: &[u8], sizes: &[usize], authenticated: bool) -> Vec<Input> {
        let mut framer = Framer::new(MAX);
        if authenticated {
            framer.authenticated();
        }
        let mut out = Vec::new();
        let mut sizes = sizes.iter().copied().cycle();
        let mut rest = input;
        while !rest.is_empty() {
            let piece = sizes.next().unwrap_or(rest.len()).clamp(1, rest.len());
            framer.buffer().extend_from_slice(&rest[..piece]);
            rest = &rest[piece..];
            while let Some(input) = framer.next_input() {
                let fatal = matches!(input, Input::Fatal(_));
                out.push(input);
                if fatal {
                    return out;
                }
            }
            assert!(framer.buffer.len() <= MAX as usize + MAX_COMMAND + piece);
        }
        out
    }

    fn commands(input: &[u8]) -> Vec<Input> {
        feed(input, &[], true)
    }

    #[test]
    fn literals_stay_in_their_command() {
        let found = commands(b"a LOGIN {1}\r\nx {2+}\r\n\r\n\r\nb NOOP\r\n");
        assert_eq!(
            found,
            vec![
                Input::Continue,
                Input::Command(Bytes::from_static(b"a LOGIN {1}\r\nx {2+}\r\n\r\n")),
                Input::Command(Bytes::from_static(b"b NOOP")),
            ]
        );
    }

    #[test]
    fn a_refused_literal_that_comes_uninvited_is_skipped() {
        let mut input = b"a LOGIN {9000+}\r\n".to_vec();
        input.extend(std::iter::repeat_n(b'\n', 9000));
        input.extend_from_slice(b" {3+}\r\nxyz\r\nb NOOP\r\n");
        let found = commands(&input);
        assert!(
            matches!(&found[0], Input::Refused(r) if r.start.starts_with(b"a ") && !r.too_big),
            "{found:?}"
        );
        assert_eq!(found[1], Input::Command(Bytes::from_static(b"b NOOP")));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn only_append_takes_a_long_literal_and_only_after_login() {
        let input = b"a APPEND x {50000}\r\n";
        assert_eq!(commands(input), vec![Input::Continue]);
        assert!(matches!(feed(input, &[], false)[0], Input::Refused(_)));
        assert!(matches!(&commands(b"a APPEND x {100001}\r\n")[0], Input::Refused(r) if r.too_big));
        assert!(matches!(&commands(b"a SEARCH TEXT {50000}\r\n")[0], Input::Refused(r) if !r.too_big));
        assert!(matches!(commands(b"a APPEND x {99999999999999999999999+}\r\n")[0], Input::Fatal(_)));
    }

    #[test]
    fn a_line_without_end_is_refused_once() {
        let mut input = vec![b'x'; 300_000];
        input.extend_from_slice(b"\r\nb NOOP\r\n");
        let found = feed(&input, &[1000], true);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(matches!(found[0], Input::Refused(_)));
        assert_eq!(found[1], Input::Command(Bytes::from_static(b"b NOOP")));
    }

    #[test]
    fn what_comes_after_a_command_does_not_change_its_bounds() {
        let found = commands(b"{9000+}\r\nzzz APPEND INBOX ");
        assert!(matches!(found[..], [Input::Refused(_)]), "{found:?}");
    }

    #[test]
    fn a_bare_line_feed_is_refused() {
        assert!(matches!(commands(b"a NOOP\nb NOOP\r\n")[0], Input::Refused(_)));
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_commands(
            parts in proptest::collection::vec(prop_oneof![
                Just(b"a APPEND INBOX ".to_vec()), Just(b"{3}\r\n".to_vec()), Just(b"{3+}\r\n".to_vec()),
                Just(b"{9000+}\r\n".to_vec()), Just(b"abc".to_vec()), Just(b"\r\n".to_vec()), Just(b"\n".to_vec()),
                Just(b"b NOOP\r\n".to_vec()), Just(vec![0u8, 255]), Just(vec![b'z'; 5000]), Just(vec![b'y'; 70_000]),
            ], 0..20),
            sizes in proptest::collection::vec(1usize..7000, 1..6),
            authenticated: bool,
        ) {
            let input = parts.concat();
            // Where a line is too long depends on how much of it was there, so only whole commands are compared.
            let whole = |found: Vec<Input>| -> Vec<Input> {
                found.into_iter().filter(|i| matches!(i, Input::Command(_) | Input::Continue)).collect()
            };
            prop_assert_eq!(whole(feed(&input, &[], authenticated)), whole(feed(&input, &sizes, authenticated)));
        }
    }
}
