"""A Dovecot of one's own on loopback: the server that people move in from, and one to compare with."""

import crypt
import imaplib
import os
import pwd
import subprocess
from pathlib import Path

from test_remote import free_port


class Dovecot:
    """IMAP for `names`@example.org, and LMTP where asked for; every message is synced before it is acknowledged. With `certificate`
    (its file and that of its key) TLS as well, by STARTTLS on `imap` and from the start on `imaps`."""

    def __init__(self, directory, names, password, separator="/", prefix="", lmtp=False, certificate=None):
        self.base, self.password = Path(directory), password
        self.imap, self.imaps, self.lmtp = free_port(), free_port(), free_port()
        for folder in ["run", "state", "mail"]:
            (self.base / folder).mkdir(parents=True)
        for folder in [self.base, *self.base.parents]:
            if folder != Path("/"):
                folder.chmod(folder.stat().st_mode | 0o011)
        user = pwd.getpwnam("nobody")
        os.chown(self.base / "mail", user.pw_uid, user.pw_gid)
        users = self.base / "users"
        word = crypt.crypt(password, crypt.METHOD_SHA512)
        users.write_text("".join(f"{n}@example.org:{{CRYPT}}{word}:{user.pw_uid}:{user.pw_gid}::{self.base}/mail/{n}::\n" for n in names))
        users.chmod(0o644)
        self.config = self.base / "dovecot.conf"
        tls = "ssl = no\n" if certificate is None else f"ssl = yes\nssl_cert = <{certificate[0]}\nssl_key = <{certificate[1]}\n"
        imaps = 0 if certificate is None else self.imaps
        special = "".join(f" mailbox {name} {{\n  auto = create\n  special_use = {use}\n }}\n"
                          for name, use in [("Gesendet", "\\Sent"), ("Papierkorb", "\\Trash")]) if not lmtp else ""
        service = (f"service lmtp {{\n inet_listener lmtp {{\n  address = 127.0.0.1\n  port = {self.lmtp}\n }}\n}}\n" if lmtp else "")
        self.config.write_text(
            f"base_dir = {self.base}/run\nstate_dir = {self.base}/state\nlog_path = {self.base}/log\n"
            f"protocols = imap{' lmtp' if lmtp else ''}\n{tls}"
            "disable_plaintext_auth = no\nmail_fsync = always\nfirst_valid_uid = 1\nfirst_valid_gid = 1\n"
            "mail_location = maildir:~/Maildir\nlisten = 127.0.0.1\nmail_max_userip_connections = 100\n"
            f"namespace inbox {{\n inbox = yes\n separator = {separator}\n prefix = {prefix}\n{special}}}\n"
            f"passdb {{\n driver = passwd-file\n args = {users}\n}}\nuserdb {{\n driver = passwd-file\n args = {users}\n}}\n"
            f"service imap-login {{\n inet_listener imap {{\n  port = {self.imap}\n }}\n inet_listener imaps {{\n  port = {imaps}\n }}\n}}\n"
            f"{service}"
        )

    def login(self, address):
        client = imaplib.IMAP4("127.0.0.1", self.imap, timeout=30)
        client.login(address, self.password)
        return client

    def stop(self):
        subprocess.run(["doveadm", "-c", str(self.config), "stop"], check=False, timeout=60)

    def __enter__(self):
        subprocess.run(["dovecot", "-c", str(self.config)], check=True, timeout=60)
        return self

    def __exit__(self, *_):
        self.stop()
