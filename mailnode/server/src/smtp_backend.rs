//! What SMTP sessions ask: who may send, who is a recipient, and to keep a message.
//!
//! A message for one mailbox goes straight into it: one proposal to the mailbox's partition. Anything else goes to a
//! queue, as one proposal as well, and is delivered from there. 250 is answered only after a majority has the message
//! on disk. When that cannot be learned in time the answer is 451 4.3.0 although the message may have been kept: the
//! client will send it again, and then, and only then, it can be there twice (RFC 5321 6.1 accepts this).

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use quorumail_authentication::{self as authentication, Checker, Outcome, results};
use quorumail_message::{Address, Domain, Received, headers, return_path};
use quorumail_smtp::{AuthFailure, Backend, Envelope, Identity, Reject, Service};
use quorumail_store::{
    Applied, Directory, ListPart, ListRecord, MailboxRecord, Op, QueueClass, QueueEntry, QueueId,
    QueueRecipient, Refusal, Resolution, Timestamp,
};

use crate::{
    auth::{self, Authenticator, Purpose},
    disk::Disk,
    groups::{self, CommandFailure, Groups, INBOX},
    lists::{Author, Incoming, ListFailure, Lists},
    metrics::Metrics,
    signer::Signer,
};

/// For a majority to have a message on disk. RFC 5321 4.5.3.2.6: a client waits at least ten minutes for the answer.
const ACCEPT_WITHIN: Duration = Duration::from_secs(25);

/// Answers SMTP sessions.
pub struct SmtpBackend {
    /// Checks passwords.
    pub auth: Arc<Authenticator>,
    /// All groups.
    pub groups: Arc<Groups>,
    /// This host's name in Received.
    pub hostname: Domain,
    /// Room for new mail.
    pub disk: Arc<Disk>,
    /// Checks whose mail from other systems is; none: it is not checked.
    pub checks: Option<Checks>,
    /// Signs mail of our own people.
    pub signer: Arc<Signer>,
    /// Takes mail for mailing lists.
    pub lists: Arc<Lists>,
    /// Counts what the checks find.
    pub metrics: Arc<Metrics>,
}

/// How mail from other systems is checked.
pub struct Checks {
    /// SPF, DKIM and DMARC.
    pub checker: Checker,
    /// Whether mail is refused where the owner of its author's domain asks for it.
    pub enforce_dmarc: bool,
}

#[async_trait]
impl Backend for SmtpBackend {
    async fn authenticate(
        &self,
        user: &str,
        password: &str,
        remote: IpAddr,
    ) -> Result<Identity, AuthFailure> {
        match self.auth.login(user, password, remote, Purpose::Send).await {
            Ok(record) => Ok(Identity { address: record.address.clone() }),
            Err(auth::Failure::Denied) => Err(AuthFailure::Denied),
            Err(auth::Failure::Throttled) => Err(AuthFailure::Throttled),
            Err(auth::Failure::Unavailable) => Err(AuthFailure::Unavailable),
        }
    }

    async fn sender(
        &self,
        sender: Option<&Address>,
        identity: Option<&Identity>,
        service: Service,
    ) -> Result<(), Reject> {
        let Some(identity) = identity else {
            return match service {
                Service::Mx => Ok(()),
                Service::Submission => Err(reject(530, "5.7.0", "authentication is required")),
            };
        };
        let directory = self.groups.directory();
        // The account may have gone or been suspended since the log-in.
        let Some(account) = directory.login(&identity.address).filter(|account| !account.suspended) else {
            return Err(reject(550, "5.7.1", "this account may not send"));
        };
        if !account.permissions.send {
            return Err(reject(550, "5.7.1", "this account may not send"));
        }
        match sender {
            Some(sender) if !owns(&directory, &account, sender) => {
                Err(reject(553, "5.7.1", "this sender address is not one of yours"))
            }
            _ => Ok(()),
        }
    }

