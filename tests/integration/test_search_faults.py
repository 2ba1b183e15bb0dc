"""Searches with groups that are not served, hang, or die: an answer in time that names them."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sites import Eventually, SecondHost, Site, answer, frozen, live_workers, served_groups, silence

from pipeline.errors import NoWorkersError
from pipeline.records import SearchResult
from vantage import Collection
from workers.searches import Ticket

DEADLINE_S = 8.0
"""Of searches that reach it, in which live groups must have answered on a busy machine too."""
AT_ONCE_S = 200.0
"""Less than a third of the deadline, for searches that need not wait."""


@pytest.fixture
def collection(site: Site, indexed: str) -> Iterator[Collection]:
    with Collection.open(indexed, site.settings) as collection:
        yield collection


@pytest.fixture
def whole(collection: Collection, queries: list[Path]) -> SearchResult:
    """The answer while everything works."""
    result = collection.search(queries[0], plan="exhaustive", deadline_s=600)
    assert result.complete
    return result


@pytest.fixture
def second(site: Site, eventually: Eventually) -> Iterator[SecondHost]:
    """The second host, which the test may damage; everything serves again afterwards."""
    yield site.second
    site.second.stop()
    site.second.start()
    eventually(lambda: served_groups(site.settings) == {0, 1, 2, 3})


def _timed(search: Callable[[], SearchResult]) -> tuple[SearchResult, float]:
    began = time.monotonic()
    result = search()
    return result, time.monotonic() - began


def test_groups_without_a_worker_are_not_asked_and_are_named(
    site: Site,
    collection: Collection,
    whole: SearchResult,
    queries: list[Path],
    second: SecondHost,
    eventually: Eventually,
) -> None:
    second.stop()
    eventually(lambda: served_groups(site.settings) == {0, 1})
    handle = collection.enqueue_search(queries[0], plan="exhaustive", deadline_s=600)
    for result, seconds in (
        _timed(lambda: collection.search(queries[0], plan="exhaustive", deadline_s=600)),
        _timed(handle.wait),
    ):
        assert seconds < AT_ONCE_S, "it waited for groups that nobody serves"
        assert (result.complete, result.missing_groups) == (False, (2, 3))
        assert result.matches[0].image == whole.matches[0].image
        assert 0 < result.plan["scanned_share"] < 1


def test_without_any_group_there_is_still_an_answer_at_once(
    site: Site,
    collection: Collection,
    whole: SearchResult,
    queries: list[Path],
    second: SecondHost,
    eventually: Eventually,
) -> None:
    second.stop()
    with frozen(site.settings, "group"):
        silence(site.settings, "group")
        assert served_groups(site.settings) == set()
        result, seconds = _timed(lambda: collection.search(queries[0], deadline_s=600))
        assert seconds < AT_ONCE_S
        assert (result.complete, result.missing_groups) == (False, (0, 1, 2, 3))
        assert result.matches == ()
        enqueued = collection.enqueue_search(queries[0], deadline_s=600).wait(timeout=600)
        assert (enqueued.complete, enqueued.matches) == (False, ())
    eventually(lambda: served_groups(site.settings) == {0, 1})


def test_a_host_that_hangs_is_asked_twice_and_not_waited_for(
    site: Site,
    collection: Collection,
    whole: SearchResult,
    queries: list[Path],
    second: SecondHost,
    eventually: Eventually,
) -> None:
    second.freeze()
    # It has beaten a moment ago, so it is asked.
    handle = collection.enqueue_search(queries[0], plan="exhaustive", deadline_s=DEADLINE_S)
    result, seconds = _timed(
        lambda: collection.search(queries[0], plan="exhaustive", deadline_s=DEADLINE_S)
    )
    assert seconds > DEADLINE_S - 1
    assert (result.complete, result.missing_groups) == (False, (2, 3))
    assert result.matches[0].image == whole.matches[0].image
    enqueued = handle.wait(timeout=600)
    assert (enqueued.complete, enqueued.missing_groups) == (False, (2, 3))
    ticket = Ticket.load(collection._driver.context, handle.id)
    assert ticket is not None
    assert (ticket.asked, ticket.resent) == ((0, 1, 2, 3), True)
    # What it finds waiting when it is back is over, and does no harm.
    second.thaw()
    eventually(lambda: served_groups(site.settings) == {0, 1, 2, 3})
    again = collection.search(queries[0], plan="exhaustive", deadline_s=600)
    assert answer(again) == answer(whole)


def test_what_a_killed_host_had_been_handed_is_scanned_by_its_successor(
    site: Site,
    collection: Collection,
    whole: SearchResult,
    queries: list[Path],
    second: SecondHost,
    eventually: Eventually,
) -> None:
    second.freeze()
    handle = collection.enqueue_search(queries[0], plan="exhaustive", deadline_s=600)
    context = collection._driver.context
    scans = [context.keys.scan(handle.id, group) for group in (0, 1)]
    eventually(lambda: context.redis.exists(*scans) == 2)
    # A worker that dies takes along the messages that it had received.
    second.kill()
    address = context.redis_address
    with address.client(database=address.broker_db) as broker:
        broker.delete(*(context.keys.queue(f"group.{group}") for group in (2, 3)))
    second.start()
    ticket = Ticket.load(context, handle.id)
    assert ticket is not None
    assert not ticket.resent
    dataclasses.replace(ticket, resend_at=time.time()).save(context)  # its successor serves: now
    assert answer(handle.wait(timeout=600)) == answer(whole)
    ticket = Ticket.load(context, handle.id)
    assert ticket is not None
    assert ticket.resent


def test_a_host_that_is_killed_for_good_leaves_an_incomplete_answer_in_time(
    site: Site,
    collection: Collection,
    whole: SearchResult,
    queries: list[Path],
    second: SecondHost,
) -> None:
    second.freeze()
    handle = collection.enqueue_search(queries[0], plan="exhaustive", deadline_s=DEADLINE_S)
    second.kill()
    result = handle.wait(timeout=600)
    assert (result.complete, result.missing_groups) == (False, (2, 3))


def test_a_group_worker_that_is_killed_is_replaced_and_answers_are_complete_again(
    site: Site,
    collection: Collection,
    whole: SearchResult,
    queries: list[Path],
    eventually: Eventually,
) -> None:
    name = f"group@{site.settings.host}"
    killed = live_workers(site.settings)[name].pid
    os.kill(killed, signal.SIGKILL)
    result = collection.search(queries[0], plan="exhaustive", deadline_s=DEADLINE_S)
    assert result.complete or result.missing_groups == (0, 1)
    eventually(
        lambda: (
            (row := live_workers(site.settings).get(name))
            and (row.pid != killed and row.state == "ready")
        )
    )
    again = collection.search(queries[0], plan="exhaustive", deadline_s=600)
    assert answer(again) == answer(whole)


def test_a_search_that_no_query_worker_prepares_ends_with_an_error(
    site: Site, collection: Collection, queries: list[Path], eventually: Eventually
) -> None:
    from pipeline.errors import TransientError

    with frozen(site.settings, "query"):
        handle = collection.enqueue_search(queries[0], deadline_s=1)
        with pytest.raises(TransientError, match="no query worker is free or running"):
            handle.wait(timeout=600)
        silence(site.settings, "query")
        with pytest.raises(NoWorkersError):
            collection.enqueue_search(queries[0])
    eventually(lambda: not _raises(NoWorkersError, lambda: collection.enqueue_search(queries[0])))


def _raises(kind: type[Exception], call: Callable[[], object]) -> bool:
    try:
        call()
    except kind:
        return True
    return False


def test_many_searches_at_once_are_all_answered_alike(
    site: Site, collection: Collection, queries: list[Path]
) -> None:
    wanted = {path: answer(collection.search(path, deadline_s=600)) for path in queries}
    handles = [(path, collection.enqueue_search(path, deadline_s=600)) for path in 6 * queries]
    for path, handle in handles:
        assert answer(handle.wait(timeout=600)) == wanted[path]
