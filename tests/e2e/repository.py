"""Repositories of backups as a test drives them: a directory, or a bucket of a real S3 server (versitygw) that can be
killed; and the command line that uses them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from dev import BIN

ACCESS_KEY, SECRET_KEY, BUCKET = "test-access", "test-secret-key", "mail"


def versitygw():
    """Path of the S3 server: where `make` builds it, or in PATH."""
    built = os.environ.get("QUORUMAIL_CLUSTER_BIN")
    if built and (Path(built) / "versitygw").exists():
        return str(Path(built) / "versitygw")
    return shutil.which("versitygw")


class Repository:
    """Where backups go, and `quorumail backup` and `restore` with all that it takes to get there."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.key = self.directory / "key"
        self.secrets = {}
        self.flags = []
        if not self.key.exists():
            self.run("backup", "key", "new", str(self.key))

    def start(self, command, dev=None, extra=()):
        """Starts a command; `-o json`."""
        target = ["--dev", str(dev.directory / "data")] if dev else []
        line = [str(BIN / "quorumail"), *target, "-o", "json", *command, *self.flags, *extra]
        environment = {**os.environ, "QUORUMAIL_BACKUP_KEY_FILE": str(self.key), **self.secrets}
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)

    def run(self, *command, dev=None, extra=(), within=120, fails=False):
        """Runs a command to its end. Answers what it printed, as JSON where it is; of one that is to fail, what it says."""
        process = self.start(command, dev, extra)
        return self.finish(process, within, fails)

    @staticmethod
    def finish(process, within=120, fails=False):
        try:
            out, err = process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{process.args} did not end within {within} s")
        assert (process.returncode != 0) == fails, f"{process.args}: exit {process.returncode}\n{out}\n{err}"
        if fails:
            return err
        return json.loads(out) if out.startswith(("{", "[")) else out

    def backup(self, dev, **how):
        return self.run("backup", "now", dev=dev, **how)

    def list(self):
        return self.run("backup", "list")

    def close(self):
        pass


class Directory(Repository):
    def __init__(self, directory):
        super().__init__(directory)
        self.objects = self.directory / "repository"
        self.flags = ["--from", f"file://{self.objects}"]


class Bucket(Repository):
    """A bucket of an S3 server of its own, over TLS with an authority that only the test knows."""

    def __init__(self, directory):
        super().__init__(directory)
        self.objects = self.directory / "buckets" / BUCKET / "prefix"
        self.objects.parent.mkdir(parents=True, exist_ok=True)
        self.certificate, self.certificate_key = self.directory / "tls.crt", self.directory / "tls.key"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-keyout", self.certificate_key, "-out", self.certificate, "-days", "2", "-subj", "/CN=s3.test",
                        "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"],
                       check=True, capture_output=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.flags = ["--from", f"s3://{BUCKET}/prefix", "--endpoint", f"https://127.0.0.1:{self.port}", "--path-style",
                      "--ca-file", str(self.certificate)]
        self.secrets = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        self.process = None
        self.serve()

    def serve(self):
        log = open(self.directory / "versitygw.log", "ab")
        self.process = subprocess.Popen(
            [versitygw(), "--port", f"127.0.0.1:{self.port}", "--cert", str(self.certificate), "--key",
             str(self.certificate_key), "posix", str(self.directory / "buckets")],
            env={**os.environ, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}, stdout=log, stderr=log)
        end = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None and time.monotonic() < end, "the S3 server does not listen"
            time.sleep(0.05)

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self):
        if self.process.poll() is None:
            self.kill()
