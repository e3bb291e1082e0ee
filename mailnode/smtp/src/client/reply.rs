//! Replies of a server. RFC 5321 4.2, RFC 2034.

use super::{Answer, Outcome};

/// Octets of a reply line. RFC 5321 4.5.3.1.5 says 512; some servers write more.
pub(super) const MAX_LINE: usize = 2048;
/// Lines of a reply: EHLO has the longest.
pub(super) const MAX_LINES: usize = 100;
/// Characters of a reply's text that are kept.
const MAX_TEXT: usize = 500;

/// A whole reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    /// Without code and separator.
    pub(super) lines: Vec<String>,
}

/// A line of a reply: code, whether it is the last, text. None: it is none.
pub(super) fn parse_line(line: &[u8]) -> Option<(u16, bool, String)> {
    let line = line.strip_suffix(b"\n")?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let digits = line.get(..3)?;
    if !matches!(digits[0], b'2'..=b'5') || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    let last = match line.get(3) {
        None | Some(b' ') => true,
        Some(b'-') => false,
        Some(_) => return None,
    };
    Some((code, last, String::from_utf8_lossy(line.get(4..).unwrap_or_default()).into_owned()))
}

/// One line without anything that could be mistaken for structure elsewhere.
pub(super) fn clean(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl Reply {
    pub(super) fn positive(&self) -> bool {
        (200..400).contains(&self.code)
    }

    /// What this reply means for a recipient, as an answer to RCPT or to the message.
    pub(super) fn outcome(&self) -> Outcome {
        let answer = self.answer();
        match self.code / 100 {
            2 => Outcome::Delivered(answer),
            5 => Outcome::Failed(answer),
            // A 3yz makes no sense here; another time may tell.
            _ => Outcome::Deferred(answer),
        }
    }

    pub(super) fn answer(&self) -> Answer {
        let text = clean(&self.lines.join(" "));
        let class = self.code / 100;
        let told = text.split(' ').next().filter(|word| enhanced(word, class));
        let status = told.map_or_else(|| format!("{class}.0.0"), str::to_owned);
        Answer { code: Some(self.code), status, text }
    }
}

/// Whether a word is a status code of RFC 3463 of this class.
fn enhanced(word: &str, class: u16) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    let number = |part: &&str| (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    parts.len() == 3 && parts.iter().all(number) && parts[0] == class.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_replies_are_read() {
        assert_eq!(parse_line(b"250-SIZE 10\r\n"), Some((250, false, "SIZE 10".into())));
        assert_eq!(parse_line(b"250\n"), Some((250, true, String::new())));
        for line in
            [&b"250 ok"[..], b"\r\n", b"25 x\r\n", b"150 x\r\n", b"250_x\r\n", b"abc d\r\n", b"\xff\r\n"]
        {
            assert_eq!(parse_line(line), None, "{line:?}");
        }
    }

    #[test]
    fn the_status_comes_from_the_reply_when_it_fits() {
        let status = |code, line: &str| Reply { code, lines: vec![line.into()] }.answer().status;
        assert_eq!(status(550, "5.1.1 nobody"), "5.1.1");
        assert_eq!(status(550, "4.1.1 odd"), "5.0.0");
        assert_eq!(status(450, "later"), "4.0.0");
    }
}
