//! The machine alone: sequences of commands, and that the cutting up of octets makes no difference.

use std::sync::Arc;

use proptest::prelude::*;
use quorumail_message::Address;

use super::*;
use crate::{AuthFailure, Budget, Limits};

fn config(service: Service) -> Config {
    Config {
        hostname: "mx.example.org".into(),
        max_message_size: 10_000,
        service,
        limits: Limits { command_line: 100, text_line: 200, recipients: 3, ..Limits::default() },
        tls: None,
        implicit_tls: false,
        allow_plaintext_auth_from_loopback: true,
        memory: Budget::new(1 << 24),
    }
}

/// Plays a session against a backend that takes everything but addresses that begin with `no`.
struct Play {
    machine: Machine,
    transcript: String,
    calls: Vec<String>,
    messages: Vec<Message>,
    closed: Option<Closed>,
}

impl Play {
    fn new(service: Service) -> Self {
        let machine = Machine::new(Arc::new(config(service)), "127.0.0.1".parse().unwrap(), false);
        Self { machine, transcript: String::new(), calls: Vec::new(), messages: Vec::new(), closed: None }
    }

    fn send(&mut self, octets: &[u8]) {
        self.machine.receive(octets);
        while self.closed.is_none() {
            match self.machine.step() {
                Step::Again => {}
                Step::Read => break,
                Step::StartTls => self.machine.secured(),
                Step::Close(why) => self.closed = Some(why),
                Step::Call(call) => {
                    let answer = self.answer(call);
                    self.machine.answer(answer);
                }
            }
        }
        let output = std::mem::take(self.machine.output());
        self.transcript.push_str(&String::from_utf8(output).unwrap());
    }

    fn answer(&mut self, call: Call) -> Answer {
        let judge = |address: &Address| match address.local().starts_with("no") {
            true => Err(Reject { code: 550, enhanced: "5.1.1", text: "nobody".into() }),
            false => Ok(()),
        };
        match call {
            Call::Authenticate { user, password } => {
                self.calls.push(format!("auth {user}"));
                Answer::Authenticate(match password == "secret" {
                    true => Ok(Identity { address: user.parse().unwrap() }),
                    false => Err(AuthFailure::Denied),
                })
            }
            Call::Sender(sender) => {
                self.calls.push(format!("sender {sender:?}"));
                Answer::Sender(sender.as_ref().map_or(Ok(()), judge))
            }
            Call::Recipient(recipient) => {
                self.calls.push(format!("recipient {recipient}"));
                Answer::Recipient(judge(&recipient))
            }
            Call::Accept(message) => {
                self.calls.push(format!("accept {:?}", message.body));
                self.messages.push(*message);
                Answer::Accept(Ok("kept".into()))
            }
        }
    }

    fn codes(&self) -> Vec<u16> {
        let last = |line: &&str| line.as_bytes().get(3) == Some(&b' ');
        self.transcript.lines().filter(last).map(|line| line[..3].parse().unwrap()).collect()
    }
}

fn codes(service: Service, input: &str) -> Vec<u16> {
    let mut play = Play::new(service);
    play.send(input.as_bytes());
    play.codes()
}

#[test]
fn a_message_goes_through_with_its_envelope() {
    let mut play = Play::new(Service::Mx);
    play.send(
        b"EHLO client.example.com\r\nMAIL FROM:<Bob@example.com> BODY=8BITMIME\r\nRCPT TO:<alice@example.org>\r\n\
          RCPT TO:<nobody@example.org>\r\nRCPT TO:<ALICE@example.org>\r\nDATA\r\nSubject: x\r\n\r\n..dot \xc3\xbc\r\n.\r\nQUIT\r\n",
    );
    assert_eq!(play.codes(), [220, 250, 250, 250, 550, 250, 354, 250, 221]);
    assert_eq!(play.closed, Some(Closed::Quit));
    let [message] = &play.messages[..] else { panic!("{:?}", play.messages) };
    assert_eq!(message.body, "Subject: x\r\n\r\n.dot ü\r\n".as_bytes());
    assert_eq!(message.envelope.recipients, ["alice@example.org".parse::<Address>().unwrap()]);
    assert_eq!(message.envelope.reverse_path.as_ref().unwrap().to_string(), "Bob@example.com");
    assert!(message.envelope.eight_bit && message.envelope.esmtp);
}

