//! Command lines of the client. RFC 5321 4.1.1 and 4.1.2, RFC 1870 (SIZE), RFC 6152 (BODY), RFC 4954 (AUTH).

use quorumail_message::Address;

use crate::{ProtocolError, reply::Reply};

/// Longest EHLO argument kept. RFC 5321 4.5.3.1.2.
const MAX_HELO: usize = 255;
/// Most digits of SIZE=. RFC 1870 4.
const MAX_SIZE_DIGITS: usize = 20;

/// A command as it was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// EHLO (`esmtp`) or HELO.
    Hello {
        esmtp: bool,
        name: String,
    },
    /// MAIL. `size` is the SIZE= of RFC 1870.
    Mail {
        reverse_path: Option<Address>,
        size: u64,
    },
    /// RCPT.
    Rcpt(Address),
    Data,
    Rset,
    Noop,
    Quit,
    Vrfy,
    Expn,
    Help,
    StartTls,
    /// AUTH with its initial response, still in base64.
    Auth {
        mechanism: String,
        initial: Option<String>,
    },
}

/// Why a line is no command: what to count and what to answer.
pub(crate) type Fault = (ProtocolError, Reply);

fn syntax(code: u16, enhanced: &'static str, text: &'static str) -> Fault {
    (ProtocolError::Syntax, Reply::new(code, enhanced, text))
}

/// Reads a line without its CRLF. `hostname` completes the one address without a domain (RFC 5321 4.5.1).
pub(crate) fn parse(line: &[u8], hostname: &str) -> Result<Command, Fault> {
    if line.contains(&0) {
        return Err((ProtocolError::Nul, Reply::new(500, "5.5.2", "NUL is not allowed")));
    }
    // SMTPUTF8 (RFC 6531) is not offered, so a command has no business with octets above 127.
    let Some(line) = std::str::from_utf8(line).ok().filter(|l| l.is_ascii() && !l.contains('\r')) else {
        return Err(syntax(500, "5.5.2", "A command is a line of ASCII that ends with CRLF"));
    };
    let line = line.trim_end_matches([' ', '\t']);
    let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
    let argument = argument.trim();
    let bare = |command| {
        if argument.is_empty() {
            Ok(command)
        } else {
            Err(syntax(501, "5.5.4", "This command takes no argument"))
        }
    };
    match verb.to_ascii_uppercase().as_str() {
        "EHLO" => Ok(Command::Hello { esmtp: true, name: hello(argument)? }),
        "HELO" => Ok(Command::Hello { esmtp: false, name: hello(argument)? }),
        "MAIL" => mail(argument),
        "RCPT" => rcpt(argument, hostname),
        "DATA" => bare(Command::Data),
        "RSET" => bare(Command::Rset),
        "QUIT" => bare(Command::Quit),
        "STARTTLS" => bare(Command::StartTls),
        "NOOP" => Ok(Command::Noop),
        "HELP" => Ok(Command::Help),
        "VRFY" => Ok(Command::Vrfy),
        "EXPN" => Ok(Command::Expn),
        "AUTH" => auth(argument),
        _ => Err((ProtocolError::UnknownCommand, Reply::new(500, "5.5.1", "Command not known"))),
    }
}

fn hello(name: &str) -> Result<String, Fault> {
    // RFC 5321 4.1.4: a name that is wrong is no reason to refuse mail, but one that is no name at all is.
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    if name.is_empty() || name.len() > MAX_HELO || !name.bytes().all(ok) {
        return Err(syntax(501, "5.5.4", "Say your host name or address literal"));
    }
    Ok(name.to_owned())
}

/// Splits `FROM:<path> parameters` into path and parameters.
fn path<'a>(argument: &'a str, keyword: &str) -> Option<(&'a str, &'a str)> {
    let head = argument.get(..keyword.len())?;
    if !head.eq_ignore_ascii_case(keyword) {
        return None;
    }
    // A space after the colon is wrong (RFC 5321 3.3) but common and harmless.
    let rest = argument[keyword.len()..].trim_start().strip_prefix('<')?;
    let (path, parameters) = rest.split_once('>')?;
    if !parameters.is_empty() && !parameters.starts_with(' ') {
        return None;
    }
    // RFC 5321 4.1.1.3 and appendix C: a source route is accepted and ignored.
    let mailbox = match path.strip_prefix('@') {
        Some(route) => route.split_once(':')?.1,
        None => path,
    };
    Some((mailbox, parameters.trim()))
}

