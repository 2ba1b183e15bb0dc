"""Things that a new user tries: one path, forms of a query, closing, forking, wrong arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from heavy import long_only
from operators_redis import OperatorsRedis
from PIL import Image
from sites import Site, make_settings
from test_every_call_ends import (
    READS,
    WRITES,
    WRITING,
    in_child,
    methods_of,
    opened_by_workers,
    require_sentence,
)
from typer.testing import CliRunner

from pipeline.config import ExtractorConfig, Settings
from pipeline.errors import (
    BrokerUnavailableError,
    ConfigError,
    InputError,
    SchemaVersionError,
    StateError,
    VantageError,
)
from pipeline.metadata import engine as metadata_engine
from pipeline.opening import open_collection
from pipeline.request import SearchRequest
from vantage import Collection, FusedCollection
from workers.cli.app import app
from workers.embedded import EmbeddedRedis
from workers.environment import environment


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return make_settings(tmp_path_factory.mktemp("front") / "home")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("coffee.png", "page.png", "camera.png"):
        picture = cv2.imread(str(photo_folder / name))
        cv2.imwrite(str(folder / name), cv2.resize(picture, None, fx=0.5, fy=0.5))
    return folder


@pytest.fixture(scope="module")
def collection(settings: Settings, pictures: Path) -> Iterator[Collection]:
    with Collection.open("pictures", settings, local=True, threads=2) as opened:
        assert not len(opened)
        assert opened
        opened.index(str(pictures))
        yield opened


def first(result: Any) -> str:
    """Return the name of the file that comes first."""
    return Path(result.matches[0].locations[0]).name


def test_one_path_is_one_path(collection: Collection, pictures: Path) -> None:
    for one in (pictures, str(pictures), pictures / "page.png", [str(pictures)]):
        assert collection.index(one).progress().counters["files_seen"] in (1, 3)
    assert len(collection) == 3
    for wrong in ("", [""], b"x", [b"x"], [3], 7, None):
        with pytest.raises(InputError, match=r"is no path|is empty"):
            collection.index(wrong)  # type: ignore[arg-type]


def test_a_query_may_have_any_form_that_holds_a_picture(
    collection: Collection, pictures: Path
) -> None:
    path = pictures / "coffee.png"
    data = path.read_bytes()
    with Image.open(path) as opened:
        picture = opened.copy()
    pixels = np.asarray(picture.convert("RGB"))
    forms = [str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data)]
    for form in [*forms, picture, picture.convert("P"), picture.convert("CMYK"), pixels]:
        assert first(collection.search(form)) == "coffee.png"
        (alone,) = collection.search_many(io.BytesIO(data) if form is forms[5] else form)
        assert not isinstance(alone, InputError)
        assert first(alone) == "coffee.png"
    with path.open("rb") as file:
        assert first(collection.search(file)) == "coffee.png"
    # The same picture, but other bytes than those of the file.
    by_pixels = [replace(match, same_file=True) for match in collection.search(picture).matches[:1]]
    assert by_pixels == list(collection.search(path).matches[:1])
    with path.open("r", encoding="latin-1") as text, pytest.raises(InputError, match="'rb'"):
        collection.search(text)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot search with a dict"):
        collection.search({})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot search with a NoneType"):
        collection.search_many(None)  # type: ignore[arg-type]


def test_a_search_is_asked_for_by_options_or_by_one_value(
    collection: Collection, pictures: Path
) -> None:
    path = pictures / "page.png"
    request = SearchRequest(top=1, exact=True)
    assert len(collection.search(path, request).matches) == 1
    assert collection.search(path, request).plan["kind"] == "exhaustive"
    other = collection.search(path, request, exact=False, effort=0.5)
    assert other.plan["kind"] == "probed"
    assert first(collection.enqueue_search(path, top=1).wait()) == "page.png"
    with pytest.raises(InputError, match="name the option"):
        collection.search(path, 5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tpo"):
        collection.search(path, tpo=5)  # type: ignore[call-arg]


def test_a_collection_says_what_it_is(
    collection: Collection, settings: Settings, pictures: Path
) -> None:
    home = re.escape(str(settings.home))
    assert re.fullmatch(f"<Collection 'pictures' in this process, home '{home}'>", repr(collection))
    assert collection.status().images["indexed"] == len(collection) == 3
    assert collection.failures() == []
    handle = collection.enqueue_search(pictures / "page.png")
    assert repr(handle) == f"<LocalSearch {handle.id}>"
    assert first(handle.wait()) == "page.png"


def test_collections_that_are_searched_together_tell_of_each(
    collection: Collection, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with Collection.open("faulty", settings, local=True) as faulty:
        faulty.index(tmp_path)
    with FusedCollection.open(["faulty", "pictures"], settings, local=True) as both:
        assert [found.name for found in both.status()] == ["faulty", "pictures"]
        assert [len(rows) for rows in both.failures()] == [1, 0]


def test_closed_objects_say_so(settings: Settings, pictures: Path) -> None:
    one = Collection.open("pictures", settings, local=True)
    both = FusedCollection.open(["pictures", "others"], settings, local=True)
    for opened in (one, both):
        opened.close()
        opened.close()
        assert repr(opened).endswith(", closed>")
        with pytest.raises(StateError, match="was closed; open it again"), opened:
            pass
        for call in (opened.search, opened.search_many, opened.enqueue_search):
            with pytest.raises(StateError, match="was closed; open it again"):
                call(pictures / "page.png")
        for look in (opened.status, opened.failures):
            with pytest.raises(StateError, match="was closed"):
                look()
    for work in (one.rebuild, one.compact, lambda: one.index(pictures)):
        with pytest.raises(StateError, match="was closed"):
            work()


def test_connections_are_closed_if_opening_fails_later(
    settings: Settings, collection: Collection
) -> None:
    for number in range(4):
        with pytest.raises(ConfigError, match="was made with sift"):
            Collection.open(collection.name, settings, local=True, extractor="surf")
        if not number:
            # SQLite keeps a closed file open while this process has locks on it, and uses it again.
            before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
    with pytest.raises(ConfigError, match="was made with sift"):
        collection.index([], extractor=ExtractorConfig(name="surf"))


def test_workers_that_cannot_be_used_leave_no_connection_open(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "home")
    settings.home.mkdir(parents=True, exist_ok=True)
    kept = []  # with the errors all that their frames hold: nothing is closed by being forgotten

    def left_by(error: type[Exception], redis_port: int | None, **options: str) -> list[object]:
        """Open it in vain; return the connections to its own database and Redis that stay."""
        with pytest.raises(error) as caught:
            Collection.open("one", settings, **options)  # type: ignore[arg-type]
        kept.append(caught)
        process = psutil.Process()
        databases = [f for f in process.open_files() if f.path.startswith(str(settings.home))]
        sockets = [c for c in process.net_connections() if c.raddr and c.raddr.port == redis_port]
        return [*databases, *sockets]

    with OperatorsRedis(tmp_path) as server:
        settings = dataclasses.replace(settings, redis_url=server.url)
        port = server.port
        server.client.close()  # the test's own connection
        assert left_by(SchemaVersionError, port) == []
        with Collection.open("one", settings, local=True) as made:
            open_collection(made.resources, "one")
        assert left_by(ConfigError, port, extractor="surf") == []
    assert left_by(BrokerUnavailableError, port) == []


def test_a_home_without_database_is_to_be_migrated(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "home")
    settings.home.mkdir(parents=True, exist_ok=True)
    with EmbeddedRedis(settings.home):
        for names in (["one", "two"], ["two", "one"]):
            with pytest.raises(SchemaVersionError, match="vantage migrate"):
                FusedCollection.open(names, settings)
        with pytest.raises(SchemaVersionError, match="vantage migrate"):
            Collection.open("one", settings)


def test_threads_are_not_for_workers(settings: Settings) -> None:
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(InputError, match=f"threads is {wrong}: it must be a whole number"):
            Collection.open("one", settings, local=True, threads=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threads=2 is for local=True"):
        Collection.open("one", settings, threads=2)


def _search(collection: Collection, path: Path, answers: Any) -> None:
    answers.put(first(collection.search(path)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("local", [True, False])
def test_a_search_in_a_forked_child_answers(
    site: Site, indexed: str, queries: list[Path], local: bool
) -> None:
    """The child has none of the parent's threads; its parent goes on as before."""
    path = queries[0]
    with Collection.open(indexed, site.settings, local=local) as collection:
        wanted = first(collection.search(path))
        fork = multiprocessing.get_context("fork")
        answers = fork.SimpleQueue()
        child = fork.Process(target=_search, args=(collection, path, answers))
        child.start()
        child.join(timeout=600)
        try:
            assert child.exitcode == 0
            assert answers.get() == wanted
        finally:
            child.kill()
            child.join()
        assert first(collection.search(path)) == wanted


