//! One server session without I/O: octets in, replies out, and calls that the driver makes for it.
//!
//! The driver repeats [`Machine::step`] and does what it says; what the machine wants to send gathers in its output.
//! However the octets of a client are cut up on their way, the same calls and replies come out.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use quorumail_message::Address;

use crate::{
    Closed, Config, Envelope, Event, Identity, Limit, ProtocolError, Reject, Service,
    budget::Reservation,
    command::{self, Command},
    data::{End, Fault, Scanner},
    reply::Reply,
};

mod auth;
mod step;

pub(crate) use step::{Answer, Call, Message, Step, Waiting};

/// Longest line of an authentication exchange. RFC 4954 4.
const MAX_AUTH_LINE: usize = 12_288;
/// A command line that is too long is read to its end, but not further than this.
const MAX_DRAINED_LINE: usize = 64 * 1024;

/// What the machine is doing.
enum Phase {
    Command,
    /// Reads a line to its end that was too long. `cr`: the last octet was a CR.
    LongLine {
        drained: usize,
        cr: bool,
    },
    Auth(auth::Exchange),
    Data(Box<Scanner>),
    /// Until the answer comes.
    Calling(Pending),
    StartTls,
    Closed(Closed),
}

/// What is needed to go on after an answer.
enum Pending {
    Authenticate,
    Sender(Option<Address>),
    Recipient(Address),
    Accept { octets: usize, recipients: usize, _memory: Reservation },
}

struct Hello {
    name: String,
    esmtp: bool,
}

/// The envelope while it grows.
struct Draft {
    reverse_path: Option<Address>,
    recipients: Vec<Address>,
}

#[derive(Default)]
struct Counters {
    errors: u32,
    refusals: u32,
    auth_failures: u32,
    commands: u32,
    messages: u32,
}

/// One session.
pub(crate) struct Machine {
    config: Arc<Config>,
    remote: IpAddr,
    tls: bool,
    phase: Phase,
    input: Vec<u8>,
    output: Vec<u8>,
    events: Vec<Event>,
    hello: Option<Hello>,
    identity: Option<Identity>,
    draft: Option<Draft>,
    counters: Counters,
    progress: u64,
}

impl Machine {
    /// A session that begins; its greeting waits in the output.
    pub(crate) fn new(config: Arc<Config>, remote: IpAddr, tls: bool) -> Self {
        let mut machine = Self {
            remote,
            tls,
            phase: Phase::Command,
            input: Vec::new(),
            output: Vec::new(),
            events: Vec::new(),
            hello: None,
            identity: None,
            draft: None,
            counters: Counters::default(),
            progress: 0,
            config,
        };
        let greeting = format!("{} ESMTP Quorumail", machine.config.hostname);
        machine.say(220, "", greeting);
        machine
    }

    /// Takes octets of the client.
    pub(crate) fn receive(&mut self, octets: &[u8]) {
        if !matches!(self.phase, Phase::Closed(_)) {
            self.input.extend_from_slice(octets);
        }
    }

