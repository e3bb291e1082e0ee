//! MailDomain: a domain that a MailCluster receives mail for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ClusterRef, DeletionPolicy, Span};

/// A domain that a MailCluster receives mail for.
#[derive(CustomResource, Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "quorumail.io",
    version = "v1alpha1",
    kind = "MailDomain",
    namespaced,
    plural = "maildomains",
    shortname = "md",
    category = "quorumail",
    status = "MailDomainStatus",
    derive = "PartialEq",
    doc = "A domain that a MailCluster receives mail for.",
    validation = Rule::new("self.metadata.name.size() <= 248").message("the name of a MailDomain may have at most 248 characters: the Secret <name>-dkim is named after it"),
    printcolumn(name = "Domain", type_ = "string", json_path = ".spec.domain"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(
        name = "DNS",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='DnsVerified')].status"
    ),
    printcolumn(name = "Mailboxes", type_ = "integer", json_path = ".status.mailboxes"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.clusterRef) == has(oldSelf.clusterRef) && (!has(self.clusterRef) || self.clusterRef == oldSelf.clusterRef)")
        .message("clusterRef cannot be changed: delete the MailDomain and make it anew at the other MailCluster"),
    validation = Rule::new("!has(self.aliases) || !(self.domain in self.aliases)").message("a domain cannot be its own alias: leave it out of aliases"),
)]
pub struct MailDomainSpec {
    /// The MailCluster; may be left out where the namespace has exactly one. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ref: Option<ClusterRef>,

    /// The domain, in lower case. Cannot be changed.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new(crate::host_name_rule("self")).message("domain must be a host name in lower case, as in example.org, or xn--bcher-kva.example for bücher.example"),
        validation = Rule::new("self == oldSelf").message("domain cannot be changed: make a MailDomain for the other domain"),
    )]
    pub domain: String,

    /// Other domains whose addresses mean the same mailboxes: with alias `example.com`, mail for `alice@example.com`
    /// reaches `alice@example.org`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new(format!("self.all(a, {})", crate::host_name_rule("a"))).message("every alias must be a host name in lower case, as in example.com, or xn--bcher-kva.example for bücher.example"))]
    pub aliases: Vec<String>,

    /// Address that takes the mail for unknown addresses of the domain. Without it they are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 318))]
    #[x_kube(validation = Rule::new(crate::address_rule("self")).message("catchAll must be an address in lower case, as in alice@example.org"))]
    pub catch_all: Option<String>,

    /// Keys that the domain's mail is signed with. The operator makes them, keeps them in Secret `<name>-dkim`, and gives them
    /// to the mailnodes.
    #[serde(default)]
    pub dkim: Dkim,

    /// The SPF record: which hosts send mail of the domain. Those of its MX always do.
    #[serde(default)]
    pub spf: Spf,

    /// The DMARC record: what others do with mail that is not shown to be the domain's own.
    #[serde(default)]
    pub dmarc: DmarcRecord,

    /// The MTA-STS record (RFC 8461): others send mail for the domain only under TLS with a certificate that is checked.
    /// Without it there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mta_sts: Option<MtaSts>,

    /// The TLS-RPT record (RFC 8460): where others report TLS that failed. Without it there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_rpt: Option<TlsRpt>,

    /// What happens when this MailDomain is deleted while mailboxes use the domain. Retain: it is served until its last
    /// mailbox is gone. Delete: its mailboxes are removed with it, each under its own deletionPolicy.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// Keys that the domain's mail is signed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dkim {
    /// Every message is signed with a key of each. Empty: mail is not signed.
    #[serde(default = "default_algorithms")]
    #[schemars(length(max = 2))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, a == b))").message("dkim.algorithms must name each algorithm once"))]
    pub algorithms: Vec<DkimAlgorithm>,

    /// A key is replaced when it is so old, as in 180d; 0s: never. The new key signs once its DNS record is seen.
    #[serde(default = "default_rotation")]
    pub rotation: Span,

    /// The record of a replaced key stays for so long, for mail that is under way.
    #[serde(default = "default_overlap")]
    pub overlap: Span,
}

fn default_algorithms() -> Vec<DkimAlgorithm> {
    vec![DkimAlgorithm::Rsa2048, DkimAlgorithm::Ed25519]
}

