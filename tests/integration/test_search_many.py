"""Several query images in one pass: the answers of single searches, by workers and without them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sites import Eventually, Site, answer, served_groups

from pipeline.errors import ImageReadError, InputError, NoFeaturesError, UnknownNameError
from pipeline.records import SearchResult
from vantage import Collection, FusedCollection
from workers import searches
from workers.context import Context

PLANS = pytest.mark.parametrize(
    "options",
    [{"plan": "probed"}, {"exact": True}, {"effort": 0.5}, {}],
    ids=["probed", "exact", "effort", "auto"],
)
BAD = (b"not an image", np.full((200, 200), 128, np.uint8), Path("/nowhere/gone.jpg"))
ERRORS = (ImageReadError, NoFeaturesError, ImageReadError)


@pytest.fixture
def remote(site: Site, indexed: str) -> Iterator[Collection]:
    with Collection.open(indexed, site.settings) as opened:
        yield opened


@pytest.fixture
def here(site: Site, indexed: str) -> Iterator[Collection]:
    with Collection.open(indexed, site.settings, local=True) as opened:
        yield opened


@pytest.fixture
def images(queries: list[Path]) -> list[Any]:
    """Queries of every form, one of them twice, with what is no query between them."""
    pixels = cv2.cvtColor(cv2.imread(str(queries[2])), cv2.COLOR_BGR2RGB)
    good: list[Any] = [queries[0], queries[1].read_bytes(), pixels, queries[3], queries[0]]
    return [good[0], BAD[0], *good[1:3], BAD[1], *good[3:], BAD[2]]


def one(result: SearchResult | InputError) -> SearchResult:
    assert isinstance(result, SearchResult)
    return result


def alone(result: SearchResult) -> dict[str, Any]:
    """What an answer must have in common with that of a single search: not the pass's own sums."""
    values = answer(result)
    values["plan"] = {
        name: values["plan"][name] for name in ("kind", "cells", "cells_probed", "descriptors")
    }
    return values


@PLANS
def test_the_answers_are_those_of_single_searches_here_and_by_workers(
    here: Collection, remote: Collection, images: list[Any], options: dict[str, Any]
) -> None:
    together, by_workers = (form.search_many(images, top=20, **options) for form in (here, remote))
    assert len(together) == len(by_workers) == len(images)
    failed = [result for result in together if isinstance(result, InputError)]
    assert [type(error) for error in failed] == list(ERRORS)
    for image, mine, theirs in zip(images, together, by_workers, strict=True):
        if isinstance(mine, InputError):
            assert str(theirs) == str(mine)
            with pytest.raises(type(mine)):
                here.search(image, top=20, **options)
            continue
        assert mine.matches
        assert mine.explain["images"] == 5
        assert alone(mine) == alone(here.search(image, top=20, **options))
        assert answer(one(theirs)) == answer(mine)
        assert alone(one(theirs)) == alone(remote.search(image, top=20, **options))


@pytest.mark.parametrize("options", [{"plan": "probed"}, {"exact": True}], ids=["probed", "exact"])
def test_a_cell_that_several_images_want_is_visited_once(
    here: Collection, remote: Collection, queries: list[Path], options: dict[str, Any]
) -> None:
    passes = [one(form.search_many(queries, **options)[0]) for form in (here, remote)]
    singles = [here.search(query, **options) for query in queries]
    counted = []
    for result in passes:
        groups = result.explain["groups"]
        counted.append([{k: v for k, v in group.items() if k != "ms"} for group in groups])
        for name in ("wanted", "pairs", "matches"):
            apart = sum(group[name] for single in singles for group in single.explain["groups"])
            assert sum(group[name] for group in groups) == apart
        for group in groups:
            assert group["cells"] <= group["distinct"]
            assert group["visited"] <= group["rows"]
        visited = sum(group["visited"] for group in groups)
        apart = sum(g["visited"] for single in singles for g in single.explain["groups"])
        assert visited < apart
        assert result.explain["predicted"]["pairs"] == pytest.approx(
            result.explain["actual"]["pairs"], rel=0.4
        )
    assert counted[0] == counted[1]


