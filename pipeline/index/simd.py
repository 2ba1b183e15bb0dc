"""The processor's 8-bit dot product, emitted from numba, and the compiled loops over it.

`tile_accumulate` computes, for 8 query rows and one block of 16 descriptor rows, all 128 inner
products of 64 bytes. On a processor with AVX-512 VNNI it is 128 ``vpdpbusd`` instructions on
registers (64 multiply-adds each, summed in 32 bits without saturating). Elsewhere the same tile is
written as widening 16-bit multiply-adds in LLVM's own vector types, which every processor has
(``pmaddwd`` on x86: 255 * 128 * 2 fits 32 bits, while the 8-bit ``vpmaddubsw`` would saturate).
Both give the same integers.

Layout of a block of 16 descriptors of 64 bytes (`pipeline.index.rows.pack_rows`): 16 steps of
64 bytes; step k holds the bytes 4k to 4k + 3 of each of the 16 descriptors in turn, so that one
register load feeds 16 lanes.

Everything that the loops are compiled from is in this one file, because numba's cache on disk only
looks at the file that a cached function is in: a loop elsewhere would go on with the old products
after a change here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

BLOCK = 16
"""Descriptors in a block: the 32-bit lanes of a 512-bit register."""

TILE = 8
"""Queries in a tile: 8 sums and their operands stay in registers."""

STEPS = 16
"""Groups of four bytes in a row of 64 bytes."""

NEVER = np.iinfo(np.int32).max
"""A limit that no pair passes, and the distance of a neighbour that there is not."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_LANES = ir.VectorType(_I32, BLOCK)
_Dot = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], ir.Value]


def has_vnni() -> bool:
    """Tell whether this processor has AVX-512 VNNI."""
    features = llvm.get_host_cpu_features()
    return bool(features.get("avx512vnni") and features.get("avx512f"))


def _every(kind: ir.VectorType, value: int) -> ir.Constant:
    """Return a vector constant of one repeated value."""
    return ir.Constant(kind, [value] * kind.count)


def _splat(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    """Return the 32-bit scalar in every lane."""
    undefined = ir.Constant(_LANES, ir.Undefined)
    one = builder.insert_element(undefined, scalar, _I32(0))
    return builder.shuffle_vector(one, undefined, _every(_LANES, 0))


def _dot_vnni(builder: ir.IRBuilder, total: ir.Value, rows: ir.Value, query: ir.Value) -> ir.Value:
    """Add the products of four bytes a lane: one instruction."""
    instruction = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module,
        ir.FunctionType(_LANES, [_LANES, _LANES, _LANES]),
        "llvm.x86.avx512.vpdpbusd.512",
    )
    return builder.call(instruction, [total, rows, query])


def _dot_portable(
    builder: ir.IRBuilder, total: ir.Value, rows: ir.Value, query: ir.Value
) -> ir.Value:
    """Add the products of four bytes a lane by 16-bit multiply-adds.

    A lane's bytes 0 and 2 are the low bytes of its two 16-bit halves, bytes 1 and 3 the high ones.
    """
    halves = ir.VectorType(_I16, 2 * BLOCK)
    wide = ir.VectorType(_I32, 2 * BLOCK)
    eight = _every(halves, 8)
    stored, wanted = builder.bitcast(rows, halves), builder.bitcast(query, halves)
    low = (
        builder.and_(stored, _every(halves, 255)),
        builder.ashr(builder.shl(wanted, eight), eight),
    )
    high = (builder.lshr(stored, eight), builder.ashr(wanted, eight))
    undefined = ir.Constant(wide, ir.Undefined)
    index = ir.VectorType(_I32, BLOCK)
    for left, right in (low, high):
        product = builder.mul(builder.sext(left, wide), builder.sext(right, wide))
        for parity in (0, 1):
            lanes = ir.Constant(index, [2 * lane + parity for lane in range(BLOCK)])
            total = builder.add(total, builder.shuffle_vector(product, undefined, lanes))
    return total