    async fn recipient(&self, recipient: &Address, identity: Option<&Identity>) -> Result<(), Reject> {
        let mut found = self.groups.directory().resolve(recipient);
        let is_taken = match found {
            Resolution::Mailbox(_) | Resolution::List(..) => true,
            Resolution::NotLocal => identity.is_some(),
            Resolution::NoSuchUser => false,
        };
        if !is_taken {
            // A refusal is for good, and the replica here may lag behind: look again in the current directory.
            self.groups.directory_is_current().await.map_err(|error| {
                tracing::warn!(%error, "the directory cannot be asked");
                unavailable()
            })?;
            found = self.groups.directory().resolve(recipient);
        }
        match found {
            Resolution::Mailbox(mailbox) if mailbox.permissions.receive => Ok(()),
            // RFC 3463 3.3: mailbox disabled, not accepting messages.
            Resolution::Mailbox(_) => Err(reject(550, "5.2.1", "this mailbox takes no mail")),
            // Whether its author may post is told once the message is there: the envelope does not say who that is.
            Resolution::List(..) => Ok(()),
            Resolution::NoSuchUser => Err(reject(550, "5.1.1", "there is no such mailbox")),
            Resolution::NotLocal if identity.is_some() => Ok(()),
            Resolution::NotLocal => Err(reject(554, "5.7.1", "relay access denied")),
        }
    }

    async fn accept(&self, envelope: Envelope, body: Bytes) -> Result<String, Reject> {
        if self.disk.is_nearly_full() {
            // RFC 3463 3.4: mail system full.
            return Err(reject(452, "4.3.1", "no room for new mail, try again later"));
        }
        if headers::loops(&body) {
            // RFC 5321 6.3.
            return Err(reject(554, "5.4.6", "the message runs in a circle"));
        }
        // RFC 8601 5: what only we may write is taken out of all mail, of our own people as well.
        let body = results::without_forged(&body, self.hostname.as_str());
        let (results, is_false) = self.check(&envelope, &body).await?;
        let id = groups::random_queue_id();
        let directory = self.groups.directory();
        let mut envelope = envelope;
        let taken = self.to_lists(id, &mut envelope, &directory, (&results, is_false), &body).await?;
        if envelope.recipients.is_empty() && taken {
            return Ok(format!("taken as {id}"));
        }
        let mut mailboxes: Vec<Arc<MailboxRecord>> = Vec::new();
        let mut all_here = true;
        for recipient in &envelope.recipients {
            match directory.resolve(recipient) {
                Resolution::Mailbox(mailbox) if mailboxes.iter().any(|known| known.id == mailbox.id) => {}
                Resolution::Mailbox(mailbox) => mailboxes.push(mailbox),
                Resolution::List(..) | Resolution::NoSuchUser | Resolution::NotLocal => all_here = false,
            }
        }
        match mailboxes.as_slice() {
            [mailbox] if all_here => self.deliver(id, &envelope, mailbox, &results, &body).await,
            _ => self.enqueue(id, &envelope, &directory, &results, &body).await,
        }
    }
}

impl SmtpBackend {
    /// Checks mail from another system; the Authentication-Results field to put before it, empty without a check, and whether
    /// its author is shown to be another than it says.
    async fn check(&self, envelope: &Envelope, body: &Bytes) -> Result<(String, bool), Reject> {
        let Some(checks) = self.checks.as_ref().filter(|_| envelope.identity.is_none()) else {
            return Ok((String::new(), false));
        };
        let begun = Instant::now();
        let incoming = authentication::Incoming {
            remote: envelope.remote,
            helo: envelope.helo.clone(),
            mail_from: envelope.reverse_path.as_ref().map(Address::to_string),
            message: body.clone(),
        };
        let verdict = checks.checker.check(incoming).await;
        let refused = checks.enforce_dmarc && verdict.is_to_be_refused();
        self.metrics.checked(&verdict, refused, begun.elapsed());
        if refused {
            // RFC 9989 8.4 with RFC 7372 3.3: multiple authentication checks failed.
            let text = format!(
                "{} asks that mail which is not shown to be its own be refused (DMARC)",
                verdict.dmarc.domain
            );
            return Err(reject(550, "5.7.26", &text));
        }
        let is_false = verdict.dmarc.outcome == Outcome::Fail;
        Ok((verdict.to_header(self.hostname.as_str()), is_false))
    }

