//! A mailbox of another server, read by IMAP (RFC 3501 as RFC 9051 keeps it). Nothing is changed there, not even a flag.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{ATTEMPTS, Candidate, Found, ImportError, MAX_MESSAGE, PAGE, PAUSE, Read, Source, source_of};
use crate::imap::{
    Imap, ImapError, Secret, quoted,
    syntax::{self, Fetched, Listed, Namespaces},
};

/// For a TCP connection and its TLS.
const CONNECT: Duration = Duration::from_secs(20);
/// For each answer, or piece of a long one.
const PATIENCE: Duration = Duration::from_secs(120);
/// Messages that are fetched with one command.
const BATCH: usize = 100;
/// Bytes of them, unless a single one is longer.
const BATCH_BYTES: u64 = 8 << 20;
/// Times that one message is tried by itself.
const TRIES: usize = 3;
/// Folders at most.
const MAX_FOLDERS: usize = 10_000;
/// Uses of folders (RFC 6154) that have a place here.
const SPECIAL: [(&str, &str); 5] = [
    ("\\archive", "Archive"),
    ("\\drafts", "Drafts"),
    ("\\junk", "Junk"),
    ("\\sent", "Sent"),
    ("\\trash", "Trash"),
];
/// Folders that show mail of others (RFC 6154).
const VIEWS: [&str; 3] = ["\\all", "\\flagged", "\\important"];

/// How the connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// TLS from the start.
    Tls,
    /// TLS after STARTTLS.
    StartTls,
    /// Not at all: password and mail can be read on the way.
    None,
}

