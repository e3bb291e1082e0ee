//! What becomes of recipients after an attempt: a pure function from outcomes to changes of the queue.

use std::time::Duration;

use quorumail_message::{Address, EnhancedStatus, FailedRecipient};
use quorumail_store::{QueueClass, QueueEntry, QueueRecipient, Timestamp};

use crate::{Event, Receiver, Retry, backoff::retry_delay};

/// Longest `last_error`, in characters.
pub(crate) const MAX_ERROR: usize = 1000;
/// The shortest wait after an attempt whose outcome is not known: such states pass within seconds as a rule.
const UNKNOWN_FIRST: Duration = Duration::from_secs(2);

/// Why a recipient did not get the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason {
    /// A reply, or words of our own that begin with an enhanced status code.
    pub(crate) text: String,
    /// Who said so, when it was another host.
    pub(crate) host: Option<String>,
    /// Whether `text` is an SMTP reply.
    pub(crate) is_reply: bool,
}

impl Reason {
    /// Found out here.
    pub(crate) fn own(text: impl Into<String>) -> Self {
        Self { text: text.into(), host: None, is_reply: false }
    }
}

/// What came of an attempt for one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// By this host, when it was another.
    Delivered(Option<String>),
    Deferred(Reason),
    Failed(Reason),
    /// Whether it was delivered is not known, and the same command will find out. It does not count as an attempt.
    Unknown(String),
}

/// What is to be done.
#[derive(Debug, Default)]
pub(crate) struct Settlement {
    /// Recipients that are finished with.
    pub(crate) done: Vec<Address>,
    /// Recipients with a new state.
    pub(crate) changed: Vec<QueueRecipient>,
    /// Recipients that the sender is told about; they are in `done` as well.
    pub(crate) reported: Vec<(QueueRecipient, FailedRecipient)>,
    /// For metrics, once it is done.
    pub(crate) events: Vec<(QueueClass, Receiver, Event)>,
    /// Reports that are given up, for the log.
    pub(crate) dropped: Vec<String>,
}

/// Decides. `random` gives numbers between 0 and 1 for the jitter of waits.
pub(crate) fn settle(
    entry: &QueueEntry,
    outcomes: Vec<(QueueRecipient, Outcome)>,
    now: Timestamp,
    retry: &Retry,
    mut random: impl FnMut() -> f64,
) -> Settlement {
    let mut settlement = Settlement::default();
    let age = Duration::from_millis(u64::try_from(now.0.saturating_sub(entry.arrived.0)).unwrap_or(0));
    for (recipient, outcome) in outcomes {
        match outcome {
            Outcome::Delivered(host) => {
                let receiver = receiver(&recipient, host.as_deref());
                settlement.events.push((recipient.class, receiver, Event::Delivered { after: age }));
                settlement.done.push(recipient.address);
            }
            Outcome::Failed(reason) => {
                let status = EnhancedStatus::find(&reason.text).filter(|status| status.class == 5);
                settlement.fail(entry, recipient, reason, status.unwrap_or(EnhancedStatus::FAILED));
            }
            Outcome::Deferred(reason) if age >= retry.give_up_after => {
                let status = EnhancedStatus::find(&reason.text).filter(|status| status.class == 4);
                settlement.fail(entry, recipient, reason, status.unwrap_or(EnhancedStatus::EXPIRED));
            }
            Outcome::Deferred(reason) => {
                let attempts = recipient.attempts.saturating_add(1);
                // The last attempt is made when the time is over, not up to an hour after it.
                let left = retry.give_up_after.saturating_sub(age);
                let delay = retry_delay(retry, attempts, random()).min(left);
                let receiver = receiver(&recipient, reason.host.as_deref());
                settlement.events.push((recipient.class, receiver, Event::Deferred));
                settlement.later(recipient, attempts, now, delay, &reason.text);
            }
            Outcome::Unknown(text) => {
                // Attempts are not counted, so the age stands in for them: the wait grows with it.
                let delay = (age / 4).clamp(UNKNOWN_FIRST, retry.max.max(UNKNOWN_FIRST));
                let attempts = recipient.attempts;
                settlement.later(recipient, attempts, now, delay, &text);
            }
        }
    }
    settlement
}

fn receiver(recipient: &QueueRecipient, host: Option<&str>) -> Receiver {
    match recipient.class {
        QueueClass::Local => Receiver::Here,
        _ => Receiver::of(host, recipient.address.domain()),
    }
}

impl Settlement {
    fn later(
        &mut self,
        recipient: QueueRecipient,
        attempts: u32,
        now: Timestamp,
        delay: Duration,
        error: &str,
    ) {
        let delay = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        self.changed.push(QueueRecipient {
            attempts,
            next_attempt: now.plus_millis(delay),
            last_error: bounded(error),
            ..recipient
        });
    }

