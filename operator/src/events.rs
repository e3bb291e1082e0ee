//! Events for people: what changed about an object, told once when it changes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use quorumail_crds::condition::{find, kind};

use crate::settings::CONTROLLER;

/// Longest note that the API takes, in bytes.
const MAX_NOTE: usize = 1024;

/// Reports events.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// Reports under the operator's name.
    pub fn new(client: Client, instance: &str) -> Self {
        Self(Recorder::new(
            client,
            Reporter { controller: CONTROLLER.to_owned(), instance: Some(instance.to_owned()) },
        ))
    }

    /// Tells when Ready became true, became false, or is false for another reason. Waiting for the first time is no news.
    pub async fn transition<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        old: &[Condition],
        new: &[Condition],
    ) {
        let Some(new) = find(new, kind::READY) else { return };
        if !is_news(find(old, kind::READY), new) {
            return;
        }
        let warn = if new.status == "True" { EventType::Normal } else { EventType::Warning };
        let reason = if new.status == "True" { kind::READY } else { new.reason.as_str() };
        self.publish(object, warn, reason, &new.message).await;
    }

    /// Tells one thing.
    pub async fn publish<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        type_: EventType,
        reason: &str,
        note: &str,
    ) {
        let mut end = note.len().min(MAX_NOTE);
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note[..end].to_owned()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.0.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(%error, reason, "failed to report an event");
        }
    }
}

fn is_news(old: Option<&Condition>, new: &Condition) -> bool {
    use quorumail_crds::condition::reason::PENDING;
    match old {
        _ if new.status == "Unknown" => false,
        None => new.status == "True" || new.reason != PENDING,
        Some(old) => old.status != new.status || (new.status != "True" && old.reason != new.reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    fn ready(status: &str, reason: &str, message: &str) -> Condition {
        Condition {
            type_: "Ready".into(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn only_transitions_are_told() {
        let synced = ready("True", "Synced", "");
        assert!(is_news(None, &synced));
        assert!(!is_news(Some(&synced), &ready("True", "AllHealthy", "other words")));
        assert!(is_news(Some(&synced), &ready("False", "SecretNotFound", "")));
        assert!(!is_news(Some(&ready("False", "Refused", "a")), &ready("False", "Refused", "b")));
        assert!(!is_news(None, &ready("False", "Pending", "")));
        assert!(!is_news(Some(&synced), &ready("Unknown", "Annotation", "")), "who paused it knows");
    }
}
