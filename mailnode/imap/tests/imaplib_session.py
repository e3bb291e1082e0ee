# A session as a person's script has it, through Python's imaplib. Arguments: port, user, password.
import email
import email.message
import imaplib
import socket
import sys
import time

port, user, password = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def ok(answer):
    status, data = answer
    assert status == "OK", answer
    return data


imap = imaplib.IMAP4("127.0.0.1", port, timeout=10)
assert "LITERAL+" in imap.capabilities, imap.capabilities
try:
    imap.login(user, "wrong")
    raise SystemExit("a wrong password was taken")
except imaplib.IMAP4.error as error:
    assert "AUTHENTICATIONFAILED" in str(error), error
ok(imap.login(user, password))
assert "IDLE" in ok(imap.capability())[0].decode()
assert ok(imap.namespace())[0] == b'(("" "/")) NIL (("#lists/" "/"))'

names = [line.decode().rsplit(" ", 1)[1] for line in ok(imap.list())]
assert names == ["Archive", "Drafts", "INBOX", "Junk", "Sent", "Trash"], names

attachment = bytes(range(32, 127)) * 50


message = email.message.EmailMessage()
message["From"], message["To"], message["Subject"] = "Jürgen <j@x.org>", user, "Grüße aus Köln"
message["Date"] = "Fri, 01 May 2020 10:00:00 +0000"
message.set_content("Schöne Grüße\n")
message.add_alternative("<p>Schöne Grüße</p>", subtype="html")
message.add_attachment(attachment, maintype="application", subtype="octet-stream", filename="a b.bin")
wire = message.as_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")

ok(imap.append("INBOX", r"(\Flagged Work)", imaplib.Time2Internaldate(1588327200), wire))
assert imap.append("Nowhere", None, None, wire)[0] == "NO"
assert ok(imap.select("INBOX")) == [b"1"]
assert int(imap.response("UIDVALIDITY")[1][0]) > 0

data = ok(imap.fetch("1", "(UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[])"))
assert data[0][1] == wire, "the body is not what was appended"
assert b'INTERNALDATE " 1-May-2020 10:00:00 +0000"' in data[0][0], data[0][0]
assert b"RFC822.SIZE %d" % len(wire) in data[0][0]
assert set(imaplib.ParseFlags(data[0][0])) == {b"\\Flagged", b"Work"}, data[0][0]
again = email.message_from_bytes(data[0][1])
assert again.get_payload()[1].get_payload(decode=True) == attachment

structure = ok(imap.fetch("1", "BODYSTRUCTURE"))[0].decode()
for part in ['"alternative"', '"mixed"', '"attachment" ("filename" "a b.bin")', '"base64"']:
    assert part in structure, structure
assert b"Schoene" not in ok(imap.fetch("1", "BODY[1.2]"))[0][1]
envelope = ok(imap.fetch("1", "ENVELOPE"))[0].decode()
assert '"j" "x.org"' in envelope and "=?utf-8?" in envelope, envelope
header = ok(imap.fetch("1", "(BODY.PEEK[HEADER.FIELDS (SUBJECT DATE)])"))[0][1]
assert header.endswith(b"\r\n\r\n") and b"From" not in header, header
assert ok(imap.fetch("1", "BODY.PEEK[]<10.20>"))[0][1] == wire[10:30]
assert rb"\Seen" in ok(imap.fetch("1", "FLAGS"))[0]

assert ok(imap.search(None, "FLAGGED", "SEEN")) == [b"1"]
imap.literal = "grüße".encode()
assert ok(imap.search("UTF-8", "SUBJECT")) == [b"1"]
assert ok(imap.search(None, '(TO "%s" SINCE 1-Apr-2020 LARGER 100)' % user)) == [b"1"]
assert ok(imap.uid("SEARCH", None, "DELETED")) == [b""]

ok(imap.create('"Entw&APw-rfe/Alt"'))
ok(imap.subscribe('"Entw&APw-rfe/Alt"'))
assert ok(imap.lsub('""', '"Entw*"'))[-1].endswith(b"Entw&APw-rfe/Alt")
ok(imap.copy("1", '"Entw&APw-rfe/Alt"'))
assert b"MESSAGES 1" in ok(imap.status('"Entw&APw-rfe/Alt"', "(MESSAGES UNSEEN)"))[0]
ok(imap.rename('"Entw&APw-rfe/Alt"', "Old"))
assert imap.uid("MOVE", "1", "Trash")[0] == "OK"
assert ok(imap.search(None, "ALL")) == [b""]

ok(imap.select("Trash"))
ok(imap.store("1", "+FLAGS", r"(\Deleted)"))
assert ok(imap.expunge()) == [b"1"]
ok(imap.close())
ok(imap.select("Old", readonly=True))
assert imap.store("1", "+FLAGS", r"\Seen")[0] == "NO"
ok(imap.unselect())
ok(imap.delete("Old"))

ok(imap.select("INBOX"))
# imaplib writes the end of an APPEND by itself, which without this waits for the answer to what was written before.
imap.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
began = time.monotonic()
for number in range(200):
    ok(imap.append("INBOX", None, None, b"Subject: %d\r\n\r\nbody\r\n" % number))
lines = ok(imap.fetch("1:*", "(UID ENVELOPE)"))
assert len(lines) == 200, len(lines)
ok(imap.noop())
assert imap.logout()[0] == "BYE"
print("%.0f ms for 200 messages; all is well" % ((time.monotonic() - began) * 1000))