/// What one logs in with.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A password.
    Password(String),
    /// An OAuth 2.0 access token.
    Token(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

/// A mailbox of another server.
#[derive(Debug, Clone)]
pub struct Account {
    /// Name of the server, which its certificate must be for.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is protected.
    pub security: Security,
    /// Whose certificates are trusted.
    pub roots: RootCertStore,
    /// Certificates that are trusted for themselves, whatever they say: those of old servers are often signed by nobody else,
    /// for another name, or for the use of an authority.
    pub pinned: Vec<CertificateDer<'static>>,
    /// Name to log in with.
    pub user: String,
    /// The secret.
    pub login: Login,
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

type Session = Imap<Box<dyn Stream>>;

/// The folder that is read.
struct Open {
    wire: String,
    uid_validity: u32,
    /// The next message by its number in the folder.
    next: u32,
    exists: u32,
    /// The highest UID that was told.
    last: u32,
}

/// Reads a mailbox of another server.
pub struct Server {
    account: Account,
    session: Option<Session>,
    folders: Vec<Listed>,
    open: Option<Open>,
    /// Whether the session has the folder selected.
    is_selected: bool,
}

impl Server {
    /// Nothing is connected yet.
    pub fn new(account: Account) -> Self {
        Self { account, session: None, folders: Vec::new(), open: None, is_selected: false }
    }

    fn failed(&self, error: &ImapError) -> ImportError {
        ImportError::Source(format!("IMAP at {}: {error}", self.account.host))
    }

    async fn connect(&self) -> Result<Session, ImapError> {
        let account = &self.account;
        let tcp = timeout(CONNECT, TcpStream::connect((account.host.as_str(), account.port)));
        let tcp = tcp.await.map_err(|_| ImapError::Silent)??;
        let mut imap: Session = match account.security {
            Security::None => Imap::new(Box::new(tcp) as Box<dyn Stream>, PATIENCE).await?,
            Security::Tls => Imap::new(self.protect(Box::new(tcp)).await?, PATIENCE).await?,
            Security::StartTls => {
                let plain = Imap::new(Box::new(tcp) as Box<dyn Stream>, PATIENCE).await?;
                Imap::resumed(self.protect(plain.start_tls().await?).await?, PATIENCE)
            }
        };
        imap.allow_literals(usize::try_from(MAX_MESSAGE).unwrap_or(usize::MAX));
        let capabilities = imap.capabilities().await?;
        let secret = match &account.login {
            Login::Password(password) => Secret::Password(password),
            Login::Token(token) => Secret::Token(token),
        };
        imap.log_in_by(&capabilities, &account.user, secret).await?;
        Ok(imap)
    }

    async fn protect(&self, stream: Box<dyn Stream>) -> Result<Box<dyn Stream>, ImapError> {
        let name = ServerName::try_from(self.account.host.clone())
            .map_err(|_| ImapError::Unable("its name is none that a certificate can be for"))?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self.verifier()?))
            .with_no_client_auth();
        let connect = TlsConnector::from(Arc::new(config)).connect(name, stream);
        Ok(Box::new(timeout(CONNECT, connect).await.map_err(|_| ImapError::Silent)??))
    }

    fn verifier(&self) -> Result<Verifier, ImapError> {
        let (roots, provider) = (&self.account.roots, Arc::new(rustls::crypto::ring::default_provider()));
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots.clone()), provider)
            .build()
            .map_err(|_| ImapError::Unable("there is no authority to verify its certificate by"))?;
        Ok(Verifier { authorities, pinned: self.account.pinned.clone() })
    }

    /// A session that has the open folder selected. A broken connection is made again; what is refused is not.
    async fn ready(&mut self) -> Result<&mut Session, ImportError> {
        let mut failures = 0;
        while self.session.is_none() {
            match self.connect().await {
                Ok(session) => {
                    self.session = Some(session);
                    self.is_selected = false;
                }
                Err(error) if is_broken(&error) && failures + 1 < ATTEMPTS && self.open.is_some() => {
                    tracing::warn!(host = self.account.host, %error, "an import connects again");
                    failures += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(self.failed(&error)),
            }
        }
        if !self.is_selected && self.open.is_some() {
            if let Err(error) = self.select().await {
                self.session = None;
                return Err(error);
            }
            self.is_selected = true;
        }
        Ok(self.session.as_mut().expect("it was made"))
    }

    async fn select(&mut self) -> Result<(), ImportError> {
        let (Some(session), Some(open)) = (&mut self.session, &mut self.open) else { return Ok(()) };
        let command = format!("EXAMINE {}", name_out(&open.wire)?);
        let told = session.command(&command, &[]).await;
        let responses = told.map_err(|error| self.failed(&error))?;
        let uid_validity = responses.iter().find_map(|response| syntax::code_of(response, "UIDVALIDITY"));
        let open = self.open.as_mut().expect("it is open");
        open.exists = responses
            .iter()
            .filter_map(|response| syntax::number_of(response, "EXISTS"))
            .next_back()
            .unwrap_or(0);
        // What was told before is told apart by its UID.
        open.next = 1;
        let uid_validity = uid_validity.unwrap_or(0);
        if open.last > 0 && open.uid_validity != uid_validity {
            return Err(ImportError::Source(
                "the folder was made anew meanwhile; run the import again".to_owned(),
            ));
        }
        open.uid_validity = uid_validity;
        Ok(())
    }

    /// One page by numbers in the folder; none: there are no more.
    async fn numbers(&mut self) -> Result<Option<Vec<Fetched>>, Failure> {
        let session = self.ready().await?;
        // Borrowed anew: `ready` may have changed it.
        let _ = session;
        let (Some(session), Some(open)) = (&mut self.session, &mut self.open) else { return Ok(None) };
        if open.next > open.exists {
            return Ok(None);
        }
        let to = open.exists.min(open.next.saturating_add(PAGE as u32 - 1));
        let command = format!("FETCH {}:{to} (UID FLAGS INTERNALDATE RFC822.SIZE)", open.next);
        let (mut found, mut gone, mut exists, last) = (Vec::new(), 0u32, open.exists, open.last);
        let mut take = |mut response| {
            if let Some(number) = syntax::number_of(&response, "EXISTS") {
                exists = number;
            } else if syntax::number_of(&response, "EXPUNGE").is_some() {
                gone += 1;
                exists = exists.saturating_sub(1);
            } else if let Some(fetched) = syntax::fetched(&mut response)
                && found.len() < 2 * PAGE
                && fetched.size.is_some()
                && fetched.uid.is_some_and(|uid| uid > last)
            {
                found.push(fetched);
            }
            Ok(())
        };
        session.each(&command, &mut take).await?;
        open.exists = exists;
        // What was expunged meanwhile has moved the others to the front.
        open.next = (to + 1).saturating_sub(gone).max(1);
        found.sort_by_key(|fetched| fetched.uid);
        found.dedup_by_key(|fetched| fetched.uid);
        open.last = found.last().and_then(|fetched| fetched.uid).unwrap_or(open.last).max(open.last);
        Ok(Some(found))
    }

    /// Fetches the octets of messages with one command.
    async fn octets(&mut self, uids: &[u32]) -> Result<HashMap<u32, Bytes>, Failure> {
        let session = self.ready().await?;
        let list: Vec<String> = uids.iter().map(u32::to_string).collect();
        let command = format!("UID FETCH {} (UID BODY.PEEK[])", list.join(","));
        let mut found = HashMap::new();
        let mut take = |mut response| {
            if let Some(Fetched { uid: Some(uid), body: Some(body), .. }) = syntax::fetched(&mut response)
                && uids.contains(&uid)
            {
                found.insert(uid, Bytes::from(body));
            }
            Ok(())
        };
        session.each(&command, &mut take).await?;
        Ok(found)
    }

    /// Reads messages; of each its octets, or why there are none.
    async fn batch(&mut self, batch: &[(usize, u32)]) -> Result<Vec<Read>, ImportError> {
        let uids: Vec<u32> = batch.iter().map(|(_, uid)| *uid).collect();
        let mut found = match self.octets(&uids).await {
            Ok(found) => found,
            Err(failure) => {
                // One of them may be what the server cannot give.
                let mut found = HashMap::new();
                let mut failure = Some(failure);
                for uid in &uids {
                    let mut tries = 0;
                    loop {
                        if let Some(failure) = failure.take() {
                            self.give_up(failure)?;
                        }
                        match self.octets(&[*uid]).await {
                            Ok(one) => {
                                found.extend(one);
                                break;
                            }
                            Err(again) if tries + 1 < TRIES => {
                                tries += 1;
                                failure = Some(again);
                            }
                            Err(last) => {
                                self.give_up(last)?;
                                break;
                            }
                        }
                    }
                }
                found
            }
        };
        let read = |(number, uid): &(usize, u32)| {
            let body = found.remove(uid).ok_or_else(|| "the server does not give it".to_owned());
            Read { number: *number, body }
        };
        Ok(batch.iter().map(read).collect())
    }

    /// Ends the session after a failure that another one may not have.
    fn give_up(&mut self, failure: Failure) -> Result<(), ImportError> {
        match failure {
            Failure::Imap(error) => {
                tracing::warn!(host = self.account.host, %error, "an import begins a new session");
                if is_broken(&error) {
                    self.session = None;
                }
                Ok(())
            }
            Failure::Import(error) => Err(error),
        }
    }

    async fn list(&mut self) -> Result<Vec<(Listed, Option<(u64, Option<u64>)>)>, ImapError> {
        let session = self.session.as_mut().ok_or(ImapError::Silent)?;
        let capabilities = session.capabilities().await?;
        let offers = |name: &str| capabilities.iter().any(|known| known == name);
        let spaces = match offers("NAMESPACE") {
            true => session
                .command("NAMESPACE", &[])
                .await?
                .iter()
                .find_map(syntax::namespaces)
                .unwrap_or_default(),
            false => Namespaces::default(),
        };
        let mut listed: Vec<Listed> = Vec::new();
        let own = quoted(&format!("{}*", spaces.own))
            .ok_or(ImapError::Malformed("its namespace has an odd name"))?;
        for pattern in ["INBOX".to_owned(), own] {
            let mut take = |response| {
                if let Some(folder) = syntax::listed(&response)
                    && listed.len() < MAX_FOLDERS
                    && listed.iter().all(|known| known.wire != folder.wire)
                {
                    listed.push(folder);
                }
                Ok(())
            };
            session.each(&format!("LIST \"\" {pattern}"), &mut take).await?;
        }
        let is_here = |folder: &Listed| {
            let cannot = |attribute: &String| matches!(attribute.as_str(), "\\noselect" | "\\nonexistent");
            let is_others = |prefix: &String| !prefix.is_empty() && folder.wire.starts_with(prefix.as_str());
            !folder.attributes.iter().any(cannot) && !spaces.others.iter().any(is_others)
        };
        listed.retain(is_here);
        let what = if offers("STATUS=SIZE") || offers("IMAP4REV2") { "MESSAGES SIZE" } else { "MESSAGES" };
        let mut found = Vec::new();
        for mut folder in listed {
            let Ok(name) = name_out(&folder.wire) else { continue };
            let told = match session.command(&format!("STATUS {name} ({what})"), &[]).await {
                Ok(responses) => responses.iter().find_map(syntax::status),
                // It may not be opened; then that is said later.
                Err(ImapError::Refused { .. }) => None,
                Err(error) => return Err(error),
            };
            folder.name = name_here(&folder, &spaces.own);
            found.push((folder, told));
        }
        Ok(found)
    }
}

