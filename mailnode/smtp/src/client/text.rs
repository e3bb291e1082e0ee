//! The text of a message on its way out. RFC 5321 4.5.2 (transparency) and 2.3.8 (line ends).

/// Puts dots before dots at the start of lines and makes every line end a CRLF, block by block.
///
/// A bare CR or LF must never go out (RFC 5321 2.3.8): to a laxer server it could hide the end of the message.
#[derive(Debug)]
pub(super) struct Stuffing {
    line_start: bool,
    cr: bool,
}

impl Stuffing {
    pub(super) fn new() -> Self {
        Self { line_start: true, cr: false }
    }

    /// Appends a block of the message.
    pub(super) fn block(&mut self, block: &[u8], out: &mut Vec<u8>) {
        for &octet in block {
            if octet == b'\n' {
                self.end_line(out);
                self.cr = false;
                continue;
            }
            if self.cr {
                // A CR without LF is a line end of its own.
                self.end_line(out);
                self.cr = false;
            }
            if octet == b'\r' {
                self.cr = true;
                continue;
            }
            if self.line_start && octet == b'.' {
                out.push(b'.');
            }
            self.line_start = false;
            out.push(octet);
        }
    }

    /// Appends the end of the text.
    pub(super) fn finish(mut self, out: &mut Vec<u8>) {
        if self.cr || !self.line_start {
            self.end_line(out);
        }
        out.extend_from_slice(b".\r\n");
    }

    fn end_line(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\n");
        self.line_start = true;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{Budget, data::Scanner};

    fn stuff(blocks: &[&[u8]]) -> Vec<u8> {
        let (mut stuffing, mut out) = (Stuffing::new(), Vec::new());
        blocks.iter().for_each(|block| stuffing.block(block, &mut out));
        stuffing.finish(&mut out);
        out
    }

    #[test]
    fn dots_are_doubled_and_line_ends_made_crlf() {
        assert_eq!(stuff(&[b".a\r\n..b\r\n"]), b"..a\r\n...b\r\n.\r\n");
        assert_eq!(stuff(&[b"a\n.\nb\r.\rc"]), b"a\r\n..\r\nb\r\n..\r\nc\r\n.\r\n");
        assert_eq!(stuff(&[b"a\r", b"\n.", b"b"]), b"a\r\n..b\r\n.\r\n");
        assert_eq!(stuff(&[]), b".\r\n");
    }

    proptest! {
        #[test]
        fn what_goes_out_ends_only_at_its_end(
            body in prop::collection::vec(prop_oneof![Just(b'.'), Just(b'\r'), Just(b'\n'), 1u8..=255], 0..200),
            cut in any::<prop::sample::Index>(),
        ) {
            let (a, b) = body.split_at(cut.index(body.len() + 1));
            let out = stuff(&[a, b]);
            prop_assert_eq!(&out, &stuff(&[&body]));
            let mut scanner = Scanner::new(10_000, 10_000, Arc::clone(&Budget::new(1 << 20)));
            let (used, end) = scanner.feed(&out);
            prop_assert!(end.is_some());
            prop_assert_eq!(used, out.len());
            prop_assert!(scanner.finish().is_ok());
        }
    }
}
