"""The judge: what a history proves to be wrong. Pure: records in, findings out.

What is demanded, and where it comes from:
- kept: an acknowledged message is there at the end, through every node, once for each acknowledgement; what was refused is
  not there; nothing is there that nobody sent. Between: what was once acknowledged or seen is in every later reading of
  its folder on any node until somebody asked to remove it, and what was removed does not come back.
- bodies: what is read is byte for byte what was sent (before it there may be trace fields of mail that came by SMTP).
- uids: RFC 9051 2.3.1.1: UIDVALIDITY stays; a UID names one message for ever; later messages get higher ones; UIDNEXT
  is above all that were given and not above any given later.
- modseq: RFC 7162 3.1: never goes back, for a message nor for its folder; equal MOD-SEQ means equal flags.
- flags: each flag of each message is a linearizable register (register.py).
- nodes: none ends by itself but when its disk fails; each is Ready at the end; clients that idle are told of news.

"Later" is real time over all clients: an operation that began after another one had ended."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import product
from math import inf

from register import Op, Undecided, unexplained

FLAGS = ["\\Flagged", "$one", "$two"]
# Unknown outcomes that one message's fate may hang on; every one doubles the possibilities.
MAX_DOUBTS = 12


@dataclass(frozen=True)
class Finding:
    kind: str
    text: str


def check(records, nodes):
    """All findings; `nodes`: numbers of the nodes whose final readings must be there."""
    findings = []

    def found(kind, text):
        findings.append(Finding(kind, text))

    check_run(records, found)
    fates = fates_of(records)
    check_final(records, fates, nodes, found)
    check_bodies(records, fates, found)
    folders = folders_of(records)
    check_validity(folders, found)
    for folder in folders.values():
        check_uids(folder, fates, found)
        check_presence(folder, found)
        check_modseq(folder, found)
        check_flags(folder, found)
    return findings


def check_run(records, found):
    """What is wrong whatever else happened."""
    for r in records:
        if r["op"] == "harness":
            found("harness", f"{r['client']} broke: {r['error']}")
        elif r["op"] == "exit" and not r["expected"]:
            found("exit", f"node {r['node']} ended by itself ({r['code']}): {r['last']}")
        elif r["op"] == "contradiction":
            found("view", f"{r['client']} was told {r['text']} by node {r['node']}")
        elif r["op"] in ("not-whole", "not-stopped") or r["op"] == "pushed" and r["outcome"] != "ok":
            found(r["op"], r["why"])
        elif r["outcome"] == "refused" and re.match(r"t\d+ BAD ", r.get("why", "")):
            found("protocol", f"{r['client']}: {r['op']} was answered {r['why']}")


# ---- what must be where at the end ----------------------------------------------------------------------------


class Fate:
    """What was done to the copies of one message in one mailbox."""

    def __init__(self):
        self.sha = None
        self.appended = False
        self.tries = Counter()
        # ({folder: change of the number of copies}, whether it is certain)
        self.changes = []

    def possible(self):
        """All numbers of copies by folder that what happened allows, each as a sorted tuple; None: too many doubts."""
        certain = Counter()
        doubts = [{"INBOX": 1}] * self.tries["unknown"]
        certain["INBOX"] += self.tries["ok"]
        for change, is_certain in self.changes:
            if is_certain:
                certain.update(change)
            else:
                doubts.append(change)
        if len(doubts) > MAX_DOUBTS:
            return None
        answers = set()
        for taken in product([False, True], repeat=len(doubts)):
            copies = Counter(certain)
            for change, is_taken in zip(doubts, taken):
                if is_taken:
                    copies.update(change)
            answers.add(place(copies))
        return answers


def place(copies):
    return tuple(sorted((folder, number) for folder, number in copies.items() if number))


def fates_of(records):
    """(mailbox, token) -> Fate."""
    fates = defaultdict(Fate)
    for r in records:
        if r["op"] == "send":
            for name in r["to"]:
                fate = fates[name, r["token"]]
                fate.sha = r["sha"]
                fate.tries[r["outcome"]] += 1
            continue
        if r["op"] not in ("append", "copy", "move", "expunge"):
            continue
        fate = fates[r["account"], r["token"]]
        if r["op"] == "append":
            fate.sha, fate.appended, change = r["sha"], True, {r["folder"]: 1}
        elif r["op"] == "expunge":
            change = {r["folder"]: -1}
        else:
            change = {r["to"]: 1} if r["op"] == "copy" else {r["folder"]: -1, r["to"]: 1}
        if r["outcome"] != "refused" and r.get("moved", True):
            fate.changes.append((change, r["outcome"] == "ok"))
    return fates


def check_final(records, fates, nodes, found):
    finals = defaultdict(dict)
    for r in records:
        if r["op"] == "final" and r["outcome"] == "ok":
            finals[r["node"]][r["account"], r["folder"]] = r
    for node in nodes:
        read = finals.get(node, {})
        accounts = {account for account, _ in fates}
        unread = accounts - {account for account, _ in read}
        if unread:
            found("unread", f"node {node} did not show {', '.join(sorted(unread))} at the end")
        copies = defaultdict(Counter)
        for (account, folder), r in read.items():
            for message in r["messages"]:
                copies[account, message[3]][folder] += 1
        for key in copies.keys() - fates.keys():
            found("phantom", f"{key[1]} is in {key[0]}'s {dict(copies[key])} on node {node}, and nobody sent it")
        for key, fate in fates.items():
            if key[0] not in unread:
                check_fate(node, key, fate, copies[key], found)
    check_equality(finals, nodes, found)


def check_fate(node, key, fate, copies, found):
    possible = fate.possible()
    if possible is None:
        found("undecided", f"too much is unknown about {key[1]} of {key[0]}")
        return
    seen = place(copies)
    if seen in possible:
        return
    totals = [sum(number for _, number in answer) for answer in possible]
    total = sum(copies.values())
    if total < min(totals):
        kind = "lost"
    elif max(totals) == 0:
        kind = "refused-kept" if not fate.changes else "came-back"
    else:
        kind = "twice" if total > max(totals) else "misplaced"
    expected = " or ".join(str(dict(answer)) for answer in sorted(possible)[:4])
    found(kind, f"{key[1]} of {key[0]} on node {node}: {dict(copies)} where {expected} should be (sent: {dict(fate.tries)})")


def check_equality(finals, nodes, found):
    """All replicas tell the same, MOD-SEQs and flags included."""
    first = next(iter(nodes), None)
    facts = ("uidvalidity", "uidnext", "highestmodseq", "messages")
    for node in nodes:
        for place_, r in finals.get(node, {}).items():
            other = finals.get(first, {}).get(place_)
            if other is None:
                continue
            for fact in facts:
                if r[fact] != other[fact]:
                    found("divergence", f"{place_}: {fact} on node {node} is not that of node {first}: "
                          f"{difference(r[fact], other[fact])}")


def difference(here, there):
    if not isinstance(here, list):
        return f"{here} and {there}"
    here, there = ({str(message) for message in side} for side in (here, there))
    return f"only here {sorted(here - there)[:3]}, only there {sorted(there - here)[:3]}"


def check_bodies(records, fates, found):
    for r in records:
        if r["op"] == "read" and r.get("seen"):
            compare(r["account"], r["found"], r["sha"], r["before"], r, fates, found)
            if r["found"] != r["token"]:
                found("body", f"UID {r['uid']} of {r['account']}'s {r['folder']} is {r['found']}, not {r['token']}")
        elif r["op"] == "final" and r["outcome"] == "ok":
            for _, _, _, token, sha, before in r["messages"]:
                compare(r["account"], token, sha, before, r, fates, found)


def compare(account, token, sha, before, r, fates, found):
    fate = fates.get((account, token))
    if fate is not None and (fate.sha != sha or fate.appended and before):
        found("body", f"{token} read from {account}'s {r['folder']} through node {r['node']} is not what was sent")


# ---- what every folder showed ----------------------------------------------------------------------------------


class Folder:
    """Everything about one folder under one UIDVALIDITY."""

    def __init__(self, name):
        self.name = name
        self.readings = []
        self.selects = []
        # (begin, end, uid, token) of operations that were told the UID they made.
        self.made = []
        # uid -> [(begin, end, is certain)]
        self.removals = defaultdict(list)
        # Operations on one message: read, flags, store, copy, move.
        self.touches = []


def folders_of(records):
    """(mailbox, folder, UIDVALIDITY) -> Folder. UIDs that were told without one belong to the only one that is known."""
    validity = {}
    for r in records:
        if r.get("uidvalidity") is not None:
            validity.setdefault((r["account"], r["folder"]), r["uidvalidity"])
    folders = {}

    def folder(account, name, number=None):
        key = (account, name, number if number is not None else validity.get((account, name)))
        return folders.setdefault(key, Folder(key))

    for r in records:
        op, ok = r["op"], r["outcome"] == "ok"
        if op in ("list", "final") and ok:
            folder(r["account"], r["folder"], r["uidvalidity"]).readings.append(r)
        if op in ("select", "list", "final") and ok:
            folder(r["account"], r["folder"], r["uidvalidity"]).selects.append(r)
        if op == "append" and ok:
            folder(r["account"], r["folder"], r["uidvalidity"]).made.append((r["begin"], r["end"], r["uid"], r["token"]))
        if op == "send" and ok and "uid" in r and len(r["to"]) == 1:
            folder(r["to"][0], "INBOX").made.append((r["begin"], r["end"], r["uid"], r["token"]))
        if op in ("copy", "move") and "to_uid" in r:
            target = folder(r["account"], r["to"], r["to_uidvalidity"])
            target.made.append((r["begin"], r["end"], r["to_uid"], r["token"]))
        if op in ("move", "expunge") and r["outcome"] != "refused":
            source = folder(r["account"], r["folder"], r["uidvalidity"])
            source.removals[r["uid"]].append((r["begin"], r["end"], ok and r.get("moved", True)))
        if op in ("read", "flags", "store", "copy", "move"):
            folder(r["account"], r["folder"], r["uidvalidity"]).touches.append(r)
    return folders


def check_validity(folders, found):
    """Nothing in these runs gives a folder a new UIDVALIDITY."""
    numbers = defaultdict(set)
    for account, name, validity in folders:
        numbers[account, name].add(validity)
    for (account, name), seen in numbers.items():
        if len(seen) > 1:
            found("uidvalidity", f"{account}'s {name} has UIDVALIDITY {' and '.join(map(str, seen))}")


def check_uids(folder, fates, found):
    account, name, _ = folder.name
    names = {}
    seen = [(uid, token) for _, _, uid, token in folder.made]
    seen += [(message[0], message[3]) for r in folder.readings for message in r["messages"]]
    for uid, token in seen:
        if names.setdefault(uid, token) != token:
            found("uid-reused", f"UID {uid} of {account}'s {name} is {names[uid]} and {token}")
    for uid, token in names.items():
        if (account, token) not in fates:
            found("phantom", f"UID {uid} of {account}'s {name} is {token}, which nobody sent")
    bounds = [(end, uid + 1) for _, end, uid, _ in folder.made] + [(r["end"], r["uidnext"]) for r in folder.selects]
    later = [(begin, uid, f"a new message got UID {uid}") for begin, _, uid, _ in folder.made]
    later += [(r["begin"], r["uidnext"], f"UIDNEXT was {r['uidnext']} at node {r['node']}") for r in folder.selects]
    for text, bound in behind(bounds, later):
        found("uid-order", f"{account}'s {name}: {text} after {bound} was due")


def behind(bounds, later):
    """Of what was seen `later` (begin, value, text), what is below a bound (end, value) that stood before it began."""
    bounds, at, highest = sorted(bounds), 0, -inf
    for begin, value, text in sorted(later):
        while at < len(bounds) and bounds[at][0] < begin:
            highest = max(highest, bounds[at][1])
            at += 1
        if value < highest:
            yield text, highest


def check_presence(folder, found):
    account, name, _ = folder.name
    since = {}
    tokens = {}
    for _, end, uid, token in folder.made:
        since[uid] = min(since.get(uid, inf), end)
        tokens[uid] = token
    for r in folder.readings:
        for message in r["messages"]:
            since[message[0]] = min(since.get(message[0], inf), r["end"])
            tokens[message[0]] = message[3]

    def must_be(uid, begin, end, but=None):
        others = (removal for removal in folder.removals.get(uid, ()) if removal[:2] != but)
        return since.get(uid, inf) < begin and all(removal[0] > end for removal in others)

    def must_not_be(uid, begin):
        return any(certain and ended < begin for _, ended, certain in folder.removals.get(uid, ()))

    # In order of their begins, with those at hand that are there and not yet asked to go: a folder stays small, however
    # many messages have passed through it.
    arrivals, there = sorted((end, uid) for uid, end in since.items()), {}
    at = 0
    for r in sorted(folder.readings, key=lambda r: r["begin"]):
        here = {message[0] for message in r["messages"]}
        while at < len(arrivals) and arrivals[at][0] < r["begin"]:
            uid = arrivals[at][1]
            there[uid] = min((removal[0] for removal in folder.removals.get(uid, ())), default=inf)
            at += 1
        there = {uid: until for uid, until in there.items() if until > r["begin"]}
        for uid in here:
            if must_not_be(uid, r["begin"]):
                found("came-back", f"UID {uid} ({tokens[uid]}) of {account}'s {name} was removed and is there again "
                      f"for {r['client']} at node {r['node']}")
        for uid, until in there.items():
            if uid not in here and until > r["end"]:
                found("not-seen", f"UID {uid} ({tokens[uid]}) of {account}'s {name} was acknowledged and is missing "
                      f"for {r['client']} at node {r['node']}")
    for r in folder.touches:
        seen = r.get("seen", r.get("moved"))
        if r["outcome"] == "ok" and not seen and must_be(r["uid"], r["begin"], r["end"], (r["begin"], r["end"])):
            found("not-seen", f"{r['op']} found no UID {r['uid']} ({r['token']}) in {account}'s {name} at node {r['node']}")


def check_modseq(folder, found):
    account, name, _ = folder.name
    of_message = defaultdict(list)
    for r in folder.readings:
        for message in r["messages"]:
            of_message[message[0]].append((r["begin"], r["end"], message[1], message[2], r["node"]))
    for r in folder.touches:
        if r.get("modseq") is not None:
            of_message[r["uid"]].append((r["begin"], r["end"], r["modseq"], r["flags"], r["node"]))
    bounds = [(r["end"], r["highestmodseq"]) for r in folder.selects]
    for uid, seen in of_message.items():
        own = [(end, modseq) for _, end, modseq, _, _ in seen]
        bounds += own
        later = [(begin, modseq, f"MODSEQ {modseq} at node {node}") for begin, _, modseq, _, node in seen]
        for text, bound in behind(own, later):
            found("modseq-back", f"UID {uid} of {account}'s {name}: {text} after {bound}")
        flags_at = {}
        for _, _, modseq, flags, node in seen:
            if flags_at.setdefault(modseq, flags) != flags:
                found("modseq-flags", f"UID {uid} of {account}'s {name} has {flags} at node {node} and {flags_at[modseq]} at "
                      f"one MODSEQ, {modseq}")
    later = [(r["begin"], r["highestmodseq"], f"HIGHESTMODSEQ {r['highestmodseq']} at node {r['node']}") for r in folder.selects]
    for text, bound in behind(bounds, later):
        found("modseq-back", f"{account}'s {name}: {text} after {bound}")


def check_flags(folder, found):
    account, name, _ = folder.name
    if name != "Flags":
        return
    operations = defaultdict(list)
    for r in folder.readings:
        for uid, _, flags, token in (message[:4] for message in r["messages"]):
            for flag in FLAGS:
                operations[uid, flag].append(Op(r["begin"], r["end"], False, flag in flags, f"{r['client']} list"))
    for r in folder.touches:
        if r["op"] in ("flags", "store") and r["outcome"] != "refused":
            for flag in FLAGS:
                operation = flag_operation(r, flag)
                if operation:
                    operations[r["uid"], flag].append(operation)
            if r["op"] == "store" and r.get("seen") and any(
                    (flag in r["flags"]) != written(r, flag) for flag in FLAGS if written(r, flag) is not None):
                found("store-echo", f"{r['client']} set {r['mode']}{r['set']} and was told {r['flags']}")
    for (uid, flag), of_flag in operations.items():
        try:
            wrong = unexplained(of_flag)
        except Undecided as undecided:
            found("undecided", f"{flag} of UID {uid} of {account}: {undecided}")
            continue
        if wrong:
            found("flags", f"{flag} of UID {uid} of {account}'s {name} is not linearizable: nothing explains "
                  f"{'the write' if wrong.is_write else 'the reading'} of {wrong.value} at {wrong.begin:.3f}-{wrong.end:.3f} "
                  f"by {wrong.name}")


def written(r, flag):
    """What a STORE makes of a flag; None: it leaves it alone."""
    if flag in r["set"]:
        return r["mode"] != "-"
    return False if r["mode"] == "" else None


def flag_operation(r, flag):
    value = written(r, flag) if r["op"] == "store" else None
    if value is not None and (r["outcome"] == "unknown" or r.get("seen")):
        end = inf if r["outcome"] == "unknown" else r["end"]
        return Op(r["begin"], end, True, value, f"{r['client']} store")
    if r["outcome"] == "ok" and r.get("seen"):
        return Op(r["begin"], r["end"], False, flag in r["flags"], f"{r['client']} {r['op']}")
    return None
