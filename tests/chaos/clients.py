"""The clients: senders over SMTP, sessions over IMAP, on all nodes, each operation written to the history.

Three kinds of worker. A Sender hands messages to random nodes; what it does not know the outcome of it sends again now and
then, as mail servers do. A Filer is the only one that moves, copies and expunges in its mailbox, so that what must be
where is never in doubt; it appends, lists, reads and idles as well. Flaggers of one mailbox change and read the flags of the
same few messages at the same time, each through another node."""

import contextlib
import hashlib
import random
import re
import smtplib
import threading
import time

import mail
from wire import Broken, Imap, Refused, fetched, selected

FOLDERS = ["INBOX", "Work", "Archive", "Copies", "Flags"]
FLAGS = ["\\Flagged", "$one", "$two"]
TARGETS = 4
# Messages in a folder from which on they are removed rather than added: a run may be long, a reading should not.
FULL = 150
# Longer than what a server takes to give up: 25 s for DATA, 20 s for IMAP.
TIMEOUT = 40
# For a whole folder with all bodies.
END_TIMEOUT = 180
MARK = b"X-Token: "


def domain(name):
    return f"{name}@example.org"


def message(token, recipient, size, choose):
    """A message that names itself in its first line; some lines begin with dots, which SMTP must not eat."""
    head = f"X-Token: {token}\r\nFrom: sender@elsewhere.example\r\nTo: {recipient}\r\nSubject: {token}\r\n" \
           f"Message-ID: <{token}@elsewhere.example>\r\nMIME-Version: 1.0\r\n\r\n"
    line = "".join(choose.choices("abcdefghijklmnopqrstuvwxyz .", k=70))
    lines = (f"{'.' if choose.random() < 0.1 else ''}{choose.random()}{line}" for _ in range(min(64, size // 80 + 1)))
    block = "\r\n".join(lines) + "\r\n"
    return (head + block * (size // len(block) + 1)).encode()


def digest(stored):
    """Of a message as it was sent: what a server put before it is left out. And how many bytes that was."""
    at = stored.find(MARK)
    return hashlib.sha256(stored[max(at, 0):]).hexdigest()[:32], max(at, 0)


def token_of(header):
    found = re.search(rb"X-Token: ([\w.-]+)", header, re.I)
    return found[1].decode() if found else None


def size_of(choose):
    dice = choose.random()
    return choose.randrange(400, 8000) if dice < 0.95 else choose.randrange(50_000, 300_000) if dice < 0.993 else 1_300_000


class Worker(threading.Thread):
    """Steps until told to stop. What is no fault of the servers ends the run as an error of its own."""

    pause = 0.04

    def __init__(self, cluster, history, name, seed):
        super().__init__(name=name, daemon=True)
        self.cluster = cluster
        self.history = history
        self.choose = random.Random(f"{seed}/{name}")
        self.stop = threading.Event()
        self.number = 0

    def run(self):
        while not self.stop.is_set():
            try:
                self.step()
            except Exception as error:
                self.history.add(client=self.name, op="harness", outcome="ok", error=repr(error))
                raise
            self.stop.wait(self.choose.uniform(0, 2 * self.pause))

    def a_node(self):
        return self.choose.randrange(len(self.cluster.nodes))

    def token(self):
        self.number += 1
        return f"{self.name}.{self.number}"

    @contextlib.contextmanager
    def operation(self, op, **facts):
        """Records what happens inside, whose outcome is ok unless it raises or says otherwise."""
        record = {"client": self.name, "op": op, "begin": time.monotonic(), "outcome": "ok", **facts}
        try:
            yield record
        except Refused as refused:
            record.update(outcome="unknown" if refused.maybe else "refused", why=str(refused)[:200])
        except Broken as broken:
            record.update(outcome="unknown", why=str(broken)[:200])
            raise
        finally:
            record["end"] = time.monotonic()
            self.history.add(**record)


class Sender(Worker):
    """One connection a message: what broke is then never in doubt."""

    def step(self):
        names = self.choose.sample(self.cluster.names, 1 if self.choose.random() < 0.85 else self.choose.choice([2, 3]))
        token = self.token()
        raw = message(token, domain(names[0]), size_of(self.choose), self.choose)
        for _ in range(3):
            outcome = self.send(self.a_node(), token, names, raw)
            if outcome != "unknown" or self.choose.random() < 0.5:
                return

    def send(self, node, token, names, raw, timeout=TIMEOUT):
        facts = {"node": node, "token": token, "to": names, "sha": digest(raw)[0]}
        with self.operation("send", **facts) as record:
            host, port = mail.split(self.cluster.address(node, "smtp"))
            try:
                client = smtplib.SMTP(host, port, timeout=timeout, local_hostname="client.elsewhere.example")
            except (OSError, smtplib.SMTPException) as error:
                raise Refused(f"connect: {error}") from error
            try:
                self._transaction(client, record, names, raw)
            finally:
                client.close()
        if record["outcome"] == "refused":
            self.stop.wait(0.1)
        return record["outcome"]

    @staticmethod
    def _transaction(client, record, names, raw):
        try:
            client.ehlo_or_helo_if_needed()
            for code, text in [client.mail("sender@elsewhere.example"), *(client.rcpt(domain(name)) for name in names)]:
                if code not in (250, 251):
                    raise Refused(f"{code} {text!r}")
        except (OSError, smtplib.SMTPException) as error:
            raise Refused(f"before the data: {error}") from error
        try:
            code, text = client.data(raw)
        except smtplib.SMTPDataError as error:
            raise Refused(f"DATA: {error}") from error
        except (OSError, smtplib.SMTPException) as error:
            raise Refused(f"after the data: {error!r}", maybe=True) from error
        record["code"] = code
        if code != 250:
            # 452 is said before anything is kept, 5xx is for good; any other answer leaves it open.
            raise Refused(f"{code} {text!r}", maybe=code < 500 and code != 452)
        stored = re.search(rb"uid (\d+)", text)
        if stored:
            record["uid"] = int(stored[1])


class Session(Worker):
    """A worker with one IMAP session, opened anew on another node when it breaks and now and then."""

    def __init__(self, cluster, history, name, seed, account):
        super().__init__(cluster, history, name, seed)
        self.account = account
        self.imap = None
        self.node = None
        self.folder = None
        self.validity = None
        self.left = 0

    def connected(self, node=None):
        """Whether there is a session; opens one when there is none."""
        if self.imap is None:
            self.node = self.a_node() if node is None else node
            with self.operation("login", node=self.node, account=self.account) as record:
                try:
                    self.imap = Imap(self.cluster.address(self.node, "imaps"), domain(self.account), "a password", TIMEOUT)
                except Broken as broken:
                    # Nothing on the server changes by a log-in.
                    raise Refused(str(broken)) from broken
            if record["outcome"] != "ok":
                self.stop.wait(0.3)
            self.folder = None
            self.left = self.choose.randrange(50, 400)
        return self.imap is not None

    def leave(self):
        if self.imap:
            for text in self.imap.contradictions:
                self.history.add(client=self.name, op="contradiction", node=self.node, outcome="ok", text=text)
            self.imap.close()
        self.imap = None

    def step(self):
        if not self.connected():
            return
        try:
            self.act()
            self.left -= 1
            if self.left <= 0:
                self.leave()
        except Broken:
            self.leave()

    def run(self):
        super().run()
        self.leave()

    def at(self, folder):
        return {"node": self.node, "account": self.account, "folder": folder}

    def select(self, folder):
        """Answers whether the folder is selected now."""
        if self.folder == folder:
            return True
        self.folder = None
        with self.operation("select", **self.at(folder)) as record:
            _, untagged = self.imap.command(f"SELECT {folder}")
            record.update(selected(untagged))
            self.folder, self.validity = folder, record["uidvalidity"]
        return self.folder == folder

    def list(self, folder):
        """Reads what is in a folder, seen anew."""
        self.folder = None
        found = None
        with self.operation("list", **self.at(folder)) as record:
            _, untagged = self.imap.command(f"SELECT {folder}")
            record.update(selected(untagged))
            _, untagged = self.imap.command("UID FETCH 1:* (UID FLAGS MODSEQ BODY.PEEK[HEADER.FIELDS (X-Token)])")
            found = fetched(untagged)
            record["messages"] = [[uid, m["modseq"], m["flags"], token_of(b"".join(m["literals"]))]
                                  for uid, m in sorted(found.items()) if m["literals"]]
            self.folder, self.validity = folder, record["uidvalidity"]
        return {m[0]: m[3] for m in record.get("messages", [])} if record["outcome"] == "ok" else None

    def append(self, folder, flags=()):
        token = self.token()
        raw = message(token, domain(self.account), size_of(self.choose), self.choose)
        with self.operation("append", **self.at(folder), token=token, sha=digest(raw)[0]) as record:
            line, _ = self.imap.command(f"APPEND {folder} ({' '.join(flags)})", literal=raw)
            found = re.search(r"\[APPENDUID (\d+) (\d+)\]", line)
            record.update(uidvalidity=int(found[1]), uid=int(found[2]))
        return (record["uid"], token) if record["outcome"] == "ok" else None


class Filer(Session):
    """Keeps a mailbox in order. `owned`: messages that are there for certain, folder -> uid -> token."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.owned = {folder: {} for folder in FOLDERS[:-1]}
        # (folder, uid) of what was once given up: it may still move later, and is never touched again.
        self.touched = set()

    def act(self):
        if self.choose.random() < 0.6 and any(len(owned) > FULL for owned in self.owned.values()):
            self.remove()
            return
        what = self.choose.choices([self.put, self.look, self.move, self.copy, self.remove, self.read, self.rest],
                                   [24, 12, 24, 10, 16, 12, 2])[0]
        what()

    def put(self):
        made = self.append("Work")
        if made:
            self.owned["Work"][made[0]] = made[1]

    def look(self):
        folder = self.choose.choices(FOLDERS[:-1], [6, 2, 1, 1])[0]
        found = self.list(folder)
        if found is not None and folder == "INBOX":
            for uid, token in found.items():
                if token and ("INBOX", uid) not in self.touched:
                    self.owned["INBOX"][uid] = token

    def pick(self, folder):
        """A message of the folder, with the folder selected."""
        if not self.owned[folder] or not self.select(folder):
            return None, None
        uid = self.choose.choice(list(self.owned[folder]))
        return uid, self.owned[folder][uid]

    def transfer(self, verb, source, target):
        uid, token = self.pick(source)
        if uid is None:
            return
        facts = {"uidvalidity": self.validity, "uid": uid, "token": token, "to": target}
        # What is not known to have worked is left alone for ever after: then every other message's place stays certain.
        self.give_up(source, uid)
        with self.operation(verb.lower(), **self.at(source), **facts) as record:
            line, untagged = self.imap.command(f"UID {verb} {uid} {target}")
            found = re.search(r"\[COPYUID (\d+) (\d+) (\d+)\]", "\n".join([line, *(text for text, _ in untagged)]))
            record["moved"] = bool(found)
            if found:
                record.update(to_uidvalidity=int(found[1]), to_uid=int(found[3]))
                self.owned[target][int(found[3])] = token
                if verb == "COPY":
                    self.take_back(source, uid, token)
        if record["outcome"] == "refused":
            self.take_back(source, uid, token)

    def give_up(self, folder, uid):
        del self.owned[folder][uid]
        self.touched.add((folder, uid))

    def take_back(self, folder, uid, token):
        self.owned[folder][uid] = token
        self.touched.discard((folder, uid))

    def move(self):
        self.transfer("MOVE", self.choose.choice(["INBOX", "INBOX", "Work"]), "Archive")

    def copy(self):
        self.transfer("COPY", self.choose.choice(["Work", "Archive", "INBOX"]), "Copies")

    def remove(self):
        folder = max(self.owned, key=lambda name: self.choose.random() * len(self.owned[name]))
        uid, token = self.pick(folder)
        if uid is None:
            return
        facts = {"uidvalidity": self.validity, "uid": uid, "token": token}
        self.give_up(folder, uid)
        with self.operation("delete-mark", **self.at(folder), **facts) as mark:
            self.imap.command(f"UID STORE {uid} +FLAGS.SILENT (\\Deleted)")
        if mark["outcome"] != "ok":
            if mark["outcome"] == "refused":
                self.take_back(folder, uid, token)
            return
        with self.operation("expunge", **self.at(folder), **facts):
            self.imap.command(f"UID EXPUNGE {uid}")

    def read(self):
        folder = self.choose.choice(FOLDERS[:-1])
        uid, token = self.pick(folder)
        if uid is None:
            return
        with self.operation("read", **self.at(folder), uidvalidity=self.validity, uid=uid, token=token) as record:
            _, untagged = self.imap.command(f"UID FETCH {uid} (UID BODY.PEEK[])")
            found = fetched(untagged).get(uid)
            record["seen"] = found is not None and bool(found["literals"])
            if record["seen"]:
                record["sha"], record["before"] = digest(found["literals"][0])
                record["found"] = token_of(found["literals"][0][:4000])

    def rest(self):
        if not self.select("INBOX"):
            return
        before = self.imap.view
        with self.operation("idle", **self.at("INBOX")) as record:
            self.imap.idle(self.choose.uniform(0.5, 2))
            record["told"] = [before, self.imap.view]


class Flagger(Session):
    """Changes and reads flags of messages that others change too. `targets`: uid -> token."""

    def __init__(self, *arguments, targets):
        super().__init__(*arguments)
        self.targets = targets

    def act(self):
        dice = self.choose.random()
        if dice < 0.04:
            self.list("Flags")
        elif self.select("Flags"):
            self.fetch() if dice < 0.5 else self.store()

    def fetch(self):
        uid = self.choose.choice(list(self.targets))
        with self.operation("flags", **self.at("Flags"), uidvalidity=self.validity, uid=uid, token=self.targets[uid]) as record:
            _, untagged = self.imap.command(f"UID FETCH {uid} (UID FLAGS MODSEQ)")
            self.note(record, untagged, uid)

    def store(self):
        uid = self.choose.choice(list(self.targets))
        mode = self.choose.choices(["+", "-", ""], [45, 45, 10])[0]
        flags = self.choose.sample(FLAGS, self.choose.choice([1, 1, 2]))
        facts = {"uidvalidity": self.validity, "uid": uid, "token": self.targets[uid], "mode": mode, "set": flags}
        with self.operation("store", **self.at("Flags"), **facts) as record:
            _, untagged = self.imap.command(f"UID STORE {uid} {mode}FLAGS ({' '.join(flags)})")
            self.note(record, untagged, uid)

    @staticmethod
    def note(record, untagged, uid):
        found = fetched(untagged).get(uid)
        record["seen"] = found is not None and found["flags"] is not None
        if record["seen"]:
            record.update(flags=found["flags"], modseq=found["modseq"])


def prepare(cluster, history, seed):
    """Makes the folders and the messages whose flags are changed; answers account -> targets. Before any fault."""
    targets = {}
    for name in cluster.names:
        session = Session(cluster, history, f"prepare-{name}", seed, name)
        mail.wait_for(session.connected, within=120, what=f"a log-in of {name}")
        # The others are there in every mailbox.
        for folder in ("Work", "Copies", "Flags"):
            session.imap.command(f"CREATE {folder}")
        targets[name] = dict(session.append("Flags") for _ in range(TARGETS))
        session.leave()
    return targets


def crew(cluster, history, seed, targets):
    """All workers of a run."""
    flagged = cluster.names[: max(1, len(cluster.names) // 2)]
    return [*(Sender(cluster, history, f"sender-{n}", seed) for n in range(5)),
            *(Filer(cluster, history, f"filer-{name}", seed, name) for name in cluster.names),
            *(Flagger(cluster, history, f"flagger-{name}-{n}", seed, name, targets=targets[name]) for name in flagged for n in range(2))]


def final(cluster, history, node, within):
    """Reads everything through a node, bodies included; it must answer within the time."""
    for name in cluster.names:
        reader = Session(cluster, history, f"final-{node}-{name}", 0, name)
        mail.wait_for(lambda: reader.connected(node), within=within, what=f"a log-in of {name} at node {node} at the end")
        for folder in FOLDERS:
            with reader.operation("final", **reader.at(folder)) as record:
                _, untagged = reader.imap.command(f"SELECT {folder}")
                record.update(selected(untagged))
                messages = {}
                if record["exists"]:
                    _, untagged = reader.imap.command("UID FETCH 1:* (UID FLAGS MODSEQ BODY.PEEK[])", within=END_TIMEOUT)
                    messages = fetched(untagged)
                record["messages"] = [[uid, m["modseq"], m["flags"], token_of(b"".join(m["literals"])[:4000]),
                                       *digest(b"".join(m["literals"]))] for uid, m in sorted(messages.items())]
        reader.leave()


def news_is_pushed(cluster, history, within):
    """At the end: a client that idles at a node is told of a message that came through another one."""
    count = len(cluster.nodes)
    for node in range(count):
        name = cluster.names[node % len(cluster.names)]
        reader = Session(cluster, history, f"pushed-{node}", 0, name)
        if not (reader.connected(node) and reader.select("INBOX")):
            history.add(client=reader.name, op="pushed", node=node, outcome="refused", why="no session")
            continue
        before = reader.imap.view
        sender = Sender(cluster, history, f"push-{node}", 0)
        raw = message(sender.token(), domain(name), 500, sender.choose)
        later = threading.Timer(0.5, sender.send, [(node + 1) % count, f"{sender.name}.1", [name], raw])
        later.start()
        end = time.monotonic() + within
        while reader.imap.view <= before and time.monotonic() < end:
            reader.imap.idle(1.0)
        later.join()
        history.add(client=reader.name, op="pushed", node=node, outcome="ok" if reader.imap.view > before else "refused",
                    why=f"idle at node {node} was not told within {within} s of a message that came through another node")
        reader.leave()
