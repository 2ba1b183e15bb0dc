"""The processor's 8-bit dot product, emitted from numba, and the compiled loops over it.

`tile` computes, for 8 query rows and one or two blocks of 16 stored rows, all inner products. It is
generated for the processor at hand by one generator from a short description (`Path`):

``vnni512``
    AVX-512 VNNI: ``vpdpbusd`` on 512-bit registers, 64 multiply-adds an instruction, summed in 32
    bits without saturating.
``vnni256``
    AVX-VNNI: the same instruction on 256-bit registers.
``avx2``
    rows and queries widened to 16 bits in registers and added by ``vpmaddwd``: 255 * 128 * 2 fits
    32 bits, while the 8-bit ``vpmaddubsw`` would saturate at 16.
``portable``
    the same arithmetic in LLVM's own vector types, which every processor has.

All give the same integers.

Layout of a block of 16 rows (`pipeline.index.rows.pack_rows`): a step is 64 bytes; step k holds
the bytes 4k to 4k + 3 of each of the 16 rows in turn, so that one register load feeds 16 lanes. A
row of D bytes has D / 4 steps.

Everything that the loops are compiled from is in this one file, because numba's cache on disk only
looks at the file that a cached function is in: a loop elsewhere would go on with the old products
after a change here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

BLOCK = 16
"""Rows in a block: the 32-bit lanes of a 512-bit register."""

TILE = 8
"""Queries in a tile."""

WIDE = 2
"""Blocks in a wide tile: each broadcast of query bytes is used for all of them."""

UNROLLED = 4
"""Steps written out in a round of a tile's loop: 16 bytes of a row."""

NEVER = np.iinfo(np.int32).max
"""A limit that no pair passes, and the distance of a neighbour that there is not."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_Values = list[ir.Value]
_Split = Callable[[ir.IRBuilder, ir.Value], _Values]
_Dot = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], ir.Value]


class Path(NamedTuple):
    """How one kind of processor computes a tile.

    Attributes
    ----------
    name : str
    marker : tuple of int
        What the compiled loops are handed: numba compiles a version for each length of a tuple, and
        the length chooses the path when it compiles.
    lanes : int
        32-bit lanes of a register.
    queries, blocks : int
        Queries and blocks of a register tile: so many that sums and operands stay in registers.
    words : int
        32-bit words that a query takes for a step: one of 8-bit numbers, two of 16-bit numbers.
    """

    name: str
    marker: tuple[int, ...]
    lanes: int
    queries: int
    blocks: int
    words: int


PATHS = {
    path.name: path
    for path in (
        Path("portable", (), lanes=16, queries=2, blocks=1, words=2),
        Path("avx2", (0,), lanes=8, queries=4, blocks=1, words=2),
        Path("vnni256", (0, 0), lanes=8, queries=4, blocks=1, words=1),
        Path("vnni512", (0, 0, 0), lanes=16, queries=8, blocks=2, words=1),
    )
}
"""Every path, slowest first."""

_BY_LENGTH = {len(path.marker): path for path in PATHS.values()}


def usable_paths() -> list[str]:
    """Return the names of the paths that this processor has, slowest first."""
    features = llvm.get_host_cpu_features()
    needs = {
        "portable": (),
        "avx2": ("avx2",),
        "vnni256": ("avxvnni",),
        "vnni512": ("avx512f", "avx512vnni"),
    }
    return [name for name in PATHS if all(features.get(feature) for feature in needs[name])]


def _every(kind: ir.VectorType, value: int) -> ir.Constant:
    """Return a vector constant of one repeated value."""
    return ir.Constant(kind, [value] * kind.count)


def _splat(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    """Return the 32-bit scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(_I32, lanes), ir.Undefined)
    one = builder.insert_element(undefined, scalar, _I32(0))
    return builder.shuffle_vector(one, undefined, _every(ir.VectorType(_I32, lanes), 0))


def _instruction(builder: ir.IRBuilder, name: str, *kinds: ir.Type) -> ir.Function:
    """Return a processor's instruction: result kind, then the operands'."""
    kind = ir.FunctionType(kinds[0], kinds[1:])
    return cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]


def _split_bytes(builder: ir.IRBuilder, rows: ir.Value) -> _Values:
    """Return the rows as they are: the instruction multiplies bytes."""
    return [rows]


