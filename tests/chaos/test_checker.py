"""The judge, judged: histories made by hand, good ones and one bad one for every kind of wrong."""

import random
import sys
from math import inf
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from checker import check  # noqa: E402
from register import Op, Undecided, unexplained  # noqa: E402


class Story:
    """Builds records; every operation begins after the one before it has ended, unless told otherwise."""

    def __init__(self):
        self.now = 0.0
        self.records = []
        self.finals = {}

    def op(self, op, outcome="ok", **facts):
        begin, end = facts.pop("at", (self.now + 1, self.now + 2))
        self.now = max(self.now, end)
        self.records.append({"client": "c", "op": op, "node": 0, "begin": begin, "end": end, "outcome": outcome, **facts})
        return self

    def send(self, token="m", outcome="ok", to=("ann",), **facts):
        return self.op("send", outcome, token=token, to=list(to), sha=f"sha-{token}", **facts)

    def append(self, uid, token, folder="Work", outcome="ok", **facts):
        told = {"uidvalidity": 7, "uid": uid} if outcome == "ok" else {}
        return self.op("append", outcome, account="ann", folder=folder, token=token, sha=f"sha-{token}", **told, **facts)

    def on(self, op, uid, token, folder="Work", outcome="ok", **facts):
        return self.op(op, outcome, account="ann", folder=folder, uidvalidity=7, uid=uid, token=token, **facts)

    def move(self, uid, token, to_uid=None, outcome="ok", folder="INBOX", **facts):
        told = {"moved": True, "to_uidvalidity": 7, "to_uid": to_uid} if to_uid else {}
        return self.on("move", uid, token, folder, outcome, to="Archive", **told, **facts)

    def list(self, messages, folder="Work", uidnext=100, highest=100, validity=7, **facts):
        """`messages`: (uid, token) or (uid, token, modseq, flags)."""
        full = [[m[0], m[2] if len(m) > 2 else 1, m[3] if len(m) > 3 else [], m[1]] for m in messages]
        return self.op("list", account="ann", folder=folder, uidvalidity=validity, uidnext=uidnext, highestmodseq=highest,
                       exists=len(full), messages=full, **facts)

    def end(self, *nodes):
        """Final readings; each node: folder -> [(uid, token)], or with more facts."""
        for number, folders in enumerate(nodes):
            for folder, messages in {"INBOX": [], **folders}.items():
                full = [[m[0], m[2] if len(m) > 2 else 1, m[3] if len(m) > 3 else [], m[1], f"sha-{m[1]}", 0] for m in messages]
                self.op("final", account="ann", folder=folder, uidvalidity=7, uidnext=100, highestmodseq=100, node=number,
                        messages=full)
        return self

    def kinds(self, nodes=1):
        return {finding.kind for finding in check(self.records, range(nodes))}


def test_a_history_that_keeps_every_promise_is_clean():
    story = Story().send("a", uid=1).send("b", "refused").send("c", "unknown").append(1, "d").append(2, "e")
    story.list([(1, "a")], "INBOX").move(1, "a", 1).on("expunge", 2, "e").list([(1, "d")])
    here = {"INBOX": [], "Archive": [(1, "a")], "Work": [(1, "d")]}
    assert Story.kinds(story.end(here, here), 2) == set()


