"""The pairs of keypoints behind an answer, in one process and by workers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from sites import Site

from pipeline.request import SearchRequest
from pipeline.resources import Resources
from pipeline.retrieval.batch import join_batches
from pipeline.searching import find_pairs, finish_batch, prepare_query, scan_group
from vantage import Collection
from workers import searches


def test_workers_give_the_pairs_that_one_process_gives_in_original_pixels(
    site: Site, indexed: str, photo_folder: Path
) -> None:
    whole = cv2.imread(str(photo_folder / "coffee.png"))
    height, width = whole.shape[:2]
    half = cv2.cvtColor(
        cv2.resize(whole, (width // 2, height // 2), interpolation=cv2.INTER_AREA),
        cv2.COLOR_BGR2RGB,
    )
    request = SearchRequest(plan="exhaustive")
    resources = Resources(site.settings)
    try:
        version = resources.current_version(indexed)
        other = prepare_query(resources, version, photo_folder / "rocket.png", request)
        batch = join_batches([other, prepare_query(resources, version, half, request)])
        scans = [scan_group(resources, version, group, batch) for group in range(4)]
        result = finish_batch(resources, version, batch, scans, {}, {})[1]
        chosen = [match.image for match in result.matches]
        here = find_pairs(resources, version, batch, scans, [*chosen, "ab" * 32], number=1)
    finally:
        resources.close()
    assert set(here) == set(chosen)
    for match in result.matches:
        assert len(here[match.image]) == match.votes
    best = here[chosen[0]]
    assert len(best) > 20
    # The whole picture has everything at twice the place and twice the size.
    moved = np.abs(best.query[:, :2] * 2 - best.image[:, :2]).max(axis=1)
    assert np.median(moved) < 2
    assert 1.8 < np.median(best.image[:, 2] / best.query[:, 2]) < 2.2
    with Collection.open(indexed, site.settings) as remote:
        handle = remote.enqueue_search(half, plan="exhaustive")
        assert [match.image for match in handle.wait().matches] == chosen
        there = searches.pairs(remote._driver.context, handle.id, chosen)
        assert searches.pairs(remote._driver.context, "unknown", chosen) is None
    assert there is not None
    assert set(there) == set(here)
    for image, pairs in here.items():
        for name, values in vars(pairs).items():
            assert np.array_equal(values, getattr(there[image], name)), name
