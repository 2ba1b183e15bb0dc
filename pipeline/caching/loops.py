"""Compiled loops of the distance cache, each called by one module.

Only `pipeline.machine_code` imports this module, to compile what is not compiled yet. All code that
they are compiled from is in this file.

A table is given as three views of one memory, an entry a line: `words` (S, 3) uint64 with the lower
and the higher id; `fields` (S, 6) uint32 with the distance of a squared metric in column 4 and the
stamp in column 5; `reals` (S, 6) float32 with the distance of any other metric in column 4. An
entry is empty if its higher id is 0. `shape` (6,) int64 holds the number of buckets, the entries
of a bucket (`ways`), how many of these only `merge` writes (the first ones, `shared`), whether the
metric is squared, the replacement policy, and the number of the call (`tick`).
"""

from __future__ import annotations

import math

import numba
import numpy as np

NOTHING, BOUNDED, KNOWN = 0, 1, 2
OBSOLETE, LRU = 0, 1

AHEAD, ROUND = 64, 4

NEW = np.uint32(1 << 31)
_TICK = np.uint32((1 << 31) - 1)
_KIND, _CENTRE = np.uint64(3 << 62), np.uint64(1 << 62)

_HALF = np.uint64(32)
_FIRST = np.uint64(0x9E3779B97F4A7C15)
_SECOND = np.uint64(0xBF58476D1CE4E5B9)
_THIRD = np.uint64(0x94D049BB133111EB)


@numba.njit(nogil=True)
def _bucket(low, high, buckets):  # type: ignore[no-untyped-def]
    """Return the first entry's bucket of a pair."""
    word = low * _FIRST
    word = (word ^ (word >> _HALF) ^ high) * _SECOND
    word = (word ^ (word >> np.uint64(29))) * _THIRD
    return np.int64(((word >> _HALF) * np.uint64(buckets)) >> _HALF)


@numba.njit(nogil=True)
def _find(words, low, high, base, ways):  # type: ignore[no-untyped-def]
    """Return the entry of a pair in a bucket, or -1."""
    for slot in range(base, base + ways):
        if words[slot, 1] == high and words[slot, 0] == low:
            return slot
    return -1


@numba.njit(nogil=True)
def _value(fields, reals, slot, squared):  # type: ignore[no-untyped-def]
    """Return the distance of an entry, in the metric's own numbers."""
    if squared:
        return np.float64(fields[slot, 4])
    return np.float64(reals[slot, 4])


@numba.njit(nogil=True)
def _floor_root(number):  # type: ignore[no-untyped-def]
    """Return the integer square root of a number below 2^62.

    The root of the nearest float64 of a square is right; the number before a square may become it.
    """
    root = np.int64(math.sqrt(np.float64(number)))
    return root - 1 if root * root > number else root


@numba.njit(nogil=True)
def _interval(one, other, squared, slack):  # type: ignore[no-untyped-def]
    """Return the least and the greatest distance of two objects that lie so far from a third.

    Of squares A and B, (√A - √B)² = A + B - √(4AB) and (√A + √B)² = A + B + √(4AB); the square that
    is bounded is an integer, so the root is rounded down, exactly, in integers.
    """
    if squared:
        root = np.float64(_floor_root(4 * np.int64(one) * np.int64(other)))
        return one + other - root, one + other + root
    return max(0.0, abs(one - other) - slack), one + other + slack


@numba.njit(nogil=True)
def _touch(words, shape, others, first, last, ids, left, count, bases):  # type: ignore[no-untyped-def]
    """Write the buckets of some objects with each of others; load them.

    Nothing here waits for memory, so that many buckets are on their way at a time.
    """
    loaded = np.uint64(0)
    for i in range(count):
        one = ids[left[i]]
        for j in range(first, last):
            low, high = min(one, others[j]), max(one, others[j])
            base = _bucket(low, high, shape[0]) * shape[1]
            bases[i, j - first] = base
            loaded ^= words[base, 1] ^ words[base + shape[1] - 1, 1]
    return loaded


@numba.njit(nogil=True)
def _probe(words, fields, shape, base, one, other):  # type: ignore[no-untyped-def]
    """Return the entry of two objects, or -1; mark it as used if that decides what is replaced."""
    slot = _find(words, min(one, other), max(one, other), base, shape[1])
    if slot >= base + shape[2] and shape[4] == LRU:
        fields[slot, 5] = (fields[slot, 5] & NEW) | np.uint32(shape[5])
    return slot


