"""`VantageIndex`: what a caller who only has vectors meets."""

from __future__ import annotations

import itertools
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from heavy import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.config import IndexConfig
from pipeline.errors import DamagedIndexError, InputError
from pipeline.index import VantageIndex

SMALL = IndexConfig(cell_size=40, dimensions=64)


def vectors(seed: int, count: int, width: int = 40) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(0, 1, (12, width))
    rows = centres[rng.integers(0, 12, count)] + rng.normal(0, 0.4, (count, width))
    return (rows * np.linspace(1.5, 0.3, width)).astype(np.float32)


def true_distances(rows: NDArray[np.float32], asked: NDArray[np.float32]) -> NDArray[np.float64]:
    difference = asked[:, None].astype(np.float64) - rows[None].astype(np.float64)
    return (difference**2).sum(axis=2)


@pytest.mark.parametrize("width", [3, 40, 64, 100, 300])
def test_an_exact_search_gives_the_distances_of_the_vectors_up_to_rounding(width: int) -> None:
    rows, asked = vectors(1, 700, width), vectors(2, 30, width)
    index = VantageIndex.build(rows, threads=2)
    distances, ids = index.search(asked, 5, exact=True)
    assert distances.dtype == np.float32
    assert ids.dtype == np.int64
    true = np.sqrt(true_distances(rows, asked))
    # Half a byte for each component of both rows, and the few that are clipped.
    scale = 127 / np.abs(rows - rows.mean(axis=0)).max()
    error = 2 * np.sqrt(width) / scale
    given_back = np.take_along_axis(true, ids, axis=1)
    assert np.abs(np.sqrt(distances) - given_back).max() <= error
    assert (given_back - np.sort(true, axis=1)[:, :5]).max() <= 2 * error
    assert index.stats["row_bytes"] == -(-width // 64) * 64


@settings(max_examples=examples(25), deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 400),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    k=st.integers(1, 12),
    threads=st.integers(1, 3),
)
def test_opening_every_cell_is_the_exact_search_however_the_vectors_came(
    seed: int, count: int, cuts: list[int], k: int, threads: int
) -> None:
    rows, asked = vectors(seed, count), vectors(seed + 1, 9)
    bounds = [0, *sorted(min(cut, count) for cut in cuts), count]
    whole = VantageIndex.build(rows, config=SMALL, threads=1)
    index = VantageIndex.build(rows, config=SMALL, threads=threads)
    index.remove(np.arange(count))
    assert len(index) == 0
    assert repr(index) == "<VantageIndex of 0 vectors of 40 numbers>"
    for low, high in itertools.pairwise(bounds):
        index.add(rows[low:high], np.arange(low, high))
    assert len(index) == count
    expected = whole.search(asked, k, exact=True)
    for found in (index.search(asked, k, exact=True), index.search(asked, k, effort=1.0)):
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])


def test_more_effort_finds_more() -> None:
    rows, asked = vectors(1, 6000), vectors(2, 200)
    index = VantageIndex.build(rows, config=SMALL)
    exact = index.search(asked, 1, exact=True)[1][:, 0]
    shares = [
        float((index.search(asked, 1, effort=effort)[1][:, 0] == exact).mean())
        for effort in (0.01, 0.1, 0.5, 1.0)
    ]
    assert shares == sorted(shares)
    assert shares[1] > 0.7
    assert shares[-1] == 1.0


def test_removed_vectors_are_left_out_before_the_nearest_are_taken() -> None:
    rows = vectors(1, 500)
    index = VantageIndex.build(rows, config=SMALL)
    before = index.search(rows[:20], 8, exact=True)[1]
    gone = np.unique(before[:, :3])
    assert index.remove(gone) == len(gone)
    assert index.remove([*gone, 99_999]) == 0
    assert index.remove([]) == 0
    for odd in (1.5, [2.0], ["3"], [True]):
        with pytest.raises(InputError, match="whole numbers"):
            index.remove(odd)
    for kwargs in ({"exact": True}, {"effort": 1.0}):
        after = index.search(rows[:20], 5, **kwargs)[1]
        assert not np.isin(after, gone).any()
        for old, new in zip(before, after, strict=True):
            kept = [i for i in old if i not in gone]
            assert new[: len(kept)].tolist() == kept[:5]
    assert (len(index), index.stats["removed"]) == (500 - len(gone), len(gone))


