"""Promises of backups: real mailnodes, a real S3, and everything lost in between."""

import base64
import datetime
import imaplib
import json
import mailbox
import random
import re
import shutil
import subprocess
import threading
import time
import urllib.request

import pytest

import mail
from dev import BIN, Dev, people
from repository import Bucket, Directory, versitygw

PASSWORD = "a password"
NAMES = ["alice", "bob", "carol"]
EVERYBODY = [f"{name}@example.org" for name in NAMES]


def imap(dev, user, password=PASSWORD, node=0):
    return mail.login(dev.node(node)["imaps"], f"{user}@example.org" if "@" not in user else user, password)


def contents(dev, user, node=0, under=None):
    """Everything that a client sees of a mailbox: by folder, UIDVALIDITY and, by UID, flags, date and bytes."""
    return mail.contents(imap(dev, user, node=node), under)


def without_validity(found):
    return {name: messages for name, (_, messages) in found.items() if messages}


def count(found):
    return sum(len(messages) for _, messages in found.values())


def fill(dev, seed):
    """Mail by SMTP and IMAP: folders, flags, keywords, dates, holes between UIDs, a large message, a queue entry."""
    draw = random.Random(seed)
    for number in range(45):
        name = NAMES[number % 3]
        attachment = draw.randbytes(1_500_000) if number == 7 else None
        mail.send(dev.node(number % 3)["smtp"],
                  mail.message("x@elsewhere.example", f"{name}@example.org", f"m{number}", size=draw.randrange(300, 9000),
                               attachment=attachment))
    client = imap(dev, "alice")
    for folder in ["Projects", "Projects/2026", "Entwürfe.alt"]:
        assert client.create(f'"{utf7(folder)}"')[0] == "OK"
    client.subscribe('"Projects/2026"')
    for number in range(30):
        flags = draw.choice(["", r"(\Seen)", r"(\Seen \Flagged)", r"(\Answered $Forwarded)", r"(\Draft label)"])
        date = imaplib.Time2Internaldate(1_500_000_000 + number * 86_400)
        body = f"From: a@example.org\r\nSubject: appended {number}\r\nX-Token: p{number}\r\n\r\nFrom here\r\nline {number}\r\n"
        assert client.append('"Projects/2026"', flags or None, date, body.encode())[0] == "OK"
    client.select('"Projects/2026"')
    client.uid("STORE", "3,7:9,30", "+FLAGS", r"(\Deleted)")
    assert client.expunge()[0] == "OK"
    client.uid("STORE", "5", "+FLAGS", r"(\Deleted)")
    client.select("INBOX")
    client.uid("COPY", "1:3", f'"{utf7("Entwürfe.alt")}"')
    client.uid("STORE", "1:4", "+FLAGS", r"(\Seen important)")
    client.logout()
    msg = mail.message("alice@example.org", "someone@remote.example", "waits", token="waits")
    mail.submit(dev.node(0)["submission"], "alice@example.org", PASSWORD, msg)


def utf7(name):
    """RFC 3501 5.1.3, for the few names used here."""
    out = ""
    for c in name:
        if c == "&":
            out += "&-"
        elif " " <= c <= "~":
            out += c
        else:
            out += "&" + base64.b64encode(c.encode("utf-16-be")).decode().rstrip("=").replace("/", ",") + "-"
    return out


