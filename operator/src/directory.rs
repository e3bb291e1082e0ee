//! Accounts: from what resources ask to what the mailnodes are told.
//!
//! Pure but for the salt of a password hash. [`Desired`] is compared with a [`Listing`] of what the mailnodes hold by
//! revision, an opaque fingerprint that is put with every entry and listed back: equal revisions mean that nothing has
//! to be said, so that a resynchronisation of many accounts hashes no password twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use parking_lot::Mutex;
use quorumail_authentication as authentication;
use quorumail_crds::{
    MailDomainSpec, MailboxSpec, MailingListSpec,
    maildomain::MtaStsMode,
    mailinglist::{Archive, ListRole, Posting, ReplyTo, Subscription},
};
use quorumail_proto::admin::{self, DirectoryChange, directory_change::Change};

pub use crate::admin::Listing;
use crate::tenancy::Owner;

/// Changes that are sent in one call.
pub const BATCH: usize = 200;
/// Longest password or hash that is taken from a Secret, in bytes.
pub const MAX_CREDENTIAL: usize = 1024;
/// What every revision that is put from resources starts with; entries put by others are left alone.
pub(crate) const REVISION_PREFIX: &str = "r1-";
/// RFC 9106 4 leaves the cost to the application; this is the least that OWASP's password storage guide recommends, since
/// mail programs log in often: 19 MiB, two passes, one lane.
const ARGON2: (u32, u32, u32) = (19_456, 2, 1);

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// How a person proves to own a mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nobody can log in.
    None,
    /// A password, hashed before it is sent.
    Password(Hidden),
    /// A hash in a format that the mailnodes check; passed on as it is.
    Hash(Hidden),
}

/// Why the value of a Secret cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Nothing but line ends.
    #[error("is empty")]
    Empty,
    /// More than [`MAX_CREDENTIAL`].
    #[error("is longer than {MAX_CREDENTIAL} bytes")]
    TooLong,
    /// A password that nobody can type.
    #[error("is not UTF-8 text, or has control characters")]
    NotText,
}

impl Credential {
    /// From the value of a Secret. Line ends at its end are not part of it: `--from-file` brings them in.
    pub fn from_secret(value: &[u8]) -> Result<Self, CredentialError> {
        let text = std::str::from_utf8(value).map_err(|_| CredentialError::NotText)?;
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Err(CredentialError::Empty);
        }
        if text.len() > MAX_CREDENTIAL {
            return Err(CredentialError::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(CredentialError::NotText);
        }
        let hidden = Hidden(text.to_owned());
        Ok(if is_hash(text) { Self::Hash(hidden) } else { Self::Password(hidden) })
    }

    /// What goes into a revision.
    fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::None => ("none", ""),
            Self::Password(password) => ("password", &password.0),
            Self::Hash(hash) => ("hash", &hash.0),
        }
    }

    /// What the mailnodes are told. Costs tens of milliseconds for a password.
    pub(crate) fn hashed(&self) -> Result<String, argon2::Error> {
        match self {
            Self::None => Ok(String::new()),
            Self::Hash(hash) => Ok(hash.0.clone()),
            Self::Password(password) => argon2id(&password.0),
        }
    }
}

/// What argon2 works in. One for the process: hashing is serial, and takes this much memory however much there is to do.
static SCRATCH: Mutex<Vec<Block>> = Mutex::new(Vec::new());

/// A hash in the PHC string format, with a fresh salt.
fn argon2id(password: &str) -> Result<String, argon2::Error> {
    let mut scratch = SCRATCH.lock();
    argon2id_at(password, ARGON2, &mut scratch)
}

/// The least that Argon2 allows: a random password of 128 bits is found by nobody who tries, however cheap that is.
const ARGON2_LEAST: (u32, u32, u32) = (8, 1, 1);

/// Of a password that a program drew, for an account that logs in every minute.
pub(crate) fn hash_of_random(password: &str) -> Result<String, argon2::Error> {
    argon2id_at(password, ARGON2_LEAST, &mut Vec::new())
}

fn argon2id_at(
    password: &str,
    (memory, passes, lanes): (u32, u32, u32),
    scratch: &mut Vec<Block>,
) -> Result<String, argon2::Error> {
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(memory, passes, lanes, None)?);
    let salt: [u8; 16] = rand::random();
    let mut hash = [0; Params::DEFAULT_OUTPUT_LEN];
    scratch.resize(argon2.params().block_count(), Block::default());
    argon2.hash_password_into_with_memory(password.as_bytes(), &salt, &mut hash, scratch.as_mut_slice())?;
    let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
    Ok(format!("$argon2id$v=19$m={memory},t={passes},p={lanes}${salt}${hash}"))
}

