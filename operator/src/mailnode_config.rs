//! The configuration file of a mailnode, as the operator and `quorumail dev` write it.

use quorumail_crds::mailcluster::DmarcHandling;
use serde::{Deserialize, Serialize};

/// Where the mailnode finds its data in a pod.
pub const DATA_DIR: &str = "/var/lib/quorumail";

/// The ports of a mailnode, before `portOffset` is added.
pub mod port {
    /// SMTP for other mail servers, STARTTLS.
    pub const SMTP: u16 = 2525;
    /// Submission with STARTTLS. RFC 6409.
    pub const SUBMISSION: u16 = 2587;
    /// Submission with TLS from the start. RFC 8314 3.3.
    pub const SUBMISSIONS: u16 = 2465;
    /// IMAP with STARTTLS.
    pub const IMAP: u16 = 2143;
    /// IMAP with TLS from the start. RFC 8314 3.2.
    pub const IMAPS: u16 = 2993;
    /// /livez, /readyz, /metrics.
    pub const HTTP: u16 = 8080;
    /// HTTPS of the public parts.
    pub const HTTPS: u16 = 8443;
    /// gRPC of the operator and the CLI, mutual TLS.
    pub const ADMIN: u16 = 9443;
    /// gRPC between mailnodes, mutual TLS.
    pub const PEER: u16 = 9444;
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MailnodeConfig {
    /// Unique for the cluster; nodes of another cluster are refused as peers.
    pub cluster: String,
    /// The node's number; without it `--node` or the end of the environment variable POD_NAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u64>,
    /// SMTP banner, EHLO, Received.
    pub hostname: String,
    /// Journal and index.
    pub data_dir: String,
    /// Where the node listens.
    pub listen: Listen,
    /// All nodes, itself included.
    pub peers: Vec<Peer>,
    /// Counts changes of `peers`; a newer list is taken up by nodes that run.
    #[serde(default = "first_generation")]
    pub generation: u64,
    /// The nodes that founded the cluster. They stay the same for ever.
    #[serde(default)]
    pub founders: Vec<u64>,
    /// Number of partitions.
    pub partitions: u32,
    /// Replicas of each partition.
    pub replicas: u32,
    /// Certificates.
    pub tls: TlsFiles,
    /// For development on one machine only.
    #[serde(default)]
    pub allow_plaintext_auth_from_loopback: bool,
    /// How mail is accepted and sent on.
    pub smtp: SmtpConfig,
    /// For how long deleted mail is kept; without it as the mailnode has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_mail: Option<DeletedMailConfig>,
}

/// For how long deleted mail is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeletedMailConfig {
    /// As `14d`.
    pub keep: String,
}

impl From<&quorumail_crds::mailcluster::DeletedMail> for DeletedMailConfig {
    fn from(deleted: &quorumail_crds::mailcluster::DeletedMail) -> Self {
        Self { keep: deleted.keep.to_string() }
    }
}

/// Where the node listens: the port table, each port plus the offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listen {
    /// Address.
    pub host: String,
    /// Added to every port.
    #[serde(default)]
    pub port_offset: u16,
}

/// A node and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// The node's number.
    pub node: u64,
    /// `host:port` of its peer service.
    pub address: String,
    /// `host:port` of its admin service.
    pub admin: String,
    /// Where it is; replicas are spread over zones.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Whether its replicas are to move to other nodes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

fn first_generation() -> u64 {
    1
}

/// Both sets of certificates; files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsFiles {
    /// For 9443 and 9444.
    pub internal: InternalTls,
    /// For SMTP and IMAP.
    pub public: PublicTls,
}

/// Mutual TLS between nodes, operator and CLI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InternalTls {
    /// File with the authority's certificate.
    pub ca: String,
    /// File with the node's certificate.
    pub cert: String,
    /// File with its key.
    pub key: String,
}

/// What mail clients see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PublicTls {
    /// File with the certificate chain.
    pub cert: String,
    /// File with the key.
    pub key: String,
}

/// How mail is accepted and sent on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SmtpConfig {
    /// Bytes; larger messages are refused.
    pub max_message_size: u64,
    /// Takes all mail for other systems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<RelayConfig>,
    /// Delivery attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryConfig>,
    /// Port of MX hosts; 25 but in tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mx_port: Option<u16>,
    /// `host:port` of name servers, instead of those of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_servers: Option<Vec<String>>,
    /// Checks of mail from other systems; without it there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<AuthenticationConfig>,
}

/// Checks of mail from other systems: SPF, DKIM and DMARC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationConfig {
    /// Whether mail is refused where the domain of its author asks for it.
    pub enforce_dmarc: bool,
}

impl AuthenticationConfig {
    /// As a MailCluster asks for it; none: mail is not checked.
    pub fn of(handling: DmarcHandling) -> Option<Self> {
        match handling {
            DmarcHandling::None => None,
            DmarcHandling::Monitor => Some(Self { enforce_dmarc: false }),
            DmarcHandling::Enforce => Some(Self { enforce_dmarc: true }),
        }
    }
}

/// A server that takes all mail for other systems.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RelayConfig {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `Opportunistic`, `Required` or `None`.
    pub tls: quorumail_crds::mailcluster::RelayTls,
    /// To log in with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// File that holds the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<String>,
}

/// Delivery attempts; durations as `1h30m`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryConfig {
    /// Until the second attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<String>,
    /// Longest wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
    /// Then the message is returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub give_up_after: Option<String>,
}

impl From<&quorumail_crds::mailcluster::Retry> for RetryConfig {
    fn from(retry: &quorumail_crds::mailcluster::Retry) -> Self {
        let text = |span: &Option<quorumail_crds::Span>| span.as_ref().map(ToString::to_string);
        Self {
            initial: text(&retry.initial),
            max: text(&retry.max),
            give_up_after: text(&retry.give_up_after),
        }
    }
}

impl MailnodeConfig {
    /// The file's text.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(self).expect("a configuration holds only what YAML can say")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_configuration_reads_back() {
        let config = MailnodeConfig {
            cluster: "uid".into(),
            node: None,
            hostname: "mail.example.org".into(),
            data_dir: DATA_DIR.into(),
            listen: Listen { host: "0.0.0.0".into(), port_offset: 0 },
            peers: vec![Peer {
                node: 0,
                address: "mc-0:9444".into(),
                admin: "mc-0:9443".into(),
                zone: "west".into(),
                leaving: true,
            }],
            generation: 3,
            founders: vec![0],
            partitions: 16,
            replicas: 1,
            tls: TlsFiles {
                internal: InternalTls { ca: "ca".into(), cert: "c".into(), key: "k".into() },
                public: PublicTls { cert: "c".into(), key: "k".into() },
            },
            allow_plaintext_auth_from_loopback: false,
            smtp: SmtpConfig {
                max_message_size: 26_214_400,
                relay: None,
                retry: Some(RetryConfig { initial: Some("60s".into()), ..Default::default() }),
                mx_port: None,
                dns_servers: None,
                authentication: Some(AuthenticationConfig { enforce_dmarc: true }),
            },
            deleted_mail: Some(DeletedMailConfig { keep: "7d".into() }),
        };
        let text = config.to_yaml();
        assert!(
            text.contains("maxMessageSize: 26214400") && text.contains("dataDir: /var/lib/quorumail"),
            "{text}"
        );
        assert_eq!(serde_yaml::from_str::<MailnodeConfig>(&text).unwrap(), config);
    }
}
