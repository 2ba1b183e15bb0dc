"""The room that an enqueued query takes in Redis is given back if it cannot be sent."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from operators_redis import OperatorsRedis
from sites import make_settings

from pipeline.errors import BrokerUnavailableError, TooManyQueriesError
from pipeline.metadata.engine import create_metadata_engine, upgrade
from pipeline.request import SearchRequest
from workers import searches
from workers.context import Context
from workers.io_deadline import io_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorsRedis]:
    with OperatorsRedis(tmp_path_factory.mktemp("operator")) as made:
        yield made


@pytest.fixture
def context(server: OperatorsRedis, tmp_path: Path) -> Iterator[Context]:
    settings = make_settings(tmp_path / "home", redis_url=server.url)
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine)
    engine.dispose()
    made = Context(settings)
    yield made
    made.close()


@pytest.mark.parametrize("refused", ["-set", "-zadd", "-evalsha -eval", "-lpush", "-hset"])
def test_a_query_that_cannot_be_sent_leaves_nothing(
    server: OperatorsRedis, context: Context, refused: str
) -> None:
    context.redis.ping()
    server.client.execute_command("ACL", "SETUSER", "default", *refused.split())
    try:
        with (
            pytest.raises(BrokerUnavailableError),
            context.broker_errors(),
            io_until(time.time() + 0.1),
        ):
            searches.request(context, "s", "photographs", b"image", SearchRequest(deadline_s=0.1))
    finally:
        server.client.execute_command("ACL", "SETUSER", "default", "+@all")
    assert list(context.redis.scan_iter(f"{context.keys.prefix}*")) == []


def test_a_query_that_is_too_large_by_itself_leaves_nothing(context: Context) -> None:
    context.settings = dataclasses.replace(context.settings, queued_bytes=10)
    with pytest.raises(TooManyQueriesError) as told:
        searches.request(context, "s", "photographs", bytes(11), SearchRequest(deadline_s=600))
    assert told.value.args == (11, 0, 10)
    assert list(context.redis.scan_iter(f"{context.keys.prefix}*")) == []