#[test]
fn commands_out_of_sequence_are_refused() {
    assert_eq!(codes(Service::Mx, "MAIL FROM:<>\r\n"), [220, 503]);
    assert_eq!(codes(Service::Mx, "EHLO x\r\nRCPT TO:<a@b.org>\r\nDATA\r\n"), [220, 250, 503, 503]);
    assert_eq!(codes(Service::Mx, "EHLO x\r\nMAIL FROM:<>\r\nMAIL FROM:<>\r\n"), [220, 250, 250, 503]);
    assert_eq!(codes(Service::Mx, "EHLO x\r\nMAIL FROM:<>\r\nDATA\r\n"), [220, 250, 250, 554]);
    assert_eq!(
        codes(Service::Mx, "EHLO x\r\nMAIL FROM:<>\r\nRSET\r\nRCPT TO:<a@b.org>\r\n"),
        [220, 250, 250, 250, 503]
    );
    assert_eq!(
        codes(Service::Mx, "EHLO x\r\nMAIL FROM:<>\r\nEHLO x\r\nRCPT TO:<a@b.org>\r\n"),
        [220, 250, 250, 250, 503]
    );
    assert_eq!(codes(Service::Mx, "EHLO x\r\nSTARTTLS\r\nAUTH PLAIN\r\n"), [220, 250, 503, 503]);
}

#[test]
fn submission_requires_authentication() {
    assert_eq!(codes(Service::Submission, "EHLO x\r\nMAIL FROM:<a@b.org>\r\n"), [220, 250, 530]);
}

#[test]
fn both_mechanisms_authenticate_in_all_their_forms() {
    // \0a@b.org\0secret
    let plain = "AGFAYi5vcmcAc2VjcmV0";
    for exchange in [
        format!("AUTH PLAIN {plain}\r\n"),
        format!("auth plain\r\n{plain}\r\n"),
        "AUTH LOGIN\r\nYUBiLm9yZw==\r\nc2VjcmV0\r\n".into(),
        "AUTH LOGIN YUBiLm9yZw==\r\nc2VjcmV0\r\n".into(),
    ] {
        let mut play = Play::new(Service::Submission);
        play.send(format!("EHLO x\r\n{exchange}MAIL FROM:<a@b.org>\r\nAUTH PLAIN {plain}\r\n").as_bytes());
        let codes: Vec<u16> = play.codes().into_iter().filter(|c| *c != 334).collect();
        assert_eq!(codes, [220, 250, 235, 250, 503], "{exchange}");
        assert_eq!(play.calls[0], "auth a@b.org");
    }
}

#[test]
fn broken_authentication_is_refused() {
    // b@b.org as a@b.org; no base64; no parts; cancelled; wrong password.
    for (exchange, code) in [
        ("AUTH PLAIN YUBiLm9yZwBiQGIub3JnAHNlY3JldA==\r\n", 535),
        ("AUTH PLAIN !!!\r\n", 501),
        ("AUTH PLAIN YQ==\r\n", 501),
        ("AUTH PLAIN =\r\n", 501),
        ("AUTH PLAIN\r\n*\r\n", 501),
        ("AUTH PLAIN AGFAYi5vcmcAd3Jvbmc=\r\n", 535),
        ("AUTH CRAM-MD5\r\n", 504),
    ] {
        assert_eq!(
            codes(Service::Submission, &format!("EHLO x\r\n{exchange}")).last(),
            Some(&code),
            "{exchange}"
        );
    }
    let guess = "AUTH PLAIN AGFAYi5vcmcAd3Jvbmc=\r\n";
    assert_eq!(
        codes(Service::Submission, &format!("EHLO x\r\n{}", guess.repeat(5))),
        [220, 250, 535, 535, 535, 421]
    );
}

#[test]
fn limits_of_a_session_end_it() {
    assert_eq!(codes(Service::Mx, &"BOGUS\r\n".repeat(20)).len(), 1 + 10 + 1);
    let noops = codes(Service::Mx, &"NOOP\r\n".repeat(1100));
    assert_eq!((noops.len(), noops.last()), (1 + 1000 + 1, Some(&421)));
    let probe = format!("EHLO x\r\nMAIL FROM:<>\r\n{}", "RCPT TO:<no@b.org>\r\n".repeat(200));
    assert_eq!(codes(Service::Mx, &probe).len(), 3 + 100 + 1);
    let rcpts: String = (0..5).map(|n| format!("RCPT TO:<a{n}@b.org>\r\n")).collect();
    let many = codes(Service::Mx, &format!("EHLO x\r\nMAIL FROM:<>\r\n{rcpts}"));
    assert_eq!(many, [220, 250, 250, 250, 250, 250, 452, 452]);
}