def queue(dev):
    command = [str(BIN / "quorumail"), "--dev", str(dev.directory / "data"), "-o", "json", "queue", "list"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three nodes with mail in all its forms."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    # Outgoing mail waits: nobody listens where it is to go.
    relay = {"host": "127.0.0.1", "port": 1}
    cluster = {"apiVersion": "quorumail.io/v1alpha1", "kind": "MailCluster", "metadata": {"name": "dev"},
               "spec": {"nodes": 3, "smtp": {"relay": relay}}}
    resources = {"people.yaml": people(NAMES), "cluster.yaml": json.dumps(cluster)}
    with Dev(tmp_path_factory.mktemp("three"), resources) as dev:
        fill(dev, seed)
        for name in NAMES:
            mail.wait_for(lambda: count(contents(dev, name)) >= 15, what=f"the mail of {name}")
        yield dev


@pytest.fixture
def place(tmp_path):
    """A repository: in an S3 server where there is one, else in a directory."""
    made = Bucket(tmp_path / "s3") if versitygw() else Directory(tmp_path / "files")
    yield made
    made.close()


def test_a_second_backup_of_unchanged_mail_uploads_next_to_nothing(three, place):
    first = place.backup(three)
    assert first["messages"] >= 45 and first["uploadedBytes"] > 1_500_000, first
    second = place.backup(three)
    assert second["messages"] == first["messages"]
    assert second["uploadedBytes"] < 64_000, second
    listed = place.list()
    assert [backup["id"] for backup in listed] == [second["id"], first["id"]]
    assert listed[0]["parent"] == first["id"]
    shown = place.run("backup", "show", second["id"])
    assert sum(part["messages"] for part in shown["parts"]) == second["messages"]
    assert place.run("backup", "verify")["damage"] == []
    pruned = place.run("backup", "prune", extra=["--keep-last", "1"])
    assert pruned["removed"] == [first["id"]]
    assert [backup["id"] for backup in place.list()] == [second["id"]]
    assert place.run("backup", "verify")["damage"] == []


def test_one_mailbox_comes_back_beside_what_is_there_and_only_once(three, place):
    place.backup(three)
    before = contents(three, "alice")
    command = ["restore", "--mailbox", "alice@example.org", "--prefix", "Restored/one", "--verify"]
    first = place.run(*command, dev=three)
    assert (first["problems"], first["messages"], first["alreadyThere"]) == ([], count(before), 0), first
    assert first["verified"] == count(before)
    again = place.run(*command, dev=three)
    assert (again["problems"], again["messages"], again["alreadyThere"]) == ([], 0, count(before)), again
    after = contents(three, "alice")
    assert {name: after[name] for name in before} == before, "what was there has changed"
    restored = contents(three, "alice", under="Restored/one")
    assert without_validity(restored) == without_validity(before)
    into = place.run("restore", "--mailbox", "alice@example.org", "--folder", "Projects", "--into", "bob@example.org",
                     "--prefix", "From alice", dev=three)
    assert into["messages"] == count({n: f for n, f in before.items() if n.split("/")[0] == "Projects"}) > 0
    client = imap(three, "alice")
    for name in sorted(restored, reverse=True):
        client.delete(f'"Restored/one/{name}"')
    client.logout()


def test_a_maildir_is_made_without_any_mail_service(three, place, tmp_path):
    place.backup(three)
    expected = contents(three, "alice")
    for _ in range(2):
        place.run("restore", "--all", "--to-maildir", str(tmp_path / "mail"))
    box = mailbox.Maildir(tmp_path / "mail" / "alice@example.org", create=False)
    assert {message for message in map(bytes_of, box)} == {body for _, _, body in expected["INBOX"][1].values()}
    folder = box.get_folder("Projects.2026")
    found = {}
    for message in folder:
        token = message["X-Token"]
        found[token] = (set(message.get_flags()) & set("DFRST"), int(message.get_date()), message.get_payload())
    letters = {b"\\Seen": "S", b"\\Flagged": "F", b"\\Answered": "R", b"\\Draft": "D", b"\\Deleted": "T"}
    messages = expected["Projects/2026"][1]
    assert len(folder) == len(messages) == len(found)
    for flags, date, body in messages.values():
        token = re.search(rb"X-Token: (\S+)", body).group(1).decode()
        seen, at, _ = found[token]
        assert seen == {letters[flag] for flag in flags if flag in letters}, token
        assert at == int(time.mktime(imaplib.Internaldate2tuple(b'INTERNALDATE "' + date + b'"'))), token
    place.run("restore", "--mailbox", "alice@example.org", "--folder", "Projects", "--to-mbox", str(tmp_path / "p.mbox"))
    assert {m["X-Token"] for m in mailbox.mbox(tmp_path / "p.mbox")} == set(found)


def bytes_of(message):
    return message.as_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def test_what_was_acknowledged_before_a_backup_began_is_in_it(three, place, tmp_path):
    ledger, stop = mail.Ledger(), threading.Event()
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    senders = [threading.Thread(target=mail.keep_sending, args=(three.all("smtp"), EVERYBODY, ledger, stop, seed + i))
               for i in range(3)]
    for sender in senders:
        sender.start()
    try:
        mail.wait_for(lambda: len(ledger.acknowledged) > 40, what="mail flowing")
        before = dict(ledger.acknowledged)
        place.backup(three)
        during = len(ledger.acknowledged) - len(before)
    finally:
        stop.set()
        for sender in senders:
            sender.join()
    place.run("restore", "--all", "--to-maildir", str(tmp_path / "mail"))
    held = {m["X-Token"] for address in EVERYBODY for m in mailbox.Maildir(tmp_path / "mail" / address, create=False)}
    lost = [token for token in before if token not in held]
    print(f"{len(before)} acknowledged before, {during} while the backup ran")
    assert not lost, f"{len(lost)} of {len(before)} messages acknowledged before the backup are not in it"


def archiving(place, dev, *extra):
    """Has all nodes ship to an archive, and waits until every group is known to be complete up to some instant."""
    place.run("backup", "archive", "start", "--max-lag", "2", *extra, dev=dev)
    return complete(dev)


def complete(dev, after=0.0):
    """The state of an archive that is whole and complete up to an instant after `after`, in Unix seconds."""
    def whole():
        now = archive(dev, "status")
        is_whole = now["shippedGroups"] == now["groups"] and now["running"] == now["nodes"] and not now["troubles"]
        return now if is_whole and now["through"] and seconds(now["through"]) > after else None

    return mail.wait_for(whole, within=60, what="an archive that is complete", every=0.2)


def seconds(instant):
    return datetime.datetime.fromisoformat(instant).timestamp()


def instant(at):
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def append(dev, user, name, number, node=0):
    client = imap(dev, user, node=node)
    text = mail.message("x@elsewhere.example", f"{user}@example.org", f"{name}{number}", size=700)
    assert client.append("Archived", "(\\Flagged)", None, bytes(text))[0] == "OK"
    client.logout()


def test_point_in_time_restore_brings_back_what_was_deleted(three, place):
    place.backup(three)
    archiving(place, three)
    client = imap(three, "alice")
    client.create("Archived")
    for number in range(12):
        append(three, "alice", "kept", number, node=number % 3)
    before = contents(three, "alice")
    assert len(before["Archived"][1]) == 12
    # Clocks of nodes and of this test are the same; what is acknowledged is a command of a moment before.
    time.sleep(1.1)
    deleted_at = time.time()
    client.select("Archived")
    client.uid("STORE", "1:5", "+FLAGS", "(\\Deleted)")
    client.expunge()
    client.logout()
    append(three, "alice", "later", 0)
    assert len(contents(three, "alice")["Archived"][1]) == 12 - 5 + 1
    complete(three, after=time.time())
    window = place.run("backup", "archive", "window")[0]["windows"]
    assert seconds(window[0]["earliest"]) < deleted_at < seconds(window[-1]["latest"]), window
    back = place.run("restore", "--mailbox", "alice@example.org", "--prefix", "Back", "--until", instant(deleted_at - 1),
                     "--verify", dev=three)
    assert back["problems"] == [] and back["messages"] == count(before), back
    assert without_validity(contents(three, "alice", under="Back")) == without_validity(before)
    # What nobody can know yet is refused, with what can be restored.
    ahead = place.run("restore", "--mailbox", "alice@example.org", "--until", instant(time.time() + 3600), "--to-maildir",
                      str(place.directory / "ahead"), fails=True)
    assert window[0]["earliest"][:19] in ahead, ahead
    archive(three, "stop")
    assert archive(three, "status")["running"] == 0
    assert place.run("backup", "verify")["damage"] == []
    # Nothing of it is needed any more once the backup before it is gone.
    place.backup(three)
    place.run("backup", "prune", extra=["--keep-last", "1"])
    client = imap(three, "alice")
    for name in sorted((name for name in contents(three, "alice") if name.startswith("Back/") or name == "Archived"), reverse=True):
        client.delete(f'"{name}"')
    client.logout()


def test_no_acknowledged_message_is_missing_in_an_archive_whose_leaders_die(three, place, tmp_path):
    place.backup(three)
    archiving(place, three)
    client = imap(three, "bob")
    client.create("Archived")
    client.logout()
    acknowledged = 0
    for round_ in range(2):
        for number in range(10):
            append(three, "bob", f"round{round_}m", number, node=2)
            acknowledged += 1
        # While it ships, and without a word. A node that comes back knows of no archive.
        old = three.node(round_)["pid"]
        three.kill(round_)
        for number in range(10, 15):
            append(three, "bob", f"round{round_}m", number, node=2)
            acknowledged += 1
        mail.wait_for(lambda: three.node(round_)["pid"] != old, what="the node's restart")
        mail.wait_for(lambda: urllib.request.urlopen(f"http://{three.node(round_)['http']}/readyz", timeout=5).status == 200,
                      within=60, what="the node's readiness")
        archiving(place, three)
    if isinstance(place, Bucket):
        place.kill()
        append(three, "bob", "dark", 0, node=2)
        acknowledged += 1
        mail.wait_for(lambda: "127.0.0.1" in json.dumps(archive(three, "status")["troubles"]), within=180, what="a complaint", every=0.5)
        place.serve()
    now = complete(three, after=time.time())
    restored = place.run("restore", "--mailbox", "bob@example.org", "--folder", "Archived", "--until", now["through"],
                         "--to-maildir", str(tmp_path / "m"))
    assert restored["messages"] == acknowledged, restored
    archive(three, "stop")


def archive(dev, what):
    """What `quorumail backup archive` prints; it may end with 1 over troubles that are among it."""
    command = [str(BIN / "quorumail"), "--dev", str(dev.directory / "data"), "-o", "json", "backup", "archive", what]
    return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout)


