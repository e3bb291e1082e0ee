//! Who may use a MailCluster, and whose an entry of its directory is. Pure.
//!
//! A MailCluster serves its own namespace and those that it names in `spec.allowedNamespaces`. Every entry that is put for another
//! namespace says so in its revision, which the mailnodes keep and list back: so what one namespace has is never handed to
//! another because an object was deleted, was made earlier or lost its permission, and the mail of a deleted mailbox comes
//! back to none but the namespace that it was deleted in.

use std::fmt;

use kube::{Resource, ResourceExt as _};
use quorumail_crds::{
    ClusterRef, MailCluster,
    condition::{Observed, kind, reason},
};

use crate::directory::{Listing, REVISION_PREFIX};

/// Stands between a revision and the namespace that an entry belongs to.
const MARK: char = '@';
/// In `spec.allowedNamespaces`: every namespace.
const EVERY: &str = "*";

/// Whose an entry of the directory is: the namespace of its resource, and nothing for that of the MailCluster itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner(Option<String>);

impl Owner {
    /// A revision that says whose the entry is.
    pub fn mark(&self, revision: &str) -> String {
        match &self.0 {
            Some(namespace) => format!("{revision}{MARK}{namespace}"),
            None => revision.to_owned(),
        }
    }

    /// Whose the entry with this revision is; nobody's where it was not put for a resource.
    pub fn read(revision: &str) -> Option<Self> {
        revision.starts_with(REVISION_PREFIX).then(|| {
            let namespace = revision.split_once(MARK).map(|(_, namespace)| namespace.to_owned());
            Self(namespace)
        })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or("the MailCluster's own namespace"))
    }
}

/// Which namespaces may use a MailCluster.
#[derive(Debug, Clone)]
pub struct Tenancy {
    /// Namespace of the MailCluster; none where namespaces mean nothing.
    home: Option<String>,
    allowed: Vec<String>,
}

impl Tenancy {
    /// Of a MailCluster.
    pub fn of(cluster: &MailCluster) -> Self {
        Self {
            home: Some(cluster.namespace().unwrap_or_default()),
            allowed: cluster.spec.allowed_namespaces.clone(),
        }
    }

    /// Everything belongs to one and the same, whatever its namespace: for `quorumail dev`.
    pub fn without_namespaces() -> Self {
        Self { home: None, allowed: Vec::new() }
    }

    /// Whether an object may use the MailCluster.
    pub fn allows<K: Resource>(&self, object: &K) -> bool {
        self.allows_namespace(object.meta().namespace.as_deref().unwrap_or_default())
    }

    fn allows_namespace(&self, namespace: &str) -> bool {
        self.home.as_deref().is_none_or(|home| home == namespace)
            || self.allowed.iter().any(|allowed| allowed == EVERY || allowed == namespace)
    }

    /// Whose the entry of an object is.
    pub fn owner<K: Resource>(&self, object: &K) -> Owner {
        let namespace = object.meta().namespace.as_deref().unwrap_or_default();
        Owner(self.home.as_deref().is_some_and(|home| home != namespace).then(|| namespace.to_owned()))
    }

    /// Whether an object may have an entry removed that is there, of this owner. Who may not use the MailCluster any more still
    /// takes away what is surely his own.
    pub fn may_remove<K: Resource>(&self, object: &K, held_by: Option<&Owner>) -> bool {
        let owner = self.owner(object);
        match held_by {
            Some(holder) => *holder == owner,
            None => self.allows(object),
        }
    }
}

/// The MailCluster that an object of `namespace` names in another one, where it may use it. Whether it exists is nobody's business
/// who may not.
pub fn admitted<C: std::ops::Deref<Target = MailCluster>>(
    cluster: Option<C>,
    named: &ClusterRef,
    namespace: &str,
) -> Result<C, Observed> {
    let allowed = cluster.filter(|cluster| Tenancy::of(cluster).allows_namespace(namespace));
    allowed.ok_or_else(|| {
        let text = format!(
            "there is no MailCluster {}/{} that allows namespace {namespace}: have {namespace} added to its \
             spec.allowedNamespaces, or correct clusterRef",
            named.namespace_for(namespace),
            named.name
        );
        Observed::no(kind::READY, reason::NOT_ALLOWED, text)
    })
}

/// What somebody is told who asks for a name that another namespace has.
pub fn taken(what: &str, name: &str) -> Observed {
    let text = format!("{what} {name} is taken; choose another, or ask who runs the MailCluster");
    Observed::no(kind::READY, reason::CONFLICT, text)
}

impl Listing {
    /// Who has a domain.
    pub fn domain_owner(&self, domain: &str) -> Option<Owner> {
        self.domains.get(domain).and_then(|entry| Owner::read(&entry.revision))
    }

    /// Who has a mailbox.
    pub fn mailbox_owner(&self, address: &str) -> Option<Owner> {
        self.mailboxes.get(address).and_then(|entry| Owner::read(&entry.revision))
    }

    /// Who has a mailing list.
    pub fn list_owner(&self, address: &str) -> Option<Owner> {
        self.lists.get(address).and_then(|entry| Owner::read(&entry.revision))
    }

    /// Whether an address is that of another's mailbox or list, or mail of a mailbox that another deleted is still kept there.
    pub fn is_anothers(&self, address: &str, owner: &Owner) -> bool {
        let kept = self.deleted.get(address).and_then(|revision| Owner::read(revision));
        let holders = [self.mailbox_owner(address), self.list_owner(address), kept];
        holders.into_iter().flatten().any(|holder| holder != *owner)
    }
}

#[cfg(test)]
#[path = "tenancy_tests.rs"]
mod tests;
