"""Whose mail is: signatures verified by dkimpy, checks against a DNS server of this test."""

import email
import http.client
import json
import smtplib
import socket
import ssl
import struct
import subprocess
import threading
from email.message import EmailMessage
from xml.etree import ElementTree

import dkim
import pytest

import mail
from dev import BIN, Dev, people
from test_remote import sink, with_relay

PASSWORD = "a password"
TXT, ANY_CLASS = 16, 1


class Dns:
    """Answers TXT queries from `texts`; all other names do not exist."""

    def __init__(self, texts):
        self.texts = {name.lower(): text for name, text in texts.items()}
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                query, client = self.socket.recvfrom(4096)
            except OSError:
                return
            self.socket.sendto(self._answer(query), client)

    def _answer(self, query):
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1:at + 1 + query[at]].decode().lower())
            at += 1 + query[at]
        kind, = struct.unpack("!H", query[at + 1:at + 3])
        question = query[12:at + 5]
        text = self.texts.get(".".join(labels))
        answer = b""
        if text is not None and kind == TXT:
            parts = [text.encode()[i:i + 255] for i in range(0, len(text), 255)]
            data = b"".join(bytes([len(part)]) + part for part in parts)
            answer = b"\xc0\x0c" + struct.pack("!HHIH", TXT, ANY_CLASS, 60, len(data)) + data
        flags = 0x8180 if text is not None else 0x8183
        return query[:2] + struct.pack("!HHHHH", flags, 1, 1 if answer else 0, 0, 0) + question + answer

    def close(self):
        self.socket.close()