@pytest.mark.parametrize(("story", "wrong"), [
    (Story().send("a").end({}), "lost"),
    (Story().send("a").end({"INBOX": [(1, "a"), (2, "a")]}), "twice"),
    (Story().send("a", "refused").end({"INBOX": [(1, "a")]}), "refused-kept"),
    (Story().send("a").end({"INBOX": [(1, "a"), (2, "z")]}), "phantom"),
    (Story().send("a").send("a").end({"INBOX": [(1, "a")]}), "lost"),
    (Story().send("a").end({"Archive": [(1, "a")]}), "misplaced"),
    (Story().send("a", to=("ann", "bob")).end({"INBOX": [(1, "a")]}), "unread"),
    (Story().append(1, "a").on("expunge", 1, "a").end({"Work": [(1, "a")]}), "came-back"),
    (Story().send("a").end({"INBOX": [(1, "a")]}, {"INBOX": [(2, "a")]}), "divergence"),
    (Story().send("a").end({"INBOX": [(1, "a", 5, ["x"])]}, {"INBOX": [(1, "a", 5, ["y"])]}), "divergence"),
    (Story().op("exit", expected=False, code=-6, last="panic"), "exit"),
    (Story().op("contradiction", text="EXISTS 1 after 2"), "view"),
    (Story().op("pushed", "refused", why="not told"), "pushed"),
    (Story().op("list", "refused", why="t1 BAD what?", account="ann", folder="Work"), "protocol"),
])
def test_what_is_wrong_at_the_end_is_found(story, wrong):
    assert wrong in story.kinds(2 if wrong == "divergence" else 1)


@pytest.mark.parametrize(("there", "clean"), [
    ({"INBOX": [(1, "a")]}, True),
    ({"Archive": [(1, "a")]}, True),
    ({}, False),
    ({"INBOX": [(1, "a")], "Archive": [(1, "a")]}, False),
])
def test_a_move_of_unknown_outcome_happened_wholly_or_not_at_all(there, clean):
    story = Story().send("a", uid=1).move(1, "a", outcome="unknown").end(there)
    assert (story.kinds() == set()) is clean


def test_a_message_sent_again_after_an_unknown_outcome_may_be_there_twice_but_not_thrice():
    def there(copies):
        return Story().send("a", "unknown").send("a").end({"INBOX": [(n, "a") for n in range(1, copies + 1)]}).kinds()

    assert there(0) == {"lost"} and there(1) == there(2) == set() and there(3) == {"twice"}


def test_bytes_that_are_not_those_that_were_sent_are_found():
    story = Story().append(1, "a").end({"Work": [(1, "a")]})
    story.records[-1]["messages"][0][4] = "other"
    assert "body" in story.kinds()
    story = Story().append(1, "a").on("read", 1, "a", seen=True, sha="sha-b", found="b", before=0)
    assert "body" in story.kinds()
    story = Story().append(1, "a").on("read", 1, "a", seen=True, sha="sha-a", found="a", before=20)
    assert "body" in story.kinds(), "nothing is put before an appended message"


def test_rules_of_uids_are_watched():
    assert "uid-reused" in Story().append(1, "a").append(1, "b").kinds()
    assert "uid-order" in Story().append(2, "a").append(1, "b").kinds()
    assert "uid-order" in Story().append(5, "a").list([(5, "a")], uidnext=5).kinds()
    assert "uid-order" in Story().list([], uidnext=9).append(8, "a").kinds()
    assert "uidvalidity" in Story().list([]).list([], validity=8).kinds()
    overlapping = Story().append(2, "a", at=(1, 4)).append(1, "b", at=(2, 5)).list([(1, "b"), (2, "a")])
    assert "uid-order" not in overlapping.kinds(), "what ran side by side has no order"


def test_what_was_acknowledged_or_seen_is_in_every_later_reading():
    assert "not-seen" in Story().append(1, "a").list([]).kinds()
    assert "not-seen" in Story().send("a", uid=1).list([], "INBOX").kinds()
    assert "not-seen" in Story().append(1, "a", outcome="unknown").list([(1, "a")]).list([]).kinds()
    assert "not-seen" in Story().append(1, "a").on("read", 1, "a", seen=False).kinds()
    assert "not-seen" in Story().append(1, "a").on("move", 1, "a", to="Archive", moved=False).kinds()
    assert "came-back" in Story().append(1, "a").on("expunge", 1, "a").list([(1, "a")]).kinds()
    assert "not-seen" not in Story().append(1, "a").list([], at=(1.5, 1.8)).kinds(), "read before it was acknowledged"
    assert "not-seen" not in Story().append(1, "a").on("expunge", 1, "a", outcome="unknown").list([]).kinds()


