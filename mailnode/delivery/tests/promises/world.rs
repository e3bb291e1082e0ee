//! A queue, a DNS and other systems in memory.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    future::Future,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use quorumail_delivery::{
    Config, ConnectFailure, Credentials, Event, Host, Limits, LocalFailure, LookupFailure, MxRecord,
    Observer, Queue, Receiver, RecipientResult, RemoteEnvelope, Resolver, Retry, Tls, Transport, Unavailable,
    Worker,
};
use quorumail_message::{Address, Domain};
use quorumail_store::{CommandId, PartitionId, QueueClass, QueueEntry, QueueId, QueueRecipient, Timestamp};
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub(crate) const P1: PartitionId = PartitionId(1);
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

pub(crate) fn address(text: &str) -> Address {
    text.parse().unwrap()
}

/// What a mailbox does with the next deliveries.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mailbox {
    Takes,
    IsFull,
    /// Takes it, but the answer is lost.
    TakesSilently,
}

/// The replicated part: shared by all nodes.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) entries: Mutex<HashMap<(PartitionId, QueueId), (QueueEntry, Bytes)>>,
    /// Deliveries into mailboxes, by command.
    pub(crate) mailboxes: Mutex<Vec<(CommandId, Address, Bytes)>>,
    pub(crate) local: Mutex<BTreeMap<String, VecDeque<Mailbox>>>,
    outcomes: Mutex<HashMap<CommandId, Result<(), LocalFailure>>>,
    pub(crate) commands: Mutex<Vec<CommandId>>,
    pub(crate) reports: Mutex<Vec<(QueueEntry, String)>>,
    pub(crate) unavailable: AtomicBool,
    pub(crate) changed: Arc<Notify>,
    next_id: AtomicUsize,
}

impl World {
    /// Queues a message; recipients of here.org are local.
    pub(crate) fn enqueue(&self, reverse_path: Option<&str>, recipients: &[&str], arrived: i64) -> QueueId {
        let id = QueueId(self.next_id.fetch_add(1, Ordering::SeqCst) as u128 + 1);
        let recipients = recipients.iter().map(|text| QueueRecipient {
            address: address(text),
            class: if text.ends_with("@here.org") { QueueClass::Local } else { QueueClass::Remote },
            attempts: 0,
            next_attempt: Timestamp(arrived),
            last_error: String::new(),
        });
        let body = Bytes::from_static(b"Subject: hello\r\n\r\nbody\r\n");
        let entry = QueueEntry {
            id,
            reverse_path: reverse_path.map(address),
            recipients: recipients.collect(),
            arrived: Timestamp(arrived),
            size: body.len() as u32,
            eight_bit: false,
        };
        self.entries.lock().insert((P1, id), (entry, body));
        self.changed.notify_waiters();
        id
    }

    pub(crate) fn entry(&self, id: QueueId) -> Option<QueueEntry> {
        self.entries.lock().get(&(P1, id)).map(|(entry, _)| entry.clone())
    }