def _make_codegen(dot: _Dot) -> Callable[..., ir.Value]:
    """Return the code generator of a tile whose products are added by `dot`."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        def pointer(position: int) -> ir.Value:
            kind = signature.args[position]
            array = context.make_array(kind)(context, builder, args[position])
            return builder.bitcast(array.data, _I8.as_pointer())

        def at(base: ir.Value, offset: ir.Value, kind: ir.Type) -> ir.Value:
            return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())

        codes, queries, norms, limits, out = (pointer(position) for position in (0, 2, 3, 4, 5))
        block = args[1]
        start = builder.mul(block, _I64(STEPS * BLOCK * 4))
        sums = [_every(_LANES, 0) for _ in range(TILE)]
        for step in range(STEPS):
            rows = builder.load(at(codes, builder.add(start, _I64(step * 64)), _LANES), align=1)
            for query in range(TILE):
                four = builder.load(at(queries, _I64(query * 64 + step * 4), _I32), align=1)
                sums[query] = dot(builder, sums[query], rows, _splat(builder, four))
        norm = builder.load(at(norms, builder.mul(block, _I64(BLOCK * 4)), _LANES), align=1)
        passed = _every(ir.VectorType(ir.IntType(1), BLOCK), 0)
        for query in range(TILE):
            value = builder.sub(builder.shl(sums[query], _every(_LANES, 1)), norm)
            builder.store(value, at(out, _I64(query * BLOCK * 4), _LANES), align=1)
            limit = _splat(builder, builder.load(at(limits, _I64(query * 4), _I32), align=1))
            passed = builder.or_(passed, builder.icmp_signed(">", value, limit))
        return builder.zext(builder.bitcast(passed, ir.IntType(BLOCK)), _I64)

    return codegen


def _signature(codes: Any, queries: Any, norms: Any, limits: Any, out: Any) -> Any:
    return types.int64(codes, types.int64, queries, norms, limits, out)


@intrinsic
def _tile_vnni(
    typing_context: Any, codes: Any, block: Any, queries: Any, norms: Any, limits: Any, out: Any
) -> Any:
    """Emit a tile for a processor with AVX-512 VNNI."""
    return _signature(codes, queries, norms, limits, out), _make_codegen(_dot_vnni)


@intrinsic
def _tile_portable(
    typing_context: Any, codes: Any, block: Any, queries: Any, norms: Any, limits: Any, out: Any
) -> Any:
    """Emit a tile for any processor."""
    return _signature(codes, queries, norms, limits, out), _make_codegen(_dot_portable)


@numba.njit(nogil=True)
def tile_accumulate(codes, block, queries, norms, limits, out, vnni):  # type: ignore[no-untyped-def]
    """Fill `out` with ``2 * dot - norm`` and return the lanes in which any query passes its limit.

    Parameters
    ----------
    codes : uint8 (B, 16, 16, 4)
    block : int
    queries : int8 (8, 64)
    norms : int32 (16 B,)
    limits : int32 (8,)
    out : int32 (8, 16)
    vnni : None or int
        None takes the portable path, an integer the instruction: numba drops the other branch when
        it compiles, so that one source serves both.

    Returns
    -------
    int
        Bit l is set when lane l of any query is above its limit.
    """
    if vnni is None:
        return _tile_portable(codes, block, queries, norms, limits, out)  # type: ignore[call-arg]
    return _tile_vnni(codes, block, queries, norms, limits, out)  # type: ignore[call-arg]


@numba.njit(nogil=True, cache=True)
def scan_ranges(  # type: ignore[no-untyped-def]
    codes,
    norms,
    alive,
    query_codes,
    bias,
    radius,
    row_start,
    row_stop,
    query_start,
    query_list,
    first_item,
    out_query,
    out_row,
    out_distance,
    vnni,
):
    """Scan work items from `first_item` on; returns (items done, hits written).

    An item whose hits do not fit any more is undone, so that the caller can go on from it with
    emptied buffers.
    """
    tile_codes = np.zeros((TILE, 64), np.int8)
    limits = np.empty(TILE, np.int32)
    values = np.empty((TILE, BLOCK), np.int32)
    capacity = out_query.shape[0]
    written = 0
    for item in range(first_item, row_start.shape[0]):
        begin, end = row_start[item], row_stop[item]
        at_item = written
        for tile in range(query_start[item], query_start[item + 1], TILE):
            filled = min(TILE, query_start[item + 1] - tile)
            for slot in range(TILE):
                if slot < filled:
                    query = query_list[tile + slot]
                    tile_codes[slot] = query_codes[query]
                    limits[slot] = max(bias[query] - radius[query], -NEVER)
                else:
                    limits[slot] = NEVER
            for block in range(begin // BLOCK, (end + BLOCK - 1) // BLOCK):
                passed = tile_accumulate(codes, block, tile_codes, norms, limits, values, vnni)
                if passed == 0:
                    continue
                for lane in range(BLOCK):
                    row = block * BLOCK + lane
                    if (passed >> lane) & 1 == 0 or row < begin or row >= end or not alive[row]:
                        continue
                    for slot in range(filled):
                        value = values[slot, lane]
                        if value > limits[slot]:
                            if written == capacity:
                                return item, at_item
                            query = query_list[tile + slot]
                            out_query[written] = query
                            out_row[written] = row
                            out_distance[written] = bias[query] - value
                            written += 1
    return row_start.shape[0], written


@numba.njit(nogil=True, cache=True)
def nearest_rows(codes, norms, query_codes, bias, count, out_distance, out_row, vnni):  # type: ignore[no-untyped-def]
    """Keep the k nearest rows of each query, by (distance, row)."""
    tile_codes = np.zeros((TILE, 64), np.int8)
    limits = np.empty(TILE, np.int32)
    values = np.empty((TILE, BLOCK), np.int32)
    k = out_distance.shape[1]
    total = query_codes.shape[0]
    for tile in range(0, total, TILE):
        filled = min(TILE, total - tile)
        for slot in range(TILE):
            limits[slot] = NEVER
            if slot < filled:
                tile_codes[slot] = query_codes[tile + slot]
                limits[slot] = -NEVER
        for block in range((count + BLOCK - 1) // BLOCK):
            passed = tile_accumulate(codes, block, tile_codes, norms, limits, values, vnni)
            if passed == 0:
                continue
            for lane in range(BLOCK):
                row = block * BLOCK + lane
                if (passed >> lane) & 1 == 0 or row >= count:
                    continue
                for slot in range(filled):
                    value = values[slot, lane]
                    if value <= limits[slot]:
                        continue
                    query = tile + slot
                    distance = bias[query] - value
                    at = k - 1
                    while at > 0 and out_distance[query, at - 1] > distance:
                        out_distance[query, at] = out_distance[query, at - 1]
                        out_row[query, at] = out_row[query, at - 1]
                        at -= 1
                    out_distance[query, at] = distance
                    out_row[query, at] = row
                    if out_distance[query, k - 1] < NEVER:
                        limits[slot] = bias[query] - out_distance[query, k - 1]