def test_modseq_never_goes_back_and_tells_flags_apart():
    assert "modseq-back" in Story().append(1, "a").list([(1, "a", 5, [])]).list([(1, "a", 4, [])]).kinds()
    assert "modseq-back" in Story().list([], highest=9).list([], highest=8).kinds()
    assert "modseq-back" in Story().append(1, "a").list([(1, "a", 5, [])], highest=5).list([], highest=4).kinds()
    assert "modseq-flags" in Story().append(1, "a").list([(1, "a", 5, ["x"])]).list([(1, "a", 5, ["y"])]).kinds()


def test_flags_that_no_order_explains_are_found():
    def store(story, mode, flags, outcome="ok"):
        told = {"seen": True, "flags": flags if mode == "+" else [], "modseq": None} if outcome == "ok" else {}
        return story.on("store", 1, "a", "Flags", outcome, mode=mode, set=["$one"], **told)

    def flags(story, seen):
        return story.on("flags", 1, "a", "Flags", seen=True, flags=seen, modseq=None)

    assert Story.kinds(flags(store(Story().append(1, "a", "Flags"), "+", ["$one"]), ["$one"]).end({"Flags": [(1, "a", 1, ["$one"])]})) == set()
    assert "flags" in flags(store(Story().append(1, "a", "Flags"), "+", ["$one"]), []).kinds()
    assert "flags" in flags(Story().append(1, "a", "Flags"), ["$one"]).kinds()
    assert "store-echo" in store(Story().append(1, "a", "Flags"), "+", []).kinds()
    late = flags(flags(store(Story().append(1, "a", "Flags"), "+", [], "unknown"), []), ["$one"])
    assert "flags" not in late.kinds(), "a write of unknown outcome may take effect late"
    assert "flags" in flags(late, []).kinds(), "but not cease to have had it"


def w(begin, end, value):
    return Op(begin, end, True, value)


def r(begin, end, value):
    return Op(begin, end, False, value)


def test_registers_are_judged_by_real_time():
    assert unexplained([w(0, 1, True), r(2, 3, True)]) is None
    assert unexplained([w(0, 1, True), r(2, 3, False)]) is not None
    assert unexplained([w(0, 3, True), r(1, 2, False)]) is None
    assert unexplained([w(0, 5, True), r(1, 2, True), r(3, 4, False)]) is not None, "it cannot be unwritten"
    assert unexplained([w(0, 9, True), w(0, 9, False), r(1, 2, True), r(3, 4, False)]) is None
    assert unexplained([w(0, inf, True), r(1, 2, False), r(5, 6, True), w(7, 8, False), r(9, 10, True)]) is not None
    assert unexplained([w(0, inf, True), w(0, inf, True), r(5, 6, True), w(7, 8, False), r(9, 10, True)]) is None
    assert unexplained([r(1, 2, True), w(3, inf, True)]) is not None, "not before it was sent"
    with pytest.raises(Undecided):
        unexplained([w(0, 100, n % 2 == 0) for n in range(20)], limit=1000)


def by_force(operations):
    """All orders that real time allows, tried one by one: slow, and plainly right."""

    def search(left, value):
        known = [op for op in left if not op.is_unknown]
        if not known:
            return True
        for op in left:
            if any(other.end < op.begin for other in known if other is not op):
                continue
            if op.is_write or op.value == value:
                if search([other for other in left if other is not op], op.value):
                    return True
        return False

    return search(list(operations), False)


def test_the_search_agrees_with_trying_every_order():
    choose = random.Random(5)
    verdicts = set()
    for _ in range(3000):
        operations = []
        for _ in range(choose.randrange(1, 7)):
            begin, is_write = choose.uniform(0, 10), choose.random() < 0.5
            end = inf if is_write and choose.random() < 0.3 else begin + choose.uniform(0.1, 4)
            operations.append(Op(begin, end, is_write, choose.random() < 0.5))
        verdict = by_force(operations)
        assert (unexplained(operations) is None) == verdict, operations
        verdicts.add(verdict)
    assert verdicts == {True, False}
