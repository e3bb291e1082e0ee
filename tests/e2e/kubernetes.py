"""The Kubernetes that the end-to-end tests and the demo use: one that the user names, kind with Docker, or the
three-node cluster of tests/cluster. All of them are driven by kubectl; only faults are the local cluster's own."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out"
IMAGE = "quorumail/quorumail:dev"
# What counts as the chart released last, until there is a release: upgrades are tried from it.
PREVIOUS_CHART = "0748fd7"


class Unavailable(Exception):
    """Why a kind of cluster cannot be used here."""


def run(*command, check=True, input=None, timeout=600, env=None, quiet=True):
    """Runs a command and answers its standard output; its words are part of the error when it fails."""
    done = subprocess.run(command, input=input, text=True, timeout=timeout, env=env,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE if quiet else None)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed ({done.returncode}):\n{done.stdout}{done.stderr or ''}")
    return done.stdout


class Kubernetes:
    """A cluster behind kubectl. `direct`: pods and Services can be reached from this machine by their addresses."""

    direct = False

    def __init__(self, name, env=None, context=None, bin_dir=None):
        self.name = name
        self.env = {**os.environ, **(env or {})}
        if bin_dir:
            self.env["PATH"] = f"{bin_dir}:{self.env['PATH']}"
        self.context = ["--context", context] if context else []
        self.helm_context = ["--kube-context", context] if context else []
        self.forwards = []

    def kubectl(self, *args, check=True, input=None, timeout=600):
        return run(*self.kubectl_line(), *args, check=check, input=input, timeout=timeout, env=self.env)

    def kubectl_line(self):
        return [shutil.which("kubectl", path=self.env["PATH"]), *self.context]

    def helm(self, *args, timeout=600):
        return run(shutil.which("helm", path=self.env["PATH"]), *self.helm_context, *args, env=self.env, timeout=timeout)

    def get(self, *args):
        return json.loads(self.kubectl("get", *args, "-o", "json"))

    def apply(self, text):
        return self.kubectl("apply", "-f", "-", input=text)

    def wait(self, condition, *objects, namespace="mail", within=300):
        return self.kubectl("-n", namespace, "wait", f"--for=condition={condition}", f"--timeout={within}s", *objects,
                            timeout=within + 30)

    def secret(self, name, key, namespace="mail"):
        return base64.b64decode(self.get("-n", namespace, "secret", name)["data"][key]).decode()

    def condition(self, kind, name, type_="Ready", namespace="mail"):
        """The condition as a dict; empty while there is none."""
        status = self.get("-n", namespace, kind, name).get("status", {})
        return next((c for c in status.get("conditions", []) if c["type"] == type_), {})

    def load(self, archive):
        raise NotImplementedError

    def address(self, target, port, namespace="mail"):
        """host:port at which `pod/x` or `service/x` can be reached from here."""
        kind, name = target.split("/")
        if self.direct:
            thing = self.get("-n", namespace, kind, name)
            host = thing["status"]["podIP"] if kind == "pod" else thing["spec"]["clusterIP"]
            return f"{host}:{port}"
        tool = shutil.which("kubectl", path=self.env["PATH"])
        forward = subprocess.Popen([tool, *self.context, "-n", namespace, "port-forward", target, f":{port}"],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=self.env)
        self.forwards.append(forward)
        found = re.search(r":(\d+) ->", forward.stdout.readline())
        if not found:
            raise RuntimeError(f"cannot forward a port to {target}")
        return f"127.0.0.1:{found[1]}"

    def kill_pod(self, pod, namespace="mail", program="mailnode"):
        """The nearest to kill -9 that any cluster offers."""
        self.kubectl("-n", namespace, "delete", "pod", pod, "--grace-period=0", "--force")

    def close(self):
        for forward in self.forwards:
            forward.terminate()
            forward.wait()
        self.forwards.clear()


class Kind(Kubernetes):
    """kind on a Docker engine."""

    def __init__(self):
        if not shutil.which("kind"):
            raise Unavailable("the command kind is not installed")
        if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
            raise Unavailable("no Docker engine answers")
        for tool in ["kubectl", "helm"]:
            if not shutil.which(tool):
                raise Unavailable(f"the command {tool} is not installed")
        if "quorumail" not in run("kind", "get", "clusters").split():
            run("kind", "create", "cluster", "--name", "quorumail", "--config", "-", quiet=False, input=(
                "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n"
                "nodes: [{role: control-plane}, {role: worker}, {role: worker}, {role: worker}]\n"))
        super().__init__("kind", context="kind-quorumail")

    def load(self, archive):
        run("kind", "load", "image-archive", "--name", "quorumail", str(archive))


class Named(Kubernetes):
    """A cluster that the user named; the image must be where its nodes can pull it (QUORUMAIL_E2E_IMAGE)."""

    def __init__(self, context):
        if not os.environ.get("QUORUMAIL_E2E_IMAGE"):
            raise Unavailable("QUORUMAIL_E2E_CONTEXT needs QUORUMAIL_E2E_IMAGE: an image that its nodes can pull")
        super().__init__(f"context {context}", context=context)

    def load(self, archive):
        pass


class Local(Kubernetes):
    """The three nodes of tests/cluster, in network namespaces of this machine."""

    direct = True

    def __init__(self):
        if os.geteuid() != 0 or os.uname().sysname != "Linux":
            raise Unavailable("the local three-node cluster needs root on Linux")
        self.tool = str(OUT / "cluster")
        if not Path(self.tool).exists():
            raise Unavailable("out/cluster is not built (make cluster)")
        run(self.tool, "build", quiet=False, timeout=3600)
        run(self.tool, "up", quiet=False, timeout=900)
        super().__init__("local three-node cluster", env={"KUBECONFIG": run(self.tool, "kubeconfig").strip()},
                         bin_dir=run(self.tool, "bin").strip())

    def load(self, archive):
        run(self.tool, "load", str(archive), timeout=900)

    def lose_node(self, node):
        """kill -9 of kubelet, containerd and every container of a node."""
        run(self.tool, "node", "stop", node, "--hard")

    def start_node(self, node):
        run(self.tool, "node", "start", node, timeout=300)

    def stop_api(self):
        """Ends the API server at once, until start_api."""
        run(self.tool, "api", "stop")

    def start_api(self):
        run(self.tool, "api", "start", timeout=150)

    def kill_pod(self, pod, namespace="mail", program="mailnode"):
        """kill -9 of the pod's process of this program."""
        os.kill(self.process_of(pod, namespace, program), signal.SIGKILL)

    def kill_pod_for_good(self, pod, namespace, program):
        """The same, and its pod is gone with it. A kubelet that has not heard of that may start it once more, for a moment."""
        uid = self.get("-n", namespace, "pod", pod)["metadata"]["uid"]
        self.kill_pod(pod, namespace, program)
        self.kubectl("-n", namespace, "delete", "pod", pod, "--grace-period=0", "--force")
        end = time.monotonic() + 60
        while any(uid in group.name or uid.replace("-", "_") in group.name for group in Path("/sys/fs/cgroup").rglob("*pod*")):
            assert time.monotonic() < end, f"what is left of pod {pod} does not end"
            time.sleep(0.2)

    def process_of(self, pod, namespace, program):
        """Found by its control group."""
        uid = self.get("-n", namespace, "pod", pod)["metadata"]["uid"]
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")[0]
                groups = (process / "cgroup").read_text()
            except OSError:
                continue
            if command.endswith(program.encode()) and (uid in groups or uid.replace("-", "_") in groups):
                return int(process.name)
        raise RuntimeError(f"no {program} process of pod {pod} runs here")


