//! Canonical forms of header fields and bodies, which DKIM hashes. RFC 6376 3.4.
//!
//! Our own for both directions: version 0.13.3 of mail-auth hashes lines of nothing but white space at the end of a body
//! otherwise than RFC 6376 3.4.4 says.

/// How the parts of a message are brought into the form that is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Almost nothing may change on the way. RFC 6376 3.4.1 and 3.4.3.
    Simple,
    /// White space may change. RFC 6376 3.4.2 and 3.4.4.
    Relaxed,
}

/// Gives the canonical body to `sink`, piece by piece.
pub fn body(form: Form, body: &[u8], mut sink: impl FnMut(&[u8])) {
    // Empty lines are held back: at the end of the body they do not count.
    let mut empty_lines = 0usize;
    let mut is_empty = true;
    let mut rest = body;
    while !rest.is_empty() {
        let (line, after) = split_line(rest);
        rest = after;
        let text = match form {
            Form::Simple => line,
            Form::Relaxed => trim_end(line),
        };
        if text.is_empty() {
            empty_lines += 1;
            continue;
        }
        for _ in 0..std::mem::take(&mut empty_lines) {
            sink(b"\r\n");
        }
        is_empty = false;
        match form {
            Form::Simple => sink(text),
            Form::Relaxed => squeeze(text, &mut sink),
        }
        sink(b"\r\n");
    }
    // RFC 6376 3.4.3: an empty body is one CRLF; 3.4.4: it is nothing.
    if is_empty && form == Form::Simple {
        sink(b"\r\n");
    }
}

/// The relaxed form of one header field, given with its name, folded lines and line end; with CRLF at its end.
pub fn relaxed_field(name: &[u8], raw: &[u8], mut sink: impl FnMut(&[u8])) {
    let value = raw.iter().position(|b| *b == b':').map_or(&raw[raw.len()..], |colon| &raw[colon + 1..]);
    sink(&name.to_ascii_lowercase());
    sink(b":");
    let unfolded: Vec<u8> = value.iter().copied().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    squeeze(trim_start(trim_end(&unfolded)), &mut sink);
    sink(b"\r\n");
}

/// The first line without its CRLF, and what comes after.
fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|b| *b == b'\n') {
        let end = from + at;
        if end > 0 && bytes[end - 1] == b'\r' {
            return (&bytes[..end - 1], &bytes[end + 1..]);
        }
        from = end + 1;
    }
    (bytes, &[])
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t')
}

fn trim_end(text: &[u8]) -> &[u8] {
    &text[..text.iter().rposition(|b| !is_space(*b)).map_or(0, |at| at + 1)]
}

fn trim_start(text: &[u8]) -> &[u8] {
    &text[text.iter().position(|b| !is_space(*b)).unwrap_or(text.len())..]
}

/// Every run of white space becomes one space.
fn squeeze(text: &[u8], sink: &mut impl FnMut(&[u8])) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|b| is_space(*b)) {
        sink(&rest[..at]);
        sink(b" ");
        rest = trim_start(&rest[at..]);
    }
    sink(rest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(form: Form, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        body(form, text, |piece| out.extend_from_slice(piece));
        out
    }

    fn field(name: &str, raw: &str) -> String {
        let mut out = Vec::new();
        relaxed_field(name.as_bytes(), raw.as_bytes(), |piece| out.extend_from_slice(piece));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_examples_of_rfc_6376_3_4_5_hold() {
        assert_eq!(field("A", "A: X\r\n"), "a:X\r\n");
        assert_eq!(field("B", "B : Y\t\r\n\tZ  \r\n"), "b:Y Z\r\n");
        let text = b" C \r\nD \t E\r\n\r\n\r\n";
        assert_eq!(canonical(Form::Relaxed, text), b" C\r\nD E\r\n");
        assert_eq!(canonical(Form::Simple, text), b" C \r\nD \t E\r\n");
    }

    #[test]
    fn lines_of_white_space_at_the_end_do_not_count_when_relaxed() {
        assert_eq!(canonical(Form::Relaxed, b"a\r\n \t\r\n\r\n \r\n"), b"a\r\n");
        assert_eq!(canonical(Form::Relaxed, b"a\r\n\r\n  "), b"a\r\n");
        assert_eq!(canonical(Form::Relaxed, b"a\r\n \r\nb\r\n"), b"a\r\n\r\nb\r\n");
        assert_eq!(canonical(Form::Simple, b"a\r\n \r\n"), b"a\r\n \r\n");
    }

    #[test]
    fn an_empty_body_is_nothing_when_relaxed_and_one_line_end_when_simple() {
        for text in [&b""[..], b"\r\n", b"\r\n\r\n"] {
            assert_eq!(canonical(Form::Relaxed, text), b"");
            assert_eq!(canonical(Form::Simple, text), b"\r\n");
        }
        assert_eq!(canonical(Form::Relaxed, b"x"), b"x\r\n");
        assert_eq!(canonical(Form::Simple, b"x"), b"x\r\n");
    }

    proptest! {
        #[test]
        fn a_canonical_body_stays_as_it_is(text in proptest::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b' '), Just(b'\t'), any::<u8>()], 0..300)) {
            for form in [Form::Simple, Form::Relaxed] {
                let once = canonical(form, &text);
                prop_assert_eq!(&canonical(form, &once), &once);
            }
        }
    }
}
