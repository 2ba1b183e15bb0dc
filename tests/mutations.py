"""Mutated files and messages, read and used as the program does: the child of test_mutations.py.

::

    python tests/mutations.py SEED COUNT

Every specimen is damaged in one way or several: its bytes, or its arrays and plain values, with
right checksums. Then it must be refused with an error of ours, or work. A crash ends this process,
and memory is limited. With NUMBA_BOUNDSCHECK=1 compiled code checks its indices, too.
"""

from __future__ import annotations

import json
import math
import random
import resource
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from core_data import asked, assign, collection, features, model, segments
from numpy.typing import NDArray

from pipeline.arrays import ArrayFile, arrays_to_bytes
from pipeline.config import IndexConfig
from pipeline.containers import container_arrays, read_container, read_failures
from pipeline.errors import CorruptFileError, InputError, OtherInstallationError, VantageError
from pipeline.index import VantageIndex
from pipeline.index.merge import Merge, assigned_rows, segment_rows
from pipeline.index.model import Model, train_model
from pipeline.index.segments import AssignedRows, Segment, encode_geometry
from pipeline.records import ImageFailure, Match, SearchResult
from pipeline.request import SearchRequest
from pipeline.retrieval.batch import Batch, QueryImage
from pipeline.retrieval.blocks import GroupScan
from pipeline.retrieval.cost import Machine, Workload
from pipeline.retrieval.open_segments import ImageSet, OpenSegment
from pipeline.retrieval.plan import make_plan
from pipeline.retrieval.scan import scan_opened, scan_segment
from pipeline.retrieval.score import rank_images
from workers import searches
from workers.keys import Keys, keep_s
from workers.searches import Ticket

MEMORY = 3 * 2**30
"""Address space besides what is there after the start: no message may take more."""

Arrays = dict[str, NDArray[Any]]


class Specimen(NamedTuple):
    """A file or message, and what is done with it."""

    arrays: Arrays
    meta: dict[str, Any]
    use: Callable[[bytes], object]


# --- what is done with them ----------------------------------------------------------------------


def use_segment(data: bytes) -> None:
    file = ArrayFile(data)
    segment = Segment.from_arrays(file)
    cells = model().cells_per_group
    if len(segment.cell_offsets) != cells + 1 or segment.rows.dimensions != 64:
        raise CorruptFileError(file.name, "another place")  # as `pipeline.resources` does
    for plan in PLANS:
        scan_segment(segment, plan)
    ids = np.arange(len(segment.table), dtype=np.uint32)
    scan_opened(OpenSegment("a", segment, ids), PLANS[2], [ImageSet(frozenset({0}))])
    Merge([segment_rows(segment), segment_rows(segments()[2])], segment.first_cell).in_memory()


def use_assignment(data: bytes) -> None:
    assigned = AssignedRows.from_arrays(ArrayFile(data))
    if len(assigned.group_offsets) != 5 or assigned.codes.shape[1] != 64:
        raise CorruptFileError("a", "another tree")
    for group in range(4):
        rows = assigned_rows(assigned, group, model().cells_per_group)
        start, stop = assigned.group_offsets[group : group + 2]
        if (rows.cell_offsets[0], rows.cell_offsets[-1]) != (start, stop):
            raise CorruptFileError("a", "rows in cells of another group")
        Merge([rows], group * model().cells_per_group).in_memory()


def use_model(data: bytes) -> None:
    read = Model.from_arrays(ArrayFile(data))
    codes = read.quantizer.encode(QUERY)
    read.tree.assign(codes)
    for kind in ("probed", "exhaustive"):
        make_plan(read, codes, 900, asked(kind, 0.3))
    make_plan(read, codes, 900, asked("probed"), one_vector=True)


def use_container(data: bytes) -> None:
    file = ArrayFile(data)
    for _, one in read_container(file, file.meta).items():
        encode_geometry(one.keypoints, one.width, one.height)
    read_failures(file, file.meta, "exceeded")


def use_index(data: bytes) -> None:
    path = FOLDER / "a.vantage"
    path.write_bytes(data)
    index = VantageIndex.open(path, verify=False, threads=1)
    wide = np.zeros((3, index.dimensions), np.float32)
    wide[:, : QUERY.shape[1]] = QUERY[:3, : index.dimensions]
    for options in ({}, {"effort": 0.4}, {"exact": True}):
        index.search(wide, 4, **options)  # type: ignore[arg-type]
        index.search(wide[:1], 2, **options)  # type: ignore[arg-type]
    index.remove([1, 2])
    index.add(wide)


