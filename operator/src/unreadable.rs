//! Objects that are there and cannot be read, as one may be that was stored under another version of its definition. They
//! are passed over, logged once and counted, so that all others are looked after; and they are known, so that nobody takes
//! them for deleted.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use kube::{
    Resource,
    core::DeserializeGuard,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher::Event,
    },
};
use parking_lot::RwLock;
use prometheus::IntGaugeVec;

use crate::stores::{Key, key};

/// Characters of a reason that are kept.
const MAX_REASON: usize = 300;

/// Why each of them cannot be read, by name.
type Reasons = BTreeMap<Key, String>;

/// Those of all kinds.
pub struct Unreadable {
    kinds: RwLock<HashMap<String, Reasons>>,
    gauge: IntGaugeVec,
}

impl Unreadable {
    /// None so far; `gauge` has the label `kind`.
    pub fn new(gauge: IntGaugeVec) -> Self {
        Self { kinds: RwLock::default(), gauge }
    }

    /// Names of those of a kind in a namespace.
    pub fn of<K: Resource<DynamicType = ()>>(&self, namespace: &str) -> Vec<String> {
        let kinds = self.kinds.read();
        let reasons = kinds.get(&*K::kind(&())).into_iter().flatten();
        reasons.filter(|((found, _), _)| found == namespace).map(|((_, name), _)| name.clone()).collect()
    }

    fn change(&self, kind: &str, change: impl FnOnce(&mut Reasons)) {
        let mut kinds = self.kinds.write();
        let reasons = kinds.entry(kind.to_owned()).or_default();
        change(reasons);
        self.gauge.with_label_values(&[kind]).set(i64::try_from(reasons.len()).unwrap_or(i64::MAX));
    }
}

/// Keeps the objects of one watch apart.
pub struct Sieve {
    all: Arc<Unreadable>,
    /// Those of a list that is under way.
    listed: Reasons,
}

impl Sieve {
    /// For a watch that begins.
    pub fn new(all: Arc<Unreadable>) -> Self {
        Self { all, listed: Reasons::new() }
    }

