//! MailBackup: from what was observed of a run to its status. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use quorumail_crds::{
    MailBackup, MailBackupStatus,
    backup::Phase,
    condition::{Observed, kind, merge, reason},
    mailbackup::KeptResources,
};

use crate::run::Failure;

/// How far a backup is, or what it made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Groups that are done: the partitions and the directory.
    pub groups: u32,
    /// Messages.
    pub messages: u64,
    /// Sum of their sizes.
    pub bytes: u64,
    /// Bytes that were sent.
    pub uploaded_bytes: u64,
}

impl Figures {
    /// The partitions among the groups: the directory is none.
    fn partitions(&self) -> u32 {
        self.groups.saturating_sub(1)
    }
}

/// What is to be told of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Told<'a> {
    /// It has not begun, and why.
    Waiting(&'a Failure),
    /// It is begun, for the first time or again.
    Begun,
    /// It is under way.
    Progress(Figures),
    /// Its manifest was read back from the bucket.
    Succeeded {
        /// Name in the bucket.
        id: &'a str,
        /// What is in it.
        figures: Figures,
        /// The resources in it.
        resources: &'a KeptResources,
    },
    /// It has ended without that.
    Failed(&'a Failure),
    /// Retention deleted what it made.
    Pruned,
    /// It is left alone.
    Paused,
}

/// The status.
pub fn status(backup: &MailBackup, told: &Told<'_>, now: Timestamp) -> MailBackupStatus {
    let mut status = backup.status.clone().unwrap_or_default();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let mut is_paused = Observed::no(kind::PAUSED, reason::NOT_PAUSED, "the object is reconciled");
    let ready = match told {
        Told::Waiting(failure) => failure.observed(),
        Told::Begun => {
            status.phase = Phase::Running;
            status.started.get_or_insert(Time(now));
            status.attempts = status.attempts.saturating_add(1);
            running()
        }
        Told::Progress(figures) => {
            show(&mut status, figures);
            running()
        }
        Told::Succeeded { id, figures, resources } => {
            end(&mut status, Phase::Succeeded, now);
            show(&mut status, figures);
            status.id = Some((*id).to_owned());
            status.resources = Some((*resources).clone());
            status.error = None;
            let text = format!("it is in the bucket and was read back{}", left_out(&status));
            Observed::yes(kind::READY, reason::SUCCEEDED, text)
        }
        Told::Failed(failure) => {
            end(&mut status, Phase::Failed, now);
            status.error = Some(failure.message.clone());
            failure.observed()
        }
        Told::Pruned => Observed::no(
            kind::READY,
            reason::PRUNED,
            "retention deleted the backup; it can no longer be restored",
        ),
        Told::Paused => {
            let text =
                "reconciliation is stopped by the annotation quorumail.io/paused; take it away to go on";
            is_paused = Observed::yes(kind::PAUSED, reason::BY_ANNOTATION, text);
            Observed::no(kind::READY, reason::BY_ANNOTATION, "it is not begun while it is paused")
        }
    };
    status.observed_generation = backup.metadata.generation;
    status.conditions = merge(&status.conditions, &[ready, is_paused], backup.metadata.generation, now);
    status
}

fn running() -> Observed {
    Observed::no(kind::READY, reason::RUNNING, "it is under way")
}

fn show(status: &mut MailBackupStatus, figures: &Figures) {
    status.partitions = Some(figures.partitions());
    status.messages = Some(figures.messages);
    status.bytes = Some(figures.bytes);
    status.uploaded_bytes = Some(figures.uploaded_bytes);
}

/// What of the resources a backup does not hold, as the end of a sentence.
pub fn left_out(status: &MailBackupStatus) -> String {
    let left_out = status.resources.as_ref().and_then(|resources| resources.left_out.as_ref());
    left_out.map(|what| format!("; of the resources it does not hold {what}")).unwrap_or_default()
}

fn end(status: &mut MailBackupStatus, phase: Phase, now: Timestamp) {
    status.phase = phase;
    status.finished = Some(Time(now));
}

#[cfg(test)]
mod tests {
    use quorumail_crds::{MailBackupSpec, backup::PolicyRef, condition::find};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millisecond(second * 1_000 + 250).unwrap()
    }

    fn told(backup: &mut MailBackup, told: &Told<'_>, second: i64) -> (Phase, String, String) {
        let status = status(backup, told, at(second));
        let ready = find(&status.conditions, kind::READY).unwrap();
        let answer = (status.phase, ready.status.clone(), ready.reason.clone());
        backup.status = Some(status);
        answer
    }

    fn expect(phase: Phase, status: &str, reason: &str) -> (Phase, String, String) {
        (phase, status.to_owned(), reason.to_owned())
    }

    #[test]
    fn it_is_ready_only_once_it_was_read_back() {
        let mut backup = MailBackup::new("b", MailBackupSpec { policy_ref: PolicyRef { name: "p".into() } });
        let waits = Failure::new(reason::WAITING, "waits for MailBackup a");
        let found = told(&mut backup, &Told::Waiting(&waits), 1);
        assert_eq!(found, expect(Phase::Pending, "False", reason::WAITING));
        let found = told(&mut backup, &Told::Begun, 2);
        assert_eq!(found, expect(Phase::Running, "False", reason::RUNNING));
        let figures = Figures { groups: 4, messages: 10, bytes: 1_000, uploaded_bytes: 600 };
        let found = told(&mut backup, &Told::Progress(figures), 3);
        assert_eq!(found, expect(Phase::Running, "False", reason::RUNNING));
        // The operator was replaced.
        told(&mut backup, &Told::Begun, 4);
        let figures = Figures { groups: 17, ..figures };
        let resources = KeptResources { objects: 5, secrets: 1, left_out: Some("Secret people".to_owned()) };
        let done = Told::Succeeded { id: "20261125T174800Z-abc123", figures, resources: &resources };
        let found = told(&mut backup, &done, 9);
        assert_eq!(found, expect(Phase::Succeeded, "True", reason::SUCCEEDED));
        let status = backup.status.clone().unwrap();
        assert_eq!((status.attempts, status.partitions, status.messages), (2, Some(16), Some(10)));
        assert_eq!(status.started.unwrap().0, Timestamp::from_second(2).unwrap(), "when it was first begun");
        assert_eq!(status.finished.unwrap().0, Timestamp::from_second(9).unwrap());
        let ready = find(&status.conditions, kind::READY).unwrap();
        assert!(
            ready.message.ends_with("of the resources it does not hold Secret people"),
            "{}",
            ready.message
        );
        let found = told(&mut backup, &Told::Pruned, 20);
        assert_eq!(found, expect(Phase::Succeeded, "False", reason::PRUNED));
    }

    #[test]
    fn what_failed_says_why() {
        let mut backup = MailBackup::new("b", MailBackupSpec { policy_ref: PolicyRef { name: "p".into() } });
        let failure = Failure::new("WrongKey", "the key opens nothing; correct Secret key");
        let found = told(&mut backup, &Told::Failed(&failure), 5);
        assert_eq!(found, expect(Phase::Failed, "False", "WrongKey"));
        let status = backup.status.unwrap();
        assert_eq!((status.error.as_deref(), status.id), (Some(failure.message.as_str()), None));
    }
}
