"""The faults, and in what order they come: all from the seed.

A phase injects one fault, sometimes two on different nodes, keeps it for a while, takes it away, waits until the cluster is
whole again (every node Ready, every replica in sync) and leaves it in peace for a moment. What may cost a node its disk comes
alone and only to a whole cluster: the promise is about the loss of a minority."""

import errno
import random
import time

# Free bytes of a disk of 2 GiB: between the marks below which no new mail is taken and nothing is written at all (256 and
# 128 MiB, mailnode/server/src/disk.rs), and below both.
NEARLY_FULL = [192 << 20, 96 << 20]
# For the cluster to be whole again after a phase. Generous: the machine may be slow, and a disk may have to be refilled.
WHOLE_WITHIN = 180
KINDS = {}


def kind(name, alone=False, needs_power=False, disk_fails=False):
    """Registers a kind of fault. The function injects it on a node and may answer what is to be done at its end."""

    def register(function):
        KINDS[name] = function
        function.name, function.alone, function.needs_power, function.disk_fails = name, alone, needs_power, disk_fails
        return function

    return register


class Stage:
    """What a fault gets to work with."""

    def __init__(self, cluster, choose, wait):
        self.cluster = cluster
        self.choose = choose
        self.wait = wait

    @property
    def nodes(self):
        return self.cluster.nodes

    def others(self, node):
        return [other for other in self.nodes if other is not node]

    def leader(self):
        """The node that leads the most groups."""
        leads = self.cluster.leaders()
        return self.nodes[max(leads, key=lambda number: (leads[number], -number))]


@kind("kill -9, restarted at once")
def kill_and_start(stage, node):
    for _ in range(stage.choose.choice([1, 1, 3])):
        node.kill()
        node.start()
        stage.cluster.history.add(op="kill", node=node.number, outcome="ok")
        stage.wait(stage.choose.uniform(0.2, 2.5))


@kind("kill -9 of a leader, restarted at once")
def kill_leader(stage, _):
    kill_and_start(stage, stage.leader())


@kind("kill -9, down for a while")
def kill_and_leave(stage, node):
    node.kill()
    return node.start


@kind("kill -9 of all", alone=True)
def kill_all(stage, _):
    for other in stage.nodes:
        other.signal(9)
    for other in stage.nodes:
        other.kill()
    for other in stage.nodes:
        other.start()


@kind("power lost by one", needs_power=True)
def power_one(stage, node):
    node.kill()
    node.disk.lose_power()
    node.well()
    return node.start


@kind("power lost by all", alone=True, needs_power=True)
def power_all(stage, _):
    for other in stage.nodes:
        other.signal(9)
    for other in stage.nodes:
        other.kill()
    for other in stage.nodes:
        other.disk.lose_power()
        other.well()
        other.start()


@kind("SIGSTOP")
def pause(stage, node):
    node.pause(True)
    return lambda: node.pause(False)


@kind("SIGSTOP of a leader, on and off")
def flap(stage, _):
    node = stage.leader()
    for _ in range(4):
        node.pause(True)
        stage.wait(stage.choose.uniform(0.3, 1.5))
        node.pause(False)
        stage.wait(stage.choose.uniform(0.2, 0.8))


@kind("isolated")
def isolate(stage, node):
    for other in stage.others(node):
        stage.cluster.network.drop(node.number, other.number)
        stage.cluster.network.drop(other.number, node.number)
    return stage.cluster.network.heal


@kind("leader isolated")
def isolate_leader(stage, _):
    return isolate(stage, stage.leader())


@kind("two nodes cut from each other")
def cut(stage, node):
    other = stage.choose.choice(stage.others(node))
    stage.cluster.network.drop(node.number, other.number)
    stage.cluster.network.drop(other.number, node.number)
    return stage.cluster.network.heal


@kind("one-way: hears nobody")
def deaf(stage, node):
    for other in stage.others(node):
        stage.cluster.network.drop(other.number, node.number)
    return stage.cluster.network.heal


@kind("one-way: heard by nobody")
def mute(stage, node):
    for other in stage.others(node):
        stage.cluster.network.drop(node.number, other.number)
    return stage.cluster.network.heal


@kind("packets lost")
def lossy(stage, node):
    loss = stage.choose.choice([0.05, 0.2, 0.4])
    for other in stage.others(node):
        stage.cluster.network.drop(node.number, other.number, loss)
        stage.cluster.network.drop(other.number, node.number, loss)
    return stage.cluster.network.heal


@kind("slow disk")
def slow(stage, node):
    node.faults.set(node.disk.device(), sync_delay=stage.choose.choice([0.02, 0.1, 0.5]), write_delay=stage.choose.choice([0, 0.005]))
    return node.well


@kind("disk nearly full")
def nearly_full(stage, node):
    node.disk.fill(leave=stage.choose.choice(NEARLY_FULL))
    return node.disk.empty


@kind("disk full", alone=True, disk_fails=True)
def full(stage, node):
    node.disk.fill(leave=0)
    return node.disk.empty


def failing(stage, node, **errors):
    """The node ends by itself; what it had not synced is lost as well where that can be done."""
    node.faults.set(node.disk.device(), **errors)
    end = time.monotonic() + 15
    while node.process.poll() is None and time.monotonic() < end:
        stage.wait(0.1)
    node.kill()
    if node.disk.can_lose_power:
        node.disk.lose_power()
    node.well()
    return node.start


@kind("fsync fails", alone=True, disk_fails=True)
def fsync_fails(stage, node):
    return failing(stage, node, sync_error=errno.EIO)


@kind("write fails", alone=True, disk_fails=True)
def write_fails(stage, node):
    return failing(stage, node, write_error=errno.EIO)


