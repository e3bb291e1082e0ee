//! The mailnode processes of `quorumail dev`: started, announced, restarted, stopped.
//!
//! Each has a process group of its own, so that Ctrl-C in a terminal reaches `quorumail dev` only, which then stops
//! them in good order. Their standard input is a pipe that nobody writes to: when `quorumail dev` itself is killed with
//! -9 the pipe closes, and `--exit-with-stdin` lets them end too.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::layout::Place;

/// Pause before a node that ended is started again.
const RESTART_AFTER: Duration = Duration::from_secs(2);
/// A node that ends so often before the cluster was ready will not get better by itself.
const MAX_START_FAILURES: u32 = 3;
/// How long a node may take to hand over and finish its sessions; it bounds that itself to less.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// Deadline of one question after readiness.
const PROBE_WITHIN: Duration = Duration::from_secs(2);
/// A log beyond this many bytes is begun anew at the next start.
const MAX_LOG: u64 = 64 << 20;
/// How much of a node's log is shown when it ends unasked.
const TAIL: u64 = 2_000;
/// Longest answer to a probe that is read.
const MAX_ANSWER: u64 = 4_096;

/// One node and how it is run.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it listens.
    pub place: Place,
    /// The program.
    pub program: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
    /// Its standard error goes there; `None`: to our own.
    pub log: Option<PathBuf>,
    /// Whether it is started again when it ends.
    pub restart: bool,
}

impl Node {
    /// Runs the node until `stop` says so. An error means that it could not be started, or that it ended again and
    /// again before `ready` said that all nodes are.
    pub async fn run(self, mut stop: watch::Receiver<bool>, ready: watch::Receiver<bool>) -> io::Result<()> {
        let mut failures = 0;
        loop {
            let mut child = self.start()?;
            // Waiting for a child closes its standard input first, unless somebody else has it.
            let _stdin = child.stdin.take();
            let status = tokio::select! {
                status = child.wait() => status?,
                () = stopped(&mut stop) => return self.end(child).await,
            };
            self.tell_end(status);
            failures += u32::from(!*ready.borrow());
            if failures >= MAX_START_FAILURES || failures > 0 && !self.restart {
                let node = self.place.node;
                return Err(io::Error::other(format!("node {node} ended before the cluster was ready")));
            }
            if !self.restart {
                stopped(&mut stop).await;
                return Ok(());
            }
            tokio::select! {
                () = sleep(RESTART_AFTER) => {}
                () = stopped(&mut stop) => return Ok(()),
            }
        }
    }

    fn start(&self) -> io::Result<Child> {
        let log = match &self.log {
            Some(path) => Stdio::from(open_log(path)?),
            None => Stdio::inherit(),
        };
        let child = Command::new(&self.program)
            .arg("--config")
            .arg(&self.config)
            .arg("--exit-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.program.display())))?;
        // A child that has been waited for has no pid; this one was just started.
        let pid = child.id().unwrap_or_default();
        let line = serde_json::to_string(&self.place.announcement(pid)).map_err(io::Error::other)?;
        say(&line);
        Ok(child)
    }

    /// Asks the node to end, and makes it end when it does not.
    async fn end(&self, mut child: Child) -> io::Result<()> {
        let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else { return Ok(()) };
        // It may have ended on its own just now; then there is nobody to tell.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        match timeout(STOP_WITHIN, child.wait()).await {
            Ok(status) => status.map(drop),
            Err(_) => {
                eprintln!(
                    "node {} did not end within {} s and is killed",
                    self.place.node,
                    STOP_WITHIN.as_secs()
                );
                child.kill().await
            }
        }
    }

    fn tell_end(&self, status: ExitStatus) {
        let next = if self.restart { "; it is started again" } else { "" };
        eprintln!("node {} ended ({status}){next}", self.place.node);
        // A kill leaves no words of its own behind; an error does.
        if status.code().is_some_and(|code| code != 0)
            && let Some(words) = self.log.as_deref().and_then(tail)
        {
            eprintln!("{}", words.trim_end());
        }
    }