    /// What an event tells about objects that can be read; one that no longer can is gone from `known`.
    pub fn sift<K>(&mut self, event: Event<DeserializeGuard<K>>, known: &Store<K>) -> Option<Event<K>>
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        let kind = K::kind(&());
        let before = |name: &Key| known.get(&ObjectRef::new(&name.1).within(&name.0));
        match event {
            Event::Init => {
                self.listed.clear();
                Some(Event::Init)
            }
            Event::InitApply(DeserializeGuard(Ok(object))) => Some(Event::InitApply(object)),
            Event::InitApply(guard) => {
                let name = key(&guard);
                let reason = self.reason(&kind, &name, guard);
                self.listed.insert(name, reason);
                None
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                self.all.change(&kind, |reasons| *reasons = listed);
                Some(Event::InitDone)
            }
            Event::Apply(DeserializeGuard(Ok(object))) => {
                self.all.change(&kind, |reasons| drop(reasons.remove(&key(&object))));
                Some(Event::Apply(object))
            }
            Event::Apply(guard) => {
                let name = key(&guard);
                let reason = self.reason(&kind, &name, guard);
                let before = before(&name);
                self.all.change(&kind, |reasons| drop(reasons.insert(name, reason)));
                before.map(|object| Event::Delete((*object).clone()))
            }
            Event::Delete(guard) => {
                let name = key(&guard);
                let before = before(&name);
                self.all.change(&kind, |reasons| drop(reasons.remove(&name)));
                guard.0.ok().or_else(|| before.map(|object| (*object).clone())).map(Event::Delete)
            }
        }
    }

    /// Why it cannot be read; logged when that is news.
    fn reason<K>(&self, kind: &str, name: &Key, guard: DeserializeGuard<K>) -> String {
        let error = guard.0.err().map(|invalid| invalid.error).unwrap_or_default();
        let error: String = error.chars().take(MAX_REASON).collect();
        if self.all.kinds.read().get(kind).and_then(|reasons| reasons.get(name)) != Some(&error) {
            tracing::warn!(
                error,
                kind,
                namespace = name.0,
                name = name.1,
                "an object cannot be read and is passed over; correct it, or update the operator and its definitions"
            );
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector::store::Writer;
    use prometheus::Opts;
    use quorumail_crds::{MailCluster, Mailbox};

    use super::*;

    struct Watch {
        all: Arc<Unreadable>,
        sieve: Sieve,
        writer: Writer<Mailbox>,
        gauge: IntGaugeVec,
    }

    impl Watch {
        fn new() -> Self {
            let gauge = IntGaugeVec::new(Opts::new("unreadable", "help"), &["kind"]).unwrap();
            let all = Arc::new(Unreadable::new(gauge.clone()));
            Self { sieve: Sieve::new(all.clone()), all, writer: Writer::default(), gauge }
        }

        /// Names of what can be read and of what cannot after these events.
        fn after(&mut self, events: Vec<Event<DeserializeGuard<Mailbox>>>) -> (Vec<String>, Vec<String>) {
            let reader = self.writer.as_reader();
            for event in events {
                if let Some(event) = self.sieve.sift(event, &reader) {
                    self.writer.apply_watcher_event(&event);
                }
            }
            let mut names: Vec<_> = reader.state().iter().map(|mailbox| key(&**mailbox).1).collect();
            names.sort();
            let unreadable = self.all.of::<Mailbox>("mail");
            assert_eq!(self.gauge.with_label_values(&["Mailbox"]).get(), unreadable.len() as i64);
            (names, unreadable)
        }
    }

    /// As the API server gives it; without its address it cannot be read.
    fn mailbox(name: &str, is_well: bool) -> DeserializeGuard<Mailbox> {
        let spec =
            if is_well { serde_json::json!({"address": "a@example.org"}) } else { serde_json::json!({}) };
        serde_json::from_value(serde_json::json!({
            "apiVersion": "quorumail.io/v1alpha1", "kind": "Mailbox",
            "metadata": {"name": name, "namespace": "mail"}, "spec": spec,
        }))
        .unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn one_that_cannot_be_read_hides_no_other() {
        let mut watch = Watch::new();
        let list = vec![
            Event::Init,
            Event::InitApply(mailbox("alice", true)),
            Event::InitApply(mailbox("bob", false)),
            Event::InitApply(mailbox("carol", true)),
            Event::InitDone,
        ];
        assert_eq!(watch.after(list), (names(&["alice", "carol"]), names(&["bob"])));
        assert!(
            watch.all.of::<Mailbox>("elsewhere").is_empty() && watch.all.of::<MailCluster>("mail").is_empty()
        );
        // It is corrected, and another one is spoiled.
        let changes = vec![Event::Apply(mailbox("bob", true)), Event::Apply(mailbox("carol", false))];
        assert_eq!(watch.after(changes), (names(&["alice", "bob"]), names(&["carol"])));
        let changes = vec![Event::Apply(mailbox("new", false)), Event::Delete(mailbox("carol", false))];
        assert_eq!(watch.after(changes), (names(&["alice", "bob"]), names(&["new"])));
    }

    #[test]
    fn a_list_replaces_what_was_known() {
        let mut watch = Watch::new();
        watch.after(vec![Event::Apply(mailbox("alice", false)), Event::Apply(mailbox("bob", true))]);
        let half = vec![Event::Init, Event::InitApply(mailbox("bob", false))];
        assert_eq!(watch.after(half), (names(&["bob"]), names(&["alice"])));
        assert_eq!(watch.after(vec![Event::InitDone]), (names(&[]), names(&["bob"])));
    }

    #[test]
    fn one_that_is_deleted_while_it_cannot_be_read_is_gone() {
        let mut watch = Watch::new();
        watch.after(vec![Event::Apply(mailbox("alice", true))]);
        assert_eq!(watch.after(vec![Event::Delete(mailbox("alice", false))]), (names(&[]), names(&[])));
    }
}
