//! The AUTH command. RFC 4954, RFC 4616 (PLAIN); LOGIN was never standardised but Outlook still speaks it.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Call, Machine, Pending, Phase, Step};
use crate::{AuthFailure, Event, Identity, Limit, ProtocolError, reply::Reply};

/// Base64 of "Username:" and "Password:", which clients of LOGIN wait for.
const ASK_USER: &str = "VXNlcm5hbWU6";
const ASK_PASSWORD: &str = "UGFzc3dvcmQ6";

/// Where an exchange is: what the client's next line is.
pub(super) enum Exchange {
    /// The one response of PLAIN.
    Plain,
    /// The first response of LOGIN.
    LoginUser,
    /// The second response of LOGIN.
    LoginPassword { user: String },
}

impl Machine {
    pub(super) fn auth(&mut self, mechanism: &str, initial: Option<String>) -> Step {
        if self.config.service != crate::Service::Submission {
            return self.out_of_sequence("There is no authentication on this port");
        }
        if !self.may_authenticate() {
            // RFC 4954 6: 538.
            let reply = Reply::new(538, "5.7.11", "Encryption is required for authentication");
            return self.refuse((ProtocolError::Sequence, reply));
        }
        if self.hello.as_ref().is_none_or(|hello| !hello.esmtp) {
            return self.out_of_sequence("Say EHLO first");
        }
        if self.identity.is_some() || self.draft.is_some() {
            // RFC 4954 4: once a session, and not within a message.
            return self.out_of_sequence("Not now");
        }
        let (exchange, challenge) = match mechanism {
            "PLAIN" => (Exchange::Plain, ""),
            "LOGIN" => (Exchange::LoginUser, ASK_USER),
            _ => {
                let reply = Reply::new(504, "5.5.4", "Mechanisms are PLAIN and LOGIN");
                return self.refuse((ProtocolError::Syntax, reply));
            }
        };
        self.phase = Phase::Auth(exchange);
        match initial {
            // RFC 4954 4: "=" is an initial response of no octets.
            Some(initial) if initial == "=" => self.auth_line(b""),
            Some(initial) => self.auth_line(initial.as_bytes()),
            None => {
                self.say(334, "", challenge);
                Step::Again
            }
        }
    }

    pub(super) fn auth_line(&mut self, line: &[u8]) -> Step {
        let Phase::Auth(exchange) = std::mem::replace(&mut self.phase, Phase::Command) else {
            unreachable!("only called in this phase");
        };
        if line == b"*" {
            // RFC 4954 4: the client gives up.
            return self
                .refuse((ProtocolError::Syntax, Reply::new(501, "5.7.0", "Authentication cancelled")));
        }
        let decoded = STANDARD.decode(line).ok().and_then(|octets| String::from_utf8(octets).ok());
        let Some(decoded) = decoded else {
            return self
                .refuse((ProtocolError::Syntax, Reply::new(501, "5.5.2", "That is no base64 of UTF-8")));
        };
        match exchange {
            Exchange::Plain => {
                let mut parts = decoded.split('\0');
                match (parts.next(), parts.next(), parts.next(), parts.next()) {
                    // RFC 4616 2: nobody may act as another here, so an authorisation identity adds nothing.
                    (Some(authorisation), Some(user), Some(password), None)
                        if authorisation.is_empty() || authorisation == user =>
                    {
                        self.check(user.to_owned(), password.to_owned())
                    }
                    (Some(_), Some(_), Some(_), None) => {
                        self.authenticated(Err(AuthFailure::Denied));
                        Step::Again
                    }
                    _ => {
                        let reply = Reply::new(501, "5.5.2", "That is no response of PLAIN");
                        self.refuse((ProtocolError::Syntax, reply))
                    }
                }
            }
            Exchange::LoginUser => {
                self.phase = Phase::Auth(Exchange::LoginPassword { user: decoded });
                self.say(334, "", ASK_PASSWORD);
                Step::Again
            }
            Exchange::LoginPassword { user } => self.check(user, decoded),
        }
    }

    fn check(&mut self, user: String, password: String) -> Step {
        self.phase = Phase::Calling(Pending::Authenticate);
        Step::Call(Call::Authenticate { user, password })
    }

    pub(super) fn authenticated(&mut self, result: Result<Identity, AuthFailure>) {
        let failure = match result {
            Ok(identity) => {
                self.identity = Some(identity);
                self.events.push(Event::Authenticated);
                return self.say(235, "2.7.0", "Authenticated");
            }
            Err(failure) => failure,
        };
        self.events.push(Event::AuthFailed(failure));
        match failure {
            AuthFailure::Denied => self.say(535, "5.7.8", "User name or password is wrong"),
            AuthFailure::Throttled => self.say(454, "4.7.0", "Too many failures; try again later"),
            AuthFailure::Unavailable => {
                self.say(454, "4.7.0", "Authentication is not possible at the moment")
            }
        }
        self.counters.auth_failures += 1;
        if self.counters.auth_failures >= self.config.limits.auth_failures {
            self.too_many(Limit::AuthFailures, "Too many failed authentications");
        }
    }
}