/// Trusts what authorities have signed for the name of the server, and certificates that are known themselves.
#[derive(Debug)]
struct Verifier {
    authorities: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pinned.iter().any(|known| known == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        self.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// What another attempt may mend, and what ends the import.
enum Failure {
    Imap(ImapError),
    Import(ImportError),
}

impl From<ImapError> for Failure {
    fn from(error: ImapError) -> Self {
        Self::Imap(error)
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        Self::Import(error)
    }
}

/// Whether the connection is of no use any more.
fn is_broken(error: &ImapError) -> bool {
    match error {
        ImapError::Io(error) => error.kind() != std::io::ErrorKind::InvalidData,
        ImapError::Silent | ImapError::Malformed(_) => true,
        ImapError::Refused { .. } | ImapError::Unable(_) => false,
    }
}

/// A folder's name in a command.
fn name_out(wire: &str) -> Result<String, ImportError> {
    quoted(wire).ok_or_else(|| ImportError::Source(format!("folder {wire:?} has a name that cannot be sent")))
}

/// The name that a folder gets: without the prefix of the namespace, with `/` between levels.
fn name_here(folder: &Listed, own: &str) -> String {
    if folder.name.eq_ignore_ascii_case("INBOX") {
        return "INBOX".to_owned();
    }
    let name = folder.name.strip_prefix(own).filter(|rest| !rest.is_empty()).unwrap_or(&folder.name);
    let clean = |level: &str| -> String {
        let level: String = level.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).collect();
        if level.is_empty() { "_".to_owned() } else { level }
    };
    match folder.delimiter {
        Some(delimiter) => name.split(delimiter).map(clean).collect::<Vec<_>>().join("/"),
        None => clean(name),
    }
}

#[async_trait]
impl Source for Server {
    async fn folders(&mut self) -> Result<Vec<Found>, ImportError> {
        self.open = None;
        self.ready().await?;
        let listed = self.list().await.map_err(|error| self.failed(&error))?;
        let mut found = Vec::new();
        self.folders.clear();
        for (folder, told) in listed {
            let has = |wanted: &str| folder.attributes.iter().any(|attribute| attribute == wanted);
            found.push(Found {
                name: folder.name.clone(),
                special_use: SPECIAL.iter().find(|(attribute, _)| has(attribute)).map(|(_, name)| *name),
                is_view: VIEWS.iter().any(|attribute| has(attribute)),
                messages: told.map(|(messages, _)| messages),
                bytes: told.and_then(|(_, bytes)| bytes),
            });
            self.folders.push(folder);
        }
        Ok(found)
    }

