//! The configuration file of a mailnode: its schema, its reading and its checking.
//!
//! YAML, written by the operator and by `quorumail dev`. Unknown fields are refused by name, so that a mistyped option
//! is not silently without effect. Everything that can be wrong without looking at the network is checked here.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use quorumail_message::Domain;
use serde::{Deserialize, Deserializer, de::Error as _};

/// Environment variable with the pod's name, whose ordinal is the node's number where nothing else says it.
const POD_NAME: &str = "POD_NAME";
/// Largest message that may be configured: it is in memory as a whole while it is taken, delivered or read.
const MAX_MESSAGE_SIZE: usize = 64 * 1024 * 1024;
/// More partitions than this would cost more in heartbeats than they bring.
const MAX_PARTITIONS: u32 = 4096;
/// Less is not enough for DNS.
const MIN_CHECK: Duration = Duration::from_secs(1);
/// The client waits meanwhile. RFC 5321 4.5.3.2.6: ten minutes at least, but there is the write to disk as well.
const MAX_CHECK: Duration = Duration::from_secs(60);
/// More slowly than this a replica of ordinary size would never be filled.
const MIN_SNAPSHOT_RATE: u64 = 1024 * 1024;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read configuration {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no YAML of this schema.
    #[error("configuration {path}: {source}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Names the field and the line.
        source: serde_yaml::Error,
    },
    /// A value makes no sense.
    #[error("configuration field {field}: {reason}")]
    Invalid {
        /// Path of the field.
        field: &'static str,
        /// What is wrong, and what is expected.
        reason: String,
    },
}

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The file that it was read from.
    #[serde(skip)]
    pub file: PathBuf,
    /// Identifies the cluster; nodes of another one are refused.
    pub cluster: String,
    /// Number of this node; see [`Config::load`] for where it comes from when absent.
    #[serde(default)]
    pub node: Option<u64>,
    /// Name in the SMTP banner, EHLO and Received.
    #[serde(deserialize_with = "hostname")]
    pub hostname: Domain,
    /// Holds `journal/` and `index/`.
    pub data_dir: PathBuf,
    /// Where to listen.
    #[serde(default)]
    pub listen: Listen,
    /// All nodes, this one included.
    pub peers: Vec<Peer>,
    /// Counts changes of `peers`. The list with the highest one counts: this one, that which the node has kept, or that
    /// which another node tells. A newer one in the file is taken up while the node runs.
    #[serde(default = "first_generation")]
    pub generation: u64,
    /// The nodes that founded the cluster; all of them when absent, which only the first generation may leave it.
    #[serde(default)]
    pub founders: Vec<u64>,
    /// Number of partitions.
    pub partitions: u32,
    /// Voters of each partition.
    #[serde(default = "default_replicas")]
    pub replicas: usize,
    /// Certificates.
    pub tls: Tls,
    /// Allows passwords without TLS from loopback addresses; for development only.
    #[serde(default)]
    pub allow_plaintext_auth_from_loopback: bool,
    /// Everything about SMTP.
    #[serde(default)]
    pub smtp: Smtp,
    /// Bounds of connections.
    #[serde(default)]
    pub limits: Limits,
    /// When the disk counts as full.
    #[serde(default)]
    pub disk: DiskMarks,
    /// How the disk space of deleted mail is given back.
    #[serde(default)]
    pub compaction: Compaction,
    /// For how long deleted mail can be brought back.
    #[serde(default)]
    pub deleted_mail: DeletedMail,
    /// How replicas are filled that cannot catch up from the log.
    #[serde(default)]
    pub snapshots: Snapshots,
    /// How the disk is searched for rot.
    #[serde(default)]
    pub scrub: Scrub,
}

/// How the disk is searched for rot: all that is kept is read and compared with its checksums.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scrub {
    /// Rate of reading; 0: nothing is read. At the default 100 GiB take 29 hours.
    pub bytes_per_second: u64,
    /// A pass begins at the earliest so long after the one before it began; at least a second.
    #[serde(deserialize_with = "duration")]
    pub every: Duration,
}

