//! A session: what a client may ask when, and the answers. RFC 9051 3 (states) and 6 (commands).
//!
//! The parts without I/O are elsewhere: the parser, the view of the selected folder, the rendering of messages and the
//! search. Here they are put in order around the calls of the backend.

mod auth;
mod fetching;
mod folders;
mod idle;
mod listing;
mod messages;
mod selecting;

use std::{future::Future, net::IpAddr, sync::Arc, time::Instant};

use tokio::time::timeout;

use crate::{
    Backend, Closed, Config, Event, Failure, Limit, Mailbox, Observer, SHARED_NAMESPACE, Status,
    codec::{Input, Refusal},
    command::{Command, Tagged},
    connection::Connection,
    parse,
    response::put,
    view::View,
};

/// What all sessions of a listener share.
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) observer: Arc<dyn Observer>,
}

/// One client's session.
pub(crate) struct Session {
    connection: Connection,
    remote: IpAddr,
    shared: Arc<Shared>,
    /// After log-in.
    mailbox: Option<Arc<dyn Mailbox>>,
    /// With a folder selected.
    view: Option<View>,
    /// Whether the client has shown that it knows MODSEQ. RFC 7162 3.1.
    condstore: bool,
    /// Commands in a row that could not be read.
    errors: u32,
    auth_failures: u32,
    login_until: tokio::time::Instant,
}

/// The tagged answer to a command.
#[derive(Debug)]
struct Reply {
    status: Status,
    /// A response code with its brackets, or empty.
    code: String,
    text: String,
}

impl Reply {
    fn new(status: Status, code: impl Into<String>, text: impl Into<String>) -> Self {
        Self { status, code: code.into(), text: text.into() }
    }

    fn ok(text: &str) -> Self {
        Self::new(Status::Ok, "", text)
    }

    fn no(code: &str, text: &str) -> Self {
        Self::new(Status::No, code, text)
    }

    fn bad(text: &str) -> Self {
        Self::new(Status::Bad, "", text)
    }
}

/// Why a command ends early.
enum Stop {
    /// It is refused; the session goes on.
    Refused(Reply),
    /// The session is over.
    Closed(Closed),
}

impl From<Closed> for Stop {
    fn from(closed: Closed) -> Self {
        Self::Closed(closed)
    }
}

impl From<Reply> for Stop {
    fn from(reply: Reply) -> Self {
        Self::Refused(reply)
    }
}

impl From<Failure> for Stop {
    /// RFC 5530 3.
    fn from(failure: Failure) -> Self {
        let code = match &failure {
            Failure::NonExistent => "[NONEXISTENT]",
            Failure::AlreadyExists => "[ALREADYEXISTS]",
            Failure::OverQuota => "[OVERQUOTA]",
            Failure::ReadOnly => "[NOPERM]",
            Failure::Cannot(_) => "[CANNOT]",
            Failure::Unavailable | Failure::Unreadable => "[UNAVAILABLE]",
        };
        Self::Refused(Reply::no(code, &one_line(&failure.to_string())))
    }
}

/// As [`Stop::from`], for a command whose target folder could be created first. RFC 9051 6.3.12, 6.4.7.
fn or_try_create(failure: Failure) -> Stop {
    match failure {
        Failure::NonExistent => Stop::Refused(Reply::no("[TRYCREATE]", "no such folder")),
        failure => failure.into(),
    }
}

/// Text of a response is printable ASCII. RFC 9051 9 (text).
fn one_line(text: &str) -> String {
    text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect()
}

type Done = Result<Reply, Stop>;

impl Session {
    pub(crate) fn new(connection: Connection, remote: IpAddr, shared: Arc<Shared>) -> Self {
        let login_until = tokio::time::Instant::now() + shared.config.limits.login;
        Self {
            connection,
            remote,
            shared,
            mailbox: None,
            view: None,
            condstore: false,
            errors: 0,
            auth_failures: 0,
            login_until,
        }
    }

    /// Serves the client to the end.
    pub(crate) async fn run(mut self) -> Closed {
        let greeting = format!("* OK {} {} ready", self.capability_code(), self.shared.config.hostname);
        self.connection.out.line(&greeting);
        let closed = loop {
            if let Err(closed) = self.step().await {
                break closed;
            }
        };
        match closed {
            Closed::Shutdown => self.connection.out.line("* BYE [UNAVAILABLE] the server is shutting down"),
            Closed::TimedOut => self.connection.out.line("* BYE too slow, or idle for too long"),
            Closed::Logout | Closed::Ended | Closed::Lost | Closed::Handshake => {}
        }
        self.connection.close().await;
        closed
    }