    async fn open(&mut self, folder: usize) -> Result<(), ImportError> {
        let wire = self.folders[folder].wire.clone();
        self.open = Some(Open { wire, uid_validity: 0, next: 1, exists: 0, last: 0 });
        self.is_selected = false;
        self.ready().await.map(drop)
    }

    async fn page(&mut self) -> Result<Vec<Candidate>, ImportError> {
        let mut failures = 0;
        let fetched = loop {
            match self.numbers().await {
                Ok(None) => return Ok(Vec::new()),
                Ok(Some(found)) if found.is_empty() => {}
                Ok(Some(found)) => break found,
                Err(Failure::Imap(error)) if is_broken(&error) && failures + 1 < ATTEMPTS => {
                    failures += 1;
                    self.give_up(Failure::Imap(error))?;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Failure::Imap(error)) => return Err(self.failed(&error)),
                Err(Failure::Import(error)) => return Err(error),
            }
        };
        let Some(open) = &self.open else { return Ok(Vec::new()) };
        let (user, host) = (self.account.user.to_lowercase(), self.account.host.to_lowercase());
        let candidate = |message: Fetched| {
            let uid = message.uid?;
            let (uid_validity, number) = (open.uid_validity.to_be_bytes(), uid.to_be_bytes());
            let parts = [user.as_bytes(), host.as_bytes(), open.wire.as_bytes(), &uid_validity, &number];
            Some(Candidate {
                source: source_of("imap", &parts),
                label: format!("UID {uid}"),
                place: uid.into(),
                flags: message.flags.unwrap_or_default(),
                internal_date: message.internal_date.unwrap_or(0),
                size: message.size.unwrap_or(0),
            })
        };
        Ok(fetched.into_iter().filter_map(candidate).collect())
    }

