"""How the numbers of a SURF descriptor are laid out."""

from __future__ import annotations

import numpy as np

CELLS = 4
"""Cells along a side of the square."""

SUMS, SIGNED_SUMS, FOUR_DIRECTIONS, EIGHT_DIRECTIONS = range(4)
"""What is summed up in a cell."""

FEATURES = np.array([4, 8, 4, 8], np.int64)
"""Numbers of a cell, by kind."""
