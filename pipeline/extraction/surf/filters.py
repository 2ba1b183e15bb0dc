"""The box filters of an octave: their sides, edges and weights.

Bay et al., CVIU 2008, section 3.2. Layer l of octave o filters with boxes of side
``(9 + 6 l) * 2**o`` pixels at every ``2**o``-th pixel: the sizes and the sampling of OpenCV, so
that all layers of an octave lie on one grid. The paper's 9 x 9 filter (lobes of 3, side lines at
2 and 7, diagonal boxes from 1 to 4 and from 5 to 8) is scaled by ``side / 9`` and its edges are
rounded to whole pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Octave(NamedTuple):
    """The box filters of one octave.

    Attributes
    ----------
    step : int
        Pixels between samples.
    sides : ndarray of shape (layers + 2,), int64
        Filter sides, pixels, rising.
    edges : ndarray of shape (layers + 2, 10), int64
        Pixels from the filter's corner: four edges of the three lobes, two side lines of the
        lobes, four edges of the diagonal boxes.
    weights : ndarray of shape (layers + 2, 2), float32
        One over the area of a lobe and of a diagonal box.
    phases : ndarray of shape (step,), bool
        Remainders of the edges by `step`: the rows and columns that are ever looked up.
    """

    step: int
    sides: NDArray[np.int64]
    edges: NDArray[np.int64]
    weights: NDArray[np.float32]
    phases: NDArray[np.bool_]


def make_octave(octave: int, layers: int) -> Octave:
    """Lay out the filters of an octave.

    Parameters
    ----------
    octave : int
        0 is the finest.
    layers : int
        Layers in which maxima are looked for; one more lies below and one above.
    """
    step = 1 << octave
    sides = (9 + 6 * np.arange(layers + 2)) * step
    template = np.array([0, 3, 6, 9, 2, 7, 1, 4, 5, 8])
    edges = np.rint(sides[:, None] * template / 9).astype(np.int64)
    lobe = edges[:, 1] * (edges[:, 5] - edges[:, 4])
    diagonal = (edges[:, 7] - edges[:, 6]) ** 2
    weights = (1 / np.stack([lobe, diagonal], axis=1)).astype(np.float32)
    phases = np.zeros(step, np.bool_)
    phases[edges % step] = True
    return Octave(step, sides.astype(np.int64), edges, weights, phases)
