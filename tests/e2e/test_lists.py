"""Promises of mailing lists, kept by real processes on this machine (`quorumail dev`)."""

import collections
import email
import email.policy
import http.client
import imaplib
import json
import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import time
import urllib.request

import pytest

import mail
import repository
from dev import BIN, Dev, people

PASSWORD = "a password"
# Aliases of one Mailbox: that many members of a list can be had with few mailboxes.
ALIASES = 64


def resource(kind, name, spec):
    return json.dumps({"apiVersion": "quorumail.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})


def mailing_list(name, members, **spec):
    members = [member if isinstance(member, dict) else {"address": member} for member in members]
    return resource("MailingList", name, {"address": f"{name}@example.org", "members": members, **spec})


def lists(*all_lists):
    return "\n---\n".join(all_lists) + "\n"


def command(dev, *words, check=True):
    done = subprocess.run([str(BIN / "quorumail"), "--dev", str(dev.directory / "data"), "list", *words],
                          capture_output=True, timeout=60)
    assert not check or done.returncode == 0, done.stderr.decode()
    return done.stdout.decode() if check else done


def state(dev, name):
    [found] = json.loads(command(dev, "status", f"{name}@example.org", "-o", "json"))
    return found


def owner(name):
    return {"address": f"{name}@example.org", "role": "Owner"}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lists")
    resources = {
        "people.yaml": people(["alice", "bob", "carol", "dora"]),
        "lists.yaml": lists(
            mailing_list("announce", ["alice@example.org", "bob@example.org", owner("carol")],
                         subjectPrefix="[announce]", replyTo="List", maxMessageSize="100Ki", subscription="Confirm"),
            mailing_list("letter", ["alice@example.org", owner("carol")], posting="Owners"),
            mailing_list("open", ["bob@example.org", owner("carol")], posting="Anyone", subscription="Approve"),
            mailing_list("broken", ["nobody@example.org", "alice@example.org"], posting="Anyone"),
            mailing_list("outer", ["inner@example.org", "alice@example.org"], posting="Anyone"),
            mailing_list("inner", ["outer@example.org", "bob@example.org"]),
            mailing_list("kept", ["alice@example.org", "bob@example.org", "nobody@example.org", owner("carol")],
                         subscription="Open", subjectPrefix="[kept]"),
            mailing_list("library", ["alice@example.org", owner("carol")], subscription="Open", archive="Members"),
        ),
    }
    with Dev(directory, resources) as dev:
        yield dev


def post(dev, name, sender="alice", subject="hello", node=0, **kwargs):
    msg = mail.message(f"{sender}@example.org", f"{name}@example.org", subject, **kwargs)
    mail.submit(dev.node(node)["submission"], f"{sender}@example.org", PASSWORD, msg)
    return msg


def found(dev, user, header, value, node=1):
    """Messages of a person whose header has this text."""
    client = mail.login(dev.node(node)["imaps"], f"{user}@example.org", PASSWORD)
    client.select("INBOX", readonly=True)
    _, uids = client.uid("SEARCH", "HEADER", header, f'"{value}"')
    messages = []
    for uid in uids[0].split():
        raw = client.uid("FETCH", uid, "(BODY.PEEK[])")[1][0][1]
        messages.append(email.message_from_bytes(raw, policy=email.policy.default))
    client.logout()
    return messages


def one(dev, user, header, value):
    def look():
        messages = found(dev, user, header, value)
        assert len(messages) <= 1, messages
        return messages
    return mail.wait_for(look, what=f"{value} at {user}")[0]


def answer(dev, user, notice, text, node=2):
    msg = mail.message(f"{user}@example.org", notice["Reply-To"].addresses[0].addr_spec, f"Re: {notice['Subject']}")
    msg.set_content(text + "\n")
    mail.submit(dev.node(node)["submission"], f"{user}@example.org", PASSWORD, msg)


def test_a_members_message_reaches_every_member_once_with_the_fields_of_the_list(three):
    sent = post(three, "announce", subject="hello")
    for user in ["alice", "bob", "carol"]:
        got = one(three, user, "X-Token", sent["X-Token"])
        assert got["Subject"] == "[announce] hello"
        assert got["List-Id"] == "<announce.example.org>"
        assert got["List-Unsubscribe"] == "<mailto:announce-leave@example.org>"
        assert got["List-Post"] == "<mailto:announce@example.org>"
        assert got["Precedence"] == "list" and got["Reply-To"].addresses[0].addr_spec == "announce@example.org"
        assert re.match(r"<announce-bounces\+[a-z2-7]{8}-%s=example.org@example.org>" % user, got["Return-Path"])
        # Who logged in stays the author: their domain signs the copy again.
        assert got["From"].addresses[0].addr_spec == "alice@example.org"
        assert len(got.get_all("DKIM-Signature")) == 2 and "d=example.org" in got["DKIM-Signature"]
    assert found(three, "dora", "X-Token", sent["X-Token"]) == []
    answered = post(three, "announce", sender="bob", subject="Re: [announce] hello", node=1)
    assert one(three, "alice", "X-Token", answered["X-Token"])["Subject"] == "Re: [announce] hello"


def test_an_author_from_elsewhere_is_shown_behind_the_list(three):
    msg = mail.message("someone@elsewhere.example", "open@example.org", "from outside")
    mail.send(three.node(0)["smtp"], msg)
    got = one(three, "bob", "X-Token", msg["X-Token"])
    assert got["From"].addresses[0].addr_spec == "open@example.org"
    assert got["Reply-To"].addresses[0].addr_spec == "someone@elsewhere.example"


def test_what_is_not_for_the_list_is_refused_or_waits(three):
    with pytest.raises(smtplib.SMTPDataError) as refused:
        post(three, "letter", sender="alice")
    assert refused.value.smtp_code == 550 and b"only owners" in refused.value.smtp_error
    # Somebody who only says that they are a member, and somebody who is none.
    forged = mail.message("alice@example.org", "announce@example.org", "forged")
    mail.send(three.node(0)["smtp"], forged)
    stranger = post(three, "announce", sender="dora", subject="let me in")
    large = post(three, "announce", sender="alice", subject="large", size=200_000)
    mail.wait_for(lambda: state(three, "announce")["held"] == 3, what="three messages that wait")
    held = {entry["subject"]: entry for entry in
            json.loads(command(three, "held", "announce@example.org", "-o", "json"))}
    assert "not a member" in held["forged"]["reason"] and "bytes" in held["large"]["reason"]
    assert stranger["X-Token"] in command(three, "show", "announce@example.org", held["let me in"]["id"])
    # By mail, by command, and away.
    notice = mail.wait_for(lambda: [m for m in found(three, "carol", "Subject", "A message to announce@example.org waits")
                                    if held["let me in"]["id"] in m.get_content()], what="a notice")[0]
    assert notice["Auto-Submitted"] == "auto-generated"
    answer(three, "carol", notice, "approve")
    command(three, "approve", "announce@example.org", held["large"]["id"])
    command(three, "refuse", "announce@example.org", held["forged"]["id"])
    one(three, "bob", "X-Token", stranger["X-Token"])
    one(three, "bob", "X-Token", large["X-Token"])
    assert found(three, "bob", "X-Token", forged["X-Token"]) == []
    assert state(three, "announce")["held"] == 0
    again = command(three, "refuse", "announce@example.org", held["forged"]["id"], check=False)
    assert again.returncode == 1 and b"1 of 1 were not there" in again.stderr


def test_programs_and_loops_do_not_pass(three):
    msg = mail.message("someone@elsewhere.example", "open@example.org", "away")
    msg["Auto-Submitted"] = "auto-replied"
    with pytest.raises(smtplib.SMTPDataError):
        mail.send(three.node(0)["smtp"], msg)
    # Two lists that are members of each other.
    sent = post(three, "outer", sender="dora")
    for user in ["alice", "bob"]:
        one(three, user, "X-Token", sent["X-Token"])
    time.sleep(2)
    for user in ["alice", "bob"]:
        assert len(found(three, user, "X-Token", sent["X-Token"])) == 1
    assert json.loads(command(three, "status", "-o", "json"))[0]["expanding"] == 0


def test_people_come_and_go_by_mail(three):
    # Confirmed by the person, then by a moderator.
    post(three, "open-join", sender="dora")
    confirm = one(three, "dora", "Subject", "Confirm that you want to join open@example.org")
    answer(three, "dora", confirm, "yes")
    notice = one(three, "carol", "Subject", "Somebody wants to join open@example.org")
    assert state(three, "open")["asking"] == 1
    answer(three, "carol", notice, "Approve.")
    one(three, "dora", "Subject", "Your membership of open@example.org")
    sent = post(three, "open", subject="to the new one")
    one(three, "dora", "X-Token", sent["X-Token"])
    # Who is named in the resource leaves as well, and stays away while the resource changes.
    post(three, "open-leave", sender="bob")
    one(three, "bob", "Subject", "Your membership of open@example.org")
    members = {m["address"]: m for m in json.loads(command(three, "members", "open@example.org", "-o", "json"))}
    assert members["bob@example.org"]["left"] and members["dora@example.org"]["joined"]
    sent = post(three, "open", subject="without one")
    one(three, "dora", "X-Token", sent["X-Token"])
    assert found(three, "bob", "X-Token", sent["X-Token"]) == []
    # From elsewhere, or in another's name: only who gets the question can answer it.
    msg = mail.message("carol@example.org", "open-leave@example.org", "I am not carol")
    mail.send(three.node(0)["smtp"], msg)
    asked = one(three, "carol", "Subject", "Confirm that you want to leave open@example.org")
    wrong = mail.message("dora@example.org", asked["Reply-To"].addresses[0].addr_spec, "yes")
    with pytest.raises(smtplib.SMTPDataError):
        mail.submit(three.node(0)["submission"], "dora@example.org", PASSWORD, wrong)
    assert state(three, "open")["members"] == 2


def test_a_member_whose_mail_comes_back_is_suspended_and_can_be_resumed(three):
    assert state(three, "broken")["members"] == 2
    for number in range(5):
        sent = post(three, "broken", subject=f"post {number}")
        one(three, "alice", "X-Token", sent["X-Token"])
        mail.wait_for(lambda: bounces(three, "nobody@example.org") == number + 1, what=f"bounce {number + 1}")
    assert state(three, "broken")["bouncing"] == ["nobody@example.org"]
    assert state(three, "broken")["members"] == 1
    command(three, "resume", "broken@example.org", "nobody@example.org")
    assert state(three, "broken") | {"members": 2, "bouncing": []} == state(three, "broken")


def archive(name):
    return f"#lists/{name}@example.org"


def reader(dev, user, name, node=1):
    """A session with the archive of a list selected, or how that was refused."""
    client = mail.login(dev.node(node)["imaps"], f"{user}@example.org", PASSWORD)
    status, answer = client.xatom("SELECT", archive(name))
    if status != "OK":
        client.logout()
        assert answer[0].startswith(b"[NONEXISTENT]"), answer
        return None, answer[0]
    # imaplib would take it for an accident.
    client.state, client.is_readonly = "SELECTED", True
    return client, answer[0]


def archived(dev, user, name, node=1):
    """The tokens in the archive of a list, each as often as it is there; None: there is no such folder."""
    client, _ = reader(dev, user, name, node)
    if client is None:
        return None
    found = mail.tokens(client, archive(name))
    client.logout()
    return found


def shared(client, command="list"):
    return [line for line in getattr(client, command)()[1] if line and b"#lists" in line]


def test_members_read_what_went_to_them_in_the_archive_and_change_nothing(three):
    begun = archived(three, "alice", "library")
    sent = [post(three, "library", subject=f"volume {number}", node=number)["X-Token"] for number in range(3)]
    mail.wait_for(lambda: archived(three, "alice", "library") == begun + collections.Counter(sent), what="three in the archive")
    # What waits for a moderator is there once it went to the members.
    stranger = post(three, "library", sender="bob", subject="from a stranger")
    [held] = mail.wait_for(lambda: json.loads(command(three, "held", "library@example.org", "-o", "json")), what="the held message")
    assert stranger["X-Token"] not in archived(three, "carol", "library")
    command(three, "approve", "library@example.org", held["id"])
    mail.wait_for(lambda: archived(three, "carol", "library")[stranger["X-Token"]] == 1, what="the approved one")

    client, answer = reader(three, "alice", "library", node=0)
    assert answer.startswith(b"[READ-ONLY]"), answer
    assert client.response("PERMANENTFLAGS")[1] == [b"()"]
    assert client.namespace()[1] == [b'(("" "/")) NIL (("#lists/" "/"))']
    assert len(shared(client, "list")) == len(shared(client, "lsub")) == 1
    assert archive("library").encode() in client.list('""', '"#lists/%"')[1][0]
    total = sum(begun.values()) + 4
    assert client.status(archive("library"), "(MESSAGES UNSEEN UIDNEXT)")[1][0].endswith(b"(MESSAGES %d UNSEEN 0 UIDNEXT %d)" % (total, total + 1))
    uids = client.uid("SEARCH", "SUBJECT", '"volume 1"')[1][0].split()
    got = email.message_from_bytes(client.uid("FETCH", uids[-1], "(BODY[])")[1][0][1])
    assert got["X-Token"] == sent[1] and got["List-Id"] == "<library.example.org>"
    folder = archive("library")
    for words in [("STORE", "1", "+FLAGS", "(\\Deleted)"), ("EXPUNGE",), ("MOVE", "1", "INBOX"), ("COPY", "1", folder), ("DELETE", folder),
                  ("RENAME", folder, "mine"), ("RENAME", "Archive", "#lists/mine"), ("CREATE", folder + "/below"), ("CREATE", "#lists/mine")]:
        status, answer = client.xatom(*words)
        assert (status, answer[0][:8]) == ("NO", b"[NOPERM]"), (words, status, answer)
    status, answer = client.append(folder, None, None, b"Subject: mine\r\n\r\n")
    assert (status, answer[0][:8]) == ("NO", b"[NOPERM]"), answer
    assert client.unsubscribe(folder)[0] == "NO" and client.subscribe(folder)[0] == "OK"
    # Into a folder of one's own; where there is none, as from anywhere.
    assert client.uid("COPY", "1:*", "Nowhere")[1][0].startswith(b"[TRYCREATE]")
    assert client.uid("COPY", "1:*", "Drafts")[0] == "OK"
    assert mail.tokens(client, "Drafts") == archived(three, "alice", "library")
    client.logout()

    # New messages are told while a client idles.
    client, _ = reader(three, "carol", "library", node=2)
    tag = client._new_tag()
    client.send(tag + b" IDLE\r\n")
    assert client.readline().startswith(b"+")
    sent = post(three, "library", subject="the next volume")
    lines = []
    while not lines or b"EXISTS" not in lines[-1]:
        lines.append(client.readline())
    client.send(b"DONE\r\n")
    while not lines[-1].startswith(tag):
        lines.append(client.readline())
    assert archived(three, "alice", "library")[sent["X-Token"]] == 1


def test_the_archive_is_nothing_to_those_who_are_no_members(three):
    outsider = mail.login(three.node(0)["imaps"], "bob@example.org", PASSWORD)
    assert shared(outsider, "list") == shared(outsider, "lsub") == []
    for words in [("SELECT", "{}"), ("EXAMINE", "{}"), ("STATUS", "{}", "(MESSAGES)"), ("DELETE", "{}"), ("RENAME", "{}", "mine"), ("SUBSCRIBE", "{}"),
                  ("UNSUBSCRIBE", "{}"), ("CREATE", "{}")]:
        answers = [outsider.xatom(*(word.format(name) for word in words)) for name in [archive("library"), archive("nothing"), archive("announce")]]
        assert answers[0] == answers[1] == answers[2], (words, answers)
        assert answers[0][0] == ("OK" if words[0] == "UNSUBSCRIBE" else "NO")
    appended = [outsider.append(name, None, None, b"Subject: mine\r\n\r\n") for name in [archive("library"), "Nowhere"]]
    assert appended[0] == appended[1]
    missing = [outsider.xatom("SELECT", name) for name in [archive("library"), "Nowhere"]]
    assert missing[0] == missing[1]
    outsider.logout()
    # It comes with the membership, and goes with it.
    assert archived(three, "dora", "library") is None
    post(three, "library-join", sender="dora")
    mail.wait_for(lambda: archived(three, "dora", "library") is not None, what="the archive of a new member")
    client, _ = reader(three, "dora", "library")
    assert len(shared(client)) == 1
    post(three, "library-leave", sender="dora")
    mail.wait_for(lambda: archived(three, "dora", "library", node=2) is None, what="the archive to be gone")
    assert shared(client) == []
    # Where it was open the session ends, as for any folder that is gone.
    with pytest.raises(imaplib.IMAP4.abort):
        client.noop()


def test_the_archive_survives_the_loss_of_a_node(three):
    sent = post(three, "library", subject="before the loss")
    mail.wait_for(lambda: archived(three, "alice", "library")[sent["X-Token"]] == 1, what="the archived message")
    before = archived(three, "alice", "library")
    pid = three.nodes[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    mail.wait_for(lambda: archived(three, "alice", "library", node=1) == before, what="the archive at another node")
    after = post(three, "library", subject="during the loss", node=1)
    mail.wait_for(lambda: archived(three, "carol", "library", node=2) == before + collections.Counter([after["X-Token"]]), what="the next one")
    mail.wait_for(lambda: three.nodes[0]["pid"] != pid and all(node["ready"] for node in three.status()["nodes"]),
                  within=60, every=0.5, what="the node to come back")
    assert archived(three, "alice", "library", node=0)[after["X-Token"]] == 1


def test_lists_are_counted(three):
    def sums():
        found = collections.Counter()
        for node in range(3):
            with urllib.request.urlopen(f"http://{three.node(node)['http']}/metrics", timeout=10) as answer:
                for line in answer.read().decode().splitlines():
                    if line.startswith("quorumail_list_"):
                        name, value = line.rsplit(" ", 1)
                        found[name] += float(value)
        return found
    before = sums()
    post(three, "library", subject="to be counted")
    with pytest.raises(smtplib.SMTPDataError):
        post(three, "letter", sender="alice")
    grown = {'quorumail_list_posts_total{outcome="distributed"}': 1, 'quorumail_list_posts_total{outcome="refused"}': 1,
             "quorumail_list_copies_total": state(three, "library")["members"], "quorumail_list_archived_total": 1}
    mail.wait_for(lambda: all(sums()[name] - before[name] == by for name, by in grown.items()), what=f"{grown} over {before}")


def test_what_a_list_remembers_comes_back_with_a_backup(three, tmp_path):
    post(three, "kept-join", sender="dora")
    post(three, "kept-leave", sender="bob")
    one(three, "bob", "Subject", "Your membership of kept@example.org")
    one(three, "dora", "Subject", "Your membership of kept@example.org")
    sent = post(three, "kept", subject="one bounces")
    one(three, "dora", "X-Token", sent["X-Token"])
    mail.wait_for(lambda: bounces(three, "nobody@example.org", "kept") == 1, what="the bounce")
    stranger = mail.message("someone@elsewhere.example", "kept@example.org", "let me in")
    mail.send(three.node(0)["smtp"], stranger)
    members = command(three, "members", "kept@example.org", "-o", "json")
    [held] = mail.wait_for(lambda: json.loads(command(three, "held", "kept@example.org", "-o", "json")), what="the held message")
    volume = post(three, "library", subject="a volume to keep")
    mail.wait_for(lambda: archived(three, "alice", "library")[volume["X-Token"]] == 1, what="the archived message")

    # Here bob left, dora joined and nobody bounced; other tests have left something in other lists.
    names = [each["address"] for each in json.loads(command(three, "status", "-o", "json"))]
    everybody = [member for name in names for member in json.loads(command(three, "members", name, "-o", "json"))]
    known = sum(member["joined"] or member["left"] or member["bounces"] > 0 for member in everybody)
    assert known >= 3, everybody

    place = repository.Directory(tmp_path / "backups")
    place.backup(three)
    with Dev(tmp_path / "fresh", {}) as fresh:
        restored = place.run("restore", "--all", dev=fresh)
        assert (restored["remembered"], restored["posts"], restored["problems"]) == (known, 1, []), restored
        assert restored["lists"] == len(names)
        assert command(fresh, "members", "kept@example.org", "-o", "json") == members
        [waits] = json.loads(command(fresh, "held", "kept@example.org", "-o", "json"))
        assert {**waits, "arrivedAt": None} == {**held, "arrivedAt": None}
        again = place.run("restore", "--all", dev=fresh)
        assert (again["lists"], again["remembered"], again["posts"], again["problems"]) == (0, 0, 0, []), again
        assert archived(fresh, "alice", "library") == archived(three, "alice", "library")
        assert archived(fresh, "bob", "library") is None
        command(fresh, "approve", "kept@example.org", waits["id"])
        for user in ["alice", "dora"]:
            got = one(fresh, user, "X-Token", stranger["X-Token"])
            assert got["Subject"] == "[kept] let me in"
        assert found(fresh, "bob", "X-Token", stranger["X-Token"]) == []
        # An address that was in mail of the lost cluster is still the list's.
        back = [message["Return-Path"] for message in found(three, "dora", "X-Token", sent["X-Token"])]
        now = [message["Return-Path"] for message in found(fresh, "dora", "X-Token", stranger["X-Token"])]
        assert back == now and "kept-bounces" in back[0], (back, now)


def issue(dev, host):
    """Gives the nodes a certificate that an authority issued, as people have one; they take it up while they run."""
    new = dev.directory / "issued"
    new.mkdir()

    def openssl(*words):
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=new)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=an authority")
    openssl("req", *key, "-keyout", "tls.key", "-out", "tls.csr", "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}")
    openssl("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-copy_extensions", "copy", "-out", "tls.crt")
    for file in ["tls.key", "tls.crt"]:
        os.replace(new / file, dev.directory / "data" / "pki" / "public" / file)
    context = ssl.create_default_context(cafile=new / "ca.crt")

    def is_taken_up():
        for node in range(3):
            address, port = dev.node(node)["https"].rsplit(":", 1)
            with socket.create_connection((address, int(port)), timeout=5) as plain, \
                    context.wrap_socket(plain, server_hostname=host):
                pass
        return True
    mail.wait_for(is_taken_up, what="the certificate")
    return context


class To(http.client.HTTPSConnection):
    """HTTPS to a host by its name, wherever it is."""

    def __init__(self, host, address, context):
        super().__init__(host, timeout=30, context=context)
        self.address, self.verified = address, context

    def connect(self):
        host, port = self.address.rsplit(":", 1)
        self.sock = self.verified.wrap_socket(socket.create_connection((host, int(port)), self.timeout), server_hostname=self.host)


def test_people_leave_with_one_click_where_the_certificate_can_be_trusted(tmp_path):
    host = "mail.example.org"
    cluster = resource("MailCluster", "dev", {"hostname": host})
    some = mailing_list("news", ["alice@example.org", "bob@example.org", owner("carol")], posting="Anyone")
    with Dev(tmp_path, {"cluster.json": cluster, "people.yaml": people(["alice", "bob", "carol"]), "lists.yaml": lists(some)}) as dev:
        def copy(user, subject):
            return one(dev, user, "X-Token", post(dev, "news", subject=subject)["X-Token"])
        # Nobody can be sure of a certificate that signs itself: by mail alone.
        alone = copy("bob", "a certificate of our own")
        assert alone["List-Unsubscribe"] == "<mailto:news-leave@example.org>" and alone["List-Unsubscribe-Post"] is None

        context = issue(dev, host)
        got = copy("bob", "an issued certificate")
        assert got["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        link, by_mail = [part.strip().strip("<>") for part in got["List-Unsubscribe"].split(",")]
        assert by_mail == "mailto:news-leave@example.org" and link.startswith(f"https://{host}/")
        # RFC 8058 4: the signature must cover both.
        signed = "".join(re.search(r"\bh=([^;]*)", got["DKIM-Signature"]).group(1).split()).lower().split(":")
        assert {"list-unsubscribe", "list-unsubscribe-post"} <= set(signed), signed

        def ask(method, path, node=0, **kwargs):
            client = To(host, dev.node(node)["https"], context)
            client.request(method, path, **kwargs)
            answer = client.getresponse()
            text = answer.read().decode()
            client.close()
            return answer.status, text
        path = link.removeprefix(f"https://{host}")
        # Filters look at links; a wrong link does nothing, nor does the link of another.
        assert ask("GET", path)[0] == 200 and "<button>" in ask("GET", path)[1]
        assert ask("POST", path[:-1] + ("a" if path[-1] != "a" else "b"))[0] == 404
        assert ask("POST", path.replace("bob@", "alice@"))[0] == 404
        assert state(dev, "news")["members"] == 3
        form = {"body": "List-Unsubscribe=One-Click", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}
        assert ask("POST", path, node=1, **form)[0] == 200
        assert state(dev, "news")["members"] == 2
        assert ask("POST", path, node=2, **form)[0] == 200
        sent = post(dev, "news", subject="without bob")
        one(dev, "alice", "X-Token", sent["X-Token"])
        assert found(dev, "bob", "X-Token", sent["X-Token"]) == []


def bounces(dev, address, name="broken"):
    members = json.loads(command(dev, "members", f"{name}@example.org", "-o", "json"))
    return next(member["bounces"] for member in members if member["address"] == address)


def crowd(count, **spec):
    """Resources: a list with `count` members, who are aliases of few mailboxes; and the mailboxes."""
    names = [f"m{number:05}@example.org" for number in range(count)]
    boxes = [names[start:start + ALIASES] for start in range(0, count, ALIASES)]
    docs = [resource("Mailbox", f"box{number}", {
        "address": f"box{number}@example.org", "aliases": aliases,
        "passwordSecretRef": {"name": "crowd", "key": "all"}}) for number, aliases in enumerate(boxes)]
    docs.append(json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "crowd"},
                            "stringData": {"all": PASSWORD}}))
    docs.append(mailing_list("crowd", names, posting="Anyone", **spec))
    # With one partition, its leader is who expands.
    docs.append(resource("MailCluster", "one", {"partitions": 1}))
    return len(boxes), names, "\n---\n".join(docs) + "\n"


