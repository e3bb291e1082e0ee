//! The admin API of the mailnodes, as seen from the operator, the CLI and `quorumail dev`.
//!
//! Any node answers for the whole cluster, so a call goes to the node that answered last and, when that one cannot be
//! reached, to the others in turn. Every attempt has a deadline. Servers are verified as
//! [`NODE_NAME`](crate::pki::NODE_NAME), whatever address they are reached at.

mod backup;
mod import;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use quorumail_proto::admin::{
    self, ActOnListRequest, ApplyDirectoryRequest, DirectoryChange, DirectoryResult, GetClusterStatusRequest,
    GetHeldPostRequest, GetHeldPostResponse, GetListsRequest, GetNodeStatusRequest, GetUsageRequest,
    HandOverRequest, ListDirectoryRequest, admin_client::AdminClient as Grpc, directory_entry::Entry,
};
use tokio_stream::StreamExt as _;
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

pub use self::backup::GroupFailure;
pub(crate) use self::{backup::streaming_failure, import::ImportFailure};
use crate::{
    pki::{CertifiedPem, NODE_NAME},
    probing::account::is_probe,
};

/// Time for TCP and TLS to one node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Deadline of one attempt of a call that reads.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// Deadline of one attempt of a call that writes: elections may come in between.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Largest answer that is taken: a queue listing of a few thousand entries.
const MAX_ANSWER: usize = 32 << 20;
/// Entries that a directory listing may have; ten times what one cluster is meant to carry as resources.
const MAX_DIRECTORY: usize = 1_000_000;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// An address or certificate that cannot be used.
    #[error("failed to set up the connection to mailnode {node}: {message}")]
    Setup {
        /// Address as configured.
        node: String,
        /// What is wrong with it.
        message: String,
    },
    /// Every node was tried.
    #[error("no mailnode could be reached: {0}")]
    Unreachable(String),
    /// A node answered with an error.
    #[error("mailnode {node} answered {code:?}: {message}")]
    Refused {
        /// Which node.
        node: String,
        /// gRPC code.
        code: Code,
        /// Its words.
        message: String,
    },
    /// A node answered something that the contract does not allow.
    #[error("mailnode {node} gave a wrong answer: {message}")]
    Contract {
        /// Which node.
        node: String,
        /// What is wrong.
        message: String,
    },
}

struct Node {
    address: String,
    channel: Channel,
}

/// A client for the admin API of one cluster.
pub struct AdminClient {
    nodes: Vec<Node>,
    /// Index of the node that answered last.
    preferred: AtomicUsize,
}

/// What the directory holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    /// By domain.
    pub domains: BTreeMap<String, admin::DomainEntry>,
    /// By address.
    pub mailboxes: BTreeMap<String, admin::MailboxEntry>,
    /// Mailing lists, by address.
    pub lists: BTreeMap<String, admin::ListEntry>,
    /// Addresses of the mailboxes that probes made: nobody's, and in none of the others.
    pub probes: BTreeSet<String>,
    /// Revisions of deleted mailboxes whose mail is still kept, by address, where they were asked for.
    pub deleted: BTreeMap<String, String>,
}

