"""Predicts the cost of a scan: pairs, bytes and milliseconds of either plan.

The time has three parts: comparing descriptor pairs on the present code path, reading the rows, and
processing rows within the radius. Rows are compared with as many query descriptors at once as a
register tile has; if fewer want a row, the free places cost as much as the others.
docs/decisions/0012-plan.md has the measurement of the constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.index.paths import FEW, PATHS, TILE
from pipeline.index.rows import ROW_UNIT

ROW_OVERHEAD = 8
"""Bytes read of a visited row beside its codes: squared lengths of it and of its prefix."""

EXHAUSTIVE_WITHIN_MS = 350.0
"""The ``auto`` plan is exhaustive if this is predicted to take the `REFERENCE` at most so long:
1,000 query descriptors and 1.3 million rows of 64 bytes. It is 0.11 s on two cores with 512-bit
registers and an 8-bit dot product; nothing is lost then."""

EXHAUSTIVE_WITHIN_BYTES = 1 << 30
"""... and to visit at most so many bytes: the prediction is for rows in memory, and every host has
that much."""

PASS_NS = 690_000.0
"""Nanoseconds of a pass, whatever it scans."""

BYTE_NS = 0.071
"""Nanoseconds to read a byte of a visited row, once for all query descriptors."""

NEAR_NS = 0.0067
"""Nanoseconds for rows within the radius of local features, for each query descriptor and row of
the collection: such a share of all rows is within it, most of them in the nearest cells."""

LIST_NS = 5.3
"""Nanoseconds to sort one (query descriptor, cell) by cell."""


class Rates(NamedTuple):
    """Nanoseconds of one thread for a place of a tile and 64 bytes of a row.

    Attributes
    ----------
    exhaustive : float
        All rows, one after the other; the prefixes of the rows decide nearly every tile.
    probed : float
        Rows of the nearest cells, whose prefixes decide less.
    vector : float
        The nearest rows of one vector an image, computed whole.
    """

    exhaustive: float
    probed: float
    vector: float


RATES = {
    "portable": Rates(0.45, 0.65, 1.87),
    "avx2": Rates(0.535, 0.695, 1.53),
    "vnni256": Rates(0.245, 0.30, 0.99),
    "vnni512": Rates(0.154, 0.25, 0.73),
    "amx": Rates(0.102, 0.0955, 0.255),
}
"""For each code path of the kernels. Longer rows cost proportionally more if all of a row is
computed, less if its prefix rules it out."""


@dataclass(frozen=True)
class Machine:
    """What scans.

    Attributes
    ----------
    path : str
        Code path of its kernels (`pipeline.index.paths.PATHS`).
    threads : int
        Number of groups that it scans at the same time.
    """

    path: str
    threads: int


REFERENCE = Machine("avx2", 2)
"""The machine for which ``auto`` decides, wherever it plans or scans: so a query in a collection
has the same plan, and the same answer, on every machine."""


@dataclass(frozen=True)
class Workload:
    """What the cost of a scan is predicted from: queries and rows to compare.

    Attributes
    ----------
    queries : int
        Query descriptors.
    rows : int
        Descriptors of the collection.
    row_bytes : int
        Length of a stored row.
    cells : int
        Cells of the tree.
    one_vector : bool
        The extractor describes an image by one vector: the search is for the k nearest rows.
    """

    queries: int
    rows: int
    row_bytes: int
    cells: int
    one_vector: bool = False


@dataclass(frozen=True)
class Cost:
    """What a scan is predicted to cost, all groups together.

    Attributes
    ----------
    pairs : int
        Descriptor pairs compared.
    bytes : int
        Bytes visited: codes, lengths and prefixes of each visited row once.
    scan_ms : float
        Milliseconds of one thread.
    wait_ms : float
        Milliseconds until all threads are done.
    """

    pairs: int
    bytes: int
    scan_ms: float
    wait_ms: float

    def to_dict(self) -> dict[str, float]:
        """Return plain values, times rounded."""
        return {
            "pairs": self.pairs,
            "bytes": self.bytes,
            "scan_ms": round(self.scan_ms, 2),
            "wait_ms": round(self.wait_ms, 2),
        }


def exhaustive_cost(workload: Workload, machine: Machine) -> Cost:
    """Return what comparing every query descriptor with every row costs."""
    places = tile_places(workload.queries, machine.path)
    return _cost(
        workload,
        machine,
        pairs=workload.queries * workload.rows,
        visited=workload.rows,
        compared=places * workload.rows,
        rate=RATES[machine.path].exhaustive,
    )


def probed_cost(
    workload: Workload, machine: Machine, opened: int, distinct: float | None = None
) -> Cost:
    """Return what comparing with the rows of the nearest cells costs.

    Parameters
    ----------
    workload : Workload
    machine : Machine
    opened : int
        Cells opened for a query descriptor.
    distinct : float, optional
        Number of different cells. Default: the expected number if every descriptor chose at random;
        descriptors of a photograph share more.
    """
    if distinct is None:
        distinct = expected_distinct(workload.queries, opened, workload.cells)
    wanted = workload.queries * opened
    rows = workload.rows / workload.cells
    places = min(
        wanted + distinct * _free_places(machine.path),
        distinct * tile_places(workload.queries, machine.path),
    )
    return _cost(
        workload,
        machine,
        pairs=round(wanted * rows),
        visited=round(distinct * rows),
        compared=places * rows,
        rate=RATES[machine.path].probed,
        listed=wanted,
    )


def tile_places(queries: int, path: str) -> int:
    """Return the number of places in the tiles for the query descriptors of a row."""
    rest = queries % TILE
    shape = PATHS[path].few if rest <= FEW else PATHS[path].many
    return queries - rest + -(-rest // shape.queries) * shape.queries


def _free_places(path: str) -> float:
    """Return the mean number of free places in a cell."""
    return sum(tile_places(rest, path) - rest for rest in range(TILE)) / TILE


def expected_distinct(queries: int, opened: int, cells: int) -> float:
    """Return the expected number of different cells when `queries` choose `opened` cells each."""
    return cells * (1 - (1 - opened / cells) ** queries)


def exhaustive_is_fast_enough(workload: Workload) -> bool:
    """Tell whether the ``auto`` plan is exhaustive."""
    cost = exhaustive_cost(workload, REFERENCE)
    return cost.wait_ms <= EXHAUSTIVE_WITHIN_MS and cost.bytes <= EXHAUSTIVE_WITHIN_BYTES


def _cost(
    workload: Workload,
    machine: Machine,
    *,
    pairs: int,
    visited: int,
    compared: float,
    rate: float,
    listed: int = 0,
) -> Cost:
    """Return a cost, given the places of tiles compared with rows, including free ones."""
    read = visited * (workload.row_bytes + ROW_OVERHEAD)
    if workload.one_vector:
        rate, near = RATES[machine.path].vector, 0.0
    else:
        near = NEAR_NS * workload.queries * workload.rows
    whole = rate * compared * workload.row_bytes / ROW_UNIT
    scan_ms = (PASS_NS + BYTE_NS * read + whole + near + LIST_NS * listed) / 1e6
    return Cost(pairs, read, scan_ms, scan_ms / machine.threads)