impl Default for Scrub {
    fn default() -> Self {
        Self { bytes_per_second: 1024 * 1024, every: Duration::from_secs(24 * 3600) }
    }
}

/// For how long deleted mail can be brought back.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeletedMail {
    /// Messages that were expunged, or went with their folder, are kept for so long; 0s: until the janitor looks.
    #[serde(deserialize_with = "duration")]
    pub keep: Duration,
}

impl Default for DeletedMail {
    fn default() -> Self {
        Self { keep: Duration::from_secs(14 * 24 * 3600) }
    }
}

/// How the disk space of deleted mail is given back.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Compaction {
    /// Share of a segment of the journal that must be dead before the rest of it is copied away, above 0 and at most 1.
    pub dead_share: f64,
    /// Rate of copying.
    pub bytes_per_second: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Self { dead_share: 0.5, bytes_per_second: 16 * 1024 * 1024 }
    }
}

/// How this node fills replicas of others that cannot catch up from the log.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Snapshots {
    /// Sent at once.
    pub at_once: usize,
    /// Rate of all of them together.
    pub bytes_per_second: u64,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { at_once: 2, bytes_per_second: 64 * 1024 * 1024 }
    }
}

/// Where to listen.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Listen {
    /// Address of all listeners.
    pub host: IpAddr,
    /// Added to every port of [`Port`].
    pub port_offset: u16,
}

impl Default for Listen {
    fn default() -> Self {
        Self { host: IpAddr::from([0, 0, 0, 0]), port_offset: 0 }
    }
}

/// A listener, and its port without the offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum Port {
    SmtpMx = 2525,
    Submission = 2587,
    SubmissionTls = 2465,
    Imap = 2143,
    ImapTls = 2993,
    Http = 8080,
    Https = 8443,
    Admin = 9443,
    Peer = 9444,
}

/// A node of the cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// Its number.
    pub node: u64,
    /// `host:port` of its peer service.
    pub address: String,
    /// `host:port` of its admin service.
    pub admin: String,
    /// Where it is; replicas are spread over zones where there are enough.
    #[serde(default)]
    pub zone: String,
    /// Whether its replicas are to move to other nodes.
    #[serde(default)]
    pub leaving: bool,
}

/// Certificates.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// Between nodes, operator and CLI; mutual.
    pub internal: InternalTls,
    /// Of the SMTP and IMAP listeners.
    pub public: PublicTls,
}

/// Files with PEM, reloaded when they change.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InternalTls {
    /// Certificates of the authority that signed all others.
    pub ca: PathBuf,
    /// This node's chain, the leaf first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Files with PEM, reloaded when they change.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PublicTls {
    /// The chain, the leaf first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Everything about SMTP.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Smtp {
    /// RFC 1870, in bytes.
    pub max_message_size: usize,
    /// Takes all mail for other systems, instead of their MX.
    pub relay: Option<Relay>,
    /// When delivery is tried again.
    pub retry: Retry,
    /// Port of other systems' MX; 25 but in tests.
    pub mx_port: u16,
    /// Asked instead of those of /etc/resolv.conf.
    pub dns_servers: Vec<SocketAddr>,
    /// How mail from other systems is checked; absent: not at all.
    pub authentication: Option<Authentication>,
}

impl Default for Smtp {
    fn default() -> Self {
        Self {
            max_message_size: 25 * 1024 * 1024,
            relay: None,
            retry: Retry::default(),
            mx_port: 25,
            dns_servers: Vec::new(),
            authentication: None,
        }
    }
}

/// How mail from other systems is checked: SPF, DKIM and DMARC.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authentication {
    /// Refuses mail that fails DMARC where the author's domain asks for it (`p=reject`).
    pub enforce_dmarc: bool,
    /// For the check of one message; what is not known by then counts as a temporary error.
    #[serde(deserialize_with = "duration")]
    pub within: Duration,
}

impl Default for Authentication {
    fn default() -> Self {
        Self { enforce_dmarc: true, within: Duration::from_secs(5) }
    }
}

