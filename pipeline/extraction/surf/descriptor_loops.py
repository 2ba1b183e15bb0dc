"""The compiled loops of the descriptor: sample the rotated square, pool and order its gradients.

All code that they are compiled from is in this file and in
`pipeline.extraction.surf.descriptor_layout` (see `pipeline.machine_code`).
"""

from __future__ import annotations

import math

import numba
import numpy as np

from pipeline.extraction.surf.descriptor_layout import (
    CELLS,
    EIGHT_DIRECTIONS,
    FEATURES,
    FOUR_DIRECTIONS,
    SIGNED_SUMS,
    SUMS,
)

NARROW = np.float32(0.6)
"""An eighth direction takes ``max(0, |g| (cos a - 0.6))`` of a gradient g at angle a from it."""

DIAGONAL = np.float32(math.sqrt(0.5))

FLAT = np.float32(0.02)
"""Mean derivative, grey levels, up to which a square counts as flat: more than rounding makes of
one grey level all over, less than OpenCV's rounding to whole levels leaves of anything."""

SCALE = np.float32(1.2 / 9)
"""Scale s per pixel of size."""

UPRIGHT_DEG = np.float32(270.0)


@numba.njit(nogil=True)
def describe_all(integral, keypoints, upright, weights, spacing, smooth, whole_window, kind, rows):  # type: ignore[no-untyped-def]
    """Fill `rows`; scratch arrays are made once a call."""
    side = weights.shape[1] + 1
    samples = np.zeros((side, side), np.float32)
    corners = np.zeros((2, side), np.int32)
    spans = np.zeros((2, side), np.int32)
    fractions = np.zeros((4, side), np.float32)
    sums = integral.reshape(-1)
    height, width = integral.shape[0] - 1, integral.shape[1] - 1
    features = FEATURES[kind]
    responses = np.zeros((features, side - 1), np.float32)
    pooled = np.zeros((CELLS * features, side - 1), np.float32)
    turned = np.zeros((side - 1, CELLS * features), np.float32)
    cells = np.zeros((CELLS, CELLS * features), np.float32)
    whole = np.float32(np.sum(weights) ** 2)
    for k in range(keypoints.shape[0]):
        x, y = keypoints[k, 0], keypoints[k, 1]
        scale = keypoints[k, 2] * SCALE
        angle = UPRIGHT_DEG if upright else keypoints[k, 3]
        if not math.isfinite(x + y + scale + angle):
            rows[k] = np.float32(0)
            continue
        step = spacing * scale
        if whole_window:
            step = np.float32(int(side * scale)) / np.float32(side)
        box = np.float32(math.sqrt((smooth * step) ** 2 + np.float32(1)))
        radians = math.radians(angle)
        along, aside = np.float32(math.cos(radians)) * step, np.float32(math.sin(radians)) * step
        reach = (abs(along) + abs(aside)) * np.float32(0.5 * (side - 1)) + box + np.float32(2)
        inside = x > reach + 1 and y > reach + 1
        inside = inside and x + reach < width and y + reach < height
        if inside:
            # Places are counted from a pixel nearby: a part of a pixel keeps its digits anywhere.
            reach = np.float32(math.ceil(reach))
            near_x, near_y = int(x - reach), int(y - reach)
            near = sums[near_y * (width + 1) + near_x :]
            x, y = x - np.float32(near_x), y - np.float32(near_y)
            _sample_inside(
                near, width + 1, x, y, along, aside, box, corners, spans, fractions, samples
            )
        else:
            _sample_edge(integral, x, y, along, aside, box, samples)
        _pool(samples, weights, kind, responses, pooled)
        _cells(pooled, weights, turned, cells)
        _finish(cells, kind, FLAT * box * box * whole, rows[k])


