//! Drives one session over its socket: reads, writes, deadlines, TLS and calls of the backend.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    AuthFailure, Backend, Closed, Config, Event, Limit, Observer, Reject,
    machine::{Answer, Call, Machine, Step, Waiting},
};

/// Octets read at once; what a client pipelines beyond it waits in the socket.
const READ_SIZE: usize = 16 * 1024;
/// Replies to pipelined commands are sent when they reach this size.
const FLUSH_SIZE: usize = 8 * 1024;
/// After the last reply: how long and how much of what still comes is read and dropped. Closing a socket with
/// unread octets resets the connection, and the client would never see the reply.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_OCTETS: usize = 1024 * 1024;

/// What a client is told when the server stops.
const STOPPING: &str = "The server is stopping; try again";

/// What a session needs.
pub(crate) struct Context {
    pub(crate) config: Arc<Config>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) remote: IpAddr,
}

/// Why the driver stopped serving a stream.
enum Exit<S> {
    StartTls(S),
    Closed(Closed),
}

/// Serves a connection to its end.
pub(crate) async fn run(context: &Context, stream: TcpStream) -> Closed {
    // Replies are small and waited for.
    if stream.set_nodelay(true).is_err() {
        return Closed::Lost;
    }
    let ends = Instant::now() + context.config.limits.session;
    let mut machine = Machine::new(Arc::clone(&context.config), context.remote, context.config.implicit_tls);
    if !context.config.implicit_tls {
        match drive(context, &mut machine, stream, ends).await {
            Exit::Closed(closed) => closed,
            Exit::StartTls(stream) => {
                machine.secured();
                run_tls(context, &mut machine, stream, ends).await
            }
        }
    } else {
        run_tls(context, &mut machine, stream, ends).await
    }
}

async fn run_tls(context: &Context, machine: &mut Machine, stream: TcpStream, ends: Instant) -> Closed {
    let tls = context.config.tls.as_ref().expect("TLS is entered with a certificate only").current();
    let handshake = timeout(context.config.limits.handshake, TlsAcceptor::from(tls).accept(stream));
    let stream = tokio::select! {
        // Nobody is served yet, so there is nothing to finish.
        () = context.shutdown.cancelled() => return Closed::Shutdown,
        result = handshake => match result {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(remote = %context.remote, %error, "TLS handshake failed");
                return Closed::Handshake;
            }
            Err(_) => return Closed::Handshake,
        },
    };
    context.observer.observe(context.config.service, Event::Tls);
    match drive(context, machine, stream, ends).await {
        Exit::Closed(closed) => closed,
        Exit::StartTls(_) => unreachable!("STARTTLS is refused under TLS"),
    }
}

async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    context: &Context,
    machine: &mut Machine,
    mut stream: S,
    ends: Instant,
) -> Exit<S> {
    let mut buffer = vec![0; READ_SIZE];
    let mut clock = Clock::new(context, machine, ends);
    loop {
        let step = machine.step();
        for event in machine.events() {
            context.observer.observe(context.config.service, event);
        }
        let flush = !matches!(step, Step::Again | Step::Call(_)) || machine.output().len() > FLUSH_SIZE;
        if flush && !send(context, machine, &mut stream).await {
            return Exit::Closed(Closed::Lost);
        }
        match step {
            Step::Again => {}
            Step::Call(call) => {
                let answer = ask(context, machine, call).await;
                machine.answer(answer);
            }
            Step::Read => match clock.read(context, machine, &mut stream, &mut buffer).await {
                Read::Octets(got) => machine.receive(&buffer[..got]),
                Read::Stopped | Read::Again => {}
                Read::Lost => return Exit::Closed(Closed::Lost),
            },
            Step::StartTls => return Exit::StartTls(stream),
            Step::Close(why) => {
                linger(&mut stream, &mut buffer).await;
                return Exit::Closed(why);
            }
        }
    }
}

/// Sends the output; says whether the client is still there.
async fn send<S: AsyncWrite + Unpin>(context: &Context, machine: &mut Machine, stream: &mut S) -> bool {
    let output = std::mem::take(machine.output());
    if output.is_empty() {
        return true;
    }
    let write = async {
        stream.write_all(&output).await?;
        stream.flush().await
    };
    matches!(timeout(context.config.limits.write, write).await, Ok(Ok(())))
}