/// A host that takes mail for all other systems.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Relay {
    /// Name or address.
    pub host: String,
    /// Its port.
    #[serde(default = "default_relay_port")]
    pub port: u16,
    /// Whether it must be under TLS. A password is sent under TLS only, also with Opportunistic.
    #[serde(default)]
    pub tls: RelayTls,
    /// For AUTH; then `passwordFile` must be there as well.
    #[serde(default)]
    pub username: Option<String>,
    /// File with the password and nothing else (white space at its end is ignored).
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

/// TLS towards the relay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub enum RelayTls {
    #[default]
    Opportunistic,
    Required,
    None,
}

/// When delivery is tried again. RFC 5321 4.5.4.1.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retry {
    /// After the first failure; doubled after each further one.
    #[serde(deserialize_with = "duration")]
    pub initial: Duration,
    /// The longest wait.
    #[serde(deserialize_with = "duration")]
    pub max: Duration,
    /// When the sender is told that it failed.
    #[serde(deserialize_with = "duration")]
    pub give_up_after: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        const HOUR: u64 = 3600;
        Self {
            initial: Duration::from_secs(60),
            max: Duration::from_secs(HOUR),
            give_up_after: Duration::from_secs(5 * 24 * HOUR),
        }
    }
}

/// Bounds of connections; absent ones keep what the protocol crates set.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// SMTP sessions at a time on each listener.
    pub smtp_connections: Option<usize>,
    /// SMTP sessions at a time from one address.
    pub smtp_connections_per_address: Option<usize>,
    /// IMAP sessions at a time on each listener.
    pub imap_connections: Option<usize>,
    /// IMAP sessions at a time from one address.
    pub imap_connections_per_address: Option<usize>,
}

/// When the disk counts as full, in free bytes; absent ones follow from the size of the disk.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DiskMarks {
    /// Below this no new mail is taken.
    pub no_new_mail_below: Option<u64>,
    /// Below this the node only reads.
    pub read_only_below: Option<u64>,
}

fn default_replicas() -> usize {
    3
}

fn first_generation() -> u64 {
    1
}

fn default_relay_port() -> u16 {
    25
}

fn hostname<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Domain, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|error| D::Error::custom(format!("hostname {text:?}: {error}")))
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).ok_or_else(|| {
        D::Error::custom(format!("{text:?} is no duration; expected something like 90s, 1h30m or 5d"))
    })
}

/// Reads `1h30m`, `90s`, `5d`, `250ms`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 5] =
        [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let mut millis: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, tail) = tail.split_at(letters);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        millis = millis.checked_add(number.parse::<u64>().ok()?.checked_mul(*factor)?)?;
        rest = tail;
    }
    (!text.is_empty()).then(|| Duration::from_millis(millis))
}

