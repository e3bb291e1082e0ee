//! Leader election: of several operators one holds the Lease and works, the others wait.
//!
//! As in Kubernetes' own components, a holder is believed gone once its record has not changed for the lease duration by
//! *our* clock, so that the clocks of two machines are never compared. The holder steps down before that time is over.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

/// Name of the Lease.
pub const LEASE_NAME: &str = "quorumail-operator";
/// How long a record counts after it was last seen to change.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How often the holder renews, and the others look.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(3);
/// A holder that could not renew for this long steps down: before another one may take over.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// Longest single attempt: with it a holder has stepped down 14 s after its last renewal at the latest.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);

/// What to do about a Lease that was just read.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Somebody else holds it.
    Wait,
    /// Write this spec, with the version that was read; success means that we hold it.
    Write(Box<LeaseSpec>),
}

/// One candidate's memory. Times are of a monotonic clock that the caller passes in.
#[derive(Debug, Clone)]
pub struct Candidate {
    identity: String,
    /// The record that was seen last, and when it was first seen so.
    seen: Option<(LeaseSpec, Duration)>,
}

impl Candidate {
    /// A candidate with a name that no other has.
    pub fn new(identity: impl Into<String>) -> Self {
        Self { identity: identity.into(), seen: None }
    }

    /// Decides about a record read at `now` (monotonic); `wall` is written for people to read.
    pub fn decide(&mut self, found: &LeaseSpec, now: Duration, wall: Timestamp) -> Decision {
        if self.seen.as_ref().is_none_or(|(seen, _)| seen != found) {
            self.seen = Some((found.clone(), now));
        }
        let holder = found.holder_identity.as_deref().unwrap_or_default();
        let unchanged_for =
            self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| now.saturating_sub(*since));
        let ours = holder == self.identity;
        if !ours && !holder.is_empty() && unchanged_for < LEASE_DURATION {
            return Decision::Wait;
        }
        let mut spec = found.clone();
        if !ours {
            spec.lease_transitions = Some(found.lease_transitions.unwrap_or(0) + 1);
            spec.acquire_time = Some(MicroTime(wall));
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(i32::try_from(LEASE_DURATION.as_secs()).unwrap_or(i32::MAX));
        spec.renew_time = Some(MicroTime(wall));
        Decision::Write(Box::new(spec))
    }

    /// The record that lets another candidate take over at once; `None` when we do not hold it.
    pub fn release(&self, found: &LeaseSpec) -> Option<LeaseSpec> {
        let ours = found.holder_identity.as_deref() == Some(self.identity.as_str());
        ours.then(|| LeaseSpec { holder_identity: Some(String::new()), ..found.clone() })
    }
}

/// A candidate with the API server behind it.
pub struct Election {
    api: Api<Lease>,
    candidate: Candidate,
    start: tokio::time::Instant,
}

impl Election {
    /// Runs for the Lease in `namespace`.
    pub fn new(client: Client, namespace: &str, identity: &str) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, candidate: Candidate::new(identity), start: tokio::time::Instant::now() }
    }

    /// Returns once we hold the Lease.
    pub async fn acquire(&mut self) {
        loop {
            // A connection that the network lost would hold us up for minutes otherwise.
            match tokio::time::timeout(ATTEMPT_TIMEOUT, self.attempt()).await {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "failed to read or write the Lease"),
                Err(_) => tracing::warn!("the Lease was not answered for in time"),
            }
            tokio::time::sleep(RENEW_INTERVAL).await;
        }
    }

    /// Renews; returns when the Lease is lost.
    pub async fn hold(&mut self) {
        let mut renewed = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(RENEW_INTERVAL).await;
            match tokio::time::timeout(ATTEMPT_TIMEOUT, self.attempt()).await {
                Ok(Ok(true)) => renewed = tokio::time::Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(%error, "failed to renew the Lease"),
                Err(_) => tracing::warn!("the Lease was not renewed in time"),
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                return;
            }
        }
    }

    /// Gives the Lease up; for a planned stop.
    pub async fn release(&mut self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.api.get_opt(LEASE_NAME).await? else { return Ok(()) };
        if let Some(spec) = self.candidate.release(&lease.spec.take().unwrap_or_default()) {
            lease.spec = Some(spec);
            self.api.replace(LEASE_NAME, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }

    /// Reads and, where it may, writes the Lease once; answers whether we hold it.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let found = self.api.get_opt(LEASE_NAME).await?;
        let exists = found.is_some();
        let mut lease = found.unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(LEASE_NAME.to_owned()), ..ObjectMeta::default() },
            spec: None,
        });
        let spec = lease.spec.take().unwrap_or_default();
        let Decision::Write(spec) = self.candidate.decide(&spec, self.start.elapsed(), Timestamp::now())
        else {
            return Ok(false);
        };
        lease.spec = Some(*spec);
        let params = PostParams::default();
        let written = match exists {
            true => self.api.replace(LEASE_NAME, &params, &lease).await,
            false => self.api.create(&params, &lease).await,
        };
        match written {
            Ok(_) => Ok(true),
            // Somebody else wrote first.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> (Duration, Timestamp) {
        (Duration::from_secs(seconds), Timestamp::from_second(seconds as i64).unwrap())
    }

    fn written(decision: Decision) -> LeaseSpec {
        match decision {
            Decision::Write(spec) => *spec,
            Decision::Wait => panic!("it waits"),
        }
    }

    #[test]
    fn a_free_lease_is_taken_and_renewed() {
        let mut a = Candidate::new("a");
        let (now, wall) = at(0);
        let first = written(a.decide(&LeaseSpec::default(), now, wall));
        assert_eq!((first.holder_identity.as_deref(), first.lease_transitions), (Some("a"), Some(1)));
        let (now, wall) = at(3);
        let second = written(a.decide(&first, now, wall));
        assert_eq!((second.lease_transitions, &second.acquire_time), (Some(1), &first.acquire_time));
    }

    #[test]
    fn a_holder_is_replaced_only_after_it_was_silent_for_the_lease_duration() {
        let (now, wall) = at(0);
        let mut record = written(Candidate::new("a").decide(&LeaseSpec::default(), now, wall));
        let mut b = Candidate::new("b");
        // The holder's wall clock is far behind; only our own clock counts.
        for second in [1_000, 1_010] {
            let (now, wall) = at(second);
            assert_eq!(b.decide(&record, now, wall), Decision::Wait);
        }
        record.renew_time = Some(MicroTime(at(99).1));
        for second in [1_014, 1_028] {
            let (now, wall) = at(second);
            assert_eq!(b.decide(&record, now, wall), Decision::Wait, "a renewal starts the time again");
        }
        let (now, wall) = at(1_029);
        assert_eq!(written(b.decide(&record, now, wall)).lease_transitions, Some(2));
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let (now, wall) = at(0);
        let a = &mut Candidate::new("a");
        let record = written(a.decide(&LeaseSpec::default(), now, wall));
        assert_eq!(Candidate::new("b").release(&record), None);
        let released = a.release(&record).unwrap();
        assert_eq!(
            written(Candidate::new("b").decide(&released, now, wall)).holder_identity.as_deref(),
            Some("b")
        );
    }
}