def _split_halves(builder: ir.IRBuilder, rows: ir.Value) -> _Values:
    """Return bytes 0 and 2 of each lane, then bytes 1 and 3, as 16-bit numbers."""
    halves = ir.VectorType(_I16, 2 * rows.type.count)
    wide = builder.bitcast(rows, halves)
    return [builder.and_(wide, _every(halves, 255)), builder.lshr(wide, _every(halves, 8))]


def _dot_vnni(builder: ir.IRBuilder, total: ir.Value, rows: ir.Value, query: ir.Value) -> ir.Value:
    """Add the products of four bytes a lane: one instruction."""
    lanes = rows.type
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes.count}"
    return builder.call(
        _instruction(builder, name, lanes, lanes, lanes, lanes), [total, rows, query]
    )


def _dot_avx2(builder: ir.IRBuilder, total: ir.Value, rows: ir.Value, query: ir.Value) -> ir.Value:
    """Add the products of two 16-bit numbers a lane: ``vpmaddwd`` and an addition."""
    halves = rows.type
    multiply = _instruction(builder, "llvm.x86.avx2.pmadd.wd", total.type, halves, halves)
    return builder.add(total, builder.call(multiply, [rows, builder.bitcast(query, halves)]))


def _dot_portable(
    builder: ir.IRBuilder, total: ir.Value, rows: ir.Value, query: ir.Value
) -> ir.Value:
    """Add the products of two 16-bit numbers a lane, in a form that compilers know."""
    wide = ir.VectorType(_I32, rows.type.count)
    left = builder.sext(rows, wide)
    right = builder.sext(builder.bitcast(query, rows.type), wide)
    product = builder.mul(left, right)
    undefined = ir.Constant(wide, ir.Undefined)
    for parity in (0, 1):
        lanes = [2 * lane + parity for lane in range(total.type.count)]
        picked = ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)
        total = builder.add(total, builder.shuffle_vector(product, undefined, picked))
    return total


_ARITHMETIC: dict[str, tuple[_Split, _Dot]] = {
    "portable": (_split_halves, _dot_portable),
    "avx2": (_split_halves, _dot_avx2),
    "vnni256": (_split_bytes, _dot_vnni),
    "vnni512": (_split_bytes, _dot_vnni),
}


