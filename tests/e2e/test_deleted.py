"""Promises of deleted mail: it comes back from the cluster itself, and goes for good when its time is over. And of mail that
is taken out."""

import imaplib
import json
import mailbox
import subprocess
import time
import urllib.request

import pytest

import mail
from dev import BIN, Dev, people

PASSWORD = "a password"
NAMES = ["alice", "bob"]
ALICE, BOB = (f"{name}@example.org" for name in NAMES)


def cluster(nodes, **spec):
    return json.dumps({"apiVersion": "quorumail.io/v1alpha1", "kind": "MailCluster", "metadata": {"name": "dev"},
                       "spec": {"nodes": nodes, **spec}})


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    with Dev(tmp_path_factory.mktemp("three"), {"people.yaml": people(NAMES)}) as dev:
        yield dev


def quorumail(dev, *words):
    command = [str(BIN / "quorumail"), "--dev", str(dev.directory / "data"), "-o", "json", *words]
    return subprocess.run(command, capture_output=True, timeout=120, text=True)


def asked(dev, *words):
    done = quorumail(dev, *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def deleted(dev, *words):
    return asked(dev, "mailbox", "deleted", *words)


def session(dev, address, node=0):
    return mail.login(dev.node(node)["imaps"], address, PASSWORD)


def append(client, folder, number, flags=""):
    date = imaplib.Time2Internaldate(1_500_000_000 + number * 86_400)
    body = f"From: Ann <ann@example.net>\r\nSubject: =?utf-8?q?N=C2=B0?= {number}\r\n\r\nline {number}\r\n"
    assert client.append(f'"{folder}"', flags or None, date, body.encode())[0] == "OK"


def expunge(client, folder, uids):
    client.select(f'"{folder}"')
    client.uid("STORE", uids, "+FLAGS", r"(\Deleted)")
    assert client.expunge()[0] == "OK"


def messages(dev, address, under=None):
    """Of every folder that holds some: flags, date and bytes, whatever the UIDs are."""
    found = mail.contents(session(dev, address), under)
    return {name: sorted((sorted(flags), date, text) for flags, date, text in held.values())
            for name, (_, held) in found.items() if held}


def kept(dev, name):
    total = 0
    for node in range(3):
        text = urllib.request.urlopen(f"http://{dev.node(node)['http']}/metrics", timeout=10).read().decode()
        total += sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"quorumail_deleted_mail_{name} "))
    return total


def test_expunged_messages_and_deleted_folders_come_back_as_they_were(three):
    client = session(three, ALICE)
    for folder in ["Projects", "Projects/2026"]:
        assert client.create(folder)[0] == "OK"
    for number in range(12):
        append(client, ["INBOX", "Projects/2026"][number % 2], number, r"(\Seen \Flagged work)" if number % 3 == 0 else "")
    before = messages(three, ALICE)
    expunge(client, "INBOX", "2:4")
    assert client.select("INBOX")[1] == [b"3"]
    client.unselect()
    assert client.delete("Projects/2026")[0] == "OK"
    client.logout()

    listed = deleted(three, ALICE)
    assert [message["id"] for message in listed] == list(range(9, 0, -1)), "those deleted last come first"
    assert {message["folder"] for message in listed} == {"INBOX", "Projects/2026"}
    assert listed[-1]["from"] == "ann@example.net" and listed[-1]["subject"].startswith("N° "), listed[-1]
    assert len(deleted(three, ALICE, "--folder", "Projects", "--limit", "4")) == 4
    assert kept(three, "messages") == 9 and kept(three, "bytes") == sum(message["size"] for message in listed)

    # What is kept is on the disks of a majority, as everything that was answered.
    three.kill(0)
    mail.wait_for(lambda: len(deleted(three, ALICE)) == 9, what="an answer without node 0")
    done = asked(three, "mailbox", "undelete", ALICE, "--all")
    assert done == {"address": ALICE, "undeleted": 9}
    mail.wait_for(lambda: session(three, ALICE).logout(), what="node 0")
    assert messages(three, ALICE) == before
    assert deleted(three, ALICE) == [] and asked(three, "mailbox", "undelete", ALICE, "--all")["undeleted"] == 0


def test_a_part_comes_back_beside_what_is_there(three):
    client = session(three, BOB, node=1)
    for number in range(6):
        append(client, "INBOX", number)
    expunge(client, "INBOX", "1:3")
    between = deleted(three, BOB)[0]["deletedAt"]
    time.sleep(1.1)  # instants are told to the second by some, and these must differ
    expunge(client, "INBOX", "4:6")
    instant = f"--until={deleted(three, BOB)[0]['deletedAt']}"
    assert len(deleted(three, BOB, instant)) == 3 and len(deleted(three, BOB, "--since", "1h")) == 6
    assert deleted(three, BOB, "--until", between) == []
    assert asked(three, "mailbox", "undelete", BOB, instant, "--below", "Found again")["undeleted"] == 3
    assert set(messages(three, BOB)) == {"Found again/INBOX"}
    last = deleted(three, BOB)[0]["id"]
    assert asked(three, "mailbox", "undelete", BOB, "--id", str(last))["undeleted"] == 1
    assert {name: len(held) for name, held in messages(three, BOB).items()} == {"Found again/INBOX": 3, "INBOX": 1}
    client.logout()


def test_wrong_requests_say_what_to_do(three):
    for words, expected in [
        (["undelete", ALICE], "--all"),
        (["undelete", ALICE, "--id", "999999"], "999999 is not among"),
        (["undelete", "nobody@example.org", "--all"], "no mailbox nobody@example.org"),
        (["undelete", ALICE, "--all", "--folder", "INBOX"], "cannot be used with"),
        (["deleted", ALICE, "--since", "yesterday"], "2h"),
        (["deleted", "--folder", "INBOX"], "give an address"),
        (["undelete", BOB, "--all", "--below", "a//b"], "empty level"),
    ]:
        done = quorumail(three, "mailbox", *words)
        assert done.returncode != 0 and expected in done.stderr, (words, done.stderr)


