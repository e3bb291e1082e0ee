//! Promises of IMAP sessions, over real sockets.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod testkit;

use std::{sync::atomic::Ordering, time::Duration};

use quorumail_imap::{Closed, Event, Limit, Limits};
use testkit::{Client, Server, USER, config};
use tokio::{net::TcpStream, time::timeout};

const MAIL: &str = "From: a@x.org\r\nTo: b@y.org\r\nSubject: one\r\nMessage-ID: <1@x>\r\n\r\nbody\r\n";

#[tokio::test]
async fn login_needs_the_right_password_and_says_no_more_than_that() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    assert!(client.refused("SELECT INBOX").await.starts_with("BAD"));
    assert!(client.refused("LOGIN alice@example.org wrong").await.starts_with("NO [AUTHENTICATIONFAILED]"));
    assert!(client.refused("LOGIN throttled x").await.starts_with("NO [UNAVAILABLE]"));
    client.send("x LOGIN nobody x\r\n").await;
    assert_eq!(client.rest().await, ["* BYE too many failed log-ins"]);
}

#[tokio::test]
async fn authenticate_plain_works_with_and_without_initial_response() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let server = Server::start().await;
    let response = STANDARD.encode(format!("\0{USER}\0{}", testkit::PASSWORD));
    let mut client = server.connect().await;
    client.ok(&format!("AUTHENTICATE PLAIN {response}")).await;
    let mut client = server.connect().await;
    client.send("a AUTHENTICATE PLAIN\r\n").await;
    assert_eq!(client.line().await, "+ ");
    client.send("*\r\n").await;
    assert!(client.line().await.starts_with("a BAD"));
    client.send("b AUTHENTICATE PLAIN\r\n").await;
    client.line().await;
    client.send(format!("{response}\r\n")).await;
    assert!(client.line().await.starts_with("b OK [CAPABILITY IMAP4rev1 "));
}

#[tokio::test]
async fn without_tls_there_is_no_login_unless_allowed() {
    let server =
        Server::with(quorumail_imap::Config { allow_plaintext_auth_from_loopback: false, ..config() }).await;
    let mut client = server.connect().await;
    let lines = client.ok("CAPABILITY").await;
    assert!(
        lines[0].contains("LOGINDISABLED") && !lines[0].contains("AUTH=") && !lines[0].contains("STARTTLS")
    );
    assert!(client.refused("LOGIN a b").await.starts_with("NO [PRIVACYREQUIRED]"));
    assert!(client.refused("AUTHENTICATE PLAIN AGEAYg==").await.starts_with("NO [PRIVACYREQUIRED]"));
}

#[tokio::test]
async fn what_is_appended_is_fetched_to_the_byte() {
    let server = Server::start().await;
    let mut client = server.login().await;
    let body = format!("Subject: x\r\n\r\n{}\r\n\u{fc} bare\nend", "line\r\n".repeat(30_000));
    assert!(client.append("INBOX", "\\Seen Work", &body).await.starts_with("OK [APPENDUID 1001 1]"));
    assert!(client.append("Nowhere", "", MAIL).await.starts_with("NO [TRYCREATE]"));
    let lines = client.ok("SELECT INBOX").await.join("\n");
    assert!(
        lines.contains("* 1 EXISTS") && lines.contains("[UIDNEXT 2]") && lines.contains("Work"),
        "{lines}"
    );
    let lines = client.ok("FETCH 1 (UID RFC822.SIZE FLAGS BODY.PEEK[])").await;
    let want =
        format!("* 1 FETCH (UID 1 RFC822.SIZE {0} FLAGS (Work \\Seen) BODY[] {{{0}}}\r\n{body})", body.len());
    assert!(lines == [want], "{} octets", lines[0].len());
}

