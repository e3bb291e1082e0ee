"""Mail as a client sees it: smtplib and imaplib, and a ledger of what was acknowledged."""

import email.message
import email.utils
import imaplib
import random
import re
import smtplib
import socket
import ssl
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field


def no_verification():
    """The certificates of the tests are self-signed; what is tested here is the mail."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def message(sender, recipient, subject, size=2000, attachment=None, token=None):
    """A message whose header X-Token names it, with a text of about `size` bytes."""
    msg = email.message.EmailMessage()
    msg["From"] = sender
    msg["To"] = recipient
    msg["Subject"] = subject
    msg["Date"] = email.utils.formatdate()
    msg["Message-ID"] = email.utils.make_msgid(domain="test.example")
    msg["X-Token"] = token or uuid.uuid4().hex
    line = "All replicas hold the same line, and none of them forgets it.\r\n"
    msg.set_content(line * max(1, size // len(line)))
    if attachment is not None:
        msg.add_attachment(attachment, maintype="application", subtype="octet-stream", filename="data.bin")
        # Made anew at every rendering otherwise: what is compared must be what was sent.
        msg.set_boundary(f"=={msg['X-Token']}==")
    return msg


def split(address):
    host, port = address.rsplit(":", 1)
    return host, int(port)


def send(address, msg, sender=None, recipients=None, timeout=30):
    """Hands a message to an MX; raises when it is not acknowledged."""
    host, port = split(address)
    with smtplib.SMTP(host, port, timeout=timeout, local_hostname="client.test.example") as client:
        client.send_message(msg, from_addr=sender or msg["From"], to_addrs=recipients or [msg["To"]])


def submit(address, user, password, msg, sender=None, recipients=None, timeout=30):
    """Submits a message with STARTTLS and authentication."""
    host, port = split(address)
    with smtplib.SMTP(host, port, timeout=timeout, local_hostname="client.test.example") as client:
        client.starttls(context=no_verification())
        client.login(user, password)
        client.send_message(msg, from_addr=sender or msg["From"], to_addrs=recipients or [msg["To"]])


def login(address, user, password, timeout=30):
    """A logged-in IMAP session over TLS (the port is the one of implicit TLS)."""
    host, port = split(address)
    client = imaplib.IMAP4_SSL(host, port, ssl_context=no_verification(), timeout=timeout)
    # imaplib sends an APPEND in small pieces; without this each waits for the acknowledgement of the one before.
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.login(user, password)
    return client


def tokens(client, folder="INBOX"):
    """The X-Token of every message in a folder, each as often as it is there."""
    status, count = client.select(folder, readonly=True)
    assert status == "OK", (status, count)
    found = Counter()
    if int(count[0]) == 0:
        return found
    status, data = client.uid("FETCH", "1:*", "(BODY.PEEK[HEADER.FIELDS (X-Token)])")
    assert status == "OK", (status, data)
    for part in data:
        if isinstance(part, tuple):
            header = part[1].decode().strip()
            if header:
                found[header.split(":", 1)[1].strip()] += 1
    return found


def folders(client):
    """Names of all folders, and which of them are subscribed."""
    def names(answer):
        return [re.search(rb'\) (?:"."|NIL) (.+)$', line).group(1).strip(b'"').decode() for line in answer[1] if line]

    return sorted(names(client.list())), sorted(names(client.lsub()))


def contents(client, under=None):
    """Everything that a client sees of a mailbox: by folder, UIDVALIDITY and, by UID, flags, date and bytes. Logs out."""
    found = {}
    for name in folders(client)[0]:
        if under is not None and not name.startswith(f"{under}/"):
            continue
        assert client.select(f'"{name}"', readonly=True)[0] == "OK", name
        validity = client.response("UIDVALIDITY")[1][0]
        messages = {}
        _, data = client.uid("FETCH", "1:*", "(UID FLAGS INTERNALDATE BODY.PEEK[])")
        # The flags may come before or behind the literal; both parts are one line.
        parts = [part for part in data if part]
        for position, part in enumerate(parts):
            if not isinstance(part, tuple):
                continue
            after = parts[position + 1] if position + 1 < len(parts) and isinstance(parts[position + 1], bytes) else b""
            line = part[0] + after
            flags = frozenset(flag for flag in re.search(rb"FLAGS \(([^)]*)\)", line).group(1).split() if flag != b"\\Recent")
            date = re.search(rb'INTERNALDATE "([^"]+)"', line).group(1)
            messages[int(re.search(rb"UID (\d+)", line).group(1))] = (flags, date, part[1])
        key = name if under is None else name[len(under) + 1:]
        found[key] = (validity, messages)
    client.logout()
    return found


def wait_for(condition, within=30, every=0.1, what="the condition"):
    """Waits until `condition()` is true and returns its value."""
    end = time.monotonic() + within
    last = None
    while True:
        try:
            value = condition()
            if value:
                return value
        except (OSError, AssertionError, imaplib.IMAP4.error, smtplib.SMTPException) as error:
            last = error
        if time.monotonic() > end:
            raise AssertionError(f"{what} was not reached within {within} s (last error: {last!r})")
        time.sleep(every)


@dataclass
class Ledger:
    """What every sender was told. Acknowledged messages must be there; refused ones must not; the outcome of those
    whose connection broke after the data is unknown. `most_refusals`: the most in a row, of all senders together."""

    acknowledged: dict = field(default_factory=dict)
    unknown: dict = field(default_factory=dict)
    refused: dict = field(default_factory=dict)
    times: list = field(default_factory=list)
    refusals: int = 0
    most_refusals: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind, token, recipient):
        with self.lock:
            getattr(self, kind)[token] = recipient
            self.refusals = self.refusals + 1 if kind == "refused" else 0
            self.most_refusals = max(self.most_refusals, self.refusals)
            if kind == "acknowledged":
                self.times.append(time.monotonic())

    def longest_pause(self):
        """Seconds of the longest time in which nothing was acknowledged."""
        times = sorted(self.times)
        return max((b - a for a, b in zip(times, times[1:])), default=0.0)


def keep_sending(addresses, recipients, ledger, stop, seed, size=4000):
    """Sends message after message to random nodes and recipients until `stop` is set. One connection a message: what
    broke is then never in doubt."""
    choose = random.Random(seed)
    while not stop.is_set():
        recipient = choose.choice(recipients)
        token = f"{seed}-{uuid.uuid4().hex}"
        msg = message("sender@elsewhere.example", recipient, "load", size=size, token=token)
        try:
            send(choose.choice(addresses), msg, timeout=15)
        except (smtplib.SMTPServerDisconnected, TimeoutError, ConnectionResetError, BrokenPipeError):
            ledger.note("unknown", token, recipient)
        except smtplib.SMTPDataError as error:
            # 451 after the data: the majority was not reached in time, the outcome is not known.
            ledger.note("unknown" if error.smtp_code == 451 else "refused", token, recipient)
        except (smtplib.SMTPException, OSError) as error:
            # A server that ends answers QUIT with 421, which smtplib raises over what went wrong before, if anything did.
            before = error.__context__ if type(error) is smtplib.SMTPResponseException else error
            doubt = isinstance(before, smtplib.SMTPDataError) and before.smtp_code == 451
            ledger.note("acknowledged" if before is None else "unknown" if doubt else "refused", token, recipient)
            time.sleep(0.02)
        else:
            ledger.note("acknowledged", token, recipient)


def account_for(ledger, open_mailbox, recipients):
    """Compares the ledger with what the mailboxes hold: (lost, twice, phantoms)."""
    held = {}
    for recipient in recipients:
        client = open_mailbox(recipient)
        held[recipient] = tokens(client)
        client.logout()
    lost = [t for t, r in ledger.acknowledged.items() if held[r][t] == 0]
    twice = [t for r in recipients for t, n in held[r].items() if n > 1]
    known = set(ledger.acknowledged) | set(ledger.unknown)
    phantoms = [t for r in recipients for t in held[r] if t not in known]
    return lost, twice, phantoms
