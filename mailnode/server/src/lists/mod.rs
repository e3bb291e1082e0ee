//! Mailing lists: what their addresses do with a message, and what people are told.
//!
//! A message to a list is judged and rewritten where it arrives, and kept in the partition that the list has its home in before
//! it is acknowledged. From there the leader of that partition expands it ([`worker`]). Copies differ from member to
//! member only by what [`Lists::personal`] puts on top of them when they are sent.

pub mod link;
pub mod policy;
pub mod token;
pub mod worker;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use mail_parser::MessageParser;
use parking_lot::Mutex;
use quorumail_authentication as authentication;
use quorumail_message::{Address, Domain, headers, list, rfc5322_date};
use quorumail_store::{
    CommandId, ListPart, ListPost, ListRecord, ListRole, Op, PostState, Query, QueueClass, QueueEntry,
    QueueId, QueueRecipient, Refusal, Reply, Resolution, Subscriber, SubscriberChange, Subscription,
    Timestamp,
};

use self::{
    policy::{Judgement, Standing},
    token::Asked,
};
use crate::{
    groups::{self, CommandFailure, Groups},
    metrics::{Metrics, PostOutcome},
    signer::Signer,
    tls::PublicTls,
};

/// For a command or a read.
const WITHIN: Duration = Duration::from_secs(20);
/// Characters of a subject that are kept for people.
const SUBJECT_CHARS: usize = 200;
/// Between two mails of the same purpose to one address, which somebody else may have named.
const ASK_AGAIN: Duration = Duration::from_secs(600);
/// Addresses of which this is remembered; with more, all are forgotten.
const MAX_ASKED: usize = 10_000;

/// RFC 3463 3.5: routing loop detected.
pub const LOOP: &str = "5.4.6";

/// Why a list does not take a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListFailure {
    /// For good: SMTP code, enhanced status code, and why.
    Refused(u16, &'static str, String),
    /// Too much waits already.
    Full(String),
    /// It is not known whether it was taken. The same message under the same id may be sent again.
    Unavailable(String),
}

/// Who wrote a message.
#[derive(Debug, Clone, Default)]
pub struct Author {
    /// As the message says; none when it does not name exactly one.
    pub address: Option<Address>,
    /// Whether it is shown to be they: they logged in, or nothing speaks against it for somebody from elsewhere.
    pub is_shown: bool,
    /// Whether they logged in here.
    pub is_ours: bool,
}

/// A message for an address of a list.
#[derive(Debug, Clone)]
pub struct Incoming<'a> {
    /// The same for the same message and list, however often it is tried.
    pub id: QueueId,
    /// Where reports go; none for reports.
    pub reverse_path: Option<&'a Address>,
    /// Who wrote it.
    pub author: Author,
    /// With the fields that it was given on its way in.
    pub body: Bytes,
    /// Whether the body needs 8BITMIME.
    pub eight_bit: bool,
}

/// All lists of the cluster.
pub struct Lists {
    groups: Arc<Groups>,
    signer: Arc<Signer>,
    hostname: Domain,
    public_tls: Arc<PublicTls>,
    metrics: Arc<Metrics>,
    /// When an address was last asked to confirm something, by list, purpose and address.
    asked: Mutex<HashMap<String, std::time::Instant>>,
}

fn refused(code: u16, enhanced: &'static str, text: impl Into<String>) -> ListFailure {
    ListFailure::Refused(code, enhanced, text.into())
}

fn failed(failure: CommandFailure) -> ListFailure {
    match failure {
        CommandFailure::Refused(Refusal::Conflict(text)) => ListFailure::Full(text),
        CommandFailure::Refused(refusal) => ListFailure::Unavailable(refusal.to_string()),
        CommandFailure::Unavailable(text) => ListFailure::Unavailable(text),
    }
}

/// What is derived from something that happens only once.
fn derive(purpose: &str, of: QueueId, what: &str) -> u128 {
    let mut hasher = blake3::Hasher::new_derive_key("quorumail lists v1 ids");
    hasher.update(purpose.as_bytes()).update(&[0]).update(&of.0.to_be_bytes()).update(what.as_bytes());
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    u128::from_be_bytes(id)
}