impl Config {
    /// Reads and checks the file. The node's number is `node` when given (`--node`), else the file's, else the ordinal
    /// at the end of the environment's `POD_NAME` (`mail-2`: 2).
    pub fn load(path: &Path, node: Option<u64>) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config: Self = serde_yaml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        config.file = path.to_owned();
        config.node = node.or(config.node).or_else(|| pod_ordinal(&std::env::var(POD_NAME).ok()?));
        config.check()?;
        Ok(config)
    }

    /// Number of this node.
    pub fn node(&self) -> u64 {
        self.node.expect("load() refuses a configuration without a node number")
    }

    /// Where a listener listens.
    pub fn address(&self, port: Port) -> SocketAddr {
        let port = (port as u16)
            .checked_add(self.listen.port_offset)
            .expect("load() refuses an offset that leads beyond the last port");
        SocketAddr::new(self.listen.host, port)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |field, reason: String| Err(ConfigError::Invalid { field, reason });
        let Some(node) = self.node else {
            return invalid(
                "node",
                "is not known: give --node, the field, or POD_NAME ending in -N".to_owned(),
            );
        };
        if self.cluster.trim().is_empty() {
            return invalid("cluster", "must not be empty".to_owned());
        }
        let numbers: BTreeSet<u64> = self.peers.iter().map(|peer| peer.node).collect();
        if numbers.len() != self.peers.len() {
            return invalid("peers", "a node is listed twice".to_owned());
        }
        if !numbers.contains(&node) {
            return invalid("peers", format!("this node ({node}) is not among them"));
        }
        if self.generation == 0 {
            return invalid("generation", "must be at least 1".to_owned());
        }
        if self.generation > 1 && self.founders.is_empty() {
            return invalid("founders", "must name the nodes that founded the cluster".to_owned());
        }
        if self.peers.iter().all(|peer| peer.leaving) {
            return invalid("peers", "all nodes are leaving: none could hold the mail".to_owned());
        }
        for peer in &self.peers {
            for address in [&peer.address, &peer.admin] {
                let port =
                    address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
                if !port.is_some_and(|(host, port)| !host.is_empty() && port != 0) {
                    return invalid("peers", format!("{address:?} of node {} is not host:port", peer.node));
                }
            }
        }
        if self.partitions == 0 || self.partitions > MAX_PARTITIONS {
            return invalid("partitions", format!("must be 1 to {MAX_PARTITIONS}"));
        }
        if self.replicas == 0 {
            return invalid("replicas", "must be at least 1".to_owned());
        }
        if let DiskMarks { no_new_mail_below: Some(first), read_only_below: Some(second) } = self.disk
            && second > first
        {
            return invalid("disk.readOnlyBelow", "must not be above disk.noNewMailBelow".to_owned());
        }
        if !(self.compaction.dead_share > 0.0 && self.compaction.dead_share <= 1.0) {
            return invalid("compaction.deadShare", "must be above 0 and at most 1".to_owned());
        }
        if self.scrub.every < Duration::from_secs(1) {
            return invalid("scrub.every", "must be at least 1s".to_owned());
        }
        if self.compaction.bytes_per_second == 0 {
            return invalid("compaction.bytesPerSecond", "must be at least 1".to_owned());
        }
        if self.snapshots.at_once == 0 {
            return invalid("snapshots.atOnce", "must be at least 1".to_owned());
        }
        if self.snapshots.bytes_per_second < MIN_SNAPSHOT_RATE {
            return invalid("snapshots.bytesPerSecond", format!("must be at least {MIN_SNAPSHOT_RATE}"));
        }
        if (Port::Peer as u16).checked_add(self.listen.port_offset).is_none() {
            return invalid("listen.portOffset", "leads beyond port 65535".to_owned());
        }
        self.smtp.check()
    }
}

impl Smtp {
    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |field, reason: String| Err(ConfigError::Invalid { field, reason });
        if self.max_message_size < 64 * 1024 || self.max_message_size > MAX_MESSAGE_SIZE {
            // RFC 5321 4.5.3.1.7: at least 64 KiB must be taken.
            return invalid("smtp.maxMessageSize", format!("must be 65536 to {MAX_MESSAGE_SIZE} bytes"));
        }
        if let Some(authentication) = &self.authentication
            && !(MIN_CHECK..=MAX_CHECK).contains(&authentication.within)
        {
            return invalid(
                "smtp.authentication.within",
                format!("must be {} to {} seconds", MIN_CHECK.as_secs(), MAX_CHECK.as_secs()),
            );
        }
        let retry = &self.retry;
        if retry.initial.is_zero() || retry.initial > retry.max || retry.max > retry.give_up_after {
            return invalid("smtp.retry", "must be 0 < initial <= max <= giveUpAfter".to_owned());
        }
        if let Some(relay) = &self.relay {
            if relay.host.is_empty() || relay.port == 0 {
                return invalid("smtp.relay", "needs a host and a port".to_owned());
            }
            if relay.username.is_some() != relay.password_file.is_some() {
                return invalid("smtp.relay", "username and passwordFile go together".to_owned());
            }
            if relay.username.is_some() && relay.tls == RelayTls::None {
                return invalid("smtp.relay.tls", "must not be None when a password is sent".to_owned());
            }
        }
        Ok(())
    }
}