    /// Gives the message to the lists among its recipients, which are taken out of the envelope; whether there were any. When one
    /// of them refuses, nothing is kept for anybody: the sender learns of it at once, and no report is sent to who may have
    /// been named falsely.
    async fn to_lists(
        &self,
        id: QueueId,
        envelope: &mut Envelope,
        directory: &Directory,
        (results, is_false): (&str, bool),
        body: &Bytes,
    ) -> Result<bool, Reject> {
        let mut lists: Vec<(Arc<ListRecord>, ListPart)> = Vec::new();
        let mut others = Vec::new();
        for recipient in &envelope.recipients {
            match directory.resolve(recipient) {
                Resolution::List(record, part) => {
                    if !lists.iter().any(|(known, same)| known.id == record.id && *same == part) {
                        lists.push((record, part));
                    }
                }
                _ => others.push(recipient.clone()),
            }
        }
        if lists.is_empty() {
            return Ok(false);
        }
        let body = headers::prepend(&self.trace(id, envelope, body, groups::now()), body);
        let body = headers::prepend(results, &body);
        let incoming = Incoming {
            id,
            reverse_path: envelope.reverse_path.as_ref(),
            author: author(directory, envelope, is_false, &body),
            body,
            eight_bit: envelope.eight_bit,
        };
        for (record, _) in lists.iter().filter(|(_, part)| *part == ListPart::Post) {
            self.lists.judged(record, &incoming).await.map_err(not_taken)?;
        }
        for (record, part) in &lists {
            self.lists.take(record, part, &incoming).await.map_err(not_taken)?;
        }
        envelope.recipients = others;
        Ok(true)
    }

    /// DKIM signatures on mail that was submitted by one of our own people: what is queued is signed, so that every attempt
    /// sends the same. `message`: with all that it was given here.
    async fn signatures(&self, envelope: &Envelope, message: &Bytes, at: Timestamp) -> String {
        let directory = self.groups.directory();
        let Some(account) = envelope.identity.as_ref().and_then(|who| directory.login(&who.address)) else {
            return String::new();
        };
        let owned = |author: &Address| owns(&directory, &account, author);
        let signed = self.signer.sign(&directory, message, owned, at.0.div_euclid(1000)).await;
        self.metrics.signed(!signed.is_empty());
        signed
    }

    /// Puts the message into its only recipient's mailbox.
    async fn deliver(
        &self,
        id: QueueId,
        envelope: &Envelope,
        mailbox: &MailboxRecord,
        results: &str,
        body: &Bytes,
    ) -> Result<String, Reject> {
        let at = groups::now();
        let mut top = return_path(envelope.reverse_path.as_ref());
        top.push_str(results);
        let body = headers::prepend(&self.trace(id, envelope, body, at), body);
        top.push_str(&self.signatures(envelope, &body, at).await);
        let body = headers::prepend(&top, &body);
        let too_large = mailbox.quota.bytes != 0 && body.len() as u64 > mailbox.quota.bytes;
        let op = Op::Append {
            mailbox: mailbox.id,
            folder: INBOX.to_owned(),
            flags: Default::default(),
            internal_date: at,
            quota: mailbox.quota,
        };
        let group = Groups::group(mailbox.partition);
        match self.groups.propose(group, groups::random_command(), op, body, ACCEPT_WITHIN).await {
            Ok(Applied::Appended { uid, .. }) => Ok(format!("stored as {id} uid {uid}")),
            Ok(_) => Ok(format!("stored as {id}")),
            Err(failure) => Err(refused(failure, too_large)),
        }
    }

    /// What this node adds to the top of a message on its way in: the Received field, and what a submitted message
    /// lacks (RFC 6409 8).
    fn trace(&self, id: QueueId, envelope: &Envelope, body: &[u8], at: Timestamp) -> String {
        let id = id.to_string();
        let received = Received {
            helo: &envelope.helo,
            remote: envelope.remote,
            by: &self.hostname,
            esmtp: envelope.esmtp,
            tls: envelope.tls,
            authenticated: envelope.identity.is_some(),
            id: &id,
            recipient: match envelope.recipients.as_slice() {
                [only] => Some(only),
                _ => None,
            },
            at_millis: at.0,
        };
        let mut top = received.to_header();
        if let (Service::Submission, Some(identity)) = (envelope.service, &envelope.identity) {
            top.push_str(&headers::missing_from_submission(
                body,
                &identity.address,
                at.0,
                &id,
                &self.hostname,
            ));
        }
        top
    }