def find(say=print):
    """The cluster to use, in the order: a named context, kind with Docker, the local one. Says which and why."""
    context = os.environ.get("QUORUMAIL_E2E_CONTEXT")
    if context:
        say(f"Kubernetes: the context {context}, because QUORUMAIL_E2E_CONTEXT names it")
        return Named(context)
    reasons = []
    for kind in [Kind, Local]:
        try:
            found = kind()
        except Unavailable as reason:
            reasons.append(f"not {kind.__name__.lower()}: {reason}")
            continue
        say(f"Kubernetes: {found.name}" + (f" ({'; '.join(reasons)})" if reasons else ""))
        return found
    raise Unavailable("; ".join(reasons))


def install(kubernetes, say=print):
    """Installs or upgrades the chart with the image of this checkout, and waits until the operator works."""
    image = os.environ.get("QUORUMAIL_E2E_IMAGE", IMAGE)
    repository, tag = image.rsplit(":", 1)
    archive = OUT / "quorumail.tar"
    say("loading the image into the nodes")
    kubernetes.load(archive)
    say("installing the chart")
    kubernetes.helm("upgrade", "--install", "quorumail", str(ROOT / "charts" / "quorumail"),
                    "--namespace", "quorumail-system", "--create-namespace", "--wait", "--timeout", "5m",
                    "--set", f"image.repository={repository},image.tag={tag},image.pullPolicy=IfNotPresent")


def install_previous_chart(kubernetes, directory, say=print):
    """Installs the chart released last, without an operator that could run, unless some chart is there already."""
    if "quorumail" in kubernetes.helm("list", "--all", "--namespace", "quorumail-system", "--short").split():
        return False
    try:
        run("git", "-C", str(ROOT), "archive", "--format=tar", "-o", str(directory / "chart.tar"), PREVIOUS_CHART, "charts/quorumail")
    except (OSError, RuntimeError) as error:
        # Sources without their history, as those of a release.
        say(f"no upgrade is tried: {error}")
        return False
    say(f"installing the chart of {PREVIOUS_CHART}, to upgrade from it")
    run("tar", "-C", str(directory), "-xf", str(directory / "chart.tar"))
    kubernetes.helm("install", "quorumail", str(directory / "charts" / "quorumail"), "--namespace", "quorumail-system",
                    "--create-namespace", "--set", "image.tag=none,image.pullPolicy=Never")
    kinds = [name for name in kubernetes.kubectl("get", "crd", "-o", "name").split() if name.endswith(".quorumail.io")]
    kubernetes.kubectl("wait", "--for=condition=Established", *kinds, "--timeout=60s")
    return True


def wait_port(address, within=60):
    """Waits until something accepts connections there."""
    host, port = address.rsplit(":", 1)
    end = time.monotonic() + within
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
