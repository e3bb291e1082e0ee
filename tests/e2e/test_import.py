"""Promises to people who move in: their mail comes from another server, Maildirs and mboxes with dates and flags, each message
once, however often and whatever is lost on the way."""

import imaplib
import json
import mailbox
import os
import subprocess
import time

import pytest

import mail
from dev import BIN, Dev, people
from dovecot import Dovecot

PASSWORD = "a password"
THERE = "the other p\\ssw\"rd"
NAMES = ["alice", "bob", "carol", "dave", "erin"]
ALICE, BOB, CAROL, DAVE, ERIN = (f"{name}@example.org" for name in NAMES)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    with Dev(tmp_path_factory.mktemp("three"), {"people.yaml": people(NAMES)}) as dev:
        yield dev


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    files = directory / "tls.crt", directory / "tls.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
                    files[1], "-out", files[0], "-days", "2", "-subj", "/CN=old.test", "-addext", "subjectAltName=DNS:old.test"],
                   check=True, capture_output=True, timeout=60)
    return files


def command(dev, address, *words):
    return [str(BIN / "quorumail"), "--dev", str(dev.directory / "data"), "-o", "json", "mailbox", "import", address, *map(str, words)]


def imported(dev, address, *words, stdin=None):
    done = subprocess.run(command(dev, address, *words), capture_output=True, timeout=240, text=True, input=stdin)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def refused(dev, address, *words, stdin=None):
    done = subprocess.run(command(dev, address, *words), capture_output=True, timeout=240, text=True, input=stdin)
    assert done.returncode != 0, done.stdout
    assert THERE not in done.stderr + done.stdout
    return done.stderr + done.stdout


def text(number, size=1):
    return (f"From: Ann <ann@example.net>\r\nSubject: number {number}\r\n\r\n" + f"line of {number}\r\nFrom here on\r\n" * size).encode()


def append(client, folder, number, flags="", size=1):
    date = imaplib.Time2Internaldate(1_500_000_000 + number * 86_400)
    assert client.append(folder, flags or None, date, text(number, size))[0] == "OK"


def read(client):
    """By folder, in the order of their UIDs: flags, date as an instant, bytes. Logs out."""
    def instant(date):
        return time.mktime(imaplib.Internaldate2tuple(b'25 (INTERNALDATE "' + date + b'")'))

    return {name: [(flags, instant(date), octets) for _, (flags, date, octets) in sorted(held.items())]
            for name, (_, held) in mail.contents(client).items()}


def here(dev, address):
    client = mail.wait_for(lambda: mail.login(dev.node(0)["imaps"], address, PASSWORD), what="a session")
    return {name: held for name, held in read(client).items() if held}


def source(server, *more):
    return ["--from-imap", f"127.0.0.1:{server.imap}", "--security", "none", "--password-file", "-", *more]


def test_a_mailbox_of_another_server_comes_whole_and_what_is_new_later(three, tmp_path, certificate):
    with Dovecot(tmp_path / "old", NAMES, THERE, separator=".", prefix="INBOX.", certificate=certificate) as old:
        client = old.login(ALICE)
        for folder in ["INBOX.Projects", "INBOX.Projects.2026", "INBOX.Entw&APw-rfe", "INBOX.Empty"]:
            assert client.create(folder)[0] == "OK"
        for number in range(40):
            folder = ["INBOX", "INBOX.Projects.2026", "INBOX.Entw&APw-rfe", "INBOX.Gesendet"][number % 4]
            append(client, folder, number, [r"(\Seen \Flagged work)", "", r"(\Answered)"][number % 3])
        # One that is large, and one without octets of its own.
        append(client, "INBOX", 40, size=100_000)
        client.logout()
        before = mail.contents(old.login(ALICE))
        words = ["--from-imap", f"127.0.0.1:{old.imaps}", "--ca-file", certificate[0], "--password-file", "-"]

        planned = imported(three, ALICE, *words, "--dry-run", stdin=THERE)
        moves = {folder["from"]: (folder["to"], folder["messages"]) for folder in planned}
        assert moves["Gesendet"] == ("Sent", 10) and moves["Projects/2026"] == ("Projects/2026", 10), moves
        assert here(three, ALICE) == {}

        done = imported(three, ALICE, *words, stdin=THERE)
        assert done["messages"] == 41 and done["alreadyThere"] == 0 and done["problems"] == [], done
        found = here(three, ALICE)
        there = read(old.login(ALICE))
        renamed = {"INBOX": "INBOX", "INBOX.Projects.2026": "Projects/2026", "INBOX.Entw&APw-rfe": "Entw&APw-rfe", "INBOX.Gesendet": "Sent"}
        assert found == {renamed[name]: held for name, held in there.items() if held}
        assert mail.contents(old.login(ALICE)) == before, "nothing is changed where it comes from"
        client = mail.login(three.node(0)["imaps"], ALICE, PASSWORD)
        assert "Empty" in mail.folders(client)[0]
        # One is deleted here, one is new there.
        client.select("Sent")
        client.uid("STORE", "1", "+FLAGS", r"(\Deleted)")
        client.expunge()
        client.logout()
        client = old.login(ALICE)
        append(client, "INBOX", 41)
        client.logout()
        words = ["--from-imap", f"127.0.0.1:{old.imap}", "--security", "starttls", "--ca-file", certificate[0], "--password-file", "-"]
        done = imported(three, ALICE, *words, stdin=THERE)
        assert done["messages"] == 1 and done["alreadyThere"] == 41, done
        found = here(three, ALICE)
        assert len(found["Sent"]) == 9 and found["INBOX"][-1][2] == text(41)

        done = imported(three, ALICE, *words, "--folder", "Projects/2026", "--under", "Old mail", stdin=THERE)
        assert done["messages"] == 10 and done["folders"] == 1
        assert here(three, ALICE)["Old mail/Projects/2026"] == found["Projects/2026"]


