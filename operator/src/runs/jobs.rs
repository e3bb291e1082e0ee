//! What a run does: the driver of backups and restores, with what the resources say.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kube::ResourceExt as _;
use parking_lot::Mutex;
use quorumail_backup::{BackupId, Limits, Repository, RepositoryConfig, RepositoryError, Trigger};
use quorumail_crds::{
    BackupPolicy, MailCluster, MailRestore, condition::reason, mailbackup::KeptResources,
    mailrestore::Restored,
};

use super::{
    resources,
    target::{self, Wanted},
};
use crate::{
    accounts::clients::{Clients, Connection},
    backup::{
        RestoreError, RestoreProgress, RestoreRequest, Scope, TakeError, TakeOptions, TakeProgress, Which,
        choose, resources::Members, restore, take,
    },
    mailbackup::Figures,
    mailrestore::{Outcome, Restoring},
    run::Failure,
};

/// What a run tells while it is under way.
pub type Progress<P> = Arc<Mutex<P>>;

/// A backup to be made.
pub struct Backup {
    /// For the API server.
    pub client: kube::Client,
    /// For the mailnodes.
    pub clients: Clients,
    /// What is asked.
    pub policy: Arc<BackupPolicy>,
    /// What is backed up.
    pub cluster: Arc<MailCluster>,
    /// The resources that belong to it.
    pub members: Members,
    /// How long it may take.
    pub deadline: Duration,
}

/// A backup that was made.
pub struct Made {
    /// Name in the bucket.
    pub id: String,
    /// What is in it.
    pub figures: Figures,
    /// The resources in it.
    pub resources: KeptResources,
}

/// A restore to be made.
pub struct Restore {
    /// For the API server.
    pub client: kube::Client,
    /// For the mailnodes.
    pub clients: Clients,
    /// What is asked.
    pub restore: Arc<MailRestore>,
    /// Where from.
    pub source: Source,
    /// Where to.
    pub cluster: Arc<MailCluster>,
}

/// Where a restore reads.
#[derive(Clone)]
pub struct Source {
    /// The bucket.
    pub s3: quorumail_crds::backup::S3,
    /// Its key.
    pub key: quorumail_crds::backup::EncryptionKeyRef,
    /// The backup by name; none: the newest.
    pub id: Option<String>,
    /// The MailCluster whose newest backup is meant, where a policy says it.
    pub of: Option<Arc<MailCluster>>,
}

/// Makes a backup and reads it back.
pub async fn back_up(job: Backup, progress: Progress<Figures>) -> Result<Made, Failure> {
    let namespace = job.policy.namespace().unwrap_or_default();
    let spec = &job.policy.spec;
    let s3 = target::bucket_of(&job.policy)?;
    let wanted = Wanted { s3: &s3, key: &spec.encryption_key_secret_ref };
    let config = target::open(&job.client, &namespace, wanted, Limits::default()).await?;
    let connection = connect(&job.clients, &job.cluster).await?;
    let begun = Instant::now();
    let gathered = resources::gather(&job.client, &job.members, spec.include_secrets, job.deadline).await;
    let options = TakeOptions {
        // Those that people made for a policy are the policy's too: its retention counts them.
        trigger: Trigger::Policy(job.policy.name_any()),
        cluster_name: job.cluster.name_any(),
        namespace: namespace.clone(),
        deadline: job.deadline.saturating_sub(begun.elapsed()),
        bytes_per_second: spec.bytes_per_second.as_ref().map_or(0, quorumail_crds::Size::bytes),
        resources: gathered.json,
        ..TakeOptions::default()
    };
    let tell = |told: TakeProgress| {
        *progress.lock() = Figures {
            groups: told.groups_done,
            messages: told.messages,
            bytes: told.bytes,
            uploaded_bytes: told.uploaded_bytes,
        };
    };
    let taken = take(&connection.admin, &config, &options, &tell).await.map_err(|error| not_taken(&error))?;
    let figures = Figures {
        groups: taken.groups,
        messages: taken.messages,
        bytes: taken.bytes,
        uploaded_bytes: taken.uploaded_bytes,
    };
    read_back(&config, &taken.id, &figures).await.map_err(|error| in_repository(&error))?;
    Ok(Made { id: taken.id, figures, resources: gathered.kept })
}

/// Reads the manifest anew, as a restore would.
async fn read_back(config: &RepositoryConfig, id: &str, made: &Figures) -> Result<(), RepositoryError> {
    let name = |id: &str| -> Result<BackupId, RepositoryError> {
        id.parse().map_err(|_| RepositoryError::Missing { object: format!("backups/{id}") })
    };
    let manifest = Repository::open(config.clone()).await?.manifest(&name(id)?).await?;
    let messages: u64 = manifest.groups.iter().map(|group| group.counts.messages).sum();
    if messages != made.messages || manifest.groups.len() != made.groups as usize {
        let what = format!("it tells of {messages} messages, and {} were backed up", made.messages);
        return Err(RepositoryError::Damaged { object: format!("backups/{id}"), what });
    }
    Ok(())
}

