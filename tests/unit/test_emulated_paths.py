"""The tiles of paths that a processor may lack, with their one instruction written out.

Layout, loops and comparisons of such a path are then run on every machine; what remains untested
where it is missing is the instruction itself.
"""

from __future__ import annotations

import itertools
from typing import Any

import numba
import numpy as np
import pytest
from llvmlite import ir

from pipeline.index import simd
from pipeline.index.kernels import prepare_queries
from pipeline.index.paths import PATHS, PREFIX, TILE, WIDE
from pipeline.index.rows import pack_rows

BLOCKS, FIRST_BLOCKS = 6, (1, 5)
"""Blocks of rows, and where the tiles begin: a wide one and a narrow one."""


def dot_of_bytes(builder: Any, total: Any, rows: Any, query: Any) -> Any:
    """Add the products of four unsigned and four signed bytes a lane, as ``vpdpbusd`` does."""
    kind = rows.type

    def every(value: int) -> Any:
        return ir.Constant(kind, [value] * kind.count)

    for byte in range(4):
        unsigned = builder.and_(builder.lshr(rows, every(8 * byte)), every(255))
        signed = builder.ashr(builder.shl(query, every(24 - 8 * byte)), every(24))
        total = builder.add(total, builder.mul(unsigned, signed))
    return total


@pytest.mark.parametrize("name", [n for n in PATHS if n.startswith("vnni")])
def test_a_vnni_tile_with_the_instruction_written_out_gives_numpys_integers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(simd._ARITHMETIC, name, (simd._split_bytes, dot_of_bytes))

    @numba.njit
    def compare(codes, rows, norms, prefixes, marks, values, seen, few, path):  # type: ignore[no-untyped-def]
        laid = simd.lay_out(rows, path)
        at_once = simd.queries_at_once(few, path)
        found = np.zeros((len(FIRST_BLOCKS), laid.shape[0] // at_once), np.uint64)
        for turn, first in enumerate(FIRST_BLOCKS):
            for group in range(found.shape[1]):
                found[turn, group] = simd.tile(
                    codes, laid, norms, prefixes, marks, values[turn], seen[turn],
                    first, BLOCKS, group * at_once, few, path,
                )  # fmt: skip
        return found

    marker = PATHS[name].marker
    for seed, (width, few) in enumerate(itertools.product((64, 128, 512), (False, True))):
        rng = np.random.default_rng(seed)
        extreme = rng.choice(np.array([0, 1, 127, 128, 254, 255], np.uint8), (16 * BLOCKS, width))
        rows = pack_rows(extreme)
        signed = rng.choice(np.array([-128, -127, -1, 0, 127], np.int8), (8, width))
        queries = prepare_queries(signed)
        value = 2 * (signed.astype(np.int64) @ extreme.T.astype(np.int64)) - rows.norms
        leading = signed[:, :PREFIX].astype(np.int64) @ extreme[:, :PREFIX].T - rows.prefixes
        limits = np.sort(value, axis=1)[:, -20]
        for shown in (True, False):
            # With prefixes above every limit all is compared, with prefixes below nothing is.
            edge = int(leading.min() - 1 if shown else leading.max())
            marks = simd.new_marks(8)
            for slot, limit in enumerate(limits):
                simd.set_marks(marks, slot, limit, 2 * edge, 0, True)
            values = np.zeros((2, TILE, 16 * WIDE), np.int32)
            seen = np.zeros((2, 1), np.int64)
            found = compare(
                rows.codes,
                queries.codes,
                rows.norms,
                rows.prefixes,
                marks,
                values,
                seen,
                few,
                marker,
            )
            near = value > limits[:, None]
            for turn, first in enumerate(FIRST_BLOCKS):
                count = WIDE if first + WIDE <= BLOCKS else 1
                mine = slice(16 * first, 16 * (first + count))
                assert int(seen[turn, 0]) == ((1 << count) - 1 if shown else 0)
                at_once = 8 // found.shape[1]
                for group, answer in enumerate(found[turn].tolist()):
                    slots = slice(group * at_once, (group + 1) * at_once)
                    expected = near[slots, mine].any(axis=0) & shown
                    assert [answer >> i & 1 == 1 for i in range(16 * count)] == expected.tolist()
                    for row in np.flatnonzero(expected):
                        stored = values[turn, slots, row]
                        assert np.array_equal(stored, value[slots, 16 * first + row])