/// argon2 (PHC string), sha512-crypt, bcrypt.
fn is_hash(text: &str) -> bool {
    let fields = text.split('$').count();
    let starts = |prefixes: &[&str]| prefixes.iter().any(|p| text.starts_with(p));
    (starts(&["$argon2id$", "$argon2i$", "$argon2d$"]) && fields >= 5)
        || (starts(&["$6$"]) && fields >= 4)
        || (starts(&["$2a$", "$2b$", "$2y$"]) && text.len() == 60)
}

/// A key that mail of a domain is signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct DkimKey {
    /// Names it under the domain.
    pub selector: String,
    /// How it signs.
    pub algorithm: authentication::Algorithm,
    /// PKCS #8, DER. Never printed.
    pub private: Vec<u8>,
}

impl DkimKey {
    fn to_proto(&self) -> admin::DkimKey {
        let algorithm = match self.algorithm {
            authentication::Algorithm::Rsa => admin::dkim_key::Algorithm::Rsa,
            authentication::Algorithm::Ed25519 => admin::dkim_key::Algorithm::Ed25519,
        };
        admin::DkimKey {
            selector: self.selector.clone(),
            algorithm: algorithm.into(),
            private_key: self.private.clone(),
        }
    }
}

impl fmt::Debug for DkimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DkimKey").field("selector", &self.selector).finish_non_exhaustive()
    }
}

/// A domain as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredDomain {
    /// Whose it is.
    pub owner: Owner,
    /// In lower case.
    pub domain: String,
    /// In lower case.
    pub aliases: Vec<String>,
    /// Takes mail for unknown addresses.
    pub catch_all: Option<String>,
    /// What its mail is signed with.
    pub keys: Vec<DkimKey>,
    /// Whether it has an MTA-STS policy, and which.
    pub sts: Option<MtaStsMode>,
}

impl DesiredDomain {
    /// From a resource and the keys that sign now.
    pub fn new(spec: &MailDomainSpec, owner: Owner, keys: Vec<DkimKey>) -> Self {
        Self {
            owner,
            domain: spec.domain.to_lowercase(),
            aliases: sorted(&spec.aliases),
            catch_all: spec.catch_all.as_ref().map(|a| a.to_lowercase()),
            keys,
            sts: spec.mta_sts.as_ref().map(|policy| policy.mode),
        }
    }
}

/// A mailbox as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredMailbox {
    /// Whose it is.
    pub owner: Owner,
    /// In lower case.
    pub address: String,
    /// May be empty.
    pub display_name: String,
    /// In lower case.
    pub aliases: Vec<String>,
    /// For logging in.
    pub credential: Credential,
    /// Zero: no limit.
    pub quota_bytes: u64,
    /// Zero: no limit.
    pub quota_messages: u64,
    /// Nobody can log in or send.
    pub suspended: bool,
    /// May submit mail.
    pub may_send: bool,
    /// Mail for it is accepted.
    pub may_receive: bool,
    /// May read.
    pub may_login: bool,
}

impl DesiredMailbox {
    /// From a resource and the Secret it refers to.
    pub fn new(spec: &MailboxSpec, owner: Owner, credential: Credential) -> Self {
        let quota = spec.quota.as_ref();
        Self {
            owner,
            address: spec.address.to_lowercase(),
            display_name: spec.display_name.clone().unwrap_or_default(),
            aliases: sorted(&spec.aliases),
            credential,
            quota_bytes: quota.and_then(|q| q.storage.as_ref()).map_or(0, |s| s.bytes()),
            quota_messages: quota.and_then(|q| q.messages).map_or(0, u64::from),
            suspended: spec.suspended,
            may_send: spec.permissions.send,
            may_receive: spec.permissions.receive,
            may_login: spec.permissions.login,
        }
    }
}

/// A mailing list as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredList {
    /// Whose it is.
    pub owner: Owner,
    /// In lower case.
    pub address: String,
    /// By address, in lower case.
    pub members: BTreeMap<String, ListRole>,
    /// Whose messages go to the members at once.
    pub posting: Posting,
    /// Before each subject; may be empty.
    pub subject_prefix: String,
    /// Whether answers go to the list.
    pub reply_to_list: bool,
    /// Who becomes a member by mail.
    pub subscription: Subscription,
    /// Zero: no limit.
    pub max_bytes: u64,
    /// Whether what goes to the members is kept for them.
    pub archive: bool,
}

