"""Compiled loops of the tree, the quantizer and the work of a scan, each called by one module.

Only `pipeline.machine_code` imports this module, to compile what is not compiled yet. All code that
they are compiled from is in this file: their machine code on disk is valid for this source.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True, fastmath={"reassoc", "contract"})
def _distance(row, point):  # type: ignore[no-untyped-def]
    """Return the Euclidean distance of a row and a point."""
    total = np.float32(0)
    for i in range(point.shape[0]):
        difference = np.float32(row[i]) - point[i]
        total += difference * difference
    return np.sqrt(total)


@numba.njit(nogil=True)
def assign(rows, points, radii, cells):  # type: ignore[no-untyped-def]
    """Descend the tree with every row."""
    inner = points.shape[0]
    for i in range(rows.shape[0]):
        node = 0
        while node < inner:
            distance = _distance(rows[i], points[node])
            node = 2 * node + (1 if distance < radii[node] else 2)
        cells[i] = node - inner


@numba.njit(nogil=True)
def _push(costs, nodes, size, cost, node):  # type: ignore[no-untyped-def]
    """Add an entry to the heap; ties go to the smaller node."""
    at = size
    while at > 0:
        parent = (at - 1) // 2
        if costs[parent] < cost or (costs[parent] == cost and nodes[parent] <= node):
            break
        costs[at], nodes[at] = costs[parent], nodes[parent]
        at = parent
    costs[at], nodes[at] = cost, node


@numba.njit(nogil=True)
def _pop(costs, nodes, size):  # type: ignore[no-untyped-def]
    """Remove the least entry, at index 0, of a heap of `size`; the caller has read it."""
    last = size - 1
    cost, node = costs[last], nodes[last]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= last:
            break
        right = child + 1
        if right < last and (
            costs[right] < costs[child]
            or (costs[right] == costs[child] and nodes[right] < nodes[child])
        ):
            child = right
        if cost < costs[child] or (cost == costs[child] and node <= nodes[child]):
            break
        costs[at], nodes[at] = costs[child], nodes[child]
        at = child
    costs[at], nodes[at] = cost, node


@numba.njit(nogil=True)
def probe(queries, points, radii, levels, found):  # type: ignore[no-untyped-def]
    """Best-first descent for every query."""
    inner = points.shape[0]
    wanted = found.shape[1]
    costs = np.empty(wanted * levels + 1, np.float32)
    nodes = np.empty(wanted * levels + 1, np.int64)
    for i in range(queries.shape[0]):
        costs[0] = 0.0
        nodes[0] = 0
        size = 1
        taken = 0
        while taken < wanted:
            cost = costs[0]
            node = nodes[0]
            _pop(costs, nodes, size)
            size -= 1
            while node < inner:
                margin = _distance(queries[i], points[node]) - radii[node]
                near = 2 * node + (1 if margin < 0 else 2)
                far = 4 * node + 3 - near
                _push(costs, nodes, size, cost + abs(margin), far)
                size += 1
                node = near
            found[i, taken] = node - inner
            taken += 1


@numba.njit(nogil=True)
def all_distances(rows, point, out):  # type: ignore[no-untyped-def]
    """Write the distance of every row to a point."""
    for i in range(rows.shape[0]):
        out[i] = _distance(rows[i], point)


@numba.njit(nogil=True)
def _inner_product(one, other):  # type: ignore[no-untyped-def]
    """Return the sum of products, added in order."""
    total = 0.0
    for i in range(one.shape[0]):
        total += one[i] * other[i]
    return total


@numba.njit(nogil=True, fastmath={"reassoc", "contract"})
def power_iteration(rows, mean, rounds, unit):  # type: ignore[no-untyped-def]
    """Return the greatest variance along a direction, and write the direction, first zeros.

    Begins with the row farthest from the mean.
    """
    count, width = rows.shape
    centred, axis = np.empty((count, width), np.float32), np.zeros(width, np.float64)
    narrow = np.empty(width, np.float32)
    farthest, most = 0, np.float32(-1)
    for i in range(count):
        total = np.float32(0)
        for j in range(width):
            centred[i, j] = np.float32(rows[i, j]) - mean[j]
            total += centred[i, j] * centred[i, j]
        if total > most:
            farthest, most = i, total
    for j in range(width):
        axis[j] = centred[farthest, j]
    variance = 0.0
    unit[0] = 1.0
    for _ in range(rounds):
        length = np.sqrt(_inner_product(axis, axis))
        if length == 0:
            return 0.0
        for j in range(width):
            unit[j] = axis[j] / length
            narrow[j] = unit[j]
            axis[j] = 0
        for i in range(count):
            along = np.float32(0)
            for j in range(width):
                along += centred[i, j] * narrow[j]
            for j in range(width):
                axis[j] += centred[i, j] * along
        for j in range(width):
            axis[j] /= count
        variance = _inner_product(unit, axis)
    return variance


@numba.njit(nogil=True)
def list_queries(cells, starts, listed):  # type: ignore[no-untyped-def]
    """Sort the requests by cell, by counting: the start of each cell's queries, and all.

    `starts` (C + 1,) holds zeros before; `listed` has room for every request.
    """
    count = starts.shape[0] - 1
    for query in range(cells.shape[0]):
        for place in range(cells.shape[1]):
            cell = cells[query, place]
            if 0 <= cell < count:
                starts[cell + 1] += 1
    for cell in range(count):
        starts[cell + 1] += starts[cell]
    ends = starts[:-1].copy()
    for query in range(cells.shape[0]):
        for place in range(cells.shape[1]):
            cell = cells[query, place]
            if 0 <= cell < count:
                listed[ends[cell]] = query
                ends[cell] += 1


@numba.njit(nogil=True)
def take_ranges(starts, listed, visited, taken):  # type: ignore[no-untyped-def]
    """Write the requests for some cells, one after the other."""
    at = 0
    for cell in visited:
        for place in range(starts[cell], starts[cell + 1]):
            taken[at] = listed[place]
            at += 1


@numba.njit(nogil=True)
def add_rows(rows, cell, sums):  # type: ignore[no-untyped-def]
    """Add each row to the sum of its cell."""
    for i in range(rows.shape[0]):
        c = cell[i]
        for j in range(rows.shape[1]):
            sums[c, j] += rows[i, j]


@numba.njit(nogil=True)
def rotate(rows, mean, rotation, out):  # type: ignore[no-untyped-def]
    """Write ``(rows - mean) @ rotation`` into zeros.

    Sums are always added in the same order, so a row has the same bytes alone and among others, on
    any machine. A linear algebra library does not guarantee this.
    """
    for i in range(rows.shape[0]):
        for d in range(rows.shape[1]):
            value = rows[i, d] - mean[d]
            for j in range(rotation.shape[1]):
                out[i, j] += value * rotation[d, j]
