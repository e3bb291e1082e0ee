"""Mail to and from other systems, with servers that others wrote: aiosmtpd as a sink, Postfix both ways."""

import json
import pwd
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP

import mail
from dev import Dev, people

PASSWORD = "a password"


class Sink:
    """Keeps what it is given; refuses what `answer` says."""

    def __init__(self, answers=()):
        self.answers = list(answers)
        self.messages = []

    async def handle_DATA(self, server, session, envelope):
        answer = self.answers.pop(0) if self.answers else "250 2.0.0 kept"
        if answer.startswith("250"):
            self.messages.append(envelope)
        return answer


def sink(answers=()):
    handler = Sink(answers)
    controller = Controller(handler, hostname="127.0.0.1", port=0)
    # aiosmtpd's Controller connects to its own port to see that it is up: it must know the real one.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        controller.port = probe.getsockname()[1]
    controller.start()
    return handler, controller


def with_relay(port):
    """A MailCluster whose outgoing mail goes to a relay on this machine, retried quickly."""
    return json.dumps({"apiVersion": "quorumail.io/v1alpha1", "kind": "MailCluster", "metadata": {"name": "dev"},
                       "spec": {"nodes": 3, "smtp": {"relay": {"host": "127.0.0.1", "port": port},
                                                     "retry": {"initial": "1s", "max": "2s", "giveUpAfter": "20s"}}}})


def submit(dev, msg, recipient, node=0):
    mail.submit(dev.node(node)["submission"], "alice@example.org", PASSWORD, msg, recipients=[recipient])


@pytest.fixture()
def relay(tmp_path):
    handler, controller = sink(["451 4.3.0 later", "250 2.0.0 kept", "550 5.1.1 no such user"])
    try:
        with Dev(tmp_path, {"people.yaml": people(["alice"]), "cluster.yaml": with_relay(controller.port)}) as dev:
            yield dev, handler
    finally:
        controller.stop()


def test_remote_mail_is_retried_delivered_once_and_reported_when_it_fails(relay):
    dev, handler = relay
    msg = mail.message("alice@example.org", "friend@remote.example", "hello")
    submit(dev, msg, "friend@remote.example")
    mail.wait_for(lambda: len(handler.messages) == 1, within=30, what="the retried delivery")
    assert handler.messages[0].rcpt_tos == ["friend@remote.example"]
    assert msg["X-Token"].encode() in handler.messages[0].content
    refused = mail.message("alice@example.org", "nobody@remote.example", "hello")
    submit(dev, refused, "nobody@remote.example")
    client = mail.login(dev.node(1)["imaps"], "alice@example.org", PASSWORD)

    def report():
        client.select("INBOX", readonly=True)
        _, found = client.search(None, "TEXT", '"no such user"')
        return found[0]

    number = mail.wait_for(report, within=30, what="the non-delivery report")
    _, data = client.fetch(number.split()[0], "(BODY.PEEK[])")
    text = data[0][1].decode()
    assert "multipart/report" in text and "nobody@remote.example" in text and "5.1.1" in text, text
    assert len(handler.messages) == 1