def copies(dev, boxes, node):
    """How often each member has each message: by token and member, who stands in the Return-Path."""
    counted = collections.Counter()
    for number in range(boxes):
        client = mail.login(dev.node(node)["imaps"], f"box{number}@example.org", PASSWORD)
        client.select("INBOX", readonly=True)
        _, data = client.uid("FETCH", "1:*", "(BODY.PEEK[HEADER.FIELDS (X-Token Return-Path)])")
        for part in data:
            if isinstance(part, tuple):
                header = email.message_from_bytes(part[1])
                member = re.search(r"\+[a-z2-7]{8}-(.*)=example.org@", header["Return-Path"]).group(1)
                counted[header["X-Token"], member] += 1
        client.logout()
    return counted


def leader(dev):
    """The node that leads partition 1."""
    return next(group["leader"] for group in dev.status()["groups"] if group["group"] == 1)


def waiting(dev):
    done = subprocess.run([str(BIN / "quorumail"), "--dev", str(dev.directory / "data"), "queue", "list", "-o", "json",
                           "--limit", "1000"], capture_output=True, check=True, timeout=60)
    return len(json.loads(done.stdout))


def resumed(directory):
    """Expansions that went on in the middle of a list, in the logs of all nodes."""
    logs = [path.read_text(errors="replace") for path in (directory / "data").rglob("mailnode.log")]
    return sum(re.search(r"resumed.{0,3}true", line) is not None
               for log in logs for line in log.splitlines() if "a post was expanded" in line)