fn mail(argument: &str) -> Result<Command, Fault> {
    let (mailbox, parameters) =
        path(argument, "FROM:").ok_or_else(|| syntax(501, "5.5.4", "The form is MAIL FROM:<address>"))?;
    let reverse_path = if mailbox.is_empty() {
        None
    } else {
        Some(mailbox.parse().map_err(|_| syntax(553, "5.1.7", "The sender's address cannot be read"))?)
    };
    let mut size = 0;
    for parameter in parameters.split_ascii_whitespace() {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match key.to_ascii_uppercase().as_str() {
            "SIZE" => size = number(value).ok_or_else(|| syntax(501, "5.5.4", "SIZE= takes a number"))?,
            "BODY" if ["7BIT", "8BITMIME"].iter().any(|b| value.eq_ignore_ascii_case(b)) => {}
            "BODY" => return Err(syntax(501, "5.5.4", "BODY= is 7BIT or 8BITMIME")),
            // RFC 4954 5: who submitted the message elsewhere. Believed of nobody.
            "AUTH" if !value.is_empty() => {}
            _ => return Err(syntax(555, "5.5.4", "A parameter of MAIL is not supported")),
        }
    }
    Ok(Command::Mail { reverse_path, size })
}

fn number(digits: &str) -> Option<u64> {
    let ok =
        !digits.is_empty() && digits.len() <= MAX_SIZE_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    // Twenty digits may exceed 64 bits, which is too large in any case.
    ok.then(|| digits.parse().unwrap_or(u64::MAX))
}

fn rcpt(argument: &str, hostname: &str) -> Result<Command, Fault> {
    let (mailbox, parameters) =
        path(argument, "TO:").ok_or_else(|| syntax(501, "5.5.4", "The form is RCPT TO:<address>"))?;
    if !parameters.is_empty() {
        return Err(syntax(555, "5.5.4", "A parameter of RCPT is not supported"));
    }
    let unreadable = || syntax(553, "5.1.3", "The recipient's address cannot be read");
    // RFC 5321 4.5.1: <Postmaster> without a domain must be taken.
    if mailbox.eq_ignore_ascii_case("postmaster") {
        return format!("{mailbox}@{hostname}").parse().map(Command::Rcpt).map_err(|_| unreadable());
    }
    mailbox.parse().map(Command::Rcpt).map_err(|_| unreadable())
}

fn auth(argument: &str) -> Result<Command, Fault> {
    let mut words = argument.split_ascii_whitespace();
    let mechanism =
        words.next().ok_or_else(|| syntax(501, "5.5.4", "AUTH takes a mechanism"))?.to_ascii_uppercase();
    let initial = words.next().map(str::to_owned);
    match words.next() {
        None => Ok(Command::Auth { mechanism, initial }),
        Some(_) => Err(syntax(501, "5.5.4", "AUTH takes a mechanism and one response")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(line: &str) -> u16 {
        parse(line.as_bytes(), "mx.example.org").unwrap_err().1.code
    }

    #[test]
    fn paths_are_read_as_rfc_5321_writes_them() {
        let rcpt = |line: &str| match parse(line.as_bytes(), "mx.example.org") {
            Ok(Command::Rcpt(address)) => address.to_string(),
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(rcpt("RCPT TO:<alice@Example.org>"), "alice@example.org");
        assert_eq!(rcpt("rcpt to: <alice@example.org> "), "alice@example.org");
        assert_eq!(rcpt("RCPT TO:<@a.org,@b.org:alice@example.org>"), "alice@example.org");
        assert_eq!(rcpt("RCPT TO:<Postmaster>"), "Postmaster@mx.example.org");
        assert_eq!(
            parse(b"MAIL FROM:<> SIZE=10 BODY=8BITMIME AUTH=<>", "h"),
            Ok(Command::Mail { reverse_path: None, size: 10 })
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_right_code() {
        for (line, expected) in [
            ("", 500),
            ("HELLO x", 500),
            ("EHLO", 501),
            ("EHLO a b", 501),
            ("DATA now", 501),
            ("MAIL FROM:alice@example.org", 501),
            ("MAIL FROM:<alice@example.org>SIZE=1", 501),
            ("MAIL FROM:<alice@example.org> SIZE=x", 501),
            ("MAIL FROM:<alice@example.org> SMTPUTF8", 555),
            ("MAIL FROM:<alice>", 553),
            ("RCPT TO:<>", 553),
            ("RCPT TO:<\"a b\"@example.org>", 553),
            ("RCPT TO:<a@example.org> NOTIFY=NEVER", 555),
            ("RCPT TO:<j\u{fc}rgen@example.org>", 500),
            ("NOOP \0", 500),
            ("AUTH", 501),
        ] {
            assert_eq!(code(line), expected, "{line:?}");
        }
    }
}
