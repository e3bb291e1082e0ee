"""Chaos: real mailnodes, each in a network namespace and on a disk of its own, under faults drawn from a seed, with clients
that write down every operation; then a judge over what they wrote down.

    chaos.py [--seed N] [--minutes M] [--nodes N] [--only FAULT]...     runs, reports; exit status 0: all promises were kept
    chaos.py --judge HISTORY [--nodes N]                                judges a kept history again

Everything lives in namespaces that end with the program (sandbox.py). History and logs are kept when something was found."""

import argparse
import random
import shutil
import statistics
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import checker  # noqa: E402
import clients  # noqa: E402
import history as histories  # noqa: E402
import mail  # noqa: E402
import nemesis as nemeses  # noqa: E402
import nodes  # noqa: E402
import sandbox  # noqa: E402

NAMES = [f"user{n}" for n in range(6)]
PARTITIONS = 6
# For the queues to be empty at the end, and for each reading of the end.
END_WITHIN = 180
PUSHED_WITHIN = 20
# Findings of one kind in the report; the others are like them.
SHOWN = 8
WRITES = ("send", "append", "store", "copy", "move", "expunge")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=None, help="everything that is drawn is drawn from it (default: a new one)")
    parser.add_argument("--minutes", type=float, default=5, help="of faults; beginning and end come on top")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--only", action="append", help="only faults with this in their name; may be given several times")
    parser.add_argument("--quiet", type=float, default=3, help="seconds of peace between faults, at most")
    parser.add_argument("--lying-disks", action="store_true",
                        help="disks say that they synced and did not: the run must find mail lost when power is")
    parser.add_argument("--keep", type=Path, default=None, help="where to keep history and logs when something is found")
    parser.add_argument("--judge", type=Path, help="judge this history and do nothing else")
    return parser.parse_args()


def main():
    asked = arguments()
    if asked.judge:
        records = histories.read(asked.judge)
        return report(records, checker.check(records, range(asked.nodes)))
    asked.seed = random.randrange(1 << 31) if asked.seed is None else asked.seed
    print(f"chaos: seed {asked.seed}, {asked.minutes:g} minutes, {asked.nodes} nodes", flush=True)
    directory = sandbox.enter()
    history = histories.History(directory / "history.jsonl")
    run(asked, directory, history)
    history.close()
    status = report(history.records, checker.check(history.records, range(asked.nodes)))
    if status:
        keep(asked, directory)
    return status


def run(asked, directory, history):
    """The run itself: whatever breaks in it is written down as a finding, and what was started is ended."""
    cluster = None
    workers = []
    try:
        cluster = nodes.Cluster(directory, asked.nodes, NAMES, PARTITIONS, history, asked.lying_disks)
        cluster.heal()
        missing = cluster.wait_whole(END_WITHIN)
        if missing:
            history.add(op="not-whole", outcome="ok", why=f"before any fault: {missing}")
            return
        targets = clients.prepare(cluster, history, asked.seed)
        workers = clients.crew(cluster, history, asked.seed, targets)
        for worker in workers:
            worker.start()
        nemesis = nemeses.Nemesis(cluster, history, asked.seed, asked.only, asked.quiet)
        if nemesis.left_out:
            print(f"left out, for loop devices are not to be had here: {', '.join(nemesis.left_out)}")
        time.sleep(3)
        is_whole = nemesis.run(time.monotonic() + asked.minutes * 60, threading.Event())
        finish(cluster, history, workers, END_WITHIN if is_whole else 5)
    except Exception as error:
        # A run that broke proves nothing: it must not pass.
        traceback.print_exc()
        history.add(op="harness", outcome="ok", error=repr(error))
    finally:
        for worker in workers:
            worker.stop.set()
        if cluster:
            cluster.close()


def finish(cluster, history, workers, within):
    """Quiet: clients end, the cluster becomes whole, queues run empty; then everything is read through every node that is
    there, and the judge asks for the others."""
    cluster.heal()
    for worker in workers:
        worker.stop.set()
    for worker in workers:
        worker.join(clients.TIMEOUT * 3)
    missing = cluster.wait_whole(within)
    if missing:
        history.add(op="not-whole", outcome="ok", why=f"{within} s after the last fault the cluster is not whole: {missing}")
    else:
        clients.news_is_pushed(cluster, history, PUSHED_WITHIN)
        mail.wait_for(lambda: cluster.waiting_local_recipients() == 0, within=within, every=0.5, what="empty local queues")
    # What is still under way somewhere has its last chance to take effect before it is looked at.
    time.sleep(3)
    for node in cluster.nodes:
        if node.why_not_ready() is None:
            clients.final(cluster, history, node.number, within)