def test_an_id_can_be_used_again_after_it_was_removed() -> None:
    rows = vectors(1, 300)
    index = VantageIndex.build(rows, config=SMALL)
    index.remove([7])
    index.add(rows[8:9] + 100, [7])
    assert index.search(rows[8:9] + 100, 1)[1].tolist() == [[7]]
    with pytest.raises(InputError, match="the id 7 is in the index already"):
        index.add(rows[:1], [7])


def test_an_empty_index_answers_and_learns() -> None:
    index = VantageIndex.build(np.empty((0, 40), np.float32), threads=1)
    distances, ids = index.search(vectors(1, 3), 2)
    assert np.isinf(distances).all()
    assert (ids == -1).all()
    assert len(index) == 0
    index.add(vectors(1, 200))
    assert index.search(vectors(1, 200)[:3], 1)[1].ravel().tolist() == [0, 1, 2]


@pytest.mark.parametrize("kwargs", [{}, {"exact": True}, {"effort": 0.5}])
def test_one_vector_and_k_larger_than_the_index(kwargs: dict[str, float]) -> None:
    index = VantageIndex.build(vectors(1, 1), threads=1)
    distances, ids = index.search(vectors(1, 1), 4, **kwargs)  # type: ignore[arg-type]
    assert ids.tolist() == [[0, -1, -1, -1]]
    assert distances[0, 0] == 0
    assert np.isinf(distances[0, 1:]).all()


@pytest.mark.parametrize("count", [2, 5000])
def test_equal_vectors_end_and_come_in_the_order_of_their_ids(count: int) -> None:
    index = VantageIndex.build(np.ones((count, 16), np.float32), config=SMALL)
    for kwargs in ({"exact": True}, {"effort": 1.0}):
        distances, ids = index.search(np.ones((2, 16)), 2, **kwargs)
        assert ids.tolist() == [[0, 1], [0, 1]]
        assert not distances.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_change_nothing(bad: float) -> None:
    rows = vectors(1, 50)
    index = VantageIndex.build(rows, threads=1)
    spoilt = vectors(2, 10)
    spoilt[4, 3] = bad
    for call in (
        lambda: index.add(spoilt),
        lambda: index.search(spoilt, 1),
        lambda: VantageIndex.build(spoilt),
    ):
        with pytest.raises(InputError, match="NaN or infinite"):
            call()
    assert len(index) == 50
    index.add(vectors(2, 10))
    assert index.search(vectors(2, 10)[:1], 1)[1].tolist() == [[50]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: i.search(np.zeros((1, 41)), 1), "list of vectors of 40 numbers"),
        (lambda i: i.search(np.zeros(40), 1), "list of vectors of 40 numbers"),
        (lambda i: i.search(np.zeros((1, 40)), 0), "k is 0"),
        (lambda i: i.search(np.zeros((1, 40)), 1, effort=0), "effort is 0"),
        (lambda i: i.search(np.zeros((1, 40)), 1, effort=1.5), "effort is 1.5"),
        (lambda i: i.add(np.zeros((2, 40)), [1]), "do not fit 2 vectors"),
        (lambda i: i.add(np.zeros((1, 40)), [0.5]), "one whole number each"),
        (lambda i: i.add(np.zeros((1, 40)), [-3]), "the id -3 is negative"),
        (lambda i: i.add(np.zeros((2, 40)), [90, 90]), "more than once"),
        (lambda i: VantageIndex.build(np.zeros((2, 5000))), "vectors of 5000 numbers"),
        (lambda i: VantageIndex.build(np.zeros((2, 0))), "vectors of 0 numbers"),
        (lambda i: VantageIndex.build(np.zeros((2, 3)), threads=0), "threads is 0"),
    ],
)
def test_what_does_not_fit_is_refused(call: object, message: str) -> None:
    index = VantageIndex.build(vectors(1, 30), threads=1)
    with pytest.raises(InputError, match=message):
        call(index)  # type: ignore[operator]
    assert len(index) == 30


