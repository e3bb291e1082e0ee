"""The nodes: made by `quorumail dev`, moved into namespaces of their own, watched and restarted."""

import json
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
import threading
import time
import urllib.request

import yaml

import dev
import mail
import sandbox

PORTS = {"smtp": 2525, "imaps": 2993, "http": 8080, "admin": 9443, "peer": 9444}
# A node that ends by itself is started again after this, as Kubernetes does.
RESTART_AFTER = 1.0
CONTROL = struct.Struct("=QIIiiIII")


class DiskFaults:
    """The control file of diskfaults.c for one node."""

    def __init__(self, path, lies):
        self.path = path
        self.lies = lies
        path.write_bytes(bytes(mmap.PAGESIZE))
        with open(path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def set(self, device, sync_delay=0.0, write_delay=0.0, sync_error=0, write_error=0):
        *_, delayed, failed = CONTROL.unpack_from(self.map)
        CONTROL.pack_into(self.map, 0, device, int(sync_delay * 1e6), int(write_delay * 1e6), sync_error, write_error,
                          self.lies, delayed, failed)

    def counts(self):
        """Calls that were delayed and that failed, so far."""
        return CONTROL.unpack_from(self.map)[-2:]


class Node:
    """One mailnode: its network, disk, process, and what is expected of it just now."""

    def __init__(self, number, disk, directory, program, shim, network, lies):
        self.number = number
        self.disk = disk
        self.network = network
        self.config = directory / f"node-{number}.yaml"
        self.log_path = directory / f"node-{number}.log"
        self.faults = DiskFaults(directory / f"faults-{number}", lies)
        self.command = [*network.inside(number), str(program), "--config", str(self.config)]
        self.env = {**os.environ, "LD_PRELOAD": str(shim), "QUORUMAIL_DISK_FAULTS": str(self.faults.path)}
        self.process = None
        self.wanted = False
        self.may_fail = False
        self.paused = False
        self.ended_at = None
        self.lock = threading.RLock()
        self.well()

    def well(self):
        """A disk without faults."""
        self.faults.set(self.disk.device())

    def start(self):
        with self.lock:
            self.wanted = True
            if self.process is None or self.process.poll() is not None:
                with open(self.log_path, "ab") as log:
                    self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.env)
                self.ended_at = None

    def signal(self, number):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self):
        """kill -9; down until `start`."""
        with self.lock:
            self.wanted = False
            self.signal(signal.SIGKILL)
            if self.process is not None:
                self.process.wait()
            self.paused = False

    def stop(self, within=60):
        """SIGTERM; answers whether it ended in time and well."""
        with self.lock:
            self.wanted = False
            self.signal(signal.SIGTERM)
            process = self.process
        try:
            return process.wait(within) == 0
        except subprocess.TimeoutExpired:
            self.kill()
            return False

    def pause(self, paused):
        with self.lock:
            self.paused = paused
            self.signal(signal.SIGSTOP if paused else signal.SIGCONT)

    def http(self, path, timeout=3):
        with urllib.request.urlopen(f"http://{sandbox.address(self.number)}:{PORTS['http']}{path}", timeout=timeout) as answer:
            return answer.read().decode()

    def why_not_ready(self):
        """None when it is ready; else in words why it is not."""
        if self.process is None or self.process.poll() is not None:
            return "it does not run"
        try:
            self.http("/readyz")
            return None
        except urllib.error.HTTPError as error:
            return error.read().decode(errors="replace").strip()
        except OSError as error:
            return str(error)

    def metrics(self):
        """name, labels -> value; empty when it does not answer."""
        try:
            text = self.http("/metrics")
        except OSError:
            return {}
        found = re.findall(r"^(\w+)(?:\{(.*?)\})? ([-+.\deE]+)$", text, re.M)
        return {(name, labels): float(value) for name, labels, value in found}