def test_an_expansion_survives_the_loss_of_its_leader_and_serves_each_of_2000_once(tmp_path):
    boxes, names, docs = crowd(2000, archive="Members")
    sent, rounds = [], 0
    with Dev(tmp_path, {"people.yaml": people(["alice"]), "crowd.yaml": docs}) as dev:
        assert state(dev, "crowd")["members"] == 2000
        # Until one was hit in the middle: an expansion takes a fraction of a second.
        while resumed(tmp_path) == 0 and rounds < 12:
            leads = mail.wait_for(lambda: leader(dev) is not None and [leader(dev)], what="a leader")[0]
            other = (leads + 1) % 3
            pid = dev.nodes[leads]["pid"]
            sent.append(post(dev, "crowd", subject=f"post {rounds}", node=other)["X-Token"])
            time.sleep(0.02 * rounds)
            os.kill(pid, signal.SIGKILL)
            rounds += 1
            mail.wait_for(lambda: dev.nodes[leads]["pid"] != pid and all(node["ready"] for node in dev.status()["nodes"]),
                          within=60, every=0.5, what="the node to come back")
            mail.wait_for(lambda: state(dev, "crowd")["expanding"] == 0 and waiting(dev) == 0, within=120, every=0.5,
                          what="the end of the queue")
        assert resumed(tmp_path) > 0, "no expansion was hit in the middle"
        counted = copies(dev, boxes, other)
        wanted = {(token, name.split("@")[0]) for token in sent for name in names}
        assert {key: count for key, count in counted.items() if count != 1} == {}
        assert set(counted) == wanted, f"{len(wanted - set(counted))} of {len(wanted)} copies are missing"
        # One of the members, who is named by an alias.
        assert archived(dev, "box0", "crowd", other) == collections.Counter(sent)
        print(f"{rounds} leaders lost, {resumed(tmp_path)} expansions resumed in the middle, {len(wanted)} copies, each once")


def test_a_list_of_10000_members_is_expanded(tmp_path):
    boxes, names, docs = crowd(10_000)
    with Dev(tmp_path, {"people.yaml": people(["alice"]), "crowd.yaml": docs}) as dev:
        assert state(dev, "crowd")["members"] == 10_000
        begun = time.monotonic()
        token = post(dev, "crowd")["X-Token"]
        taken = time.monotonic() - begun
        mail.wait_for(lambda: state(dev, "crowd")["expanding"] == 0, within=120, what="the end of the expansion")
        expanded = time.monotonic() - begun
        mail.wait_for(lambda: waiting(dev) == 0, within=600, every=1, what="the end of the queue")
        delivered = time.monotonic() - begun
        counted = copies(dev, boxes, 1)
        assert counted == {(token, name.split("@")[0]): 1 for name in names}
        print(f"10,000 members: taken after {taken:.2f} s, expanded after {expanded:.1f} s, delivered after {delivered:.1f} s")