impl DesiredList {
    /// From a resource. `selected`: addresses of the mailboxes that its selector means.
    pub fn new(spec: &MailingListSpec, owner: Owner, selected: impl IntoIterator<Item = String>) -> Self {
        let mut members: BTreeMap<String, ListRole> =
            selected.into_iter().map(|address| (address.to_lowercase(), ListRole::Member)).collect();
        for member in &spec.members {
            let role = members.entry(member.address.to_lowercase()).or_default();
            *role = (*role).max(member.role);
        }
        Self {
            owner,
            address: spec.address.to_lowercase(),
            members,
            posting: spec.posting,
            subject_prefix: spec.subject_prefix.clone().unwrap_or_default(),
            reply_to_list: spec.reply_to == ReplyTo::List,
            subscription: spec.subscription,
            max_bytes: spec.max_message_size.as_ref().map_or(0, |size| size.bytes()),
            archive: spec.archive == Archive::Members,
        }
    }

    fn to_proto(&self, revision: String) -> admin::MailingList {
        let member = |(address, role): (&String, &ListRole)| admin::ListMember {
            address: address.clone(),
            role: match role {
                ListRole::Member => admin::list_member::Role::Member,
                ListRole::Moderator => admin::list_member::Role::Moderator,
                ListRole::Owner => admin::list_member::Role::Owner,
            }
            .into(),
        };
        admin::MailingList {
            address: self.address.clone(),
            members: self.members.iter().map(member).collect(),
            posting: match self.posting {
                Posting::Members => admin::mailing_list::Posting::Members,
                Posting::Moderated => admin::mailing_list::Posting::Moderated,
                Posting::Anyone => admin::mailing_list::Posting::Anyone,
                Posting::Owners => admin::mailing_list::Posting::Owners,
            }
            .into(),
            subject_prefix: self.subject_prefix.clone(),
            reply_to_list: self.reply_to_list,
            subscription: match self.subscription {
                Subscription::Open => admin::mailing_list::Subscription::Open,
                Subscription::Confirm => admin::mailing_list::Subscription::Confirm,
                Subscription::Approve => admin::mailing_list::Subscription::Approve,
                Subscription::Closed => admin::mailing_list::Subscription::Closed,
            }
            .into(),
            max_bytes: self.max_bytes,
            revision,
            secret: Vec::new(),
            archive: self.archive,
        }
    }
}

fn sorted(names: &[String]) -> Vec<String> {
    names.iter().map(|n| n.to_lowercase()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The domain of an address; empty when there is none.
pub fn domain_of(address: &str) -> &str {
    address.rsplit_once('@').map_or("", |(_, domain)| domain)
}

/// Makes revisions. Keyed, so that a revision tells nothing about the password that went into it.
#[derive(Clone)]
pub struct FingerprintKey([u8; 32]);

impl fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FingerprintKey")
    }
}

impl FingerprintKey {
    /// From a secret of the cluster that stays the same, such as the private key of its authority.
    pub fn derive(secret: &str) -> Self {
        Self(blake3::derive_key("quorumail.io directory revision v1", secret.as_bytes()))
    }

    /// The revision of a domain.
    pub fn domain(&self, domain: &DesiredDomain) -> String {
        let mut hash = Fields::new(self, "domain");
        hash.text(&domain.domain);
        hash.list(&domain.aliases);
        hash.text(domain.catch_all.as_deref().unwrap_or_default());
        for key in &domain.keys {
            hash.text(&key.selector);
            hash.bytes(&key.private);
        }
        hash.text(match domain.sts {
            None => "",
            Some(MtaStsMode::Testing) => "testing",
            Some(MtaStsMode::Enforce) => "enforce",
        });
        domain.owner.mark(&hash.finish())
    }

    /// The revision of a mailbox.
    pub fn mailbox(&self, mailbox: &DesiredMailbox) -> String {
        let mut hash = Fields::new(self, "mailbox");
        hash.text(&mailbox.address);
        hash.text(&mailbox.display_name);
        hash.list(&mailbox.aliases);
        let (kind, value) = mailbox.credential.parts();
        hash.text(kind);
        hash.text(value);
        hash.number(mailbox.quota_bytes);
        hash.number(mailbox.quota_messages);
        for flag in [mailbox.suspended, mailbox.may_send, mailbox.may_receive, mailbox.may_login] {
            hash.number(u64::from(flag));
        }
        mailbox.owner.mark(&hash.finish())
    }

