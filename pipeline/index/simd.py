"""The processor's 8-bit dot product, emitted from numba, and the compiled loops over it.

`tile` computes all inner products of some query rows with one or `WIDE` blocks of 16 stored rows.
It is generated for the processor at hand by one generator from a short description (`Path`):

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
``amx``
    Advanced Matrix Extensions: ``tdpbsud`` multiplies 16 queries by a block of 16 rows, 64 bytes
    long, in 16 cycles; a block is laid out just as its right operand has to be. Prefixes are not
    compared first: comparing takes longer than multiplying. Tiles of few queries are ``vnni512``'s.

All give the same integers.

Layout of a block of 16 rows (`pipeline.index.rows.pack_rows`): a step is 64 bytes; step k holds
the bytes 4k to 4k + 3 of each of the 16 rows in turn, so that one register load feeds 16 lanes. A
row of D bytes has D / 4 steps.

All code that the loops are compiled from is in this file and in `pipeline.index.paths`. Their
machine code on disk is valid for these sources, which `pipeline.index.kernels` names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from pipeline.index.paths import BLOCK, FEW, NEVER, PATHS, PREFIX, SPAN, TILE, WIDE, Path, Shape

SLICE_BYTES = 1 << 15
"""Size of a slice of rows, which all tiles of queries use before the next slice: it stays in the L1
cache."""

UNROLLED = 1
"""Steps unrolled in a round of a tile's loop: with more, sums spill out of registers."""

MAXIMA_A_RANK = 3
"""Number of maxima for each wanted value: with fewer, their bound lets too many values pass."""

COUNTED = 256
"""Up to so many values, each is ranked by counting the greater ones, without a branch."""

FAR_MORE = 4
"""With so many times more values than wanted, most must be equal."""

CEILING, PREFIX_CEILING = 1 << 29, 1 << 22
"""Limits that no pair passes: above every value of a pair (4,096 products of bytes, twice) and of
its prefix. Every pair passes their negatives. Sums of such numbers fit 32 bits."""

BEGIN, END, LIMIT, ROUGH, MARKS = range(5)
"""Marks of a query: the start of its sums, what completes them, the limit, and the limit of half
values (`set_marks`)."""