def test_an_import_goes_on_when_a_mailnode_and_the_other_server_are_lost(three, tmp_path):
    old = Dovecot(tmp_path / "old", NAMES, THERE)
    with old:
        client = old.login(BOB)
        client.create("Many")
        for number in range(120):
            append(client, "Many", number, size=6_000)
        client.logout()
        run = subprocess.Popen(command(three, BOB, *source(old)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
        run.stdin.write(THERE)
        run.stdin.close()

        def count():
            client = mail.login(three.node(1)["imaps"], BOB, PASSWORD)
            status, held = client.select("Many", readonly=True)
            client.logout()
            return int(held[0]) if status == "OK" else 0

        mail.wait_for(lambda: count() > 10, every=0.02, what="the first messages")
        three.kill(0)
        mail.wait_for(lambda: count() > 40, within=60, every=0.02, what="more of them")
        old.stop()
    with old:
        out, errors = run.stdout.read(), run.stderr.read()
        assert run.wait(180) == 0, errors
        done = json.loads(out)
        assert done["messages"] + done["alreadyThere"] == 120 and done["problems"] == [], done
        mail.wait_for(lambda: mail.login(three.node(0)["imaps"], BOB, PASSWORD).logout(), what="node 0")
        assert [octets for _, _, octets in here(three, BOB)["Many"]] == [text(number, 6_000) for number in range(120)]

        # The program itself is killed: the next run goes on.
        client = old.login(CAROL)
        for number in range(60):
            append(client, "INBOX", number, size=6_000)
        client.logout()
        run = subprocess.Popen(command(three, CAROL, *source(old)), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, text=True)
        run.stdin.write(THERE)
        run.stdin.close()

        def inbox():
            client = mail.login(three.node(1)["imaps"], CAROL, PASSWORD)
            held = int(client.select("INBOX", readonly=True)[1][0])
            client.logout()
            return held

        mail.wait_for(lambda: inbox() > 5, every=0.02, what="the first messages")
        run.kill()
        run.wait(30)
        done = imported(three, CAROL, *source(old), stdin=THERE)
        assert done["messages"] + done["alreadyThere"] == 60 and done["alreadyThere"] > 5, done
        assert [octets for _, _, octets in here(three, CAROL)["INBOX"]] == [text(number, 6_000) for number in range(60)]


def test_maildirs_and_mboxes_that_others_wrote_come_in(three, tmp_path):
    root = mailbox.Maildir(tmp_path / "maildir")
    for number in range(6):
        message = mailbox.MaildirMessage(f"Subject: {number}\n\nline\nFrom here\n".encode())
        message.set_flags("FS" if number % 2 else "")
        message.set_subdir("cur")
        message.set_date(1_400_000_000 + number)
        (root if number < 4 else root.add_folder("Work")).add(message)
    for path in (tmp_path / "maildir").rglob("cur/*"):
        # Python keeps the date in the file's time alone, as others do.
        assert int(path.stat().st_mtime) >= 1_400_000_000
    done = imported(three, DAVE, "--from-maildir", tmp_path / "maildir")
    assert done["messages"] == 6 and done["problems"] == []
    found = here(three, DAVE)
    assert [octets for _, _, octets in found["INBOX"]] == [f"Subject: {n}\r\n\r\nline\r\nFrom here\r\n".encode() for n in range(4)]
    assert [date for _, date, _ in found["Work"]] == [1_400_000_004, 1_400_000_005]
    assert {flags for flags, _, _ in found["INBOX"]} == {frozenset(), frozenset([b"\\Seen", b"\\Flagged"])}
    assert imported(three, DAVE, "--from-maildir", tmp_path / "maildir")["alreadyThere"] == 6

    box = mailbox.mbox(tmp_path / "Old.mbox")
    for number in range(5):
        message = mailbox.mboxMessage(f"Subject: {number}\n\nFrom here\n\nFrom a@b Thu Jan  1 00:00:01 2026\n".encode())
        message.set_from("a@b", time.gmtime(1_300_000_000 + number))
        message.set_flags("RA")
        box.add(message)
    box.flush()
    done = imported(three, DAVE, "--from-mbox", tmp_path / "Old.mbox", "--under", "Archive")
    assert done["messages"] == 5
    flags, date, octets = here(three, DAVE)["Archive/Old"][4]
    assert (flags, date) == (frozenset([b"\\Seen", b"\\Answered"]), 1_300_000_004)
    assert octets == b"Subject: 4\r\n\r\nFrom here\r\n\r\nFrom a@b Thu Jan  1 00:00:01 2026\r\n"

    # What is taken out in one mailbox comes into another.
    out = [str(BIN / "quorumail"), "--dev", str(three.directory / "data"), "mailbox", "export", DAVE, "--to-maildir", str(tmp_path / "out")]
    subprocess.run(out, check=True, capture_output=True, timeout=120)
    assert imported(three, ERIN, "--from-maildir", tmp_path / "out" / DAVE)["messages"] == 11
    assert here(three, ERIN) == here(three, DAVE)


def test_wrong_requests_say_what_to_do(three, tmp_path, certificate):
    (tmp_path / "text").write_text("no mail\n")
    for words, expected in [
        ([], "--from-maildir"),
        (["--from-maildir", tmp_path], "no directory `cur`"),
        (["--from-maildir", tmp_path / "nowhere"], "nowhere"),
        (["--from-mbox", tmp_path / "text"], "does not begin with"),
        (["--from-imap", "imaps://a", "--password-file", "-"], "imap.example.org:993"),
        (["--from-imap", "127.0.0.1:1"], "--password-file"),
        (["--from-imap", "127.0.0.1:1", "--security", "none", "--password-file", "-"], "connection failed"),
        (["--user", "a"], "--from-imap"),
    ]:
        told = refused(three, ALICE, *words, stdin=THERE)
        assert expected in told, (words, told)
    with Dovecot(tmp_path / "old", NAMES, THERE, certificate=certificate) as old:
        told = refused(three, ALICE, *source(old), stdin="wrong\n")
        assert "AUTHENTICATE PLAIN was refused" in told and "wrong" not in told.replace("wrong answer", ""), told
        told = refused(three, ALICE, "--from-imap", f"127.0.0.1:{old.imaps}", "--password-file", "-", stdin=THERE)
        assert "certificate" in told, told
        told = refused(three, ALICE, *source(old, "--folder", "Nowhere"), stdin=THERE)
        assert "there are: INBOX" in told, told
        told = refused(three, "nobody@example.org", *source(old, "--user", ALICE), stdin=THERE)
        assert "nobody@example.org" in told, told
        token = tmp_path / "token"
        token.write_text("a-token\n")
        told = refused(three, ALICE, "--from-imap", f"127.0.0.1:{old.imap}", "--security", "none", "--token-file", token)
        assert "neither OAUTHBEARER nor XOAUTH2" in told and "a-token" not in told, told


def test_what_is_over_quota_is_told_and_the_rest_is_imported(tmp_path):
    small = people(["alice"]).replace('"spec": {', '"spec": {"quota": {"messages": 2}, ')
    box = mailbox.mbox(tmp_path / "Old.mbox")
    for number in range(5):
        box.add(f"Subject: {number}\n\nx\n")
    box.flush()
    with Dev(tmp_path / "dev", {"people.yaml": small}, nodes=1) as dev:
        told = refused(dev, ALICE, "--from-mbox", tmp_path / "Old.mbox")
        assert "3 messages, the first message 3 of" in told and "quota" in told, told
        dev.write("people.yaml", people(["alice"]))
        done = mail.wait_for(lambda: imported(dev, ALICE, "--from-mbox", tmp_path / "Old.mbox"), what="a larger quota")
        assert (done["messages"], done["alreadyThere"]) == (3, 2)
        assert os.path.getsize(tmp_path / "Old.mbox") > 0 and len(here(dev, ALICE)["Old"]) == 5
