//! Trace headers that a mail server adds: Received and Return-Path. RFC 5321 4.4, RFC 3848 (ESMTPS and others).

use std::net::IpAddr;

use crate::{Address, Domain, date::rfc5322_date};

/// Longest HELO name that is copied. RFC 5321 4.5.3.1.2.
const MAX_HELO: usize = 255;

/// How a message came in, as a Received field tells it.
#[derive(Debug, Clone)]
pub struct Received<'a> {
    /// What the client called itself in EHLO or HELO; what could break the field is replaced.
    pub helo: &'a str,
    /// The client's network address.
    pub remote: IpAddr,
    /// This host.
    pub by: &'a Domain,
    /// Whether the client said EHLO.
    pub esmtp: bool,
    /// Whether the session was under TLS.
    pub tls: bool,
    /// Whether the client had authenticated.
    pub authenticated: bool,
    /// By what the message is found in the logs; letters and digits.
    pub id: &'a str,
    /// The recipient, when there is only one: with several, `for` would tell each of them about the others (RFC 5321
    /// 7.2).
    pub recipient: Option<&'a Address>,
    /// When it was received, in milliseconds since 1970.
    pub at_millis: i64,
}

impl Received<'_> {
    /// The whole field, folded, with CRLF at its end.
    pub fn to_header(&self) -> String {
        let helo: String = self.helo.chars().take(MAX_HELO).map(helo_character).collect();
        let helo = if helo.is_empty() { "unknown".to_owned() } else { helo };
        let literal = match self.remote.to_canonical() {
            IpAddr::V4(address) => address.to_string(),
            // RFC 5321 4.1.3.
            IpAddr::V6(address) => format!("IPv6:{address}"),
        };
        let id: String = self.id.chars().filter(char::is_ascii_alphanumeric).collect();
        let mut field = format!(
            "Received: from {helo} ([{literal}])\r\n\tby {} with {} id {id}",
            self.by,
            self.protocol()
        );
        // A Received field is ASCII unless SMTPUTF8 was asked for (RFC 6531 3.7.3), which it never is here.
        if let Some(recipient) = self.recipient.map(Address::to_string).filter(|text| text.is_ascii()) {
            field.push_str("\r\n\tfor <");
            field.push_str(&recipient);
            field.push('>');
        }
        field.push_str(";\r\n\t");
        field.push_str(&rfc5322_date(self.at_millis));
        field.push_str("\r\n");
        field
    }

    /// RFC 3848: S for TLS, A for authentication.
    fn protocol(&self) -> &'static str {
        match (self.esmtp, self.tls, self.authenticated) {
            (false, _, _) => "SMTP",
            (true, false, false) => "ESMTP",
            (true, true, false) => "ESMTPS",
            (true, false, true) => "ESMTPA",
            (true, true, true) => "ESMTPSA",
        }
    }
}

/// A name or an address literal needs no other characters; parentheses, quotes and `;` would change what the rest of
/// the field means.
fn helo_character(c: char) -> char {
    if c.is_ascii_alphanumeric() || "-._:[]".contains(c) { c } else { '?' }
}

/// The Return-Path field that final delivery puts first, with CRLF at its end. RFC 5321 4.4.
pub fn return_path(reverse_path: Option<&Address>) -> String {
    match reverse_path {
        Some(address) => format!("Return-Path: <{address}>\r\n"),
        None => "Return-Path: <>\r\n".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn received<'a>(helo: &'a str, by: &'a Domain, recipient: Option<&'a Address>) -> Received<'a> {
        Received {
            helo,
            remote: "192.0.2.7".parse().unwrap(),
            by,
            esmtp: true,
            tls: true,
            authenticated: false,
            id: "00ff",
            recipient,
            at_millis: 0,
        }
    }

    #[test]
    fn a_received_field_tells_the_way_of_the_message() {
        let (by, to) = ("mail.example.org".parse().unwrap(), "bob@example.org".parse().unwrap());
        assert_eq!(
            received("client.example.com", &by, Some(&to)).to_header(),
            "Received: from client.example.com ([192.0.2.7])\r\n\tby mail.example.org with ESMTPS id 00ff\r\n\t\
             for <bob@example.org>;\r\n\tThu, 01 Jan 1970 00:00:00 +0000\r\n"
        );
    }

    #[test]
    fn the_protocol_is_named_as_rfc_3848_says() {
        let by: Domain = "h".parse().unwrap();
        for (esmtp, tls, authenticated, name) in [
            (false, false, false, " SMTP "),
            (true, false, false, " ESMTP "),
            (true, true, false, " ESMTPS "),
            (true, false, true, " ESMTPA "),
            (true, true, true, " ESMTPSA "),
        ] {
            let field = Received { esmtp, tls, authenticated, ..received("c", &by, None) }.to_header();
            assert!(field.contains(name), "{field}");
        }
    }

    #[test]
    fn an_ipv6_client_is_named_by_its_literal() {
        let by: Domain = "h".parse().unwrap();
        let field =
            Received { remote: "2001:db8::1".parse().unwrap(), ..received("c", &by, None) }.to_header();
        assert!(field.contains("([IPv6:2001:db8::1])"), "{field}");
    }

    #[test]
    fn the_return_path_of_a_report_is_empty() {
        assert_eq!(return_path(None), "Return-Path: <>\r\n");
        assert_eq!(return_path(Some(&"a@b.org".parse().unwrap())), "Return-Path: <a@b.org>\r\n");
    }

    proptest! {
        #[test]
        fn no_client_can_break_out_of_the_field(helo in ".*", at in any::<i64>()) {
            let by: Domain = "h".parse().unwrap();
            let field = Received { at_millis: at, ..received(&helo, &by, None) }.to_header();
            prop_assert_eq!(field.matches("\r\n").count(), 3);
            prop_assert_eq!(field.matches('(').count(), 1);
            prop_assert!(field.is_ascii());
            prop_assert!(field.lines().all(|line| line.len() <= 998));
        }
    }
}