def records(dev):
    """TXT records that `quorumail domain dns` asks for, by name."""
    command = [str(BIN / "quorumail"), "--dev", str(dev.directory / "data"), "domain", "dns", "-o", "json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    return {row["name"]: row["value"] for row in rows if row["type"] == "TXT"}


def verify_all(message, texts):
    """What dkimpy says of every signature of a message."""
    def lookup(name, timeout=5):
        return texts.get(name.decode().rstrip(".").lower(), "").encode() or None
    def verify(index):
        try:
            return dkim.DKIM(message).verify(idx=index, dnsfunc=lookup)
        except dkim.ValidationError:
            return False
    return [verify(index) for index in range(message.lower().count(b"dkim-signature:"))]


def submit(dev, subject="hello", body="Text \n\n  two  spaces\n \n\n", node=0):
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "alice@example.org", "x@elsewhere.test", subject
    message.set_content(body)
    mail.submit(dev.node(node)["submission"], "alice@example.org", PASSWORD, message,
                recipients=["x@elsewhere.test"])


def test_submitted_mail_is_signed_so_that_another_implementation_verifies_it(tmp_path):
    handler, controller = sink(["451 4.3.0 later"])
    attempts = []
    handle = handler.handle_DATA

    async def remember(server, session, envelope):
        attempts.append(envelope.content)
        return await handle(server, session, envelope)
    handler.handle_DATA = remember
    resources = {"people.yaml": people(["alice"]), "cluster.yaml": with_relay(controller.port)}
    try:
        with Dev(tmp_path, resources) as dev:
            texts = records(dev)
            for node in range(3):
                submit(dev, subject=f"from node {node}", node=node)
            mail.wait_for(lambda: len(handler.messages) == 3, what="three messages at the relay")
            for envelope in handler.messages:
                verified = verify_all(envelope.content, texts)
                assert verified == [True, True], envelope.content
                changed = envelope.content.replace(b"two", b"three")
                assert True not in verify_all(changed, texts)
            # The attempt that was put off sent the same bytes as the one that was taken.
            assert len(attempts) == 4 and len(set(attempts)) == 3
        # With the same directory the keys are the same.
        with Dev(tmp_path, resources) as dev:
            assert records(dev) == texts
            submit(dev, subject="again")
            mail.wait_for(lambda: len(handler.messages) == 4, what="another message at the relay")
            assert verify_all(handler.messages[-1].content, texts) == [True, True]
            log = (tmp_path / "dev.log").read_text(errors="replace")
            log += "".join(path.read_text(errors="replace") for path in (tmp_path / "data").rglob("mailnode.log"))
            secrets = [key["privateKey"] for key in json.loads(
                (tmp_path / "data" / "dkim.json").read_text())["example.org"]]
            assert len(secrets) == 2 and not any(secret[40:80] in log for secret in secrets)
            assert (tmp_path / "data" / "dkim.json").stat().st_mode & 0o777 == 0o600
    finally:
        controller.stop()


@pytest.fixture()
def dns():
    server = Dns({
        "good.test": "v=spf1 ip4:127.0.0.0/8 -all",
        "_dmarc.good.test": "v=DMARC1; p=reject",
        "strict.test": "v=spf1 -all",
        "_dmarc.strict.test": "v=DMARC1; p=reject",
    })
    yield server
    server.close()


def deliver(dev, domain, extra=""):
    host, port = dev.node(0)["smtp"].rsplit(":", 1)
    with smtplib.SMTP(host, int(port), timeout=30) as client:
        client.sendmail(f"a@{domain}", ["alice@example.org"],
                        f"{extra}From: a@{domain}\r\nSubject: from {domain}\r\n\r\nText\r\n")


def test_incoming_mail_tells_whose_it_is_and_forged_mail_is_refused(tmp_path, dns):
    cluster = {"apiVersion": "quorumail.io/v1alpha1", "kind": "MailCluster", "metadata": {"name": "dev"},
               "spec": {"smtp": {"dmarc": "Enforce"}}}
    resources = {"people.yaml": people(["alice"]), "cluster.yaml": json.dumps(cluster)}
    with Dev(tmp_path, resources, extra=["--dns-server", dns.address]) as dev:
        deliver(dev, "good.test", "Authentication-Results: localhost; dmarc=pass header.from=bank.test\r\n")
        with pytest.raises(smtplib.SMTPDataError) as refused:
            deliver(dev, "strict.test")
        assert refused.value.smtp_code == 550 and b"5.7.26" in refused.value.smtp_error
        client = mail.login(dev.node(1)["imaps"], "alice@example.org", PASSWORD)
        assert client.select("INBOX", readonly=True)[1] == [b"1"]
        message = email.message_from_bytes(client.fetch("1", "(BODY.PEEK[])")[1][0][1])
        client.logout()
        results = message.get_all("Authentication-Results")
        assert len(results) == 1 and "bank.test" not in results[0]
        assert "spf=pass smtp.mailfrom=good.test" in " ".join(results[0].split())
        assert "dmarc=pass (p=reject) header.from=good.test" in " ".join(results[0].split())


def ask(dev, port, host, path, node=0):
    """Status and text of what a node answers at one of its two public ports."""
    address, number = dev.node(node)[port].rsplit(":", 1)
    if port == "https":
        client = http.client.HTTPSConnection(address, int(number), timeout=30,
                                             context=ssl._create_unverified_context())
    else:
        client = http.client.HTTPConnection(address, int(number), timeout=30)
    try:
        client.request("GET", path, headers={"Host": host})
        answer = client.getresponse()
        return answer.status, answer.read().decode()
    finally:
        client.close()


def test_the_sts_policy_and_settings_for_mail_programs_are_served(tmp_path):
    policy_path, settings_path = "/.well-known/mta-sts.txt", "/mail/config-v1.1.xml"
    resources = people(["alice"]).replace("domain: example.org", "domain: example.org, mtaSts: {mode: Testing}")
    assert "mtaSts" in resources
    with Dev(tmp_path, {"people.yaml": resources}) as dev:
        for port in ("http", "https"):
            for node in range(3):
                status, text = ask(dev, port, "mta-sts.Example.ORG:443", policy_path, node)
                assert status == 200 and text.startswith("version: STSv1\r\nmode: testing\r\nmx: "), text
            status, text = ask(dev, port, "autoconfig.example.org", settings_path)
            servers = ElementTree.fromstring(text).findall("emailProvider/*[hostname]")
            ports = [(server.get("type"), server.findtext("port")) for server in servers]
            assert ports == [("imap", "993"), ("imap", "143"), ("smtp", "465"), ("smtp", "587")]
            # Nobody learns who has mail here, only for which domains.
            asked = ask(dev, port, "example.org", "/.well-known/autoconfig" + settings_path + "?emailaddress=nobody@x")
            assert asked == (200, text)
            for host, path in [
                ("mta-sts.elsewhere.test", policy_path), ("example.org", policy_path), ("", policy_path),
                ("mta-sts.", policy_path), ("\u00e9".encode().decode("latin-1"), policy_path),
                ("autoconfig.elsewhere.test", settings_path), ("autoconfig.", settings_path), ("a" * 5000, settings_path),
            ]:
                assert ask(dev, port, host, path)[0] == 404, (host, path)
        # What a mailnode's own port tells of it is not for the public.
        for path in ("/metrics", "/readyz"):
            assert ask(dev, "https", "mta-sts.example.org", path)[0] == 404
        # A changed mode is served within seconds, and a policy that is given up is gone.
        for mode, status in [("{mode: Enforce}", 200), (None, 404)]:
            text = people(["alice"])
            if mode:
                text = text.replace("domain: example.org", f"domain: example.org, mtaSts: {mode}")
            dev.write("people.yaml", text)
            mail.wait_for(lambda: ask(dev, "https", "mta-sts.example.org", policy_path)[0] == status and (
                status == 404 or "mode: enforce" in ask(dev, "https", "mta-sts.example.org", policy_path)[1]),
                what=f"mtaSts {mode}")