def use_batch(data: bytes) -> None:
    file = ArrayFile(data)
    batch = Batch.from_arrays(file, file.meta)
    batch.plan.require_fit(file, model().tree.cells, 64)
    plan = batch.plan
    for segment in segments()[:2]:
        scan_segment(segment, plan.widened)
    batch.predicted()
    rank_images([], plan.radius, batch.offsets)
    arrays_to_bytes(*batch.to_arrays())


def use_scan(data: bytes) -> None:
    file = ArrayFile(data)
    scan = GroupScan.from_arrays(file, file.meta, len(PLANS[0].codes))
    rank_images([scan.block], PLANS[0].radius, [0, 10, len(PLANS[0].codes)])
    json.dumps(scan.to_meta())


class OneValue:
    """A context whose Redis holds one value."""

    identity = "a"
    keys = Keys(identity)

    def __init__(self, value: bytes) -> None:
        self.value = value

    @property
    def redis(self) -> OneValue:
        return self

    def get(self, _key: str) -> bytes:
        return self.value


def use_ticket(data: bytes) -> None:
    ticket = Ticket.load(OneValue(data), "a")  # type: ignore[arg-type]
    assert ticket is not None
    keep_s(ticket.deadline_at)
    assert all(0 <= group < 16 for group in (*ticket.asked, *ticket.missing))


def use_result(data: bytes) -> None:
    try:
        for result in searches.fetch_results(OneValue(data), "a") or []:  # type: ignore[arg-type]
            json.dumps(result.to_dict())
            assert all(f"{m.rank} {m.score:.3f} {m.votes:,}" for m in result.matches)
    except VantageError as error:
        str(error)
        if type(error).__module__ != "pipeline.errors":
            raise AssertionError(f"{error!r} is none of our errors") from error


# --- specimens -----------------------------------------------------------------------------------


def _batch(kind: str, top: int = 10) -> tuple[Arrays, dict[str, Any]]:
    codes = model().quantizer.encode(QUERY)
    plan = make_plan(model(), codes, 930, SearchRequest(plan=kind, top=top), one_vector=top > 10)  # type: ignore[arg-type]
    images = tuple(QueryImage("ab", 640, 480, n, {"plan": 1.0}) for n in (10, 20))
    keypoints = features(15, 30).keypoints[:, :4]
    work = Workload(30, 930, 64, model().tree.cells)
    request, machine = SearchRequest(effort=0.06), Machine("avx2", 2)
    chosen = ImageSet(frozenset({3, 5}), only=True)
    return Batch(plan, images, work, request, machine, keypoints, chosen).to_arrays()


def _index(cells: str) -> Specimen:
    vectors = features(3, 400).descriptors
    config = IndexConfig(dimensions=64, cell_size=16, cells=cells)  # type: ignore[arg-type]
    index = VantageIndex.build(vectors, config=config, threads=1)
    index.add(vectors[:60] + 1)
    index.remove([7])
    return Specimen(index._arrays(), index._meta(), use_index)


def _leaves() -> Model:
    small = IndexConfig(groups=2, cell_size=50, cells="leaves")
    return train_model(features(1, 300).descriptors, features(2, 40).descriptors, 400, small)


def _container() -> Specimen:
    done = [(f"{n:064x}", features(n, 5 * n)) for n in range(4)]
    failures = [ImageFailure("ab", "corrupt", "it is")]
    arrays, meta = container_arrays(done, failures, 32)
    return Specimen(arrays, {**meta, "exceeded": meta["failures"], "job": "a"}, use_container)


def _scan() -> Specimen:
    block = scan_segment(segments()[2], PLANS[0])
    scan = GroupScan(1, block, 2.5, "avx2", ("one is lost",))
    return Specimen(block.to_arrays(), scan.to_meta(), use_scan)


