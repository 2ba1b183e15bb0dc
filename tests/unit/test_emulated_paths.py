"""The tiles of paths that a processor may lack, with their one instruction written out.

Layout, loops and comparisons of such a path are then run on every machine; what remains untested
where it is missing is the instruction itself.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from llvmlite import ir

from pipeline.index import simd
from pipeline.index.kernels import prepare_queries
from pipeline.index.rows import pack_rows


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


@pytest.mark.parametrize("name", [n for n in simd.PATHS if n.startswith("vnni")])
def test_a_vnni_tile_with_the_instruction_written_out_gives_numpys_integers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(simd._ARITHMETIC, name, (simd._split_bytes, dot_of_bytes))

    @numba.njit
    def compare(codes, rows, norms, heads, marks, values, path):  # type: ignore[no-untyped-def]
        laid = simd.lay_out(rows, path)
        found = np.zeros((2, 2), np.int64)
        for turn, first in enumerate((0, 2)):
            for group in range(0, 8, simd.queries_at_once(path)):
                found[turn, group // 4] = simd.tile(
                    codes, laid, norms, heads, marks, values[turn], first, 3, group, path
                )
        return found

    marker = simd.PATHS[name].marker
    for seed, width in enumerate((64, 128, 512)):
        rng = np.random.default_rng(seed)
        extreme = rng.choice(np.array([0, 1, 127, 128, 254, 255], np.uint8), (48, width))
        rows = pack_rows(extreme)
        signed = rng.choice(np.array([-128, -127, -1, 0, 127], np.int8), (8, width))
        queries = prepare_queries(signed)
        value = 2 * (signed.astype(np.int64) @ extreme.T.astype(np.int64)) - rows.norms
        head = signed[:, : simd.HEAD].astype(np.int64) @ extreme[:, : simd.HEAD].T - rows.heads
        limits = np.sort(value, axis=1)[:, 30]
        for shown in (True, False):
            # With heads above every limit all is compared, with heads below nothing is.
            edge = int(head.min() - 1 if shown else head.max())
            marks = np.zeros((3, simd.TILE), np.int32)
            for slot, limit in enumerate(limits):
                simd.set_marks(marks, slot, limit, 2 * edge, 0, True)
            values = np.zeros((2, 8, 32), np.int32)
            found = compare(
                rows.codes, queries.codes, rows.norms, rows.heads, marks, values, marker
            )
            near = value > limits[:, None]
            for turn, (start, stop) in enumerate(((0, 32), (32, 48))):
                answer = int(found[turn, 0]) | int(found[turn, 1])
                expected = near[:, start:stop].any(axis=0) & shown
                assert [answer >> i & 1 == 1 for i in range(stop - start)] == expected.tolist()
                assert (answer >> simd.COMPUTED != 0) == shown
                if shown:
                    assert np.array_equal(values[turn][:, : stop - start], value[:, start:stop])
