//! Trace fields: what every server on the way adds. RFC 5321 4.4.

use std::net::IpAddr;

use jiff::{Timestamp, fmt::rfc2822, tz::TimeZone};

use crate::Address;

/// What a Received field tells.
#[derive(Debug, Clone)]
pub struct Received<'a> {
    /// What the client said in EHLO or HELO.
    pub helo: &'a str,
    /// The client's address.
    pub remote: IpAddr,
    /// This host's name.
    pub by: &'a str,
    /// EHLO and not HELO.
    pub esmtp: bool,
    /// Under TLS.
    pub tls: bool,
    /// After authentication.
    pub authenticated: bool,
    /// Under which the message is known here.
    pub id: &'a str,
    /// Only when there is exactly one: more would tell recipients of each other (RFC 5321 7.6).
    pub recipient: Option<&'a Address>,
    /// When it was received, in milliseconds since 1970.
    pub at_millis: i64,
}

impl Received<'_> {
    /// The field with its CRLF.
    pub fn render(&self) -> String {
        // RFC 3848: the protocol types.
        let with = match (self.esmtp || self.tls || self.authenticated, self.tls, self.authenticated) {
            (false, ..) => "SMTP",
            (true, false, false) => "ESMTP",
            (true, true, false) => "ESMTPS",
            (true, false, true) => "ESMTPA",
            (true, true, true) => "ESMTPSA",
        };
        let literal = match self.remote {
            IpAddr::V4(v4) => format!("[{v4}]"),
            // RFC 5321 4.1.3.
            IpAddr::V6(v6) => format!("[IPv6:{v6}]"),
        };
        // The name is the client's word; nothing in it may end the field or its comment.
        let helo: String = self
            .helo
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "-._:[]".contains(c) { c } else { '?' })
            .collect();
        let recipient = self.recipient.map(|r| format!("\r\n\tfor <{r}>")).unwrap_or_default();
        format!(
            "Received: from {helo} ({literal})\r\n\tby {} with {with} id {}{recipient};\r\n\t{}\r\n",
            self.by,
            self.id,
            date(self.at_millis)
        )
    }
}

/// The Return-Path field that final delivery adds, with its CRLF. RFC 5321 4.4.
pub fn return_path(reverse_path: Option<&Address>) -> String {
    reverse_path.map_or_else(|| "Return-Path: <>\r\n".into(), |path| format!("Return-Path: <{path}>\r\n"))
}

/// A date in the form of RFC 5322 3.3, in UTC.
pub fn date(at_millis: i64) -> String {
    let at = Timestamp::from_millisecond(at_millis).unwrap_or(Timestamp::UNIX_EPOCH);
    // The form cannot tell years before 1 or after 9999; the start of time is as good as any other answer to those.
    rfc2822::to_string(&at.to_zoned(TimeZone::UTC))
        .unwrap_or_else(|_| "Thu, 1 Jan 1970 00:00:00 +0000".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn received_has_the_form_of_rfc_5321() {
        let recipient = "alice@example.org".parse().unwrap();
        let mut received = Received {
            helo: "client (x)\r\nEvil: y",
            remote: "2001:db8::1".parse().unwrap(),
            by: "mx.example.org",
            esmtp: true,
            tls: true,
            authenticated: true,
            id: "0f",
            recipient: Some(&recipient),
            at_millis: 1_700_000_000_000,
        };
        assert_eq!(
            received.render(),
            "Received: from client??x???Evil:?y ([IPv6:2001:db8::1])\r\n\tby mx.example.org with ESMTPSA id 0f\r\n\t\
             for <alice@example.org>;\r\n\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
        );
        received.esmtp = false;
        received.tls = false;
        received.authenticated = false;
        assert!(received.render().contains(" with SMTP id "));
    }

    #[test]
    fn return_path_of_a_report_is_null() {
        assert_eq!(return_path(None), "Return-Path: <>\r\n");
        assert_eq!(return_path(Some(&"a@b.org".parse().unwrap())), "Return-Path: <a@b.org>\r\n");
    }

    #[test]
    fn no_instant_makes_it_panic() {
        for at in [i64::MIN, -1, 0, i64::MAX] {
            assert!(date(at).ends_with(" +0000"), "{}", date(at));
        }
    }
}