def _texts() -> dict[str, tuple[Any, Callable[[bytes], object]]]:
    """Messages without arrays."""
    ticket = Ticket("a", OneValue.identity, 3, (0, 1), (2,), 1.0e9, 1.0e9, 1.0e9)
    match = Match(1, "ab", ("/a",), 0.5, 3, 4, 5)
    plan = {"kind": "exhaustive", "scanned_share": 0.1}
    result = SearchResult((match,), True, (), plan, {"rank": 1.0}, {"digest": "a"})
    error = {"error": {"type": "ImageReadError", "args": ["/a", "corrupt", "it is"]}}
    return {
        "ticket": (asdict(ticket), use_ticket),
        "result": ({"results": [result.to_dict()]}, use_result),
        "error": (error, use_result),
    }


QUERY = features(15, 30).descriptors
PLANS = [
    make_plan(model(), model().quantizer.encode(QUERY), 930, asked("probed", 0.4)),
    make_plan(model(), model().quantizer.encode(QUERY), 930, asked("exhaustive")),
    make_plan(model(), model().quantizer.encode(QUERY), 930, asked("probed"), one_vector=True),
]
FOLDER = Path(tempfile.mkdtemp(prefix="vantage-mutations-"))
FILES = {
    "segment": Specimen(segments()[2].to_arrays(), {"group": 1}, use_segment),
    "assignment": Specimen(assign(model(), collection()).to_arrays(), {}, use_assignment),
    "model": Specimen(model().to_arrays(), {}, use_model),
    "leaves": Specimen(_leaves().to_arrays(), {}, use_model),
    "container": _container(),
    "index": _index("means"),
    "index of leaves": _index("leaves"),
    "probed batch": Specimen(*_batch("probed"), use_batch),
    "exhaustive batch": Specimen(*_batch("exhaustive"), use_batch),
    "one vector": Specimen(*_batch("probed", 40), use_batch),
    "scan": _scan(),
}
TEXTS = _texts()


# --- damage --------------------------------------------------------------------------------------

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 16, 255, 65_536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63),
    *(-(2**63), 10**40, 0.0, 0.5, -1.5, 1e308, math.nan, math.inf, -math.inf, "", "a", "probed"),
    *("../../a", "\0", "VantageError", "difflib", "x" * 3000, [], [1, 2], [[]], [None], {}),
    *({"a": 1}, [{"a": []}] * 3),
]
DTYPES = ["<i1", "<u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8", "|b1"]


def odd_number(rng: random.Random, dtype: np.dtype[Any], length: int) -> Any:
    """Return a number near the bounds of a type, or near a length."""
    if dtype.kind == "f":
        return rng.choice([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e30, 3.4e38, 1e-40, 5.5])
    if dtype.kind == "b":
        return rng.random() < 0.5
    info = np.iinfo(dtype)
    near = [length - 1, length, length + 1, 2 * length, -1, 0, 1, 15, 16, 17]
    some = [info.min, info.max, info.max - 1, rng.randint(int(info.min), int(info.max)), *near]
    return min(max(rng.choice(some), int(info.min)), int(info.max))


def change_values(rng: random.Random, array: NDArray[Any], length: int) -> NDArray[Any]:
    """Put odd numbers in the place of some, of one row, or of all."""
    changed = array.copy()
    flat = changed.reshape(-1)
    if not flat.size:
        return changed
    way = rng.randrange(5)
    if way == 0:
        flat[rng.randrange(flat.size) :] = odd_number(rng, flat.dtype, length)
    elif way == 1:
        flat[:] = odd_number(rng, flat.dtype, length)
    elif way == 2 and flat.dtype.kind in "iu":
        with np.errstate(over="ignore"):
            flat += np.array(rng.choice([1, 2, 100, 2**30]), np.int64).astype(flat.dtype)
    elif way == 3:
        rng.shuffle(flat) if flat.size < 200 else flat[::-1].sort()
    else:
        for _ in range(rng.choice([1, 1, 2, 20])):
            flat[rng.randrange(flat.size)] = odd_number(rng, flat.dtype, length)
    return changed


