"""Every command and every public method ends with an answer or a sentence that says what to do.

In a home that may only be read, with a database that another process has locked, after `close`, and
in a forked child.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sites import make_settings
from typer.testing import CliRunner, Result

from pipeline.config import Settings
from pipeline.errors import StateError, VantageError
from pipeline.metadata import engine as metadata_engine
from pipeline.metadata import jobs
from pipeline.metadata.engine import session_scope
from vantage import Collection, FusedCollection
from workers.cli import exits
from workers.cli.app import COMMANDS, app
from workers.environment import environment
from workers.up import _migrate

NAMES = ("one", "two")

READS = {
    "collections": [],
    "status": ["one"],
    "failures": ["one"],
    "search": ["one", "QUERY", "--local"],
    "extractors": [],
    "verify": [],
    "migrate": [],
}
"""Commands that only read, with their arguments."""

WRITES = {
    "index": ["one", "PHOTOS", "--local"],
    "rebuild": ["one", "--local"],
    "compact": ["one", "--local"],
    "eval": ["DATASET", "--local"],
    "up": [],
}

CHECKS = {"doctor": []}

METHODS: dict[str, Callable[[Any, Path], Any]] = {
    "index": lambda one, photos: one.index(photos),
    "rebuild": lambda one, _: one.rebuild(),
    "compact": lambda one, _: one.compact(),
    "search": lambda one, photos: one.search(photos / "page.png").matches[0],
    "search_many": lambda one, photos: one.search_many([photos / "page.png"])[0].matches[0],
    "enqueue_search": lambda one, photos: one.enqueue_search(photos / "page.png").wait(600),
    "status": lambda one, _: one.status(),
    "failures": lambda one, _: one.failures(),
    "verify": lambda one, _: one.verify(),
    "local": lambda one, _: one.local,
    "resources": lambda one, _: one.resources.engine.url.database,
    "__len__": lambda one, _: len(one),
    "__enter__": lambda one, _: one.__enter__() and None,
}
WRITING = {"index", "rebuild", "compact"}
WITHOUT_DRIVER = {"open", "close", "name", "names"}


class Home:
    """A home with two collections of the same photographs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings: Settings = make_settings(folder / "home")
        self.photos = folder / "photos"
        self.dataset = folder / "dataset"

    def run(self, command: str, arguments: list[str]) -> Result:
        """Run a command in this process."""
        places = {
            "QUERY": self.photos / "page.png", "PHOTOS": self.photos, "DATASET": self.dataset
        }  # fmt: skip
        given = [command, *(str(places.get(argument, argument)) for argument in arguments)]
        return CliRunner().invoke(app, given, env=environment(self.settings))

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Forbid to write in the home; root needs a file system that is read-only."""
        home = str(self.settings.home)
        if os.geteuid():
            for path in sorted(self.settings.home.rglob("*"), reverse=True):
                path.chmod(0o555 if path.is_dir() else 0o444)
            self.settings.home.chmod(0o555)
            try:
                yield
            finally:
                subprocess.run(["chmod", "-R", "u+w", home], check=True)
            return
        for command in (["mount", "--bind", home, home], ["mount", "-o", "remount,ro,bind", home]):
            if subprocess.run(command, check=False, capture_output=True).returncode:
                subprocess.run(["umount", home], check=False, capture_output=True)
                pytest.skip("this root may not mount a file system read-only")
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", home], check=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the database's write lock, as another process would."""
        database = sqlite3.connect(self.settings.home / "vantage.sqlite", isolation_level=None)
        try:
            database.execute("BEGIN EXCLUSIVE")
            yield
        finally:
            database.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, small_photographs: dict[str, bytes]) -> Home:
    home = Home(tmp_path_factory.mktemp("every call"))
    home.photos.mkdir()
    for name in ("page", "astronaut", "rocket"):
        (home.photos / f"{name}.png").write_bytes(small_photographs[name])
    home.dataset.mkdir()
    for name in ("a", "b"):
        shutil.copy(home.photos / "page.png", home.dataset / f"{name}.png")
    truth = {"images": ["a.png", "b.png"], "relevant": {"a.png": ["b.png"]}}
    (home.dataset / "groundtruth.json").write_text(json.dumps(truth))
    for name in NAMES:
        with Collection.open(name, home.settings, local=True) as collection:
            collection.index(home.photos)
    return home


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a lock only for a moment: how long is not what is tried here."""
    monkeypatch.setattr(metadata_engine, "BUSY_TIMEOUT_S", 0.05)


def require_sentence(result: Result, command: str) -> None:
    """The command has ended with one error for people, and not with Python's."""
    assert isinstance(result.exception, SystemExit), (command, result.exception)
    assert result.exit_code == exits.TROUBLE
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr


def test_the_table_has_every_command_and_method() -> None:
    assert {*READS, *WRITES, *CHECKS} == set(COMMANDS)
    for kind in (Collection, FusedCollection):
        public = {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}
        assert public - WITHOUT_DRIVER <= set(METHODS)


