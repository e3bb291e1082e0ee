//! Reports of mail that could not be delivered. RFC 3464 (message/delivery-status), RFC 6522 (multipart/report),
//! RFC 3834 (Auto-Submitted).
//!
//! A report goes to the reverse-path of the message and has itself the null reverse-path, so that no report is ever
//! made about a report (RFC 5321 4.5.5).

use bytes::Bytes;

use crate::{Address, headers, received::date};

/// Octets of the original header that a report carries at most.
const MAX_ORIGINAL_HEADER: usize = 64 * 1024;
/// Characters of an answer that a report carries at most.
const MAX_DIAGNOSTIC: usize = 500;

/// A recipient that the message did not reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedRecipient {
    /// To whom.
    pub address: Address,
    /// RFC 3463, for example `5.1.1`; anything else is reported as `5.0.0`.
    pub status: String,
    /// The other system's name, when it was one that refused.
    pub remote: Option<String>,
    /// The answer, or what happened, in words. With `remote`, an SMTP reply.
    pub diagnostic: String,
}

/// What a report tells.
#[derive(Debug, Clone)]
pub struct Report<'a> {
    /// This host.
    pub hostname: &'a str,
    /// Unique; for the Message-ID and the MIME boundary. Letters and digits only.
    pub id: &'a str,
    /// When the message was accepted, in milliseconds since 1970.
    pub arrived_millis: i64,
    /// Now, in milliseconds since 1970.
    pub at_millis: i64,
    /// Whom it did not reach; at least one.
    pub failed: &'a [FailedRecipient],
    /// The message it is about.
    pub original: &'a [u8],
}

/// One line of printable ASCII.
fn line(text: &str, max: usize) -> String {
    text.chars().take(max).map(|c| if (' '..='~').contains(&c) { c } else { '?' }).collect()
}

fn status(text: &str) -> &str {
    let digits = |part: &str, max: usize| {
        !part.is_empty() && part.len() <= max && part.bytes().all(|b| b.is_ascii_digit())
    };
    let parts: Vec<&str> = text.split('.').collect();
    match parts[..] {
        ["5", subject, detail] if digits(subject, 3) && digits(detail, 3) => text,
        _ => "5.0.0",
    }
}

impl Report<'_> {
    /// The report as a message to `reverse_path`; none when that is null.
    pub fn render(&self, reverse_path: Option<&Address>) -> Option<Bytes> {
        let to = reverse_path?;
        assert!(!self.failed.is_empty(), "a report is about somebody");
        assert!(self.id.bytes().all(|b| b.is_ascii_alphanumeric()), "the id stands in a MIME boundary");
        let boundary = format!("=_report_{}", self.id);
        let original = headers::section(self.original);
        let original = &original[..whole_lines(original, MAX_ORIGINAL_HEADER)];
        // RFC 6522: the header may hold octets above 127 (RFC 6532); they are passed on as they are.
        let encoding = if original.is_ascii() { "7bit" } else { "8bit" };
        let head = format!(
            "Date: {now}\r\nFrom: Mail Delivery System <postmaster@{host}>\r\nTo: <{to}>\r\n\
             Subject: Undelivered mail: returned to sender\r\nMessage-ID: <{id}@{host}>\r\n\
             Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"{boundary}\"\r\n\
             Content-Transfer-Encoding: {encoding}\r\n\r\n",
            now = date(self.at_millis),
            host = self.hostname,
            id = self.id,
        );
        let mut out = head.into_bytes();
        self.explanation(&boundary, &mut out);
        self.delivery_status(&boundary, &mut out);
        out.extend_from_slice(
            format!(
                "--{boundary}\r\nContent-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
            )
            .as_bytes(),
        );
        out.extend_from_slice(original);
        out.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        Some(out.into())
    }

    fn explanation(&self, boundary: &str, out: &mut Vec<u8>) {
        let mut text = format!(
            "--{boundary}\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n\
             This is the mail system at {}.\r\n\r\nYour message could not be delivered to:\r\n",
            self.hostname
        );
        for failed in self.failed {
            text.push_str(&format!("\r\n  <{}>\r\n", line(&failed.address.to_string(), MAX_DIAGNOSTIC)));
            if let Some(remote) = &failed.remote {
                text.push_str(&format!("  {} answered:\r\n", line(remote, 255)));
            }
            text.push_str(&format!("  {}\r\n", line(&failed.diagnostic, MAX_DIAGNOSTIC)));
        }
        text.push_str("\r\nIt will not be tried again. The header of your message is attached.\r\n\r\n");
        out.extend_from_slice(text.as_bytes());
    }

    fn delivery_status(&self, boundary: &str, out: &mut Vec<u8>) {
        let mut text = format!(
            "--{boundary}\r\nContent-Type: message/delivery-status\r\n\r\n\
             Reporting-MTA: dns; {}\r\nArrival-Date: {}\r\n",
            self.hostname,
            date(self.arrived_millis)
        );
        for failed in self.failed {
            text.push_str(&format!(
                "\r\nFinal-Recipient: rfc822; {}\r\nAction: failed\r\nStatus: {}\r\n",
                line(&failed.address.to_string(), MAX_DIAGNOSTIC),
                status(&failed.status)
            ));
            let kind = match &failed.remote {
                Some(remote) => {
                    text.push_str(&format!("Remote-MTA: dns; {}\r\n", line(remote, 255)));
                    "smtp"
                }
                None => "x-quorumail",
            };
            text.push_str(&format!(
                "Diagnostic-Code: {kind}; {}\r\n",
                line(&failed.diagnostic, MAX_DIAGNOSTIC)
            ));
        }
        text.push_str("\r\n");
        out.extend_from_slice(text.as_bytes());
    }
}

