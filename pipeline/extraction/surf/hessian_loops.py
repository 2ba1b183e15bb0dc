"""The compiled loops of the detector: rows of Hessian determinants, maxima, a Newton step.

All code that they are compiled from is in this file (see `pipeline.machine_code`).
"""

from __future__ import annotations

import numba
import numpy as np

MIXED_WEIGHT = np.float32(0.81)
"""Share of the squared mixed derivative: 0.9 squared, which makes up for the boxes (paper, 3.2)."""


@numba.njit(nogil=True)
def _fill_ring(sums, ring, start, stop, step, phases, plane):  # type: ignore[no-untyped-def]
    """Copy rows `start` to `stop` of the integral image, columns sorted by remainder."""
    columns = sums.shape[1]
    for y in range(start, stop):
        if not phases[y % step]:
            continue
        row = sums[y]
        target = ring[y % ring.shape[0]]
        for phase in range(step):
            if phases[phase]:
                sorted_row = target[phase * plane :]
                for k in range((columns - phase + step - 1) // step):
                    sorted_row[k] = row[k * step + phase]


@numba.njit(nogil=True)
def _two_rows(upper, lower, out):  # type: ignore[no-untyped-def]
    """Difference of two rows: sums over the columns of one strip."""
    for x in range(out.shape[0]):
        out[x] = np.int32(lower[x] - upper[x])


@numba.njit(nogil=True)
def _three_strips(first, second, third, fourth, out):  # type: ignore[no-untyped-def]
    """Strips of weights 1, -2, 1 between four rows."""
    for x in range(out.shape[0]):
        inner = np.int32(third[x] - second[x])
        out[x] = np.int32(np.int32(fourth[x] - first[x]) - 3 * inner)


@numba.njit(nogil=True)
def _two_strips(first, second, third, fourth, out):  # type: ignore[no-untyped-def]
    """Strips of weights 1, -1: rows first to second less rows third to fourth."""
    for x in range(out.shape[0]):
        upper = np.int32(second[x] - first[x])
        out[x] = np.int32(upper - np.int32(fourth[x] - third[x]))


@numba.njit(nogil=True)
def _mixed(first, second, third, fourth, weight, out):  # type: ignore[no-untyped-def]
    """The mixed derivative, weighted, into `out`."""
    for x in range(out.shape[0]):
        left = np.int32(second[x] - first[x])
        total = np.int32(left - np.int32(fourth[x] - third[x]))
        out[x] = np.float32(total) * weight


@numba.njit(nogil=True)
def _determinant(first, second, third, fourth, left, right, weight, out):  # type: ignore[no-untyped-def]
    """Turn the mixed derivative in `out` into the determinant."""
    for x in range(out.shape[0]):
        inner = np.int32(third[x] - second[x])
        across = np.int32(np.int32(fourth[x] - first[x]) - 3 * inner)
        down = np.int32(right[x] - left[x])
        out[x] = (np.float32(across) * weight) * (np.float32(down) * weight) - MIXED_WEIGHT * (
            out[x] * out[x]
        )


@numba.njit(nogil=True)
def _row(ring, place):  # type: ignore[no-untyped-def]
    """Row of the ring at a place below twice its length."""
    return ring[place - ring.shape[0] if place >= ring.shape[0] else place]


@numba.njit(nogil=True)
def _respond(ring, top, places, edges, step, weights, scratch, out):  # type: ignore[no-untyped-def]
    """Fill `out` with the determinants of one sample row of one layer.

    `top` is the integral row of the filter's upper edge, `places` say where its edges' columns
    begin in a row of the ring: sample j has its left edge at place j.
    """
    count = out.shape[0]
    top %= ring.shape[0]
    # Lobe edges are multiples of the step: one plane. Of the others, opposite side lines may lie
    # in different planes, and so may the left and the right diagonal boxes.
    lobes = scratch[0][: places[3] + count]
    one, two = _row(ring, top + edges[4]), _row(ring, top + edges[5])
    _two_rows(one[: lobes.size], two[: lobes.size], lobes)

    one, two = _row(ring, top + edges[0]), _row(ring, top + edges[1])
    three, four = _row(ring, top + edges[2]), _row(ring, top + edges[3])
    begin, far = places[4], places[5]
    end = begin + count
    left, right = scratch[1][:count], scratch[2][:count]
    if edges[4] % step == edges[5] % step:
        end = far + count
        left, right = scratch[1][: end - begin], scratch[1][far - begin : end - begin]
    else:
        _three_strips(one[far:], two[far:], three[far:], four[far:], right)
    _three_strips(one[begin:end], two[begin:end], three[begin:end], four[begin:end], left)

    one, two = _row(ring, top + edges[6]), _row(ring, top + edges[7])
    three, four = _row(ring, top + edges[8]), _row(ring, top + edges[9])
    begin, far, box = places[6], places[8], places[7] - places[6]
    end = begin + box + count
    west, east = scratch[3][: end - begin], scratch[4][: end - begin]
    if edges[6] % step == edges[8] % step:
        end = far + box + count
        west, east = scratch[3][: end - begin], scratch[3][far - begin : end - begin]
    else:
        _two_strips(one[far:], two[far:], three[far:], four[far:], east)
    _two_strips(one[begin:end], two[begin:end], three[begin:end], four[begin:end], west)

    _mixed(west, west[box:], east, east[box:], weights[1], out)
    _determinant(
        lobes,
        lobes[places[1] :],
        lobes[places[2] :],
        lobes[places[3] :],
        left,
        right,
        weights[0],
        out,
    )


@numba.njit(nogil=True)
def _flag(below, up, here, down, above, threshold, flags):  # type: ignore[no-untyped-def]
    """Flag samples above the threshold, their row's and column's neighbours and both layers'.

    The rows start one sample before the first one that is asked for.
    """
    for x in range(flags.shape[0]):
        value = here[x + 1]
        flags[x] = (
            (value > threshold)
            & (value > here[x])
            & (value > here[x + 2])
            & (value > up[x + 1])
            & (value > down[x + 1])
            & (value > below[x + 1])
            & (value > above[x + 1])
        )


@numba.njit(nogil=True)
def _is_maximum(rows, layer, slots, x):  # type: ignore[no-untyped-def]
    """Tell whether the sample is strictly above its 26 neighbours."""
    value = rows[layer, slots[1], x]
    for dl in range(-1, 2):
        for dy in range(3):
            row = rows[layer + dl, slots[dy]]
            for dx in range(-1, 2):
                if value <= row[x + dx] and not (dl == 0 and dy == 1 and dx == 0):
                    return False
    return True


@numba.njit(nogil=True)
def _newton_step(rows, layer, slots, x, offsets):  # type: ignore[no-untyped-def]
    """Solve for the top of the parabola through 27 samples: (dx, dy, dlayer); True if it is near.

    Brown and Lowe, "Invariant features from interest point groups", BMVC 2002: one step, kept
    when no component passes one sample.
    """
    below, here, above = rows[layer - 1], rows[layer], rows[layer + 1]
    up, mid, down = slots[0], slots[1], slots[2]
    centre = np.float64(here[mid, x])
    gx = (np.float64(here[mid, x + 1]) - here[mid, x - 1]) / 2
    gy = (np.float64(here[down, x]) - here[up, x]) / 2
    gs = (np.float64(above[mid, x]) - below[mid, x]) / 2
    xx = np.float64(here[mid, x - 1]) - 2 * centre + here[mid, x + 1]
    yy = np.float64(here[up, x]) - 2 * centre + here[down, x]
    ss = np.float64(below[mid, x]) - 2 * centre + above[mid, x]
    xy = (np.float64(here[down, x + 1]) - here[down, x - 1] - here[up, x + 1] + here[up, x - 1]) / 4
    xs = (
        np.float64(above[mid, x + 1]) - above[mid, x - 1] - below[mid, x + 1] + below[mid, x - 1]
    ) / 4
    ys = (np.float64(above[down, x]) - above[up, x] - below[down, x] + below[up, x]) / 4
    c0, c1, c2 = yy * ss - ys * ys, xs * ys - xy * ss, xy * ys - xs * yy
    determinant = xx * c0 + xy * c1 + xs * c2
    if determinant == 0:
        return False
    offsets[0] = -(gx * c0 + gy * c1 + gs * c2) / determinant
    offsets[1] = -(gx * c1 + gy * (xx * ss - xs * xs) + gs * (xy * xs - xx * ys)) / determinant
    offsets[2] = -(gx * c2 + gy * (xy * xs - xx * ys) + gs * (xx * yy - xy * xy)) / determinant
    return max(abs(offsets[0]), abs(offsets[1]), abs(offsets[2])) <= 1


@numba.njit(nogil=True)
def _trace_sign(sums, top, left, edges):  # type: ignore[no-untyped-def]
    """Sign of the sum of both second derivatives: 1 for a dark blob on bright ground."""
    weights = (-1, 3, -3, 1)
    total = np.int32(0)
    for edge in range(4):
        y, x = top + edges[edge], left + edges[edge]
        total += weights[edge] * np.int32(
            np.int32(sums[y, left + edges[5]]) - sums[y, left + edges[4]]
        )
        total += weights[edge] * np.int32(
            np.int32(sums[top + edges[5], x]) - sums[top + edges[4], x]
        )
    return np.sign(np.int32(total))


@numba.njit(nogil=True)
def _flag_row(rows, layer, slots, margin, threshold, flags):  # type: ignore[no-untyped-def]
    """Flag the candidates of a row, from column `margin` on; returns how many words they fill."""
    columns = rows.shape[2]
    begin, end = margin - 1, columns - margin + 1
    asked = columns - 2 * margin
    _flag(
        rows[layer - 1, slots[1], begin:end],
        rows[layer, slots[0], begin:end],
        rows[layer, slots[1], begin:end],
        rows[layer, slots[2], begin:end],
        rows[layer + 1, slots[1], begin:end],
        threshold,
        flags[:asked],
    )
    flags[asked : asked + 8] = 0
    return (asked + 7) // 8


@numba.njit(nogil=True)
def _write_row(sums, row, octave, step, i, x, sides, margins, layer, edges, response, offsets):  # type: ignore[no-untyped-def]
    """Write a keypoint: sample (i, x) of a layer, moved by `offsets`."""
    side = sides[layer]
    top, left = step * (i - margins[layer]), step * (x - margins[layer])
    row[0] = left + (side - 1) / 2 + offsets[0] * step
    row[1] = top + (side - 1) / 2 + offsets[1] * step
    row[2] = np.rint(side + offsets[2] * (side - sides[layer - 1]))
    row[3] = -1
    row[4] = response
    row[5] = octave
    row[6] = _trace_sign(sums, top, left, edges[layer])


@numba.njit(nogil=True)
def scan_octave(  # type: ignore[no-untyped-def]
    sums, store, ring, step, sides, edges, weights, phases, threshold, octave, found
):
    """Write the octave's keypoints to `found`; returns how many there are, also beyond its rows."""
    height, width = sums.shape[0] - 1, sums.shape[1] - 1
    layers = sides.shape[0] - 2
    margins = np.empty(sides.shape[0], np.int64)
    places = np.empty(edges.shape, np.int64)
    plane = width // step + 1
    for layer in range(sides.shape[0]):
        margins[layer] = sides[layer] // 2 // step
        for edge in range(edges.shape[1]):
            at = edges[layer, edge]
            places[layer, edge] = at % step * plane + at // step
    columns = width // step
    scratch = np.empty((5, plane), np.int32)
    rows = np.zeros((layers + 2, 3, columns), np.float32)
    words = np.zeros(columns // 8 + 2, np.int64)  # the flags, eight at a time
    flags = words.view(np.uint8)
    offsets = np.empty(3)
    slots = np.empty(3, np.int64)
    first, last = margins[2], height // step - margins[2] - 1
    filled = max(0, (first - margins[-1]) * step)
    count = 0
    for i in range(first, last + 1):
        wanted = min(height, (i - margins[-1]) * step + sides[-1]) + 1
        if step > 1 and wanted > filled:
            _fill_ring(sums, store, filled, wanted, step, phases, plane)
            filled = wanted
        for layer in range(layers + 2):
            samples = 1 + (width - sides[layer]) // step
            top = (i - margins[layer]) * step
            if top < 0 or top + sides[layer] > height or samples < 1:
                continue
            out = rows[layer, i % 3][margins[layer] : margins[layer] + samples]
            _respond(ring, top, places[layer], edges[layer], step, weights[layer], scratch, out)
        for slot in range(3):
            slots[slot] = (i + 1 + slot) % 3  # rows i - 2, i - 1, i
        for layer in range(1, layers + 1):
            margin = margins[layer + 1] + 1
            if i - 1 < margin or i - 1 >= height // step - margin or columns <= 2 * margin:
                continue
            for word in range(_flag_row(rows, layer, slots, margin, threshold, flags)):
                if words[word] == 0:
                    continue
                for x in range(margin + 8 * word, margin + 8 * word + 8):
                    if not flags[x - margin] or not _is_maximum(rows, layer, slots, x):
                        continue
                    if not _newton_step(rows, layer, slots, x, offsets):
                        continue
                    if count < found.shape[0]:
                        response = rows[layer, slots[1], x]
                        _write_row(
                            sums,
                            found[count],
                            octave,
                            step,
                            i - 1,
                            x,
                            sides,
                            margins,
                            layer,
                            edges,
                            response,
                            offsets,
                        )
                    count += 1
    return count
