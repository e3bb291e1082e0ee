//! What the operator is told by flags and environment.

use std::net::SocketAddr;

/// The field manager of everything that is applied.
pub const FIELD_MANAGER: &str = "quorumail-operator";
/// The name under which the operator reports events.
pub const CONTROLLER: &str = "quorumail.io/operator";

/// Runs MailClusters, and keeps their accounts as MailDomain and Mailbox resources ask.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "operator", version)]
pub struct Settings {
    /// Namespace to watch; all when empty.
    #[arg(long, env = "WATCH_NAMESPACE", default_value = "")]
    pub watch_namespace: String,

    /// Image of the mailnodes where a MailCluster names none.
    #[arg(long, env = "MAILNODE_IMAGE")]
    pub mailnode_image: String,

    /// When images are pulled: Always, IfNotPresent or Never.
    #[arg(long, env = "IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub image_pull_policy: String,

    /// Address for /livez, /readyz and /metrics.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Namespace of the operator, where its Lease is.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,

    /// Name of this operator among those that run for the Lease.
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,

    /// Name servers, IP:PORT, that are asked for the records of domains; those of the machine when there are none.
    #[arg(long = "dns-server", env = "DNS_SERVERS", value_delimiter = ',')]
    pub dns_servers: Vec<SocketAddr>,

    /// Sends no messages through domains to see whether they come back.
    #[arg(long, env = "NO_PROBES", action = clap::ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub no_probes: bool,

    /// Runs without asking for the Lease; for development.
    #[arg(long, env = "NO_LEADER_ELECTION")]
    pub no_leader_election: bool,
}