def running(dev):
    """Nodes that back something up now."""
    found = []
    for node in range(3):
        try:
            text = urllib.request.urlopen(f"http://{dev.node(node)['http']}/metrics", timeout=5).read().decode()
        except OSError:
            continue
        if re.search(r"^quorumail_backup_groups_running [1-9]", text, re.M):
            found.append(node)
    return found


def test_a_backup_survives_the_loss_of_a_mailnode(three, place):
    process = place.start(["backup", "now"], three, ["--rate", "1Mi"])
    node = mail.wait_for(lambda: running(three), what="a node that backs something up", every=0.01)[0]
    old = three.node(node)["pid"]
    three.kill(node)
    made = place.finish(process)
    assert [backup["id"] for backup in place.list()] == [made["id"]]
    assert place.run("backup", "verify")["damage"] == []
    mail.wait_for(lambda: three.node(node)["pid"] != old, what="the node's restart")
    mail.wait_for(lambda: urllib.request.urlopen(f"http://{three.node(node)['http']}/readyz", timeout=5).status == 200,
                  within=60, what="the node's readiness")
    # One that is killed itself leaves nothing that is listed, and does not block the next.
    process = place.start(["backup", "now"], three, ["--rate", "1Mi"])
    mail.wait_for(lambda: running(three), what="a node that backs something up", every=0.01)
    process.kill()
    process.wait()
    mail.wait_for(lambda: not running(three), what="the end of a backup that nobody waits for")
    assert len(place.list()) == 1
    place.backup(three)
    assert len(place.list()) == 2