    /// Until when the client has to say something.
    fn until(&self) -> tokio::time::Instant {
        match self.mailbox {
            Some(_) => tokio::time::Instant::now() + self.shared.config.limits.idle,
            None => self.login_until,
        }
    }

    async fn step(&mut self) -> Result<(), Closed> {
        let until = self.until();
        match self.connection.next_input(until).await? {
            Input::Continue => self.connection.out.line("+ go on"),
            Input::Refused(refusal) => self.refused(&refusal)?,
            Input::Fatal(why) => {
                self.shared.observer.observe(Event::Limited(Limit::CommandLength));
                return Err(self.bye(why));
            }
            Input::Command(frame) => match parse::parse(&frame) {
                Ok(tagged) => self.tagged(tagged).await?,
                Err(rejected) => self.not_understood(rejected.tag, rejected.why)?,
            },
        }
        Ok(())
    }

    fn refused(&mut self, refusal: &Refusal) -> Result<(), Closed> {
        let tag = parse::tag_of(&refusal.start);
        let limit = if refusal.too_big { Limit::MessageSize } else { Limit::CommandLength };
        self.shared.observer.observe(Event::Limited(limit));
        match tag {
            // RFC 7889 4.
            Some(tag) if refusal.too_big => {
                put!(&mut self.connection.out, "{tag} NO [TOOBIG] the message is too big\r\n");
                Ok(())
            }
            tag => self.not_understood(tag, refusal.why),
        }
    }

    fn not_understood(&mut self, tag: Option<String>, why: &str) -> Result<(), Closed> {
        self.shared.observer.observe(Event::Protocol);
        put!(&mut self.connection.out, "{} BAD {why}\r\n", tag.as_deref().unwrap_or("*"));
        self.errors += 1;
        let limits = &self.shared.config.limits;
        let most = if self.mailbox.is_some() { limits.errors } else { limits.errors_before_login };
        if self.errors >= most {
            self.shared.observer.observe(Event::Limited(Limit::Errors));
            return Err(self.bye("too many errors"));
        }
        Ok(())
    }

    fn bye(&mut self, why: &str) -> Closed {
        put!(&mut self.connection.out, "* BYE {why}\r\n");
        Closed::Ended
    }

    async fn tagged(&mut self, Tagged { tag, command }: Tagged) -> Result<(), Closed> {
        let began = Instant::now();
        let name = command.name();
        let logout = matches!(command, Command::Logout);
        let start_tls = matches!(command, Command::StartTls);
        let reply = match self.execute(&tag, command).await {
            Ok(reply) | Err(Stop::Refused(reply)) => reply,
            Err(Stop::Closed(closed)) => return Err(closed),
        };
        let Reply { status, code, text } = &reply;
        let word = match status {
            Status::Ok => "OK",
            Status::No => "NO",
            Status::Bad => "BAD",
        };
        let space = if code.is_empty() { "" } else { " " };
        put!(&mut self.connection.out, "{tag} {word} {code}{space}{text}\r\n");
        self.errors = if *status == Status::Bad { self.errors + 1 } else { 0 };
        self.shared.observer.observe(Event::Command { name, status: *status, took: began.elapsed() });
        if logout {
            return Err(Closed::Logout);
        }
        if start_tls && *status == Status::Ok {
            self.start_tls().await?;
        }
        if self.errors >= self.shared.config.limits.errors {
            self.shared.observer.observe(Event::Limited(Limit::Errors));
            return Err(self.bye("too many errors"));
        }
        Ok(())
    }

    async fn execute(&mut self, tag: &str, command: Command) -> Done {
        match command {
            Command::Capability => {
                let line = format!("* CAPABILITY {}", self.capabilities());
                self.connection.out.line(&line);
                Ok(Reply::ok("done"))
            }
            Command::Logout => {
                self.connection.out.line("* BYE until next time");
                Ok(Reply::ok("logged out"))
            }
            Command::Id => {
                let version = one_line(&self.shared.config.version).replace(['"', '\\'], "");
                put!(&mut self.connection.out, "* ID (\"name\" \"Quorumail\" \"version\" \"{version}\")\r\n");
                Ok(Reply::ok("done"))
            }
            Command::StartTls => self.may_start_tls(),
            Command::Login { user, password } => self.login(&user, &password).await,
            Command::Authenticate { mechanism, initial } => self.authenticate(&mechanism, initial).await,
            Command::Noop if self.view.is_none() => Ok(Reply::ok("done")),
            command => match self.mailbox.clone() {
                Some(mailbox) => self.authenticated(mailbox, tag, command).await,
                None => Err(Reply::bad("log in first").into()),
            },
        }
    }