    /// Whether it can serve mail, and if not why.
    pub async fn probe(&self) -> Result<(), String> {
        let address = self.place.endpoints().http;
        match timeout(PROBE_WITHIN, readyz(&address)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it does not answer".to_owned()),
        }
    }

    /// Waits until it can serve mail. Says what it waits for when that takes long.
    pub async fn wait_until_ready(&self) {
        let mut tell_at = Instant::now() + Duration::from_secs(15);
        while let Err(reason) = self.probe().await {
            if Instant::now() >= tell_at {
                eprintln!("node {} is not ready: {reason}", self.place.node);
                tell_at = Instant::now() + Duration::from_secs(15);
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Writes a line to standard output. Nobody listening is no reason to end the nodes.
pub fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Waits until `stop` holds true, or its sender is gone.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left to say it.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// RFC 9112: the least of HTTP that is needed to read a status and a line of text.
async fn readyz(address: &str) -> io::Result<Result<(), String>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    if answer.starts_with("HTTP/1.1 200") {
        return Ok(Ok(()));
    }
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
    Ok(Err(if body.is_empty() { "it gives no reason".to_owned() } else { body.to_owned() }))
}

fn open_log(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    let file = options.open(path)?;
    if file.metadata()?.len() > MAX_LOG {
        file.set_len(0)?;
    }
    Ok(file)
}

fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt as _};

    use super::*;

    /// A node whose program is a shell script; `$DIR` in it is a directory of the test.
    fn node(dir: &Path, script: &str, restart: bool) -> Node {
        let program = dir.join("program");
        fs::write(&program, format!("#!/bin/sh\n{}\n", script.replace("$DIR", dir.to_str().unwrap())))
            .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let place = Place { node: 0, host: Ipv4Addr::LOCALHOST, offset: 0 };
        Node { place, program, config: dir.join("config"), log: Some(dir.join("log")), restart }
    }

    async fn wait_for(file: &Path, text: &str) {
        let found = async {
            while !fs::read_to_string(file).is_ok_and(|found| found.contains(text)) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(20), found).await.unwrap();
    }

    #[tokio::test]
    async fn a_node_keeps_its_standard_input_until_it_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let node = node(dir.path(), "echo up >> $DIR/events; cat; echo eof >> $DIR/events", false);
        let (stop, stopping) = watch::channel(false);
        let (_is_ready, ready) = watch::channel(true);
        let running = tokio::spawn(node.run(stopping, ready));
        wait_for(&dir.path().join("events"), "up").await;
        let closed = timeout(Duration::from_millis(300), wait_for(&dir.path().join("events"), "eof")).await;
        assert!(closed.is_err(), "the standard input was closed");
        stop.send(true).unwrap();
        running.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_node_that_ended_is_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let node = node(dir.path(), "echo up >> $DIR/events", true);
        let (stop, stopping) = watch::channel(false);
        let (_is_ready, ready) = watch::channel(true);
        let running = tokio::spawn(node.run(stopping, ready));
        wait_for(&dir.path().join("events"), "up\nup").await;
        stop.send(true).unwrap();
        running.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_node_that_cannot_start_ends_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let node = node(dir.path(), "echo up >> $DIR/events; echo no such disk >&2; exit 3", true);
        let (_stop, stopping) = watch::channel(false);
        let (_is_ready, ready) = watch::channel(false);
        let error = node.run(stopping, ready).await.unwrap_err();
        assert!(error.to_string().contains("node 0 ended before"), "{error}");
        let events = fs::read_to_string(dir.path().join("events")).unwrap();
        assert_eq!(events.lines().count(), MAX_START_FAILURES as usize);
        assert_eq!(tail(&dir.path().join("log")).unwrap().lines().last(), Some("no such disk"));
    }
}