def test_a_saved_index_answers_as_before_and_goes_on(tmp_path: Path) -> None:
    rows, asked = vectors(1, 900), vectors(2, 20)
    index = VantageIndex.build(rows, config=SMALL, threads=1)
    index.add(vectors(3, 100))
    index.remove([5, 6])
    index.save(tmp_path / "index")
    again = VantageIndex.open(tmp_path / "index", threads=2)
    assert again.stats == index.stats
    for kwargs in ({"exact": True}, {"effort": 0.2}):
        for one, other in zip(
            index.search(asked, 6, **kwargs), again.search(asked, 6, **kwargs), strict=True
        ):
            assert np.array_equal(one, other)
    again.remove([7])
    again.add(vectors(4, 10))
    assert again.search(vectors(4, 10)[:1], 1)[1].tolist() == [[1000]]
    assert index.search(rows[7:8], 1)[1].tolist() == [[7]]
    assert [file.name for file in tmp_path.iterdir()] == ["index"]


def test_an_empty_index_can_be_saved(tmp_path: Path) -> None:
    VantageIndex.build(np.empty((0, 9))).save(tmp_path / "index")
    again = VantageIndex.open(tmp_path / "index")
    assert (len(again), again.dimensions) == (0, 9)


def test_damage_to_a_saved_index_is_found_and_named(tmp_path: Path) -> None:
    path = tmp_path / "index"
    VantageIndex.build(vectors(1, 300)).save(path)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    damaged = {
        "cut off": good[: len(good) // 2],
        "one bit": bytes(flipped),
        "empty": b"",
        "text": b"not an index",
    }
    for kind, data in damaged.items():
        path.write_bytes(data)
        with pytest.raises(DamagedIndexError, match="build it again from the vectors") as caught:
            VantageIndex.open(path)
        assert str(path) in str(caught.value), kind
    with pytest.raises(FileNotFoundError):
        VantageIndex.open(tmp_path / "nothing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_saving_to_a_read_only_folder_raises_and_keeps_the_old_file(tmp_path: Path) -> None:
    index = VantageIndex.build(vectors(1, 30))
    index.save(tmp_path / "index")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            index.save(tmp_path / "index")
        assert len(VantageIndex.open(tmp_path / "index")) == 30
    finally:
        tmp_path.chmod(0o700)


def test_two_hundred_additions_leave_few_runs_and_lose_nothing() -> None:
    rows = vectors(1, 2000)
    index = VantageIndex.build(rows[:1000], config=SMALL, threads=1)
    for at in range(1000, 2000, 5):
        index.add(rows[at : at + 5])
    assert index.stats["runs"] <= 12
    assert len(index) == 2000
    expected = VantageIndex.build(rows[:1000], config=SMALL, threads=1)
    expected.add(rows[1000:])
    for one, other in zip(
        index.search(rows[::50], 3, exact=True),
        expected.search(rows[::50], 3, exact=True),
        strict=True,
    ):
        assert np.array_equal(one, other)


def test_cells_stay_small_when_an_index_grows() -> None:
    index = VantageIndex.build(vectors(1, 40), config=SMALL, threads=1)
    assert index.stats["cells"] == 1
    for seed in range(2, 30):
        index.add(vectors(seed, 100))
    assert index.stats["cells"] >= 16
    assert len(index) == 2840


def test_threads_may_search_one_index_at_once() -> None:
    rows = vectors(1, 3000)
    index = VantageIndex.build(rows, config=SMALL, threads=2)
    expected = index.search(rows[:40], 5, effort=0.3)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(index.search, rows[:40], 5, effort=0.3) for _ in range(12)]
        for job in jobs:
            for one, other in zip(job.result(), expected, strict=True):
                assert np.array_equal(one, other)


def test_a_forked_process_searches_with_threads_of_its_own() -> None:
    rows = np.random.default_rng(1).normal(size=(500, 16)).astype(np.float32)
    index = VantageIndex.build(rows, threads=2)
    expected = index.search(rows[:50], 3)[1]  # the threads are there before the fork
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os.write(writer, b"1" if np.array_equal(index.search(rows[:50], 3)[1], expected) else b"0")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        assert answer.read() == b"1"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_ids_that_leave_no_room_and_numbers_without_squares_are_refused() -> None:
    index = VantageIndex.build(np.eye(4, dtype=np.float32))
    for number in (2**63 - 1, 2**63 + 5):
        with pytest.raises(InputError, match=f"the id {number} is above"):
            index.add(np.ones((1, 4), np.float32), np.array([number], np.uint64))
    assert index.add(np.ones((1, 4), np.float32)) is None
    with pytest.raises(InputError, match=r"beyond 1e\+18"):
        index.search(np.full((1, 4), 1e20, np.float32), 1)
