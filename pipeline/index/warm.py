"""Compile every kernel of the index, or load it from the cache, before it is needed."""

from __future__ import annotations

import numpy as np

from pipeline.index import kernels
from pipeline.index.cells import train_cells
from pipeline.index.quantizer import train_quantizer
from pipeline.index.work import cell_work


def warm_up() -> None:
    """Run every compiled function once on a few rows.

    Compiling takes about 10 s, once a machine; loading from the cache about 0.3 s, once a process.
    """
    kernels.warm_up()
    rows = np.arange(256, dtype=np.int16).astype(np.int8).reshape(4, 64)
    train_quantizer(np.zeros((2, 64), np.float32)).encode(np.zeros((1, 64), np.float32))
    train_cells(rows, levels=1).assign(rows)
    tree = train_cells(rows, levels=1, kind="leaves")
    tree.assign(rows)
    tree.probe(rows, 1)
    cell_work(tree.probe(rows, 1), np.array([0, 1, 2], np.int64))
    cell_work(tree.probe(rows, 1), np.array([0, 0, 2], np.int64))
