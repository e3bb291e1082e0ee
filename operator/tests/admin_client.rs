//! The admin client against real servers with mutual TLS.
#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use jiff::Timestamp;
use quorumail_operator::{
    admin::{AdminClient, AdminError, GroupFailure},
    pki::{self, CertifiedPem, Role},
};
use quorumail_proto::admin::{
    ActOnListRequest, ActOnListResponse, ActOnQueueRequest, ActOnQueueResponse, ApplyDirectoryRequest,
    ApplyDirectoryResponse, ArchiveRequest, ArchiveStatus, BackupGroupProgress, BackupGroupRequest,
    ClusterStatus, DirectoryChange, DirectoryEntry, DirectoryResult, DomainEntry, ExportItem,
    ExportMailboxRequest, FindImportedRequest, FindImportedResponse, GetClusterStatusRequest,
    GetHeldPostRequest, GetHeldPostResponse, GetListsRequest, GetListsResponse, GetNodeStatusRequest,
    GetUsageRequest, GetUsageResponse, HandOverRequest, HandOverResponse, HeldPost, ImportItem, ImportResult,
    ListDeletedMailboxesRequest, ListDeletedMailboxesResponse, ListDeletedRequest, ListDeletedResponse,
    ListDirectoryRequest, ListQueueRequest, ListQueueResponse, MailboxEntry, NodeStatus, QueueEntry,
    ReconfigureRequest, ReconfigureResponse, RestoreListMembersRequest, RestoreListMembersResponse,
    RestoreListPostRequest, RestoreListPostResponse, RestoreQueueEntryRequest, RestoreQueueEntryResponse,
    UndeleteRequest, UndeleteResponse,
    admin_server::{Admin, AdminServer},
    directory_entry::Entry,
};
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

type Several<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

/// A node that says `state` to everything, and counts.
#[derive(Clone)]
struct Node {
    state: Result<u64, Code>,
    calls: Arc<AtomicU32>,
}

impl Node {
    fn answer<T>(&self, message: impl FnOnce(u64) -> T) -> Result<Response<T>, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        match self.state {
            Ok(number) => Ok(Response::new(message(number))),
            Err(code) => Err(Status::new(code, "as it was told")),
        }
    }
}

#[tonic::async_trait]
impl Admin for Node {
    type ListDirectoryStream = Several<DirectoryEntry>;
    type BackupGroupStream = Several<BackupGroupProgress>;
    type ExportMailboxStream = Several<ExportItem>;
    type ImportMailboxStream = Several<ImportResult>;

    async fn apply_directory(
        &self,
        request: Request<ApplyDirectoryRequest>,
    ) -> Result<Response<ApplyDirectoryResponse>, Status> {
        // One result too few when there is more than one change.
        let results = request.into_inner().changes.len().clamp(1, 2) - 1;
        self.answer(|_| ApplyDirectoryResponse { results: vec![DirectoryResult::default(); results] })
    }

    async fn list_directory(
        &self,
        _: Request<ListDirectoryRequest>,
    ) -> Result<Response<Self::ListDirectoryStream>, Status> {
        let domain = DomainEntry { domain: "x.org".into(), ..Default::default() };
        let mailbox = MailboxEntry { address: "A@x.org".into(), ..Default::default() };
        let entries =
            [Entry::Domain(domain), Entry::Mailbox(mailbox)].map(|e| Ok(DirectoryEntry { entry: Some(e) }));
        self.answer(|_| tokio_stream::iter(Vec::from(entries)))
    }

    async fn get_usage(&self, _: Request<GetUsageRequest>) -> Result<Response<GetUsageResponse>, Status> {
        self.answer(|_| GetUsageResponse::default())
    }

    async fn get_node_status(
        &self,
        _: Request<GetNodeStatusRequest>,
    ) -> Result<Response<NodeStatus>, Status> {
        self.answer(|node| NodeStatus { node, ..Default::default() })
    }

    async fn get_cluster_status(
        &self,
        _: Request<GetClusterStatusRequest>,
    ) -> Result<Response<ClusterStatus>, Status> {
        self.answer(|node| ClusterStatus {
            partitions: u32::try_from(node).unwrap_or(0),
            ..Default::default()
        })
    }

    async fn list_queue(&self, _: Request<ListQueueRequest>) -> Result<Response<ListQueueResponse>, Status> {
        self.answer(|_| ListQueueResponse::default())
    }

    async fn act_on_queue(
        &self,
        _: Request<ActOnQueueRequest>,
    ) -> Result<Response<ActOnQueueResponse>, Status> {
        self.answer(|_| ActOnQueueResponse { changed: 1 })
    }

    async fn reconfigure(
        &self,
        request: Request<ReconfigureRequest>,
    ) -> Result<Response<ReconfigureResponse>, Status> {
        let generation = request.into_inner().topology.map_or(0, |topology| topology.generation);
        self.answer(|_| ReconfigureResponse { changed: true, generation })
    }

