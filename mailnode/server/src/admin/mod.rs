//! The admin service: what operator, CLI and `quorumail dev` ask of a node (port 9443, mutual TLS).
//!
//! Any node answers for the whole cluster. What the calls mean is told in `admin.proto`.

mod archive;
pub mod backup;
mod directory;
mod export;
mod import;
mod lists;
mod mailbox;
mod queue;
mod status;
mod vault;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use quorumail_message::Domain;
use quorumail_proto::admin::{
    ActOnListRequest, ActOnListResponse, ActOnQueueRequest, ActOnQueueResponse, ApplyDirectoryRequest,
    ApplyDirectoryResponse, ArchiveRequest, ArchiveStatus, BackupGroupRequest, ClusterStatus, DirectoryEntry,
    ExportMailboxRequest, FindImportedRequest, FindImportedResponse, GetClusterStatusRequest,
    GetHeldPostRequest, GetHeldPostResponse, GetListsRequest, GetListsResponse, GetNodeStatusRequest,
    GetUsageRequest, GetUsageResponse, HandOverRequest, HandOverResponse, ImportItem,
    ListDeletedMailboxesRequest, ListDeletedMailboxesResponse, ListDeletedRequest, ListDeletedResponse,
    ListDirectoryRequest, ListQueueRequest, ListQueueResponse, NodeStatus, ReconfigureRequest,
    ReconfigureResponse, RestoreListMembersRequest, RestoreListMembersResponse, RestoreListPostRequest,
    RestoreListPostResponse, RestoreQueueEntryRequest, RestoreQueueEntryResponse, UndeleteRequest,
    UndeleteResponse,
    admin_server::{Admin, AdminServer},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::backup::Backups;
use crate::{
    archiver::Archiver,
    auth::Authenticator,
    disk::Disk,
    groups::{CommandFailure, Groups, QueryFailure},
    http::Readiness,
    lists::Lists,
    repairer::Repairer,
    scrubber,
    tls::{InternalTls, PublicTls},
    topology,
};

/// Largest request: a batch of directory changes.
const MAX_REQUEST: usize = 16 * 1024 * 1024;
/// For a command or a query of one group.
const WITHIN: Duration = Duration::from_secs(10);
/// Bounds of the time that a caller may give to hand over.
const MAX_HAND_OVER: Duration = Duration::from_secs(600);
/// For how long after that no leads are taken, if the node is not ended.
const ASIDE: Duration = Duration::from_secs(300);
/// When the caller names none.
const HAND_OVER: Duration = Duration::from_secs(10);

/// What the service is made of.
pub struct AdminService {
    /// All groups.
    pub groups: Arc<Groups>,
    /// Mailing lists.
    pub lists: Arc<Lists>,
    /// Knows last log-ins.
    pub auth: Arc<Authenticator>,
    /// Whether the node is ready.
    pub ready: watch::Receiver<Readiness>,
    /// This node.
    pub node: u64,
    /// For channels to peers.
    pub tls: Arc<InternalTls>,
    /// Room for mail that is imported.
    pub disk: Arc<Disk>,
    /// This host's name in reports.
    pub hostname: Domain,
    /// Unique name of the cluster.
    pub cluster: String,
    /// Ships what is committed here.
    pub archiver: Archiver,
    /// Bounds the backups made here.
    pub backups: Arc<Backups>,
    /// Certificates of SMTP and IMAP.
    pub public_tls: Arc<PublicTls>,
    /// Knows what is rotten and not repaired yet.
    pub repairer: Arc<Repairer>,
    /// The same of the log.
    pub scrub: Arc<scrubber::Totals>,
    /// Ends what takes long.
    pub stop: CancellationToken,
}

impl AdminService {
    /// The tonic service.
    pub fn into_server(self) -> AdminServer<Self> {
        AdminServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }
}

fn unreadable(failure: QueryFailure) -> Status {
    Status::unavailable(failure.to_string())
}

fn failed(failure: CommandFailure) -> Status {
    match failure {
        CommandFailure::Refused(refusal) => Status::failed_precondition(refusal.to_string()),
        CommandFailure::Unavailable(reason) => Status::unavailable(reason),
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    type ListDirectoryStream = Pin<Box<dyn Stream<Item = Result<DirectoryEntry, Status>> + Send>>;
    type BackupGroupStream = backup::Told;

    type ExportMailboxStream = export::Items;
    type ImportMailboxStream = import::Answers;

    async fn apply_directory(
        &self,
        request: Request<ApplyDirectoryRequest>,
    ) -> Result<Response<ApplyDirectoryResponse>, Status> {
        let results = directory::apply(&self.groups, request.into_inner().changes).await;
        Ok(Response::new(ApplyDirectoryResponse { results }))
    }

    async fn list_directory(
        &self,
        _: Request<ListDirectoryRequest>,
    ) -> Result<Response<Self::ListDirectoryStream>, Status> {
        self.groups.directory_is_current().await.map_err(unreadable)?;
        let entries = directory::list(&self.groups.directory());
        Ok(Response::new(Box::pin(futures::stream::iter(entries.into_iter().map(Ok)))))
    }

    async fn get_usage(
        &self,
        request: Request<GetUsageRequest>,
    ) -> Result<Response<GetUsageResponse>, Status> {
        let usage = directory::usage(&self.groups, &self.auth, &request.into_inner().addresses).await?;
        Ok(Response::new(GetUsageResponse { usage }))
    }

    async fn get_node_status(
        &self,
        _: Request<GetNodeStatusRequest>,
    ) -> Result<Response<NodeStatus>, Status> {
        Ok(Response::new(status::of_node(self)))
    }

    async fn get_cluster_status(
        &self,
        _: Request<GetClusterStatusRequest>,
    ) -> Result<Response<ClusterStatus>, Status> {
        Ok(Response::new(status::of_cluster(self).await))
    }

    async fn list_queue(
        &self,
        request: Request<ListQueueRequest>,
    ) -> Result<Response<ListQueueResponse>, Status> {
        let entries = queue::list(&self.groups, request.into_inner()).await?;
        Ok(Response::new(ListQueueResponse { entries }))
    }

    async fn act_on_queue(
        &self,
        request: Request<ActOnQueueRequest>,
    ) -> Result<Response<ActOnQueueResponse>, Status> {
        let changed = queue::act(&self.groups, &self.hostname, request.into_inner()).await?;
        Ok(Response::new(ActOnQueueResponse { changed }))
    }

    async fn list_deleted(
        &self,
        request: Request<ListDeletedRequest>,
    ) -> Result<Response<ListDeletedResponse>, Status> {
        vault::list(&self.groups, request.into_inner()).await.map(Response::new)
    }

    async fn undelete(
        &self,
        request: Request<UndeleteRequest>,
    ) -> Result<Response<UndeleteResponse>, Status> {
        vault::undelete(&self.groups, request.into_inner()).await.map(Response::new)
    }

    async fn find_imported(
        &self,
        request: Request<FindImportedRequest>,
    ) -> Result<Response<FindImportedResponse>, Status> {
        import::find(&self.groups, request.into_inner()).await.map(Response::new)
    }

    async fn list_deleted_mailboxes(
        &self,
        _: Request<ListDeletedMailboxesRequest>,
    ) -> Result<Response<ListDeletedMailboxesResponse>, Status> {
        let mailboxes = vault::mailboxes(&self.groups).await?;
        Ok(Response::new(ListDeletedMailboxesResponse { mailboxes }))
    }

    async fn get_lists(
        &self,
        request: Request<GetListsRequest>,
    ) -> Result<Response<GetListsResponse>, Status> {
        let lists = lists::states(&self.lists, request.into_inner()).await?;
        Ok(Response::new(GetListsResponse { lists }))
    }

    async fn get_held_post(
        &self,
        request: Request<GetHeldPostRequest>,
    ) -> Result<Response<GetHeldPostResponse>, Status> {
        lists::held(&self.lists, request.into_inner()).await.map(Response::new)
    }

    async fn act_on_list(
        &self,
        request: Request<ActOnListRequest>,
    ) -> Result<Response<ActOnListResponse>, Status> {
        let changed = lists::act(&self.lists, request.into_inner()).await?;
        Ok(Response::new(ActOnListResponse { changed }))
    }

    async fn restore_list_members(
        &self,
        request: Request<RestoreListMembersRequest>,
    ) -> Result<Response<RestoreListMembersResponse>, Status> {
        let restored = lists::restore_members(&self.lists, request.into_inner()).await?;
        Ok(Response::new(RestoreListMembersResponse { restored }))
    }

    async fn restore_list_post(
        &self,
        request: Request<Streaming<RestoreListPostRequest>>,
    ) -> Result<Response<RestoreListPostResponse>, Status> {
        let added = lists::restore_post(&self.lists, request.into_inner()).await?;
        Ok(Response::new(RestoreListPostResponse { added }))
    }

    async fn hand_over(
        &self,
        request: Request<HandOverRequest>,
    ) -> Result<Response<HandOverResponse>, Status> {
        let within = match request.into_inner().timeout_seconds {
            0 => HAND_OVER,
            seconds => Duration::from_secs(seconds.into()).min(MAX_HAND_OVER),
        };
        let remaining = self.groups.consensus.step_aside(within, ASIDE).await;
        Ok(Response::new(HandOverResponse { remaining: u32::try_from(remaining).unwrap_or(u32::MAX) }))
    }

    async fn reconfigure(
        &self,
        request: Request<ReconfigureRequest>,
    ) -> Result<Response<ReconfigureResponse>, Status> {
        let topology = request.into_inner().topology;
        let topology = topology.ok_or_else(|| Status::invalid_argument("the topology is missing"))?;
        let changed = self
            .groups
            .consensus
            .reconfigure(topology::from_admin(topology))
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let generation = self.groups.consensus.watch_topology().borrow().generation;
        Ok(Response::new(ReconfigureResponse { changed, generation }))
    }

    async fn backup_group(
        &self,
        request: Request<BackupGroupRequest>,
    ) -> Result<Response<Self::BackupGroupStream>, Status> {
        let told = self.backups.begin(&self.groups, &self.cluster, request.into_inner(), self.stop.clone());
        Ok(Response::new(told.await?))
    }

    async fn archive(&self, request: Request<ArchiveRequest>) -> Result<Response<ArchiveStatus>, Status> {
        archive::archive(&self.archiver, &self.cluster, request.into_inner()).map(Response::new)
    }

    async fn restore_queue_entry(
        &self,
        request: Request<Streaming<RestoreQueueEntryRequest>>,
    ) -> Result<Response<RestoreQueueEntryResponse>, Status> {
        let added = backup::restore_queue_entry(&self.groups, request.into_inner()).await?;
        Ok(Response::new(RestoreQueueEntryResponse { added }))
    }

    async fn export_mailbox(
        &self,
        request: Request<ExportMailboxRequest>,
    ) -> Result<Response<Self::ExportMailboxStream>, Status> {
        Ok(Response::new(export::run(self, request.into_inner()).await?))
    }

    async fn import_mailbox(
        &self,
        request: Request<Streaming<ImportItem>>,
    ) -> Result<Response<Self::ImportMailboxStream>, Status> {
        Ok(Response::new(import::run(self, request.into_inner()).await?))
    }
}
