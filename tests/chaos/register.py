"""Whether what clients saw of one flag of one message can be explained by a register that is read and written at one moment
each (linearizability, Herlihy and Wing 1990), decided by just-in-time linearization (Lowe 2017).

A write whose outcome is not known may take effect at any moment after it was sent, or never."""

from dataclasses import dataclass
from math import inf

# More configurations at a time than this are not searched: the answer is then that it could not be decided.
LIMIT = 20_000


class Undecided(Exception):
    """The search would take too long."""


@dataclass(frozen=True)
class Op:
    begin: float
    end: float
    is_write: bool
    value: bool
    name: str = ""

    @property
    def is_unknown(self):
        return self.end == inf


def unexplained(operations, initial=False, limit=LIMIT):
    """The operation that no order explains, or None when there is an order for all.

    A write of unknown outcome matters only where it is read before the next write, so it may be placed right before the
    first read of it, and those of equal value are interchangeable: they are counted, not permuted."""
    maybe = sorted((op for op in operations if op.is_unknown), key=lambda op: op.begin)
    assert all(op.is_write for op in maybe), "a read without an answer says nothing"
    known = [op for op in operations if not op.is_unknown]
    # At equal times calls come first: they are then taken as concurrent.
    events = sorted([(op.begin, 0, at) for at, op in enumerate(known)] + [(op.end, 1, at) for at, op in enumerate(known)])
    pending = set()
    available = {True: 0, False: 0}
    begun = 0
    # (what of the pending ones has taken effect, value, unknown writes of True used, of False used)
    states = {(frozenset(), initial, 0, 0)}
    for time, is_return, at in events:
        while begun < len(maybe) and maybe[begun].begin <= time:
            available[maybe[begun].value] += 1
            begun += 1
        if not is_return:
            pending.add(at)
            continue
        after, seen, todo = set(), set(states), list(states)
        while todo:
            done, value, used_true, used_false = todo.pop()
            if at in done:
                after.add((done - {at}, value, used_true, used_false))
                continue
            for other in pending - done:
                op, used = known[other], {True: used_true, False: used_false}
                if not op.is_write and op.value != value:
                    used[op.value] += 1
                    if used[op.value] > available[op.value]:
                        continue
                state = (done | {other}, op.value, used[True], used[False])
                if state not in seen:
                    seen.add(state)
                    todo.append(state)
            if len(seen) > limit:
                raise Undecided(f"more than {limit} configurations at {known[at].name}")
        if not after:
            return known[at]
        pending.discard(at)
        states = after
    return None
