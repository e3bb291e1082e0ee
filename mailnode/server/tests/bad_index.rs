//! An index that is not as it was left: a node goes on with what is right, or says what to do, and no reader gets
//! anything else. A real process, and files of the index that were changed while it was down. There is one node only, so that nobody
//! notices when its directory is put back to what it was before.

#![allow(clippy::unwrap_used)]

mod kit;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kit::{
    Cluster, PATIENCE,
    clients::{Imap, Smtp},
    copy,
};
use quorumail_server::config::Port;

/// What a node says that cannot go on with its index.
const HINT: &str = "remove this node's whole data directory";
const MESSAGES: usize = 5;

fn text(number: usize) -> String {
    format!("From: <a@elsewhere.test>\r\nSubject: hello\r\n\r\nmessage {number}\r\n")
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut left) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Flips a bit in every so many bytes of what a file really holds: the index gives its files room with zeros.
fn flip(file: &Path, every: usize) {
    let mut bytes = fs::read(file).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    (0..used).step_by(every).for_each(|at| bytes[at] ^= 0x10);
    fs::write(file, bytes).unwrap();
}

/// Starts the node; whether it serves, or has refused with what to do. Anything else fails.
async fn serves(cluster: &Cluster, what: &str) -> bool {
    let before = cluster.log(0).len();
    cluster.spawn(0);
    let begun = Instant::now();
    loop {
        if cluster.get(0, "/readyz").await.is_some_and(|(status, _)| status == 200) {
            return true;
        }
        if let Some(status) = cluster.ended(0) {
            let log = cluster.log(0)[before..].to_owned();
            assert_eq!(status.code(), Some(1), "{what}: {status}\n{log}");
            assert!(log.contains(HINT), "{what}: it does not say what to do:\n{log}");
            return false;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{what}: neither ready nor ended:\n{}",
            &cluster.log(0)[before..]
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn assert_right(cluster: &Cluster, what: &str) {
    let mut imap = Imap::login(cluster.address(0, Port::Imap), "alice@example.org").await.unwrap();
    assert!(imap.ok("SELECT INBOX").await.contains(&format!("* {MESSAGES} EXISTS")), "{what}");
    let fetched = imap.ok("FETCH 1:* (UID FLAGS BODY.PEEK[])").await;
    for number in 1..=MESSAGES {
        assert!(fetched.contains(&format!("message {number}\r\n")), "{what}: {fetched}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_is_mended_or_refused_with_what_to_do() {
    let cluster = Cluster::start(1, 1).await;
    cluster.accounts(0, &["alice"]).await;
    let mut smtp = Smtp::connect(cluster.address(0, Port::SmtpMx)).await.unwrap();
    for number in 1..=MESSAGES {
        let reply = smtp.send("a@elsewhere.test", &["alice@example.org"], &text(number)).await.unwrap();
        assert!(reply.starts_with("250"), "{reply}");
    }
    assert_right(&cluster, "as it is").await;
    cluster.terminate(0).await;
    let (data, aside) = (cluster.data_dir(0), cluster.dir.path().join("aside"));
    let index = data.join("index");
    let mut spoilt: Vec<(String, Box<dyn Fn()>)> = Vec::new();
    for file in files(&index) {
        let name = file.strip_prefix(&index).unwrap().display().to_string();
        let (one, two, three, four) = (file.clone(), file.clone(), file.clone(), file);
        spoilt.push((format!("{name}: one bit"), Box::new(move || flip(&one, usize::MAX))));
        spoilt.push((format!("{name}: many bits"), Box::new(move || flip(&two, 97))));
        spoilt.push((format!("{name}: cut off"), {
            Box::new(move || {
                let bytes = fs::read(&three).unwrap();
                fs::write(&three, &bytes[..bytes.len() / 2]).unwrap();
            })
        }));
        spoilt.push((format!("{name}: missing"), Box::new(move || fs::remove_file(&four).unwrap())));
    }
    let foreign = index.join("holiday.jpg");
    spoilt.push((
        "a file of something else".to_owned(),
        Box::new(move || fs::write(&foreign, "meow").unwrap()),
    ));
    let whole = index.clone();
    spoilt.push(("all of it missing".to_owned(), Box::new(move || fs::remove_dir_all(&whole).unwrap())));

    let (mut mended, mut refused) = (0, 0);
    for (what, spoil) in spoilt {
        copy(&data, &aside);
        spoil();
        if serves(&cluster, &what).await {
            mended += 1;
            assert_right(&cluster, &what).await;
            cluster.terminate(0).await;
        } else {
            refused += 1;
        }
        assert!(!cluster.log(0).contains("panicked at"), "{what}:\n{}", cluster.log(0));
        fs::remove_dir_all(&data).unwrap();
        fs::rename(&aside, &data).unwrap();
    }
    assert!(mended > 0 && refused > 0, "{mended} times it went on, {refused} times it refused");
}