#[tokio::test]
async fn fetching_a_body_sets_seen_and_peeking_does_not() {
    let server = Server::start().await;
    server.memory.deliver("INBOX", MAIL);
    let mut client = server.inbox().await;
    client.ok("FETCH 1 BODY.PEEK[TEXT]").await;
    assert!(server.memory.flags("INBOX", 1).is_empty());
    let lines = client.ok("FETCH 1 BODY[TEXT]").await;
    assert_eq!(lines, ["* 1 FETCH (BODY[TEXT] {6}\r\nbody\r\n FLAGS (\\Seen))"]);
    assert_eq!(server.memory.flags("INBOX", 1).len(), 1);
    server.memory.set_flags("INBOX", 1, &[]);
    client.ok("EXAMINE INBOX").await;
    client.ok("FETCH 1 RFC822").await;
    assert!(server.memory.flags("INBOX", 1).is_empty());
    assert!(client.refused("STORE 1 FLAGS (\\Seen)").await.starts_with("NO [READ-ONLY]"));
}

#[tokio::test]
async fn what_can_only_be_read_is_opened_read_only_and_stays_as_it_is() {
    let server = Server::start().await;
    let mut client = server.login().await;
    assert_eq!(client.ok("NAMESPACE").await, ["* NAMESPACE ((\"\" \"/\")) NIL ((\"#lists/\" \"/\"))"]);
    client.ok("CREATE #lists/a@x.org").await;
    server.memory.deliver("#lists/a@x.org", MAIL);
    let (lines, tagged) = client.command("SELECT #lists/a@x.org").await;
    assert!(
        tagged.starts_with("OK [READ-ONLY]") && lines.join("\n").contains("[PERMANENTFLAGS ()]"),
        "{lines:?}"
    );
    client.ok("FETCH 1 BODY[TEXT]").await;
    for command in ["STORE 1 FLAGS (\\Deleted)", "EXPUNGE", "UID EXPUNGE 1", "MOVE 1 INBOX"] {
        assert!(client.refused(command).await.starts_with("NO [NOPERM]"), "{command}");
    }
    client.ok("COPY 1 INBOX").await;
    client.ok("CLOSE").await;
    assert!(server.memory.flags("#lists/a@x.org", 1).is_empty());
    assert_eq!(server.memory.bodies_of("INBOX").len(), 1);
}

#[tokio::test]
async fn envelopes_of_long_headers_are_whole() {
    let server = Server::start().await;
    let long = format!("X-Long: {}\r\nSubject: late\r\n\r\nbody", "x\r\n y".repeat(10_000));
    server.memory.deliver("INBOX", MAIL);
    server.memory.deliver("INBOX", long);
    let lines = server.inbox().await.ok("FETCH 1:2 ENVELOPE").await;
    assert!(lines[0].contains("\"one\" ((NIL NIL \"a\" \"x.org\"))"), "{lines:?}");
    assert_eq!(lines[1], "* 2 FETCH (ENVELOPE (NIL \"late\" NIL NIL NIL NIL NIL NIL NIL NIL))");
}

#[tokio::test]
async fn numbers_do_not_change_while_a_command_by_number_runs() {
    let server = Server::start().await;
    for _ in 0..3 {
        server.memory.deliver("INBOX", MAIL);
    }
    let mut client = server.inbox().await;
    server.memory.remove("INBOX", &[1]);
    server.memory.deliver("INBOX", MAIL);
    let (lines, tagged) = client.command("FETCH 2:3 UID").await;
    assert_eq!(lines, ["* 4 EXISTS", "* 2 FETCH (UID 2)", "* 3 FETCH (UID 3)"]);
    assert!(tagged.starts_with("OK"));
    let (lines, tagged) = client.command("FETCH 1:2 BODY.PEEK[TEXT]").await;
    assert_eq!(lines, ["* 2 FETCH (BODY[TEXT] {6}\r\nbody\r\n)"]);
    assert!(tagged.starts_with("NO [EXPUNGEISSUED]"));
    assert_eq!(client.ok("SEARCH ALL").await, ["* SEARCH 2 3 4"]);
    assert_eq!(client.ok("NOOP").await, ["* 1 EXPUNGE"]);
    assert_eq!(
        client.ok("FETCH 1:* UID").await,
        ["* 1 FETCH (UID 2)", "* 2 FETCH (UID 3)", "* 3 FETCH (UID 4)"]
    );
    assert!(client.refused("FETCH 4 UID").await.starts_with("BAD"));
    assert!(client.ok("UID FETCH 17 FLAGS").await.is_empty());
}

