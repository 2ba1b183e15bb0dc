"""Measures against values worked out by hand, and properties that must hold for any ranking."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.measures import (
    average_precision,
    first_right_rank,
    found_at,
    judge,
    mean,
    percentile,
    recall_at,
)

rankings = st.lists(st.booleans(), max_size=40)


@pytest.mark.parametrize(
    ("judged", "relevant", "expected"),
    [
        ([True], 1, 1.0),
        ([False, True], 1, 1 / 2),
        ([True, False, True], 2, (1 / 1 + 2 / 3) / 2),
        # Ranks 1, 3 and 6 of three: the textbook's example.
        ([True, False, True, False, False, True], 3, (1 + 2 / 3 + 3 / 6) / 3),
        # One of four found: the three that are missing add nothing.
        ([False, False, True], 4, (1 / 3) / 4),
        ([False, False], 2, 0.0),
        ([], 5, 0.0),
    ],
)
def test_average_precision_is_the_mean_precision_at_right_answers(judged, relevant, expected):
    assert average_precision(judged, relevant) == pytest.approx(expected, abs=1e-15)


@given(rankings, st.integers(0, 5))
def test_average_precision_is_one_exactly_when_all_right_answers_come_first(judged, missing):
    relevant = sum(judged) + missing
    if relevant == 0:
        return
    value = average_precision(judged, relevant)
    assert 0 <= value <= 1
    perfect = missing == 0 and all(judged[:relevant])
    assert math.isclose(value, 1.0) == perfect


@given(rankings.filter(lambda r: any(r)), st.data())
def test_average_precision_falls_when_a_wrong_match_is_put_before_a_right_one(judged, data):
    relevant = sum(judged)
    last = max(i for i, right in enumerate(judged) if right)
    place = data.draw(st.integers(0, last))
    worse = [*judged[:place], False, *judged[place:]]
    assert average_precision(worse, relevant) < average_precision(judged, relevant)


@given(rankings, st.integers(0, 20))
def test_average_precision_ignores_wrong_matches_after_the_last_right_one(judged, count):
    relevant = sum(judged) + 1
    longer = judged + [False] * count
    assert average_precision(longer, relevant) == average_precision(judged, relevant)


def test_average_precision_refuses_impossible_counts():
    with pytest.raises(ValueError, match="relevant_count is 0"):
        average_precision([], 0)
    with pytest.raises(ValueError, match="2 right answers found of 1"):
        average_precision([True, True], 1)


def test_recall_at_k_asks_for_one_right_answer_and_found_at_k_for_all():
    judged = [False, True, False, True]
    assert [recall_at(judged, k) for k in (1, 2, 4, 100)] == [0, 1, 1, 1]
    assert found_at(judged, 3, 1) == 0
    assert found_at(judged, 3, 2) == 1 / 2
    assert found_at(judged, 3, 4) == 2 / 3
    assert first_right_rank(judged) == 2
    assert first_right_rank([False]) is None


@given(rankings, st.integers(1, 50))
def test_recall_and_found_agree_and_never_fall_as_k_grows(judged, k):
    relevant = sum(judged) + 1
    assert recall_at(judged, k) <= recall_at(judged, k + 1)
    assert (found_at(judged, relevant, k) > 0) == (recall_at(judged, k) == 1)
    counted = sum(judged[:k])
    assert found_at(judged, relevant, k) * min(relevant, k) == pytest.approx(counted)


def test_neutral_matches_neither_use_a_rank_nor_count():
    ranking = [["query"], ["wrong"], ["same cover"], ["right"], ["elsewhere"]]
    judged = judge(ranking, {"right"}, {"query", "same cover"})
    assert judged == [False, True, False]
    assert average_precision(judged, 1) == 1 / 2


def test_a_match_with_two_right_names_is_two_right_answers():
    judged = judge([["a", "b"], ["x"], ["c"]], {"a", "b", "c"})
    assert judged == [True, True, False, True]
    assert average_precision(judged, 3) == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_a_match_that_is_right_and_neutral_is_right():
    assert judge([["query", "copy"]], {"copy"}, {"query"}) == [True]


names = st.sampled_from("abcdefgh")


@given(st.permutations("abcdefgh"), st.sets(names, min_size=1), st.sets(names))
def test_taking_neutral_images_out_beforehand_changes_nothing(order, relevant, neutral):
    neutral = neutral - relevant
    with_them = judge([[name] for name in order], relevant, neutral)
    without = judge([[name] for name in order if name not in neutral], relevant)
    assert with_them == without
    assert sum(with_them) == len(relevant)


numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


@given(numbers, st.floats(0, 100))
def test_percentile_is_numpys(values, share):
    assert percentile(values, share) == pytest.approx(float(np.percentile(values, share)), abs=1e-6)


@given(numbers)
def test_percentile_ends_are_the_extremes(values):
    assert percentile(values, 0) == min(values)
    assert percentile(values, 100) == max(values)


def test_nothing_has_no_mean_and_no_percentile():
    assert mean([]) is None
    assert percentile([], 50) is None
    with pytest.raises(ValueError, match="share is 101"):
        percentile([1.0], 101)