@numba.njit(nogil=True)
def bound(words, fields, reals, shape, query, pivots, distances, ids, limits, lower, upper, states):  # type: ignore[no-untyped-def]
    """Look up the distances of a query to objects; bound those that are not there.

    `query` (1,) holds the id, `limits` what bounds are wider by, and a radius: an object whose
    lower bound is above it needs no better ones. Returns how many entries were looked for, and a
    number that depends on all that was loaded ahead: else the compiler would not load it.
    """
    squared, slack, radius, probes = shape[3] != 0, limits[0], limits[1], 0
    loaded = np.uint64(0)
    bases, left = np.empty((AHEAD, ROUND), np.int64), np.empty(AHEAD, np.int64)
    others = np.empty(pivots.shape[0] + 1, np.uint64)
    for j in range(others.shape[0]):
        others[j] = query[0] if j == 0 else pivots[j - 1]
    for begin in range(0, ids.shape[0], AHEAD):
        count = min(AHEAD, ids.shape[0] - begin)
        for i in range(count):
            left[i] = begin + i
            states[begin + i], lower[begin + i], upper[begin + i] = NOTHING, 0.0, np.inf
        for first in range(0, others.shape[0], ROUND):
            last = min(first + ROUND, others.shape[0])
            loaded ^= _touch(words, shape, others, first, last, ids, left, count, bases)
            still = 0
            for i in range(count):
                one = left[i]
                for j in range(first, last):
                    slot = _probe(words, fields, shape, bases[i, j - first], ids[one], others[j])
                    probes += 1
                    if slot < 0:
                        continue
                    value = _value(fields, reals, slot, squared)
                    if j == 0:
                        states[one] = KNOWN
                        lower[one] = upper[one] = value
                        break
                    least, most = _interval(value, distances[j - 1], squared, slack)
                    states[one] = BOUNDED
                    lower[one], upper[one] = max(lower[one], least), min(upper[one], most)
                    if lower[one] > radius:
                        break
                if states[one] != KNOWN and lower[one] <= radius:
                    left[still] = one
                    still += 1
            count = still
    return probes, np.int64(loaded)


@numba.njit(nogil=True)
def _is_obsolete(words, slot, pivots):  # type: ignore[no-untyped-def]
    """Tell whether no object of an entry is a pivot, nor a centre, which is one for ever."""
    low, high = words[slot, 0], words[slot, 1]
    if (low & _KIND) == _CENTRE or (high & _KIND) == _CENTRE:
        return False
    for j in range(pivots.shape[0]):  # noqa: SIM110, numba has no all()
        if low == pivots[j] or high == pivots[j]:
            return False
    return True


@numba.njit(nogil=True)
def _off_middle(value, middle, squared):  # type: ignore[no-untyped-def]
    """Return how far a distance is from the middle one; of squares, their roots."""
    if squared:
        return abs(math.sqrt(value) - math.sqrt(middle))
    return abs(value - middle)


@numba.njit(nogil=True)
def _victim(words, fields, reals, shape, first, pivots, middle):  # type: ignore[no-untyped-def]
    """Return which of the entries of a full bucket, from the first on, is replaced."""
    chosen, least = first, np.inf
    for slot in range(first, first + shape[1] - shape[2]):
        if shape[4] == LRU:
            cost = -np.float64((np.uint32(shape[5]) - fields[slot, 5]) & _TICK)
        elif _is_obsolete(words, slot, pivots):
            return slot
        else:
            cost = _off_middle(_value(fields, reals, slot, shape[3] != 0), middle, shape[3] != 0)
        if cost < least:
            chosen, least = slot, cost
    return chosen


@numba.njit(nogil=True)
def insert(words, fields, reals, shape, ones, pivots, ids, values, middle):  # type: ignore[no-untyped-def]
    """Insert distances of pairs; return how many were new, and how many entries they cost.

    `ones` has one object of each pair, or a single one of all. `middle` (1,) holds the middle of
    all distances.
    """
    inserted = replaced = 0
    for i in range(ids.shape[0]):
        one = ones[i if ones.shape[0] > 1 else 0]
        low, high = min(ids[i], one), max(ids[i], one)
        if low == high:
            continue
        base = _bucket(low, high, shape[0]) * shape[1]
        if _find(words, low, high, base, shape[1]) >= 0:
            continue
        place = -1
        for slot in range(base + shape[2], base + shape[1]):
            if words[slot, 1] == 0:
                place = slot
                break
        if place < 0:
            place = _victim(words, fields, reals, shape, base + shape[2], pivots, middle[0])
            replaced += 1
        inserted += 1
        words[place, 0], words[place, 1] = low, high
        if shape[3] != 0:
            fields[place, 4] = np.uint32(values[i])
        else:
            reals[place, 4] = np.float32(values[i])
        fields[place, 5] = NEW | np.uint32(shape[5])
    return inserted, replaced