    pub(crate) fn edit(&self, id: QueueId, change: impl FnOnce(&mut QueueEntry)) {
        change(&mut self.entries.lock().get_mut(&(P1, id)).unwrap().0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.lock().is_empty()
    }

    fn check(&self) -> Result<(), Unavailable> {
        if self.unavailable.load(Ordering::SeqCst) { Err(Unavailable("no leader".into())) } else { Ok(()) }
    }
}

/// One node's view of the world.
pub(crate) struct Node {
    pub(crate) world: Arc<World>,
    pub(crate) led: watch::Sender<Vec<PartitionId>>,
}

#[async_trait]
impl Queue for Node {
    async fn due(
        &self,
        partition: PartitionId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<QueueEntry>, Unavailable> {
        self.world.check()?;
        let worked_on = |r: &QueueRecipient| matches!(r.class, QueueClass::Local | QueueClass::Remote);
        let entries = self.world.entries.lock();
        let mut due: Vec<QueueEntry> = entries
            .iter()
            .filter(|((p, _), (entry, _))| {
                *p == partition && entry.recipients.iter().any(|r| worked_on(r) && r.next_attempt <= now)
            })
            .map(|(_, (entry, _))| entry.clone())
            .collect();
        due.sort_by_key(|entry| (entry.arrived, entry.id));
        due.truncate(limit as usize);
        Ok(due)
    }

    async fn entry(
        &self,
        partition: PartitionId,
        id: QueueId,
    ) -> Result<Option<(QueueEntry, Bytes)>, Unavailable> {
        self.world.check()?;
        Ok(self.world.entries.lock().get(&(partition, id)).cloned())
    }

    async fn update(
        &self,
        partition: PartitionId,
        _: CommandId,
        id: QueueId,
        done: Vec<Address>,
        changed: Vec<QueueRecipient>,
    ) -> Result<(), Unavailable> {
        self.world.check()?;
        let mut entries = self.world.entries.lock();
        let Some((entry, _)) = entries.get_mut(&(partition, id)) else { return Ok(()) };
        entry.recipients.retain(|recipient| !done.contains(&recipient.address));
        for new in changed {
            for recipient in entry.recipients.iter_mut().filter(|r| r.address == new.address) {
                *recipient = new.clone();
            }
        }
        if entry.recipients.is_empty() {
            entries.remove(&(partition, id));
        }
        Ok(())
    }

    async fn deliver_local(
        &self,
        address: &Address,
        _: Option<&Address>,
        body: Bytes,
        command: CommandId,
    ) -> Result<(), LocalFailure> {
        self.world.commands.lock().push(command);
        if let Some(outcome) = self.world.outcomes.lock().get(&command) {
            return outcome.clone();
        }
        let mut local = self.world.local.lock();
        let Some(mailbox) = local.get_mut(&address.key()) else { return Err(LocalFailure::NoSuchUser) };
        let does = mailbox.pop_front().unwrap_or(Mailbox::Takes);
        let outcome = match does {
            Mailbox::IsFull => Err(LocalFailure::OverQuota),
            Mailbox::Takes | Mailbox::TakesSilently => {
                self.world.mailboxes.lock().push((command, address.clone(), body));
                Ok(())
            }
        };
        self.world.outcomes.lock().insert(command, outcome.clone());
        match does {
            Mailbox::TakesSilently => Err(LocalFailure::Unavailable("the answer was lost".into())),
            Mailbox::Takes | Mailbox::IsFull => outcome,
        }
    }

    async fn report(
        &self,
        partition: PartitionId,
        entry: QueueEntry,
        body: Bytes,
        _: CommandId,
    ) -> Result<(), Unavailable> {
        self.world.check()?;
        let mut entries = self.world.entries.lock();
        entries.entry((partition, entry.id)).or_insert_with(|| {
            let text = String::from_utf8_lossy(&body).into_owned();
            self.world.reports.lock().push((entry.clone(), text));
            (entry, body)
        });
        Ok(())
    }

    fn led(&self) -> watch::Receiver<Vec<PartitionId>> {
        self.led.subscribe()
    }

    fn changed(&self) -> Arc<Notify> {
        self.world.changed.clone()
    }

    fn is_local(&self, address: &Address) -> bool {
        address.domain().as_str() == "here.org"
    }
}

/// What another system does with the next transactions.
#[derive(Debug, Clone)]
pub(crate) enum Remote {
    Takes,
    Says(u16, &'static str),
    /// The first recipient gets this answer, the others are taken.
    SaysOfFirst(u16, &'static str),
    Unreachable,
}

type MxAnswer = Result<Vec<(u16, String)>, LookupFailure>;

/// Other systems: DNS says that `mx.DOMAIN` is the host of a domain unless `mx` says otherwise.
pub(crate) struct Systems {
    pub(crate) mx: Mutex<HashMap<String, MxAnswer>>,
    pub(crate) hosts: Mutex<HashMap<String, VecDeque<Remote>>>,
    /// Every transaction: host and recipients.
    pub(crate) sent: Mutex<Vec<(String, Vec<Address>)>>,
    pub(crate) taken: Mutex<Vec<Address>>,
    /// Hosts at which a transaction ends only with a permit.
    pub(crate) gated: Mutex<HashSet<String>>,
    pub(crate) gate: Semaphore,
    pub(crate) at_once: AtomicUsize,
    pub(crate) most_at_once: AtomicUsize,
    pub(crate) started: AtomicUsize,
}

impl Systems {
    pub(crate) fn script(&self, host: &str, behaviour: impl IntoIterator<Item = Remote>) {
        self.hosts.lock().entry(host.to_owned()).or_default().extend(behaviour);
    }
}

#[async_trait]
impl Resolver for Systems {
    async fn mx(&self, domain: &Domain) -> Result<Vec<MxRecord>, LookupFailure> {
        let known = self.mx.lock().get(domain.as_str()).cloned();
        let records = known.unwrap_or_else(|| Ok(vec![(10, format!("mx.{domain}"))]))?;
        Ok(records.into_iter().map(|(preference, host)| MxRecord { preference, host }).collect())
    }

    async fn addresses(&self, _: &str) -> Result<Vec<IpAddr>, LookupFailure> {
        Ok(vec![IpAddr::from([127, 0, 0, 1])])
    }
}

#[async_trait]
impl Transport for Systems {
    async fn send(
        &self,
        host: &Host,
        envelope: &RemoteEnvelope,
        _: Bytes,
        _: Tls,
        _: Option<&Credentials>,
    ) -> Result<Vec<RecipientResult>, ConnectFailure> {
        self.sent.lock().push((host.name.clone(), envelope.recipients.clone()));
        self.started.fetch_add(1, Ordering::SeqCst);
        let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        let gated = self.gated.lock().contains(&host.name);
        if gated {
            self.gate.acquire().await.unwrap().forget();
        }
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        let does =
            self.hosts.lock().get_mut(&host.name).and_then(VecDeque::pop_front).unwrap_or(Remote::Takes);
        let answer = |code: u16, text: &str| match code {
            400..500 => RecipientResult::Deferred { code, text: text.to_owned() },
            _ => RecipientResult::Failed { code, text: text.to_owned() },
        };
        let results: Vec<_> = match does {
            Remote::Unreachable => {
                return Err(ConnectFailure { status: "4.4.1".into(), text: "connection refused".into() });
            }
            Remote::Takes => envelope.recipients.iter().map(|_| taken()).collect(),
            Remote::Says(code, text) => envelope.recipients.iter().map(|_| answer(code, text)).collect(),
            Remote::SaysOfFirst(code, text) => {
                let rest = envelope.recipients.iter().skip(1).map(|_| taken());
                std::iter::once(answer(code, text)).chain(rest).collect()
            }
        };
        let took = envelope.recipients.iter().zip(&results).filter(|(_, result)| **result == taken());
        self.taken.lock().extend(took.map(|(recipient, _)| recipient.clone()));
        Ok(results)
    }
}

fn taken() -> RecipientResult {
    RecipientResult::Delivered { reply: "250 2.0.0 ok".into() }
}

#[derive(Default)]
pub(crate) struct Events(pub Mutex<Vec<(QueueClass, Event)>>);

impl Observer for Events {
    fn observe(&self, class: QueueClass, _: Receiver, event: Event) {
        self.0.lock().push((class, event));
    }
}

/// A world with one node that leads partition 1.
pub(crate) struct Scene {
    pub(crate) world: Arc<World>,
    pub(crate) systems: Arc<Systems>,
    pub(crate) events: Arc<Events>,
    pub(crate) node: Running,
    pub(crate) config: Config,
}

/// A worker at work.
pub(crate) struct Running {
    pub(crate) led: watch::Sender<Vec<PartitionId>>,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<()>,
}

pub(crate) fn quick() -> Config {
    Config {
        hostname: "mail.here.org".parse().unwrap(),
        relay: None,
        retry: Retry {
            initial: Duration::from_millis(40),
            max: Duration::from_millis(100),
            give_up_after: Duration::from_secs(3600),
        },
        mx_port: 25,
        limits: Limits {
            poll: Duration::from_millis(20),
            rest: Duration::from_millis(1),
            stop_grace: Duration::from_secs(5),
            ..Limits::default()
        },
    }
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(quick())
    }

    pub(crate) fn with(config: Config) -> Self {
        let world = Arc::new(World::default());
        let systems = Arc::new(Systems {
            mx: Mutex::default(),
            hosts: Mutex::default(),
            sent: Mutex::default(),
            taken: Mutex::default(),
            gated: Mutex::default(),
            gate: Semaphore::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
        });
        let events = Arc::new(Events::default());
        let node = start(&world, &systems, &events, &config, vec![P1]);
        Self { world, systems, events, node, config }
    }

    /// One more node.
    pub(crate) fn another(&self, led: Vec<PartitionId>) -> Running {
        start(&self.world, &self.systems, &self.events, &self.config, led)
    }
}

fn start(
    world: &Arc<World>,
    systems: &Arc<Systems>,
    events: &Arc<Events>,
    config: &Config,
    led: Vec<PartitionId>,
) -> Running {
    let (led, _) = watch::channel(led);
    let node = Arc::new(Node { world: world.clone(), led: led.clone() });
    let worker = Worker::new(config.clone(), node, systems.clone(), systems.clone(), events.clone());
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let task = tokio::spawn(async move { worker.run(stopped).await });
    Running { led, stop, task }
}

/// Waits until it holds.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, wait).await;
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for: {what}"))
}

/// Long enough for several rounds of everything that is configured to be quick.
pub(crate) async fn several_rounds() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}