class _Tile:
    """Writes the instructions of one tile.

    Parameters
    ----------
    builder : ir.IRBuilder
    path : Path
    wide : bool
        Two blocks, else one.
    codes, queries, norms, limits, out : ir.Value
        Pointers to bytes; see `tile`.
    block, rounds : ir.Value
        64-bit integers: first block, rounds of `UNROLLED` steps in a row.
    """

    def __init__(
        self,
        builder: ir.IRBuilder,
        path: Path,
        wide: bool,
        pointers: dict[str, ir.Value],
        block: ir.Value,
        rounds: ir.Value,
    ) -> None:
        self.builder, self.path, self.pointers, self.rounds = builder, path, pointers, rounds
        self.block = block
        self.width = WIDE if wide else 1
        self.lanes = ir.VectorType(_I32, path.lanes)
        self.split, self.dot = _ARITHMETIC[path.name]

    def at(self, name: str, offset: ir.Value, kind: ir.Type) -> ir.Value:
        """Load or store place: `offset` bytes into one of the arrays."""
        place = self.builder.gep(self.pointers[name], [offset])
        return self.builder.bitcast(place, kind.as_pointer())

    def load(self, name: str, offset: ir.Value, kind: ir.Type) -> ir.Value:
        """Load a value that need not be aligned."""
        return self.builder.load(self.at(name, offset, kind), align=1)

    def write(self) -> ir.Value:
        """Write the tile; returns which of its rows passed, bit by bit.

        Register tiles are rounds of a loop, so that the code stays in the processor's cache of
        decoded instructions.
        """
        builder, path = self.builder, self.path
        passed = cgutils.alloca_once(builder, _I64)  # type: ignore[no-untyped-call]
        builder.store(_I64(0), passed)
        blocks = min(path.blocks, self.width)
        # The inner loop is over queries: the rows come from the nearest cache from the second on.
        with cgutils.for_range(builder, _I64(self.width // blocks)) as outer:
            first = builder.mul(outer.index, _I64(blocks))
            with cgutils.for_range(builder, _I64(TILE // path.queries)) as inner:
                query = builder.mul(inner.index, _I64(path.queries))
                bits = self._register_tile(query, first, blocks)
                builder.store(builder.or_(builder.load(passed), bits), passed)
        return builder.load(passed)

    def _register_tile(self, query: ir.Value, first: ir.Value, blocks: int) -> ir.Value:
        """Write sums, compare and store of the queries and blocks that fit the registers."""
        path, builder = self.path, self.builder
        parts = blocks * BLOCK // path.lanes
        sums = self._sums(query, first, parts)
        lane = builder.mul(first, _I64(BLOCK))
        row = builder.add(builder.mul(self.block, _I64(BLOCK)), lane)
        bits = _I64(0)
        limits = [
            _splat(builder, self.load("limits", self._scaled(query, slot, 4), _I32), path.lanes)
            for slot in range(path.queries)
        ]
        for part in range(parts):
            norm = self.load("norms", self._scaled(row, part * path.lanes, 4), self.lanes)
            passed = _every(ir.VectorType(ir.IntType(1), path.lanes), 0)
            for slot in range(path.queries):
                value = builder.sub(builder.shl(sums[slot][part], _every(self.lanes, 1)), norm)
                line = self._scaled(query, slot, 4 * WIDE * BLOCK)
                offset = builder.add(line, self._scaled(lane, part * path.lanes, 4))
                builder.store(value, self.at("out", offset, self.lanes), align=1)
                passed = builder.or_(passed, builder.icmp_signed(">", value, limits[slot]))
            number = builder.zext(builder.bitcast(passed, ir.IntType(path.lanes)), _I64)
            shift = builder.add(lane, _I64(part * path.lanes))
            bits = builder.or_(bits, builder.shl(number, shift))
        return bits

    def _scaled(self, base: ir.Value, more: int, size: int) -> ir.Value:
        """Return ``(base + more) * size``."""
        return self.builder.add(self.builder.mul(base, _I64(size)), _I64(more * size))

    def _sums(self, query: ir.Value, first: ir.Value, parts: int) -> list[_Values]:
        """Write the loop over a row's steps; returns the sums of each query and row register."""
        path, builder = self.path, self.builder
        cells = [[self._zero() for _ in range(parts)] for _ in range(path.queries)]
        block_bytes = builder.mul(self.rounds, _I64(UNROLLED * BLOCK * 4))
        query_bytes = builder.mul(self.rounds, _I64(UNROLLED * 8))
        blocks = [
            builder.add(builder.add(self.block, first), _I64(number))
            for number in range(parts * path.lanes // BLOCK)
        ]
        with cgutils.for_range(builder, self.rounds) as loop:
            sums = [[builder.load(cell) for cell in line] for line in cells]
            far_row = builder.mul(loop.index, _I64(UNROLLED * BLOCK * 4))
            far_word = builder.mul(loop.index, _I64(UNROLLED * path.words * 4))
            starts = [builder.add(builder.mul(block, block_bytes), far_row) for block in blocks]
            asked = [
                builder.add(builder.mul(builder.add(query, _I64(slot)), query_bytes), far_word)
                for slot in range(path.queries)
            ]
            for step in range(UNROLLED):
                self._step(step, starts, asked, sums)
            for line, values in zip(cells, sums, strict=True):
                for cell, value in zip(line, values, strict=True):
                    builder.store(value, cell)
        return [[builder.load(cell) for cell in line] for line in cells]

    def _step(self, step: int, starts: _Values, asked: _Values, sums: list[_Values]) -> None:
        """Add the products of four bytes of every row and query to the sums."""
        path, builder = self.path, self.builder
        parts = range(len(sums[0]))
        rows = [self.split(builder, self._rows(starts, step, part)) for part in parts]
        for slot in range(path.queries):
            for word in range(path.words):
                offset = _I64(4 * (step * path.words + word))
                four = self.load("queries", builder.add(asked[slot], offset), _I32)
                many = _splat(builder, four, path.lanes)
                for part in parts:
                    sums[slot][part] = self.dot(builder, sums[slot][part], rows[part][word], many)

    def _zero(self) -> ir.Value:
        """Return a place for sums, which the optimiser keeps in a register, set to zero."""
        cell = cgutils.alloca_once(self.builder, self.lanes)  # type: ignore[no-untyped-call]
        self.builder.store(_every(self.lanes, 0), cell)
        return cell

    def _rows(self, starts: _Values, step: int, part: int) -> ir.Value:
        """Load one register of rows."""
        number, lane = divmod(part * self.path.lanes, BLOCK)
        offset = _I64(4 * (step * BLOCK + lane))
        return self.load("codes", self.builder.add(starts[number], offset), self.lanes)


def _make_codegen(path: Path, wide: bool) -> Callable[..., ir.Value]:
    """Return the code generator of a tile."""
    names = ("codes", "block", "queries", "norms", "limits", "out")

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        def pointer(position: int) -> ir.Value:
            kind = signature.args[position]
            array = context.make_array(kind)(context, builder, args[position])
            return builder.bitcast(array.data, _I8.as_pointer())

        pointers = {name: pointer(i) for i, name in enumerate(names) if name != "block"}
        codes = context.make_array(signature.args[0])(context, builder, args[0])
        steps = builder.extract_value(codes.shape, 1)
        rounds = builder.udiv(steps, _I64(UNROLLED))
        return _Tile(builder, path, wide, pointers, args[1], rounds).write()

    return codegen


def _signature(*kinds: Any) -> Any:
    return types.int64(*kinds)


@intrinsic
def _tile_narrow(
    typing_context: Any,
    codes: Any,
    block: Any,
    queries: Any,
    norms: Any,
    limits: Any,
    out: Any,
    path: Any,
) -> Any:
    """Emit a tile of one block."""
    codegen = _make_codegen(_BY_LENGTH[len(path)], wide=False)
    return _signature(codes, types.int64, queries, norms, limits, out, path), codegen


@intrinsic
def _tile_wide(
    typing_context: Any,
    codes: Any,
    block: Any,
    queries: Any,
    norms: Any,
    limits: Any,
    out: Any,
    path: Any,
) -> Any:
    """Emit a tile of two blocks."""
    codegen = _make_codegen(_BY_LENGTH[len(path)], wide=True)
    return _signature(codes, types.int64, queries, norms, limits, out, path), codegen


@numba.njit(nogil=True)
def tile(codes, block, last, queries, norms, limits, out, path):  # type: ignore[no-untyped-def]
    """Fill `out` with ``2 * dot - norm`` and return the rows in which any query passes its limit.

    Parameters
    ----------
    codes : uint8 (B, D / 4, 16, 4)
        D a multiple of 64.
    block, last : int
        First block of the tile, and the end of the blocks: where there is another one, the tile is
        two blocks wide.
    queries : int16 (8, D)
        As `fill_slot` lays them out.
    norms : int32 (16 B,)
    limits : int32 (8,)
    out : int32 (8, 32)
    path : tuple of int
        A path's marker.

    Returns
    -------
    int
        Bit r is set when row r of the tile is above the limit of any query.
    """
    if block + 1 < last:
        return _tile_wide(codes, block, queries, norms, limits, out, path)  # type: ignore[call-arg]
    return _tile_narrow(codes, block, queries, norms, limits, out, path)  # type: ignore[call-arg]


@numba.njit(nogil=True)
def fill_slot(queries, slot, row, path):  # type: ignore[no-untyped-def]
    """Lay a query row out as the path's broadcasts read it.

    The VNNI paths read its bytes. The others read, of every four bytes, two words of two 16-bit
    numbers: bytes 0 and 2, bytes 1 and 3.
    """
    if len(path) > 1:
        for i in range(row.shape[0] // 2):
            queries[slot, i] = np.int16((row[2 * i] & 255) | (row[2 * i + 1] << 8))
    else:
        for i in range(0, row.shape[0], 4):
            queries[slot, i] = row[i]
            queries[slot, i + 1] = row[i + 2]
            queries[slot, i + 2] = row[i + 1]
            queries[slot, i + 3] = row[i + 3]


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
    path,
):
    """Scan work items from `first_item` on; returns (items done, hits written).

    An item whose hits do not fit any more is undone, so that the caller can go on from it with
    emptied buffers.
    """
    tile_codes = np.zeros((TILE, query_codes.shape[1]), np.int16)
    limits = np.empty(TILE, np.int32)
    values = np.empty((TILE, WIDE * BLOCK), np.int32)
    capacity = out_query.shape[0]
    written = 0
    for item in range(first_item, row_start.shape[0]):
        begin, end = row_start[item], row_stop[item]
        last = (end + BLOCK - 1) // BLOCK
        at_item = written
        for start in range(query_start[item], query_start[item + 1], TILE):
            filled = min(TILE, query_start[item + 1] - start)
            for slot in range(TILE):
                if slot < filled:
                    query = query_list[start + slot]
                    fill_slot(tile_codes, slot, query_codes[query], path)
                    limits[slot] = max(bias[query] - radius[query], -NEVER)
                else:
                    limits[slot] = NEVER
            for block in range(begin // BLOCK, last, WIDE):
                bits = tile(codes, block, last, tile_codes, norms, limits, values, path)
                lane = -1
                while bits != 0:
                    lane += 1
                    row = block * BLOCK + lane
                    chosen = bits & 1
                    bits >>= 1
                    if chosen == 0 or row < begin or row >= end or not alive[row]:
                        continue
                    for slot in range(filled):
                        value = values[slot, lane]
                        if value > limits[slot]:
                            if written == capacity:
                                return item, at_item
                            query = query_list[start + slot]
                            out_query[written] = query
                            out_row[written] = row
                            out_distance[written] = bias[query] - value
                            written += 1
    return row_start.shape[0], written


@numba.njit(nogil=True)
def _limit(distance, bias):  # type: ignore[no-untyped-def]
    """Return the limit that a pair as far as the current k-th neighbour still passes."""
    return np.int32(-NEVER if distance == NEVER else bias - distance - 1)


@numba.njit(nogil=True)
def _insert(distances, rows, distance, row):  # type: ignore[no-untyped-def]
    """Put a neighbour into a list sorted by (distance, row), whose last one goes."""
    at = distances.shape[0] - 1
    while at > 0 and (
        distances[at - 1] > distance or (distances[at - 1] == distance and rows[at - 1] > row)
    ):
        distances[at] = distances[at - 1]
        rows[at] = rows[at - 1]
        at -= 1
    distances[at] = distance
    rows[at] = row


@numba.njit(nogil=True, cache=True)
def nearest_ranges(  # type: ignore[no-untyped-def]
    codes,
    norms,
    alive,
    query_codes,
    bias,
    row_start,
    row_stop,
    query_start,
    query_list,
    out_distance,
    out_row,
    path,
):
    """Keep the k nearest living rows of each query over its work items, by (distance, row)."""
    tile_codes = np.zeros((TILE, query_codes.shape[1]), np.int16)
    limits = np.empty(TILE, np.int32)
    values = np.empty((TILE, WIDE * BLOCK), np.int32)
    k = out_distance.shape[1]
    for item in range(row_start.shape[0]):
        begin, end = row_start[item], row_stop[item]
        last = (end + BLOCK - 1) // BLOCK
        for start in range(query_start[item], query_start[item + 1], TILE):
            filled = min(TILE, query_start[item + 1] - start)
            for slot in range(TILE):
                limits[slot] = NEVER
                if slot < filled:
                    query = query_list[start + slot]
                    fill_slot(tile_codes, slot, query_codes[query], path)
                    limits[slot] = _limit(out_distance[query, k - 1], bias[query])
            for block in range(begin // BLOCK, last, WIDE):
                bits = tile(codes, block, last, tile_codes, norms, limits, values, path)
                lane = -1
                while bits != 0:
                    lane += 1
                    row = block * BLOCK + lane
                    chosen = bits & 1
                    bits >>= 1
                    if chosen == 0 or row < begin or row >= end or not alive[row]:
                        continue
                    for slot in range(filled):
                        value = values[slot, lane]
                        if value <= limits[slot]:
                            continue
                        query = query_list[start + slot]
                        distance = bias[query] - value
                        worst = out_distance[query, k - 1]
                        if distance == worst and row > out_row[query, k - 1]:
                            continue
                        _insert(out_distance[query], out_row[query], distance, row)
                        limits[slot] = _limit(out_distance[query, k - 1], bias[query])