@pytest.mark.parametrize("without_local", [False, True])
def test_commands_in_a_home_that_may_only_be_read(home: Home, without_local: bool) -> None:
    kept = home.settings.local.with_name("kept")
    if without_local:
        home.settings.local.rename(kept)
    try:
        with home.read_only():
            for command, arguments in READS.items():
                result = home.run(command, arguments)
                assert result.exit_code == exits.OK, (command, result.output, result.exception)
            for command, arguments in WRITES.items():
                result = home.run(command, arguments)
                require_sentence(result, command)
                assert "may only read" in result.stderr or "give this user" in result.stderr
            checked = home.run("doctor", [])
            assert checked.exit_code == exits.TROUBLE
            assert "make it writable" in checked.stdout
    finally:
        if without_local:
            kept.rename(home.settings.local)


def test_commands_with_a_database_that_another_process_has_locked(
    home: Home, impatient: None
) -> None:
    with home.locked():
        for command, arguments in READS.items():
            result = home.run(command, arguments)
            assert result.exit_code == exits.OK, (command, result.output, result.exception)
        for command in WRITES.keys() - {"up"}:  # which waits for it, and says so
            result = home.run(command, WRITES[command])
            require_sentence(result, command)
            assert "another process has held its write lock" in result.stderr


def test_up_says_at_once_that_the_database_is_locked(home: Home, impatient: None) -> None:
    told: list[str] = []
    with home.locked():
        _migrate(home.settings, told.append)
    assert "another process holds the write lock" in told[0]
    assert "lsof" in told[0]


def opened(home: Home) -> Iterator[Collection | FusedCollection]:
    yield Collection.open("one", home.settings, local=True)
    yield FusedCollection.open(NAMES, home.settings, local=True)


def opened_by_workers(
    names: Sequence[str], settings: Settings | None = None
) -> Iterator[Collection | FusedCollection]:
    """The same of a running system; see `test_front.TestByWorkers`."""
    yield Collection.open(names[0], settings)
    yield FusedCollection.open(names, settings)


def methods_of(one: object) -> dict[str, Callable[[Any, Path], Any]]:
    return {name: call for name, call in METHODS.items() if hasattr(type(one), name)}


def test_methods_in_a_home_that_may_only_be_read_or_is_locked(home: Home, impatient: None) -> None:
    for state in (home.read_only, home.locked):
        with state():
            for one in opened(home):
                with one:
                    for name, call in methods_of(one).items():
                        if name in WRITING:
                            with pytest.raises(VantageError):
                                call(one, home.photos)
                        else:
                            call(one, home.photos)


def test_methods_after_close_say_that_it_is_closed(home: Home) -> None:
    for one in opened(home):
        one.close()
        one.close()
        assert "closed" in repr(one)
        for call in methods_of(one).values():
            with pytest.raises(StateError, match="was closed; open it again"):
                call(one, home.photos)


def test_handles_after_close(home: Home) -> None:
    with Collection.open("one", home.settings, local=True) as one:
        job = one.index(home.photos)
        search = one.enqueue_search(home.photos / "page.png")
    assert job.wait().state == "done"
    assert search.wait(600).matches


def in_child(work: Callable[[], None]) -> None:
    """Do something in a forked child, which must end well."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    timer = threading.Timer(600, os.kill, (child, 9))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    assert status == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_methods_and_handles_in_a_forked_child(home: Home) -> None:
    for one in opened(home):
        with one:
            reading = {n: call for n, call in methods_of(one).items() if n not in WRITING}
            for call in reading.values():
                call(one, home.photos)

            def work(one: Any = one, reading: Any = reading) -> None:
                for call in reading.values():
                    call(one, home.photos)
                one.close()

            in_child(work)
            assert one.search(home.photos / "page.png").matches


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_handles_of_a_parent_in_its_child(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with Collection.open("one", home.settings, local=True) as one:
        job = one.index(home.photos)
        done = one.enqueue_search(home.photos / "page.png")
        done.wait(600)
        held = threading.Event()
        real = one._driver.search

        def search(*arguments: Any) -> Any:
            held.wait(600)
            return real(*arguments)

        monkeypatch.setattr(one._driver, "search", search)
        running = one.enqueue_search(home.photos / "page.png")

        def work() -> None:
            assert job.wait().state == "done"
            assert done.wait().matches
            with pytest.raises(StateError, match="search again"):
                running.wait()

        in_child(work)
        held.set()
        assert running.wait(600).matches


def test_a_job_that_waits_for_workers_that_are_gone_says_so(home: Home) -> None:
    with Collection.open("one", home.settings, local=True) as one:
        job = one.index(home.photos)
        engine = one.resources.engine
        with session_scope(engine) as session:
            session.execute(
                metadata_engine.text(
                    "UPDATE jobs SET state = 'running', stage = 'merge', process = NULL, "
                    "progress_at = 0 WHERE id = :id"
                ),
                {"id": job.id},
            )
        with pytest.raises(StateError, match="no worker has been alive for 60 s"):
            job.wait()
        with session_scope(engine) as session:
            jobs.finish_job(session, job.id, "done", "")
