//! MailRestore: from what was observed of a run to its status. Pure.

use std::time::Duration;

use jiff::Timestamp;
use quorumail_crds::{
    MailRestore, MailRestoreStatus,
    condition::{Observed, kind, reason},
    mailrestore::Restored,
};

use crate::run::{self, Failure, RunStatus as _, in_words, under_way};

/// Problems that are spelled out in an error; more are counted.
pub const MAX_PROBLEMS: usize = 5;

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Name of the backup in its bucket.
    pub backup: String,
    /// What was brought back.
    pub restored: Restored,
    /// Whether it was read back and compared.
    pub verified: bool,
    /// How long it took.
    pub took: Duration,
    /// What could not be restored, each with its reason.
    pub problems: Vec<String>,
    /// Number of problems, those that are not told one by one as well.
    pub problem_count: u64,
}

/// How far a restore is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restoring {
    /// The backup that was chosen.
    pub backup: Option<String>,
    /// What was looked at.
    pub restored: Restored,
}

/// What only restores tell.
#[derive(Debug, Clone, PartialEq)]
pub enum Own<'a> {
    /// It is under way.
    Progress(Restoring),
    /// It has come to its end.
    Done(&'a Outcome),
}

/// What is to be told of a restore.
pub type Told<'a> = run::Told<'a, Own<'a>>;

/// The status.
pub fn status(restore: &MailRestore, told: &Told<'_>, now: Timestamp) -> MailRestoreStatus {
    run::status(restore.status.clone().unwrap_or_default(), restore.metadata.generation, told, now, tell)
}

fn tell(status: &mut MailRestoreStatus, told: &Own<'_>, now: Timestamp) -> Observed {
    match told {
        Own::Progress(far) => {
            if far.backup.is_some() {
                status.backup.clone_from(&far.backup);
            }
            status.restored = Some(far.restored);
            under_way()
        }
        Own::Done(outcome) => {
            status.backup = Some(outcome.backup.clone());
            status.restored = Some(outcome.restored);
            status.verified = Some(outcome.verified && outcome.problem_count == 0);
            status.duration = Some(in_words(outcome.took));
            let incomplete = incomplete(outcome);
            status.head().end(incomplete.as_ref(), now);
            incomplete.map_or_else(
                || Observed::yes(kind::READY, reason::SUCCEEDED, "the mail is back"),
                |failure| failure.observed(),
            )
        }
    }
}

/// Why a restore that came to its end did not do all that was asked.
pub fn incomplete(outcome: &Outcome) -> Option<Failure> {
    if outcome.problem_count == 0 {
        return None;
    }
    let text = format!(
        "not everything is back: {}. What is back stays; make another MailRestore once that is corrected",
        problems(&outcome.problems, outcome.problem_count)
    );
    Some(Failure::new(reason::INCOMPLETE, text))
}

/// The first of so many problems, and how many more there are.
pub fn problems(told: &[String], count: u64) -> String {
    let spelled_out = told.len().min(MAX_PROBLEMS);
    let text = told[..spelled_out].join("; ");
    match count.saturating_sub(spelled_out as u64) {
        0 => text,
        more => format!("{text}; and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use quorumail_crds::{backup::Phase, condition::find};

    use super::*;

    fn restore() -> MailRestore {
        serde_yaml::from_str(
            "{apiVersion: quorumail.io/v1alpha1, kind: MailRestore, metadata: {name: r}, spec: {source: {policyRef: {name: p}}, \
             scope: {mailbox: alice@example.org}, target: {folderPrefix: Restored}}}",
        )
        .unwrap()
    }

    fn outcome(problems: u64) -> Outcome {
        Outcome {
            backup: "20261125T174800Z-abc123".to_owned(),
            restored: Restored { mailboxes: 1, messages: 7, bytes: 700, already_there: 1 },
            verified: true,
            took: Duration::from_millis(62_400),
            problems: (0..problems).map(|n| format!("mailbox m{n}@example.org is over its quota")).collect(),
            problem_count: problems,
        }
    }

    #[test]
    fn a_restore_that_did_everything_is_ready() {
        let mut restore = restore();
        let at = |second| Timestamp::from_second(second).unwrap();
        restore.status = Some(status(&restore, &Told::Begun, at(1)));
        restore.status = Some(status(&restore, &Told::Own(Own::Progress(Restoring::default())), at(2)));
        let done = status(&restore, &Told::Own(Own::Done(&outcome(0))), at(63));
        assert_eq!(
            (done.phase, done.verified, done.duration.as_deref()),
            (Phase::Succeeded, Some(true), Some("1m2s"))
        );
        assert_eq!(find(&done.conditions, kind::READY).map(|c| c.status.as_str()), Some("True"));
        assert_eq!(done.restored.map(|r| r.messages), Some(7));
    }

    #[test]
    fn a_restore_that_left_something_out_says_what_and_shows_what_it_did() {
        let done =
            status(&restore(), &Told::Own(Own::Done(&outcome(7))), Timestamp::from_second(63).unwrap());
        assert_eq!((done.phase, done.verified), (Phase::Failed, Some(false)));
        assert_eq!(done.restored.map(|r| r.messages), Some(7));
        let error = done.error.unwrap();
        assert!(error.contains("m4@example.org is over its quota; and 2 more"), "{error}");
        assert_eq!(find(&done.conditions, kind::READY).map(|c| c.reason.as_str()), Some(reason::INCOMPLETE));
    }
}