def keep(asked, directory):
    kept = asked.keep or Path(__file__).resolve().parents[2] / "out" / "chaos" / str(asked.seed)
    kept.mkdir(parents=True, exist_ok=True)
    for path in [*directory.glob("*.jsonl"), *directory.glob("*.log"), *directory.glob("dev/*.log")]:
        shutil.copy(path, kept)
    print(f"history and logs are in {kept}")
    only = "".join(f" --only {part!r}" for part in asked.only or ())
    lies = " --lying-disks" if asked.lying_disks else ""
    print(f"the same again: {sys.argv[0]} --seed {asked.seed} --minutes {asked.minutes:g} --nodes {asked.nodes} "
          f"--quiet {asked.quiet:g}{lies}{only}")


# ---- the report ------------------------------------------------------------------------------------------------


def report(records, findings):
    phases = [r for r in records if r["op"] == "phase"]
    injected = Counter(name for r in phases for name in r["names"])
    print(f"\n{'fault':<42}{'times':>6}{'longest pause of writes, s':>30}{'whole again after, s':>24}")
    pauses = pauses_by_kind(records, phases)
    again = defaultdict(list)
    for r in phases:
        for name in r["names"]:
            again[name].append(r["end"] - r["healed"])
    for name, count in sorted(injected.items()):
        longest = f"{max(pauses[name]):.1f} (median {statistics.median(pauses[name]):.1f})" if pauses[name] else "-"
        print(f"{name:<42}{count:>6}{longest:>30}{max(again[name]):>24.1f}")
    print(f"\n{'operation':<20}{'ok':>8}{'refused':>9}{'unknown':>9}")
    outcomes = defaultdict(Counter)
    for r in records:
        if r["op"] not in ("phase", "exit", "disk-faults", "kill"):
            outcomes[r["op"]][r["outcome"]] += 1
    for op, count in sorted(outcomes.items()):
        print(f"{op:<20}{count['ok']:>8}{count['refused']:>9}{count['unknown']:>9}")
    ends = Counter("expected" if r["expected"] else "unexpected" for r in records if r["op"] == "exit")
    print(f"\n{len(phases)} phases, {sum(injected.values())} faults; nodes that ended by themselves: {dict(ends) or 'none'}")
    print(f"kill -9 with a restart at once: {sum(r['op'] == 'kill' for r in records)}")
    for r in records:
        if r["op"] == "disk-faults":
            print(f"calls to disks that were delayed: {r['delayed']}, that failed: {r['failed']}")
    kinds = Counter(f.kind for f in findings)
    for kind, count in sorted(kinds.items()):
        print(f"FOUND {kind} ({count} times):")
        for text in list(dict.fromkeys(f.text for f in findings if f.kind == kind))[:SHOWN]:
            print(f"    {text}")
    print(f"verdict: {'every promise was kept' if not findings else dict(kinds)}")
    passed = len(CHECKS - kinds.keys())
    print(f"{passed} passed, {len(kinds)} failed")
    return 1 if findings else 0


# What is looked for; the names of the findings.
CHECKS = {"harness", "exit", "view", "not-whole", "not-stopped", "pushed", "protocol", "undecided", "lost", "refused-kept",
          "came-back", "twice", "misplaced", "divergence", "unread", "phantom", "body", "uidvalidity", "uid-reused", "uid-order",
          "not-seen", "modseq-back", "modseq-flags", "flags", "store-echo"}


def pauses_by_kind(records, phases):
    """Fault -> for each time it was injected: the longest time in which nothing written to some one mailbox was acknowledged,
    from its beginning until the cluster was whole again."""
    times = defaultdict(list)
    for r in records:
        if r["op"] in WRITES and r["outcome"] == "ok":
            for account in r["to"] if r["op"] == "send" else [r["account"]]:
                times[account].append(r["end"])
    pauses = defaultdict(list)
    for phase in phases:
        longest = 0.0
        for acknowledged in times.values():
            inside = [phase["begin"], *sorted(t for t in acknowledged if phase["begin"] < t < phase["end"]), phase["end"]]
            longest = max(longest, max(b - a for a, b in zip(inside, inside[1:])))
        for name in phase["names"]:
            pauses[name].append(longest)
    return pauses


if __name__ == "__main__":
    try:
        code = main()
    except (sandbox.Impossible, ValueError) as why:
        print(f"chaos: {why}", file=sys.stderr)
        print("0 passed, 1 failed")
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    sys.exit(code)
