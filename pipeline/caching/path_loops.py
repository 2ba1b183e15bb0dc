"""The compiled loop that follows rows down a tree; only `pipeline.machine_code` imports it."""

from __future__ import annotations

import numba
import numpy as np

from pipeline.index.loops import _distance


@numba.njit(nogil=True)
def follow(rows, points, radii, levels, cells, nodes, squares):  # type: ignore[no-untyped-def]
    """Descend the tree with every row; write the nodes on its way, and its squared distances."""
    inner = points.shape[0]
    for i in range(rows.shape[0]):
        node = 0
        for level in range(levels):
            total = np.int64(0)
            for j in range(rows.shape[1]):
                difference = np.int64(rows[i, j]) - np.int64(points[node, j])
                total += difference * difference
            nodes[i, level], squares[i, level] = node, total
            distance = _distance(rows[i], points[node])
            node = 2 * node + (1 if distance < radii[node] else 2)
        cells[i] = node - inner