def test_a_deleted_mailbox_is_listed_and_comes_back_with_its_resource(three):
    everybody = people([*NAMES, "carol"])
    three.write("people.yaml", everybody)
    client = mail.wait_for(lambda: session(three, "carol@example.org"), what="carol's mailbox")
    append(client, "INBOX", 1)
    client.logout()
    before = messages(three, "carol@example.org")
    three.write("people.yaml", people(NAMES))
    listed = mail.wait_for(lambda: deleted(three), what="a deleted mailbox")
    assert [found["address"] for found in listed] == ["carol@example.org"] and listed[0]["purgeAt"]
    three.write("people.yaml", everybody)
    mail.wait_for(lambda: deleted(three) == [], what="the mailbox that came back")
    client = mail.wait_for(lambda: session(three, "carol@example.org"), what="carol's mailbox")
    client.logout()
    assert messages(three, "carol@example.org") == before


def test_deleted_mail_goes_for_good_when_its_time_is_over_and_no_sooner(tmp_path):
    resources = {"people.yaml": people(NAMES), "cluster.yaml": cluster(3, deletedMail={"keep": "8s"})}
    with Dev(tmp_path, resources) as dev:
        client = session(dev, ALICE)
        for number in range(4):
            append(client, "INBOX", number)
        expunge(client, "INBOX", "1:3")
        began = time.monotonic()
        assert len(deleted(dev, ALICE)) == 3
        mail.wait_for(lambda: deleted(dev, ALICE) == [], within=60, what="an empty vault")
        assert time.monotonic() - began >= 7, "kept for 8 s, as told by the clocks of the nodes"
        assert mail.wait_for(lambda: kept(dev, "messages") == 0)
        client.logout()
        assert [len(held) for held in messages(dev, ALICE).values()] == [1]


def test_what_is_over_quota_stays_where_it_is(tmp_path):
    small = people(["alice"]).replace('"spec": {', '"spec": {"quota": {"messages": 2}, ')
    with Dev(tmp_path, {"people.yaml": small}, nodes=1) as dev:
        client = session(dev, ALICE)
        for round in range(2):
            for number in range(2):
                append(client, "INBOX", number)
            if round == 0:
                expunge(client, "INBOX", "1:2")
        client.logout()
        done = quorumail(dev, "mailbox", "undelete", ALICE, "--all")
        assert done.returncode == 1 and "quota" in done.stderr, done.stderr
        assert len(deleted(dev, ALICE)) == 2 and [len(held) for held in messages(dev, ALICE).values()] == [2]


def test_a_mailbox_is_exported_into_files_that_others_read(three, tmp_path):
    client = session(three, BOB)
    client.create("Entw&APw-rfe.alt")
    client.create("Empty")
    for number in range(5):
        append(client, "Entw&APw-rfe.alt", number, r"(\Seen work)" if number == 3 else "")
    client.logout()
    expected = mail.contents(session(three, BOB))
    exported = asked(three, "mailbox", "export", BOB, "--to-maildir", str(tmp_path / "dir"))
    held = {name: messages for name, (_, messages) in expected.items()}
    assert exported["messages"] == sum(map(len, held.values())) and exported["folders"] == len(held)
    root = mailbox.Maildir(tmp_path / "dir" / BOB, create=False)
    folder = root.get_folder("Entwürfe%2Ealt")
    read = {message.get_payload().strip(): message for message in folder}
    assert len(read) == 5 and len(root.get_folder("Empty")) == 0
    assert read["line 3"].get_flags() == "Sa" and read["line 3"].get_date() == 1_500_000_000 + 3 * 86_400
    again = asked(three, "mailbox", "export", BOB, "--to-maildir", str(tmp_path / "dir"))
    assert again["messages"] == again["bytes"] == 0 and again["alreadyThere"] == exported["messages"]

    asked(three, "mailbox", "export", BOB, "--to-mbox", str(tmp_path / "one.mbox"), "--folder", "Entwürfe.alt")
    assert len(mailbox.mbox(tmp_path / "one.mbox", create=False)) == 5
    done = quorumail(three, "mailbox", "export", BOB, "--to-mbox", str(tmp_path / "x"), "--folder", "Nowhere")
    assert done.returncode != 0 and "Nowhere" in done.stderr, done.stderr


def test_an_export_goes_on_when_its_mailnode_is_lost(three, tmp_path):
    """Each message once and whole, though the nodes that read it are killed in turn."""
    client = session(three, ALICE)
    client.create("Many")
    body = "From: a@example.net\r\nSubject: %d\r\n\r\n" + "x" * 76 + "\r\n"
    for number in range(60):
        client.append("Many", None, None, ((body % number) + "line of a large message\r\n" * 40_000).encode())
    client.logout()
    command = [str(BIN / "quorumail"), "--dev", str(three.directory / "data"), "-o", "json", "mailbox", "export", ALICE,
               "--to-maildir", str(tmp_path), "--folder", "Many"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    there = tmp_path / ALICE / ".Many" / "cur"
    mail.wait_for(lambda: there.exists() and len(list(there.iterdir())) > 3, every=0.005, what="the first messages")
    three.kill(0)
    out, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert json.loads(out)["messages"] == 60
    found = [message["subject"] for message in mailbox.Maildir(tmp_path / ALICE, create=False).get_folder("Many")]
    assert sorted(map(int, found)) == list(range(60))
    mail.wait_for(lambda: session(three, ALICE).logout(), what="node 0")