@numba.njit(nogil=True)
def squared_distances(query, rows, which, out):  # type: ignore[no-untyped-def]
    """Write the squared Euclidean distances of a query to some rows of bytes."""
    for i in range(which.shape[0]):
        row = rows[which[i]]
        total = np.int32(0)
        for j in range(query.shape[0]):
            difference = np.int32(query[j]) - np.int32(row[j])
            total += difference * difference
        out[i] = total


@numba.njit(nogil=True)
def collect(words, fields, shape, begin, lows, highs, codes):  # type: ignore[no-untyped-def]
    """Write new entries, from one on and around the table, until the arrays are full.

    They are new no longer. Returns how many were written, and where to go on.
    """
    count, entries = 0, words.shape[0]
    for i in range(entries):
        slot = (begin + i) % entries
        if fields[slot, 5] & NEW == 0 or slot % shape[1] < shape[2]:
            continue
        if count == lows.shape[0]:
            return count, slot
        lows[count], highs[count] = words[slot, 0], words[slot, 1]
        codes[count] = fields[slot, 4]
        fields[slot, 5] &= _TICK
        count += 1
    return count, begin


@numba.njit(nogil=True)
def _precedes(made, off, code, low, high, other_made, other_off, other_code, other_low, other_high):  # type: ignore[no-untyped-def]
    """Tell whether a shared entry is kept rather than another.

    The later made one; of these, the one farther from the middle; then an order that nothing else
    decides, so that the entries of a bucket do not depend on the order in which they came.
    """
    if made != other_made:
        return made > other_made
    if off != other_off:
        return off > other_off
    if code != other_code:
        return code < other_code
    if low != other_low:
        return low < other_low
    return high < other_high


@numba.njit(nogil=True)
def _empty(words, slot):  # type: ignore[no-untyped-def]
    """Make an entry empty."""
    words[slot, 0] = words[slot, 1] = words[slot, 2] = 0


@numba.njit(nogil=True)
def _move(words, source, target):  # type: ignore[no-untyped-def]
    """Copy an entry."""
    for j in range(3):
        words[target, j] = words[source, j]


@numba.njit(nogil=True)
def merge(words, fields, reals, shape, lows, highs, codes, numbers, made, middle):  # type: ignore[no-untyped-def]
    """Merge pairs into the shared entries of their buckets; return how many are there then.

    A bucket's shared entries are the best ones, in the order of `_precedes`, of all that were ever
    merged: an entry that is the best of its pair, and one of the best of the bucket. `numbers` are
    the codes as float32, `made` is when the entries were made.
    """
    kept, squared = 0, shape[3] != 0
    for i in range(lows.shape[0]):
        low, high, code = lows[i], highs[i], codes[i]
        value = np.float64(code) if squared else np.float64(numbers[i])
        off = _off_middle(value, middle[0], squared)
        base = _bucket(low, high, shape[0]) * shape[1]
        end = base + shape[2]
        place, same = end, end
        for slot in range(end - 1, base - 1, -1):
            if words[slot, 1] == high and words[slot, 0] == low:
                same = slot
            other = _off_middle(_value(fields, reals, slot, squared), middle[0], squared)
            if words[slot, 1] == 0 or _precedes(
                made, off, code, low, high,
                np.int64(fields[slot, 5]), other, fields[slot, 4], words[slot, 0], words[slot, 1],
            ):  # fmt: skip
                place = slot
        if place == end or same < place:
            kept += same < end
            continue
        for slot in range(min(same, end - 1), place, -1):
            _move(words, slot - 1, slot)
        words[place, 0], words[place, 1] = low, high
        fields[place, 4], fields[place, 5] = code, np.uint32(made)
        kept += 1
        for slot in range(end, base + shape[1]):
            if words[slot, 1] == high and words[slot, 0] == low:
                _empty(words, slot)
    return kept