def change_shape(rng: random.Random, array: NDArray[Any]) -> NDArray[Any]:
    """Return rows less or more, other sides, another type."""
    way = rng.randrange(8)
    rows = len(array) if array.ndim else 0
    if way == 0:
        return array[: rng.randrange(rows + 1)] if array.ndim else array.reshape(1)
    if way == 1 and array.ndim:
        more = rng.choice([1, 1, 15, 16, rows])
        return np.concatenate([array, *([array[:1]] * more)]) if rows else array
    if way == 2:
        return array.reshape(-1)
    if way == 3:
        return array.reshape(1, *array.shape)
    if way == 4 and array.ndim > 1:
        return np.ascontiguousarray(np.moveaxis(array, -1, 0))
    if way == 5:
        return array[:0] if array.ndim else array.reshape(1)[:0]
    if way == 6:
        with np.errstate(all="ignore"):
            return array.astype(rng.choice(DTYPES))
    data = np.frombuffer(array.tobytes(), np.uint8)
    dtype = np.dtype(rng.choice(DTYPES))
    return data[: len(data) // dtype.itemsize * dtype.itemsize].view(dtype)


def change_arrays(rng: random.Random, specimen: Specimen) -> Arrays:
    arrays = dict(specimen.arrays)
    length = max((len(array) for array in arrays.values() if array.ndim), default=1)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        name = rng.choice(list(arrays))
        way = rng.randrange(10)
        if way == 0:
            del arrays[name]
        elif way == 1:
            arrays[name] = arrays[rng.choice(list(arrays))]
        elif way < 5:
            arrays[name] = change_shape(rng, arrays[name])
        else:
            near = rng.choice([length, len(arrays[name]) if arrays[name].ndim else 1])
            arrays[name] = change_values(rng, arrays[name], near)
        if not arrays:
            return {}
    return arrays


def change_plain(rng: random.Random, value: Any) -> Any:
    """Return plain values with an odd one in some place."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: change_plain(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [*value[:place], change_plain(rng, value[place]), *value[place + 1 :]]
    return rng.choice(ODD)


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, overwrite: what disks and hands do, checksums and all."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at, way = rng.randrange(len(changed) + 1), rng.randrange(7)
        size = rng.choice([1, 2, 4, 8, 64, 1000])
        if way < 2 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 2:
            changed[at : at + size] = bytes([rng.choice([0, 255, 127, 128])]) * size
        elif way == 3:
            del changed[at : at + size]
        elif way == 4:
            changed[at:at] = changed[at : at + size]
        elif way == 5:
            # The directory and the headers are where lengths and places are.
            tail = rng.randrange(min(len(changed), 1200) + 1)
            changed[len(changed) - tail : len(changed) - tail + 2] = rng.randbytes(2)
        else:
            del changed[at:]
        if not changed:
            break
    return bytes(changed)


def mutated(rng: random.Random, specimen: Specimen) -> bytes:
    way = rng.random()
    if way < 0.2:
        return change_bytes(rng, arrays_to_bytes(specimen.arrays, specimen.meta))
    arrays, meta = specimen.arrays, specimen.meta
    if way < 0.8 or not meta:
        arrays = change_arrays(rng, specimen)
    if meta and way > 0.7:
        meta = change_plain(rng, meta)
    if not isinstance(meta, dict):
        meta = {"a": meta}
    return arrays_to_bytes(arrays, meta)


def try_one(rng: random.Random) -> str:
    """Damage something and use it; return what came of it."""
    name = rng.choice([*FILES, *TEXTS])
    if name in FILES:
        use, data = FILES[name].use, mutated(rng, FILES[name])
    else:
        value, use = TEXTS[name]
        data = json.dumps(value if rng.random() < 0.3 else change_plain(rng, value)).encode()
        data = change_bytes(rng, data) if rng.random() < 0.3 else data
    try:
        use(data)
    except (CorruptFileError, InputError, OtherInstallationError) as error:
        return f"{name}: refused" if str(error) else "without a message"
    return f"{name}: used"


def main(seed: int, count: int) -> int:
    for specimen in FILES.values():  # whole, each works
        specimen.use(arrays_to_bytes(specimen.arrays, specimen.meta))
    for value, use in TEXTS.values():
        use(json.dumps(value).encode())
    base = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = base * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    warnings.simplefilter("ignore", RuntimeWarning)  # a rotation may overflow, which does no harm
    counts: Counter[str] = Counter()
    for number in range(count):
        try:
            counts[try_one(random.Random(f"{seed}/{number}"))] += 1
        except BaseException:
            print(f"seed {seed}, number {number}:", file=sys.stderr)
            traceback.print_exc()
            return 1
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 4:  # one alone
        print(try_one(random.Random(f"{sys.argv[1]}/{sys.argv[3]}")))
        sys.exit()
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