@numba.njit(nogil=True)
def _sample_inside(  # type: ignore[no-untyped-def]
    sums, stride, x, y, along, aside, box, corners, spans, fractions, samples
):
    """Sums over boxes that lie in the picture, at the points of the rotated grid.

    `x` and `y` count from the first of the `sums` that are handed over.

    Each row is laid out in vectors first, then looked up. All differences are taken in integers,
    which stay exact in float32.
    """
    side = samples.shape[0]
    middle = np.float32(0.5 * (side - 1))
    # Pixel i covers i to i + 1 in the integral image, its middle at i + 0.5.
    shift = np.float32(0.5) - np.float32(0.5) * box
    left, top = corners[0], corners[1]
    wide, tall = spans[0], spans[1]
    at_left, at_right, at_top, at_bottom = fractions[0], fractions[1], fractions[2], fractions[3]
    for i in range(side):
        first_x = x + shift - middle * along - (np.float32(i) - middle) * aside
        first_y = y + shift - middle * aside + (np.float32(i) - middle) * along
        for j in range(side):
            start = first_x + np.float32(j) * along
            stop = start + box
            left[j] = np.int32(start)
            last = np.int32(stop)
            wide[j] = last - left[j]
            at_left[j] = start - np.float32(left[j])
            at_right[j] = stop - np.float32(last)
        for j in range(side):
            start = first_y + np.float32(j) * aside
            stop = start + box
            top[j] = np.int32(start)
            last = np.int32(stop)
            tall[j] = last - top[j]
            at_top[j] = start - np.float32(top[j])
            at_bottom[j] = stop - np.float32(last)
        for j in range(side):
            a = np.uint64(top[j] * stride + left[j])
            c = np.uint64(a + np.uint64(tall[j] * stride))
            w = np.uint64(wide[j])
            one, line = np.uint64(1), np.uint64(stride)
            samples[i, j] = _box_sum(
                sums, a, c, w, one, line, at_left[j], at_right[j], at_top[j], at_bottom[j]
            )


@numba.njit(nogil=True)
def _box_sum(sums, a, c, w, one, line, left, right, top, bottom):  # type: ignore[no-untyped-def]
    """Sum over a box: `a` its upper left corner, `c` its lower left one, `w` its width.

    The integral image between its points is taken as linear in x and in y. The whole pixels come
    first, then the strips that the fractions of pixels add or take away at each side.
    """
    a1, c1 = a + line, c + line
    top_left, top_right = sums[a], sums[a + w]
    bottom_left, bottom_right = sums[c], sums[c + w]
    row = np.float32(np.int32(bottom_right - bottom_left - top_right + top_left))
    row += right * np.float32(
        np.int32(sums[c + w + one] - bottom_right - sums[a + w + one] + top_right)
    )
    row -= left * np.float32(np.int32(sums[c + one] - bottom_left - sums[a + one] + top_left))
    low = np.float32(np.int32(sums[c1 + w] - sums[c1] - bottom_right + bottom_left))
    low += right * np.float32(
        np.int32(sums[c1 + w + one] - sums[c1 + w] - sums[c + w + one] + bottom_right)
    )
    low -= left * np.float32(np.int32(sums[c1 + one] - sums[c1] - sums[c + one] + bottom_left))
    high = np.float32(np.int32(sums[a1 + w] - sums[a1] - top_right + top_left))
    high += right * np.float32(
        np.int32(sums[a1 + w + one] - sums[a1 + w] - sums[a + w + one] + top_right)
    )
    high -= left * np.float32(np.int32(sums[a1 + one] - sums[a1] - sums[a + one] + top_left))
    return row + bottom * low - top * high


@numba.njit(nogil=True)
def _sample_edge(integral, x, y, along, aside, box, samples):  # type: ignore[no-untyped-def]
    """As `_sample_inside` for any place: a box is cut at the picture's edge and made up for.

    What lies wholly outside takes the outermost line of pixels.
    """
    side = samples.shape[0]
    stride = integral.shape[1]
    height, width = integral.shape[0] - 1, integral.shape[1] - 1
    sums = integral.reshape(-1)
    middle = 0.5 * (side - 1)
    for i in range(side):
        for j in range(side):
            u, v = j - middle, i - middle
            centre_x = x + 0.5 + u * along - v * aside
            centre_y = y + 0.5 + u * aside + v * along
            left = min(max(centre_x - 0.5 * box, 0.0), width - 1.0)
            right = max(min(centre_x + 0.5 * box, float(width)), 1.0)
            top = min(max(centre_y - 0.5 * box, 0.0), height - 1.0)
            bottom = max(min(centre_y + 0.5 * box, float(height)), 1.0)
            column, last_column = int(left), min(int(right), width - 1)
            row, last_row = int(top), min(int(bottom), height - 1)
            total = _box_sum(
                sums,
                np.uint64(row * stride + column),
                np.uint64(last_row * stride + column),
                np.uint64(last_column - column),
                np.uint64(1),
                np.uint64(stride),
                np.float32(left - column),
                np.float32(right - last_column),
                np.float32(top - row),
                np.float32(bottom - last_row),
            )
            samples[i, j] = total * np.float32(box * box / ((right - left) * (bottom - top)))