    async fn hand_over(&self, _: Request<HandOverRequest>) -> Result<Response<HandOverResponse>, Status> {
        self.answer(|_| HandOverResponse { remaining: 0 })
    }

    async fn list_deleted(
        &self,
        _: Request<ListDeletedRequest>,
    ) -> Result<Response<ListDeletedResponse>, Status> {
        self.answer(|_| ListDeletedResponse::default())
    }

    async fn undelete(
        &self,
        request: Request<UndeleteRequest>,
    ) -> Result<Response<UndeleteResponse>, Status> {
        let messages = request.into_inner().numbers.len() as u64;
        self.answer(|_| UndeleteResponse { messages })
    }

    async fn find_imported(
        &self,
        _: Request<FindImportedRequest>,
    ) -> Result<Response<FindImportedResponse>, Status> {
        self.answer(|_| FindImportedResponse::default())
    }

    async fn list_deleted_mailboxes(
        &self,
        _: Request<ListDeletedMailboxesRequest>,
    ) -> Result<Response<ListDeletedMailboxesResponse>, Status> {
        self.answer(|_| ListDeletedMailboxesResponse::default())
    }

    async fn get_lists(&self, _: Request<GetListsRequest>) -> Result<Response<GetListsResponse>, Status> {
        self.answer(|_| GetListsResponse::default())
    }

    async fn get_held_post(
        &self,
        _: Request<GetHeldPostRequest>,
    ) -> Result<Response<GetHeldPostResponse>, Status> {
        self.answer(|_| GetHeldPostResponse::default())
    }

    async fn act_on_list(&self, _: Request<ActOnListRequest>) -> Result<Response<ActOnListResponse>, Status> {
        self.answer(|_| ActOnListResponse::default())
    }

    async fn restore_list_members(
        &self,
        _: Request<RestoreListMembersRequest>,
    ) -> Result<Response<RestoreListMembersResponse>, Status> {
        self.answer(|_| RestoreListMembersResponse::default())
    }

    async fn restore_list_post(
        &self,
        request: Request<Streaming<RestoreListPostRequest>>,
    ) -> Result<Response<RestoreListPostResponse>, Status> {
        let mut stream = request.into_inner();
        let post = stream.message().await?.and_then(|first| first.post);
        let mut bytes = 0;
        while let Some(more) = stream.message().await? {
            bytes += more.body.len();
        }
        let added = post.is_some_and(|post| post.size == bytes as u64);
        self.answer(|_| RestoreListPostResponse { added })
    }

    async fn archive(&self, _: Request<ArchiveRequest>) -> Result<Response<ArchiveStatus>, Status> {
        self.answer(|_| ArchiveStatus::default())
    }

    async fn backup_group(
        &self,
        request: Request<BackupGroupRequest>,
    ) -> Result<Response<Self::BackupGroupStream>, Status> {
        let told = |messages, done| Ok(BackupGroupProgress { messages, done, ..Default::default() });
        let mut messages = vec![told(1, Vec::new()), told(2, b"manifest".to_vec())];
        if request.into_inner().group == 9 {
            // One whose disk has a bad body.
            messages = vec![told(1, Vec::new()), Err(Status::data_loss("a body is rotten"))];
        }
        self.answer(|_| tokio_stream::iter(messages))
    }

    async fn restore_queue_entry(
        &self,
        request: Request<Streaming<RestoreQueueEntryRequest>>,
    ) -> Result<Response<RestoreQueueEntryResponse>, Status> {
        let mut stream = request.into_inner();
        let entry = stream.message().await?.and_then(|first| first.entry);
        let mut bytes = 0;
        while let Some(more) = stream.message().await? {
            bytes += more.body.len();
        }
        let added = entry.is_some_and(|entry| entry.size == bytes as u64);
        self.answer(|_| RestoreQueueEntryResponse { added })
    }

    async fn export_mailbox(
        &self,
        _: Request<ExportMailboxRequest>,
    ) -> Result<Response<Self::ExportMailboxStream>, Status> {
        self.answer(|_| tokio_stream::iter(Vec::new()))
    }

    async fn import_mailbox(
        &self,
        _: Request<Streaming<ImportItem>>,
    ) -> Result<Response<Self::ImportMailboxStream>, Status> {
        self.answer(|_| tokio_stream::iter(Vec::new()))
    }
}

fn authority() -> CertifiedPem {
    let _ = rustls::crypto::ring::default_provider().install_default();
    pki::new_authority("test", Timestamp::now()).unwrap()
}

async fn start(
    authority: &CertifiedPem,
    role: Role,
    state: Result<u64, Code>,
) -> (SocketAddr, Arc<AtomicU32>) {
    let pem = pki::issue(authority, role, Timestamp::now()).unwrap();
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(&pem.cert, &pem.key))
        .client_ca_root(Certificate::from_pem(&authority.cert));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let node = Node { state, calls: Arc::default() };
    let calls = node.calls.clone();
    let server = Server::builder().tls_config(tls).unwrap().add_service(AdminServer::new(node));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    (address, calls)
}