@pytest.mark.skipif(not versitygw(), reason="there is no S3 server here; `make e2e` builds one")
def test_a_backup_fails_with_a_reason_when_the_s3_server_is_killed(three, tmp_path):
    place = Bucket(tmp_path / "s3")
    try:
        process = place.start(["backup", "now"], three, ["--rate", "256Ki", "--retry-for", "3"])
        mail.wait_for(lambda: running(three), what="a node that backs something up", every=0.01)
        place.kill()
        reason = place.finish(process, fails=True)
        assert "127.0.0.1" in reason and "mail/prefix" in reason, reason
        place.serve()
        assert place.list() == []
        made = place.backup(three)
        assert [backup["id"] for backup in place.list()] == [made["id"]]
        assert place.run("backup", "verify")["damage"] == []
        # What is wrong is told with what to do.
        place.secrets["AWS_SECRET_ACCESS_KEY"] = "wrong"
        assert "credentials" in place.run("backup", "list", fails=True)
        place.secrets["AWS_SECRET_ACCESS_KEY"] = "test-secret-key"
        place.flags[1] = "s3://nobody/prefix"
        assert "bucket" in place.run("backup", "list", fails=True)
    finally:
        place.close()


def test_wrong_requests_say_what_to_do(three, tmp_path):
    place = Directory(tmp_path / "files")
    assert "no backup repository" in place.run("backup", "list", fails=True)
    place.backup(three)
    other = Directory(tmp_path / "other")
    other.flags = place.flags
    assert "does not open" in other.run("backup", "list", fails=True)
    place.run("backup", "key", "add", str(other.key))
    assert len(other.list()) == 1
    assert "no mailbox nobody@example.org" in place.run("restore", "--mailbox", "nobody@example.org", dev=three, fails=True)
    assert "no mailbox nobody@example.org" in place.run(
        "restore", "--mailbox", "alice@example.org", "--into", "nobody@example.org", dev=three, fails=True)
    until = place.run("restore", "--all", "--until", "2001-01-01T00:00:00Z", "--to-maildir", str(tmp_path / "m"), fails=True)
    assert "2001-01-01" in until and "no complete backup from before it" in until, until