READ_ONLY = """
import json, sys
from pathlib import Path
from test_every_call_ends import METHODS, WRITING, opened_by_workers
from pipeline.errors import VantageError

photos, names = Path(sys.argv[1]), sys.argv[2:]
for one in opened_by_workers(names):
    with one:
        for name, call in METHODS.items():
            if not hasattr(type(one), name):
                continue
            try:
                call(one, photos)
                ended = "answer"
            except VantageError as error:
                ended = f"{type(error).__name__}: {error}"
            print(json.dumps([type(one).__name__, name, name in WRITING, ended]))
"""


class TestByWorkers:
    """Every method ends by workers, too: see `test_every_call_ends`."""

    @pytest.fixture(scope="class")
    @staticmethod
    def names(site: Site, indexed: str, pictures: Path) -> list[str]:
        """Two collections; the second may be changed."""
        with Collection.open("front-changed", site.settings) as collection:
            assert collection.index(pictures).wait(600).state == "done"
        return [indexed, "front-changed"]

    def test_after_close(self, site: Site, names: list[str], pictures: Path) -> None:
        for one in opened_by_workers(names, site.settings):
            one.close()
            one.close()
            for call in methods_of(one).values():
                with pytest.raises(StateError, match="was closed; open it again"):
                    call(one, pictures)

    @long_only
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_in_a_forked_child(self, site: Site, names: list[str], pictures: Path) -> None:
        for one in opened_by_workers(names[::-1], site.settings):
            with one:
                calls = methods_of(one)
                calls["search"](one, pictures)

                def work(one: Any = one, calls: Any = calls) -> None:
                    for name, call in calls.items():
                        found = call(one, pictures)
                        if name in WRITING:
                            assert found.wait(600).state == "done"
                    one.close()

                in_child(work)
                calls["search"](one, pictures)

    def test_with_a_database_that_another_process_has_locked(
        self, site: Site, names: list[str], pictures: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(metadata_engine, "BUSY_TIMEOUT_S", 0.05)
        for one in opened_by_workers(names[::-1], site.settings):
            database = sqlite3.connect(
                site.settings.home / "vantage.sqlite", isolation_level=None, timeout=600
            )
            with one, contextlib.closing(database):
                database.execute("BEGIN EXCLUSIVE")
                for name, call in methods_of(one).items():
                    if name in WRITING:
                        with pytest.raises(VantageError, match="write lock"):
                            call(one, pictures)
                    else:
                        call(one, pictures)

    def test_commands_with_a_database_that_another_process_has_locked(
        self, site: Site, names: list[str], pictures: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(metadata_engine, "BUSY_TIMEOUT_S", 0.05)
        places = {"one": names[1], "QUERY": pictures / "page.png", "PHOTOS": pictures}
        database = sqlite3.connect(
            site.settings.home / "vantage.sqlite", isolation_level=None, timeout=600
        )
        with contextlib.closing(database):
            database.execute("BEGIN EXCLUSIVE")
            for command, arguments in {**READS, **WRITES}.items():
                if command in ("up", "eval"):  # the one is tried elsewhere, the other is a search
                    continue
                given = [str(places.get(name, name)) for name in arguments if name != "--local"]
                result = CliRunner().invoke(app, [command, *given], env=environment(site.settings))
                if command in WRITES:
                    require_sentence(result, command)
                    assert "write lock" in result.stderr, (command, result.stderr)
                else:
                    assert result.exit_code == 0, (command, result.output, result.exception)

    @long_only
    def test_in_a_home_that_may_only_be_read(
        self, site: Site, names: list[str], pictures: Path
    ) -> None:
        """The client sees its own read-only mount; the workers write on."""
        home = str(site.settings.home)
        script = (
            'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
            if os.geteuid() == 0
            else "exit 77"
        )
        client = [sys.executable, "-c", READ_ONLY, str(pictures), *names[::-1]]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, home, *client],
            env={
                **os.environ,
                **environment(site.settings),
                "PYTHONPATH": str(Path(__file__).parent),
            },
            cwd="/",
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if "unshare:" in done.stderr or "mount:" in done.stderr or done.returncode == 77:
            pytest.skip("this user may not mount a file system read-only")
        assert done.returncode == 0, done.stderr
        for kind, name, writes, ended in map(json.loads, done.stdout.splitlines()):
            if writes:
                assert "may only read" in ended or "give this user" in ended, (kind, name, ended)
            else:
                assert ended == "answer", (kind, name, ended)