def test_a_pass_is_one_message_a_group(
    remote: Collection, queries: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[searches.Ticket] = []
    begin = searches.begin

    def counting(*args: Any) -> searches.Ticket:
        begun.append(begin(*args))
        return begun[-1]

    monkeypatch.setattr(searches, "begin", counting)
    assert all(one(result).complete for result in remote.search_many(queries, exact=True))
    assert [ticket.asked for ticket in begun] == [(0, 1, 2, 3)]


def test_a_group_without_a_worker_is_missing_for_every_image(
    site: Site, remote: Collection, queries: list[Path], eventually: Eventually
) -> None:
    site.second.stop()
    try:
        eventually(lambda: served_groups(site.settings) == {0, 1})
        for result in remote.search_many(queries, exact=True, deadline_s=600):
            found = one(result)
            assert (found.complete, found.missing_groups) == (False, (2, 3))
            assert found.matches
            assert [group["group"] for group in found.explain["groups"]] == [0, 1]
    finally:
        site.second.start()
        eventually(lambda: served_groups(site.settings) == {0, 1, 2, 3})


def test_a_host_that_hangs_holds_a_pass_up_until_its_deadline(
    site: Site,
    remote: Collection,
    queries: list[Path],
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The deadline comes when the others have answered, however long that takes."""
    begin = searches.begin

    def begin_late(context: Context, *args: Any) -> searches.Ticket:
        ticket = begin(context, *args)
        scans = [context.keys.scan(ticket.id, group) for group in (0, 1)]
        eventually(lambda: context.redis.exists(*scans) == 2)
        assert ticket.asked == (0, 1, 2, 3)
        assert searches.fetch_results(context, ticket.id) is None
        now = time.time()
        ticket = dataclasses.replace(ticket, resend_at=now, deadline_at=now)
        ticket.save(context)
        return ticket

    monkeypatch.setattr(searches, "begin", begin_late)
    site.second.freeze()
    try:
        for result in remote.search_many(queries[:2], exact=True, deadline_s=600):
            found = one(result)
            assert (found.complete, found.missing_groups) == (False, (2, 3))
    finally:
        site.second.thaw()
        eventually(lambda: served_groups(site.settings) == {0, 1, 2, 3})


def test_no_images_and_an_unknown_collection(
    site: Site, here: Collection, remote: Collection, queries: list[Path]
) -> None:
    assert here.search_many([]) == remote.search_many([]) == []
    for form in (here, remote):
        with pytest.raises(InputError, match="ask for one of the two"):
            form.search_many(queries, exact=True, effort=0.1)
    with (
        Collection.open("nosuch", site.settings, local=True) as unknown,
        pytest.raises(UnknownNameError, match="no collection is named 'nosuch'"),
    ):
        unknown.search_many(queries)


def test_several_collections_answer_several_images(
    site: Site, indexed: str, photo_folder: Path, queries: list[Path]
) -> None:
    other = "indexed-for-many"
    with Collection.open(other, site.settings, extractor="surf") as collection:
        collection.index([photo_folder]).wait(timeout=600)
    names = (indexed, other)
    images = [queries[0], BAD[0], queries[1], BAD[1]]
    with (
        FusedCollection.open(names, site.settings, local=True) as mine,
        FusedCollection.open(names, site.settings) as theirs,
    ):
        for form in (mine, theirs):
            found = form.search_many(images, top=5, exact=True)
            assert [type(result) for result in found[1::2]] == [ImageReadError, NoFeaturesError]
            for image, result in zip(images[::2], found[::2], strict=True):
                assert not isinstance(result, InputError)
                assert result.matches == form.search(image, top=5, exact=True).matches
                assert result.complete