    async fn authenticated(&mut self, mailbox: Arc<dyn Mailbox>, tag: &str, command: Command) -> Done {
        match command {
            Command::Enable(names) => Ok(self.enable(&names)),
            Command::Namespace => {
                // RFC 2342 5: one personal namespace without a prefix, and one that is shared.
                put!(
                    &mut self.connection.out,
                    "* NAMESPACE ((\"\" \"/\")) NIL ((\"{SHARED_NAMESPACE}\" \"/\"))\r\n"
                );
                Ok(Reply::ok("done"))
            }
            Command::Select { folder, read_only, condstore } => {
                self.select(mailbox, &folder, read_only, condstore).await
            }
            Command::Create { folder, special_use } => self.create(mailbox, &folder, &special_use).await,
            Command::Delete(folder) => self.delete(mailbox, &folder).await,
            Command::Rename { from, to } => self.rename(mailbox, &from, &to).await,
            Command::Subscribe { folder, subscribed } => self.subscribe(mailbox, &folder, subscribed).await,
            Command::List(list) => self.list(mailbox, list).await,
            Command::Status { folder, items } => self.status(mailbox, &folder, &items).await,
            Command::Append { folder, flags, date, body } => {
                self.append(mailbox, &folder, flags, date, body).await
            }
            Command::Idle => self.idle(mailbox).await,
            command if self.view.is_none() => {
                Err(Reply::bad(&format!("{} needs a selected folder", command.name())).into())
            }
            Command::Noop | Command::Check => {
                self.sync(&mailbox, true).await?;
                Ok(Reply::ok("done"))
            }
            Command::Close => self.close(mailbox).await,
            Command::Unselect => {
                self.view = None;
                Ok(Reply::ok("unselected"))
            }
            Command::Expunge(set) => self.expunge(mailbox, set).await,
            Command::Search(search) => self.search(mailbox, tag, search).await,
            Command::Fetch(fetch) => self.fetch(mailbox, fetch).await,
            Command::Store(store) => self.store(mailbox, store).await,
            Command::Copy { uid, set, folder, remove } => self.copy(mailbox, uid, set, &folder, remove).await,
            // All others were served before.
            command => Err(Reply::bad(&format!("{} cannot be used now", command.name())).into()),
        }
    }

    /// Asks the backend, within its time.
    async fn ask<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        ask(&self.shared, call).await
    }

    /// Takes in what changed in the selected folder, and tells the client; `expunges`: also that messages are gone. A
    /// folder that is gone ends the session: there is no answer that says so, and the numbers the client has mean nothing
    /// any more.
    async fn sync(&mut self, mailbox: &Arc<dyn Mailbox>, expunges: bool) -> Result<(), Stop> {
        let Some(view) = &self.view else { return Ok(()) };
        let folder = view.folder.id;
        let mut next = Some(view.since());
        while let Some(since) = next {
            let changes = match self.ask(mailbox.changes(folder, since)).await {
                Ok(changes) => changes,
                Err(Failure::NonExistent) => {
                    return Err(Stop::Closed(self.bye("the selected folder was deleted")));
                }
                Err(failure) => return Err(failure.into()),
            };
            let view = self.view.as_mut().expect("the view stays while its folder is asked");
            next = view.merge(changes);
            if view.was_restored() {
                let why = "the selected folder was restored from a backup; select it again";
                return Err(Stop::Closed(self.bye(why)));
            }
            while view.flush(&mut self.connection.out, expunges, self.condstore) {
                self.connection.flush_when_full().await?;
            }
            self.connection.flush_when_full().await?;
        }
        Ok(())
    }

    /// The view of the selected folder; the dispatch sees to it that there is one.
    fn selected(&mut self) -> &mut View {
        self.view.as_mut().expect("commands on messages are only run with a folder selected")
    }

    /// Notes that the client knows MODSEQ, and tells the highest one. RFC 7162 3.1.
    fn use_condstore(&mut self) {
        if !std::mem::replace(&mut self.condstore, true)
            && let Some(view) = &self.view
        {
            let highest = view.folder.highest_mod_seq;
            put!(&mut self.connection.out, "* OK [HIGHESTMODSEQ {highest}] now with MODSEQ\r\n");
        }
    }

    /// RFC 5161 3.1.
    fn enable(&mut self, names: &[String]) -> Reply {
        let condstore = names.iter().any(|name| name == "CONDSTORE");
        self.connection.out.line(if condstore { "* ENABLED CONDSTORE" } else { "* ENABLED" });
        if condstore {
            self.use_condstore();
        }
        Reply::ok("done")
    }
}

/// Asks the backend, within its time.
async fn ask<T>(shared: &Shared, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match timeout(shared.config.limits.backend, call).await {
        Ok(answer) => answer,
        Err(_) => {
            shared.observer.observe(Event::Limited(Limit::Backend));
            Err(Failure::Unavailable)
        }
    }
}