class Cluster:
    """All nodes, and the harness's view of them."""

    def __init__(self, directory, count, names, partitions, history, lies=False):
        self.directory = directory
        self.history = history
        self.names = names
        shim = directory / "diskfaults.so"
        sandbox.run("cc", "-shared", "-fPIC", "-O2", "-o", shim, dev.ROOT / "tests" / "chaos" / "diskfaults.c", "-ldl")
        self._make(count, partitions)
        self.network = sandbox.Network()
        self.shim, self.lies = shim, lies
        self.nodes = []
        # Nodes that come and go; clients do not know them.
        self.guests = []
        for number in range(count):
            self.network.add(number)
            disk = sandbox.Disk(directory, number)
            node = Node(number, disk, directory, dev.BIN / "mailnode", shim, self.network, lies)
            shutil.copytree(directory / "dev" / "data" / f"node-{number}" / "data", disk.path / "data")
            self._configure(node, count)
            sandbox.run("sync", "-f", disk.path)
            self.nodes.append(node)
        self.peers = yaml.safe_load(self.nodes[0].config.read_text())["peers"]
        self.stopping = threading.Event()
        threading.Thread(target=self._supervise, daemon=True).start()

    def _make(self, count, partitions):
        """`quorumail dev` makes certificates, configurations and accounts, on this network's own loopback."""
        shape = json.dumps({"apiVersion": "quorumail.io/v1alpha1", "kind": "MailCluster", "metadata": {"name": "dev"},
                            "spec": {"nodes": count, "partitions": partitions}})
        made = dev.Dev(self.directory / "dev", {"people.yaml": dev.people(self.names), "cluster.yaml": shape}, nodes=count)
        try:
            made.wait_ready(180)
        finally:
            made.stop()

    def _configure(self, node, count):
        config = yaml.safe_load((self.directory / "dev" / "data" / f"node-{node.number}" / "mailnode.yaml").read_text())
        at = [sandbox.address(n) for n in range(count)]
        config["dataDir"] = str(node.disk.path / "data")
        config["listen"] = {"host": at[node.number], "portOffset": 0}
        for peer in config["peers"]:
            peer["address"] = f"{at[peer['node']]}:{PORTS['peer']}"
            peer["admin"] = f"{at[peer['node']]}:{PORTS['admin']}"
        # The nodes have kept the list with the addresses that they had before.
        config["generation"] += 1
        # Deleted mail goes for good while the run lasts, so that there is something to compact.
        config["deletedMail"] = {"keep": "3s"}
        # All clients come from one address here.
        config["limits"] = {"smtpConnectionsPerAddress": 500, "imapConnectionsPerAddress": 500}
        node.config.write_text(yaml.safe_dump(config))

    @property
    def all(self):
        return [*self.nodes, *self.guests]

    def invite(self):
        """A node more, with an empty disk, not yet started: known to the others with the next `tell`."""
        number = len(self.all)
        self.network.add(number)
        node = Node(number, sandbox.Disk(self.directory, number), self.directory, dev.BIN / "mailnode", self.shim, self.network,
                    self.lies)
        config = yaml.safe_load(self.nodes[0].config.read_text())
        config["node"] = number
        config["hostname"] = f"node{number}.test"
        config["dataDir"] = str(node.disk.path / "data")
        config["listen"] = {"host": sandbox.address(number), "portOffset": 0}
        node.config.write_text(yaml.safe_dump(config))
        self.guests.append(node)
        return node

    def tell(self, numbers, leaving=()):
        """Gives all nodes a list of these, by their configuration files, under the next generation."""
        known = {peer["node"]: peer for peer in self.peers}
        at = {n: sandbox.address(n) for n in numbers}
        self.peers = [{**known.get(n, {}), "node": n, "address": f"{at[n]}:{PORTS['peer']}", "admin": f"{at[n]}:{PORTS['admin']}",
                       "leaving": n in leaving} for n in numbers]
        for node in self.all:
            config = yaml.safe_load(node.config.read_text())
            config["generation"] += 1
            config["peers"] = self.peers
            new = node.config.with_suffix(".new")
            new.write_text(yaml.safe_dump(config))
            new.replace(node.config)
        return config["generation"]

    def follow(self, generation):
        """Whether all nodes of the list that run follow it."""
        listed = {peer["node"] for peer in self.peers if not peer["leaving"]}
        told = [node.metrics().get(("quorumail_topology_generation", "")) for node in self.all if node.number in listed]
        return all(value == generation for value in told)

    def partitions_of(self, node):
        """How many partitions the node has replicas of; none when it does not answer."""
        held = [labels for name, labels in node.metrics() if name == "quorumail_group_applied_index"]
        return len([labels for labels in held if labels != 'group="0"']) if held else None

    def voters(self):
        """Group -> how many voters it has, told by its leader."""
        return {labels: value for node in self.all for (name, labels), value in node.metrics().items()
                if name == "quorumail_group_voters"}

    def wait_for(self, condition, what, within=120):
        end = time.monotonic() + within
        while not condition():
            if time.monotonic() > end:
                self.history.add(op="not-whole", outcome="ok", why=f"{within} s after a change of nodes: no {what}")
                return
            time.sleep(0.25)

    def _supervise(self):
        """Starts again what ended by itself, and writes down what had no reason to."""
        while not self.stopping.wait(0.1):
            for node in self.all:
                with node.lock:
                    if not node.wanted or node.process.poll() is None:
                        continue
                    if node.ended_at is None:
                        node.ended_at = time.monotonic()
                        self.history.add(op="exit", node=node.number, code=node.process.returncode, expected=node.may_fail,
                                         outcome="ok", last=last_error(node.log_path))
                    elif time.monotonic() > node.ended_at + RESTART_AFTER:
                        node.start()

    def address(self, node, port):
        return f"{sandbox.address(node)}:{PORTS[port]}"

    def leaders(self):
        """node -> how many groups it leads, as the nodes themselves say."""
        count = {}
        for node in self.nodes:
            count[node.number] = sum(v for (name, _), v in node.metrics().items() if name == "quorumail_group_leads")
        return count

    def why_not_whole(self):
        """None when every node is ready and every group has all its replicas in sync; else what is missing."""
        members = [*self.nodes, *(guest for guest in self.guests if guest.wanted)]
        for node in members:
            reason = node.why_not_ready()
            if reason:
                return f"node {node.number}: {reason}"
        groups, leads, behind = set(), set(), []
        for node in members:
            facts = node.metrics()
            for (name, labels), value in facts.items():
                if name == "quorumail_group_leads" and value:
                    leads.add(labels)
                if name == "quorumail_group_voters_in_sync" and value < facts.get(("quorumail_group_voters", labels), value):
                    behind.append(f"{labels} has {value:.0f} replicas in sync")
            groups |= {labels for (name, labels) in facts if name == "quorumail_group_has_leader"}
        if not groups:
            return "the metrics do not answer"
        if missing := groups - leads:
            return f"{sorted(missing)[0]} has no leader"
        return behind[0] if behind else None

    def wait_whole(self, within):
        """Answers None when the cluster is whole within the time, else what is still missing."""
        end = time.monotonic() + within
        while reason := self.why_not_whole():
            if time.monotonic() > end:
                return reason
            time.sleep(0.25)
        return None

    def waiting_local_recipients(self):
        return sum(value for node in self.nodes for (name, labels), value in node.metrics().items()
                   if name == "quorumail_queue_recipients" and 'class="local"' in labels)

    def login(self, node, name, timeout=30):
        return mail.login(self.address(node, "imaps"), f"{name}@example.org", "a password", timeout)

    def heal(self):
        """Takes every fault away and starts what is down."""
        self.network.heal()
        for node in self.nodes:
            node.well()
            node.disk.empty()
            if node.paused:
                node.pause(False)
            node.start()
        # Guests are taken out by the fault that let them in.

    def close(self):
        delayed, failed = (sum(counts) for counts in zip(*(node.faults.counts() for node in self.all)))
        self.history.add(op="disk-faults", outcome="ok", delayed=delayed, failed=failed)
        self.stopping.set()
        for node in self.all:
            node.kill()


def last_error(path):
    """The last words of a node that matter, from its log."""
    try:
        with open(path, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 20_000))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    loud = [line for line in lines if '"ERROR"' in line or not line.startswith("{")]
    return (loud or lines or [""])[-1][-600:]
