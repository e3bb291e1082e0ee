//! The continuous archive of a BackupPolicy: what is told of it. Pure.

use std::time::Duration;

use jiff::Timestamp;
use quorumail_crds::{
    BackupPolicy,
    backup::RecoveryWindow,
    condition::{Observed, kind, reason},
};

use crate::{
    backup::archive::Archiving,
    mailrestore::problems,
    run::{Failure, in_words},
};

/// What may be late on top of twice the lag that is asked: the mailnodes are asked only so often.
const GRACE: Duration = Duration::from_secs(90);

/// What was found when the mailnodes were told and asked last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// How far they are.
    pub archiving: Archiving,
    /// The newest stretch of time without a gap, any instant of which can be restored.
    pub window: Option<(Timestamp, Timestamp)>,
    /// When that was.
    pub at: Timestamp,
}

impl Found {
    /// Everything that was acknowledged up to then is in the bucket.
    pub fn through(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.archiving.through?.0).ok()
    }

    /// What would have been lost with the cluster then: the age of what is surely in the bucket (RPO).
    pub fn lag(&self) -> Option<Duration> {
        Some(Duration::try_from(self.at.duration_since(self.through()?)).unwrap_or_default())
    }
}

/// What is told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The condition; none where nothing is archived.
    pub observed: Option<Observed>,
    /// What would be lost now, in words.
    pub lag: Option<String>,
    /// What can be restored, once that is known.
    pub window: Option<RecoveryWindow>,
}

/// Decides. `problem`: what keeps the mailnodes from being told.
pub fn report(
    policy: &BackupPolicy,
    problem: Option<&Failure>,
    found: Option<&Result<Found, Failure>>,
) -> Report {
    let kind = kind::ARCHIVING_HEALTHY;
    let Some(wanted) = &policy.spec.continuous else { return Report::default() };
    let only = |observed| Report { observed: Some(observed), ..Report::default() };
    let found = match (problem, found) {
        (Some(failure), _) | (None, Some(Err(failure))) => {
            // What has not begun is no failure.
            let status = (failure.reason != reason::NOT_YET).then_some(false);
            return only(Observed { kind, status, reason: failure.reason, message: failure.message.clone() });
        }
        (None, None) => {
            return only(Observed::unknown(kind, reason::NOT_YET, "the mailnodes have not been told yet"));
        }
        (None, Some(Ok(found))) => found,
    };
    let archiving = &found.archiving;
    let lag = found.lag();
    let limit = wanted.max_lag.duration().saturating_mul(2).saturating_add(GRACE);
    let observed = match lag {
        _ if !archiving.troubles.is_empty() => {
            let count = archiving.troubles.len() as u64;
            let what = problems(&archiving.troubles, count);
            Observed::no(kind, reason::FAILED, format!("the archive does not go on: {what}"))
        }
        Some(lag) if lag > limit => {
            let text = format!(
                "the archive is {} behind, and {} are allowed: the bucket takes less than what comes in, or does not answer",
                in_words(lag),
                wanted.max_lag.as_str()
            );
            Observed::no(kind, reason::LAGGING, text)
        }
        Some(lag) if archiving.is_whole() => {
            let text =
                format!("all {} groups are archived; {} would be lost", archiving.groups, in_words(lag));
            Observed::yes(kind, reason::ARCHIVING, text)
        }
        _ => {
            let text = format!(
                "{} of {} mailnodes archive {} of {} groups so far",
                archiving.running, archiving.nodes, archiving.shipped, archiving.groups
            );
            Observed::unknown(kind, reason::NOT_YET, text)
        }
    };
    let window = found.window.map(|(earliest, latest)| RecoveryWindow {
        earliest: whole_seconds(earliest),
        latest: whole_seconds(latest),
    });
    Report { observed: Some(observed), lag: lag.map(in_words), window }
}

/// The API keeps whole seconds.
fn whole_seconds(at: Timestamp) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(continuous: &str) -> BackupPolicy {
        let text = format!(
            r#"{{apiVersion: quorumail.io/v1alpha1, kind: BackupPolicy, metadata: {{name: nightly}}, spec: {{schedule: "0 3 * * *",
            target: {{s3: {{endpoint: "https://s3.example.org", bucket: b, credentialsSecretRef: {{name: s3}}}}}},
            encryptionKeySecretRef: {{name: key}}{continuous}}}}}"#
        );
        serde_yaml::from_str(&text).unwrap()
    }

    fn found(through: Option<i64>, shipped: u32) -> Found {
        let archiving = Archiving {
            running: 3,
            nodes: 3,
            shipped,
            groups: 17,
            through: through.map(|second| quorumail_store::Timestamp(second * 1_000)),
            ..Archiving::default()
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        Found { archiving, window: Some((at(100), at(900))), at: at(1_000) }
    }

    fn told(found: Found) -> (Option<bool>, &'static str, Option<String>) {
        let report = report(&policy(", continuous: {maxLag: 30s}"), None, Some(&Ok(found)));
        let observed = report.observed.unwrap();
        (observed.status, observed.reason, report.lag)
    }

    #[test]
    fn the_lag_is_what_would_be_lost() {
        assert_eq!(told(found(Some(988), 17)), (Some(true), reason::ARCHIVING, Some("12s".to_owned())));
        assert_eq!(told(found(Some(849), 17)), (Some(false), reason::LAGGING, Some("2m31s".to_owned())));
        assert_eq!(told(found(None, 9)), (None, reason::NOT_YET, None));
        // A leader moved a moment ago.
        assert_eq!(told(found(Some(988), 16)).0, None);
        let mut troubled = found(Some(988), 17);
        troubled.archiving.troubles.push("group 3 on mailnode 1: access denied".to_owned());
        assert_eq!(told(troubled).0, Some(false));
    }

    #[test]
    fn nothing_is_told_where_nothing_is_asked_and_a_problem_where_there_is_one() {
        assert_eq!(report(&policy(""), None, Some(&Ok(found(Some(988), 17)))), Report::default());
        let asked = policy(", continuous: {}");
        assert_eq!(asked.spec.continuous.as_ref().unwrap().max_lag.as_str(), "1m");
        let problem = Failure::new(reason::SECRET_NOT_FOUND, "Secret key does not exist; make it");
        let report = report(&asked, Some(&problem), Some(&Ok(found(Some(988), 17))));
        let observed = report.observed.unwrap();
        assert_eq!(
            (observed.status, observed.reason, report.lag),
            (Some(false), reason::SECRET_NOT_FOUND, None)
        );
    }
}
