"""A piece of machine of the run's own: network, mounts and processes in namespaces that end with it.

Everything is made inside one set of fresh namespaces (unshare(2)): a network with a bridge and one more network
namespace for every node, a mount namespace with the nodes' disks, a process namespace. When the program ends, by whatever
means, the kernel ends every process in it and takes network, mounts and loop devices away: nothing is left to clean."""

import ctypes
import fcntl
import os
import signal
import struct
import subprocess
import tempfile
import time
from pathlib import Path

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1
# ext4: stop at once, as at a power failure: what was not synced is lost, the journal is not flushed either.
EXT4_IOC_SHUTDOWN = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125
EXT4_GOING_FLAGS_NOLOGFLUSH = 2
CLIENTS = "10.77.0.254"


class Impossible(Exception):
    """Why a sandbox cannot be made here."""


def run(*command, check=True, timeout=60):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout)
    if check and done.returncode != 0:
        raise Impossible(f"{' '.join(map(str, command))} failed ({done.returncode}): {done.stderr.strip()}")
    return done


def enter():
    """Goes on as the first process of fresh namespaces and answers a directory in memory that ends with them. The caller's
    process stays outside, waits, passes signals on and ends with the same status."""
    if os.geteuid() != 0:
        raise Impossible("chaos runs need root: they make namespaces, mounts and a network of their own")
    # Only the mount point is on the machine; what is mounted there is seen in the mount namespace only.
    directory = Path(tempfile.mkdtemp(prefix="quorumail-chaos-"))
    # Twice: who has left a process namespace to its children cannot start anything else afterwards.
    if child := os.fork():
        status = stand_by(child)
        directory.rmdir()
        os._exit(status)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET) != 0:
        raise Impossible(f"unshare failed: {os.strerror(ctypes.get_errno())}")
    if child := os.fork():
        # Not through exit handlers: those belong to the run inside.
        os._exit(stand_by(child))
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The first process of a namespace gets only the signals that it handles.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "proc", "proc", "/proc")
    # In memory: the machine's own disk is not what is tested, and it would be slow.
    run("mount", "-t", "tmpfs", "-o", "size=75%", "tmpfs", directory)
    run("ip", "link", "set", "lo", "up")
    return directory


def stand_by(child):
    """Passes signals on to the child until it ends; answers its status."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def address(node):
    return f"10.77.0.{node + 1}"


class Network:
    """A bridge, and for every node a network namespace with one leg on it."""

    def __init__(self):
        self.holders = {}
        run("ip", "link", "add", "bridge", "type", "bridge")
        run("ip", "address", "add", f"{CLIENTS}/24", "dev", "bridge")
        run("ip", "link", "set", "bridge", "up")

    def add(self, node):
        # A process holds the namespace: the node itself comes and goes.
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.holders[node] = holder
        own = os.readlink("/proc/self/ns/net")
        end = time.monotonic() + 10
        while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
            if time.monotonic() > end:
                raise Impossible("no network namespace for a node")
            time.sleep(0.01)
        run("ip", "link", "add", f"node{node}", "type", "veth", "peer", "name", "eth0", "netns", holder.pid)
        run("ip", "link", "set", f"node{node}", "master", "bridge", "up")
        for command in (["address", "add", f"{address(node)}/24", "dev", "eth0"], ["link", "set", "eth0", "up"],
                        ["link", "set", "lo", "up"]):
            run(*self.inside(node), "ip", *command)

    def inside(self, node):
        """The beginning of a command line that runs in the node's network."""
        return ["nsenter", f"--net=/proc/{self.holders[node].pid}/ns/net"]

    def drop(self, source, target, loss=1.0):
        """Nothing (or a share of packets) that `source` sends reaches `target` any more. The sender is not told."""
        some = [] if loss >= 1.0 else ["-m", "statistic", "--mode", "random", "--probability", str(loss)]
        run(*self.inside(target), "iptables", "-w", "-A", "INPUT", "-s", address(source), *some, "-j", "DROP")

    def heal(self):
        for node in self.holders:
            run(*self.inside(node), "iptables", "-w", "-F", "INPUT")


class Disk:
    """A node's disk: an ext4 image that can lose its power, or a tmpfs where loop devices are not to be had."""

    SIZE = 2 << 30

    def __init__(self, directory, node):
        self.image = directory / f"disk-{node}.img"
        self.path = directory / f"disk-{node}"
        self.path.mkdir()
        self.ballast = self.path / "ballast"
        self.can_lose_power = True
        try:
            self._format()
            self._mount()
        except Impossible:
            self.can_lose_power = False
            self.image.unlink(missing_ok=True)
            run("mount", "-t", "tmpfs", "-o", f"size={self.SIZE}", "tmpfs", self.path)

    def _format(self):
        with open(self.image, "wb") as image:
            image.truncate(self.SIZE)
        run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", self.image)

    def _mount(self):
        run("mount", "-o", "loop,discard", self.image, self.path)

    def device(self):
        return os.stat(self.path).st_dev

    def lose_power(self):
        """The node's processes must be gone. What was not synced is gone afterwards."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, EXT4_IOC_SHUTDOWN, struct.pack("I", EXT4_GOING_FLAGS_NOLOGFLUSH))
        finally:
            os.close(handle)
        self._again(run, "umount", self.path)
        self._mount()

    def lose_all(self):
        """A new, empty disk in its place."""
        if self.can_lose_power:
            self._again(run, "umount", self.path)
            self._format()
            self._mount()
        else:
            run("find", self.path, "-mindepth", "1", "-delete")

    @staticmethod
    def _again(call, *arguments):
        # A process that was just killed may hold its files for a moment.
        for _ in range(50):
            try:
                return call(*arguments)
            except Impossible:
                time.sleep(0.1)
        return call(*arguments)

    def fill(self, leave):
        """Fills the disk but for `leave` bytes."""
        free = os.statvfs(self.path)
        room = free.f_bavail * free.f_frsize - leave
        if room <= 0:
            return
        with open(self.ballast, "wb") as ballast:
            while room > 0:
                try:
                    os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, room)
                    return
                except OSError:
                    # Blocks for the file's own map are needed as well.
                    room -= max(room // 50, 4096)

    def empty(self):
        self.ballast.unlink(missing_ok=True)

