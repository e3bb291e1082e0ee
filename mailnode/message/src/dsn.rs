//! Non-delivery reports: multipart/report (RFC 6522) with a delivery status (RFC 3464) and the header section of the
//! message that could not be delivered.
//!
//! The report's own reverse-path is null (RFC 5321 6.1); that is an affair of its envelope, not of what is here.

use bytes::Bytes;

use crate::{
    Address, Domain,
    date::rfc5322_date,
    headers::{self, fields},
    status::EnhancedStatus,
};

/// How much of the original header section a report carries; whole fields only.
pub const MAX_RETURNED_HEADERS: usize = 64 * 1024;
/// Longest diagnostic text, in characters.
const MAX_DIAGNOSTIC: usize = 1000;
/// Lines of our own are folded before they are longer. RFC 5322 2.1.1.
const FOLD_AT: usize = 76;

/// A recipient that did not get the message.
#[derive(Debug, Clone)]
pub struct FailedRecipient {
    /// Who.
    pub address: Address,
    /// Class 4 (given up) or 5.
    pub status: EnhancedStatus,
    /// The host that refused it.
    pub remote_mta: Option<String>,
    /// What that host said, or what happened here. Anything that a header field cannot hold is replaced.
    pub diagnostic: String,
    /// Whether `diagnostic` is an SMTP reply.
    pub is_reply: bool,
}

/// What a report tells.
#[derive(Debug, Clone)]
pub struct Report<'a> {
    /// This host.
    pub reporting_mta: &'a Domain,
    /// Unique; letters and digits. Becomes Message-ID and boundary.
    pub id: &'a str,
    /// The reverse-path of the message.
    pub to: &'a Address,
    /// When the message was accepted, in milliseconds since 1970.
    pub arrived_millis: i64,
    /// When the report is made, in milliseconds since 1970.
    pub now_millis: i64,
    /// At least one.
    pub recipients: &'a [FailedRecipient],
    /// The message that could not be delivered.
    pub original: &'a [u8],
}

impl Report<'_> {
    /// The report as a message with CRLF lines.
    pub fn to_message(&self) -> Bytes {
        let returned = returned_headers(self.original);
        let boundary = self.boundary(&returned);
        let mut out = Vec::with_capacity(returned.len() + 4096);
        self.write_header(&mut out, &boundary);
        self.write_text(&mut out, &boundary);
        self.write_status(&mut out, &boundary);
        let encoding = if returned.is_ascii() { "7bit" } else { "8bit" };
        line(&mut out, &format!("--{boundary}"));
        line(&mut out, "Content-Type: text/rfc822-headers");
        line(&mut out, &format!("Content-Transfer-Encoding: {encoding}"));
        line(&mut out, "");
        out.extend_from_slice(&returned);
        line(&mut out, "");
        line(&mut out, &format!("--{boundary}--"));
        out.into()
    }

    /// A boundary that no line of the returned fields begins with.
    fn boundary(&self, returned: &[u8]) -> String {
        let id: String = self.id.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
        let mut boundary = format!("=_report_{id}");
        while returned.windows(boundary.len()).any(|window| window == boundary.as_bytes()) {
            boundary.push('_');
        }
        boundary
    }

    fn write_header(&self, out: &mut Vec<u8>, boundary: &str) {
        let host = self.reporting_mta;
        let id: String = self.id.chars().filter(char::is_ascii_alphanumeric).collect();
        line(out, &format!("From: Mail Delivery System <MAILER-DAEMON@{host}>"));
        line(out, &format!("To: <{}>", self.to));
        line(out, "Subject: Your message could not be delivered");
        line(out, &format!("Date: {}", rfc5322_date(self.now_millis)));
        line(out, &format!("Message-ID: <{id}@{host}>"));
        if let Some(original) = self.original_message_id() {
            line(out, &format!("References: {original}"));
        }
        // RFC 3834 5: keeps vacation responders and list servers from answering.
        line(out, "Auto-Submitted: auto-replied");
        line(out, "MIME-Version: 1.0");
        line(out, "Content-Type: multipart/report; report-type=delivery-status;");
        line(out, &format!("\tboundary=\"{boundary}\""));
        line(out, "Content-Transfer-Encoding: 8bit");
        line(out, "");
    }

    /// The Message-ID of the original, when it is short and harmless enough to be repeated.
    fn original_message_id(&self) -> Option<String> {
        const LONGEST: usize = 250;
        let field = fields(self.original).find(|field| field.is("Message-ID"))?;
        let value = field.raw.splitn(2, |b| *b == b':').nth(1)?.trim_ascii();
        let fits = (3..=LONGEST).contains(&value.len())
            && value.starts_with(b"<")
            && value.ends_with(b">")
            && value.iter().all(u8::is_ascii_graphic);
        fits.then(|| String::from_utf8_lossy(value).into_owned())
    }

    fn write_text(&self, out: &mut Vec<u8>, boundary: &str) {
        line(out, &format!("--{boundary}"));
        line(out, "Content-Type: text/plain; charset=utf-8");
        line(out, "Content-Transfer-Encoding: 8bit");
        line(out, "");
        line(out, &format!("This is the mail system at {}.", self.reporting_mta));
        line(out, "");
        line(out, "Your message could not be delivered to the recipients below. It will not be");
        line(out, "tried again. The header of your message follows at the end.");
        for recipient in self.recipients {
            line(out, "");
            line(out, &format!("<{}>:", recipient.address));
            if recipient.status.class == 4 {
                line(out, "    It was tried again and again without success. The last failure was:");
            }
            if let Some(host) = &recipient.remote_mta {
                line(out, &format!("    The host {} answered:", plain(host)));
            }
            folded(out, "    ", &plain(&recipient.diagnostic), "    ");
        }
        line(out, "");
    }

    fn write_status(&self, out: &mut Vec<u8>, boundary: &str) {
        line(out, &format!("--{boundary}"));
        line(out, "Content-Type: message/delivery-status");
        line(out, "");
        line(out, &format!("Reporting-MTA: dns; {}", self.reporting_mta));
        line(out, &format!("Arrival-Date: {}", rfc5322_date(self.arrived_millis)));
        for recipient in self.recipients {
            line(out, "");
            line(out, &format!("Final-Recipient: {}", typed_address(&recipient.address)));
            line(out, "Action: failed");
            line(out, &format!("Status: {}", recipient.status));
            if let Some(host) = &recipient.remote_mta {
                line(out, &format!("Remote-MTA: dns; {}", plain(host)));
            }
            // RFC 3464 2.3.6: the type says whose words these are.
            let kind = if recipient.is_reply { "smtp" } else { "x-quorumail" };
            folded(out, &format!("Diagnostic-Code: {kind}; "), &plain(&recipient.diagnostic), "\t");
        }
        line(out, "");
    }
}

