//! What a rehearsal does: makes a MailCluster, restores the newest backup into it, compares every message, and sends and reads
//! one there. It takes nothing away again: whatever of it is left when it is not under way any more goes by its label.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _, api::PostParams, runtime::reflector::ObjectRef};
use quorumail_backup::{BackupInfo, Limits, Repository, RepositoryConfig, Trigger};
use quorumail_crds::{
    BackupPolicy, MailCluster,
    condition::{find, kind, reason},
};
use quorumail_proto::admin::{
    DirectoryChange, Domain, Mailbox, directory_change::Change, directory_result::Code,
};
use tokio::time::Instant;

use super::{
    jobs::{Progress, connect, in_repository, not_restored, told_name},
    target::{self, Wanted},
};
use crate::{
    accounts::clients::{Clients, Connection},
    backup::{RestoreProgress, RestoreRequest, Which, restore},
    directory::Credential,
    mailcluster::{
        certificates::{CERT_KEY, text},
        objects::{Names, addresses, hostname},
    },
    mailnode_config::port,
    mailrestore::problems,
    probe::{self, Probe, Service},
    rehearsal::{Figures, throw_away},
    run::Failure,
    settings::FIELD_MANAGER,
    stores::Stores,
};

/// Until the mailnode serves: a volume, an image and a first start.
const READY_WITHIN: Duration = Duration::from_secs(900);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long the message of the probe may take.
const PROBE_WITHIN: Duration = Duration::from_secs(120);
/// Times that the probe's mailbox is put when no majority takes it, and the pause between.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);
/// Revision of the probe's domain and mailbox: no resource tells of them.
const REVISION: &str = "rehearsal";

/// A rehearsal to be made.
pub(super) struct Rehearsal {
    /// For the API server.
    pub(super) client: kube::Client,
    /// For the mailnodes.
    pub(super) clients: Clients,
    /// What is watched.
    pub(super) stores: Arc<Stores>,
    /// Whose backups are proven.
    pub(super) policy: Arc<BackupPolicy>,
    /// What is backed up.
    pub(super) like: Arc<MailCluster>,
    /// Name of the MailCluster that is made.
    pub(super) name: String,
}

impl Rehearsal {
    /// Does it all.
    pub(super) async fn run(&self, progress: &Progress<Figures>) -> Result<(), Failure> {
        let begun = Instant::now();
        let namespace = self.policy.namespace().unwrap_or_default();
        let spec = &self.policy.spec;
        let s3 = target::bucket_of(&self.policy)?;
        let wanted = Wanted { s3: &s3, key: &spec.encryption_key_secret_ref };
        let config = target::open(&self.client, &namespace, wanted, Limits::default()).await?;
        let backup = self.newest(&config).await?;
        progress.lock().backup = backup.id.to_string();
        self.make(&namespace, &backup).await?;
        let cluster = self.ready(&namespace).await?;
        let connection = connect(&self.clients, &cluster).await?;
        self.restore(&connection, &config, &backup, progress).await?;
        self.probe(&connection, &cluster).await?;
        progress.lock().took = begun.elapsed();
        Ok(())
    }

    /// The newest backup of the policy and its MailCluster.
    async fn newest(&self, config: &RepositoryConfig) -> Result<BackupInfo, Failure> {
        let repository = Repository::open(config.clone()).await.map_err(|error| in_repository(&error))?;
        let listing = repository.list().await.map_err(|error| in_repository(&error))?;
        let cluster = told_name(&self.clients, &self.like).await;
        let policy = Trigger::Policy(self.policy.name_any());
        let ours = listing.backups.into_iter().filter(|info| {
            info.trigger == policy && cluster.as_ref().is_none_or(|cluster| info.cluster.uid == *cluster)
        });
        ours.max_by_key(|info| info.started).ok_or_else(|| {
            let text = format!(
                "the bucket has no backup of BackupPolicy {} any more; make one, and see who deletes them",
                self.policy.name_any()
            );
            Failure::new(reason::BACKUP_NOT_FOUND, text)
        })
    }

    async fn make(&self, namespace: &str, backup: &BackupInfo) -> Result<(), Failure> {
        // The directory is none.
        let partitions = u32::try_from(backup.groups.saturating_sub(1)).unwrap_or(u32::MAX);
        let cluster = throw_away(&self.policy, &self.like, &self.name, partitions, backup.counts.body_bytes);
        let api: Api<MailCluster> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        api.create(&params, &cluster).await.map(drop).map_err(|error| {
            let text = format!("failed to make the MailCluster to restore into: {error}");
            Failure::new(reason::APPLY_FAILED, text)
        })
    }

    /// Waits until it serves.
    async fn ready(&self, namespace: &str) -> Result<Arc<MailCluster>, Failure> {
        let reference = ObjectRef::new(&self.name).within(namespace);
        let until = Instant::now() + READY_WITHIN;
        let mut last = "the operator has not seen it yet".to_owned();
        let mut seen = false;
        while Instant::now() < until {
            match self.stores.clusters.get(&reference) {
                Some(cluster) => {
                    seen = true;
                    let status = cluster.status.as_ref();
                    match status.and_then(|status| find(&status.conditions, kind::READY)) {
                        Some(ready) if ready.status == "True" => return Ok(cluster),
                        Some(ready) => last.clone_from(&ready.message),
                        None => {}
                    }
                }
                None if seen => {
                    let text =
                        format!("MailCluster {} was deleted by somebody in the middle of it", self.name);
                    return Err(Failure::new(reason::CLUSTER_NOT_FOUND, text));
                }
                None => {}
            }
            tokio::time::sleep(LOOK).await;
        }
        let text = format!(
            "the MailCluster to restore into was not Ready within {} s ({last}); see whether Kubernetes has room for a \
             mailnode and its volume beside those that run",
            READY_WITHIN.as_secs()
        );
        Err(Failure::new(reason::CLUSTER_NOT_READY, text))
    }

