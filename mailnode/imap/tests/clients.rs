//! Programs that people use, against a server with a mailbox in memory. A program that is not installed is named and
//! left out.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod testkit;

use std::{path::Path, process::Stdio, time::Duration};

use testkit::{PASSWORD, Server, USER};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

const PATIENCE: Duration = Duration::from_secs(50);

/// Runs a program to its end. None: it is not installed.
async fn run(program: &str, arguments: &[&str], input: &str) -> Option<String> {
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("left out: {program} is not installed");
            return None;
        }
        Err(error) => panic!("{program} does not start: {error}"),
    };
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("ends in time").unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} failed: {text}");
    Some(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imaplib_works_normally() {
    let server = Server::start().await;
    let script = include_str!("imaplib_session.py");
    let port = server.address.port().to_string();
    let said = run("python3", &["-c", script, &port, USER, PASSWORD], "").await;
    assert!(said.is_none_or(|said| said.trim_end().ends_with("all is well")));
}

fn mail(n: usize) -> String {
    format!(
        "From: s{n}@x.org\r\nTo: {USER}\r\nSubject: number {n}\r\nMessage-ID: <{n}@x.org>\r\n\
         Date: Fri, 1 May 2020 10:00:00 +0000\r\n\r\n{}\r\n",
        format!("line of {n}\r\n").repeat(n)
    )
}

/// Without the field by which mbsync finds a message again that it has uploaded.
fn without_mark(message: &str) -> String {
    message.split_inclusive("\r\n").filter(|line| !line.starts_with("X-TUID")).collect()
}

fn messages(folder: &Path) -> Vec<std::path::PathBuf> {
    let in_folder =
        |sub: &str| std::fs::read_dir(folder.join(sub)).map(|d| d.map(|e| e.unwrap().path()).collect());
    let all: Vec<Vec<_>> = ["cur", "new"].iter().map(|sub| in_folder(sub).unwrap_or_default()).collect();
    all.concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mbsync_synchronises_both_ways() {
    const COUNT: usize = 200;
    let server = Server::start().await;
    for n in 0..COUNT {
        server.memory.deliver("INBOX", mail(n));
    }
    let home = tempfile::tempdir().unwrap();
    let local = home.path().join("mail");
    std::fs::create_dir(&local).unwrap();
    // The password has a quote in it, which mbsync's configuration cannot express.
    std::fs::write(home.path().join("password"), PASSWORD).unwrap();
    let config = format!(
        "IMAPStore far\nHost 127.0.0.1\nPort {port}\nUser {USER}\nPassCmd \"cat {home}/password\"\nSSLType None\n\
         AuthMechs LOGIN\n\n\
         MaildirStore near\nPath {local}/\nInbox {local}/INBOX\nSubFolders Verbatim\n\n\
         Channel all\nFar :far:\nNear :near:\nPatterns *\nCreate Both\nRemove None\nExpunge Both\nSyncState *\n",
        port = server.address.port(),
        home = home.path().display(),
        local = local.display(),
    );
    let config_file = home.path().join("mbsyncrc");
    std::fs::write(&config_file, config).unwrap();
    let arguments = ["-c", config_file.to_str().unwrap(), "-a"];
    if run("mbsync", &arguments, "").await.is_none() {
        return;
    }
    let inbox = local.join("INBOX");
    assert_eq!(messages(&inbox).len(), COUNT);
    let far = server.memory.bodies_of("INBOX");
    for path in messages(&inbox) {
        let lines = std::fs::read_to_string(&path).unwrap().replace('\n', "\r\n");
        assert!(
            far.iter().any(|body| body.as_ref() == without_mark(&lines).as_bytes()),
            "{}",
            path.display()
        );
    }

    // Changes on both sides: here a message is read, one is written and one is deleted; there one arrives, one is
    // flagged and one goes.
    let named = |n: usize| {
        let all = messages(&inbox);
        let is = |path: &std::path::PathBuf| {
            std::fs::read_to_string(path).unwrap().contains(&format!("<{n}@x.org>"))
        };
        all.into_iter().find(is).unwrap()
    };
    let flag = |path: &Path, flags: &str| {
        let name = path.file_name().unwrap().to_str().unwrap().split(":2,").next().unwrap().to_owned();
        std::fs::rename(path, inbox.join("cur").join(format!("{name}:2,{flags}"))).unwrap();
    };
    flag(&named(10), "S");
    flag(&named(11), "T");
    std::fs::write(inbox.join("new/local.1"), mail(500).replace("\r\n", "\n")).unwrap();
    server.memory.deliver("INBOX", mail(600));
    server.memory.set_flags("INBOX", 21, &["\\Flagged"]);
    server.memory.remove("INBOX", &[31]);
    run("mbsync", &arguments, "").await;
    assert!(server.memory.flags("INBOX", 11).contains("\\Seen"));
    let far = server.memory.bodies_of("INBOX");
    assert_eq!(far.len(), COUNT);
    assert!(!far.contains(&mail(11).into()));
    let written = |body: &bytes::Bytes| without_mark(std::str::from_utf8(body).unwrap()) == mail(500);
    assert_eq!(far.iter().filter(|body| written(body)).count(), 1);
    assert_eq!(messages(&inbox).len(), COUNT);
    assert!(named(20).to_str().unwrap().ends_with('F') && named(600).exists());

    // Nothing is left to do.
    let before = server.memory.body_calls.load(std::sync::atomic::Ordering::SeqCst);
    run("mbsync", &arguments, "").await;
    assert_eq!(server.memory.body_calls.load(std::sync::atomic::Ordering::SeqCst), before);
    assert_eq!((messages(&inbox).len(), server.memory.bodies_of("INBOX").len()), (COUNT, COUNT));
}