    async fn read(&mut self, wanted: &[Candidate], out: mpsc::Sender<Read>) -> Result<(), ImportError> {
        let mut ready: Vec<Read> = Vec::new();
        let mut rest = wanted.iter().enumerate().peekable();
        loop {
            let (mut batch, mut bytes, mut too_large) = (Vec::new(), 0, None);
            while let Some((number, candidate)) = rest.peek() {
                if candidate.size > MAX_MESSAGE {
                    too_large = Some(*number);
                    rest.next();
                    break;
                }
                bytes += candidate.size;
                if !batch.is_empty() && (batch.len() == BATCH || bytes > BATCH_BYTES) {
                    break;
                }
                batch.push((*number, u32::try_from(candidate.place).unwrap_or(0)));
                rest.next();
            }
            let is_last = batch.is_empty() && too_large.is_none();
            // The next ones come while these are written.
            let sending = async {
                for read in ready.drain(..) {
                    if out.send(read).await.is_err() {
                        return false;
                    }
                }
                true
            };
            let fetching = async { if batch.is_empty() { Ok(Vec::new()) } else { self.batch(&batch).await } };
            let (is_heard, fetched) = tokio::join!(sending, fetching);
            ready = fetched?;
            let large = |number| Read { number, body: Err(format!("it is larger than {MAX_MESSAGE} bytes")) };
            ready.extend(too_large.map(large));
            if !is_heard || is_last {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_the_prefix_of_their_namespace_and_keep_their_levels() {
        let name = |name: &str, delimiter, own: &str| {
            let folder =
                Listed { attributes: Vec::new(), delimiter, wire: name.to_owned(), name: name.to_owned() };
            name_here(&folder, own)
        };
        assert_eq!(name("inbox", Some('.'), "INBOX."), "INBOX");
        assert_eq!(name("INBOX.Work.2026", Some('.'), "INBOX."), "Work/2026");
        assert_eq!(name("a/b.c", Some('.'), ""), "a_b/c");
        assert_eq!(name("a/b", Some('/'), ""), "a/b");
        assert_eq!(name("a..b", Some('.'), ""), "a/_/b");
        assert_eq!(name("a/b\u{7}", None, ""), "a_b_");
    }

    #[test]
    fn a_secret_is_never_shown() {
        let account = Account {
            host: "imap.example.org".into(),
            port: 993,
            security: Security::Tls,
            roots: RootCertStore::empty(),
            pinned: Vec::new(),
            user: "a".into(),
            login: Login::Password("s3cret".into()),
        };
        assert!(!format!("{account:?}").contains("s3cret"));
    }
}
