//! Capabilities, TLS and log-in. RFC 9051 6.1, 6.2; RFC 4616 (PLAIN), RFC 4959 (SASL-IR).

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Done, Reply, Session};
use crate::{Closed, Event, Limit, LoginFailure};

/// What is served in every state. IMAP4rev2 is not named: it is not complete.
const ALWAYS: &str = "IMAP4rev1 LITERAL+ SASL-IR ID ENABLE";
/// What is served after log-in.
const AFTER_LOGIN: &str = "IDLE NAMESPACE UIDPLUS UNSELECT MOVE CHILDREN SPECIAL-USE CREATE-SPECIAL-USE \
                           LIST-EXTENDED LIST-STATUS STATUS=SIZE ESEARCH CONDSTORE";

impl Session {
    pub(super) fn capabilities(&self) -> String {
        if self.mailbox.is_some() {
            return format!("{ALWAYS} {AFTER_LOGIN} APPENDLIMIT={}", self.shared.config.max_message_size);
        }
        let mut out = ALWAYS.to_owned();
        if self.tls_offered() {
            out.push_str(" STARTTLS");
        }
        out.push_str(if self.may_log_in() { " AUTH=PLAIN" } else { " LOGINDISABLED" });
        out
    }

    pub(super) fn capability_code(&self) -> String {
        format!("[CAPABILITY {}]", self.capabilities())
    }

    fn tls_offered(&self) -> bool {
        self.shared.config.tls.is_some() && !self.connection.is_tls()
    }

    /// RFC 9051 11.1: no passwords in the clear, except on the way to oneself where that was wished for.
    fn may_log_in(&self) -> bool {
        let config = &self.shared.config;
        self.connection.is_tls() || (config.allow_plaintext_auth_from_loopback && self.remote.is_loopback())
    }

    pub(super) fn may_start_tls(&self) -> Done {
        if self.mailbox.is_some() {
            return Err(Reply::bad("STARTTLS comes before log-in").into());
        }
        if !self.tls_offered() {
            return Err(Reply::bad("STARTTLS is not offered").into());
        }
        Ok(Reply::ok("begin TLS"))
    }

    pub(super) async fn start_tls(&mut self) -> Result<(), Closed> {
        self.connection.flush().await?;
        // What was sent in the clear behind STARTTLS may be somebody else's and is not looked at.
        self.connection.framer.clear();
        let Some(source) = self.shared.config.tls.clone() else {
            return Err(Closed::Handshake);
        };
        self.connection.start_tls(source.as_ref(), self.shared.config.limits.handshake).await?;
        self.shared.observer.observe(Event::Tls);
        Ok(())
    }

    pub(super) async fn login(&mut self, user: &str, password: &str) -> Done {
        if self.mailbox.is_some() {
            return Err(Reply::bad("already logged in").into());
        }
        if !self.may_log_in() {
            return Err(Reply::no("[PRIVACYREQUIRED]", "log in under TLS").into());
        }
        let (shared, remote) = (self.shared.clone(), self.remote);
        let limit = shared.config.limits.backend;
        let outcome = tokio::time::timeout(limit, shared.backend.login(user, password, remote)).await;
        match outcome.unwrap_or(Err(LoginFailure::Unavailable)) {
            Ok(mailbox) => {
                self.mailbox = Some(mailbox);
                self.connection.framer.authenticated();
                self.shared.observer.observe(Event::Authenticated);
                Ok(Reply { code: self.capability_code(), ..Reply::ok("logged in") })
            }
            Err(failure) => self.login_failed(failure).await,
        }
    }

    async fn login_failed(&mut self, failure: LoginFailure) -> Done {
        self.shared.observer.observe(Event::AuthFailed(failure));
        // RFC 5530 3: UNAVAILABLE keeps a mail program from asking for a new password.
        let reply = match failure {
            LoginFailure::Denied => Reply::no("[AUTHENTICATIONFAILED]", "user name or password is wrong"),
            LoginFailure::Throttled => Reply::no("[UNAVAILABLE]", "too many failed log-ins, try again later"),
            LoginFailure::Unavailable => {
                Reply::no("[UNAVAILABLE]", "log-in is not possible now, try again later")
            }
        };
        tokio::time::sleep(self.shared.config.limits.auth_delay).await;
        self.auth_failures += 1;
        if self.auth_failures >= self.shared.config.limits.auth_failures {
            self.shared.observer.observe(Event::Limited(Limit::AuthFailures));
            return Err(self.bye("too many failed log-ins").into());
        }
        Err(reply.into())
    }

    pub(super) async fn authenticate(&mut self, mechanism: &str, initial: Option<Vec<u8>>) -> Done {
        if mechanism != "PLAIN" {
            return Err(Reply::no("[CANNOT]", "the only mechanism is PLAIN").into());
        }
        if self.mailbox.is_some() {
            return Err(Reply::bad("already logged in").into());
        }
        if !self.may_log_in() {
            return Err(Reply::no("[PRIVACYREQUIRED]", "log in under TLS").into());
        }
        let response = match initial {
            Some(response) => response,
            None => self.challenge().await?,
        };
        let Some((user, password)) = plain(&response) else {
            return Err(Reply::bad("this is no response of the mechanism PLAIN").into());
        };
        self.login(user, password).await
    }

    /// An empty challenge, and the decoded response.
    async fn challenge(&mut self) -> Result<Vec<u8>, super::Stop> {
        self.connection.out.line("+ ");
        let until = self.until();
        let line = match self.connection.next_line(until).await? {
            Ok(line) => line,
            Err(why) => return Err(self.bye(why).into()),
        };
        // RFC 9051 6.2.2.
        if line.as_ref() == b"*" {
            return Err(Reply::bad("authentication was cancelled").into());
        }
        STANDARD.decode(&line).map_err(|_| Reply::bad("the response is not base 64").into())
    }
}

/// RFC 4616 2: authorization identity, user and password, with NUL between. Acting for another is not served.
fn plain(response: &[u8]) -> Option<(&str, &str)> {
    let mut parts = std::str::from_utf8(response).ok()?.split('\0');
    let (acting, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    let fits = parts.next().is_none() && !user.is_empty() && (acting.is_empty() || acting == user);
    fits.then_some((user, password))
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn only_proper_plain_responses_are_taken() {
        assert_eq!(plain(b"\0alice\0secret"), Some(("alice", "secret")));
        assert_eq!(plain(b"alice\0alice\0"), Some(("alice", "")));
        for wrong in [&b"bob\0alice\0secret"[..], b"alice\0secret", b"\0\0x", b"\0a\0b\0c", b"\0\xff\0b", b""]
        {
            assert_eq!(plain(wrong), None, "{wrong:?}");
        }
    }
}
