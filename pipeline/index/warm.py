"""Compile every kernel of the index, or load it from the cache, before anybody waits for it."""

from __future__ import annotations

import numpy as np

from pipeline.index import kernels
from pipeline.index.quantizer import train_quantizer
from pipeline.index.vptree import train_tree


def warm_up() -> None:
    """Run every compiled function once on a few rows.

    Compiling takes about 10 s, once a machine; loading from the cache about 0.3 s, once a process.
    """
    kernels.warm_up()
    rows = np.arange(256, dtype=np.int16).astype(np.int8).reshape(4, 64)
    train_quantizer(np.zeros((2, 64), np.float32)).encode(np.zeros((1, 64), np.float32))
    tree = train_tree(rows, levels=1)
    tree.assign(rows)
    tree.probe(rows, 1)