    /// Keeps the message for delivery.
    async fn enqueue(
        &self,
        id: QueueId,
        envelope: &Envelope,
        directory: &Directory,
        results: &str,
        body: &Bytes,
    ) -> Result<String, Reject> {
        let arrived = groups::now();
        let body = headers::prepend(&self.trace(id, envelope, body, arrived), body);
        let signatures = self.signatures(envelope, &body, arrived).await;
        let body = headers::prepend(&format!("{results}{signatures}"), &body);
        let recipients = envelope.recipients.iter().map(|address| QueueRecipient {
            address: address.clone(),
            class: match directory.resolve(address) {
                Resolution::NotLocal => QueueClass::Remote,
                Resolution::Mailbox(_) | Resolution::List(..) | Resolution::NoSuchUser => QueueClass::Local,
            },
            attempts: 0,
            next_attempt: arrived,
            last_error: String::new(),
        });
        let entry = QueueEntry {
            id,
            reverse_path: envelope.reverse_path.clone(),
            recipients: recipients.collect(),
            arrived,
            size: u32::try_from(body.len()).map_err(|_| reject(552, "5.3.4", "the message is too large"))?,
            eight_bit: envelope.eight_bit,
        };
        let group = self.groups.queue_partition();
        let op = Op::Enqueue(entry);
        match self.groups.propose(group, groups::random_command(), op, body, ACCEPT_WITHIN).await {
            Ok(_) => Ok(format!("queued as {id}")),
            Err(failure) => Err(refused(failure, false)),
        }
    }
}

/// Who wrote a message, as far as a list has to know.
fn author(directory: &Directory, envelope: &Envelope, is_false: bool, body: &[u8]) -> Author {
    let address = authentication::author(body).and_then(|author| author.parse::<Address>().ok());
    let account = envelope.identity.as_ref().map(|who| directory.login(&who.address));
    let is_shown = match (&account, &address) {
        (Some(Some(account)), Some(address)) => owns(directory, account, address),
        (None, Some(address)) => !is_false && directory.domain(address.domain()).is_none(),
        // Nobody says in the name of our own domains who they are without logging in.
        _ => false,
    };
    Author { address, is_shown, is_ours: account.is_some() }
}

fn not_taken(failure: ListFailure) -> Reject {
    match failure {
        ListFailure::Refused(code, enhanced, text) => reject(code, enhanced, &text),
        ListFailure::Full(text) => {
            tracing::warn!(text, "a message to a list could not be kept");
            reject(452, "4.3.1", "too many messages to this list wait, try again later")
        }
        ListFailure::Unavailable(reason) => {
            tracing::warn!(reason, "a message to a list could not be kept in time");
            unavailable()
        }
    }
}

/// Whether the address is the account's own or an alias of it, at its domain or an alias of the domain. What the
/// account gets as a catch-all is not its own.
fn owns(directory: &Directory, account: &MailboxRecord, sender: &Address) -> bool {
    let Some(domain) = directory.domain(sender.domain()) else { return false };
    let sender = sender.at(&domain.domain);
    let canonical = |own: &Address| match directory.domain(own.domain()) {
        Some(domain) => own.at(&domain.domain),
        None => own.clone(),
    };
    std::iter::once(&account.address).chain(&account.aliases).any(|own| canonical(own) == sender)
}

fn reject(code: u16, enhanced: &'static str, text: &str) -> Reject {
    Reject { code, enhanced, text: text.to_owned() }
}

/// RFC 3463 3.4: other or undefined mail system status, for now.
fn unavailable() -> Reject {
    reject(451, "4.3.0", "temporarily unavailable, try again later")
}

fn refused(failure: CommandFailure, too_large_for_ever: bool) -> Reject {
    match failure {
        CommandFailure::Refused(Refusal::OverQuota) if too_large_for_ever => {
            reject(552, "5.2.2", "the message is larger than the mailbox may hold")
        }
        CommandFailure::Refused(Refusal::OverQuota) => reject(452, "4.2.2", "the mailbox is full"),
        CommandFailure::Refused(refusal) => {
            tracing::warn!(%refusal, "a message could not be kept");
            unavailable()
        }
        CommandFailure::Unavailable(reason) => {
            tracing::warn!(reason, "a message could not be kept in time");
            unavailable()
        }
    }
}
