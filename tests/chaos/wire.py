"""An IMAP client that shows every line it was sent, in order: what imaplib sorts away is what is checked here."""

import re
import socket
import time

import mail

LITERAL = re.compile(rb"\{(\d+)\}$")


class Broken(Exception):
    """The connection ended or was silent for too long: the outcome of the command is not known."""


class Refused(Exception):
    """NO or BAD; `maybe`: the command may have taken effect all the same, or still may."""

    def __init__(self, text, maybe=False):
        super().__init__(text)
        self.maybe = maybe


class Imap:
    """One logged-in session. `view` is the number of messages it was told of; lines that contradict it are kept in
    `contradictions`."""

    def __init__(self, address, user, password, timeout):
        self.timeout = timeout
        self.buffer = b""
        self.count = 0
        self.view = 0
        self.contradictions = []
        try:
            plain = socket.create_connection(mail.split(address), timeout=timeout)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket = mail.no_verification().wrap_socket(plain)
            self._line(time.monotonic() + timeout)
            self.command(f'LOGIN {user} "{password}"')
            self.command("ENABLE CONDSTORE")
        except OSError as error:
            raise Broken(str(error)) from error

    def _more(self, end):
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        self.socket.settimeout(left)
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError("closed by the server")
        self.buffer += data

    def _line(self, end):
        while (at := self.buffer.find(b"\r\n")) < 0:
            self._more(end)
        line, self.buffer = self.buffer[:at], self.buffer[at + 2:]
        return line

    def _response(self, end):
        """One response: its text with literals taken out, and the literals."""
        text, literals = self._line(end), []
        while found := LITERAL.search(text):
            size = int(found[1])
            while len(self.buffer) < size:
                self._more(end)
            literals.append(self.buffer[:size])
            self.buffer = self.buffer[size:]
            text = text[: found.start()] + b"{}" + self._line(end)
        self._follow(text)
        return text.decode("utf-8", "replace"), literals

    def _follow(self, text):
        found = re.match(rb"\* (\d+) (EXISTS|EXPUNGE)", text)
        if not found:
            return
        number = int(found[1])
        if found[2] == b"EXISTS":
            if number < self.view:
                self.contradictions.append(f"EXISTS {number} after {self.view}")
            self.view = number
        elif number > self.view or number == 0:
            self.contradictions.append(f"EXPUNGE {number} of {self.view}")
        else:
            self.view -= 1

    def command(self, text, literal=None, within=None):
        """Answers the text of OK and the untagged responses, each (text, literals)."""
        self.count += 1
        tag = f"t{self.count}"
        end = time.monotonic() + (within or self.timeout)
        untagged = []
        sent = literal is None
        if text.startswith("SELECT"):
            self.view = 0
        try:
            self.socket.settimeout(self.timeout)
            self.socket.sendall(f"{tag} {text}{'' if sent else ' {%d}' % len(literal)}\r\n".encode())
            while True:
                line, literals = self._response(end)
                if line.startswith("+") and not sent:
                    sent = True
                    self.socket.sendall(literal + b"\r\n")
                elif line.startswith(f"{tag} OK"):
                    return line, untagged
                elif line.startswith(f"{tag} "):
                    raise Refused(line, maybe=sent and may_have_happened(line))
                else:
                    untagged.append((line, literals))
        except OSError as error:
            if not sent:
                # The message itself never left.
                raise Refused(f"{text.split()[0]} broke before its data: {error}") from error
            raise Broken(f"{text.split()[0]}: {error}") from error

    def idle(self, seconds):
        """IDLEs and answers the untagged lines that came."""
        self.count += 1
        tag = f"t{self.count}"
        seen = []
        try:
            self.socket.settimeout(self.timeout)
            self.socket.sendall(f"{tag} IDLE\r\n".encode())
            line, _ = self._response(time.monotonic() + self.timeout)
            while line.startswith("*"):
                seen.append(line)
                line, _ = self._response(time.monotonic() + self.timeout)
            if not line.startswith("+"):
                raise Refused(line)
            end = time.monotonic() + seconds
            try:
                while True:
                    seen.append(self._response(end)[0])
            except TimeoutError:
                pass
            self.socket.settimeout(self.timeout)
            self.socket.sendall(b"DONE\r\n")
            end = time.monotonic() + self.timeout
            while not (line := self._response(end)[0]).startswith(tag):
                seen.append(line)
            return seen
        except OSError as error:
            raise Broken(f"IDLE: {error}") from error

    def close(self):
        try:
            self.socket.close()
        except OSError:
            pass


def may_have_happened(line):
    """Whether a NO leaves open what happened. RFC 5530: only UNAVAILABLE, or a NO without a code."""
    answer = line.split(" ", 2)[1:]
    if answer[0] != "NO":
        return False
    code = re.match(r"\[([A-Z]+)", answer[1] if len(answer) > 1 else "")
    return code is None or code[1] in ("UNAVAILABLE", "SERVERBUG", "INUSE")


def fetched(untagged):
    """uid -> {flags, modseq, token, literals} of the FETCH responses."""
    found = {}
    for text, literals in untagged:
        if not re.match(r"\* \d+ FETCH ", text):
            continue
        uid = re.search(r"\bUID (\d+)", text)
        if not uid:
            continue
        flags = re.search(r"FLAGS \(([^)]*)\)", text)
        modseq = re.search(r"MODSEQ \((\d+)\)", text)
        message = found.setdefault(int(uid[1]), {"flags": None, "modseq": None, "literals": []})
        if flags:
            message["flags"] = sorted(flags[1].split())
        if modseq:
            message["modseq"] = int(modseq[1])
        message["literals"] += literals
    return found


def selected(untagged):
    """What SELECT told: exists, uidvalidity, uidnext, highestmodseq."""
    text = "\n".join(line for line, _ in untagged)

    def number(pattern):
        found = re.search(pattern, text)
        return int(found[1]) if found else None

    return {"exists": number(r"\* (\d+) EXISTS"), "uidvalidity": number(r"\[UIDVALIDITY (\d+)"),
            "uidnext": number(r"\[UIDNEXT (\d+)"), "highestmodseq": number(r"\[HIGHESTMODSEQ (\d+)")}