@numba.njit(nogil=True)
def _pool(samples, weights, kind, responses, pooled):  # type: ignore[no-untyped-def]
    """Sum the responses of each column over the rows of each cell."""
    n = weights.shape[1]
    features = responses.shape[0]
    pooled[:] = np.float32(0)
    for i in range(n):
        _responses(samples[i], samples[i + 1], kind, responses)
        for cell in range(CELLS):
            weight = weights[cell, i]
            if weight == 0:
                continue
            for feature in range(features):
                row, response = pooled[cell * features + feature], responses[feature]
                for j in range(n):
                    row[j] += weight * response[j]


@numba.njit(nogil=True)
def _responses(upper, lower, kind, responses):  # type: ignore[no-untyped-def]
    """Derivatives between two rows of samples, and what is made of them."""
    n = responses.shape[1]
    zero = np.float32(0)
    for j in range(n):
        falling, rising = lower[j + 1] - upper[j], upper[j + 1] - lower[j]
        responses[0, j] = falling + rising
        responses[1, j] = falling - rising
    if kind in (SUMS, FOUR_DIRECTIONS):
        for j in range(n):
            responses[2, j] = abs(responses[0, j])
            responses[3, j] = abs(responses[1, j])
    elif kind == SIGNED_SUMS:
        for j in range(n):
            dx, dy = responses[0, j], responses[1, j]
            responses[0, j] = dx if dy >= 0 else zero
            responses[1, j] = abs(dx) if dy >= 0 else zero
            responses[2, j] = zero if dy >= 0 else dx
            responses[3, j] = zero if dy >= 0 else abs(dx)
            responses[4, j] = dy if dx >= 0 else zero
            responses[5, j] = abs(dy) if dx >= 0 else zero
            responses[6, j] = zero if dx >= 0 else dy
            responses[7, j] = zero if dx >= 0 else abs(dy)
    else:
        for j in range(n):
            dx, dy = responses[0, j], responses[1, j]
            least = NARROW * math.sqrt(dx * dx + dy * dy)
            one, other = DIAGONAL * (dx + dy), DIAGONAL * (dy - dx)
            responses[0, j] = max(zero, dx - least)
            responses[1, j] = max(zero, one - least)
            responses[2, j] = max(zero, dy - least)
            responses[3, j] = max(zero, other - least)
            responses[4, j] = max(zero, -dx - least)
            responses[5, j] = max(zero, -one - least)
            responses[6, j] = max(zero, -dy - least)
            responses[7, j] = max(zero, -other - least)


@numba.njit(nogil=True)
def _cells(pooled, weights, turned, cells):  # type: ignore[no-untyped-def]
    """Sum over the columns of each cell; `cells` is (cell column, cell row and feature)."""
    for j in range(turned.shape[0]):
        for m in range(turned.shape[1]):
            turned[j, m] = pooled[m, j]
    cells[:] = np.float32(0)
    for cell in range(CELLS):
        total = cells[cell]
        for j in range(turned.shape[0]):
            weight = weights[cell, j]
            if weight == 0:
                continue
            row = turned[j]
            for m in range(turned.shape[1]):
                total[m] += weight * row[m]


@numba.njit(nogil=True)
def _finish(cells, kind, least, row):  # type: ignore[no-untyped-def]
    """Put the numbers in order, and bring them to unit length; below `least`, to zero."""
    features = cells.shape[1] // CELLS
    place = 0
    for cell_row in range(CELLS):
        for cell in range(CELLS):
            values = cells[cell, cell_row * features : (cell_row + 1) * features]
            if kind == FOUR_DIRECTIONS:
                half = np.float32(0.5)
                row[place] = max(np.float32(0), half * (values[2] + values[0]))
                row[place + 1] = max(np.float32(0), half * (values[3] + values[1]))
                row[place + 2] = max(np.float32(0), half * (values[2] - values[0]))
                row[place + 3] = max(np.float32(0), half * (values[3] - values[1]))
            else:
                for feature in range(features):
                    row[place + feature] = values[feature]
            place += features
    total = 0.0
    for i in range(row.shape[0]):
        total += abs(row[i])
    if total <= least:
        row[:] = np.float32(0)
        return
    if kind in (FOUR_DIRECTIONS, EIGHT_DIRECTIONS):
        factor = np.float32(1 / total)
        for i in range(row.shape[0]):
            row[i] = math.sqrt(row[i] * factor)
        return
    total = 0.0
    for i in range(row.shape[0]):
        total += np.float64(row[i]) * row[i]
    factor = np.float32(1 / math.sqrt(total))
    for i in range(row.shape[0]):
        row[i] *= factor
