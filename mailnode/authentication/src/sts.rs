//! MTA-STS: that mail for a domain is sent over verified TLS only. RFC 8461.

/// For how long others may keep a policy, in seconds. RFC 8461 3.2 recommends weeks.
const MAX_AGE: u32 = 1_209_600;

/// What others do when a connection is not as the policy says. RFC 8461 3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They tell, and send the mail.
    Testing,
    /// They do not send it.
    Enforce,
}

/// The policy as it is served. RFC 8461 3.2. `host`: the MX of the domain.
pub fn policy(mode: Mode, host: &str) -> String {
    let mode = match mode {
        Mode::Testing => "testing",
        Mode::Enforce => "enforce",
    };
    let host = host.trim_end_matches('.').to_lowercase();
    format!("version: STSv1\r\nmode: {mode}\r\nmx: {host}\r\nmax_age: {MAX_AGE}\r\n")
}
