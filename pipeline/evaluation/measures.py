"""Retrieval measures over one judged ranking, and their means over many.

A *judged ranking* is a list of booleans, best match first: True where the match is a right answer,
False where it is wrong; neutral matches are already taken out. See `judge`.

``AP``
    Average precision, non-interpolated: the mean, over all R right answers of the query, of the
    precision at the rank where each was found; a right answer that the ranking does not hold adds
    0. (This is the form of TREC; the Oxford buildings program integrates the same curve with
    trapezoids, which gives slightly higher figures.) ``mAP`` is its mean over queries.
``recall@k``
    Share of the queries with at least one right answer among the first k matches: the form used
    in place recognition and metric learning. recall@1 is the share of queries whose first match is
    right.
``found@k``
    Mean share of a query's right answers that are among the first k matches, divided by
    min(R, k), so that 1 can be reached when R > k.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set


def judge(
    ranking: Iterable[Iterable[str]], relevant: Set[str], neutral: Set[str] = frozenset()
) -> list[bool]:
    """Turn a ranking of matches into a judged ranking.

    Parameters
    ----------
    ranking : iterable of iterables of str
        For each match, best first, the names of the image (one content may have several locations).
    relevant : set of str
        Names of the right answers.
    neutral : set of str
        Names that are neither right nor wrong.

    Returns
    -------
    list of bool
        A match with several right names counts as that many right answers, so that the count does
        not depend on whether some have the same content; a name counts once. A match with a right
        name is right even if another of its names is neutral.
    """
    judged: list[bool] = []
    seen: set[str] = set()
    for names in ranking:
        here = set(names)
        right = here & relevant
        if right:
            judged += [True] * len(right - seen)
            seen |= right
        elif not here & neutral:
            judged.append(False)
    return judged


def average_precision(judged: Sequence[bool], relevant_count: int) -> float:
    """Return the non-interpolated average precision of one judged ranking.

    Parameters
    ----------
    judged : sequence of bool
        See the module's text.
    relevant_count : int
        R, the number of right answers that exist, found or not; at least 1.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        R is less than 1 or than the number of right answers in the ranking.
    """
    _check(judged, relevant_count)
    found = 0
    precisions = 0.0
    for rank, right in enumerate(judged, start=1):
        if right:
            found += 1
            precisions += found / rank
    return precisions / relevant_count


def recall_at(judged: Sequence[bool], k: int) -> float:
    """Return 1.0 when a right answer is among the first `k` matches, else 0.0."""
    return float(any(judged[:k]))


def found_at(judged: Sequence[bool], relevant_count: int, k: int) -> float:
    """Return the share of min(R, k) right answers that are among the first `k` matches.

    Raises
    ------
    ValueError
        As `average_precision`, or `k` is less than 1.
    """
    _check(judged, relevant_count)
    if k < 1:
        raise ValueError(f"k is {k}: must be at least 1")
    return sum(judged[:k]) / min(relevant_count, k)


def first_right_rank(judged: Sequence[bool]) -> int | None:
    """Return the rank (from 1) of the first right answer, None if there is none."""
    return judged.index(True) + 1 if True in judged else None


def mean(values: Sequence[float]) -> float | None:
    """Return the arithmetic mean; None for no values."""
    return math.fsum(values) / len(values) if values else None


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return a percentile with linear interpolation, as ``numpy.percentile``'s default.

    Parameters
    ----------
    values : sequence of float
        In any order.
    share : float
        0 to 100.

    Returns
    -------
    float or None
        None for no values.
    """
    if not 0 <= share <= 100:
        raise ValueError(f"share is {share}: must be from 0 to 100")
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * share / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    # This form never leaves the range of its two neighbours by rounding when they are equal.
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _check(judged: Sequence[bool], relevant_count: int) -> None:
    """Refuse counts that cannot be."""
    if relevant_count < 1:
        raise ValueError(f"relevant_count is {relevant_count}: must be at least 1")
    if sum(judged) > relevant_count:
        raise ValueError(f"{sum(judged)} right answers found of {relevant_count} that exist")