#[tokio::test]
async fn changes_older_than_what_is_remembered_are_found_by_comparing() {
    let server = Server::start().await;
    for _ in 0..4 {
        server.memory.deliver("INBOX", MAIL);
    }
    let mut client = server.inbox().await;
    server.memory.remove("INBOX", &[2, 3]);
    server.memory.set_flags("INBOX", 4, &["\\Flagged"]);
    server.memory.forget.store(true, Ordering::SeqCst);
    assert_eq!(
        client.ok("NOOP").await,
        ["* 2 EXPUNGE", "* 2 EXPUNGE", "* 2 FETCH (UID 4 FLAGS (\\Flagged))"]
    );
}

#[tokio::test]
async fn idle_clients_hear_of_changes_at_once_and_done_ends_it() {
    let server = Server::start().await;
    server.memory.deliver("INBOX", MAIL);
    let mut client = server.inbox().await;
    client.send("i IDLE\r\n").await;
    assert!(client.line().await.starts_with("+ "));
    server.memory.deliver("INBOX", MAIL);
    let line = timeout(Duration::from_secs(1), client.line()).await.expect("within a second");
    assert_eq!(line, "* 2 EXISTS");
    server.memory.set_flags("INBOX", 1, &["\\Seen"]);
    assert_eq!(client.line().await, "* 1 FETCH (UID 1 FLAGS (\\Seen))");
    server.memory.remove("INBOX", &[1]);
    assert_eq!(client.line().await, "* 1 EXPUNGE");
    client.send("DONE\r\n").await;
    assert!(client.line().await.starts_with("i OK"));
    client.ok("NOOP").await;
}

#[tokio::test]
async fn sessions_of_one_mailbox_see_each_others_changes() {
    let server = Server::start().await;
    server.memory.deliver("INBOX", MAIL);
    let other_node = Server::over(config(), server.memory.clone()).await;
    let (mut one, mut two) = (server.inbox().await, other_node.inbox().await);
    let flags = "* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft $Junk)";
    let lines = one.ok("STORE 1 +FLAGS (\\Deleted $Junk)").await;
    assert_eq!(lines, [flags, "* 1 FETCH (FLAGS ($Junk \\Deleted))"]);
    assert_eq!(two.ok("NOOP").await, [flags, "* 1 FETCH (UID 1 FLAGS ($Junk \\Deleted))"]);
    assert_eq!(one.ok("NOOP").await, Vec::<String>::new());
    assert_eq!(two.ok("EXPUNGE").await, ["* 1 EXPUNGE"]);
    assert_eq!(one.ok("NOOP").await, ["* 1 EXPUNGE"]);
}

#[tokio::test]
async fn copy_and_move_answer_the_new_uids() {
    let server = Server::start().await;
    for _ in 0..3 {
        server.memory.deliver("INBOX", MAIL);
    }
    let mut client = server.inbox().await;
    let (_, tagged) = client.command("COPY 1:2 Archive").await;
    assert!(tagged.starts_with("OK [COPYUID 1002 1:2 1:2]"), "{tagged}");
    assert!(client.refused("COPY 1 Nowhere").await.starts_with("NO [TRYCREATE]"));
    let (lines, tagged) = client.command("UID MOVE 2:3 Archive").await;
    assert_eq!(lines, ["* OK [COPYUID 1002 2:3 3:4] moved", "* 2 EXPUNGE", "* 2 EXPUNGE"]);
    assert!(tagged.starts_with("OK moved"));
    assert_eq!(
        client.ok("STATUS Archive (MESSAGES UNSEEN RECENT UIDNEXT SIZE)").await[0],
        format!("* STATUS Archive (MESSAGES 4 UNSEEN 4 RECENT 0 UIDNEXT 5 SIZE {})", 4 * MAIL.len())
    );
}

#[tokio::test]
async fn uid_expunge_spares_the_others_and_close_expunges_silently() {
    let server = Server::start().await;
    for _ in 0..3 {
        server.memory.deliver("INBOX", MAIL);
    }
    let mut client = server.inbox().await;
    assert!(client.ok("STORE 1:3 +FLAGS.SILENT \\Deleted").await.is_empty());
    assert_eq!(client.ok("UID EXPUNGE 2").await, ["* 2 EXPUNGE"]);
    client.ok("UNSELECT").await;
    assert_eq!(server.memory.bodies_of("INBOX").len(), 2);
    client.ok("SELECT INBOX").await;
    assert!(client.ok("CLOSE").await.is_empty());
    assert_eq!(server.memory.bodies_of("INBOX").len(), 0);
    assert!(client.refused("FETCH 1 UID").await.starts_with("BAD"));
}