    /// The revision of a mailing list.
    pub fn list(&self, list: &DesiredList) -> String {
        let mut hash = Fields::new(self, "list");
        hash.text(&list.address);
        hash.number(list.members.len() as u64);
        for (address, role) in &list.members {
            hash.text(address);
            hash.number(*role as u64);
        }
        hash.number(list.posting as u64);
        hash.text(&list.subject_prefix);
        hash.number(u64::from(list.reply_to_list));
        hash.number(list.subscription as u64);
        hash.number(list.max_bytes);
        hash.number(u64::from(list.archive));
        list.owner.mark(&hash.finish())
    }
}

/// Batches of steps for one call each: a list may be as large as many mailboxes, and goes alone.
pub fn batches(steps: &[Step]) -> Vec<&[Step]> {
    let alone = |step: &Step| matches!(step, Step::PutList(_));
    let runs = steps.chunk_by(|a, b| !alone(a) && !alone(b));
    runs.flat_map(|run| run.chunks(BATCH)).collect()
}

/// Hashes fields with their lengths, so that no two different lists of fields look alike.
struct Fields(blake3::Hasher);

impl Fields {
    fn new(key: &FingerprintKey, kind: &str) -> Self {
        let mut fields = Self(blake3::Hasher::new_keyed(&key.0));
        fields.text(kind);
        fields
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn list(&mut self, list: &[String]) {
        self.number(list.len() as u64);
        list.iter().for_each(|item| self.text(item));
    }

    fn finish(self) -> String {
        format!("{REVISION_PREFIX}{}", self.0.finalize().to_hex())
    }
}

/// What the directory should hold, and what should go from it. Keys are domains and addresses in lower case.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// Domains to serve.
    pub domains: BTreeMap<String, DesiredDomain>,
    /// Mailboxes to have.
    pub mailboxes: BTreeMap<String, DesiredMailbox>,
    /// Mailboxes to remove, with the seconds for which their mail is kept.
    pub remove_mailboxes: BTreeMap<String, u64>,
    /// Mailing lists to have.
    pub lists: BTreeMap<String, DesiredList>,
    /// Mailing lists to remove.
    pub remove_lists: BTreeSet<String>,
    /// Domains to remove, after the mailboxes.
    pub remove_domains: BTreeSet<String>,
    /// Domains that are neither put nor removed for now.
    pub leave_domains: BTreeSet<String>,
}

/// What to do with entries that were put from resources which are not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphans {
    /// Removes domains that have no mailbox; mailboxes stay. The operator's choice: deletion of a Mailbox comes through
    /// its finalizer, and a missing object alone never takes an account away.
    RemoveEmptyDomains,
    /// Removes all; mail of mailboxes is kept for this many seconds. For `quorumail dev`, where files are all there is.
    RemoveAll {
        /// Seconds for which the mail is kept.
        keep_seconds: u64,
    },
}

/// One thing to tell the mailnodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Makes or changes a domain.
    PutDomain(DesiredDomain),
    /// Makes or changes a mailbox.
    PutMailbox(Box<DesiredMailbox>),
    /// Removes a mailbox.
    DeleteMailbox {
        /// Its address.
        address: String,
        /// Seconds for which its mail is kept.
        keep_seconds: u64,
    },
    /// Makes or changes a mailing list.
    PutList(Box<DesiredList>),
    /// Removes a mailing list.
    DeleteList(String),
    /// Removes a domain.
    DeleteDomain(String),
}

impl Step {
    /// The domain or address that it is about.
    pub fn subject(&self) -> &str {
        match self {
            Self::PutDomain(domain) => &domain.domain,
            Self::PutMailbox(mailbox) => &mailbox.address,
            Self::DeleteMailbox { address, .. } => address,
            Self::PutList(list) => &list.address,
            Self::DeleteList(address) => address,
            Self::DeleteDomain(domain) => domain,
        }
    }