#[test]
fn an_oversize_command_line_is_refused_and_the_session_goes_on() {
    let line = "x".repeat(99);
    assert_eq!(codes(Service::Mx, &format!("{line}\r\nNOOP\r\n")), [220, 500, 250]);
    assert_eq!(codes(Service::Mx, &format!("{}\r\nNOOP\r\n", "x".repeat(70_000))), [220, 500]);
}

#[test]
fn a_declared_size_beyond_the_limit_is_refused_before_the_message() {
    assert_eq!(codes(Service::Mx, "EHLO x\r\nMAIL FROM:<> SIZE=10001\r\n"), [220, 250, 552]);
    assert_eq!(codes(Service::Mx, "EHLO x\r\nMAIL FROM:<> SIZE=99999999999999999999\r\n"), [220, 250, 552]);
}

#[test]
fn bare_line_feed_never_ends_a_message() {
    let head = "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.org>\r\nDATA\r\n";
    let smuggled = "MAIL FROM:<evil@b.org>\r\nRCPT TO:<a@b.org>\r\nDATA\r\nevil\r\n.\r\n";
    for end in ["\n.\n", "\r\n.\n", "\n.\r\n", "\r.\r", "\r\n.\r", "\r.\r\n"] {
        let mut play = Play::new(Service::Mx);
        play.send(format!("{head}good{end}{smuggled}").as_bytes());
        assert!(play.messages.is_empty(), "{end:?}");
        assert_eq!(play.codes(), [220, 250, 250, 250, 354, 550], "{end:?}");
        assert_eq!(play.closed, Some(Closed::Ended), "{end:?}");
    }
}

#[test]
fn a_bare_line_feed_in_a_command_ends_the_session() {
    assert_eq!(codes(Service::Mx, "NOOP\nNOOP\r\n"), [220, 521]);
    assert_eq!(codes(Service::Mx, "NOOP\rNOOP\r\nNOOP\r\n"), [220, 500, 250]);
}

fn play(service: Service, chunks: &[&[u8]]) -> (String, Vec<String>, Option<Closed>) {
    let mut play = Play::new(service);
    // Sessions that go on after errors go deeper.
    let mut patient = config(service);
    patient.limits = Limits { errors: 1000, refusals: 1000, auth_failures: 1000, ..patient.limits };
    play.machine.config = Arc::new(patient);
    play.send(b"");
    for chunk in chunks {
        play.send(chunk);
    }
    (play.transcript, play.calls, play.closed)
}

/// Fragments that together come near to sessions.
fn fragments() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![
        Just(b"EHLO x\r\n".to_vec()),
        Just(b"MAIL FROM:<a@b.org>\r\n".to_vec()),
        Just(b"RCPT TO:<c@d.org>\r\n".to_vec()),
        Just(b"RCPT TO:<no@d.org>\r\n".to_vec()),
        Just(b"DATA\r\n".to_vec()),
        Just(b"\r\n.\r\n".to_vec()),
        Just(b"AUTH PLAIN AGFAYi5vcmcAc2VjcmV0\r\n".to_vec()),
        Just(b"AUTH LOGIN\r\n".to_vec()),
        Just(b"RSET\r\n".to_vec()),
        Just(b".".to_vec()),
        Just(b"\r".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(vec![b'x'; 150]),
        Just(vec![b'y'; 90]),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    let begin =
        &b"EHLO x\r\nAUTH PLAIN AGFAYi5vcmcAc2VjcmV0\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.org>\r\nDATA\r\n"[..];
    let prefix = prop_oneof![Just(&b""[..]), Just(begin)];
    (prefix, prop::collection::vec(fragment, 0..60))
        .prop_map(|(prefix, rest)| [prefix, &rest.concat()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_cutting_up_of_octets_makes_no_difference(
        input in fragments(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        submission in any::<bool>(),
    ) {
        let service = if submission { Service::Submission } else { Service::Mx };
        let whole = play(service, &[&input]);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        at.extend([0, input.len()]);
        at.sort_unstable();
        let chunks: Vec<&[u8]> = at.windows(2).map(|w| &input[w[0]..w[1]]).collect();
        prop_assert_eq!(&whole, &play(service, &chunks));
        let octets: Vec<&[u8]> = input.chunks(1).collect();
        prop_assert_eq!(&whole, &play(service, &octets));
    }

    #[test]
    fn random_octets_never_make_it_panic(input in prop::collection::vec(any::<u8>(), 0..5000)) {
        play(Service::Submission, &[&input]);
        play(Service::Mx, &[b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.org>\r\nDATA\r\n", &input]);
    }
}
