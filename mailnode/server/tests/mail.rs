//! Mail through real nodes: in by SMTP at one, out by IMAP at another. Names are promises.

#![allow(clippy::unwrap_used)]

mod kit;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kit::{
    Cluster, PASSWORD, PATIENCE,
    clients::{Imap, Smtp},
    mailbox, put_mailbox,
};
use quorumail_proto::admin::{
    ActOnQueueRequest, DeleteMailbox, DirectoryChange, GetUsageRequest, ListQueueRequest, QueueClass,
    QueueEntry, QueueRecipient, act_on_queue_request::Action, directory_change::Change,
};
use quorumail_server::config::Port;

const TEXT: &str = "From: <a@elsewhere.test>\r\nSubject: hello\r\n\r\nA line\r\n..and a dot\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn mail_is_received_and_read_on_one_node() {
    let cluster = Cluster::start(1, 2).await;
    cluster.accounts(0, &["alice"]).await;
    let mut smtp = Smtp::connect(cluster.address(0, Port::SmtpMx)).await.unwrap();
    let reply = smtp.send("a@elsewhere.test", &["alice@example.org"], TEXT).await.unwrap();
    assert!(reply.starts_with("250 2."), "{reply}");

    let mut imap = Imap::login(cluster.address(0, Port::Imap), "alice@example.org").await.unwrap();
    assert!(imap.ok("SELECT INBOX").await.contains("* 1 EXISTS"));
    let fetched = imap.ok("FETCH 1 BODY.PEEK[]").await;
    assert!(
        fetched.contains("Return-Path: <a@elsewhere.test>\r\nReceived: from client.test ([127.0.0.1])"),
        "{fetched}"
    );
    assert!(fetched.contains("A line\r\n.and a dot\r\n"), "{fetched}");
    let folders = imap.ok("LIST \"\" \"*\"").await;
    for folder in ["INBOX", "Sent", "Trash", "Junk", "Drafts", "Archive"] {
        assert!(folders.contains(folder), "{folders}");
    }
    let metrics = cluster.get(0, "/metrics").await.unwrap().1;
    assert!(metrics.contains("quorumail_smtp_messages_accepted_total{service=\"mx\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_sent_through_one_node_is_read_through_another() {
    let cluster = Cluster::start(3, 4).await;
    cluster.accounts(0, &["alice", "bob", "carol", "dave"]).await;
    for (number, name) in ["alice", "bob", "carol", "dave"].iter().enumerate() {
        let mut smtp = Smtp::connect(cluster.address(number % 3, Port::SmtpMx)).await.unwrap();
        let reply = smtp.send("a@elsewhere.test", &[&format!("{name}@example.org")], TEXT).await.unwrap();
        assert!(reply.starts_with("250"), "{reply}");
        for node in 0..3 {
            let mut imap =
                Imap::login(cluster.address(node, Port::Imap), &format!("{name}@example.org")).await.unwrap();
            assert!(imap.ok("SELECT INBOX").await.contains("* 1 EXISTS"), "{name} at {node}");
        }
    }
    let usage =
        cluster.admin(1).get_usage(GetUsageRequest { addresses: vec![] }).await.unwrap().into_inner().usage;
    assert!(
        usage.len() == 4 && usage.iter().all(|usage| usage.messages == 1 && usage.bytes > 80),
        "{usage:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_inbox_is_renamed_as_a_whole() {
    const MESSAGES: usize = 2500;
    let cluster = Cluster::start(1, 1).await;
    cluster.accounts(0, &["alice"]).await;
    let mut smtp = Smtp::connect(cluster.address(0, Port::SmtpMx)).await.unwrap();
    smtp.send("a@elsewhere.test", &["alice@example.org"], TEXT).await.unwrap();
    let mut imap = Imap::login(cluster.address(0, Port::Imap), "alice@example.org").await.unwrap();
    imap.ok("CREATE INBOX/below").await;
    imap.ok("SELECT INBOX").await;
    let mut there = 1;
    while there < MESSAGES {
        let more = there.min(MESSAGES - there);
        imap.ok(&format!("COPY 1:{more} INBOX")).await;
        there += more;
    }
    imap.ok(&format!("STORE {MESSAGES} +FLAGS (\\Flagged)")).await;

    // The session that has it selected is told of every message that went.
    let told = imap.ok("RENAME INBOX Old").await;
    assert_eq!(told.matches(" EXPUNGE\r\n").count(), MESSAGES, "{told}");
    let status = imap.ok("STATUS INBOX (MESSAGES UIDNEXT)").await;
    assert!(status.contains(&format!("MESSAGES 0 UIDNEXT {}", MESSAGES + 1)), "{status}");
    let status = imap.ok("STATUS Old (MESSAGES UIDNEXT)").await;
    assert!(status.contains(&format!("MESSAGES {MESSAGES} UIDNEXT {}", MESSAGES + 1)), "{status}");
    assert!(imap.ok("LIST \"\" \"*\"").await.contains("INBOX/below"));
    imap.ok("SELECT Old").await;
    let flagged = imap.ok("SEARCH FLAGGED").await;
    assert!(flagged.contains(&format!("* SEARCH {MESSAGES}\r\n")), "{flagged}");
    let (again, _) = imap.command("RENAME INBOX Old").await.unwrap();
    assert!(again.starts_with("NO [ALREADYEXISTS]"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_several_reaches_all_and_the_queue_is_empty_afterwards() {
    let cluster = Cluster::start(3, 4).await;
    cluster.accounts(0, &["alice", "bob", "carol"]).await;
    let mut smtp = Smtp::connect(cluster.address(2, Port::SmtpMx)).await.unwrap();
    let to = ["alice@example.org", "bob@example.org", "carol@example.org"];
    let reply = smtp.send("a@elsewhere.test", &to, TEXT).await.unwrap();
    assert!(reply.starts_with("250") && reply.contains("queued as"), "{reply}");
    for (node, address) in to.iter().enumerate() {
        wait_for_messages(&cluster, node, address, 1).await;
    }
    let begun = Instant::now();
    loop {
        let queue = cluster.admin(0).list_queue(ListQueueRequest::default()).await.unwrap().into_inner();
        if queue.entries.is_empty() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{queue:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_client_sees_new_mail_from_another_node() {
    let cluster = Cluster::start(3, 2).await;
    cluster.accounts(0, &["alice"]).await;
    for node in 0..3 {
        let mut imap = Imap::login(cluster.address(node, Port::Imap), "alice@example.org").await.unwrap();
        imap.ok("SELECT INBOX").await;
        imap.start("IDLE").await.unwrap();
        assert!(imap.line().await.unwrap().starts_with('+'));
        let mut smtp = Smtp::connect(cluster.address((node + 1) % 3, Port::SmtpMx)).await.unwrap();
        let sent = Instant::now();
        assert!(
            smtp.send("a@elsewhere.test", &["alice@example.org"], TEXT).await.unwrap().starts_with("250")
        );
        while !imap.line().await.unwrap().ends_with(" EXISTS") {}
        assert!(sent.elapsed() < Duration::from_secs(3), "node {node}: {:?}", sent.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_mail_survives_kill_of_the_leader_exactly_once() {
    let cluster = Cluster::start(3, 1).await;
    cluster.accounts(0, &["alice"]).await;
    let leader = cluster.leader(0, 1).await;
    let (one, two) = ((leader + 1) % 3, (leader + 2) % 3);
    let sender = async {
        let mut acknowledged = Vec::new();
        let mut smtp = Smtp::connect(cluster.address(one, Port::SmtpMx)).await.unwrap();
        let mut longest = Duration::ZERO;
        for number in 0..200 {
            if number == 60 {
                cluster.kill(leader);
            }
            let text = format!("Subject: number-{number}-end\r\n\r\nx\r\n");
            let begun = Instant::now();
            let reply = smtp.send("a@elsewhere.test", &["alice@example.org"], &text).await.unwrap();
            longest = longest.max(begun.elapsed());
            if reply.starts_with("250") {
                acknowledged.push(number);
            }
        }
        (acknowledged, longest)
    };
    let (acknowledged, longest) = sender.await;
    assert!(acknowledged.len() >= 190, "{}", acknowledged.len());
    eprintln!("acknowledged {} of 200; the longest wait was {longest:?}", acknowledged.len());

    let mut imap = Imap::login(cluster.address(two, Port::Imap), "alice@example.org").await.unwrap();
    imap.ok("SELECT INBOX").await;
    let subjects = imap.ok("FETCH 1:* BODY.PEEK[HEADER.FIELDS (SUBJECT)]").await;
    let mut found: BTreeMap<usize, usize> = BTreeMap::new();
    for part in subjects.split("number-").skip(1) {
        *found.entry(part.split('-').next().unwrap().parse().unwrap()).or_default() += 1;
    }
    for number in &acknowledged {
        assert_eq!(found.get(number), Some(&1), "message {number}");
    }

    // The lost node comes back and has everything as well.
    cluster.spawn(leader);
    cluster.wait_ready(leader).await;
    wait_for_messages(&cluster, leader, "alice@example.org", found.len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_while_a_node_is_stopped_in_order() {
    let cluster = Cluster::start(3, 4).await;
    cluster.accounts(0, &["alice", "bob", "carol", "dave"]).await;
    let mut smtp = Smtp::connect(cluster.address(0, Port::SmtpMx)).await.unwrap();
    let mut longest = Duration::ZERO;
    let send = async {
        for number in 0..120 {
            let to = format!("{}@example.org", ["alice", "bob", "carol", "dave"][number % 4]);
            let begun = Instant::now();
            let reply = smtp.send("a@elsewhere.test", &[&to], TEXT).await.unwrap();
            longest = longest.max(begun.elapsed());
            assert!(reply.starts_with("250"), "{reply}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (status, ()) = tokio::join!(cluster.terminate(2), send);
    assert_eq!(status.code(), Some(0), "{}", cluster.log(2));
    eprintln!("the longest wait was {longest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_refused_in_the_words_of_the_protocol() {
    let cluster = Cluster::start(1, 1).await;
    cluster.accounts(0, &["alice", "bob"]).await;
    let mut no_sender = mailbox("mute@example.org");
    no_sender.may_send = false;
    let mut deaf = mailbox("deaf@example.org");
    deaf.may_receive = false;
    let mut suspended = mailbox("gone@example.org");
    suspended.suspended = true;
    let mut full = mailbox("full@example.org");
    full.quota_bytes = 600;
    let changes =
        [no_sender, deaf, suspended, full].map(|m| DirectoryChange { change: Some(Change::PutMailbox(m)) });
    assert!(cluster.apply(0, changes.to_vec()).await.iter().all(|result| result.code == 1));

    let mut mx = Smtp::connect(cluster.address(0, Port::SmtpMx)).await.unwrap();
    let mut from_outside =
        async |to: &str, text: &str| mx.send("a@elsewhere.test", &[to], text).await.unwrap();
    let large = format!("Subject: x\r\n\r\n{}\r\n", "x".repeat(700));
    for (to, text, begins) in [
        ("nobody@example.org", TEXT, "550 5.1.1"),
        ("x@elsewhere.test", TEXT, "554 5.7.1"),
        ("deaf@example.org", TEXT, "550 5.2.1"),
        ("gone@example.org", TEXT, "250 2."),
        ("full@example.org", large.as_str(), "552 5.2.2"),
        ("full@example.org", TEXT, "250 2."),
        ("full@example.org", TEXT, "250 2."),
        ("full@example.org", TEXT, "452 4.2.2"),
    ] {
        let reply = from_outside(to, text).await;
        assert!(reply.starts_with(begins), "{to}: {reply}, not {begins}");
    }

    let submission = cluster.address(0, Port::Submission);
    let mut smtp = Smtp::connect(submission).await.unwrap();
    assert!(smtp.command("MAIL FROM:<alice@example.org>").await.unwrap().starts_with("530"));
    assert!(smtp.login("alice@example.org", PASSWORD).await.unwrap().starts_with("235"));
    let reply = smtp.send("alice@example.org", &["bob@example.org"], TEXT).await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    let reply = smtp.send("bob@example.org", &["bob@example.org"], TEXT).await.unwrap();
    assert!(reply.starts_with("553 5.7.1"), "{reply}");
    let mut mute = Smtp::connect(submission).await.unwrap();
    assert!(mute.login("mute@example.org", PASSWORD).await.unwrap().starts_with("235"));
    assert!(
        mute.send("mute@example.org", &["bob@example.org"], TEXT).await.unwrap().starts_with("550 5.7.1")
    );
    let mut gone = Smtp::connect(submission).await.unwrap();
    assert!(gone.login("gone@example.org", PASSWORD).await.unwrap().starts_with("535"));
    assert!(Imap::login(cluster.address(0, Port::Imap), "gone@example.org").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_counts_at_once_on_every_node_and_guesses_are_throttled() {
    let cluster = Cluster::start(3, 2).await;
    cluster.accounts(0, &["alice"]).await;
    for node in 0..3 {
        Imap::login(cluster.address(node, Port::Imap), "alice@example.org").await.unwrap();
    }
    let mut changed = mailbox("alice@example.org");
    changed.password_hash = bcrypt::hash("another", 4).unwrap();
    cluster.apply(0, vec![DirectoryChange { change: Some(Change::PutMailbox(changed)) }]).await;
    for node in 0..3 {
        let mut smtp = Smtp::connect(cluster.address(node, Port::Submission)).await.unwrap();
        let reply = smtp.login("alice@example.org", "another").await.unwrap();
        assert!(reply.starts_with("235"), "node {node}: {reply}");
        assert!(Imap::login(cluster.address(node, Port::Imap), "alice@example.org").await.is_err());
    }
    let mut throttled = false;
    for _ in 0..8 {
        let mut smtp = Smtp::connect(cluster.address(0, Port::Submission)).await.unwrap();
        for _ in 0..2 {
            throttled |= smtp.login("alice@example.org", "guess").await.unwrap().starts_with("454 4.7.0");
        }
    }
    assert!(throttled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_mailbox_takes_no_mail_and_is_purged_when_its_time_is_over() {
    let cluster = Cluster::start(1, 1).await;
    cluster.accounts(0, &["alice"]).await;
    let mut smtp = Smtp::connect(cluster.address(0, Port::SmtpMx)).await.unwrap();
    assert!(smtp.send("a@elsewhere.test", &["alice@example.org"], TEXT).await.unwrap().starts_with("250"));
    let delete =
        |delete: &DeleteMailbox| DirectoryChange { change: Some(Change::DeleteMailbox(delete.clone())) };
    let keep = DeleteMailbox { address: "alice@example.org".to_owned(), keep_seconds: 600 };
    assert_eq!(
        cluster.apply(0, vec![delete(&keep), delete(&keep)]).await.iter().filter(|r| r.code == 1).count(),
        2
    );
    let reply = smtp.send("a@elsewhere.test", &["alice@example.org"], TEXT).await.unwrap();
    assert!(reply.starts_with("550 5.1.1"), "{reply}");

    // Put again within its time it has its mail.
    cluster.apply(0, vec![put_mailbox("alice@example.org")]).await;
    wait_for_messages(&cluster, 0, "alice@example.org", 1).await;

    let at_once = DeleteMailbox { keep_seconds: 0, ..keep };
    cluster.apply(0, vec![delete(&at_once)]).await;
    let begun = Instant::now();
    while !cluster.log(0).contains("a deleted mailbox was purged") {
        assert!(begun.elapsed() < PATIENCE, "the mailbox is not purged");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.apply(0, vec![put_mailbox("alice@example.org")]).await;
    wait_for_messages(&cluster, 0, "alice@example.org", 0).await;
}

/// Waits until INBOX has this many messages.
async fn wait_for_messages(cluster: &Cluster, node: usize, address: &str, count: usize) {
    let mut imap = Imap::login(cluster.address(node, Port::Imap), address).await.unwrap();
    let begun = Instant::now();
    loop {
        let status = imap.ok("STATUS INBOX (MESSAGES)").await;
        if status.contains(&format!("(MESSAGES {count})")) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{address} at node {node}: {status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_for_other_systems_goes_to_the_relay_and_what_it_refuses_comes_back_as_a_report() {
    let elsewhere = Cluster::start(1, 1).await;
    let changes = vec![kit::put_domain("remote.test"), put_mailbox("bob@remote.test")];
    assert!(elsewhere.apply(0, changes).await.iter().all(|result| result.code == 1));
    let relay = elsewhere.address(0, Port::SmtpMx);
    let relay = format!("smtp:\n  relay: {{host: \"{}\", port: {}}}", relay.ip(), relay.port());
    let cluster = Cluster::start_with(3, 4, &relay).await;
    cluster.accounts(0, &["alice"]).await;

    let mut smtp = Smtp::connect(cluster.address(1, Port::Submission)).await.unwrap();
    assert!(smtp.login("alice@example.org", PASSWORD).await.unwrap().starts_with("235"));
    let reply =
        smtp.send("alice@example.org", &["bob@remote.test", "nobody@remote.test"], TEXT).await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");

    wait_for_messages(&elsewhere, 0, "bob@remote.test", 1).await;
    wait_for_messages(&cluster, 0, "alice@example.org", 1).await;
    let mut imap = Imap::login(cluster.address(2, Port::Imap), "alice@example.org").await.unwrap();
    imap.ok("SELECT INBOX").await;
    let report = imap.ok("FETCH 1 BODY.PEEK[]").await;
    for part in
        ["Return-Path: <>", "Final-Recipient: rfc822; nobody@remote.test", "Status: 5.1.1", "Subject: hello"]
    {
        assert!(report.contains(part), "{part} in {report}");
    }
    assert!(!report.contains("bob@remote.test"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_message_can_be_held_released_and_given_up_with_a_report() {
    // Nobody listens at port 1.
    let relay =
        "smtp:\n  relay: {host: \"127.0.0.1\", port: 1}\n  retry: {initial: 1h, max: 1h, giveUpAfter: 5d}";
    let cluster = Cluster::start_with(1, 2, relay).await;
    cluster.accounts(0, &["alice"]).await;
    let mut smtp = Smtp::connect(cluster.address(0, Port::Submission)).await.unwrap();
    assert!(smtp.login("alice@example.org", PASSWORD).await.unwrap().starts_with("235"));
    assert!(smtp.send("alice@example.org", &["bob@remote.test"], TEXT).await.unwrap().starts_with("250"));
    let entry = wait_for_entry(&cluster, |recipient| recipient.attempts == 1).await;
    assert!(!entry.recipients[0].last_error.is_empty(), "{entry:?}");

    assert_eq!(act(&cluster, Action::Hold, &entry.id).await, 1);
    wait_for_entry(&cluster, |recipient| recipient.class() == QueueClass::Held).await;
    assert_eq!(act(&cluster, Action::Retry, &entry.id).await, 0, "what is held is not tried");
    assert_eq!(act(&cluster, Action::Release, &entry.id).await, 1);
    wait_for_entry(&cluster, |recipient| recipient.class() == QueueClass::Remote && recipient.attempts == 2)
        .await;
    assert_eq!(act(&cluster, Action::Bounce, &entry.id).await, 1);
    wait_for_messages(&cluster, 0, "alice@example.org", 1).await;
    let left =
        cluster.admin(0).list_queue(ListQueueRequest { id: entry.id, ..Default::default() }).await.unwrap();
    assert!(left.into_inner().entries.is_empty());
}

async fn act(cluster: &Cluster, action: Action, id: &str) -> u32 {
    let request = ActOnQueueRequest { action: action.into(), ids: vec![id.to_owned()], class: 0 };
    cluster.admin(0).act_on_queue(request).await.unwrap().into_inner().changed
}

/// The only entry of the queue, once its only recipient is as wanted.
async fn wait_for_entry(cluster: &Cluster, wanted: impl Fn(&QueueRecipient) -> bool) -> QueueEntry {
    let begun = Instant::now();
    loop {
        let queue = cluster.admin(0).list_queue(ListQueueRequest::default()).await.unwrap().into_inner();
        if let [entry] = queue.entries.as_slice()
            && wanted(&entry.recipients[0])
        {
            return entry.clone();
        }
        assert!(begun.elapsed() < PATIENCE, "{queue:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
