"""The work of a scan: each wanted cell once, with its queries."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.index.work import Work, cell_requests, cell_work, wanted_work

CELLS = 9


def visits(work: Work) -> dict[tuple[int, int], list[int]]:
    """The queries of each range of rows."""
    bounds = zip(work.row_start.tolist(), work.row_stop.tolist(), strict=True)
    lists = np.split(work.query_list, work.query_start[1:-1]) if len(work.row_start) else []
    first = int(work.query_start[0])
    if lists:
        lists[0] = lists[0][first:]
        lists[-1] = lists[-1][: int(work.query_start[-1] - work.query_start[-2])]
    return {rows: queries.tolist() for rows, queries in zip(bounds, lists, strict=True)}


def expected(cells: NDArray[np.uint32], offsets: NDArray[np.int64], first: int) -> object:
    """The same by plain loops."""
    found: dict[tuple[int, int], list[int]] = {}
    for cell in range(len(offsets) - 1):
        rows = int(offsets[cell]), int(offsets[cell + 1])
        wanting = [query for query, row in enumerate(cells) if first + cell in row]
        if wanting and rows[0] < rows[1]:
            found[rows] = wanting
    return found


requests = st.integers(0, 5).flatmap(
    lambda count: st.lists(
        st.permutations(range(CELLS)).map(lambda cells: cells[:count]), min_size=0, max_size=6
    ).map(lambda rows: np.array(rows, np.uint32).reshape(len(rows), count))
)


@given(
    cells=requests, sizes=st.lists(st.integers(0, 3), max_size=CELLS), first=st.integers(0, CELLS)
)
def test_work_is_that_of_the_cells_wanted_and_filled(
    cells: NDArray[np.uint32], sizes: list[int], first: int
) -> None:
    offsets = np.append(0, np.cumsum(np.array(sizes, np.int64)))
    found = wanted_work(cell_requests(cells).some(first, len(sizes)), offsets)
    assert visits(found) == expected(cells, offsets, first)
    assert found.pairs == sum(
        (stop - start) * len(queries) for (start, stop), queries in visits(found).items()
    )
    assert visits(cell_work(cells, offsets)) == expected(cells, offsets, 0)


def test_cells_that_are_not_there_are_left_out() -> None:
    cells = np.array([[-3, 0, 7], [1, 9, 0]])
    assert visits(cell_work(cells, np.array([0, 4, 6]))) == {(0, 4): [0, 1], (4, 6): [1]}