def test_everything_comes_back_after_a_disaster(three, place, tmp_path):
    held = mail.wait_for(lambda: queue(three), what="the entry that waits")
    before = {name: contents(three, name) for name in NAMES}
    subscribed = mail.folders(imap(three, "alice"))
    total = sum(map(count, before.values()))
    place.backup(three)
    assert three.stop() == 0
    shutil.rmtree(three.directory / "data")

    with Dev(tmp_path / "fresh", {}) as fresh:
        began = time.monotonic()
        restored = place.run("restore", "--all", "--verify", dev=fresh)
        print(f"restored {restored['messages']} messages in {time.monotonic() - began:.1f} s")
        assert restored["problems"] == [], restored
        assert (restored["messages"], restored["verified"], restored["accounts"]) == (total, total, 3), restored
        assert restored["queued"] == len(held)
        for number, name in enumerate(NAMES):
            found = contents(fresh, name, node=number)
            assert found.keys() == before[name].keys()
            for folder, expected in before[name].items():
                if expected[1]:
                    assert found[folder] == expected, f"{name}: {folder} is not what it was"
        assert mail.folders(imap(fresh, "alice")) == subscribed
        with pytest.raises(imaplib.IMAP4.error):
            imap(fresh, "alice", "wrong")
        waiting = queue(fresh)
        assert [entry["id"] for entry in waiting] == [entry["id"] for entry in held]
        assert {r["class"] for entry in waiting for r in entry["recipients"]} == {"held"}, waiting
        again = place.run("restore", "--all", dev=fresh)
        assert (again["messages"], again["alreadyThere"], again["queued"], again["problems"]) == (0, total, 0, []), again
        # Mail goes on, under UIDs that nobody had.
        highest = max(before["alice"]["INBOX"][1])
        msg = mail.message("x@elsewhere.example", "alice@example.org", "after")
        mail.send(fresh.node(1)["smtp"], msg)
        inbox = mail.wait_for(lambda: [uid for uid in contents(fresh, "alice")["INBOX"][1] if uid > highest], what="new mail")
        assert len(inbox) == 1