/// RFC 3464 2.3.2; RFC 6533 3 for addresses beyond ASCII.
fn typed_address(address: &Address) -> String {
    let text = address.to_string();
    if text.is_ascii() {
        return format!("rfc822; {text}");
    }
    let escaped: String = text
        .chars()
        .map(|c| if c.is_ascii() { c.to_string() } else { format!("\\x{{{:X}}}", u32::from(c)) })
        .collect();
    format!("utf-8; {escaped}")
}

/// Printable ASCII without line ends, never empty, at most [`MAX_DIAGNOSTIC`] characters.
fn plain(text: &str) -> String {
    let printable = |c: char| match c {
        ' '..='~' => c,
        c if c.is_whitespace() || c.is_control() => ' ',
        _ => '?',
    };
    let kept: String = text.trim().chars().take(MAX_DIAGNOSTIC).map(printable).collect();
    if kept.trim().is_empty() { "no reason was given".to_owned() } else { kept }
}

fn line(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// `text` behind `first`, on as many lines as it needs; the further ones begin with `next`.
fn folded(out: &mut Vec<u8>, first: &str, text: &str, next: &str) {
    let mut current = first.to_owned();
    let mut empty = true;
    for word in text.split_ascii_whitespace() {
        if !empty && current.len() + 1 + word.len() > FOLD_AT {
            line(out, &current);
            current = next.to_owned();
            empty = true;
        }
        if !empty {
            current.push(' ');
        }
        current.push_str(word);
        empty = false;
    }
    line(out, &current);
}

/// Whole fields of the original up to the limit, with CRLF lines and without NUL.
fn returned_headers(original: &[u8]) -> Vec<u8> {
    let section = headers::header_section(original);
    let mut kept = Vec::with_capacity(section.len().min(MAX_RETURNED_HEADERS));
    for field in fields(section) {
        let mut clean = Vec::with_capacity(field.raw.len() + 2);
        for text in field.raw.split_inclusive(|b| *b == b'\n') {
            clean.extend(text.iter().filter(|b| !matches!(**b, b'\r' | b'\n' | 0)));
            clean.extend_from_slice(b"\r\n");
        }
        if kept.len() + clean.len() > MAX_RETURNED_HEADERS {
            break;
        }
        kept.append(&mut clean);
    }
    kept
}

#[cfg(test)]
mod tests {
    use mail_parser::{MessageParser, MimeHeaders};
    use proptest::prelude::*;

    use super::*;

    fn failed(address: &str, status: EnhancedStatus, diagnostic: &str) -> FailedRecipient {
        FailedRecipient {
            address: address.parse().unwrap(),
            status,
            remote_mta: Some("mx.example.com".into()),
            diagnostic: diagnostic.into(),
            is_reply: true,
        }
    }

    fn report(recipients: &[FailedRecipient], original: &[u8]) -> Bytes {
        Report {
            reporting_mta: &"mail.example.org".parse().unwrap(),
            id: "0123abc",
            to: &"alice@example.org".parse().unwrap(),
            arrived_millis: 0,
            now_millis: 86_400_000,
            recipients,
            original,
        }
        .to_message()
    }

    #[test]
    fn a_report_has_its_three_parts() {
        let recipients = [
            failed("bob@example.com", EnhancedStatus::new(5, 1, 1), "550 5.1.1 no such user"),
            failed("eve@example.com", EnhancedStatus::EXPIRED, "connection refused"),
        ];
        let message =
            report(&recipients, b"Subject: gr\xfc\xdfe\r\nMessage-ID: <m1@x>\r\n\r\nsecret body\r\n");
        let parsed = MessageParser::default().parse(&message[..]).unwrap();
        assert_eq!(parsed.content_type().unwrap().subtype(), Some("report"));
        assert_eq!(parsed.header_raw("Auto-Submitted").unwrap().trim(), "auto-replied");
        assert_eq!(parsed.header_raw("References").unwrap().trim(), "<m1@x>");
        let parts: Vec<_> =
            parsed.parts[1..].iter().map(|part| part.content_type().unwrap().subtype().unwrap()).collect();
        assert_eq!(parts, ["plain", "delivery-status", "rfc822-headers"]);

        let text = String::from_utf8_lossy(&message).into_owned();
        for expected in [
            "From: Mail Delivery System <MAILER-DAEMON@mail.example.org>\r\n",
            "Reporting-MTA: dns; mail.example.org\r\nArrival-Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n\r\n",
            "Final-Recipient: rfc822; bob@example.com\r\nAction: failed\r\nStatus: 5.1.1\r\n\
             Remote-MTA: dns; mx.example.com\r\nDiagnostic-Code: smtp; 550 5.1.1 no such user\r\n\r\n",
            "Final-Recipient: rfc822; eve@example.com\r\nAction: failed\r\nStatus: 4.4.7\r\n",
        ] {
            assert!(text.contains(expected), "{expected}\n--\n{text}");
        }
        assert!(!text.contains("secret body"));
        assert!(
            message.windows(7).any(|window| window == b"gr\xfc\xdfe\r\n"),
            "8-bit fields are kept as they are"
        );
    }

    #[test]
    fn returned_headers_are_bounded() {
        let original = b"X-Filler: ".iter().copied().chain(std::iter::repeat_n(b'x', 900)).chain(*b"\r\n");
        let original: Vec<u8> = original.collect::<Vec<u8>>().repeat(1000);
        let returned = returned_headers(&original);
        assert!(returned.len() <= MAX_RETURNED_HEADERS && returned.len() > MAX_RETURNED_HEADERS - 1000);
        assert!(returned.ends_with(b"x\r\n"));
    }

    #[test]
    fn no_field_of_the_original_can_end_its_part() {
        let message = report(
            &[failed("b@x.org", EnhancedStatus::FAILED, "no")],
            b"--=_report_0123abc--: x\r\nSubject: y\r\n\r\n",
        );
        let parsed = MessageParser::default().parse(&message[..]).unwrap();
        assert_eq!(parsed.parts.len(), 4);
        assert!(parsed.parts[3].text_contents().unwrap().contains("Subject: y"));
    }

    #[test]
    fn an_address_beyond_ascii_is_escaped() {
        assert_eq!(typed_address(&"b\u{fc}b@x.org".parse().unwrap()), "utf-8; b\\x{FC}b@x.org");
    }

    proptest! {
        #[test]
        fn nothing_from_outside_breaks_a_report(
            diagnostic in ".*", host in ".*",
            original in proptest::collection::vec(
                prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b'-'), Just(b'a'), any::<u8>()], 0..500),
        ) {
            let mut recipient = failed("b@x.org", EnhancedStatus::FAILED, &diagnostic);
            recipient.remote_mta = Some(host);
            let message = report(&[recipient], &original);
            let parsed = MessageParser::default().parse(&message[..]).unwrap();
            prop_assert_eq!(parsed.parts.len(), 4);
            let bare = message.split(|b| *b == b'\n').rev().skip(1).any(|line| !line.ends_with(b"\r"));
            prop_assert!(!bare);
            let text = String::from_utf8_lossy(&message).into_owned();
            prop_assert_eq!(text.matches("\r\nStatus: ").count(), 1);
        }
    }
}
