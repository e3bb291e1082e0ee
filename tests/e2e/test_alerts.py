"""Promises to who is on call: with a real Prometheus and the chart's own rules, what breaks fires and what is mended resolves."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

import mail
from dev import ROOT, Dev, people
from test_remote import free_port

CHART = ROOT / "charts" / "quorumail" / "files"


class Prometheus:
    """One that scrapes the mailnodes of a Dev every second, with rules whose waits are cut to seconds."""

    def __init__(self, directory, dev):
        self.directory = Path(directory)
        self.port = free_port()
        rules = re.sub(r"for: \S+", "for: 2s", (CHART / "alerts.yaml").read_text())
        (self.directory / "alerts.yaml").write_text(rules)
        targets = [{"targets": [dev.node(node)["http"]], "labels": {"namespace": "dev", "mailcluster": "dev", "pod": f"dev-{node}"}}
                   for node in sorted(dev.nodes)]
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                  "rule_files": ["alerts.yaml"], "scrape_configs": [{"job_name": "mailnodes", "static_configs": targets}]}
        (self.directory / "prometheus.yaml").write_text(json.dumps(config))
        self.log = open(self.directory / "log", "wb")

    def __enter__(self):
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={self.directory}/prometheus.yaml", f"--storage.tsdb.path={self.directory}/data",
             f"--web.listen-address=127.0.0.1:{self.port}"], stdout=self.log, stderr=self.log)
        mail.wait_for(lambda: self.get("/-/ready", raw=True), what="Prometheus")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()

    def get(self, path, raw=False):
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10).read().decode()
        return text if raw else json.loads(text)["data"]

    def query(self, expression):
        return self.get(f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}")["result"]

    def firing(self):
        alerts = self.get("/api/v1/alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")
def test_what_breaks_fires_and_what_is_mended_resolves(tmp_path):
    # What no operator tells here, and what the disk of this machine makes of it.
    others = {"OperatorDown", "DiskFilling", "DiskSlow"}
    (tmp_path / "prometheus").mkdir()
    with Dev(tmp_path / "dev", {"people.yaml": people(["alice"])}) as dev, Prometheus(tmp_path / "prometheus", dev) as prometheus:
        mail.wait_for(lambda: len(prometheus.query("quorumail_ready == 1")) == 3, what="three mailnodes")
        mail.wait_for(lambda: prometheus.firing() <= others, what="no alert")

        def wrong():
            # How full the disk of this machine is has nothing to do with it.
            return {problem["runbook"] for problem in dev.status()["problems"]} - {"DiskFilling"}

        mail.wait_for(lambda: not wrong(), what="a status without problems")
        begun = time.monotonic()
        dev.status()
        assert time.monotonic() - begun < 5, "one screen at once"
        stopped = [dev.node(node)["pid"] for node in (1, 2)]
        try:
            for pid in stopped[:1]:
                os.kill(pid, signal.SIGSTOP)
            mail.wait_for(lambda: "PartitionUnderReplicated" in prometheus.firing(), within=90, what="a missing replica")
            assert "PartitionLeaderless" not in prometheus.firing()
            os.kill(stopped[1], signal.SIGSTOP)
            mail.wait_for(lambda: {"PartitionLeaderless", "MailnodeNotReady"} <= prometheus.firing(), within=90, what="no leader")
            assert {"PartitionLeaderless", "MailnodeNotReady"} <= wrong() and not dev.status()["well"]
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        mail.wait_for(lambda: prometheus.firing() <= others, within=120, what="all resolved")
        mail.wait_for(lambda: not wrong(), what="a status without problems")
        mail.send(dev.node(0)["smtp"], mail.message("a@elsewhere.example", "alice@example.org", "hello"))

        # What the dashboards ask can be answered.
        silent = []
        for path in sorted((CHART / "dashboards").glob("*.json")):
            for panel in json.loads(path.read_text())["panels"]:
                for target in panel["targets"]:
                    expression = target["expr"].replace("$namespace", ".*").replace("$mailcluster", ".*")
                    if not prometheus.query(expression) and not re.search("quorumail_(backup|recovery|rehearsal|restore|archive|delivery|smtp_(replies|sessions|messages)|repairs)|ALERTS", expression):
                        silent.append((path.name, panel["title"], expression))
        assert silent == []