impl Lists {
    /// `hostname` stands in Message-ID fields, and in links where `public_tls` has a certificate for it.
    pub fn new(
        groups: Arc<Groups>,
        signer: Arc<Signer>,
        hostname: Domain,
        public_tls: Arc<PublicTls>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { groups, signer, hostname, public_tls, metrics, asked: Mutex::default() }
    }

    /// All groups.
    pub fn groups(&self) -> &Arc<Groups> {
        &self.groups
    }

    /// Does what the address is for.
    pub async fn take(
        &self,
        record: &ListRecord,
        part: &ListPart,
        incoming: &Incoming<'_>,
    ) -> Result<(), ListFailure> {
        if !matches!(part, ListPart::Post | ListPart::Bounces(_) | ListPart::Owner)
            && (incoming.reverse_path.is_none() || list::is_automatic(&incoming.body))
        {
            // Nobody meant it, and nobody is told.
            return Ok(());
        }
        match part {
            ListPart::Post => self.post(record, incoming).await,
            ListPart::Bounces(token) => self.bounced(record, token, incoming).await,
            ListPart::Owner => self.to_owners(record, incoming).await,
            ListPart::Join => self.asked(record, Asked::Join, incoming).await,
            ListPart::Leave => self.asked(record, Asked::Leave, incoming).await,
            ListPart::Confirm(token) => self.confirmed(record, token, incoming).await,
            ListPart::Moderate(token) => self.moderated(record, token, incoming).await,
        }
    }

    /// What happens with a post of this author, without keeping it.
    pub async fn judged(
        &self,
        record: &ListRecord,
        incoming: &Incoming<'_>,
    ) -> Result<Judgement, ListFailure> {
        let judged = self.judge(record, incoming).await;
        if matches!(judged, Err(ListFailure::Refused(..))) {
            self.metrics.list_post(PostOutcome::Refused);
        }
        judged
    }

    async fn judge(&self, record: &ListRecord, incoming: &Incoming<'_>) -> Result<Judgement, ListFailure> {
        if list::has_passed(&incoming.body, &record.address) {
            return Err(refused(
                554,
                LOOP,
                format!("the message has been through list {} already", record.address),
            ));
        }
        if incoming.reverse_path.is_none() || list::is_automatic(&incoming.body) {
            return Err(refused(550, "5.7.1", "answers by programs do not go to a mailing list"));
        }
        let standing = match incoming.author.address.as_ref().filter(|_| incoming.author.is_shown) {
            Some(author) => {
                let remembered = self.subscriber(record, author).await?;
                policy::standing(record, author, remembered.as_ref())
            }
            None => Standing::Stranger,
        };
        match policy::judge(record, standing, incoming.body.len()) {
            // RFC 3463 3.8: mailing list expansion prohibited.
            Judgement::Refuse => {
                Err(refused(550, "5.7.2", format!("only owners may write to list {}", record.address)))
            }
            other => Ok(other),
        }
    }

    async fn post(&self, record: &ListRecord, incoming: &Incoming<'_>) -> Result<(), ListFailure> {
        let state = match self.judged(record, incoming).await? {
            Judgement::Hold(why) => PostState::Held(why),
            _ => PostState::Expanding(None),
        };
        let (body, subject) = self.rewritten(record, incoming);
        let post = ListPost {
            id: incoming.id,
            list: record.id,
            state,
            author: incoming.author.address.as_ref().map(Address::to_string).unwrap_or_default(),
            subject,
            arrived: groups::now(),
            size: 0,
            eight_bit: incoming.eight_bit,
        };
        let held = matches!(post.state, PostState::Held(_)).then(|| post.clone());
        let command = CommandId(derive("post", incoming.id, &record.id.to_string()));
        match self.keep(record, post, command, body).await {
            Ok(()) | Err(CommandFailure::Refused(Refusal::AlreadyExists(_))) => {}
            Err(error) => return Err(failed(error)),
        }
        if let Some(post) = held {
            self.metrics.list_post(PostOutcome::Held);
            self.tell_moderators(record, &post).await;
        }
        Ok(())
    }