    /// What is sent. Hashes the password where there is one: call it off the async threads.
    pub fn to_change(&self, key: &FingerprintKey) -> Result<DirectoryChange, argon2::Error> {
        let change = match self {
            Self::PutDomain(domain) => Change::PutDomain(admin::Domain {
                domain: domain.domain.clone(),
                aliases: domain.aliases.clone(),
                catch_all: domain.catch_all.clone().unwrap_or_default(),
                revision: key.domain(domain),
                dkim_keys: domain.keys.iter().map(DkimKey::to_proto).collect(),
                sts_mode: match domain.sts {
                    None => admin::StsMode::None,
                    Some(MtaStsMode::Testing) => admin::StsMode::Testing,
                    Some(MtaStsMode::Enforce) => admin::StsMode::Enforce,
                }
                .into(),
            }),
            Self::PutMailbox(mailbox) => Change::PutMailbox(admin::Mailbox {
                address: mailbox.address.clone(),
                display_name: mailbox.display_name.clone(),
                aliases: mailbox.aliases.clone(),
                password_hash: mailbox.credential.hashed()?,
                quota_bytes: mailbox.quota_bytes,
                quota_messages: mailbox.quota_messages,
                suspended: mailbox.suspended,
                may_send: mailbox.may_send,
                may_receive: mailbox.may_receive,
                may_login: mailbox.may_login,
                revision: key.mailbox(mailbox),
            }),
            Self::DeleteMailbox { address, keep_seconds } => Change::DeleteMailbox(admin::DeleteMailbox {
                address: address.clone(),
                keep_seconds: *keep_seconds,
            }),
            Self::PutList(list) => Change::PutList(list.to_proto(key.list(list))),
            Self::DeleteList(address) => Change::DeleteList(admin::DeleteList { address: address.clone() }),
            Self::DeleteDomain(domain) => {
                Change::DeleteDomain(admin::DeleteDomain { domain: domain.clone() })
            }
        };
        Ok(DirectoryChange { change: Some(change) })
    }
}

/// What has to be said so that the directory holds what is desired, in the order in which it has to be said: removals
/// free names that others may take, and a domain comes before its mailboxes.
pub fn diff(desired: &Desired, listing: &Listing, key: &FingerprintKey, orphans: Orphans) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut going = BTreeMap::new();
    for (address, keep_seconds) in &desired.remove_mailboxes {
        if listing.mailboxes.contains_key(address) && !desired.mailboxes.contains_key(address) {
            going.insert(address, *keep_seconds);
        }
    }
    if let Orphans::RemoveAll { keep_seconds } = orphans {
        for (address, entry) in &listing.mailboxes {
            if entry.revision.starts_with(REVISION_PREFIX) && !desired.mailboxes.contains_key(address) {
                going.entry(address).or_insert(keep_seconds);
            }
        }
    }
    let is_orphan = |revision: &str| {
        matches!(orphans, Orphans::RemoveAll { .. }) && revision.starts_with(REVISION_PREFIX)
    };
    let going_lists: BTreeSet<&String> = listing
        .lists
        .iter()
        .filter(|(address, entry)| {
            !desired.lists.contains_key(*address)
                && (desired.remove_lists.contains(*address) || is_orphan(&entry.revision))
        })
        .map(|(address, _)| address)
        .collect();
    let staying = listing.mailboxes.keys().filter(|address| !going.contains_key(address));
    let lists = listing.lists.keys().filter(|address| !going_lists.contains(address));
    let staying = staying.chain(lists).chain(desired.lists.keys());
    let in_use: BTreeSet<&str> =
        staying.chain(desired.mailboxes.keys()).map(|address| domain_of(address)).collect();
    let gone = |domain: &String, revision: &str| {
        let orphan = revision.starts_with(REVISION_PREFIX) && !in_use.contains(domain.as_str());
        let named = desired.domains.contains_key(domain) || desired.leave_domains.contains(domain);
        !named && (desired.remove_domains.contains(domain) || orphan)
    };
    let going_domains: Vec<_> = listing
        .domains
        .iter()
        .filter(|(domain, entry)| gone(domain, &entry.revision))
        .map(|(d, _)| d.clone())
        .collect();

    let of_going = |address: &&String| going_domains.iter().any(|domain| domain_of(address) == domain);
    for address in listing.probes.iter().filter(of_going) {
        steps.push(Step::DeleteMailbox { address: address.clone(), keep_seconds: 0 });
    }
    for (address, keep_seconds) in going {
        steps.push(Step::DeleteMailbox { address: address.clone(), keep_seconds });
    }
    steps.extend(going_lists.into_iter().cloned().map(Step::DeleteList));
    steps.extend(going_domains.into_iter().map(Step::DeleteDomain));
    for (name, domain) in &desired.domains {
        if listing.domains.get(name).is_none_or(|entry| entry.revision != key.domain(domain)) {
            steps.push(Step::PutDomain(domain.clone()));
        }
    }
    for (address, mailbox) in &desired.mailboxes {
        if listing.mailboxes.get(address).is_none_or(|entry| entry.revision != key.mailbox(mailbox)) {
            steps.push(Step::PutMailbox(Box::new(mailbox.clone())));
        }
    }
    for (address, list) in &desired.lists {
        if listing.lists.get(address).is_none_or(|entry| entry.revision != key.list(list)) {
            steps.push(Step::PutList(Box::new(list.clone())));
        }
    }
    steps
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