    async fn restore(
        &self,
        connection: &Connection,
        config: &RepositoryConfig,
        backup: &BackupInfo,
        progress: &Progress<Figures>,
    ) -> Result<(), Failure> {
        let request = RestoreRequest {
            which: Which::Backup(backup.id.to_string()),
            locked: true,
            // Nothing of it is ever sent.
            queue: false,
            verify: true,
            ..RestoreRequest::everything()
        };
        let expected = AtomicU64::new(0);
        let tell = |told: RestoreProgress| {
            expected.store(told.total_messages, Relaxed);
            let mut progress = progress.lock();
            progress.mailboxes = told.mailboxes_done;
            progress.messages = told.messages;
            progress.bytes = told.bytes;
        };
        let done = restore(&connection.admin, config, &request, &tell).await;
        let done = done.map_err(|error| not_restored(&error))?;
        let compared = done.verified.unwrap_or_default();
        {
            let mut progress = progress.lock();
            progress.mailboxes = done.mailboxes;
            progress.messages = done.messages + done.already_there;
            progress.compared = compared;
        }
        let advice = "see what is damaged with `quorumail backup verify`, and make a new backup";
        if done.problem_count > 0 {
            let what = problems(&done.problems, done.problem_count);
            return Err(Failure::new(
                reason::INCOMPLETE,
                format!("not everything came back: {what}; {advice}"),
            ));
        }
        let expected = expected.load(Relaxed);
        if compared != expected {
            let text = format!("{compared} messages came back, and the backup tells of {expected}; {advice}");
            return Err(Failure::new(reason::INCOMPLETE, text));
        }
        Ok(())
    }

    /// Sends a message there, and reads it.
    async fn probe(&self, connection: &Connection, cluster: &MailCluster) -> Result<(), Failure> {
        let failed = |text: String| {
            let text = format!(
                "what was restored does not serve mail: {text}; see the log of its mailnode at the next one"
            );
            Failure::new(reason::PROBE_FAILED, text)
        };
        let secrets: Api<Secret> =
            Api::namespaced(self.client.clone(), &cluster.namespace().unwrap_or_default());
        let secret = Names::new(&cluster.name_any()).public_tls;
        let found = secrets.get(&secret).await.map_err(|error| failed(error.to_string()))?;
        let certificate = text(&found, CERT_KEY)
            .ok_or_else(|| failed(format!("Secret {secret} has no key `{CERT_KEY}`")))?;
        let (domain, password) = (unused_domain(), format!("{:032x}", rand::random::<u128>()));
        let address = format!("probe@{domain}");
        put_mailbox(connection, &domain, &address, &password).await.map_err(failed)?;
        let service = |port: u16| {
            let host = addresses(cluster, 1, port).into_iter().next().unwrap_or_default();
            let host = host.rsplit_once(':').map_or(host.as_str(), |(host, _)| host).to_owned();
            Service { name: hostname(cluster), host, port }
        };
        let wanted = Probe {
            submission: service(port::SUBMISSION),
            imaps: service(port::IMAPS),
            roots: probe::roots(certificate.as_bytes()).map_err(|error| failed(error.to_string()))?,
            address: address.parse().map_err(|_| failed(format!("{address} is no address")))?,
            password,
            within: PROBE_WITHIN,
        };
        let passed = probe::probe(&wanted).await.map_err(|error| failed(error.to_string()))?;
        tracing::info!(?passed, cluster = self.name, "a message was sent and read in a rehearsal");
        Ok(())
    }
}

/// RFC 2606 2: nobody's; and not one that a backup brought along.
fn unused_domain() -> String {
    format!("rehearsal-{:016x}.invalid", rand::random::<u64>())
}

async fn put_mailbox(
    connection: &Connection,
    domain: &str,
    address: &str,
    password: &str,
) -> Result<(), String> {
    let credential = Credential::Password(password.to_owned().into());
    let hashed = tokio::task::spawn_blocking(move || credential.hashed().map_err(|error| error.to_string()));
    let password_hash = hashed.await.map_err(|error| error.to_string())??;
    let domain = Domain { domain: domain.to_owned(), revision: REVISION.to_owned(), ..Domain::default() };
    let mailbox = Mailbox {
        address: address.to_owned(),
        password_hash,
        may_send: true,
        may_receive: true,
        may_login: true,
        revision: REVISION.to_owned(),
        ..Mailbox::default()
    };
    let change = |change| DirectoryChange { change: Some(change) };
    let changes = vec![change(Change::PutDomain(domain)), change(Change::PutMailbox(mailbox))];
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        let results = connection.admin.apply_directory(changes.clone()).await;
        let results = results.map_err(|error| error.to_string())?;
        let Some(refused) = results.into_iter().find(|result| result.code() != Code::Ok) else {
            return Ok(());
        };
        last = format!("a mailbox for the probe was refused: {}", refused.message);
        if refused.code() != Code::Unavailable {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(last)
}