impl AdminClient {
    /// A client for nodes at `addresses` (`host:port`, position is the node's number). Nothing is connected yet.
    /// `identity` is a certificate under the authority `ca` (PEM).
    pub fn new(addresses: &[String], ca: &str, identity: &CertifiedPem) -> Result<Self, AdminError> {
        let tls = ClientTlsConfig::new()
            .domain_name(NODE_NAME)
            .ca_certificate(Certificate::from_pem(ca))
            .identity(Identity::from_pem(&identity.cert, &identity.key));
        let connect = |address: &String| {
            let setup =
                |e: tonic::transport::Error| AdminError::Setup { node: address.clone(), message: detail(&e) };
            let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(setup)?;
            let endpoint = endpoint
                .tls_config(tls.clone())
                .map_err(setup)?
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(5));
            Ok(Node { address: address.clone(), channel: endpoint.connect_lazy() })
        };
        let nodes = addresses.iter().map(connect).collect::<Result<Vec<_>, AdminError>>()?;
        Ok(Self { nodes, preferred: AtomicUsize::new(0) })
    }

    /// Number of nodes.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Applies changes in order; answers one result for each.
    pub async fn apply_directory(
        &self,
        changes: Vec<DirectoryChange>,
    ) -> Result<Vec<DirectoryResult>, AdminError> {
        let wanted = changes.len();
        let request = ApplyDirectoryRequest { changes };
        let (node, answer) = self
            .any(WRITE_DEADLINE, |mut node, deadline| {
                let request = timed(request.clone(), deadline);
                async move { node.apply_directory(request).await }
            })
            .await?;
        if answer.results.len() != wanted {
            let message = format!("{} results for {wanted} changes", answer.results.len());
            return Err(AdminError::Contract { node: self.nodes[node].address.clone(), message });
        }
        Ok(answer.results)
    }

    /// Everything the directory holds.
    pub async fn list_directory(&self) -> Result<Listing, AdminError> {
        let (_, listing) = self
            .any(WRITE_DEADLINE, |mut node, deadline| async move {
                let mut stream =
                    node.list_directory(timed(ListDirectoryRequest {}, deadline)).await?.into_inner();
                let mut listing = Listing::default();
                while let Some(entry) = stream.next().await.transpose()? {
                    match entry.entry {
                        Some(Entry::Domain(d)) => drop(listing.domains.insert(d.domain.to_lowercase(), d)),
                        Some(Entry::Mailbox(m)) if is_probe(&m) => {
                            listing.probes.insert(m.address.to_lowercase());
                        }
                        Some(Entry::Mailbox(m)) => {
                            drop(listing.mailboxes.insert(m.address.to_lowercase(), m))
                        }
                        Some(Entry::List(l)) => drop(listing.lists.insert(l.address.to_lowercase(), l)),
                        None => {}
                    }
                    let count = listing.domains.len()
                        + listing.mailboxes.len()
                        + listing.probes.len()
                        + listing.lists.len();
                    if count > MAX_DIRECTORY {
                        return Err(Status::out_of_range(format!(
                            "more than {MAX_DIRECTORY} directory entries"
                        )));
                    }
                }
                Ok(tonic::Response::new(listing))
            })
            .await?;
        Ok(listing)
    }

    /// Mailing lists: all of them when none is named; with their members when asked for.
    pub async fn lists(
        &self,
        addresses: Vec<String>,
        members: bool,
    ) -> Result<Vec<admin::ListState>, AdminError> {
        let request = GetListsRequest { addresses, members };
        let (_, answer) = self
            .any(READ_DEADLINE, |mut node, deadline| {
                let request = timed(request.clone(), deadline);
                async move { node.get_lists(request).await }
            })
            .await?;
        Ok(answer.lists)
    }

    /// A message to a list that waits for a moderator.
    pub async fn held_post(&self, list: &str, id: &str) -> Result<GetHeldPostResponse, AdminError> {
        let request = GetHeldPostRequest { list: list.to_owned(), id: id.to_owned() };
        let (_, answer) = self
            .any(READ_DEADLINE, |mut node, deadline| {
                let request = timed(request.clone(), deadline);
                async move { node.get_held_post(request).await }
            })
            .await?;
        Ok(answer)
    }

    /// Decides on what waits, or changes members; answers how many were changed.
    pub async fn act_on_list(&self, request: ActOnListRequest) -> Result<u32, AdminError> {
        let (_, answer) = self
            .any(WRITE_DEADLINE, |mut node, deadline| {
                let request = timed(request.clone(), deadline);
                async move { node.act_on_list(request).await }
            })
            .await?;
        Ok(answer.changed)
    }

    /// Storage used by mailboxes; unknown addresses are left out.
    pub async fn usage(&self, addresses: Vec<String>) -> Result<Vec<admin::Usage>, AdminError> {
        let request = GetUsageRequest { addresses };
        let (_, answer) = self
            .any(READ_DEADLINE, |mut node, deadline| {
                let request = timed(request.clone(), deadline);
                async move { node.get_usage(request).await }
            })
            .await?;
        Ok(answer.usage)
    }

    /// The whole cluster, as one node sees it.
    pub async fn cluster_status(&self) -> Result<admin::ClusterStatus, AdminError> {
        let (_, answer) = self
            .any(READ_DEADLINE, |mut node, deadline| async move {
                node.get_cluster_status(timed(GetClusterStatusRequest {}, deadline)).await
            })
            .await?;
        Ok(answer)
    }

    /// One node, as it sees itself.
    pub async fn node_status(&self, node: usize) -> Result<admin::NodeStatus, AdminError> {
        self.one(node, READ_DEADLINE, |mut node, deadline| async move {
            node.get_node_status(timed(GetNodeStatusRequest {}, deadline)).await
        })
        .await
    }

    /// Tells one node what to ship to a continuous archive, and asks how far it is.
    pub async fn archive(
        &self,
        node: usize,
        request: admin::ArchiveRequest,
    ) -> Result<admin::ArchiveStatus, AdminError> {
        self.one(node, READ_DEADLINE, |mut node, deadline| async move {
            node.archive(timed(request, deadline)).await
        })
        .await
    }

    /// Moves the leaderships of one node away; answers how many it still has.
    pub async fn hand_over(&self, node: usize, timeout: Duration) -> Result<u32, AdminError> {
        let request =
            HandOverRequest { timeout_seconds: u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX) };
        let answer = self
            .one(node, timeout + READ_DEADLINE, |mut node, deadline| async move {
                node.hand_over(timed(request, deadline)).await
            })
            .await?;
        Ok(answer.remaining)
    }

    /// Changes which nodes there are to be; answers the generation in use then.
    pub async fn reconfigure(&self, topology: admin::Topology) -> Result<u64, AdminError> {
        let request = admin::ReconfigureRequest { topology: Some(topology) };
        let (_, answer) = self
            .any(READ_DEADLINE, |mut node, deadline| {
                let request = timed(request.clone(), deadline);
                async move { node.reconfigure(request).await }
            })
            .await?;
        Ok(answer.generation)
    }

    /// A page of the deleted messages of a mailbox that are still kept.
    pub async fn list_deleted(
        &self,
        request: admin::ListDeletedRequest,
    ) -> Result<admin::ListDeletedResponse, AdminError> {
        let (_, answer) = self
            .any(READ_DEADLINE, |mut node, deadline| {
                let request = timed(request.clone(), deadline);
                async move { node.list_deleted(request).await }
            })
            .await?;
        Ok(answer)
    }

    /// Brings deleted messages back; answers how many were still kept.
    pub async fn undelete(&self, request: admin::UndeleteRequest) -> Result<u64, AdminError> {
        let (_, answer) = self
            .any(WRITE_DEADLINE, |mut node, deadline| {
                let request = timed(request.clone(), deadline);
                async move { node.undelete(request).await }
            })
            .await?;
        Ok(answer.messages)
    }

    /// Deleted mailboxes whose mail is still kept, the next to be purged first.
    pub async fn list_deleted_mailboxes(&self) -> Result<Vec<admin::DeletedMailbox>, AdminError> {
        let (_, answer) = self
            .any(READ_DEADLINE, |mut node, deadline| async move {
                node.list_deleted_mailboxes(timed(admin::ListDeletedMailboxesRequest {}, deadline)).await
            })
            .await?;
        Ok(answer.mailboxes)
    }

    /// Queue entries, oldest first.
    pub async fn list_queue(
        &self,
        request: admin::ListQueueRequest,
    ) -> Result<Vec<admin::QueueEntry>, AdminError> {
        let (_, answer) = self
            .any(READ_DEADLINE, |mut node, deadline| {
                let request = timed(request.clone(), deadline);
                async move { node.list_queue(request).await }
            })
            .await?;
        Ok(answer.entries)
    }

    /// Acts on queue entries; answers how many were changed.
    pub async fn act_on_queue(&self, request: admin::ActOnQueueRequest) -> Result<u32, AdminError> {
        let (_, answer) = self
            .any(WRITE_DEADLINE, |mut node, deadline| {
                let request = timed(request.clone(), deadline);
                async move { node.act_on_queue(request).await }
            })
            .await?;
        Ok(answer.changed)
    }

    /// Calls one node.
    async fn one<T, F, C>(&self, node: usize, deadline: Duration, call: C) -> Result<T, AdminError>
    where
        C: FnOnce(Grpc<Channel>, Duration) -> F,
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let Some(node) = self.nodes.get(node) else {
            return Err(AdminError::Unreachable(format!("there is no mailnode {node}")));
        };
        let answer = tokio::time::timeout(deadline, call(grpc(node), deadline)).await;
        match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))) {
            Ok(response) => Ok(response.into_inner()),
            Err(status) if is_elsewhere(&status) => {
                Err(AdminError::Unreachable(format!("{}: {}", node.address, words(&status))))
            }
            Err(status) => Err(refused(node, &status)),
        }
    }

    /// Calls the preferred node, then the others, until one answers; answers which one.
    async fn any<T, F, C>(&self, deadline: Duration, call: C) -> Result<(usize, T), AdminError>
    where
        C: Fn(Grpc<Channel>, Duration) -> F,
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for step in 0..self.nodes.len() {
            let index = (first + step) % self.nodes.len();
            let node = &self.nodes[index];
            let answer = tokio::time::timeout(deadline, call(grpc(node), deadline)).await;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))) {
                Ok(response) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok((index, response.into_inner()));
                }
                Err(status) if is_elsewhere(&status) => {
                    failures.push(format!("{}: {}", node.address, words(&status)))
                }
                Err(status) => return Err(refused(node, &status)),
            }
        }
        Err(AdminError::Unreachable(failures.join("; ")))
    }
}

fn grpc(node: &Node) -> Grpc<Channel> {
    Grpc::new(node.channel.clone()).max_decoding_message_size(MAX_ANSWER)
}

fn timed<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// Whether another node may do better.
fn is_elsewhere(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted | Code::Unknown
    )
}

fn refused(node: &Node, status: &Status) -> AdminError {
    AdminError::Refused {
        node: node.address.clone(),
        code: status.code(),
        message: status.message().to_owned(),
    }
}

/// A status and what caused it, which for transport errors is where the reason is.
fn words(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => detail(source),
        None => status.message().to_owned(),
    }
}

fn detail(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
