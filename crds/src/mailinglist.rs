//! MailingList: an address whose mail goes to many.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ClusterRef, Size};

/// An address whose mail goes to many.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "quorumail.io",
    version = "v1alpha1",
    kind = "MailingList",
    namespaced,
    plural = "mailinglists",
    singular = "mailinglist",
    shortname = "ml",
    category = "quorumail",
    status = "MailingListStatus",
    derive = "PartialEq",
    doc = "An address whose mail goes to many.",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
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
    printcolumn(name = "Members", type_ = "integer", json_path = ".status.members"),
    printcolumn(name = "Held", type_ = "integer", json_path = ".status.held"),
    printcolumn(name = "Posting", type_ = "string", json_path = ".spec.posting", priority = 1),
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
        .message("clusterRef cannot be changed: delete the MailingList and make it anew at the other MailCluster"),
)]
pub struct MailingListSpec {
    /// The MailCluster; may be left out where the namespace has exactly one. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ref: Option<ClusterRef>,

    /// Where messages to the list are sent, in lower case. Its domain must be a MailDomain of the same cluster. With `-owner`,
    /// `-join`, `-leave`, `-bounces`, `-confirm` and `-moderate` after the local part it has other addresses of its own. Cannot
    /// be changed.
    #[schemars(length(min = 3, max = 286))]
    #[x_kube(
        validation = Rule::new(crate::address_rule("self")).message("address must be local-part@domain in lower case and ASCII, as in announce@example.org, with an international domain as xn--bcher-kva.example"),
        validation = Rule::new("self.indexOf('@') <= 32").message("the local part of a list's address may have at most 32 characters, since its other addresses are longer: make it shorter"),
        validation = Rule::new("self == oldSelf").message("address cannot be changed: make a new MailingList"),
    )]
    pub address: String,

    /// To whom messages go, here or elsewhere. A list may be a member of another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10_000))]
    pub members: Vec<ListMember>,

    /// Mailboxes in the same namespace and of the same MailCluster that are members too, by their labels; `{}` means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::label_selector")]
    pub member_selector: Option<LabelSelector>,

    /// Whose messages go to the members at once. Members: those of members. Moderated: those of moderators and owners.
    /// Owners: those of owners. Anyone: all. Others' wait for a moderator; with Owners they are refused.
    #[serde(default)]
    pub posting: Posting,

    /// Put before each subject that does not have it yet, as in `[announce]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 60))]
    #[x_kube(validation = Rule::new("self.matches('^[ -~]+$')").message("subjectPrefix must be printable ASCII, as in [announce]"))]
    pub subject_prefix: Option<String>,

    /// Where answers go. Sender: to the author. List: to the list.
    #[serde(default)]
    pub reply_to: ReplyTo,

    /// Who becomes a member by mail to the address with `-join`. Open: whoever asks; people from elsewhere confirm. Confirm:
    /// whoever asks and confirms. Approve: as Confirm, and a moderator says yes. Closed: nobody.
    #[serde(default)]
    pub subscription: Subscription,

    /// Larger messages wait for a moderator; without it none does for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("maxMessageSize must be greater than zero, as in 1Mi; leave it out for no limit"))]
    pub max_message_size: Option<Size>,

    /// Who may read later what went to the members, over IMAP in the folder `#lists/` with the list's address. None: nobody, it
    /// is not kept. Members: members, moderators and owners. What is kept stays until the list is deleted.
    #[serde(default)]
    pub archive: Archive,
}

/// Somebody to whom a list goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListMember {
    /// The address in lower case.
    #[schemars(length(min = 3, max = 318))]
    pub address: String,

    /// Member: gets messages. Moderator: decides on those that wait as well. Owner: gets the mail for `-owner` as well.
    #[serde(default)]
    pub role: ListRole,
}

/// What a member may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ListRole {
    /// Gets messages.
    #[default]
    Member,
    /// Decides on messages that wait as well.
    Moderator,
    /// Gets the mail for the owners as well.
    Owner,
}

/// Whose messages go to the members at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Posting {
    /// Those of members.
    #[default]
    Members,
    /// Those of moderators and owners.
    Moderated,
    /// All.
    Anyone,
    /// Those of owners; others' are refused.
    Owners,
}

/// Where answers go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReplyTo {
    /// To the author.
    #[default]
    Sender,
    /// To the list.
    List,
}

/// Who becomes a member by mail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Subscription {
    /// Whoever asks; people from elsewhere confirm.
    Open,
    /// Whoever asks and confirms.
    Confirm,
    /// Whoever asks and confirms, once a moderator says yes.
    Approve,
    /// Nobody.
    #[default]
    Closed,
}

/// Who may read later what went to the members.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Archive {
    /// Nobody: it is not kept.
    #[default]
    None,
    /// Members, moderators and owners.
    Members,
}

/// What was observed of a MailingList.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MailingListStatus {
    /// The metadata.generation that the status was observed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the mailnodes confirmed the list as it is asked. Paused: by annotation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// To how many a message goes now: with those who joined by mail, without those who left or are suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<u32>,

    /// Messages that wait for a moderator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u32>,

    /// Members that get nothing because their mail comes back for good; the first 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bouncing: Vec<String>,
}