/// Length of as many whole lines as fit.
fn whole_lines(octets: &[u8], max: usize) -> usize {
    if octets.len() <= max {
        return octets.len();
    }
    octets[..max].iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1)
}

#[cfg(test)]
mod tests {
    use mail_parser::{MessageParser, MimeHeaders as _};

    use super::*;

    fn failed(diagnostic: &str) -> Vec<FailedRecipient> {
        vec![FailedRecipient {
            address: "bob@example.com".parse().unwrap(),
            status: "5.1.1".into(),
            remote: Some("mx.example.com".into()),
            diagnostic: diagnostic.into(),
        }]
    }

    fn report<'a>(failed: &'a [FailedRecipient], original: &'a [u8]) -> Report<'a> {
        Report {
            hostname: "mx.example.org",
            id: "ab12",
            arrived_millis: 0,
            at_millis: 60_000,
            failed,
            original,
        }
    }

    #[test]
    fn a_report_has_the_three_parts_of_rfc_6522() {
        let failed = failed("550 5.1.1 no such user\r\nEvil: x");
        let to = "alice@example.org".parse().unwrap();
        let original = b"Subject: hello\r\nX: y\r\n\r\nsecret text\r\n";
        let bytes = report(&failed, original).render(Some(&to)).unwrap();
        let message = MessageParser::default().parse(&bytes[..]).unwrap();
        assert_eq!(message.content_type().unwrap().subtype(), Some("report"));
        let types: Vec<String> = message.parts[1..]
            .iter()
            .map(|p| p.content_type().map(|t| format!("{}/{}", t.ctype(), t.subtype().unwrap())).unwrap())
            .collect();
        assert_eq!(types, ["text/plain", "message/delivery-status", "text/rfc822-headers"]);
        let text = std::str::from_utf8(&bytes).unwrap();
        assert!(text.contains("Auto-Submitted: auto-replied\r\n"));
        assert!(
            text.contains("Final-Recipient: rfc822; bob@example.com\r\nAction: failed\r\nStatus: 5.1.1\r\n")
        );
        assert!(text.contains("Diagnostic-Code: smtp; 550 5.1.1 no such user??Evil: x\r\n"));
        assert!(text.contains("Subject: hello\r\n") && !text.contains("secret text"));
        assert!(text.lines().all(|line| line.len() < 998));
    }

    #[test]
    fn no_report_is_made_about_a_report() {
        assert_eq!(report(&failed("x"), b"").render(None), None);
    }

    #[test]
    fn a_status_is_always_a_permanent_one() {
        for (given, told) in
            [("5.1.10", "5.1.10"), ("4.4.1", "5.0.0"), ("", "5.0.0"), ("5.x.1", "5.0.0"), ("5.1", "5.0.0")]
        {
            assert_eq!(status(given), told);
        }
    }

    #[test]
    fn a_huge_header_is_cut_at_a_line() {
        let original = "X: yyyyyyyy\r\n".repeat(20_000);
        let bytes =
            report(&failed("x"), original.as_bytes()).render(Some(&"a@b.org".parse().unwrap())).unwrap();
        assert!(bytes.len() < MAX_ORIGINAL_HEADER + 4096);
        assert!(bytes.windows(17).any(|w| w == b"yyyyyyyy\r\n\r\n--=_r"));
    }
}