@kind("disk lost", alone=True)
def disk_lost(stage, node):
    node.kill()
    node.disk.lose_all()
    node.well()
    return node.start


@kind("disk lost while another node is behind", alone=True)
def forgotten(stage, node):
    """What only two nodes have: one loses its disk, the other is down. The empty one must not help the one that is behind to
    an election: it has forgotten what it voted for and what it stored."""
    behind, other = stage.choose.sample(stage.others(node), 2)
    isolate(stage, behind)
    stage.wait(stage.choose.uniform(2, 4))
    other.kill()
    node.kill()
    node.disk.lose_all()
    node.well()
    stage.cluster.network.heal()
    node.start()
    return other.start


@kind("rolling restart", alone=True)
def rolling(stage, _):
    for other in stage.nodes:
        if not other.stop():
            stage.cluster.history.add(op="not-stopped", outcome="ok", why=f"node {other.number} did not end well at SIGTERM")
        other.start()
        stage.cluster.wait_whole(WHOLE_WITHIN)


@kind("members: a node added, later removed", alone=True)
def guest(stage, _):
    """Replicas move to a node more while mail flows, and back when it leaves."""
    cluster, own = stage.cluster, [node.number for node in stage.nodes]
    node = cluster.guests[0] if cluster.guests else cluster.invite()
    generation = cluster.tell([*own, node.number])
    node.start()
    cluster.wait_for(lambda: cluster.follow(generation) and cluster.partitions_of(node) and not cluster.why_not_whole(),
                     "replicas on the node that was added")

    def leave():
        generation = cluster.tell([*own, node.number], leaving=[node.number])
        cluster.wait_for(lambda: cluster.follow(generation) and cluster.partitions_of(node) == 0, "end of the moves to the others")
        generation = cluster.tell(own)
        cluster.wait_for(lambda: cluster.follow(generation), "node that follows the list without the one that left")
        node.kill()
        node.disk.lose_all()
        node.well()

    return leave


@kind("members: a node replaced by an empty one", alone=True)
def replaced(stage, node):
    """Its disk is gone and it is taken out; then it comes back empty, as a node that was added."""
    cluster, own = stage.cluster, [other.number for other in stage.nodes]
    others = [number for number in own if number != node.number]
    node.kill()
    node.disk.lose_all()
    node.well()
    generation = cluster.tell(own, leaving=[node.number])
    fewer = lambda: all(value <= len(others) for value in cluster.voters().values())  # noqa: E731
    cluster.wait_for(lambda: cluster.follow(generation) and fewer(), "group without the node that is gone")
    generation = cluster.tell(others)
    cluster.wait_for(lambda: cluster.follow(generation), "node that follows the list without the one that is gone")

    def come_back():
        generation = cluster.tell(own)
        node.start()
        full = min(3, len(own))
        cluster.wait_for(lambda: cluster.follow(generation) and all(value >= full for value in cluster.voters().values()),
                         "replicas on the node that came back")

    return come_back


class Nemesis:
    """Runs phases until the time is over, in an order in which every kind comes once before any comes again."""

    def __init__(self, cluster, history, seed, only=None, quiet=3.0):
        self.cluster = cluster
        self.history = history
        self.quiet = quiet
        self.choose = random.Random(f"{seed}/nemesis")
        power = all(node.disk.can_lose_power for node in cluster.nodes)
        possible = [name for name, function in KINDS.items() if power or not function.needs_power]
        self.left_out = [name for name in KINDS if name not in possible]
        self.kinds = [name for name in possible if not only or any(part in name for part in only)]
        if not self.kinds:
            raise ValueError(f"no fault is called {only}; there are: {', '.join(possible)}")
        self.deck = []

    def draw(self):
        if not self.deck:
            self.deck = list(self.kinds)
            self.choose.shuffle(self.deck)
        return KINDS[self.deck.pop()]

    def run(self, until, stop):
        """Answers whether the cluster became whole again after every phase."""
        while time.monotonic() < until and not stop.is_set():
            if not self.phase(stop):
                return False
        return True

    def phase(self, stop):
        first = self.draw()
        faults = [first]
        if not first.alone and self.choose.random() < 0.25:
            second = self.draw()
            if second.alone or second is first:
                self.deck.append(second.name)
            else:
                faults.append(second)
        targets = self.choose.sample(self.cluster.nodes, len(faults))
        lasting = self.choose.uniform(2, 7)
        begin = time.monotonic()
        stage = Stage(self.cluster, self.choose, stop.wait)
        allowed = any(fault.disk_fails for fault in faults)
        for node in self.cluster.nodes:
            node.may_fail = allowed
        ends = [fault(stage, node) for fault, node in zip(faults, targets)]
        stop.wait(lasting if any(ends) else 0.5)
        for end in ends:
            if end:
                end()
        self.cluster.heal()
        healed = time.monotonic()
        missing = self.cluster.wait_whole(WHOLE_WITHIN)
        for node in self.cluster.nodes:
            node.may_fail = False
        names = " + ".join(fault.name for fault in faults)
        phase = {"names": [fault.name for fault in faults], "nodes": [node.number for node in targets], "begin": begin,
                 "healed": healed, "end": time.monotonic()}
        self.history.add(op="phase", outcome="ok", **{**phase, "client": "nemesis"})
        took = f"{healed - begin:.1f} s, whole again after {phase['end'] - healed:.1f} s"
        print(f"{time.strftime('%T')} {names} (node {' and '.join(map(str, phase['nodes']))}): {took}", flush=True)
        if missing:
            self.history.add(op="not-whole", outcome="ok", why=f"{WHOLE_WITHIN} s after {names} on "
                             f"{[node.number for node in targets]} the cluster is not whole: {missing}")
            return False
        stop.wait(self.choose.uniform(self.quiet / 3, self.quiet))
        return True