fn default_rotation() -> Span {
    "180d".parse().expect("the default rotation is a duration")
}

fn default_overlap() -> Span {
    "7d".parse().expect("the default overlap is a duration")
}

impl Default for Dkim {
    fn default() -> Self {
        Self { algorithms: default_algorithms(), rotation: default_rotation(), overlap: default_overlap() }
    }
}

/// How a DKIM key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DkimAlgorithm {
    /// RSA with 2048 bits and SHA-256: understood everywhere.
    Rsa2048,
    /// Ed25519 (RFC 8463): short records; not understood everywhere.
    Ed25519,
}

/// The SPF record. RFC 7208.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Spf {
    /// Domains whose SPF records name further hosts that send for the domain, as a relay's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new(format!("self.all(a, {})", crate::record_name_rule("a"))).message("spf.include must be names of domains in lower case, as in _spf.example.com"))]
    pub include: Vec<String>,

    /// What is said of all other hosts.
    #[serde(default)]
    pub others: SpfOthers,
}

/// What an SPF record says of hosts that it does not name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SpfOthers {
    /// `~all`: probably not the domain's own.
    #[default]
    SoftFail,
    /// `-all`: not the domain's own. Breaks forwarding where no DKIM is checked.
    Fail,
    /// `?all`: nothing is said.
    Neutral,
}

/// The DMARC record. RFC 9989.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DmarcRecord {
    /// What is asked of others.
    #[serde(default)]
    pub policy: DmarcPolicy,

    /// Address for reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 318))]
    #[x_kube(validation = Rule::new(crate::address_rule("self")).message("dmarc.rua must be an address in lower case, as in reports@example.org"))]
    pub rua: Option<String>,
}

/// What others are asked to do with mail that fails DMARC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DmarcPolicy {
    /// Nothing; reports only.
    #[default]
    None,
    /// To treat it as suspicious.
    Quarantine,
    /// To refuse it.
    Reject,
}

/// The MTA-STS record. RFC 8461.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MtaSts {
    /// What others do when TLS fails. The policy itself, `status.mtaStsPolicy`, is served by the mailnodes as
    /// `https://mta-sts.<domain>/.well-known/mta-sts.txt`.
    #[serde(default)]
    pub mode: MtaStsMode,
}

/// RFC 8461 5.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MtaStsMode {
    /// They send all the same, and report.
    #[default]
    Testing,
    /// They do not send.
    Enforce,
}

/// The TLS-RPT record. RFC 8460.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsRpt {
    /// Address for reports.
    #[schemars(length(min = 3, max = 318))]
    #[x_kube(validation = Rule::new(crate::address_rule("self")).message("tlsRpt.rua must be an address in lower case, as in reports@example.org"))]
    pub rua: String,
}

/// A DNS record that the domain needs, and what was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DnsRecord {
    /// Fully qualified, without the final dot.
    pub name: String,
    /// MX, TXT or SRV.
    #[serde(rename = "type")]
    pub type_: String,
    /// As it is written in a zone file; a TXT record as one text without quotes.
    pub value: String,
    /// What was found.
    #[serde(default)]
    pub state: DnsState,
    /// What stands there instead of it, or why nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// When it was last looked up; told hourly as long as nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub checked_at: Option<Time>,
}

/// What was found of a DNS record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DnsState {
    /// It is there.
    Present,
    /// There is none of its kind.
    Missing,
    /// There is another one.
    Mismatch,
    /// It was not looked up yet, or DNS did not answer.
    #[default]
    Unknown,
}

/// What was observed of a MailDomain.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MailDomainStatus {
    /// The metadata.generation that the status was observed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the mailnodes confirmed that they serve the domain. DkimReady: its mail is signed, and the records of the keys
    /// that sign are seen. DnsVerified: all records are seen as they should be. Probed: messages that the operator sends in it every
    /// minute come back. Paused: by annotation. Contested: there while another namespace claims the domain, or an alias of it, as
    /// well; this MailDomain has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// Number of mailboxes in the domain, as told by the mailnodes.
    #[serde(default)]
    pub mailboxes: u32,

    /// The DNS records that the domain and its aliases need, and what was found of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_records: Vec<DnsRecord>,

    /// The policy to be served where `spec.mtaSts` is set. RFC 8461 3.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mta_sts_policy: Option<String>,
}