/// What a read brought.
enum Read {
    Octets(usize),
    /// Nothing; the machine was told to stop.
    Stopped,
    /// Nothing; it has to be asked again whether to stop.
    Again,
    /// The client is gone.
    Lost,
}

/// When a session has waited too long.
struct Clock {
    progress: u64,
    waiting: Waiting,
    /// For the command that is waited for, or the whole message.
    deadline: Instant,
    session: Instant,
    /// Set once the server stops.
    stop: Option<Instant>,
}

impl Clock {
    fn new(context: &Context, machine: &Machine, session: Instant) -> Self {
        let deadline = Instant::now() + context.config.limits.idle;
        Self { progress: machine.progress(), waiting: machine.waiting(), deadline, session, stop: None }
    }

    /// Reads, or tells the machine that it is time to stop.
    async fn read<S: AsyncRead + Unpin>(
        &mut self,
        context: &Context,
        machine: &mut Machine,
        stream: &mut S,
        buffer: &mut [u8],
    ) -> Read {
        let limits = &context.config.limits;
        let now = Instant::now();
        if self.progress != machine.progress() || self.waiting != machine.waiting() {
            self.progress = machine.progress();
            self.waiting = machine.waiting();
            // The time is for a whole command, not for its next octet: a client that sends one octet a minute
            // gains nothing.
            self.deadline = now + if self.waiting == Waiting::Data { limits.data } else { limits.idle };
        }
        if self.waiting == Waiting::Command && now >= self.session {
            context.observer.observe(context.config.service, Event::Limited(Limit::Session));
            machine.stop("4.7.0", "The session lasts too long", Closed::Ended);
            return Read::Stopped;
        }
        if context.shutdown.is_cancelled() {
            // A message that is being sent may come to its end.
            let grace = if self.waiting == Waiting::Data { limits.shutdown } else { Duration::ZERO };
            let stop = *self.stop.get_or_insert(now + grace);
            if self.waiting == Waiting::Command || now >= stop {
                machine.stop("4.3.2", STOPPING, Closed::Shutdown);
                return Read::Stopped;
            }
        }
        let deadline = self.deadline.min(now + limits.idle);
        let read = timeout_at(deadline, stream.read(buffer));
        let stopping = async {
            match self.stop {
                Some(stop) => tokio::time::sleep_until(stop).await,
                None => context.shutdown.cancelled().await,
            }
        };
        tokio::select! {
            result = read => match result {
                Ok(Ok(got)) if got > 0 => Read::Octets(got),
                Ok(_) => Read::Lost,
                Err(_) => {
                    machine.stop("4.4.2", "Too slow; closing", Closed::TimedOut);
                    Read::Stopped
                }
            },
            // Looked at above, with what the machine waits for.
            () = stopping => Read::Again,
        }
    }
}

/// Makes a call of the backend, in bounded time.
async fn ask(context: &Context, machine: &Machine, call: Call) -> Answer {
    let (backend, service) = (&context.backend, context.config.service);
    let bound = context.config.limits.backend;
    let late = || {
        context.observer.observe(service, Event::Limited(Limit::Backend));
        Reject { code: 451, enhanced: "4.3.0", text: "That took too long; try again".into() }
    };
    match call {
        Call::Authenticate { user, password } => {
            let answer = timeout(bound, backend.authenticate(&user, &password, context.remote)).await;
            Answer::Authenticate(answer.unwrap_or_else(|_| {
                late();
                Err(AuthFailure::Unavailable)
            }))
        }
        Call::Sender(sender) => {
            let answer = timeout(bound, backend.sender(sender.as_ref(), machine.identity(), service)).await;
            Answer::Sender(answer.unwrap_or_else(|_| Err(late())))
        }
        Call::Recipient(recipient) => {
            let answer = timeout(bound, backend.recipient(&recipient, machine.identity())).await;
            Answer::Recipient(answer.unwrap_or_else(|_| Err(late())))
        }
        Call::Accept(message) => {
            let answer = timeout(bound, backend.accept(message.envelope, message.body)).await;
            Answer::Accept(answer.unwrap_or_else(|_| Err(late())))
        }
    }
}

/// Closes so that the last reply arrives.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, buffer: &mut [u8]) {
    let drain = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut dropped = 0;
        while dropped < LINGER_OCTETS {
            match stream.read(buffer).await {
                Ok(0) | Err(_) => return,
                Ok(got) => dropped += got,
            }
        }
    };
    let _ = timeout(LINGER, drain).await;
}
