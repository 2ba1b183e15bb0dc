"""The choice of keypoints: strong and large first, whatever order they come in."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from pipeline.extraction.selection import select_strongest

# Few different values, so that ties are common.
KEYPOINTS = npst.arrays(
    np.float32, st.tuples(st.integers(0, 30), st.just(7)), elements=st.sampled_from([1, 2, 4, 8])
)


def rows(*triples: tuple[float, float, float]) -> NDArray[np.float32]:
    """Keypoints of (x, size, response)."""
    return np.array([(x, 0, size, 0, response, 0, 0) for x, size, response in triples], np.float32)


def test_the_greatest_response_times_size_comes_first() -> None:
    keypoints = rows((0, 2, 0.10), (1, 20, 0.02), (2, 4, 0.06), (3, 30, 0.01))
    assert select_strongest(keypoints, 4).tolist() == [1, 3, 2, 0]
    assert select_strongest(keypoints, 2).tolist() == [1, 3]


def test_ties_are_broken_by_place() -> None:
    keypoints = rows((9, 2, 0.5), (3, 2, 0.5), (6, 2, 0.5), (5, 1, 1.0))
    assert select_strongest(keypoints, 4).tolist() == [1, 3, 2, 0]


def test_nothing_to_choose_from() -> None:
    assert select_strongest(np.zeros((0, 7), np.float32), 10).tolist() == []


@given(KEYPOINTS, st.integers(1, 40))
def test_no_keypoint_left_out_is_stronger_than_one_kept(
    keypoints: NDArray[np.float32], count: int
) -> None:
    kept = select_strongest(keypoints, count)
    assert len(kept) == len(set(kept.tolist())) == min(count, len(keypoints))
    strength = keypoints[:, 2] * keypoints[:, 4]
    assert (np.diff(strength[kept]) <= 0).all()
    left = np.setdiff1d(np.arange(len(keypoints)), kept)
    if len(left):
        assert strength[left].max() <= strength[kept].min()


@given(KEYPOINTS, st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(
    keypoints: NDArray[np.float32], count: int, random: np.random.Generator
) -> None:
    order = list(range(len(keypoints)))
    random.shuffle(order)
    shuffled = keypoints[order]
    used = [0, 1, 2, 3, 4]
    assert np.array_equal(
        keypoints[select_strongest(keypoints, count)][:, used],
        shuffled[select_strongest(shuffled, count)][:, used],
    )


@given(KEYPOINTS, st.integers(1, 39))
def test_a_smaller_choice_is_the_beginning_of_a_larger_one(
    keypoints: NDArray[np.float32], count: int
) -> None:
    more = select_strongest(keypoints, count + 1)
    assert np.array_equal(more[:count], select_strongest(keypoints, count))