LAST_ROW = np.int64(np.iinfo(np.int64).max)
"""A row number after all others."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_Values = list[ir.Value]
_Split = Callable[[ir.IRBuilder, ir.Value], _Values]
_Dot = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], ir.Value]


_BY_LENGTH = {len(path.marker): path for path in PATHS.values()}
_QUERIES = tuple((path.many.queries, path.few.queries) for path in PATHS.values())
_BLOCKS = tuple((path.many.blocks, path.few.blocks) for path in PATHS.values())


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
    "amx": (_split_bytes, _dot_vnni),
}


class _Tile:
    """Writes the instructions of one tile.

    Parameters
    ----------
    builder : ir.IRBuilder
    path : Path
    shape : Shape
        The path's for many queries or for few.
    width : int
        Blocks.
    pointers : dict of str to ir.Value
        The arrays' bytes; see `tile`.
    block, slot, rounds : ir.Value
        64-bit integers: first block, first query, rounds of `UNROLLED` steps in a row.
    """

    def __init__(
        self,
        builder: ir.IRBuilder,
        path: Path,
        shape: Shape,
        width: int,
        pointers: dict[str, ir.Value],
        block: ir.Value,
        slot: ir.Value,
        rounds: ir.Value,
    ) -> None:
        self.builder, self.path, self.pointers, self.rounds = builder, path, pointers, rounds
        self.block, self.slot = block, slot
        self.shape, self.width = shape, width
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
        """Write the tile; return which of its rows passed, as bits.

        Register tiles are rounds of a loop, so that the code fits the processor's cache of decoded
        instructions.
        """
        builder = self.builder
        passed = cgutils.alloca_once(builder, _I64)  # type: ignore[no-untyped-call]
        builder.store(_I64(0), passed)
        blocks = min(self.shape.blocks, self.width)
        with cgutils.for_range(builder, _I64(self.width // blocks)) as loop:
            self._register_tile(builder.mul(loop.index, _I64(blocks)), blocks, passed)
        return builder.load(passed)

    def _register_tile(self, first: ir.Value, blocks: int, passed: ir.Value) -> None:
        """Write the sums and comparisons of as many blocks as fit the registers.

        Sums begin below zero by the amount that they must reach, so that signs tell which pairs are
        near: one AND rules out a register.
        """
        path, builder = self.path, self.builder
        registers = blocks * BLOCK // path.lanes
        row = builder.mul(builder.add(self.block, first), _I64(BLOCK))
        begins = self._marks(BEGIN)
        prefixes = [self._lane_numbers("prefixes", row, register) for register in range(registers)]
        sums = [
            [self._place(builder.sub(begin, prefix)) for prefix in prefixes] for begin in begins
        ]
        self._rounds(0, _I64(PREFIX // 4 // UNROLLED), first, sums)
        near = self._any([builder.load(cell) for line in sums for cell in line])
        with builder.if_then(near):
            self._rounds(PREFIX // 4 // UNROLLED, self.rounds, first, sums)
            seen = self.at("seen", _I64(0), _I64)
            mark = builder.shl(_I64((1 << blocks) - 1), first)
            builder.store(builder.or_(builder.load(seen), mark), seen)
            self._compare(first, row, prefixes, sums, passed)

    def _compare(
        self,
        first: ir.Value,
        row: ir.Value,
        prefixes: _Values,
        sums: list[_Values],
        passed: ir.Value,
    ) -> None:
        """Write the comparison of whole rows; if any passes, store values and the rows' bits."""
        path, builder = self.path, self.builder
        one = _every(self.lanes, 1)
        above: list[_Values] = [[] for _ in prefixes]
        for register, prefix in enumerate(prefixes):
            norm = self._lane_numbers("norms", row, register)
            rest = builder.sub(builder.shl(prefix, one), norm)
            for line, mark in zip(sums, self._marks(END), strict=True):
                twice = builder.shl(builder.load(line[register]), one)
                above[register].append(builder.add(builder.add(twice, rest), mark))
        with builder.if_then(self._any([value for values in above for value in values])):
            lane = builder.mul(first, _I64(BLOCK))
            limits = self._marks(LIMIT)
            for register, values in enumerate(above):
                at = builder.add(lane, _I64(register * path.lanes))
                for slot, (value, limit) in enumerate(zip(values, limits, strict=True)):
                    place = self._scaled(self.slot, slot, 4 * WIDE * BLOCK)
                    offset = builder.add(place, self._scaled(at, 0, 4))
                    whole = builder.add(value, builder.add(limit, one))
                    builder.store(whole, self.at("out", offset, self.lanes), align=1)
                number = builder.zext(self._not_negative(values), _I64)
                bits = builder.or_(builder.load(passed), builder.shl(number, at))
                builder.store(bits, passed)

    def _any(self, values: _Values) -> ir.Value:
        """Return whether any lane of any register is not negative."""
        number = self._not_negative(values)
        return self.builder.icmp_unsigned("!=", number, ir.Constant(number.type, 0))

    def _not_negative(self, values: _Values) -> ir.Value:
        """Return as bits the lanes in which any register is not negative."""
        every = functools.reduce(self.builder.and_, values)
        flags = self.builder.icmp_signed(">=", every, _every(self.lanes, 0))
        return self.builder.bitcast(flags, ir.IntType(self.path.lanes))

    def _lane_numbers(self, name: str, row: ir.Value, register: int) -> ir.Value:
        """Load a register of one number a row."""
        return self.load(name, self._scaled(row, register * self.path.lanes, 4), self.lanes)

    def _marks(self, kind: int) -> _Values:
        """Load one of each query's marks into every lane."""
        first = self.builder.mul(self.slot, _I64(MARKS))
        values = [
            self.load("marks", self._scaled(first, MARKS * slot + kind, 4), _I32)
            for slot in range(self.shape.queries)
        ]
        return [_splat(self.builder, value, self.path.lanes) for value in values]

    def _scaled(self, base: ir.Value, more: int, size: int) -> ir.Value:
        """Return ``(base + more) * size``."""
        return self.builder.add(self.builder.mul(base, _I64(size)), _I64(more * size))

    def _rounds(self, start: int, stop: ir.Value, first: ir.Value, sums: list[_Values]) -> None:
        """Write a loop over rounds of steps."""
        step = _I64(1)
        with cgutils.for_range_slice(self.builder, _I64(start), stop, step) as (number, _):
            self._round(number, first, sums)

    def _round(self, number: ir.Value, first: ir.Value, sums: list[_Values]) -> None:
        """Write `UNROLLED` steps of a row; the sums are kept in places."""
        path, builder = self.path, self.builder
        block_bytes = builder.mul(self.rounds, _I64(UNROLLED * BLOCK * 4))
        query_bytes = builder.mul(self.rounds, _I64(UNROLLED * 8))
        far_row = builder.mul(number, _I64(UNROLLED * BLOCK * 4))
        far_word = builder.mul(number, _I64(UNROLLED * path.words * 4))
        start = builder.add(self.block, first)
        starts = [
            builder.add(builder.mul(builder.add(start, _I64(i)), block_bytes), far_row)
            for i in range(len(sums[0]) * path.lanes // BLOCK)
        ]
        asked = [
            builder.add(builder.mul(builder.add(self.slot, _I64(i)), query_bytes), far_word)
            for i in range(self.shape.queries)
        ]
        values = [[builder.load(cell) for cell in line] for line in sums]
        for step in range(UNROLLED):
            self._step(step, starts, asked, values)
        for line, results in zip(sums, values, strict=True):
            for cell, result in zip(line, results, strict=True):
                builder.store(result, cell)

    def _step(self, step: int, starts: _Values, asked: _Values, sums: list[_Values]) -> None:
        """Add the products of four bytes of every row and query to the sums."""
        path, builder = self.path, self.builder
        registers = range(len(sums[0]))
        rows = [self.split(builder, self._rows(starts, step, register)) for register in registers]
        for slot in range(self.shape.queries):
            for word in range(path.words):
                offset = _I64(4 * (step * path.words + word))
                four = self.load("queries", builder.add(asked[slot], offset), _I32)
                many = _splat(builder, four, path.lanes)
                for register in registers:
                    sums[slot][register] = self.dot(
                        builder, sums[slot][register], rows[register][word], many
                    )

    def _place(self, value: ir.Value) -> ir.Value:
        """Return an initialised variable for sums, which the optimiser keeps in a register."""
        cell = cgutils.alloca_once(self.builder, self.lanes)  # type: ignore[no-untyped-call]
        self.builder.store(value, cell)
        return cell

    def _rows(self, starts: _Values, step: int, register: int) -> ir.Value:
        """Load one register of rows."""
        number, lane = divmod(register * self.path.lanes, BLOCK)
        offset = _I64(4 * (step * BLOCK + lane))
        return self.load("codes", self.builder.add(starts[number], offset), self.lanes)


class _MatrixTile(_Tile):
    """Writes a tile of 16 queries by the matrix unit.

    Tile registers 0 to 3 hold the sums of a block each, 4 and 5 blocks of rows in turn, 6 the
    queries.
    """

    def write(self) -> ir.Value:
        """Write the tile; returns which of its rows passed, bit by bit.

        Sums are checked one block after the other, which needs the least memory; if any passes, all
        are stored again from the registers that still hold them.
        """
        builder = self.builder
        for register in range(self.width):
            self.emit("tilezero", [_I8(register)])
        with cgutils.for_range(builder, builder.udiv(self.rounds, _I64(BLOCK))) as loop:
            self._products(loop.index)
        passed = cgutils.alloca_once(builder, _I64)  # type: ignore[no-untyped-call]
        builder.store(_I64(0), passed)
        builder.store(_I64((1 << self.width) - 1), self.at("seen", _I64(0), _I64))
        row = builder.mul(self.block, _I64(BLOCK))
        norms = [self._lane_numbers("norms", row, register) for register in range(self.width)]
        with builder.if_then(self._any(self._roughly_above(norms))):
            for register in range(self.width):
                place = self._out(self._scaled(self.slot, 0, 4 * WIDE * BLOCK), register)
                self.emit("tilestored64", [_I8(register), place, _I64(4 * WIDE * BLOCK)])
            self._values(norms, passed)
        return builder.load(passed)

    def emit(self, name: str, values: _Values) -> None:
        """Write an instruction of the matrix unit."""
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.{name}")  # type: ignore[no-untyped-call]
        self.builder.call(function, values)

    def _products(self, chunk: ir.Value) -> None:
        """Write the products of 64 bytes of every row and query."""
        builder = self.builder
        line = builder.mul(self.rounds, _I64(4))
        asked = builder.mul(self.slot, builder.mul(line, _I64(2)))
        first = builder.add(asked, builder.mul(chunk, _I64(64)))
        place = self.at("queries", first, _I8)
        self.emit("tileloadd64", [_I8(6), place, builder.mul(line, _I64(2))])
        for register in range(self.width):
            block = builder.mul(
                builder.add(self.block, _I64(register)), builder.mul(line, _I64(BLOCK))
            )
            rows = builder.add(block, builder.mul(chunk, _I64(64 * BLOCK)))
            self.emit("tileloadd64", [_I8(4 + register % 2), self.at("codes", rows, _I8), _I64(64)])
            self.emit("tdpbsud", [_I8(register), _I8(6), _I8(4 + register % 2)])

    def _out(self, line: ir.Value, register: int) -> ir.Value:
        """Return the place of a block's values in a query's line."""
        return self.at("out", self.builder.add(line, _I64(4 * BLOCK * register)), _I8)

    def _roughly_above(self, norms: _Values) -> _Values:
        """Write half of the distance above the limit, rounded up: that saves a step."""
        builder, one = self.builder, _every(self.lanes, 1)
        rests = self._marks(ROUGH)
        scratch = builder.bitcast(self._scratch(), _I8.as_pointer())
        above = []
        for register, norm in enumerate(norms):
            half = builder.ashr(builder.sub(_every(self.lanes, 0), norm), one)
            self.emit("tilestored64", [_I8(register), scratch, _I64(4 * BLOCK)])
            for slot, rest in enumerate(rests):
                place = builder.gep(scratch, [_I64(4 * BLOCK * slot)])
                sums = builder.load(builder.bitcast(place, self.lanes.as_pointer()), align=64)
                above.append(builder.add(builder.add(sums, half), rest))
        return above

    def _scratch(self) -> ir.Value:
        """Return the place of one block's sums."""
        kind = ir.ArrayType(self.lanes, BLOCK)
        place = cgutils.alloca_once(self.builder, kind)  # type: ignore[no-untyped-call]
        place.align = 64
        return place

    def _values(self, norms: _Values, passed: ir.Value) -> None:
        """Write exact values in place of the sums, and the bits of the rows that pass."""
        builder, one = self.builder, _every(self.lanes, 1)
        limits = self._marks(LIMIT)
        for register, norm in enumerate(norms):
            flags = _every(ir.VectorType(ir.IntType(1), self.path.lanes), 0)
            for slot, limit in enumerate(limits):
                line = self._scaled(self.slot, slot, 4 * WIDE * BLOCK)
                place = builder.bitcast(self._out(line, register), self.lanes.as_pointer())
                sums = builder.load(place, align=64)
                value = builder.sub(builder.shl(sums, one), norm)
                builder.store(value, place, align=64)
                flags = builder.or_(flags, builder.icmp_signed(">", value, limit))
            number = builder.zext(builder.bitcast(flags, ir.IntType(self.path.lanes)), _I64)
            bits = builder.shl(number, _I64(BLOCK * register))
            builder.store(builder.or_(builder.load(passed), bits), passed)


_ARRAYS = ("codes", "queries", "norms", "prefixes", "marks", "out", "seen")


def _make_codegen(path: Path, few: bool, wide: bool) -> Callable[..., ir.Value]:
    """Return the code generator of a tile, which is called with the arrays, block and slot."""
    shape, width = path.few if few else path.many, WIDE if wide else 1

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        def array(position: int) -> Any:
            return context.make_array(signature.args[position])(context, builder, args[position])

        pointers = {
            name: builder.bitcast(array(position).data, _I8.as_pointer())
            for position, name in enumerate(_ARRAYS)
        }
        steps = builder.extract_value(array(0).shape, 1)
        rounds = builder.udiv(steps, _I64(UNROLLED))
        block, slot = args[len(_ARRAYS)], args[len(_ARRAYS) + 1]
        kind = _MatrixTile if shape.queries == TILE else _Tile
        return kind(builder, path, shape, width, pointers, block, slot, rounds).write()

    return codegen


def _tile_of(few: bool, wide: bool) -> Any:
    """Return the intrinsic of a tile of few or many queries, of one block or `WIDE`."""

    @intrinsic
    def emitted(  # type: ignore[no-untyped-def]
        typing_context, codes, queries, norms, prefixes, marks, out, seen, block, slot, path
    ):
        arrays = (codes, queries, norms, prefixes, marks, out, seen)
        signature = types.int64(*arrays, types.int64, types.int64, path)
        return signature, _make_codegen(_BY_LENGTH[len(path)], few, wide)

    return emitted


_many_narrow, _many_wide = _tile_of(False, False), _tile_of(False, True)
_few_narrow, _few_wide = _tile_of(True, False), _tile_of(True, True)


@numba.njit(nogil=True)
def queries_at_once(few, path):  # type: ignore[no-untyped-def]
    """Return the queries of a tile."""
    return _QUERIES[len(path)][1 if few else 0]


@intrinsic
def _set_up(typing_context, path):  # type: ignore[no-untyped-def]
    """Configure the tile registers, on the path that has them."""
    matrix = _BY_LENGTH[len(path)].many.queries == TILE

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        if matrix:
            # Palette 1; all eight registers have 16 rows of 64 bytes.
            shapes = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8
            kind = ir.ArrayType(_I8, len(shapes))
            place = cgutils.alloca_once(builder, kind)  # type: ignore[no-untyped-call]
            builder.store(ir.Constant(kind, [_I8(value) for value in shapes]), place)
            pointer = builder.bitcast(place, _I8.as_pointer())
            load = ir.FunctionType(ir.VoidType(), [_I8.as_pointer()])
            name = "llvm.x86.ldtilecfg"
            function = cgutils.get_or_insert_function(builder.module, load, name)  # type: ignore[no-untyped-call]
            builder.call(function, [pointer])
        return _I64(int(matrix))

    return types.int64(path), codegen


@intrinsic
def _clear_away(typing_context, path):  # type: ignore[no-untyped-def]
    """Release the tile registers, so that they need not be saved."""
    matrix = _BY_LENGTH[len(path)].many.queries == TILE

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        if matrix:
            release = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.tilerelease"
            function = cgutils.get_or_insert_function(builder.module, release, name)  # type: ignore[no-untyped-call]
            builder.call(function, [])
        return _I64(int(matrix))

    return types.int64(path), codegen


@numba.njit(nogil=True)
def set_up(path):  # type: ignore[no-untyped-def]
    """Prepare this thread for tiles of a path."""
    return _set_up(path)  # type: ignore[call-arg]


@numba.njit(nogil=True)
def clear_away(path):  # type: ignore[no-untyped-def]
    """End what `set_up` began."""
    return _clear_away(path)  # type: ignore[call-arg]


@numba.njit(nogil=True, inline="always")
def tile(  # type: ignore[no-untyped-def]
    codes, queries, norms, prefixes, marks, out, seen, block, last, slot, few, path
):
    """Compare some queries with one or `WIDE` blocks of rows.

    Parameters
    ----------
    codes : uint8 (B, D / 4, 16, 4)
        D a multiple of 64.
    queries : int16 (16, D)
        As `lay_out` does.
    norms, prefixes : int32 (16 B,)
        Squared length of each row; half the squared length of its first `PREFIX` bytes.
    marks : int32 (N, 4)
        The marks of each query, written by `set_marks`.
    out : int32 (16, 64)
        Filled with ``2 * dot - norm`` for register tiles with a bit set in the answer; other values
        are undefined.
    seen : int64 (1,)
        Bits are set for blocks whose whole rows were compared.
    block, last : int
        First block of the tile, and the end of the blocks (see `width_at`).
    slot : int
        The first of the `queries_at_once` queries.
    few : bool
        Whether the tile has few queries.
    path : tuple of int
        A path's marker.

    Returns
    -------
    int
        Bit r is set when row r of the tile is above the limit of any of these queries.
    """
    if few:
        if block + WIDE <= last:
            return _few_wide(codes, queries, norms, prefixes, marks, out, seen, block, slot, path)
        return _few_narrow(codes, queries, norms, prefixes, marks, out, seen, block, slot, path)
    if block + WIDE <= last:
        return _many_wide(codes, queries, norms, prefixes, marks, out, seen, block, slot, path)
    return _many_narrow(codes, queries, norms, prefixes, marks, out, seen, block, slot, path)


@numba.njit(nogil=True, inline="always")
def width_at(block, last):  # type: ignore[no-untyped-def]
    """Return the number of blocks of the tile that begins at a block: `WIDE`, or 1 at the end."""
    return WIDE if block + WIDE <= last else 1


@numba.njit(nogil=True)
def aligned_rows(count, length):  # type: ignore[no-untyped-def]
    """Return rows of 16-bit zeros that begin at a cache line (see `aligned_empty`)."""
    space = np.zeros(count * length + 32, np.int16)
    skipped = (-space.ctypes.data % 64) // 2
    return space[skipped : skipped + count * length].reshape((count, length))


@numba.njit(nogil=True)
def new_values():  # type: ignore[no-untyped-def]
    """Return an array for a tile's values."""
    space = np.empty(TILE * WIDE * BLOCK + 16, np.int32)
    skipped = (-space.ctypes.data % 64) // 4
    return space[skipped : skipped + TILE * WIDE * BLOCK].reshape((TILE, WIDE * BLOCK))


@numba.njit(nogil=True)
def lay_out(rows, path):  # type: ignore[no-untyped-def]
    """Return query rows (Q, D), int16, as the path reads them.

    The VNNI paths read a row's bytes. The others read, of every four bytes, two words of two 16-bit
    numbers: bytes 0 and 2, bytes 1 and 3.
    """
    laid = np.zeros(rows.shape, np.int16)
    for query in range(rows.shape[0]):
        row = rows[query]
        if len(path) > 1:
            for i in range(row.shape[0] // 2):
                laid[query, i] = np.int16((row[2 * i] & 255) | (row[2 * i + 1] << 8))
        else:
            for i in range(0, row.shape[0], 4):
                laid[query, i] = row[i]
                laid[query, i + 1] = row[i + 2]
                laid[query, i + 2] = row[i + 1]
                laid[query, i + 3] = row[i + 3]
    return laid


@numba.njit(nogil=True)
def set_marks(marks, slot, bias, prefix_bias, distance, bounds):  # type: ignore[no-untyped-def]
    """Write the marks of a query: which pairs are nearer to it than a squared distance.

    These pairs have ``2 * dot - norm`` above ``bias - distance``. Over the prefix alone,
    ``dot - prefix`` is then above half of ``prefix_bias - distance``.

    Parameters
    ----------
    marks : int32 (N, 4)
    slot : int
        The query's row.
    bias, prefix_bias : int
        See `pipeline.index.kernels.Queries`.
    distance : int
    bounds : bool
        Whether prefixes are compared first.
    """
    limit = min(max(np.int64(bias) - distance, -CEILING), CEILING)
    least = (np.int64(prefix_bias) - distance) >> 1
    least = min(max(least, -PREFIX_CEILING), PREFIX_CEILING) if bounds else -PREFIX_CEILING
    marks[slot, BEGIN] = -(least + 1)
    marks[slot, END] = 2 * (least + 1) - limit - 1
    marks[slot, LIMIT] = limit
    # Half of -(limit + 1), rounded down as half of the row's length is, and one for both.
    marks[slot, ROUGH] = (~limit >> 1) + 1


@numba.njit(nogil=True)
def clear_marks(marks, slot):  # type: ignore[no-untyped-def]
    """Write the marks of an unused slot: nothing is near."""
    set_marks(marks, slot, 0, 0, -NEVER, True)


@numba.njit(nogil=True)
def new_marks(count):  # type: ignore[no-untyped-def]
    """Return marks for so many queries plus a tile, to which nothing is near."""
    marks = np.empty((count + TILE, MARKS), np.int32)
    for slot in range(count + TILE):
        clear_marks(marks, slot)
    return marks


@numba.njit(nogil=True)
def marks_of_all(count):  # type: ignore[no-untyped-def]
    """Return marks of so many queries to which every row is near."""
    marks = np.empty((count + TILE, MARKS), np.int32)
    for slot in range(count + TILE):
        set_marks(marks, slot, 0, 0, NEVER, False)
    return marks


@numba.njit(nogil=True)
def gather(laid, marks, query_list, start, filled, at_once, rows, limits):  # type: ignore[no-untyped-def]
    """Copy the next queries of a list, and their marks, to the arrays that tiles read."""
    for slot in range(filled):
        query = query_list[start + slot]
        for i in range(laid.shape[1]):
            rows[slot, i] = laid[query, i]
        for kind in range(MARKS):
            limits[slot, kind] = marks[query, kind]
    unused = marks.shape[0] - 1
    for slot in range(filled, -(-filled // at_once) * at_once):
        for kind in range(MARKS):
            limits[slot, kind] = marks[unused, kind]


@numba.njit(nogil=True)
def slice_blocks(dimensions):  # type: ignore[no-untyped-def]
    """Return the blocks of a slice."""
    return max(WIDE, SLICE_BYTES // (BLOCK * dimensions) // WIDE * WIDE)


@numba.njit(nogil=True)
def _rows_seen(seen, block, begin, end):  # type: ignore[no-untyped-def]
    """Return how many of an item's rows lie in the blocks that a tile has marked; clears them."""
    total = 0
    for first in range(WIDE):
        if (seen[0] >> first) & 1:
            start = (block + first) * BLOCK
            total += min(end, start + BLOCK) - max(begin, start)
    seen[0] = 0
    return total


@intrinsic
def _lowest_bit(typing_context, bits):  # type: ignore[no-untyped-def]
    """Emit the instruction that counts the zeros below the lowest bit."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), codegen


@numba.njit(nogil=True)
def lowest_bit(bits):  # type: ignore[no-untyped-def]
    """Return the place of the lowest of some bits."""
    return _lowest_bit(bits)  # type: ignore[call-arg]


@intrinsic
def _copy_span(typing_context, target, at, values, place):  # type: ignore[no-untyped-def]
    """Copy `SPAN` values."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        source = _span_at(context, builder, signature.args[2], args[2], args[3])
        goal = _span_at(context, builder, signature.args[0], args[0], args[1])
        builder.store(builder.load(source, align=4), goal, align=4)
        return _I64(0)

    return types.int64(target, types.int64, values, types.int64), codegen


@intrinsic
def _raise_span(typing_context, maxima, at, values, place):  # type: ignore[no-untyped-def]
    """Raise each of `SPAN` maxima to the value that stands in its place."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        source = _span_at(context, builder, signature.args[2], args[2], args[3])
        goal = _span_at(context, builder, signature.args[0], args[0], args[1])
        old, new = builder.load(goal, align=4), builder.load(source, align=4)
        greater = builder.icmp_signed(">", old, new)
        builder.store(builder.select(greater, old, new), goal, align=4)
        return _I64(0)

    return types.int64(maxima, types.int64, values, types.int64), codegen


@intrinsic
def _raise_marked(typing_context, maxima, where, at, values, place, number):  # type: ignore[no-untyped-def]
    """Raise maxima as `_raise_span` does, and write a number beside those that were raised."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        goal = _span_at(context, builder, signature.args[0], args[0], args[2])
        beside = _span_at(context, builder, signature.args[1], args[1], args[2])
        source = _span_at(context, builder, signature.args[3], args[3], args[4])
        old, new = builder.load(goal, align=4), builder.load(source, align=4)
        greater = builder.icmp_signed(">", new, old)
        builder.store(builder.select(greater, new, old), goal, align=4)
        numbers = builder.select(
            greater, _splat(builder, args[5], SPAN), builder.load(beside, align=4)
        )
        builder.store(numbers, beside, align=4)
        return _I64(0)

    kinds = (maxima, where, types.int64, values, types.int64, types.int32)
    return types.int64(*kinds), codegen


@intrinsic
def _all_in_span(typing_context, flags, place):  # type: ignore[no-untyped-def]
    """Return a bit for each of `SPAN` flags; -1: all are set."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointer = _span_at(context, builder, signature.args[0], args[0], args[1], _I8)
        nothing = ir.Constant(ir.VectorType(_I8, SPAN), None)
        flag = builder.icmp_signed("!=", builder.load(pointer, align=1), nothing)
        return builder.bitcast(flag, _I64)

    return types.int64(flags, types.int64), codegen


@intrinsic
def _reaching_in_span(typing_context, values, place, least):  # type: ignore[no-untyped-def]
    """Return a bit for each of `SPAN` values: whether it is at least `least`."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointer = _span_at(context, builder, signature.args[0], args[0], args[1])
        every = _splat(builder, args[2], SPAN)
        reached = builder.icmp_signed(">=", builder.load(pointer, align=4), every)
        return builder.bitcast(reached, _I64)

    return types.int64(values, types.int64, types.int32), codegen


@numba.njit(nogil=True)
def copy_span(target, at, values, place):  # type: ignore[no-untyped-def]
    """Copy the `SPAN` values from `place` on to where others begin."""
    return _copy_span(target, at, values, place)  # type: ignore[call-arg]


@numba.njit(nogil=True)
def raise_span(maxima, at, values, place):  # type: ignore[no-untyped-def]
    """Raise the `SPAN` maxima from `at` on to the values that stand in their places."""
    return _raise_span(maxima, at, values, place)  # type: ignore[call-arg]


@numba.njit(nogil=True)
def raise_marked(maxima, where, at, values, place, number):  # type: ignore[no-untyped-def]
    """Raise `SPAN` maxima as `raise_span` does, and write a number beside each that was raised."""
    return _raise_marked(maxima, where, at, values, place, number)  # type: ignore[call-arg]


@numba.njit(nogil=True)
def reaching_in_span(values, place, least):  # type: ignore[no-untyped-def]
    """Return a bit for each of the `SPAN` values from `place` on: whether it is `least` or more."""
    return _reaching_in_span(values, place, least)  # type: ignore[call-arg]


@numba.njit(nogil=True)
def all_in_span(flags, place):  # type: ignore[no-untyped-def]
    """Tell whether all of `SPAN` flags are set."""
    return _all_in_span(flags, place) == -1  # type: ignore[call-arg]


def _span_at(
    context: Any,
    builder: ir.IRBuilder,
    kind: Any,
    array: ir.Value,
    place: ir.Value,
    number: ir.IntType = _I32,
) -> ir.Value:
    """Return where `SPAN` values of an array begin."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), ir.VectorType(number, SPAN).as_pointer())


@intrinsic
def _fetch(typing_context, codes, place):  # type: ignore[no-untyped-def]
    """Ask for four lines of rows, `place` bytes from the first."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        first = builder.gep(builder.bitcast(data, _I8.as_pointer()), [args[1]])
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        for line in range(4):
            pointer = builder.gep(first, [_I64(64 * line)])
            # To be read, into the caches from L2 on, data.
            builder.call(function, [pointer, _I32(0), _I32(2), _I32(1)])
        return _I64(0)

    return types.int64(codes, types.int64), codegen


@numba.njit(nogil=True)
def fetch(codes, place):  # type: ignore[no-untyped-def]
    """Ask for some rows that will soon be read; what is not there does no harm."""
    return _fetch(codes, place)  # type: ignore[call-arg]


@numba.njit(nogil=True)
def range_search_loop(  # type: ignore[no-untyped-def]
    codes,
    norms,
    prefixes,
    alive,
    query_codes,
    bias,
    prefix_bias,
    radius,
    row_start,
    row_stop,
    query_start,
    query_list,
    first_item,
    bounds,
    out_query,
    out_row,
    out_distance,
    path,
):
    """Scan work items from `first_item` on; returns (items done, hits written, pairs computed).

    An item whose hits do not fit any more is undone, so that the caller can go on from it with
    emptied buffers. *Computed* are the pairs that their prefixes did not rule out.
    """
    laid = lay_out(query_codes, path)
    marks = new_marks(query_codes.shape[0])
    for query in range(query_codes.shape[0]):
        set_marks(marks, query, bias[query], prefix_bias[query], radius[query], bounds)
    rows, limits = aligned_rows(TILE, query_codes.shape[1]), new_marks(0)
    values = new_values()
    seen = np.zeros(1, np.int64)
    dimensions = query_codes.shape[1]
    step, final = slice_blocks(dimensions), row_start.shape[0] - 1
    capacity = out_query.shape[0]
    written = computed = 0
    set_up(path)
    for item in range(first_item, row_start.shape[0]):
        begin, end = row_start[item], row_stop[item]
        at_item, computed_at_item = written, computed
        for low in range(begin // BLOCK, (end + BLOCK - 1) // BLOCK, step):
            last = min(low + step, (end + BLOCK - 1) // BLOCK)
            following = last if last * BLOCK < end else row_start[min(item + 1, final)] // BLOCK
            ahead = following * BLOCK * dimensions
            fetch(norms, following * BLOCK * 4)
            fetch(prefixes, following * BLOCK * 4)
            fetch(alive, following * BLOCK)
            for start in range(query_start[item], query_start[item + 1], TILE):
                filled = min(TILE, query_start[item + 1] - start)
                few = filled <= FEW
                at_once = queries_at_once(few, path)
                gather(laid, marks, query_list, start, filled, at_once, rows, limits)
                block = low
                while block < last:
                    for group in range(0, filled, at_once):
                        bits = tile(
                            codes, rows, norms, prefixes, limits, values, seen,
                            block, last, group, few, path,
                        )  # fmt: skip
                        many = min(filled - group, at_once)
                        if seen[0] != 0:
                            computed += many * _rows_seen(seen, block, begin, end)
                        while bits != 0:
                            lane = lowest_bit(bits)
                            bits &= bits - 1
                            row = block * BLOCK + lane
                            if row < begin or row >= end or not alive[row]:
                                continue
                            for slot in range(group, group + many):
                                value = values[slot, lane]
                                if value > limits[slot, LIMIT]:
                                    if written == capacity:
                                        clear_away(path)
                                        return item, at_item, computed_at_item
                                    query = query_list[start + slot]
                                    out_query[written] = query
                                    out_row[written] = row
                                    out_distance[written] = bias[query] - value
                                    written += 1
                    fetch(codes, ahead)
                    ahead += 256
                    block += width_at(block, last)
    clear_away(path)
    return row_start.shape[0], written, computed


@numba.njit(nogil=True)
def _insert(distances, rows, distance, row):  # type: ignore[no-untyped-def]
    """Put a neighbour into a list sorted by (distance, row or id), whose last one goes."""
    at = distances.shape[0] - 1
    while at > 0 and (
        distances[at - 1] > distance or (distances[at - 1] == distance and rows[at - 1] > row)
    ):
        distances[at] = distances[at - 1]
        rows[at] = rows[at - 1]
        at -= 1
    distances[at] = distance
    rows[at] = row


@numba.njit(nogil=True)
def merge_lists(distances, rows, other_distances, other_rows):  # type: ignore[no-untyped-def]
    """Keep the k nearest of two lists (Q, k) a query, each in order, in the first."""
    k = distances.shape[1]
    for query in range(distances.shape[0]):
        for place in range(k):
            distance, row = other_distances[query, place], other_rows[query, place]
            last = distances[query, k - 1]
            if distance > last or (distance == last and row >= rows[query, k - 1]):
                break
            _insert(distances[query], rows[query], distance, row)


@numba.njit(nogil=True)
def k_nearest_loop(  # type: ignore[no-untyped-def]
    codes,
    norms,
    prefixes,
    alive,
    query_codes,
    bias,
    prefix_bias,
    reach,
    ids,
    row_start,
    row_stop,
    query_start,
    query_list,
    bounds,
    out_distance,
    out_row,
    path,
):
    """Keep the k nearest living rows of each query over its work items, by (distance, id).

    Only rows nearer than the query's `reach`. Without `ids`, a row's number is its id.
    """
    laid = lay_out(query_codes, path)
    k = out_distance.shape[1]
    marks = new_marks(query_codes.shape[0])
    for query in range(query_codes.shape[0]):
        # As far as the k-th may still come before it: another row, by its number.
        worst = min(reach[query], np.int64(out_distance[query, k - 1]) + 1)
        set_marks(marks, query, bias[query], prefix_bias[query], worst, bounds)
    rows, limits = aligned_rows(TILE, query_codes.shape[1]), new_marks(0)
    values = new_values()
    seen = np.zeros(1, np.int64)
    dimensions = query_codes.shape[1]
    step, final = slice_blocks(dimensions), row_start.shape[0] - 1
    set_up(path)
    for item in range(row_start.shape[0]):
        begin, end = row_start[item], row_stop[item]
        for low in range(begin // BLOCK, (end + BLOCK - 1) // BLOCK, step):
            last = min(low + step, (end + BLOCK - 1) // BLOCK)
            following = last if last * BLOCK < end else row_start[min(item + 1, final)] // BLOCK
            ahead = following * BLOCK * dimensions
            fetch(norms, following * BLOCK * 4)
            fetch(prefixes, following * BLOCK * 4)
            fetch(alive, following * BLOCK)
            for start in range(query_start[item], query_start[item + 1], TILE):
                filled = min(TILE, query_start[item + 1] - start)
                few = filled <= FEW
                at_once = queries_at_once(few, path)
                gather(laid, marks, query_list, start, filled, at_once, rows, limits)
                block = low
                while block < last:
                    for group in range(0, filled, at_once):
                        bits = tile(
                            codes, rows, norms, prefixes, limits, values, seen,
                            block, last, group, few, path,
                        )  # fmt: skip
                        while bits != 0:
                            lane = lowest_bit(bits)
                            bits &= bits - 1
                            row = block * BLOCK + lane
                            if row < begin or row >= end or not alive[row]:
                                continue
                            for slot in range(group, min(filled, group + at_once)):
                                value = values[slot, lane]
                                if value <= limits[slot, LIMIT]:
                                    continue
                                query = query_list[start + slot]
                                distance = bias[query] - value
                                number = ids[row] if ids.shape[0] else row
                                worst = out_distance[query, k - 1]
                                if distance == worst and number > out_row[query, k - 1]:
                                    continue
                                _insert(out_distance[query], out_row[query], distance, number)
                                far = min(reach[query], np.int64(out_distance[query, k - 1]) + 1)
                                set_marks(
                                    marks, query, bias[query], prefix_bias[query], far, bounds
                                )
                                for kind in range(MARKS):
                                    limits[slot, kind] = marks[query, kind]
                    fetch(codes, ahead)
                    ahead += 256
                    block += width_at(block, last)
    clear_away(path)


@numba.njit(nogil=True)
def nearest_rows_loop(  # type: ignore[no-untyped-def]
    codes, norms, prefixes, query_codes, row_start, row_stop, query_start, query_list, out_row, path
):  # fmt: skip
    """Write the nearest row of each query over its work items, of equally near ones the first.

    Nothing branches on a distance: each lane of a register keeps its greatest value and the tile
    it came from. Items are ordered by their rows.
    """
    laid = lay_out(query_codes, path)
    marks = marks_of_all(query_codes.shape[0])
    rows, limits = aligned_rows(TILE, query_codes.shape[1]), new_marks(0)
    values = new_values()
    flat = values.reshape(values.size)
    seen = np.zeros(1, np.int64)
    maxima, where = np.empty(TILE * SPAN, np.int32), np.empty(TILE * SPAN, np.int32)
    greatest = np.full(query_codes.shape[0], -CEILING, np.int32)
    out_row[:] = -1
    set_up(path)
    for item in range(row_start.shape[0]):
        begin, end = row_start[item], row_stop[item]
        last = (end + BLOCK - 1) // BLOCK
        for start in range(query_start[item], query_start[item + 1], TILE):
            filled = min(TILE, query_start[item + 1] - start)
            few = filled <= FEW
            at_once = queries_at_once(few, path)
            gather(laid, marks, query_list, start, filled, at_once, rows, limits)
            maxima[:] = -CEILING
            block = begin // BLOCK
            while block < last:
                width = width_at(block, last)
                low, high = max(begin, block * BLOCK), min(end, (block + width) * BLOCK)
                for group in range(0, filled, at_once):
                    tile(
                        codes, rows, norms, prefixes, limits, values, seen,
                        block, last, group, few, path,
                    )  # fmt: skip
                for slot in range(filled):
                    at = slot * SPAN
                    if high - low == SPAN:
                        raise_marked(maxima, where, at, flat, at, np.int32(block))
                        continue
                    for lane in range(low - block * BLOCK, high - block * BLOCK):
                        if flat[at + lane] > maxima[at + lane]:
                            maxima[at + lane], where[at + lane] = flat[at + lane], block
                block += width
            for slot in range(filled):
                query = query_list[start + slot]
                mine = slice(slot * SPAN, (slot + 1) * SPAN)
                value, row = _first_greatest(maxima[mine], where[mine])
                if value > greatest[query]:
                    greatest[query], out_row[query] = value, row
    clear_away(path)


@numba.njit(nogil=True)
def _first_greatest(maxima, where):  # type: ignore[no-untyped-def]
    """Return the greatest of `SPAN` maxima, and the first row that has it."""
    value = maxima[0]
    for lane in range(SPAN):
        value = max(value, maxima[lane])
    row = LAST_ROW
    for lane in range(SPAN):
        if maxima[lane] == value:
            row = min(row, np.int64(where[lane]) * BLOCK + lane)
    return value, row


@numba.njit(nogil=True)
def room_for_selection(row_start, row_stop, query_start, query_list, lanes):  # type: ignore[no-untyped-def]
    """Return how many places a selection takes, and add up the rows of each query's work items.

    `lanes` (Q,) holds zeros before, and the rows of the blocks of each query's items after. Items
    without rows do not count. A place is for a query of which some items are done and others not.
    """
    count = lanes.shape[0]
    first_item, last_item = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    most = 0
    for item in range(row_start.shape[0]):
        if row_start[item] >= row_stop[item]:
            continue
        first, last = row_start[item] // BLOCK, (row_stop[item] + BLOCK - 1) // BLOCK
        most = max(most, query_start[item + 1] - query_start[item])
        for place in range(query_start[item], query_start[item + 1]):
            query = query_list[place]
            lanes[query] += (last - first) * BLOCK
            if first_item[query] < 0:
                first_item[query] = item
            last_item[query] = item
    begun = np.zeros(row_start.shape[0] + 1, np.int64)
    for query in range(count):
        if lanes[query] > 0 and last_item[query] > first_item[query]:
            begun[first_item[query]] += 1
            begun[last_item[query] + 1] -= 1
    # Queries of one item come and go by tiles.
    return np.cumsum(begun).max() + min(most, TILE)


@numba.njit(nogil=True)
def select_k_nearest_loop(  # type: ignore[no-untyped-def]
    codes, norms, prefixes, alive, query_codes, bias, ids, row_start, row_stop, query_start,
    query_list, lanes, near, out_distance, out_row, path,
):  # fmt: skip
    """Write the nearest living rows (Q, P) of each query over its work items, by (distance, id).

    All distances are written down and the P-th found among them: that costs less than keeping the
    nearest in order while rows go by, and far less with dozens of them. `lanes` are those of
    `room_for_selection`. `near` (H, R) is written over; H is at least the number of places that it
    says, R a multiple of `SPAN`, and at least the greatest number of lanes. No query may stand
    twice in an item. `out_distance` and `out_row` hold `NEVER` and -1 before, and where there are
    too few.
    """
    laid = lay_out(query_codes, path)
    marks = marks_of_all(query_codes.shape[0])
    rows, limits = aligned_rows(TILE, query_codes.shape[1]), new_marks(0)
    values = new_values()
    # Views of single rows would be counted as references, atomically, for every tile.
    flat, all_near = values.reshape(values.size), near.reshape(near.size)
    seen = np.zeros(1, np.int64)
    count, room = query_codes.shape[0], near.shape[1]
    # A query whose last item is done gives its place to the next: the places stay in the cache.
    held = near.shape[0]
    places, free = np.empty(count, np.int64), np.arange(held - 1, -1, -1)
    filled_lanes = np.zeros(count, np.int64)
    blocks = np.empty((held, room // BLOCK), np.int32)
    spans = min(room // SPAN, (MAXIMA_A_RANK * out_row.shape[1] + SPAN - 1) // SPAN)
    maxima = np.empty(spans * SPAN, np.int32)
    found, numbers = np.empty(room, np.int32), np.empty(room, np.int64)
    set_up(path)
    for item in range(row_start.shape[0]):
        begin, end = row_start[item], row_stop[item]
        if begin >= end:
            continue
        last = (end + BLOCK - 1) // BLOCK
        for start in range(query_start[item], query_start[item + 1], TILE):
            filled = min(TILE, query_start[item + 1] - start)
            few = filled <= FEW
            at_once = queries_at_once(few, path)
            gather(laid, marks, query_list, start, filled, at_once, rows, limits)
            for slot in range(filled):
                query = query_list[start + slot]
                if filled_lanes[query] == 0:
                    held -= 1
                    places[query] = free[held]
            block = begin // BLOCK
            while block < last:
                width = width_at(block, last)
                low, high = max(begin, block * BLOCK), min(end, (block + width) * BLOCK)
                whole = high - low == SPAN and all_in_span(alive, low)
                for group in range(0, filled, at_once):
                    tile(
                        codes, rows, norms, prefixes, limits, values, seen,
                        block, last, group, few, path,
                    )  # fmt: skip
                for slot in range(filled):
                    query = query_list[start + slot]
                    place, lane = places[query], filled_lanes[query]
                    filled_lanes[query] = lane + width * BLOCK
                    for i in range(width):
                        blocks[place, lane // BLOCK + i] = block + i
                    at = place * room + lane
                    if whole:
                        copy_span(all_near, at, flat, slot * SPAN)
                        continue
                    for i in range(width * BLOCK):
                        row = block * BLOCK + i
                        living = low <= row < high and alive[row]
                        all_near[at + i] = values[slot, i] if living else -CEILING
                block += width
            for slot in range(filled):
                query = query_list[start + slot]
                place = places[query]
                if filled_lanes[query] == lanes[query]:
                    free[held] = place
                    held += 1
                    _write_selected(
                        near[place], lanes[query], blocks[place], ids, bias[query],
                        maxima, found, numbers, out_distance[query], out_row[query],
                    )  # fmt: skip
    clear_away(path)


@numba.njit(nogil=True)
def _write_selected(  # type: ignore[no-untyped-def]
    values, length, blocks, ids, bias, maxima, found, numbers, out_distance, out_row
):
    """Write the nearest rows of one query, whose values lie block by block."""
    wanted = out_row.shape[0]
    least = _least_wanted(values, length, maxima, wanted)
    count = 0
    for start in range(0, length, SPAN):
        bits = reaching_in_span(values, start, np.int32(least))
        while bits != 0:
            place = start + lowest_bit(bits)
            bits &= bits - 1
            row = np.int64(blocks[place // BLOCK]) * BLOCK + place % BLOCK
            found[count] = values[place]
            numbers[count] = ids[row] if ids.shape[0] else row
            count += 1
    if count > FAR_MORE * wanted + COUNTED:
        # Very many as near as the last: most are passed over by their number.
        for i in range(count):
            distance, last = bias - found[i], out_distance[wanted - 1]
            if distance < last or (distance == last and numbers[i] < out_row[wanted - 1]):
                _insert(out_distance, out_row, distance, numbers[i])
        return
    if count > COUNTED:
        order = np.argsort(numbers[:count], kind="mergesort")
        order = order[np.argsort(-found[order], kind="mergesort")]
        for rank in range(min(wanted, count)):
            out_distance[rank] = bias - found[order[rank]]
            out_row[rank] = numbers[order[rank]]
        return
    for i in range(count):
        value, number = found[i], numbers[i]
        at = np.int32(0)
        for j in range(count):
            at += np.int32(found[j] > value)
        # Equal values have this place in common and the next ones, by their numbers.
        while at < wanted and out_row[at] >= 0:
            out_row[at], number = min(out_row[at], number), max(out_row[at], number)
            at += 1
        if at < wanted:
            out_distance[at], out_row[at] = bias - value, number


@numba.njit(nogil=True)
def _least_wanted(values, length, maxima, wanted):  # type: ignore[no-untyped-def]
    """Return a value that as many as are wanted of the first `length` reach, and not many more.

    The values are dealt out to the maxima in turn; as many values as are wanted reach the maximum
    of that rank, and seldom many more.
    """
    nothing = np.int32(-CEILING)
    for place in range(length, -(-length // SPAN) * SPAN):
        values[place] = nothing
    maxima[:] = nothing
    goal = 0
    for start in range(0, length, SPAN):
        raise_span(maxima, goal, values, start)
        goal = goal + SPAN if goal + SPAN < maxima.shape[0] else 0
    if maxima.shape[0] < wanted:
        return nothing + 1
    return max(nothing + 1, _greatest_reached(maxima, wanted))


@numba.njit(nogil=True)
def _greatest_reached(values, wanted):  # type: ignore[no-untyped-def]
    """Return a number that `wanted` of the values reach: the greatest, or one that no more do."""
    low = high = values[0]
    for i in range(values.shape[0]):
        low, high = min(low, values[i]), max(high, values[i])
    while low < high:
        middle = np.int32((np.int64(low) + high + 1) >> 1)
        reached = np.int32(0)
        for i in range(values.shape[0]):
            reached += np.int32(values[i] >= middle)
        if reached == wanted:
            return middle
        if reached > wanted:
            low = middle
        else:
            high = np.int32(middle - 1)
    return low