    /// Octets to send.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// What happened since the last call.
    pub(crate) fn events(&mut self) -> std::vec::Drain<'_, Event> {
        self.events.drain(..)
    }

    /// What the next read is for.
    pub(crate) fn waiting(&self) -> Waiting {
        if matches!(self.phase, Phase::Data(_)) { Waiting::Data } else { Waiting::Command }
    }

    /// Grows with every whole command, so that a driver can tell a slow client from a busy one.
    pub(crate) fn progress(&self) -> u64 {
        self.progress
    }

    /// Whether anybody authenticated.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Ends the session with a 421.
    pub(crate) fn stop(&mut self, enhanced: &'static str, text: &'static str, why: Closed) {
        self.say(421, enhanced, text);
        self.close(why);
    }

    /// Goes on after the TLS handshake. RFC 3207 4.2: what was said before it counts for nothing.
    pub(crate) fn secured(&mut self) {
        assert!(matches!(self.phase, Phase::StartTls), "a handshake follows STARTTLS only");
        self.tls = true;
        self.hello = None;
        self.identity = None;
        self.draft = None;
        self.phase = Phase::Command;
    }

    /// Does one thing and says what comes next.
    pub(crate) fn step(&mut self) -> Step {
        match &mut self.phase {
            Phase::Closed(why) => Step::Close(*why),
            Phase::StartTls => Step::StartTls,
            Phase::Calling(_) => unreachable!("the driver answers a call before it goes on"),
            Phase::Data(_) => self.step_data(),
            Phase::LongLine { .. } => self.step_long_line(),
            Phase::Command | Phase::Auth(_) => match self.take_line() {
                Some(line) => self.line(&line),
                None if matches!(self.phase, Phase::Command | Phase::Auth(_)) => Step::Read,
                None => Step::Again,
            },
        }
    }

    /// The next line without its CRLF. None: it is not there yet, or the phase has changed on something wrong.
    fn take_line(&mut self) -> Option<Vec<u8>> {
        let max = match self.phase {
            Phase::Auth(_) => MAX_AUTH_LINE,
            _ => self.config.limits.command_line,
        };
        let end = self.input.iter().position(|b| *b == b'\n');
        match end {
            Some(end) if end < max => {
                let mut line: Vec<u8> = self.input.drain(..=end).collect();
                line.pop();
                if line.pop_if(|b| *b == b'\r').is_none() {
                    self.bare_line_feed();
                    return None;
                }
                self.progress += 1;
                Some(line)
            }
            None if self.input.len() < max => None,
            _ => {
                self.limited(Limit::CommandLine);
                self.phase = Phase::LongLine { drained: 0, cr: false };
                None
            }
        }
    }

    /// Nothing after a LF without CR can be trusted to be a command: the client, or a relay before it, sees the ends
    /// of lines elsewhere.
    fn bare_line_feed(&mut self) {
        self.events.push(Event::Protocol(ProtocolError::BareLineEnd));
        self.say(521, "5.5.2", "A line ends with CRLF; closing");
        self.close(Closed::Ended);
    }

    fn step_long_line(&mut self) -> Step {
        let Phase::LongLine { drained, cr } = &mut self.phase else {
            unreachable!("only called in this phase");
        };
        let end = self.input.iter().position(|b| *b == b'\n');
        let used = end.map_or(self.input.len(), |end| end + 1);
        let proper = match end {
            Some(0) => *cr,
            Some(end) => self.input[end - 1] == b'\r',
            None => false,
        };
        *cr = self.input.last().map_or(*cr, |last| *last == b'\r');
        *drained += used;
        let endless = *drained > MAX_DRAINED_LINE;
        self.input.drain(..used);
        if endless {
            self.say(500, "5.5.2", "Line far too long; closing");
            self.close(Closed::Ended);
        } else if end.is_none() {
            return Step::Read;
        } else if !proper {
            self.bare_line_feed();
        } else {
            self.progress += 1;
            self.phase = Phase::Command;
            // RFC 5321 4.5.3.1.9.
            self.refuse((ProtocolError::Syntax, Reply::new(500, "5.5.2", "Line too long")));
        }
        Step::Again
    }

    fn line(&mut self, line: &[u8]) -> Step {
        if matches!(self.phase, Phase::Auth(_)) {
            return self.auth_line(line);
        }
        self.counters.commands += 1;
        if self.counters.commands > self.config.limits.commands {
            self.too_many(Limit::Commands, "Too many commands without a message");
            return Step::Again;
        }
        match command::parse(line, &self.config.hostname) {
            Ok(command) => self.command(command),
            Err(fault) => self.refuse(fault),
        }
    }

    fn command(&mut self, command: Command) -> Step {
        match command {
            Command::Hello { esmtp, name } => self.greet(name, esmtp),
            Command::Mail { reverse_path, size } => return self.mail(reverse_path, size),
            Command::Rcpt(recipient) => return self.rcpt(recipient),
            Command::Data => return self.data(),
            Command::Auth { mechanism, initial } => return self.auth(&mechanism, initial),
            Command::StartTls => return self.start_tls(),
            Command::Rset => {
                self.draft = None;
                self.say(250, "2.0.0", "Reset");
            }
            Command::Noop => self.say(250, "2.0.0", "OK"),
            // RFC 5321 3.5.3: whether an address exists is told at RCPT only.
            Command::Vrfy => self.say(252, "2.5.0", "Not verified here; try RCPT"),
            Command::Expn => {
                return self.refuse((
                    ProtocolError::UnknownCommand,
                    Reply::new(502, "5.5.1", "Lists are not shown"),
                ));
            }
            Command::Help => self.say(214, "2.0.0", "See RFC 5321"),
            Command::Quit => {
                self.say(221, "2.0.0", "Bye");
                self.close(Closed::Quit);
            }
        }
        Step::Again
    }

    fn greet(&mut self, name: String, esmtp: bool) {
        // RFC 5321 4.1.4: EHLO also resets.
        self.draft = None;
        let mut lines = vec![self.config.hostname.clone()];
        if esmtp {
            lines.push("PIPELINING".into());
            lines.push(format!("SIZE {}", self.config.max_message_size));
            lines.push("8BITMIME".into());
            lines.push("ENHANCEDSTATUSCODES".into());
            if self.may_start_tls() {
                lines.push("STARTTLS".into());
            }
            if self.may_authenticate() && self.identity.is_none() {
                lines.push("AUTH PLAIN LOGIN".into());
            }
        }
        let last = lines.len() - 1;
        for (number, line) in lines.iter().enumerate() {
            let mark = if number == last { ' ' } else { '-' };
            self.output.extend_from_slice(format!("250{mark}{line}\r\n").as_bytes());
        }
        self.events.push(Event::Reply(2));
        self.hello = Some(Hello { name, esmtp });
    }

    fn may_start_tls(&self) -> bool {
        self.config.tls.is_some() && !self.tls
    }

    fn may_authenticate(&self) -> bool {
        let plain_is_safe = self.config.allow_plaintext_auth_from_loopback && self.remote.is_loopback();
        self.config.service == Service::Submission && (self.tls || plain_is_safe)
    }

    fn start_tls(&mut self) -> Step {
        if !self.may_start_tls() {
            return self.out_of_sequence("STARTTLS is not possible here");
        }
        self.say(220, "2.0.0", "Go ahead");
        // RFC 3207 4: whatever came in plain text after the command was put there by somebody in between, or by a
        // client that cannot have meant it.
        self.input.clear();
        self.phase = Phase::StartTls;
        Step::StartTls
    }

    fn mail(&mut self, reverse_path: Option<Address>, size: u64) -> Step {
        if self.hello.is_none() {
            return self.out_of_sequence("Say EHLO first");
        }
        if self.draft.is_some() {
            return self.out_of_sequence("A message was begun already");
        }
        if self.config.service == Service::Submission && self.identity.is_none() {
            // RFC 6409 4.3.
            return self.refuse((ProtocolError::Sequence, Reply::new(530, "5.7.0", "Authenticate first")));
        }
        if self.counters.messages >= self.config.limits.messages {
            self.too_many(Limit::Messages, "Too many messages in one session");
            return Step::Again;
        }
        if size > self.config.max_message_size as u64 {
            self.limited(Limit::MessageSize);
            // RFC 1870 6.1.
            self.say(552, "5.3.4", "The message is larger than is allowed here");
            return Step::Again;
        }
        self.phase = Phase::Calling(Pending::Sender(reverse_path.clone()));
        Step::Call(Call::Sender(reverse_path))
    }

    fn rcpt(&mut self, recipient: Address) -> Step {
        let Some(draft) = &self.draft else {
            return self.out_of_sequence("MAIL comes before RCPT");
        };
        if draft.recipients.contains(&recipient) {
            self.say(250, "2.1.5", "Recipient known");
            return Step::Again;
        }
        if draft.recipients.len() >= self.config.limits.recipients {
            self.limited(Limit::Recipients);
            // RFC 5321 4.5.3.1.10.
            self.say(452, "4.5.3", "Too many recipients; send to the others again");
            return Step::Again;
        }
        self.phase = Phase::Calling(Pending::Recipient(recipient.clone()));
        Step::Call(Call::Recipient(recipient))
    }

    fn data(&mut self) -> Step {
        match &self.draft {
            None => self.out_of_sequence("MAIL comes before DATA"),
            Some(draft) if draft.recipients.is_empty() => {
                // RFC 5321 3.3.
                self.refuse((ProtocolError::Sequence, Reply::new(554, "5.5.1", "No valid recipients")))
            }
            Some(_) => {
                self.say(354, "", "End with a line of one dot");
                self.phase = Phase::Data(Box::new(Scanner::new(
                    self.config.max_message_size,
                    self.config.limits.text_line,
                    Arc::clone(&self.config.memory),
                )));
                Step::Again
            }
        }
    }

    fn step_data(&mut self) -> Step {
        let Phase::Data(scanner) = &mut self.phase else {
            unreachable!("only called in this phase");
        };
        let (used, end) = scanner.feed(&self.input);
        self.input.drain(..used);
        let Some(end) = end else {
            return Step::Read;
        };
        self.progress += 1;
        let Phase::Data(scanner) = std::mem::replace(&mut self.phase, Phase::Command) else {
            unreachable!("it was this phase a line ago");
        };
        let draft = self.draft.take().expect("DATA is entered with an envelope only");
        self.counters.messages += 1;
        match scanner.finish() {
            Ok((body, eight_bit, memory)) if matches!(end, End::Complete) => {
                return self.accept(draft, body, eight_bit, memory);
            }
            // The text ran on beyond all bounds without a fault of its own: it cannot, for the bound on its size is
            // lower. Answered like one that is too large all the same.
            Ok(_) => self.refuse_data(Fault::TooLarge),
            Err(fault) => self.refuse_data(fault),
        }
        if !matches!(end, End::Complete) {
            self.close(Closed::Ended);
        }
        Step::Again
    }

    fn accept(&mut self, draft: Draft, body: Bytes, eight_bit: bool, memory: Reservation) -> Step {
        let hello = self.hello.as_ref().expect("MAIL is taken after EHLO only");
        let envelope = Envelope {
            remote: self.remote,
            helo: hello.name.clone(),
            esmtp: hello.esmtp,
            tls: self.tls,
            service: self.config.service,
            identity: self.identity.clone(),
            reverse_path: draft.reverse_path,
            recipients: draft.recipients,
            eight_bit,
        };
        assert!(!envelope.recipients.is_empty(), "DATA is taken with recipients only");
        self.phase = Phase::Calling(Pending::Accept {
            octets: body.len(),
            recipients: envelope.recipients.len(),
            _memory: memory,
        });
        Step::Call(Call::Accept(Box::new(Message { envelope, body })))
    }

    fn refuse_data(&mut self, fault: Fault) {
        match fault {
            Fault::BareLineEnd => {
                let reply = Reply::new(550, "5.6.0", "The message has a line end other than CRLF");
                self.refuse((ProtocolError::BareLineEnd, reply));
            }
            Fault::Nul => {
                self.refuse((ProtocolError::Nul, Reply::new(550, "5.6.0", "The message has a NUL octet")));
            }
            Fault::LineTooLong => {
                self.limited(Limit::TextLine);
                self.say(552, "5.3.4", "The message has a line that is longer than is allowed here");
            }
            Fault::TooLarge => {
                self.limited(Limit::MessageSize);
                self.say(552, "5.3.4", "The message is larger than is allowed here");
            }
            Fault::Memory => {
                self.limited(Limit::Memory);
                self.say(452, "4.3.1", "Too much mail at once; try again later");
            }
        }
    }

    /// Goes on with the backend's answer.
    pub(crate) fn answer(&mut self, answer: Answer) {
        let Phase::Calling(pending) = std::mem::replace(&mut self.phase, Phase::Command) else {
            unreachable!("an answer follows a call only");
        };
        match (pending, answer) {
            (Pending::Authenticate, Answer::Authenticate(result)) => self.authenticated(result),
            (Pending::Sender(reverse_path), Answer::Sender(result)) => match result {
                Ok(()) => {
                    self.draft = Some(Draft { reverse_path, recipients: Vec::new() });
                    self.say(250, "2.1.0", "Sender OK");
                }
                Err(reject) => self.rejected(reject),
            },
            (Pending::Recipient(recipient), Answer::Recipient(result)) => match result {
                Ok(()) => {
                    self.draft
                        .as_mut()
                        .expect("RCPT is taken in a transaction only")
                        .recipients
                        .push(recipient);
                    self.say(250, "2.1.5", "Recipient OK");
                }
                Err(reject) => self.rejected(reject),
            },
            (Pending::Accept { octets, recipients, .. }, Answer::Accept(result)) => match result {
                Ok(text) => {
                    self.counters.commands = 0;
                    self.events.push(Event::Accepted { octets, recipients });
                    self.say(250, "2.0.0", text);
                }
                Err(reject) => {
                    self.events.push(Event::Rejected);
                    self.reply(&Reply::from(reject));
                }
            },
            _ => unreachable!("the driver answers the call that was made"),
        }
    }

    fn rejected(&mut self, reject: Reject) {
        self.events.push(Event::Rejected);
        self.reply(&Reply::from(reject));
        self.counters.refusals += 1;
        if self.counters.refusals >= self.config.limits.refusals {
            self.too_many(Limit::Refusals, "Too many refused addresses");
        }
    }

    fn out_of_sequence(&mut self, text: &'static str) -> Step {
        self.refuse((ProtocolError::Sequence, Reply::new(503, "5.5.1", text)))
    }

    /// Counts and answers an error of the client.
    fn refuse(&mut self, (kind, reply): command::Fault) -> Step {
        self.events.push(Event::Protocol(kind));
        self.reply(&reply);
        self.counters.errors += 1;
        if self.counters.errors >= self.config.limits.errors {
            self.too_many(Limit::Errors, "Too many errors");
        }
        Step::Again
    }

    fn too_many(&mut self, limit: Limit, text: &'static str) {
        self.limited(limit);
        self.stop("4.7.0", text, Closed::Ended);
    }

    fn limited(&mut self, limit: Limit) {
        self.events.push(Event::Limited(limit));
    }

    fn say(&mut self, code: u16, enhanced: &'static str, text: impl Into<std::borrow::Cow<'static, str>>) {
        self.reply(&Reply::new(code, enhanced, text));
    }

    fn reply(&mut self, reply: &Reply) {
        self.events
            .push(Event::Reply(u8::try_from(reply.code / 100).expect("a reply code has three digits")));
        reply.write(&mut self.output);
    }

    fn close(&mut self, why: Closed) {
        self.input = Vec::new();
        self.phase = Phase::Closed(why);
    }
}

#[cfg(test)]
mod tests;
