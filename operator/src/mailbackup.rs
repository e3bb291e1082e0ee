//! MailBackup: from what was observed of a run to its status. Pure.

use jiff::Timestamp;
use quorumail_crds::{
    MailBackup, MailBackupStatus,
    condition::{Observed, kind, reason},
    mailbackup::KeptResources,
};

use crate::run::{self, RunStatus as _, under_way};

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

/// What only backups tell.
#[derive(Debug, Clone, PartialEq)]
pub enum Own<'a> {
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
    /// Retention deleted what it made.
    Pruned,
}

/// What is to be told of a backup.
pub type Told<'a> = run::Told<'a, Own<'a>>;

/// The status.
pub fn status(backup: &MailBackup, told: &Told<'_>, now: Timestamp) -> MailBackupStatus {
    run::status(backup.status.clone().unwrap_or_default(), backup.metadata.generation, told, now, tell)
}

fn tell(status: &mut MailBackupStatus, told: &Own<'_>, now: Timestamp) -> Observed {
    match told {
        Own::Progress(figures) => {
            show(status, figures);
            under_way()
        }
        Own::Succeeded { id, figures, resources } => {
            status.head().end(None, now);
            show(status, figures);
            status.id = Some((*id).to_owned());
            status.resources = Some((*resources).clone());
            let text = format!("it is in the bucket and was read back{}", left_out(status));
            Observed::yes(kind::READY, reason::SUCCEEDED, text)
        }
        Own::Pruned => Observed::no(
            kind::READY,
            reason::PRUNED,
            "retention deleted the backup; it can no longer be restored",
        ),
    }
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

#[cfg(test)]
mod tests {
    use quorumail_crds::{
        MailBackupSpec,
        backup::{Phase, PolicyRef},
        condition::find,
    };

    use super::*;
    use crate::run::Failure;

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
        let found = told(&mut backup, &Told::Own(Own::Progress(figures)), 3);
        assert_eq!(found, expect(Phase::Running, "False", reason::RUNNING));
        // The operator was replaced.
        told(&mut backup, &Told::Begun, 4);
        let figures = Figures { groups: 17, ..figures };
        let resources = KeptResources { objects: 5, secrets: 1, left_out: Some("Secret people".to_owned()) };
        let done = Own::Succeeded { id: "20261125T174800Z-abc123", figures, resources: &resources };
        let found = told(&mut backup, &Told::Own(done), 9);
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
        let found = told(&mut backup, &Told::Own(Own::Pruned), 20);
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