#[tokio::test]
async fn conditional_store_leaves_changed_messages_alone() {
    let server = Server::start().await;
    server.memory.deliver("INBOX", MAIL);
    server.memory.deliver("INBOX", MAIL);
    let mut client = server.login().await;
    let lines = client.ok("SELECT INBOX (CONDSTORE)").await.join("\n");
    assert!(lines.contains("[HIGHESTMODSEQ 3]"), "{lines}");
    server.memory.set_flags("INBOX", 2, &["\\Seen"]);
    let (lines, tagged) = client.command("UID STORE 1:2 (UNCHANGEDSINCE 3) +FLAGS (\\Flagged)").await;
    assert_eq!(
        lines,
        ["* 2 FETCH (UID 2 FLAGS (\\Seen) MODSEQ (4))", "* 1 FETCH (UID 1 FLAGS (\\Flagged) MODSEQ (5))"]
    );
    assert!(tagged.starts_with("OK [MODIFIED 2]"), "{tagged}");
    assert_eq!(
        client.ok("FETCH 1:2 (FLAGS) (CHANGEDSINCE 4)").await,
        ["* 1 FETCH (FLAGS (\\Flagged) MODSEQ (5))"]
    );
    assert_eq!(client.ok("SEARCH MODSEQ 5").await, ["* SEARCH 1 (MODSEQ 5)"]);
    assert_eq!(client.ok("STORE 2 +FLAGS.SILENT \\Draft").await, ["* 2 FETCH (MODSEQ (6))"]);
}

#[tokio::test]
async fn folders_are_listed_with_uses_children_and_status() {
    let server = Server::start().await;
    let mut client = server.login().await;
    client.ok("CREATE \"Entw&APw-rfe/2024\"").await;
    assert!(client.refused("CREATE Archive").await.starts_with("NO [ALREADYEXISTS]"));
    assert!(client.refused("DELETE inbox").await.starts_with("NO [CANNOT]"));
    let lines = client.ok("LIST \"\" *").await;
    assert_eq!(
        lines,
        [
            "* LIST (\\Archive \\HasNoChildren) \"/\" Archive",
            "* LIST (\\Drafts \\HasNoChildren) \"/\" Drafts",
            "* LIST (\\HasChildren) \"/\" Entw&APw-rfe",
            "* LIST (\\HasNoChildren) \"/\" Entw&APw-rfe/2024",
            "* LIST (\\HasNoChildren) \"/\" INBOX",
            "* LIST (\\Junk \\HasNoChildren) \"/\" Junk",
            "* LIST (\\Sent \\HasNoChildren) \"/\" Sent",
            "* LIST (\\Trash \\HasNoChildren) \"/\" Trash",
        ]
    );
    assert_eq!(client.ok("LIST \"\" \"\"").await, ["* LIST (\\Noselect) \"/\" \"\""]);
    assert_eq!(client.ok("LIST \"\" inbox").await, ["* LIST (\\HasNoChildren) \"/\" INBOX"]);
    client.ok("UNSUBSCRIBE Entw&APw-rfe").await;
    assert_eq!(client.ok("LSUB \"\" Entw&APw-rfe*").await, ["* LSUB () \"/\" Entw&APw-rfe/2024"]);
    assert_eq!(client.ok("LSUB \"\" Entw%").await, ["* LSUB (\\Noselect) \"/\" Entw&APw-rfe"]);
    assert_eq!(
        client.ok("LIST (SUBSCRIBED RECURSIVEMATCH) \"\" Entw%").await,
        ["* LIST (\\HasChildren) \"/\" Entw&APw-rfe (\"CHILDINFO\" (\"SUBSCRIBED\"))"]
    );
    assert_eq!(
        client.ok("LIST (SPECIAL-USE) \"\" (S% T%) RETURN (SUBSCRIBED CHILDREN STATUS (MESSAGES))").await,
        [
            "* LIST (\\Subscribed \\Sent \\HasNoChildren) \"/\" Sent",
            "* STATUS Sent (MESSAGES 0)",
            "* LIST (\\Subscribed \\Trash \\HasNoChildren) \"/\" Trash",
            "* STATUS Trash (MESSAGES 0)",
        ]
    );
    client.ok("RENAME Entw&APw-rfe Ideas").await;
    client.ok("DELETE Ideas").await;
    assert_eq!(
        client.ok("LIST \"\" I%").await,
        ["* LIST (\\HasNoChildren) \"/\" INBOX", "* LIST (\\Noselect \\HasChildren) \"/\" Ideas"]
    );
}