    /// Keeps a post in the list's home.
    pub async fn keep(
        &self,
        record: &ListRecord,
        post: ListPost,
        command: CommandId,
        body: Bytes,
    ) -> Result<(), CommandFailure> {
        let group = Groups::group(record.partition);
        self.groups.propose(group, command, Op::PostToList(post), body, WITHIN).await.map(|_| ())
    }

    /// The message as all members get it, and its subject.
    fn rewritten(&self, record: &ListRecord, incoming: &Incoming<'_>) -> (Bytes, String) {
        let header = MessageParser::default().parse_headers(incoming.body.as_ref());
        let subject = header.as_ref().and_then(|header| header.subject()).unwrap_or_default();
        let name = header.as_ref().and_then(|header| header.from()?.first()?.name()).unwrap_or_default();
        // Their domain may ask that mail be refused which it did not sign, and what a list changes breaks its signature. For
        // people of our own domains we sign again.
        let is_ours = |author: &&Address| {
            incoming.author.is_ours
                && incoming.author.is_shown
                && self.groups.directory().domain(author.domain()).is_some()
        };
        let unknown = record.address.clone();
        let author = authentication::author(&incoming.body).and_then(|author| author.parse::<Address>().ok());
        let author = author.as_ref();
        let hidden = match author.filter(is_ours) {
            Some(_) => None,
            None => Some((author.or(incoming.reverse_path).unwrap_or(&unknown), name)),
        };
        let rewriting = list::Rewriting {
            list: &record.address,
            prefix: &record.subject_prefix,
            reply_to_list: record.reply_to_list,
            takes_posts: record.posting != quorumail_store::Posting::Owners,
            takes_members: record.subscription != Subscription::Closed,
            subject,
            hidden_author: hidden,
        };
        let shown =
            subject.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SUBJECT_CHARS).collect();
        (list::rewrite(&incoming.body, &rewriting), shown)
    }

    /// What stands on top of one member's copy: how it leaves (RFC 2369 3.2), and the signatures over it. The same however
    /// often it is asked; empty for mail that no list sends.
    pub async fn personal(&self, entry: &QueueEntry, body: &Bytes) -> String {
        let (Some(bounces), [member]) = (&entry.reverse_path, entry.recipients.as_slice()) else {
            return String::new();
        };
        let directory = self.groups.directory();
        let Resolution::List(record, ListPart::Bounces(_)) = directory.resolve(bounces) else {
            return String::new();
        };
        if !token::is_copy(&record, entry.id, &member.address) {
            return String::new();
        }
        // Who follows a link must be able to trust whom it reaches.
        let host = Some(&self.hostname).filter(|host| self.public_tls.is_issued_for(host));
        let top = link::fields(&record, &member.address, host);
        let message = headers::prepend(&top, body);
        let at = entry.arrived.0.div_euclid(1000);
        let domain = record.address.domain();
        let mut signed = self.signer.sign_as(&directory, domain, &message, at).await;
        let author = authentication::author(body).and_then(|author| author.parse::<Address>().ok());
        if let Some(author) = author.filter(|author| author.domain() != domain) {
            // Only authors who logged in are left in From: see `rewritten`.
            signed.push_str(&self.signer.sign_as(&directory, author.domain(), &message, at).await);
        }
        format!("{signed}{top}")
    }

    /// What comes back from a member.
    async fn bounced(
        &self,
        record: &ListRecord,
        token: &str,
        incoming: &Incoming<'_>,
    ) -> Result<(), ListFailure> {
        if !list::is_permanent_failure(&incoming.body) {
            return Ok(());
        }
        let remembered = self.subscribers(record).await?;
        let others = remembered.iter().map(|subscriber| &subscriber.address);
        let Some(member) = token::bounced(record, token, others) else { return Ok(()) };
        if !policy::recipients(record, &remembered).iter().any(|(_, address)| *address == member) {
            return Ok(());
        }
        self.change(record, incoming.id, &member, SubscriberChange::Bounce).await?;
        let known = self.subscriber(record, &member).await?;
        self.metrics.list_bounce(known.is_some_and(|known| known.suspended.is_some()));
        Ok(())
    }

    async fn to_owners(&self, record: &ListRecord, incoming: &Incoming<'_>) -> Result<(), ListFailure> {
        if list::has_passed(&incoming.body, &list::part(&record.address, "owner", "")) {
            return Err(refused(554, LOOP, "the message has been to the owners already"));
        }
        let owners = record.members.iter().filter(|member| member.role == ListRole::Owner);
        let owners: Vec<&Address> = owners.map(|member| &member.address).collect();
        if owners.is_empty() {
            return Err(refused(550, "5.1.1", format!("list {} has no owners", record.address)));
        }
        let loops = format!("X-Loop: {}\r\n", list::part(&record.address, "owner", "").key());
        let body = headers::prepend(&loops, &incoming.body);
        let id = QueueId(derive("owners", incoming.id, ""));
        self.enqueue(record, id, incoming.reverse_path, &owners, body).await
    }

    /// Somebody wants to come or go.
    async fn asked(
        &self,
        record: &ListRecord,
        asked: Asked,
        incoming: &Incoming<'_>,
    ) -> Result<(), ListFailure> {
        let Some(who) = incoming.author.address.as_ref() else { return Ok(()) };
        if asked == Asked::Join && record.subscription == Subscription::Closed {
            return Err(refused(550, "5.7.1", format!("nobody joins list {} by mail", record.address)));
        }
        let is_known = incoming.author.is_ours && incoming.author.is_shown;
        let at_once = match asked {
            Asked::Join => record.subscription == Subscription::Open,
            Asked::Leave => true,
        };
        if is_known && at_once {
            return self.carry_out(record, asked, who, incoming.id).await;
        }
        if !self.may_ask(&format!("{} {asked:?} {}", record.id, who.key())) {
            return Ok(());
        }
        let token = token::confirmation(record, asked, who, groups::now());
        let confirm = list::part(&record.address, "confirm", &token);
        let (verb, subject) = match asked {
            Asked::Join => ("receive the messages of", "Confirm that you want to join"),
            Asked::Leave => ("receive no more messages of", "Confirm that you want to leave"),
        };
        let text = format!(
            "Somebody, perhaps you, asked that {who}\r\n{verb} the mailing list {}.\r\n\r\nIf that is what you want, answer this \
             message as it is, within three days.\r\nOtherwise do nothing.\r\n",
            record.address
        );
        let id = QueueId(derive("confirm", incoming.id, &who.key()));
        let subject = format!("{subject} {}", record.address);
        self.tell(record, id, &[who], &subject, &text, Some(&confirm)).await
    }

    async fn confirmed(
        &self,
        record: &ListRecord,
        token: &str,
        incoming: &Incoming<'_>,
    ) -> Result<(), ListFailure> {
        let author = incoming.author.address.as_ref();
        let who = [author, incoming.reverse_path].into_iter().flatten();
        let now = groups::now();
        let found = who.map(|who| (who, token::confirmed(record, token, who, now)));
        let Some((who, asked)) = found.into_iter().find_map(|(who, asked)| Some((who, asked?))) else {
            return Err(refused(550, "5.7.1", "this is not for you to confirm, or no more"));
        };
        if asked == Asked::Join && record.subscription == Subscription::Closed {
            return Err(refused(550, "5.7.1", format!("nobody joins list {} by mail", record.address)));
        }
        if asked == Asked::Join && record.subscription == Subscription::Approve {
            self.change(record, incoming.id, who, SubscriberChange::Ask).await?;
            return self.tell_of_asker(record, who, incoming.id).await;
        }
        self.carry_out(record, asked, who, incoming.id).await
    }

    /// Somebody comes or goes, and is told so.
    async fn carry_out(
        &self,
        record: &ListRecord,
        asked: Asked,
        who: &Address,
        id: QueueId,
    ) -> Result<(), ListFailure> {
        let listed = record.member(who).is_some();
        let (change, done) = match asked {
            Asked::Join => (SubscriberChange::Join { listed }, "is now a member of"),
            Asked::Leave => (SubscriberChange::Leave { listed }, "is no member any more of"),
        };
        self.change(record, id, who, change).await?;
        let text = format!("{who} {done} the mailing list {}.\r\n", record.address);
        let notice = QueueId(derive("welcome", id, &who.key()));
        let subject = format!("Your membership of {}", record.address);
        self.tell(record, notice, &[who], &subject, &text, None).await
    }

    /// A member leaves with the link of a copy. Whether the link is right; when they left before, nothing happens.
    pub async fn leave(&self, list: &Address, who: &Address, token: &str) -> Result<bool, ListFailure> {
        if self.groups.directory_is_current().await.is_err() {
            return Err(ListFailure::Unavailable("the directory cannot be read".to_owned()));
        }
        let record = self.groups.directory().list_named(list);
        let Some(record) = record.filter(|record| token::is_of_leaving(record, who, token)) else {
            return Ok(false);
        };
        let listed = record.member(who).is_some();
        let gone = match self.subscriber(&record, who).await? {
            Some(known) => known.left.is_some() || (!listed && known.joined.is_none()),
            None => !listed,
        };
        if !gone {
            self.change(&record, groups::random_queue_id(), who, SubscriberChange::Leave { listed }).await?;
        }
        Ok(true)
    }

    /// What a moderator says: the first word of the text decides.
    async fn moderated(
        &self,
        record: &ListRecord,
        token: &str,
        incoming: &Incoming<'_>,
    ) -> Result<(), ListFailure> {
        let Some(approve) = decision(&incoming.body) else {
            let text = "begin the text with the word approve or the word refuse";
            return Err(refused(550, "5.6.0", text));
        };
        let gone = || refused(550, "5.7.1", "nothing waits under this address any more");
        let held =
            self.posts(record).await?.into_iter().filter(|post| matches!(post.state, PostState::Held(_)));
        if let Some(post) = held.into_iter().find(|post| token::of_post(record, post.id) == token) {
            return match self.decide(record, post.id, approve).await {
                Err(CommandFailure::Refused(Refusal::NotFound(_))) => Err(gone()),
                Err(error) => Err(failed(error)),
                Ok(()) => Ok(()),
            };
        }
        let remembered = self.subscribers(record).await?;
        let asker = remembered.iter().find(|subscriber| {
            subscriber.asked.is_some() && token::of_asker(record, &subscriber.address) == token
        });
        let asker = asker.ok_or_else(gone)?;
        self.answer_asker(record, &asker.address, approve, incoming.id).await
    }

    /// What a moderator says to somebody who asked to become a member.
    pub async fn answer_asker(
        &self,
        record: &ListRecord,
        who: &Address,
        approve: bool,
        id: QueueId,
    ) -> Result<(), ListFailure> {
        if approve {
            return self.carry_out(record, Asked::Join, who, id).await;
        }
        self.change(record, id, who, SubscriberChange::Refuse).await
    }

    /// Lets a held post go to the members, or away.
    pub async fn decide(
        &self,
        record: &ListRecord,
        post: QueueId,
        approve: bool,
    ) -> Result<(), CommandFailure> {
        let op = Op::DecidePost { list: record.id, post, approve };
        let group = Groups::group(record.partition);
        self.groups.propose(group, groups::random_command(), op, Bytes::new(), WITHIN).await.map(|_| ())
    }

    /// Changes what is remembered of an address; once for one `id`.
    pub async fn change(
        &self,
        record: &ListRecord,
        id: QueueId,
        who: &Address,
        change: SubscriberChange,
    ) -> Result<(), ListFailure> {
        let command = CommandId(derive("change", id, &format!("{} {} {change:?}", record.id, who.key())));
        let op = Op::ChangeSubscriber { list: record.id, address: who.clone(), change };
        let group = Groups::group(record.partition);
        self.groups.propose(group, command, op, Bytes::new(), WITHIN).await.map(|_| ()).map_err(failed)
    }

    /// Moderators are told; a failure is logged, for the message is safe and can be seen with the command.
    async fn tell_moderators(&self, record: &ListRecord, post: &ListPost) {
        let moderators: Vec<&Address> = record.moderators().collect();
        if moderators.is_empty() {
            return;
        }
        let PostState::Held(why) = &post.state else { return };
        let answer = list::part(&record.address, "moderate", &token::of_post(record, post.id));
        let author = if post.author.is_empty() { "somebody" } else { &post.author };
        let text = format!(
            "A message to the mailing list {} waits for you: {why}.\r\n\r\n  From:    {author}\r\n  Subject: {}\r\n  Id:      {}\r\n\r\n\
             Answer this message. When the first word of your answer is approve, the\r\nmessage goes to the members; when it is refuse, it goes \
             away. Without an\r\nanswer it goes away after {} days.\r\n",
            record.address,
            post.subject,
            post.id,
            worker::HELD_DAYS,
        );
        let id = QueueId(derive("held", post.id, ""));
        let subject = format!("A message to {} waits", record.address);
        if let Err(error) = self.tell(record, id, &moderators, &subject, &text, Some(&answer)).await {
            tracing::warn!(post = %post.id, ?error, "moderators could not be told of a held message");
        }
    }

    async fn tell_of_asker(
        &self,
        record: &ListRecord,
        who: &Address,
        id: QueueId,
    ) -> Result<(), ListFailure> {
        let moderators: Vec<&Address> = record.moderators().collect();
        if moderators.is_empty() {
            return Ok(());
        }
        let answer = list::part(&record.address, "moderate", &token::of_asker(record, who));
        let text = format!(
            "{who} wants to become a member of the mailing list {}.\r\n\r\nAnswer this message. When the first word of your answer is \
             approve, it does; when\r\nit is refuse, it does not.\r\n",
            record.address
        );
        let id = QueueId(derive("asker", id, &who.key()));
        let subject = format!("Somebody wants to join {}", record.address);
        self.tell(record, id, &moderators, &subject, &text, Some(&answer)).await
    }

    /// A mail of the list itself. It has the null reverse-path and says that a program wrote it: nothing comes of it but what a
    /// person answers (RFC 3834 5).
    async fn tell(
        &self,
        record: &ListRecord,
        id: QueueId,
        to: &[&Address],
        subject: &str,
        text: &str,
        reply_to: Option<&Address>,
    ) -> Result<(), ListFailure> {
        let now = groups::now();
        let from = list::part(&record.address, "owner", "");
        let all = to.iter().map(|address| format!("<{address}>")).collect::<Vec<_>>().join(",\r\n ");
        let reply_to = reply_to.map(|address| format!("Reply-To: <{address}>\r\n")).unwrap_or_default();
        // RFC 6532: text and subject may have characters beyond ASCII only in what strangers wrote, which goes as 8BITMIME.
        let header = format!(
            "From: {} <{from}>\r\nTo: {all}\r\n{reply_to}Subject: {subject}\r\nDate: {}\r\nMessage-ID: <{id}@{}>\r\n\
             Auto-Submitted: auto-generated\r\nX-Loop: {}\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Transfer-Encoding: 8bit\r\n\r\n",
            list::phrase(record.address.local()),
            rfc5322_date(now.0),
            self.hostname,
            record.address.key(),
        );
        let body: Bytes = [header.as_bytes(), text.as_bytes()].concat().into();
        let directory = self.groups.directory();
        let signed =
            self.signer.sign_as(&directory, record.address.domain(), &body, now.0.div_euclid(1000)).await;
        self.enqueue(record, id, None, to, headers::prepend(&signed, &body)).await
    }

    async fn enqueue(
        &self,
        record: &ListRecord,
        id: QueueId,
        reverse_path: Option<&Address>,
        to: &[&Address],
        body: Bytes,
    ) -> Result<(), ListFailure> {
        let now = groups::now();
        let recipients = to.iter().map(|address| self.queued(address, now)).collect();
        let entry = QueueEntry {
            id,
            reverse_path: reverse_path.cloned(),
            recipients,
            arrived: now,
            size: u32::try_from(body.len()).unwrap_or(u32::MAX),
            eight_bit: !body.is_ascii(),
        };
        let command = CommandId(derive("enqueue", id, ""));
        let group = Groups::group(record.partition);
        match self.groups.propose(group, command, Op::Enqueue(entry), body, WITHIN).await {
            Ok(_) | Err(CommandFailure::Refused(Refusal::AlreadyExists(_))) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// A recipient that was never tried.
    pub(crate) fn queued(&self, address: &Address, now: Timestamp) -> QueueRecipient {
        let class = match self.groups.directory().resolve(address) {
            Resolution::NotLocal => QueueClass::Remote,
            _ => QueueClass::Local,
        };
        QueueRecipient {
            address: address.clone(),
            class,
            attempts: 0,
            next_attempt: now,
            last_error: String::new(),
        }
    }

    /// Whether enough time has passed since an address was last asked: somebody else may have named it.
    fn may_ask(&self, what: &str) -> bool {
        let now = std::time::Instant::now();
        let mut asked = self.asked.lock();
        if asked.get(what).is_some_and(|last| now.duration_since(*last) < ASK_AGAIN) {
            return false;
        }
        if asked.len() >= MAX_ASKED {
            asked.clear();
        }
        asked.insert(what.to_owned(), now);
        true
    }

    async fn ask(&self, record: &ListRecord, query: &Query) -> Result<Reply, ListFailure> {
        let reply = self.groups.query(Groups::group(record.partition), query, WITHIN).await;
        reply.map_err(|error| ListFailure::Unavailable(error.to_string()))
    }

    /// What is remembered of the list's addresses.
    pub async fn subscribers(&self, record: &ListRecord) -> Result<Vec<Subscriber>, ListFailure> {
        match self.ask(record, &Query::Subscribers(record.id)).await? {
            Reply::Subscribers(found) => Ok(found),
            _ => Err(wrong_kind()),
        }
    }

    /// What is remembered of one address.
    async fn subscriber(
        &self,
        record: &ListRecord,
        who: &Address,
    ) -> Result<Option<Subscriber>, ListFailure> {
        let query = Query::Subscriber { list: record.id, address: who.clone() };
        match self.ask(record, &query).await? {
            Reply::Subscribers(found) => Ok(found.into_iter().next()),
            _ => Err(wrong_kind()),
        }
    }

    /// Posts that wait or are being expanded.
    pub async fn posts(&self, record: &ListRecord) -> Result<Vec<ListPost>, ListFailure> {
        match self.ask(record, &Query::ListPosts(record.id)).await? {
            Reply::ListPosts(found) => Ok(found),
            _ => Err(wrong_kind()),
        }
    }

    /// A post with its message.
    pub async fn post_body(
        &self,
        record: &ListRecord,
        post: QueueId,
    ) -> Result<Option<(ListPost, Bytes)>, ListFailure> {
        match self.ask(record, &Query::ListPost { list: record.id, post }).await? {
            Reply::ListPost(found) => Ok(found),
            _ => Err(wrong_kind()),
        }
    }
}

fn wrong_kind() -> ListFailure {
    ListFailure::Unavailable("a partition gave an answer of the wrong kind".to_owned())
}

/// The first word of a message's text, where it decides something.
fn decision(message: &[u8]) -> Option<bool> {
    let parsed = MessageParser::default().parse(message)?;
    let text = parsed.body_text(0)?;
    let word = text.split(|c: char| !c.is_alphabetic()).find(|word| !word.is_empty())?.to_lowercase();
    match word.as_str() {
        "approve" => Some(true),
        "refuse" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod testkit {
    use quorumail_store::{
        ListId, ListMember, ListRecord, ListRole, ListSecret, PartitionId, Posting, Subscription,
    };

    /// Two members and an owner.
    pub(crate) fn list() -> ListRecord {
        let member = |address: &str, role| ListMember { address: address.parse().unwrap(), role };
        ListRecord {
            id: ListId(7),
            address: "announce@example.org".parse().unwrap(),
            partition: PartitionId(1),
            members: vec![
                member("alice@example.org", ListRole::Member),
                member("bob@example.org", ListRole::Member),
                member("carol@example.org", ListRole::Owner),
            ],
            posting: Posting::Members,
            subject_prefix: "[announce]".to_owned(),
            reply_to_list: false,
            subscription: Subscription::Confirm,
            max_bytes: 0,
            secret: ListSecret([7; 32]),
            revision: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moderator_decides_with_the_first_word() {
        let says = |text: &str| decision(format!("Subject: Re: x\r\n\r\n{text}").as_bytes());
        assert_eq!(says("approve\r\n> quoted"), Some(true));
        assert_eq!(says("\r\n  Refuse, please\r\n"), Some(false));
        assert_eq!(says("I am away and cannot approve"), None);
        assert_eq!((says(""), decision(b"")), (None, None));
        assert_eq!(says("approved"), None);
    }
}