fn client(authority: &CertifiedPem, addresses: &[SocketAddr]) -> AdminClient {
    let identity = pki::issue(authority, Role::Operator, Timestamp::now()).unwrap();
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    AdminClient::new(&addresses, &authority.cert, &identity).unwrap()
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_call_goes_on_to_the_next_node_and_stays_there() {
    let authority = authority();
    let (without_majority, refusals) = start(&authority, Role::Node, Err(Code::Unavailable)).await;
    let (healthy, calls) = start(&authority, Role::Node, Ok(7)).await;
    let client = client(&authority, &[nobody().await, without_majority, healthy]);
    for _ in 0..3 {
        assert_eq!(client.cluster_status().await.unwrap().partitions, 7);
    }
    assert_eq!((refusals.load(Ordering::Relaxed), calls.load(Ordering::Relaxed)), (1, 3));
    assert_eq!(client.node_status(2).await.unwrap().node, 7);
    assert!(matches!(client.node_status(0).await, Err(AdminError::Unreachable(_))));
}

#[tokio::test]
async fn a_refusal_is_not_asked_of_every_node() {
    let authority = authority();
    let (first, _) = start(&authority, Role::Node, Err(Code::InvalidArgument)).await;
    let (second, calls) = start(&authority, Role::Node, Ok(1)).await;
    let error = client(&authority, &[first, second]).cluster_status().await.unwrap_err();
    assert!(matches!(error, AdminError::Refused { code: Code::InvalidArgument, .. }), "{error}");
    assert_eq!(calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_listing_is_keyed_in_lower_case() {
    let authority = authority();
    let (node, _) = start(&authority, Role::Node, Ok(1)).await;
    let listing = client(&authority, &[node]).list_directory().await.unwrap();
    assert!(listing.domains.contains_key("x.org") && listing.mailboxes.contains_key("a@x.org"));
}

#[tokio::test]
async fn an_answer_that_breaks_the_contract_is_an_error() {
    let authority = authority();
    let (node, _) = start(&authority, Role::Node, Ok(1)).await;
    let changes = vec![DirectoryChange::default(); 2];
    let error = client(&authority, &[node]).apply_directory(changes).await.unwrap_err();
    assert!(matches!(error, AdminError::Contract { .. }), "{error}");
}

#[tokio::test]
async fn only_nodes_of_the_same_authority_are_believed() {
    let (ours, theirs) = (authority(), authority());
    let (stranger, strange_calls) = start(&theirs, Role::Node, Ok(1)).await;
    let (operator, operator_calls) = start(&ours, Role::Operator, Ok(1)).await;
    let error = client(&ours, &[stranger, operator]).cluster_status().await.unwrap_err();
    assert!(matches!(error, AdminError::Unreachable(_)), "{error}");
    assert_eq!((strange_calls.load(Ordering::Relaxed), operator_calls.load(Ordering::Relaxed)), (0, 0));
}

#[tokio::test]
async fn the_backup_of_a_group_is_told_to_its_end_and_its_failures_are_judged() {
    let authority = authority();
    let (sound, _) = start(&authority, Role::Node, Ok(1)).await;
    let (wrong_key, _) = start(&authority, Role::Node, Err(Code::FailedPrecondition)).await;
    let client = client(&authority, &[sound, wrong_key, nobody().await]);
    let seen = std::sync::Mutex::new(Vec::new());
    let tell = |told: &BackupGroupProgress| seen.lock().unwrap().push(told.messages);
    let group = |group| BackupGroupRequest { group, ..Default::default() };
    assert_eq!(client.backup_group(0, group(1), &tell).await, Ok(b"manifest".to_vec()));
    assert_eq!(*seen.lock().unwrap(), [1, 2]);
    let rotten = client.backup_group(0, group(9), &tell).await.unwrap_err();
    assert!(matches!(&rotten, GroupFailure::Here(text) if text.contains("rotten")), "{rotten:?}");
    assert!(matches!(client.backup_group(1, group(1), &tell).await, Err(GroupFailure::Everywhere(_))));
    for nowhere in [2, 3] {
        assert!(matches!(client.backup_group(nowhere, group(1), &tell).await, Err(GroupFailure::Here(_))));
    }
}

#[tokio::test]
async fn large_queue_entries_and_posts_travel_whole() {
    let authority = authority();
    let (node, _) = start(&authority, Role::Node, Ok(1)).await;
    let client = client(&authority, &[nobody().await, node]);
    let body = vec![b'x'; 3_000_000];
    let entry = QueueEntry { size: body.len() as u64, ..Default::default() };
    assert!(client.restore_queue_entry(entry, &body, false).await.unwrap());
    let post = Some(HeldPost { size: body.len() as u64, ..Default::default() });
    let first = RestoreListPostRequest { post, ..Default::default() };
    assert!(client.restore_list_post(first, &body).await.unwrap());
}