#[tokio::test]
async fn search_finds_by_list_and_by_text() {
    let server = Server::start().await;
    let mut client = server.inbox().await;
    for n in 1..=20 {
        let body = format!(
            "From: a@x\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe_{n}?=\r\nDate: {n} May 2020 10:00:00 +0000\r\n\r\nnumber {n}.\r\n"
        );
        client.append("INBOX", if n % 2 == 0 { "\\Seen" } else { "" }, &body).await;
    }
    assert_eq!(client.ok("SEARCH UNSEEN 1:6").await, ["* SEARCH 1 3 5"]);
    assert_eq!(client.ok("SEARCH CHARSET UTF-8 SUBJECT {9+}\r\nGRÜßE 7").await, ["* SEARCH 7"]);
    assert_eq!(client.ok("SEARCH BODY \"number 1\" SENTSINCE 18-May-2020").await, ["* SEARCH 18 19"]);
    assert_eq!(
        client.ok("UID SEARCH RETURN (MIN MAX COUNT) NOT SEEN").await[0].split_once(' ').unwrap().1,
        "ESEARCH (TAG \"t26\") UID MIN 1 MAX 19 COUNT 10"
    );
    assert!(client.refused("SEARCH CHARSET KOI8-R TEXT x").await.starts_with("NO [BADCHARSET"));
}

#[tokio::test]
async fn a_folder_of_long_messages_is_sent_without_holding_it() {
    let server = Server::start().await;
    let body = format!("Subject: x\r\n\r\n{}", "y".repeat(200_000));
    for _ in 0..60 {
        server.memory.deliver("INBOX", body.clone());
    }
    let mut client = server.inbox().await;
    let lines = client.ok("UID FETCH 1:* (FLAGS BODY.PEEK[])").await;
    assert_eq!(lines.len(), 60);
    assert!(lines.iter().all(|line| line.ends_with(&format!("{body})"))));
    assert!(server.memory.largest_answer.load(Ordering::SeqCst) <= 300_000);
}

#[tokio::test]
async fn junk_ends_in_bad_and_then_in_bye() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send(b"\x16\x03\x01\x02\r\n\0\0\0\r\nGET / HTTP/1.1\r\nx LOGIN {99999}\r\ny LOGIN {5+}\r\na\0b\0c d\r\n").await;
    let lines = client.rest().await;
    assert!(
        lines.iter().any(|l| l == "x BAD a literal is too long")
            && lines.iter().any(|l| l.starts_with("y BAD NUL")),
        "{lines:?}"
    );
    assert_eq!(lines.last().unwrap(), "* BYE too many errors");
    assert!(server.events.all().contains(&Event::Limited(Limit::Errors)));
}

#[tokio::test]
async fn oversize_messages_are_refused_before_they_are_sent() {
    let server = Server::start().await;
    let mut client = server.login().await;
    assert!(client.refused("APPEND INBOX {1000001}").await.starts_with("NO [TOOBIG]"));
    let huge = "x".repeat(1_200_000);
    assert!(client.append("INBOX", "", &huge).await.starts_with("NO [TOOBIG]"));
    client.ok("NOOP").await;
    client.send("a APPEND INBOX {99999999999+}\r\n").await;
    assert_eq!(client.rest().await, ["* BYE a literal is too long"]);
}

