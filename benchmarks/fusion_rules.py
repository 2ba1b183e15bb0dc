"""Known rules of rank fusion, for `benchmarks.fusion`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ranking = list[tuple[str, float]]
"""Images and scores, best first."""

Rule = Callable[[Sequence[Ranking]], list[str]]
"""From the rankings of several extractors to one."""

Values = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From the scores of a ranking, best first, to what each adds."""


def _scores(ranking: Ranking) -> NDArray[np.float64]:
    """Return a ranking's scores."""
    return np.array([score for _, score in ranking])


def _order(total: dict[str, float]) -> list[str]:
    """Return images by their value; ties by SHA-256."""
    return sorted(total, key=lambda image: (-total[image], image))


def added(values: Values, *, times_found: bool = False) -> Rule:
    """Rank by the sum over the rankings; `times_found`: times the number of rankings that list."""

    def rule(rankings: Sequence[Ranking]) -> list[str]:
        total: dict[str, float] = {}
        count: dict[str, int] = {}
        for ranking in rankings:
            if ranking:
                for (image, _), value in zip(ranking, values(_scores(ranking)), strict=True):
                    total[image] = total.get(image, 0.0) + float(value)
                    count[image] = count.get(image, 0) + 1
        if times_found:
            total = {image: value * count[image] for image, value in total.items()}
        return _order(total)

    return rule


def reciprocal_rank(k: int) -> Values:
    """``1 / (k + rank)`` (Cormack, Clarke, Buettcher, SIGIR 2009)."""
    return lambda scores: 1.0 / (k + 1 + np.arange(len(scores)))


def min_max(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The range of the scores brought to 0 to 1."""
    found: NDArray[np.float64] = (scores - scores.min()) / max(float(np.ptp(scores)), 1e-12)
    return found


def z_score(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean 0, deviation 1."""
    found: NDArray[np.float64] = (scores - scores.mean()) / max(float(scores.std()), 1e-12)
    return found


def share(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is above the last score, as a share of the sum."""
    above = scores - scores.min()
    found: NDArray[np.float64] = above / max(float(above.sum()), 1e-12)
    return found


def by_the_curve(rankings: Sequence[Ranking]) -> list[str]:
    """Product of the scores to the power of a weight that is greater the steeper the curve falls.

    L. Zheng et al., "Query-adaptive late fusion for image search and person re-identification",
    CVPR 2015, without its reference curves.
    """
    curves = [min_max(_scores(ranking)) for ranking in rankings if ranking]
    listed: list[dict[str, Any]] = [
        dict(zip([image for image, _ in ranking], curve, strict=True))
        for ranking, curve in zip([r for r in rankings if r], curves, strict=True)
    ]
    weights = np.array([1.0 / max(float(curve.mean()), 1e-6) for curve in curves])
    weights /= max(float(weights.sum()), 1e-12)

    def value(image: str) -> float:
        powers = [max(o.get(image, 0.0), 1e-3) ** w for o, w in zip(listed, weights, strict=True)]
        return float(np.prod(powers))

    return _order({image: value(image) for one in listed for image in one})


RULES: dict[str, Rule] = {
    "RRF, k = 5": added(reciprocal_rank(5)),
    "RRF, k = 60": added(reciprocal_rank(60)),
    "CombSUM, scores as they are": added(lambda scores: scores),
    "CombSUM, min-max": added(min_max),
    "CombMNZ, min-max": added(min_max, times_found=True),
    "CombSUM, z-score": added(z_score),
    "CombSUM, share of the sum": added(share),
    "by the curve": by_the_curve,
}
