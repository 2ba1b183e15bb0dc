"""The compiled loops of the earth mover's distance; only `pipeline.machine_code` imports them."""

from __future__ import annotations

import math

import numba
import numpy as np


@numba.njit(nogil=True)
def _comes_first(one, other):  # type: ignore[no-untyped-def]
    """Tell whether a signature is before another in an order of all: makes distances symmetric."""
    for i in range(one.shape[0]):
        for j in range(4):
            if one[i, j] != other[i, j]:
                return one[i, j] < other[i, j]
    return True


@numba.njit(nogil=True)
def _nearest_open(distances, done):  # type: ignore[no-untyped-def]
    """Return the node with the least distance that is not done, or -1."""
    found, least = -1, np.inf
    for node in range(distances.shape[0]):
        if not done[node] and distances[node] < least:
            found, least = node, distances[node]
    return found


@numba.njit(nogil=True)
def _shortest_way(costs, flow, left, potentials, distances, before):  # type: ignore[no-untyped-def]
    """Find the cheapest way from a colour with weight left to one that wants some (Dijkstra).

    Nodes below n are colours of the first signature, the others of the second one. Returns where
    it ends, and updates the potentials.
    """
    count = costs.shape[0]
    done = np.zeros(2 * count, np.bool_)
    for node in range(2 * count):
        distances[node] = 0.0 if node < count and left[node] > 0 else np.inf
        before[node] = -1
    node = _nearest_open(distances, done)
    while not (node >= count and left[node] > 0):
        done[node] = True
        for k in range(count):
            if node < count:
                other, step = count + k, costs[node, k]
            elif flow[k, node - count] > 0:
                other, step = k, -costs[k, node - count]
            else:
                continue
            length = distances[node] + max(0.0, step + potentials[node] - potentials[other])
            if not done[other] and length < distances[other]:
                distances[other], before[other] = length, node
        node = _nearest_open(distances, done)
    for other in range(2 * count):
        potentials[other] += min(distances[other], distances[node])
    return node


@numba.njit(nogil=True)
def _send(flow, left, before, end):  # type: ignore[no-untyped-def]
    """Send as much weight as possible along a way."""
    count = flow.shape[0]
    amount, node = left[end], end
    while before[node] >= 0:
        if before[node] >= count:
            amount = min(amount, flow[node, before[node] - count])
        node = before[node]
    amount = min(amount, left[node])
    left[node] -= amount
    left[end] -= amount
    node = end
    while before[node] >= 0:
        previous = before[node]
        if previous < count:
            flow[previous, node - count] += amount
        else:
            flow[node, previous - count] -= amount
        node = previous
    return amount


@numba.njit(nogil=True)
def _transport(one, other, costs, flow, left, potentials, distances, before):  # type: ignore[no-untyped-def]
    """Return the least sum of weight times distance that makes one signature of another."""
    count, wanted = one.shape[0], np.int64(0)
    for i in range(count):
        left[i], left[count + i] = np.int64(one[i, 3]), np.int64(other[i, 3])
        wanted += left[i]
        potentials[i] = potentials[count + i] = 0.0
        for j in range(count):
            total = 0.0
            for k in range(3):
                difference = np.float64(one[i, k]) - np.float64(other[j, k])
                total += difference * difference
            costs[i, j], flow[i, j] = math.sqrt(total), 0
    while wanted > 0:
        end = _shortest_way(costs, flow, left, potentials, distances, before)
        wanted -= _send(flow, left, before, end)
    work = 0.0
    for i in range(count):
        for j in range(count):
            work += flow[i, j] * costs[i, j]
    return work


@numba.njit(nogil=True)
def earth_movers_distances(query, signatures, which, total, out):  # type: ignore[no-untyped-def]
    """Write the distances of a signature (n, 4) to some of (N, n, 4) with the same total weight."""
    count = query.shape[0]
    costs, flow = np.empty((count, count)), np.empty((count, count), np.int64)
    left, before = np.empty(2 * count, np.int64), np.empty(2 * count, np.int64)
    potentials, distances = np.empty(2 * count), np.empty(2 * count)
    for i in range(which.shape[0]):
        one, other = query, signatures[which[i]]
        if not _comes_first(one, other):
            one, other = other, one
        work = _transport(one, other, costs, flow, left, potentials, distances, before)
        out[i] = np.float64(np.float32(work / total))
