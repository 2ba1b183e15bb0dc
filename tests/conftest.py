from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest
from heavy import LONG
from operators_redis import OperatorsRedis
from xdist.scheduler import LoadFileScheduling

from pipeline.config import Settings
from workers.redis_url import RedisAddress

T = TypeVar("T")

# The same few examples at every `make test`; others, by a seed that is printed, in the long run.
hypothesis.settings.register_profile("short", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.register_profile("long", print_blob=True, deadline=None, max_examples=1000)
hypothesis.settings.load_profile("long" if LONG else "short")

_OF_ONE_SITE = (
    "test_rebuild_extractor",
    "test_search_faults",
    "test_other_packages",
    "test_fused_search",
    "test_index_jobs",
    "test_search_many",
    "test_extractors_by_workers",
    "test_deadly_images",
    "test_pairs",
    "test_front",
    "test_forms",
    "test_flower",
    "test_chords",
    "test_local",
)
"""Files that use the fixture ``site``: one process runs them all, so that it starts only once."""

_LONGEST = (
    *_OF_ONE_SITE,
    "test_compaction_by_workers",
    "test_docs",
    "test_cli",
    "test_up",
    "test_recovery",
    "test_demo_command",
    "test_compaction",
    "test_kernels",
    "test_cli_local",
)


class _Files(LoadFileScheduling):
    """Gives each process whole files, and all that use ``site`` to the same process."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "site" if Path(file).stem in _OF_ONE_SITE else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Files:
    """Run files, not single tests, in one process each (pytest-xdist)."""
    return _Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that none is left for one process at the end."""
    place = {name: i for i, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    stacks = [item for item in items if item.path.parent.name == "integration"]
    users = {item.path.stem for item in stacks if "site" in getattr(item, "fixturenames", ())}
    assert users <= set(_OF_ONE_SITE), f"add to _OF_ONE_SITE: {users - set(_OF_ONE_SITE)}"


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither see nor change what the developer has set or indexed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("VANTAGE_"):
                patch.delenv(name)
        patch.setenv("VANTAGE_HOME", str(tmp_path_factory.mktemp("default-home")))
        yield


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty data directory, with a name that needs quoting, to find missing quotes."""
    path = tmp_path / "a home"
    path.mkdir()
    return path


@pytest.fixture
def settings(home: Path) -> Settings:
    """Settings of a separate installation, on its own home."""
    return Settings.from_env(
        {
            "VANTAGE_HOME": str(home),
            "VANTAGE_FLOWER_PORT": "0",
            "VANTAGE_EXTRACT_PROCESSES": "2",
            "VANTAGE_GROUP_THREADS": "2",
            "VANTAGE_HEARTBEAT_S": "1",
            "VANTAGE_HOST_TIMEOUT_S": "600",
        }
    )


@pytest.fixture(scope="session")
def _redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with OperatorsRedis(tmp_path_factory.mktemp("redis"), password="of-the-operator") as server:
        yield server.url


@pytest.fixture
def redis_url(_redis_server: str) -> str:
    """A real, empty Redis. Started once for all tests."""
    client = RedisAddress.parse(_redis_server).client()
    client.flushall()
    client.close()
    return _redis_server


@pytest.fixture(scope="session")
def eventually() -> Callable[..., object]:
    """``eventually(look)`` returns the first true answer of `look`.

    The limit only guards against hanging: no test may demand a speed.
    """

    def eventually(look: Callable[[], T], timeout_s: float = 600.0) -> T:
        deadline = time.monotonic() + timeout_s
        while True:
            answer = look()
            if answer:
                return answer
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {look}"
            time.sleep(0.02)

    return eventually