#[tokio::test]
async fn connections_and_silent_clients_are_bounded() {
    let limits = Limits { connections_per_address: 2, login: Duration::from_millis(300), ..config().limits };
    let server = Server::with(quorumail_imap::Config { limits, ..config() }).await;
    let (mut one, _two) = (server.connect().await, server.connect().await);
    let mut three = Client::silent(TcpStream::connect(server.address).await.unwrap());
    assert!(three.line().await.starts_with("* BYE [UNAVAILABLE] too many"));
    assert!(one.rest().await[0].starts_with("* BYE too slow"));
    assert!(server.events.all().contains(&Event::Refused(Limit::ConnectionsPerAddress)));
}

#[tokio::test]
async fn a_stopping_server_says_bye_and_ends() {
    let server = Server::start().await;
    let (mut waiting, mut idling) = (server.login().await, server.inbox().await);
    idling.send("i IDLE\r\n").await;
    idling.line().await;
    server.shutdown.cancel();
    assert!(waiting.rest().await[0].starts_with("* BYE"));
    assert!(idling.rest().await[0].starts_with("* BYE"));
    timeout(Duration::from_secs(5), server.task).await.expect("serve ends").unwrap();
    let closed = server.events.all().iter().filter(|e| **e == Event::Closed(Closed::Shutdown)).count();
    assert_eq!(closed, 2);
}

#[tokio::test]
async fn a_session_ends_when_its_folder_is_deleted_by_another() {
    let server = Server::start().await;
    let (mut one, mut two) = (server.login().await, server.login().await);
    one.ok("CREATE Work").await;
    one.ok("SELECT Work").await;
    two.ok("SELECT Work").await;
    one.ok("DELETE Work").await;
    one.ok("NOOP").await;
    two.send("x NOOP\r\n").await;
    assert!(two.rest().await[0].starts_with("* BYE the selected folder was deleted"));
}

#[tokio::test]
async fn selecting_asks_for_no_message_and_a_command_for_those_it_names() {
    let server = Server::start().await;
    for n in 0..2500 {
        server.memory.deliver("INBOX", format!("Subject: {n}\r\n\r\n"));
    }
    let gone: Vec<u32> = (1..=1000).filter(|uid| uid % 3 == 0).collect();
    server.memory.remove("INBOX", &gone);
    let mut client = server.inbox().await;
    client.ok("NOOP").await;
    let calls = || server.memory.list_calls.swap(0, Ordering::SeqCst);
    assert_eq!(calls(), 0);
    assert_eq!(client.ok("FETCH 1000 UID").await, ["* 1000 FETCH (UID 1333)"]);
    assert_eq!(
        client.ok("UID FETCH 3,4,2499:* UID").await,
        ["* 3 FETCH (UID 4)", "* 2166 FETCH (UID 2499)", "* 2167 FETCH (UID 2500)"]
    );
    assert_eq!(calls(), 2);
    assert_eq!(client.ok("UID SEARCH NOT 3:2166").await, ["* SEARCH 1 2 2500"]);
    assert_eq!(client.ok("SEARCH 1:2 UNSEEN").await, ["* SEARCH 1 2"]);
    assert_eq!(calls(), 1);
    assert_eq!(client.ok("FETCH 1:* FLAGS").await.len(), 2167);
    assert_eq!(calls(), 3);
}

#[tokio::test]
async fn many_messages_are_changed_copied_and_expunged_in_steps() {
    const COUNT: u32 = 2300;
    let server = Server::start().await;
    for _ in 0..COUNT {
        server.memory.deliver("INBOX", "x");
    }
    let (mut client, mut other) = (server.inbox().await, server.inbox().await);
    assert_eq!(client.ok("STORE 1:* +FLAGS (\\Flagged)").await.len() as u32, COUNT);
    assert!(client.ok("NOOP").await.is_empty());
    assert_eq!(other.ok("NOOP").await.len() as u32, COUNT);
    client.ok("ENABLE CONDSTORE").await;
    assert_eq!(client.ok("UID FETCH 1:* (FLAGS) (CHANGEDSINCE 1)").await.len() as u32, COUNT);

    // What does not fit is not copied in part.
    server.memory.copies_left.store(2000, Ordering::SeqCst);
    assert!(client.refused("COPY 1:* Archive").await.starts_with("NO [OVERQUOTA]"));
    assert!(server.memory.bodies_of("Archive").is_empty());
    server.memory.copies_left.store(usize::MAX, Ordering::SeqCst);
    let (_, tagged) = client.command("COPY 1:* Archive").await;
    assert!(tagged.starts_with(&format!("OK [COPYUID 1002 1:{COUNT} 2001:{}]", 2000 + COUNT)), "{tagged}");

    let (lines, _) = client.command("MOVE 1:1100 Trash").await;
    assert_eq!(lines.len(), 1101);
    assert_eq!(lines[0], "* OK [COPYUID 1006 1:1100 1:1100] moved");
    client.ok("UID STORE 1101:* +FLAGS.SILENT (\\Deleted)").await;
    assert_eq!(client.ok("EXPUNGE").await.len() as u32, COUNT - 1100);
    let lines = other.ok("NOOP").await;
    assert_eq!((lines.len() as u32, lines[0].as_str()), (COUNT, "* 1 EXPUNGE"));
}