fn pod_ordinal(name: &str) -> Option<u64> {
    name.rsplit_once('-')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
cluster: c1
node: 1
hostname: Mail.Example.org
dataDir: /var/lib/quorumail
listen: {host: "127.0.0.2", portOffset: 100}
peers:
  - {node: 0, address: "127.0.0.1:9444", admin: "127.0.0.1:9443"}
  - {node: 1, address: "127.0.0.2:9444", admin: "127.0.0.2:9443"}
partitions: 16
replicas: 3
tls:
  internal: {ca: ca.pem, cert: c.pem, key: k.pem}
  public: {cert: c.pem, key: k.pem}
smtp:
  retry: {initial: 90s, max: 1h30m, giveUpAfter: 5d}
"#;

    fn load(text: &str, node: Option<u64>) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(file.path(), node)
    }

    #[test]
    fn a_configuration_is_read_with_its_defaults() {
        let config = load(GOOD, None).unwrap();
        assert_eq!(config.hostname.as_str(), "mail.example.org");
        assert_eq!(config.address(Port::SmtpMx).to_string(), "127.0.0.2:2625");
        assert_eq!(config.smtp.retry.max, Duration::from_secs(5400));
        assert_eq!(config.smtp.max_message_size, 25 * 1024 * 1024);
        assert!(!config.allow_plaintext_auth_from_loopback);
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        assert_eq!(load(GOOD, Some(0)).unwrap().node(), 0);
    }

    #[test]
    fn the_ordinal_of_a_pod_is_its_number() {
        assert_eq!(pod_ordinal("mail-nodes-12"), Some(12));
        assert_eq!(pod_ordinal("mail"), None);
    }

    #[test]
    fn a_mistake_is_refused_by_the_name_of_its_field() {
        for (from, to, named) in [
            ("replicas: 3", "replica: 3", "replica"),
            ("portOffset: 100", "portOffset: 60000", "listen.portOffset"),
            ("partitions: 16", "partitions: 0", "partitions"),
            ("node: 1\n", "node: 7\n", "peers"),
            ("max: 1h30m", "max: 1 hour", "smtp"),
            ("hostname: Mail.Example.org", "hostname: -x-", "hostname"),
            ("127.0.0.1:9444", "127.0.0.1", "peers"),
            ("initial: 90s", "initial: 2h", "smtp.retry"),
            ("node: 1\n", "node: 1\ndisk: {noNewMailBelow: 5, readOnlyBelow: 6}\n", "disk.readOnlyBelow"),
            ("replicas: 3", "replicas: 3\ncompaction: {deadShare: 0}", "compaction.deadShare"),
            ("replicas: 3", "replicas: 3\ncompaction: {bytesPerSecond: 0}", "compaction.bytesPerSecond"),
            ("replicas: 3", "replicas: 3\nsnapshots: {atOnce: 0}", "snapshots.atOnce"),
            ("replicas: 3", "replicas: 3\nsnapshots: {bytesPerSecond: 1000}", "snapshots.bytesPerSecond"),
            ("replicas: 3", "replicas: 3\ndeletedMail: {keep: two weeks}", "deletedMail"),
            ("replicas: 3", "generation: 0", "generation"),
            ("smtp:\n", "smtp:\n  authentication: {within: 0s}\n", "smtp.authentication.within"),
            ("replicas: 3", "generation: 2", "founders"),
        ] {
            let error = load(&GOOD.replacen(from, to, 1), None).unwrap_err().to_string();
            assert!(error.contains(named), "{from} -> {to}: {error}");
        }
    }

    #[test]
    fn a_password_is_not_sent_to_a_relay_without_tls() {
        let text = format!("{GOOD}  relay: {{host: r, tls: None, username: u, passwordFile: p}}\n");
        assert!(load(&text, None).unwrap_err().to_string().contains("smtp.relay.tls"));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "h", "5", "5x", "1h 30m", "99999999999999999999d", "-5s"] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }
}
