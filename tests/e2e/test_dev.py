"""Promises of the mail service itself, kept by real processes on this machine (`quorumail dev`)."""

import imaplib
import random
import smtplib
import socket
import ssl
import subprocess
import threading
import time
import urllib.request

import pytest

import mail
from dev import Dev, people

PASSWORD = "a password"


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three nodes with a few people, shared by the tests that break nothing."""
    directory = tmp_path_factory.mktemp("three")
    with Dev(directory, {"people.yaml": people(["alice", "bob", "carol", "dora", "sync"])}) as dev:
        yield dev


def imap(dev, node, user, password=PASSWORD):
    return mail.login(dev.node(node)["imaps"], f"{user}@example.org", password)


def test_mail_sent_through_one_node_is_read_through_another(three):
    attachment = random.Random(7).randbytes(100_000)
    for source in range(3):
        msg = mail.message("someone@elsewhere.example", "alice@example.org", f"via {source}", attachment=attachment)
        mail.send(three.node(source)["smtp"], msg)
        client = imap(three, (source + 1) % 3, "alice")
        client.select("INBOX", readonly=True)
        _, found = client.uid("SEARCH", "HEADER", "X-Token", msg["X-Token"])
        assert len(found[0].split()) == 1, found
        _, data = client.uid("FETCH", found[0].split()[0], "(BODY.PEEK[])")
        raw = data[0][1]
        sent = msg.as_bytes(policy=msg.policy.clone(linesep="\r\n"))
        assert raw.endswith(sent.split(b"\r\n\r\n", 1)[1]), "the body is not the one that was sent"
        client.logout()


def test_idle_clients_see_new_mail_from_other_nodes(three):
    host, port = mail.split(three.node(1)["imaps"])
    with socket.create_connection((host, port), timeout=15) as plain:
        stream = mail.no_verification().wrap_socket(plain)
        reader = stream.makefile("rb")
        reader.readline()

        def command(tag, text):
            stream.sendall(f"{tag} {text}\r\n".encode())
            while True:
                line = reader.readline()
                assert line, "the connection was closed"
                if line.startswith(tag.encode()):
                    assert b" OK" in line, line
                    return

        command("a", f'LOGIN bob@example.org "{PASSWORD}"')
        command("b", "SELECT INBOX")
        stream.sendall(b"c IDLE\r\n")
        assert reader.readline().startswith(b"+")
        mail.send(three.node(2)["smtp"], mail.message("x@elsewhere.example", "bob@example.org", "news"))
        sent = time.monotonic()
        while b"EXISTS" not in reader.readline():
            pass
        assert time.monotonic() - sent < 1.0
        stream.sendall(b"DONE\r\n")


def test_several_recipients_each_get_one_copy(three):
    msg = mail.message("x@elsewhere.example", "carol@example.org", "for all")
    mail.send(three.node(0)["smtp"], msg, recipients=["carol@example.org", "dora@example.org", "CAROL@Example.ORG"])
    for user in ["carol", "dora"]:
        client = imap(three, 1, user)
        mail.wait_for(lambda: mail.tokens(client)[msg["X-Token"]] == 1, what=f"the copy of {user}")
        client.logout()


def test_submission_needs_a_password_and_an_own_address(three):
    address = three.node(0)["submission"]
    msg = mail.message("alice@example.org", "bob@example.org", "from alice")
    with pytest.raises(smtplib.SMTPAuthenticationError):
        mail.submit(address, "alice@example.org", "wrong", msg)
    with pytest.raises(smtplib.SMTPSenderRefused):
        mail.submit(address, "alice@example.org", PASSWORD, msg, sender="bob@example.org")
    mail.submit(address, "alice@example.org", PASSWORD, msg)
    client = imap(three, 2, "bob")
    mail.wait_for(lambda: mail.tokens(client)[msg["X-Token"]] == 1)


def test_strangers_cannot_relay_and_unknown_people_are_refused(three):
    msg = mail.message("x@elsewhere.example", "y@third.example", "relay")
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        mail.send(three.node(0)["smtp"], msg)
    assert refused.value.recipients["y@third.example"][0] // 100 == 5
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        mail.send(three.node(0)["smtp"], mail.message("x@elsewhere.example", "nobody@example.org", "who"))
    assert refused.value.recipients["nobody@example.org"][0] == 550


def test_imaplib_does_what_a_mail_client_does(three):
    client = imap(three, 0, "carol")
    _, folders = client.list()
    names = b"\n".join(folders)
    for special in [b"\\Sent", b"\\Trash", b"\\Drafts", b"\\Junk", b"\\Archive"]:
        assert special in names, names
    assert client.create("Projects/2026")[0] == "OK"
    raw = b"From: a@example.org\r\nSubject: appended\r\n\r\nbody\r\n"
    status, answer = client.append("Projects/2026", r"(\Seen)", imaplib.Time2Internaldate(time.time()), raw)
    assert status == "OK" and b"APPENDUID" in answer[0], answer
    assert client.select("Projects/2026")[0] == "OK"
    _, data = client.fetch("1", "(FLAGS UID RFC822.SIZE BODY.PEEK[] ENVELOPE BODYSTRUCTURE INTERNALDATE)")
    assert data[0][1] == raw
    assert client.store("1", "+FLAGS", r"(\Flagged)")[0] == "OK"
    other = imap(three, 2, "carol")
    other.select("Projects/2026")
    _, flags = other.fetch("1", "(FLAGS)")
    assert b"\\Flagged" in flags[0] and b"\\Seen" in flags[0], flags
    assert client.copy("1", "Archive")[0] == "OK"
    assert client.uid("MOVE", "1", "Trash")[0] == "OK"
    assert client.select("Trash")[1][0] == b"1"
    client.store("1", "+FLAGS", r"(\Deleted)")
    assert client.expunge()[0] == "OK"
    assert client.select("Trash")[1][0] == b"0"
    assert client.rename("Projects/2026", "Projects/done")[0] == "OK"
    assert client.delete("Projects/done")[0] == "OK"
    assert client.select("Archive")[1][0] == b"1"
    _, found = client.search(None, "SUBJECT", "appended", "FLAGGED")
    assert found[0] == b"1"
    client.logout()


def test_a_message_sent_with_swaks_arrives(three):
    host, port = mail.split(three.node(2)["submission"])
    run = subprocess.run(
        ["swaks", "--server", host, "--port", str(port), "--tls", "--auth", "PLAIN", "--auth-user", "alice@example.org",
         "--auth-password", PASSWORD, "--from", "alice@example.org", "--to", "dora@example.org",
         "--header", "X-Token: swaks", "--hide-all"],
        capture_output=True, text=True, timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    client = imap(three, 0, "dora")
    mail.wait_for(lambda: mail.tokens(client)["swaks"] == 1)


def test_mbsync_synchronises_both_ways(three, tmp_path):
    count = 2000
    client = imap(three, 0, "sync")
    for number in range(count // 2):
        raw = f"From: a@example.org\r\nSubject: remote {number}\r\nX-Token: r{number}\r\n\r\n{'x' * 500}\r\n".encode()
        assert client.append("INBOX", None, None, raw)[0] == "OK"
    local = tmp_path / "mail" / "INBOX"
    for name in ["cur", "new", "tmp"]:
        (local / name).mkdir(parents=True)
    for number in range(count // 2):
        (local / "cur" / f"{number}.test:2,S").write_text(f"From: a@example.org\nSubject: l\nX-Token: l{number}\n\nx\n")
    host, port = mail.split(three.node(1)["imap"])
    config = tmp_path / "mbsyncrc"
    config.write_text(
        f"IMAPAccount q\nHost {host}\nPort {port}\nUser sync@example.org\nPass \"{PASSWORD}\"\nSSLType None\nAuthMechs LOGIN\n"
        f"\nIMAPStore remote\nAccount q\n\nMaildirStore local\nPath {tmp_path}/mail/\nInbox {tmp_path}/mail/INBOX\n\n"
        "Channel c\nFar :remote:\nNear :local:\nPatterns INBOX\nCreate Both\nExpunge Both\nSyncState *\n"
    )

    def sync():
        run = subprocess.run(["mbsync", "-c", str(config), "c"], capture_output=True, text=True, timeout=240)
        assert run.returncode == 0, run.stdout + run.stderr

    sync()
    assert len(list((local / "cur").iterdir())) + len(list((local / "new").iterdir())) == count
    found = mail.tokens(client)
    assert sum(found.values()) == count and set(found.values()) == {1}
    # A flag set there and a deletion made here cross on the second run.
    client.select("INBOX")
    _, first = client.uid("SEARCH", "HEADER", "X-Token", "r7")
    client.uid("STORE", first[0].split()[0], "+FLAGS", r"(\Flagged)")
    next(f for f in (local / "cur").iterdir() if "X-Token: l9\n" in f.read_text().replace("\r", "")).unlink()
    sync()
    assert any(":2," in f.name and "F" in f.name.split(":2,")[1] for f in (local / "cur").iterdir())
    assert mail.tokens(client)["l9"] == 0
    client.logout()


def test_bad_input_is_answered_and_nothing_else_happens(three):
    """Oversize lines, junk and NUL bytes get a protocol error or a closed connection; the node goes on."""
    junk = random.Random(11).randbytes(20_000)
    attacks = [b"A" * 100_000 + b"\r\n", b"\x00\x00\x00\r\n", junk, b"MAIL FROM:<\xff\xfe@x>\r\n", b"BDAT 99999999999\r\n",
               b"a LOGIN {99999999999}\r\n", b"a APPEND INBOX {18446744073709551615}\r\n", b"a " + b"(" * 60_000 + b"\r\n"]
    for port in ["smtp", "imap"]:
        for attack in attacks:
            with socket.create_connection(mail.split(three.node(0)[port]), timeout=20) as raw:
                greeting = raw.recv(1000)
                assert greeting
                answer = b""
                try:
                    raw.sendall(attack)
                    raw.shutdown(socket.SHUT_WR)
                    while chunk := raw.recv(4096):
                        answer += chunk
                except TimeoutError:
                    raise
                except OSError:
                    pass  # closed by the server, in whichever way that shows here
                assert b"250 2.6" not in answer and b"OK LOGIN" not in answer
    mail.send(three.node(0)["smtp"], mail.message("x@elsewhere.example", "alice@example.org", "still here"))


def test_bare_line_feeds_do_not_smuggle_a_second_message(three):
    with socket.create_connection(mail.split(three.node(0)["smtp"]), timeout=20) as raw:
        reader = raw.makefile("rb")
        reader.readline()
        for line in [b"HELO x\r\n", b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<bob@example.org>\r\n", b"DATA\r\n"]:
            raw.sendall(line)
            assert reader.readline()[:1] in b"23"
        raw.sendall(b"Subject: one\r\n\r\nx\n.\nMAIL FROM:<evil@b.example>\r\n.\r\n")
        assert reader.readline().startswith(b"5")
    client = imap(three, 1, "bob")
    client.select("INBOX", readonly=True)
    assert client.search(None, "SUBJECT", "one")[1][0] == b""


def test_plain_passwords_are_not_asked_for_without_tls_elsewhere_but_tls_works(three):
    host, port = mail.split(three.node(0)["imap"])
    client = imaplib.IMAP4(host, port, timeout=15)
    assert client.starttls(ssl_context=mail.no_verification())[0] == "OK"
    client.login("alice@example.org", PASSWORD)
    client.logout()
    host, port = mail.split(three.node(0)["submissions"])
    with smtplib.SMTP_SSL(host, port, timeout=15, context=mail.no_verification()) as smtp:
        smtp.login("alice@example.org", PASSWORD)


def test_metrics_and_probes_answer(three):
    for node in range(3):
        base = f"http://{three.node(node)['http']}"
        assert urllib.request.urlopen(f"{base}/livez", timeout=10).status == 200
        assert urllib.request.urlopen(f"{base}/readyz", timeout=10).status == 200
        text = urllib.request.urlopen(f"{base}/metrics", timeout=10).read().decode()
        assert "quorumail_" in text


def quiet_groups(dev, node):
    with urllib.request.urlopen(f"http://{dev.node(node)['http']}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("quorumail_group_quiet{"))


def test_every_group_of_an_idle_cluster_goes_quiet(three):
    """Nothing that the nodes do by themselves keeps the groups awake: no heartbeats, no polling."""
    end = time.monotonic() + 90
    while (quiet := [quiet_groups(three, node) for node in range(3)]) != [17.0] * 3:
        assert time.monotonic() < end, f"quiet groups of 17: {quiet}"
        time.sleep(0.5)


def test_an_edited_resource_is_applied(tmp_path):
    with Dev(tmp_path, {"people.yaml": people(["eve"])}, nodes=1) as dev:
        imap(dev, 0, "eve").logout()
        dev.write("people.yaml", people(["eve", "frank"], password="another one"))
        mail.wait_for(lambda: imap(dev, 0, "frank", "another one"), within=20, what="frank's mailbox")
        mail.wait_for(lambda: imap(dev, 0, "eve", "another one"), within=20, what="eve's new password")
        with pytest.raises(imaplib.IMAP4.error):
            imap(dev, 0, "eve", PASSWORD)


def test_mail_is_still_there_after_a_clean_stop_and_a_kill_of_all(tmp_path):
    resources = {"people.yaml": people(["alice"])}
    msgs = [mail.message("x@elsewhere.example", "alice@example.org", f"m{i}") for i in range(20)]
    with Dev(tmp_path, resources) as dev:
        for number, msg in enumerate(msgs):
            mail.send(dev.node(number % 3)["smtp"], msg)
        for node in range(3):
            dev.kill(node)
        client = mail.wait_for(lambda: imap(dev, 1, "alice"), within=60, what="a log-in after all nodes were killed")
        found = mail.tokens(client)
        assert all(found[m["X-Token"]] == 1 for m in msgs)
        assert dev.stop() == 0
    with Dev(tmp_path, resources) as dev:
        found = mail.tokens(imap(dev, 2, "alice"))
        assert all(found[m["X-Token"]] == 1 for m in msgs)


def test_acknowledged_mail_survives_kill_of_any_mailnode(tmp_path):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    names = [f"user{i}" for i in range(12)]
    recipients = [f"{n}@example.org" for n in names]
    with Dev(tmp_path, {"people.yaml": people(names)}) as dev:
        ledger, stop = mail.Ledger(), threading.Event()
        smtp = dev.all("smtp")
        senders = [threading.Thread(target=mail.keep_sending, args=(smtp, recipients, ledger, stop, seed + i)) for i in range(6)]
        for sender in senders:
            sender.start()
        try:
            for node in range(3):
                before = len(ledger.acknowledged)
                mail.wait_for(lambda: len(ledger.acknowledged) > before + 50, within=60, what="mail flowing before the kill")
                old = dev.node(node)["pid"]
                dev.kill(node)
                mail.wait_for(lambda: dev.node(node)["pid"] != old, within=30, what="the node's restart")
                during = len(ledger.acknowledged)
                mail.wait_for(lambda: len(ledger.acknowledged) > during + 50, within=60, what="mail flowing after the kill")
                mail.wait_for(
                    lambda: urllib.request.urlopen(f"http://{dev.node(node)['http']}/readyz", timeout=5).status == 200,
                    within=60, what="the node's readiness")
        finally:
            stop.set()
            for sender in senders:
                sender.join()
        lost, twice, phantoms = mail.account_for(ledger, lambda r: mail.login(dev.node(0)["imaps"], r, PASSWORD), recipients)
        print(f"acknowledged {len(ledger.acknowledged)}, unknown {len(ledger.unknown)}, refused {len(ledger.refused)}, "
              f"longest pause {ledger.longest_pause():.2f} s")
        assert not lost, f"{len(lost)} acknowledged messages are lost"
        assert not twice, f"{len(twice)} messages are there twice"
        assert not phantoms, f"{len(phantoms)} messages are there that nobody sent"


def test_a_cluster_grows_from_one_to_three_to_five_and_back_without_losing_mail(tmp_path):
    """The number of nodes is edited in the MailCluster's file, four times, while mail is sent to all nodes that stay."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    names = [f"user{i}" for i in range(12)]
    recipients = [f"{n}@example.org" for n in names]

    def cluster(nodes):
        return ("{apiVersion: quorumail.io/v1alpha1, kind: MailCluster, metadata: {name: mc}, "
                "spec: {nodes: %d, partitions: 8}}\n" % nodes)

    def settled(nodes):
        status = dev.status()
        ids = [node["node"] for node in status["nodes"]]
        spread = sorted(node["replicas"] for node in status["nodes"])
        return (ids == list(range(nodes)) and all(node["ready"] for node in status["nodes"])
                and status["partitions"]["moving"] == 0 and status["partitions"]["underReplicated"] == 0
                and sum(spread) == 8 * min(nodes, 3) and spread[-1] - spread[0] <= 1)

    with Dev(tmp_path, {"people.yaml": people(names), "cluster.yaml": cluster(1)}, nodes=None) as dev:
        ledger, stop, smtp = mail.Ledger(), threading.Event(), [dev.node(0)["smtp"]]
        senders = [threading.Thread(target=mail.keep_sending, args=(smtp, recipients, ledger, stop, seed + i)) for i in range(4)]
        for sender in senders:
            sender.start()
        try:
            for nodes in [3, 5, 3]:
                before, started = len(ledger.acknowledged), time.monotonic()
                # Nodes that go take no more mail first, as behind a load balancer.
                del smtp[nodes:]
                time.sleep(1)
                dev.write("cluster.yaml", cluster(nodes))
                mail.wait_for(lambda: settled(nodes), within=180, every=1, what=f"{nodes} nodes")
                print(f"{nodes} nodes after {time.monotonic() - started:.1f} s, "
                      f"{len(ledger.acknowledged) - before} messages acknowledged meanwhile")
                smtp[:] = [dev.node(i)["smtp"] for i in range(nodes)]
                during = len(ledger.acknowledged)
                mail.wait_for(lambda: len(ledger.acknowledged) > during + 50, within=60, what="mail flowing after the change")
        finally:
            stop.set()
            for sender in senders:
                sender.join()
        print(f"acknowledged {len(ledger.acknowledged)}, unknown {len(ledger.unknown)}, refused {len(ledger.refused)}, "
              f"longest pause {ledger.longest_pause():.2f} s")
        for node in range(3):
            lost, twice, phantoms = mail.account_for(
                ledger, lambda r: mail.login(dev.node(node)["imaps"], r, PASSWORD), recipients)
            assert not lost, f"{len(lost)} acknowledged messages are lost at node {node}"
            assert not twice, f"{len(twice)} messages are there twice"
            assert not phantoms, f"{len(phantoms)} messages are there that nobody sent"