    fn fail(
        &mut self,
        entry: &QueueEntry,
        recipient: QueueRecipient,
        reason: Reason,
        status: EnhancedStatus,
    ) {
        let class = recipient.class;
        let receiver = receiver(&recipient, reason.host.as_deref());
        if entry.reverse_path.is_some() {
            self.done.push(recipient.address.clone());
            self.events.push((class, receiver, Event::Bounced));
            let failed = FailedRecipient {
                address: recipient.address.clone(),
                status,
                remote_mta: reason.host,
                diagnostic: reason.text,
                is_reply: reason.is_reply,
            };
            self.reported.push((recipient, failed));
        } else if class == QueueClass::Local {
            // A report must not cause a report (RFC 5321 6.1), and one of our own people misses it.
            self.events.push((class, receiver, Event::Bad));
            let attempts = recipient.attempts.saturating_add(1);
            let last_error = bounded(&reason.text);
            self.changed.push(QueueRecipient { class: QueueClass::Bad, attempts, last_error, ..recipient });
        } else {
            self.events.push((class, receiver, Event::Dropped));
            self.dropped.push(bounded(&reason.text));
            self.done.push(recipient.address);
        }
    }
}

/// Without control characters, at most [`MAX_ERROR`] characters.
fn bounded(text: &str) -> String {
    text.trim().chars().take(MAX_ERROR).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use quorumail_store::QueueId;

    use super::*;

    const DAY: i64 = 24 * 3600 * 1000;

    fn recipient(class: QueueClass) -> QueueRecipient {
        QueueRecipient {
            address: "bob@example.com".parse().unwrap(),
            class,
            attempts: 2,
            next_attempt: Timestamp(0),
            last_error: String::new(),
        }
    }

    fn settled(class: QueueClass, reverse_path: Option<&str>, outcome: Outcome, now: i64) -> Settlement {
        let entry = QueueEntry {
            id: QueueId(1),
            reverse_path: reverse_path.map(|text| text.parse().unwrap()),
            recipients: vec![recipient(class)],
            arrived: Timestamp(0),
            size: 1,
            eight_bit: false,
        };
        settle(&entry, vec![(recipient(class), outcome)], Timestamp(now), &Retry::default(), || 0.5)
    }

    fn deferred(text: &str) -> Outcome {
        Outcome::Deferred(Reason::own(text))
    }

    #[test]
    fn a_deferred_recipient_waits_longer_each_time() {
        let settlement =
            settled(QueueClass::Remote, Some("a@x.org"), deferred("451 4.7.1 greylisted\r\nx"), 1000);
        let [changed] = settlement.changed.as_slice() else { panic!() };
        assert_eq!((changed.attempts, changed.next_attempt), (3, Timestamp(241_000)));
        assert_eq!(changed.last_error, "451 4.7.1 greylisted  x");
        assert!(settlement.done.is_empty() && settlement.reported.is_empty());
    }

    #[test]
    fn an_error_is_bounded() {
        let settlement = settled(QueueClass::Remote, None, deferred(&"\u{e9}".repeat(5000)), 1);
        assert_eq!(settlement.changed[0].last_error.chars().count(), MAX_ERROR);
    }

    #[test]
    fn the_last_attempt_is_made_when_the_time_is_over() {
        let settlement = settled(QueueClass::Remote, Some("a@x.org"), deferred("x"), 5 * DAY - 5);
        assert_eq!(settlement.changed[0].next_attempt, Timestamp(5 * DAY));
    }

    #[test]
    fn a_recipient_is_given_up_when_the_time_is_over() {
        for (text, status) in [("451 4.7.1 greylisted", "4.7.1"), ("connection refused", "4.4.7")] {
            let settlement = settled(QueueClass::Remote, Some("a@x.org"), deferred(text), 5 * DAY);
            assert_eq!(settlement.reported[0].1.status.to_string(), status);
            assert_eq!(settlement.done.len(), 1);
        }
    }

    #[test]
    fn a_refusal_is_reported_with_its_status() {
        for (text, status) in [("550 5.1.1 no", "5.1.1"), ("550 no", "5.0.0"), ("554 4.1.1 no", "5.0.0")] {
            let outcome =
                Outcome::Failed(Reason { text: text.into(), host: Some("mx".into()), is_reply: true });
            let settlement = settled(QueueClass::Remote, Some("a@x.org"), outcome, 1);
            assert_eq!(settlement.reported[0].1.status.to_string(), status);
            assert_eq!(settlement.events, [(QueueClass::Remote, Receiver::Other, Event::Bounced)]);
        }
    }

    #[test]
    fn a_report_that_fails_causes_no_report() {
        let failed = || Outcome::Failed(Reason::own("5.1.1 no"));
        let remote = settled(QueueClass::Remote, None, failed(), 1);
        assert!(remote.reported.is_empty() && remote.done.len() == 1);
        assert_eq!(remote.events, [(QueueClass::Remote, Receiver::Other, Event::Dropped)]);
        let local = settled(QueueClass::Local, None, failed(), 1);
        assert!(local.reported.is_empty() && local.done.is_empty());
        assert_eq!((local.changed[0].class, local.changed[0].attempts), (QueueClass::Bad, 3));
    }

    #[test]
    fn an_attempt_with_unknown_outcome_does_not_count() {
        let wait = |age| {
            let outcome = Outcome::Unknown("no leader".into());
            let settlement = settled(QueueClass::Local, Some("a@x.org"), outcome, age);
            assert_eq!(settlement.changed[0].attempts, 2);
            settlement.changed[0].next_attempt.0 - age
        };
        assert_eq!([wait(0), wait(40_000), wait(9 * DAY)], [2000, 10_000, 3_600_000]);
    }
}