#[tokio::test]
async fn ten_thousand_envelopes_are_quick() {
    let server = Server::start().await;
    for n in 0..10_000 {
        server.memory.deliver(
            "INBOX",
            format!("From: a{n}@x.org\r\nTo: b@y.org\r\nSubject: {n}\r\n\r\n{}", "body\r\n".repeat(50)),
        );
    }
    let mut client = server.login().await;
    let began = std::time::Instant::now();
    client.ok("SELECT INBOX").await;
    let selected = began.elapsed();
    let lines = client.ok("UID FETCH 1:* (FLAGS ENVELOPE)").await;
    let fetched = began.elapsed() - selected;
    println!("SELECT {selected:?}, 10,000 envelopes {fetched:?}");
    assert_eq!(lines.len(), 10_000);
    assert!(lines[9_999].starts_with("* 10000 FETCH (UID 10000 FLAGS () ENVELOPE (NIL \"9999\" "));
    assert!(fetched < Duration::from_secs(5), "{fetched:?}");
}

#[tokio::test]
async fn messages_that_cannot_be_read_do_not_keep_the_others_from_being_fetched() {
    let server = Server::start().await;
    let mut client = server.login().await;
    for _ in 0..300 {
        client.append("INBOX", "", MAIL).await;
    }
    client.ok("SELECT INBOX").await;
    let calls = || server.memory.body_calls.load(Ordering::SeqCst);
    for unreadable in [vec![1], vec![300], vec![128, 129], (100..=199).collect(), vec![1, 77, 130, 131, 290]]
    {
        *server.memory.unreadable.lock().unwrap() = unreadable.iter().copied().collect();
        let before = calls();
        for items in ["BODY.PEEK[]", "BODY.PEEK[HEADER]", "ENVELOPE"] {
            let (lines, status) = client.command(&format!("FETCH 1:* (UID {items})")).await;
            let lacking = format!("NO [UNAVAILABLE] {} of the messages", unreadable.len());
            assert!(status.starts_with(&lacking), "{unreadable:?}, {items}: {status}");
            let uids: Vec<u32> = lines
                .iter()
                .filter_map(|line| line.split_once("FETCH (UID ")?.1.split(' ').next()?.parse().ok())
                .collect();
            let rest: Vec<u32> = (1..=300).filter(|uid| !unreadable.contains(uid)).collect();
            assert_eq!(uids, rest, "{unreadable:?}, {items}");
        }
        // Each costs a few calls and not one for every message.
        assert!(calls() - before <= 2 * (6 + 24 * unreadable.len()), "{} calls", calls() - before);
        assert_eq!(client.ok("FETCH 1:* (FLAGS)").await.len(), 300);
        // Whether it matches cannot be told, and to say that it does not would be wrong.
        assert!(client.refused("SEARCH BODY nowhere").await.starts_with("NO [UNAVAILABLE]"));
    }
    // With too many, the command is refused.
    *server.memory.unreadable.lock().unwrap() = (1..=300).collect();
    let before = calls();
    assert!(client.refused("FETCH 1:* BODY.PEEK[]").await.starts_with("NO [UNAVAILABLE]"));
    assert!(calls() - before <= 120, "{} calls", calls() - before);
}