/// Brings mail back.
pub async fn bring_back(job: Restore, progress: Progress<Restoring>) -> Result<Outcome, Failure> {
    let namespace = job.restore.namespace().unwrap_or_default();
    let wanted = Wanted { s3: &job.source.s3, key: &job.source.key };
    let config = target::open(&job.client, &namespace, wanted, Limits::default()).await?;
    let connection = connect(&job.clients, &job.cluster).await?;
    let cluster = match (&job.source.id, &job.source.of) {
        (None, Some(of)) => told_name(&job.clients, of).await,
        _ => None,
    };
    let mut request = request(&job.restore, job.source.id.clone(), cluster);
    // Chosen once: when this is interrupted, it goes on with the same one although there may be a newer one then.
    let backup = choose(&config, &request).await.map_err(|error| not_restored(&error))?;
    request.which = Which::Backup(backup.clone());
    progress.lock().backup = Some(backup);
    let tell = |told: RestoreProgress| {
        progress.lock().restored = Restored {
            mailboxes: told.mailboxes_done,
            messages: told.messages,
            bytes: told.bytes,
            already_there: 0,
        };
    };
    let done =
        restore(&connection.admin, &config, &request, &tell).await.map_err(|error| not_restored(&error))?;
    Ok(Outcome {
        backup: done.backup,
        restored: Restored {
            mailboxes: done.mailboxes,
            messages: done.messages,
            bytes: done.bytes,
            already_there: done.already_there,
        },
        verified: done.verified.is_some(),
        took: Duration::from_secs_f64(done.seconds.max(0.0)),
        problems: done.problems,
        problem_count: done.problem_count,
    })
}

/// The unique name of a cluster, as its mailnodes tell it; one that is gone tells nothing.
pub(super) async fn told_name(clients: &Clients, cluster: &MailCluster) -> Option<String> {
    let connection = clients.get(cluster).await.ok()?;
    let status = connection.admin.cluster_status().await.ok()?;
    Some(status.cluster).filter(|name| !name.is_empty())
}

fn request(restore: &MailRestore, id: Option<String>, cluster: Option<String>) -> RestoreRequest {
    let spec = &restore.spec;
    let scope = match (&spec.scope.domain, &spec.scope.mailbox, &spec.scope.folder) {
        (Some(domain), ..) => Scope::Domain(domain.clone()),
        (None, Some(mailbox), _) => Scope::Mailbox(mailbox.clone()),
        (None, None, Some(folder)) => {
            Scope::Folder { mailbox: folder.mailbox.clone(), folder: folder.name.clone() }
        }
        (None, None, None) => Scope::Cluster,
    };
    RestoreRequest {
        which: id.map_or(Which::Latest, Which::Backup),
        cluster,
        until: spec.point_in_time.as_ref().map(|at| quorumail_store::Timestamp(at.0.as_millisecond())),
        // Accounts are resources; only a cluster that was lost gets them from the backup.
        accounts: scope == Scope::Cluster,
        locked: false,
        queue: scope == Scope::Cluster,
        scope,
        into: spec.target.mailbox.clone(),
        prefix: spec.target.folder_prefix.clone(),
        verify: true,
        scratch: None,
    }
}

pub(super) async fn connect(clients: &Clients, cluster: &MailCluster) -> Result<Arc<Connection>, Failure> {
    clients.get(cluster).await.map_err(|error| {
        Failure::new(reason::NOT_REACHABLE, format!("MailCluster {}: {error}", cluster.name_any()))
    })
}

fn not_taken(error: &TakeError) -> Failure {
    Failure::new(error.reason(), error.to_string())
}

pub(super) fn in_repository(error: &RepositoryError) -> Failure {
    Failure::new(error.reason(), error.to_string())
}

pub(super) fn not_restored(error: &RestoreError) -> Failure {
    Failure::new(error.reason(), error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(scope: &str) -> RestoreRequest {
        let text = format!(
            "{{apiVersion: quorumail.io/v1alpha1, kind: MailRestore, metadata: {{name: r}}, spec: {{source: {{policyRef: {{name: p}}}}, \
             scope: {scope}, target: {{folderPrefix: Restored}}}}}}"
        );
        request(&serde_yaml::from_str(&text).unwrap(), None, None)
    }

    #[test]
    fn a_point_in_time_is_passed_on() {
        assert_eq!(asked("{cluster: {}}").until, None);
        let at = asked("{cluster: {}}, pointInTime: '1970-01-01T00:00:05.250Z'").until;
        assert_eq!(at, Some(quorumail_store::Timestamp(5_250)));
    }

    #[test]
    fn accounts_and_queue_come_back_only_with_the_whole_cluster() {
        let whole = asked("{cluster: {}}");
        assert_eq!((whole.scope, whole.accounts, whole.queue), (Scope::Cluster, true, true));
        for (scope, expected) in [
            ("{domain: example.org}", Scope::Domain("example.org".to_owned())),
            ("{mailbox: a@example.org}", Scope::Mailbox("a@example.org".to_owned())),
            (
                "{folder: {mailbox: a@example.org, name: Projects}}",
                Scope::Folder { mailbox: "a@example.org".to_owned(), folder: "Projects".to_owned() },
            ),
        ] {
            let part = asked(scope);
            assert_eq!((part.scope, part.accounts, part.queue, part.verify), (expected, false, false, true));
            assert_eq!((part.which, part.prefix.as_deref()), (Which::Latest, Some("Restored")));
        }
    }
}