def test_a_queue_owned_by_a_lost_node_goes_on_elsewhere(tmp_path):
    handler, controller = sink(["451 4.3.0 later"] * 6)
    try:
        with Dev(tmp_path, {"people.yaml": people(["alice"]), "cluster.yaml": with_relay(controller.port)}, restart=False) as dev:
            msg = mail.message("alice@example.org", "friend@remote.example", "goes on")
            submit(dev, msg, "friend@remote.example", node=0)
            dev.kill(0)
            mail.wait_for(lambda: len(handler.messages) >= 1, within=60, what="delivery by another node")
            assert msg["X-Token"].encode() in handler.messages[0].content
    finally:
        controller.stop()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Postfix:
    """A Postfix of the test's own: own folders and port; sends example.org to our MX and keeps remote.example."""

    def __init__(self, directory, port, our_mx):
        self.base = Path(directory)
        self.etc, self.spool, self.data = self.base / "etc", self.base / "spool", self.base / "data"
        for folder in [self.etc, self.spool, self.data, self.base / "mail"]:
            folder.mkdir(parents=True)
        shutil.chown(self.data, "postfix", "postfix")
        shutil.chown(self.base / "mail", "postfix", "postfix")
        for folder in [self.base, *self.base.parents]:
            if folder != Path("/"):
                folder.chmod(folder.stat().st_mode | 0o011)
        self.port = port
        self.log = self.base / "log"
        uid = pwd.getpwnam("postfix").pw_uid
        (self.etc / "main.cf").write_text(
            "compatibility_level = 3.6\n"
            f"queue_directory = {self.spool}\ndata_directory = {self.data}\nmaillog_file = {self.log}\n"
            f"maillog_file_prefixes = {self.base}\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n"
            "myhostname = postfix.remote.example\nmydestination =\nmynetworks = 127.0.0.0/8\n"
            f"virtual_mailbox_domains = remote.example\nvirtual_mailbox_base = {self.base}/mail\n"
            f"virtual_mailbox_maps = inline:{{{{friend@remote.example = friend/}}}}\n"
            f"virtual_minimum_uid = 1\nvirtual_uid_maps = static:{uid}\nvirtual_gid_maps = static:{uid}\n"
            f"transport_maps = inline:{{{{example.org = smtp:[{our_mx[0]}]:{our_mx[1]}}}}}\n"
            "smtp_tls_security_level = may\nminimal_backoff_time = 2s\nmaximal_backoff_time = 4s\nqueue_run_delay = 2s\n"
        )
        master = Path("/etc/postfix/master.cf")
        lines = (master if master.exists() else Path("/usr/share/postfix/master.cf.dist")).read_text().splitlines()
        lines = [line.replace("smtp      inet", f"127.0.0.1:{self.port} inet", 1) if line.startswith("smtp      inet") else line
                 for line in lines]
        lines = [" ".join(f if i != 4 else "n" for i, f in enumerate(line.split())) if line and line[0] not in "# \t" else line
                 for line in lines]
        (self.etc / "master.cf").write_text("\n".join(lines) + "\n")

    def __enter__(self):
        subprocess.run(["postfix", "-c", str(self.etc), "start"], check=True, capture_output=True, timeout=60)
        mail.wait_for(lambda: mail.smtplib.SMTP("127.0.0.1", self.port, timeout=5).quit(), within=30, what="Postfix")
        return self

    def __exit__(self, *_):
        subprocess.run(["postfix", "-c", str(self.etc), "stop"], check=True, capture_output=True, timeout=60)

    def received(self):
        folder = self.base / "mail" / "friend" / "new"
        return [f.read_bytes() for f in folder.iterdir()] if folder.exists() else []


def test_postfix_takes_our_mail_and_we_take_its(tmp_path_factory):
    directory = tmp_path_factory.mktemp("postfix")
    port = free_port()
    with Dev(directory / "dev", {"people.yaml": people(["alice"]), "cluster.yaml": with_relay(port)}) as dev:
        with Postfix(directory / "postfix", port, mail.split(dev.node(2)["smtp"])) as postfix:
            incoming = mail.message("friend@remote.example", "alice@example.org", "from Postfix")
            mail.send(f"127.0.0.1:{port}", incoming)
            client = mail.login(dev.node(0)["imaps"], "alice@example.org", PASSWORD)
            mail.wait_for(lambda: mail.tokens(client)[incoming["X-Token"]] == 1, what="the message from Postfix")
            outgoing = mail.message("alice@example.org", "friend@remote.example", "to Postfix")
            submit(dev, outgoing, "friend@remote.example")
            mail.wait_for(lambda: any(outgoing["X-Token"].encode() in m for m in postfix.received()), what="the message in Postfix")
            assert len(postfix.received()) == 1
