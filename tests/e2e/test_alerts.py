"""Promises to who is on call: with a real Prometheus and the chart's own rules, what breaks fires and what is mended resolves."""

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

import mail
from dev import BIN, ROOT, Dev, people
from test_remote import free_port

CHART = ROOT / "charts" / "quorumail" / "files"


class Prometheus:
    """One that scrapes the mailnodes of a Dev every second, with rules whose waits are cut to seconds."""

    def __init__(self, directory, dev, others=()):
        self.directory = Path(directory)
        self.port = free_port()
        rules = re.sub(r"for: \S+", "for: 2s", (CHART / "alerts.yaml").read_text())
        (self.directory / "alerts.yaml").write_text(rules)
        targets = [{"targets": [dev.node(node)["http"]], "labels": {"namespace": "dev", "mailcluster": "dev", "pod": f"dev-{node}"}}
                   for node in sorted(dev.nodes)]
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                  "rule_files": ["alerts.yaml"], "scrape_configs": [{"job_name": "mailnodes", "static_configs": targets},
                                     {"job_name": "operator", "honor_labels": True, "static_configs": [{"targets": list(others)}]}]}
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


class Operator:
    """Tells what an operator tells of its probes: so many of them passed and failed each time that it is asked."""

    def __init__(self):
        self.passed, self.failed, self.fails = 0, 0, False

    def text(self):
        if self.fails:
            self.failed += 1
        else:
            self.passed += 1
        labels = 'namespace="dev",mailcluster="dev",domain="example.org"'
        return (f'quorumail_operator_leader 1\n# TYPE quorumail_probe_results_total counter\n'
                f'quorumail_probe_results_total{{{labels},result="ok"}} {self.passed}\n'
                f'quorumail_probe_results_total{{{labels},result="not_sent"}} {self.failed}\n').encode()

    def __enter__(self):
        operator = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(operator.text())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def quorumail(*arguments, check=True):
    done = subprocess.run([BIN / "quorumail", *arguments], capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done


def test_a_probe_tells_whether_mail_goes_its_way(tmp_path):
    with Dev(tmp_path / "dev", {"people.yaml": people(["alice"])}) as dev:
        here = ["--dev", dev.directory / "data"]

        def addresses(*command):
            return [row["address"] for row in json.loads(quorumail(*here, *command, "-o", "json").stdout)]

        rows = json.loads(quorumail(*here, "probe", "-o", "json", "--within", "20").stdout)
        assert [(row["domain"], row["passed"]) for row in rows] == [("example.org", True)]
        # Its mailbox was nobody's, and is gone.
        assert addresses("mailbox", "usage") == ["alice@example.org"]
        mail.wait_for(lambda: addresses("mailbox", "deleted") == [], what="what the probe left to be purged")
        assert quorumail(*here, "probe", "elsewhere.org", check=False).returncode == 1


@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")
def test_uptime_is_what_probes_say_and_a_report_tells_it(tmp_path):
    (tmp_path / "prometheus").mkdir()
    with (Dev(tmp_path / "dev", {"people.yaml": people(["alice"])}) as dev, Operator() as operator,
          Prometheus(tmp_path / "prometheus", dev, [operator.address]) as prometheus):
        uptime = {"UptimeBudgetBurn", "ProbeFailing"}

        def report(*arguments):
            return quorumail("-n", "dev", "--cluster", "dev", "report", "--since", "10m",
                             "--prometheus", f"http://127.0.0.1:{prometheus.port}", *arguments).stdout

        mail.send(dev.node(0)["smtp"], mail.message("a@elsewhere.example", "alice@example.org", "hello"))
        mail.wait_for(lambda: len(prometheus.query("quorumail_ready == 1")) == 3, what="three mailnodes")
        mail.wait_for(lambda: operator.passed > 10, what="probes")
        assert not uptime & prometheus.firing()
        text = report()
        assert "PartitionLeaderless" not in text and "not known:** no alert fires" not in text, text
        for expected in ("- [x] all mailnodes serve: 3 of 3", "- [x] local queue empty: 0 recipients wait",
                         "- [x] messages come back in all domains: 1 of 1", "- [x] uptime of 99.9 %: 100.00 %",
                         "- [ ] **not known:** restores are rehearsed", "No BackupPolicy is known"):
            assert expected in text, text
        # Nodes that start find each other by and by, and say so; Prometheus counts what came since it looks.
        assert "no warnings in the log: " in text and "**not known:** no warnings" not in text, text
        counted = {one["metric"]["level"] for one in prometheus.query("quorumail_log_records_total")}
        assert counted == {"warn", "error"}, counted

        def status(url, *arguments):
            return quorumail("--dev", dev.directory / "data", "status", "--prometheus", url, *arguments, check=False)

        here = f"http://127.0.0.1:{prometheus.port}"
        moment = json.loads(status(here, "-o", "json").stdout)["lastDay"]
        assert (moment["uptime"], moment["deliverability"]) == (1.0, None) and moment["alerts"] is not None, moment
        operator.fails = True
        mail.wait_for(lambda: "UptimeBudgetBurn" in prometheus.firing(), within=60, what="a budget that burns")
        figures = json.loads(report("-o", "json"))
        assert 0 < figures["uptime"] < 0.999 and figures["probesFailed"] > 2, figures
        # It had begun to fire at that second or the one before.
        mail.wait_for(lambda: "UptimeBudgetBurn" in report(), what="the incident")
        shown = status(here)
        assert shown.returncode == 1 and "the alert UptimeBudgetBurn fires" in shown.stdout, shown
        assert "(runbook UptimeBudgetBurn)" in shown.stdout and re.search(r"last day: uptime \d\d\.\d+ %", shown.stdout), shown.stdout
        # Prometheus is a help and no condition.
        alone = status("http://127.0.0.1:1")
        assert "are left out" in alone.stderr and "partitions" in alone.stdout and "last day" not in alone.stdout, alone
        operator.fails = False
        page = report("--html")
        assert page.startswith("<!doctype html>") and "<svg" in page and "UptimeBudgetBurn" in page, page
        assert "http:" not in page and "<script" not in page
    assert quorumail("report", "--prometheus", "http://127.0.0.1:1", check=False).returncode == 1
    assert quorumail("report", "--prometheus", "http://127.0.0.1:1", "--since", "soon", check=False).returncode == 2


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
                    if not prometheus.query(expression) and not re.search("quorumail_(probe|domain_dns|backup|recovery|rehearsal|restore|archive|delivery|smtp_(replies|sessions|messages)|repairs)|ALERTS", expression):
                        silent.append((path.name, panel["title"], expression))
        assert silent == []
