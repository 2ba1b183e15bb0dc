"""Workers and whole machines that are killed in the middle of indexing: the job completes."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from gates import EXTRACTOR, Gate
from heavy import long_only
from redis import RedisError
from sites import Eventually, files_below, live_workers, make_settings

from pipeline.config import Settings
from pipeline.files import hash_bytes
from pipeline.metadata import collections, parts
from pipeline.metadata.engine import create_metadata_engine, session_scope, upgrade
from pipeline.metadata.images import register_files
from pipeline.metadata.records import FileStamp, JobProgress, RegisteredFile
from pipeline.walk import walk
from vantage import Collection
from workers.processes import die_with_parent, free_port
from workers.redis_url import RedisAddress
from workers.server_programs import find_server
from workers.stack import Stack

IMAGES = 45
DISTURBANCES = (
    "pool process",
    "extraction worker",
    "group worker",
    "everything",
    "Redis",
    "foreign Redis",
)
"""In the order in which they are tried; each indexes into a collection of its own."""


def _settings(home: Path) -> Settings:
    """Little work in many parts."""
    settings = make_settings(home, batch_size=2)
    return dataclasses.replace(settings, index=dataclasses.replace(settings.index, cell_size=200))


def _name(disturbance: str) -> str:
    return disturbance.replace(" ", "-")


def _prepare(settings: Settings, photographs: Path) -> None:
    """Make all collections and note their images, so that these have the same ids wherever.

    Each has an extractor of its own, so that none finds the containers of another; all wait at
    the gate.
    """
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine)
    files = [
        RegisteredFile(
            found.path,
            found.root,
            hash_bytes(Path(found.path).read_bytes()),
            FileStamp(found.size, found.mtime_ns, found.ctime_ns, found.inode),
        )
        for found in walk([photographs])
    ]
    assert len(files) == IMAGES
    for number, disturbance in enumerate(DISTURBANCES):
        extractor = dataclasses.replace(
            settings.extractor, name=EXTRACTOR, max_features=100 + number
        )
        with session_scope(engine) as session:
            collection = collections.get_or_create_collection(
                session, _name(disturbance), extractor, settings.index
            )
            register_files(session, collection.id, None, files)
    engine.dispose()


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    gate = Gate(tmp_path_factory.mktemp("gate"))
    with gate.installed():
        yield gate


class Undisturbed:
    """The same jobs, by this process, when nothing disturbs them; each is done when needed."""

    def __init__(self, settings: Settings, photographs: Path) -> None:
        self._settings, self._photographs = settings, photographs
        _prepare(settings, photographs)

    def files(self, name: str) -> dict[str, str]:
        """Index into a collection and return the SHA-256 of all files made so far."""
        with Collection.open(name, self._settings, local=True) as collection:
            done = collection.index([self._photographs]).progress()
            assert done.counters["images_extracted"] == IMAGES
        return files_below(self._settings.store)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, many_photographs: Path, gate: Gate
) -> Undisturbed:
    settings = _settings(tmp_path_factory.mktemp("undisturbed") / "home")
    return Undisturbed(settings, many_photographs)


@pytest.fixture(scope="module")
def settings(
    tmp_path_factory: pytest.TempPathFactory, many_photographs: Path, gate: Gate
) -> Settings:
    settings = _settings(tmp_path_factory.mktemp("harmed") / "home")
    _prepare(settings, many_photographs)
    return settings


@pytest.fixture(scope="module")
def stack(settings: Settings) -> Iterator[Stack]:
    with Stack(settings) as stack:
        yield stack


class Disturbed:
    """A job that the gate keeps in the middle of extraction, and what it has done so far."""

    def __init__(
        self,
        settings: Settings,
        disturbance: str,
        photographs: Path,
        eventually: Eventually,
        gate: Gate,
    ) -> None:
        self.settings = settings
        self.name = _name(disturbance)
        self._eventually = eventually
        self._gate = gate
        gate.close(after=8)  # two processes with parts of two images: three are done at least
        with Collection.open(self.name, settings) as collection:
            self.job_id = collection.index([photographs]).id
        eventually(lambda: self.progress().done_parts >= 3)
        self.early = self._containers()
        assert self.early

    def progress(self) -> JobProgress:
        """Read from SQL, whether or not anything runs."""
        engine = create_metadata_engine(self.settings.database_url)
        try:
            with session_scope(engine, write=False) as session:
                return parts.job_progress(session, self.job_id)
        finally:
            engine.dispose()

    def _containers(self) -> dict[Path, tuple[int, int]]:
        folder = Path(self.settings.store) / "containers"
        found = {path: path.stat() for path in folder.rglob("*.npz")}
        return {path: (status.st_ino, status.st_mtime_ns) for path, status in found.items()}

    def assert_in_the_middle(self) -> None:
        progress = self.progress()
        assert progress.stage == "extract"
        assert progress.done_parts < progress.total_parts
        self._gate.open()

    def assert_completes(self, undisturbed: Undisturbed) -> None:
        """Wait, without doing anything, and compare with what an undisturbed run leaves."""

        def ended() -> bool:
            assert self.progress().state in ("running", "done"), self.progress()
            return self.progress().state == "done"

        self._eventually(ended)
        progress = self.progress()
        assert (progress.images_done, progress.images_failed) == (IMAGES, 0)
        assert progress.counters["images_extracted"] == IMAGES, "something was extracted twice"
        now = self._containers()
        assert {path: now[path] for path in self.early} == self.early, "finished work was redone"
        wanted = undisturbed.files(self.name)
        mine = files_below(self.settings.store, "[!a]*/**/[!.]*")  # whole files
        assert {name: wanted.get(name) for name in mine} == mine
        engine = create_metadata_engine(self.settings.database_url)
        try:
            with session_scope(engine, write=False) as session:
                status = collections.collection_status(session, self.name)
        finally:
            engine.dispose()
        assert status.images == {"indexed": IMAGES}
        assert (status.version, sorted(status.segments)) == (1, [0, 1, 2, 3])


def _worker(settings: Settings, kind: str) -> psutil.Process:
    return psutil.Process(live_workers(settings)[f"{kind}@{settings.host}"].pid)


def test_a_job_goes_on_after_its_pool_processes_were_killed(
    stack: Stack,
    settings: Settings,
    many_photographs: Path,
    undisturbed: Undisturbed,
    eventually: Eventually,
    gate: Gate,
) -> None:
    job = Disturbed(settings, "pool process", many_photographs, eventually, gate)
    for child in _worker(settings, "extract").children():
        child.kill()
    job.assert_in_the_middle()
    job.assert_completes(undisturbed)


@long_only
def test_a_job_goes_on_after_the_extraction_worker_was_killed(
    stack: Stack,
    settings: Settings,
    many_photographs: Path,
    undisturbed: Undisturbed,
    eventually: Eventually,
    gate: Gate,
) -> None:
    job = Disturbed(settings, "extraction worker", many_photographs, eventually, gate)
    _worker(settings, "extract").kill()
    job.assert_in_the_middle()
    job.assert_completes(undisturbed)


@long_only
def test_a_job_goes_on_after_the_group_worker_was_killed(
    stack: Stack,
    settings: Settings,
    many_photographs: Path,
    undisturbed: Undisturbed,
    eventually: Eventually,
    gate: Gate,
) -> None:
    """Frozen first, so that it has the merges, or their messages, when it dies."""
    job = Disturbed(settings, "group worker", many_photographs, eventually, gate)
    worker = _worker(settings, "group")
    worker.suspend()
    job.assert_in_the_middle()
    eventually(lambda: job.progress().stage == "merge")
    worker.kill()
    assert job.progress().stage == "merge"
    job.assert_completes(undisturbed)


def test_a_job_goes_on_when_everything_was_killed_and_is_started_again(
    stack: Stack,
    settings: Settings,
    many_photographs: Path,
    undisturbed: Undisturbed,
    eventually: Eventually,
    gate: Gate,
) -> None:
    job = Disturbed(settings, "everything", many_photographs, eventually, gate)
    family = psutil.Process(stack.pid).children(recursive=True)
    stack.kill()
    job.assert_in_the_middle()
    _, alive = psutil.wait_procs(family, timeout=600)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    for name in ("redis.json", "redis.conf"):
        (settings.home / "run" / name).unlink(missing_ok=True)
    stack.start()
    job.assert_completes(undisturbed)


@long_only
def test_a_job_goes_on_when_our_redis_was_killed_and_all_is_started_again(
    stack: Stack,
    settings: Settings,
    many_photographs: Path,
    undisturbed: Undisturbed,
    eventually: Eventually,
    gate: Gate,
) -> None:
    """Everything ends with it, in order; started again, the job goes on."""
    job = Disturbed(settings, "Redis", many_photographs, eventually, gate)
    family = psutil.Process(stack.pid).children(recursive=True)
    (redis,) = [process for process in family if process.name().startswith("redis-server")]
    redis.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=600)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    up = psutil.Process(stack.pid)
    eventually(lambda: up.status() == psutil.STATUS_ZOMBIE)  # ended; nobody has asked how yet
    assert stack.stop() == 1
    job.assert_in_the_middle()
    stack.start()
    job.assert_completes(undisturbed)


def _foreign_redis(port: int, log: Path) -> subprocess.Popen[bytes]:
    """Start a Redis as an operator would, without persistence."""
    command = [str(find_server()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )


@long_only
def test_a_job_goes_on_when_an_operators_redis_comes_back_empty(
    stack: Stack,
    settings: Settings,
    many_photographs: Path,
    undisturbed: Undisturbed,
    eventually: Eventually,
    gate: Gate,
) -> None:
    """The workers find it again, and none ends; what it has lost is sent again."""
    stack.stop()
    port = free_port()
    address = RedisAddress.parse(f"redis://127.0.0.1:{port}/0")
    settings = dataclasses.replace(settings, redis_url=address.broker_url)
    redis = _foreign_redis(port, settings.home / "logs" / "foreign.log")
    try:
        eventually(lambda: _answers(address))
        with Stack(settings) as own:
            workers = set(live_workers(settings))
            job = Disturbed(settings, "foreign Redis", many_photographs, eventually, gate)
            redis.kill()
            redis.wait()
            job.assert_in_the_middle()
            redis = _foreign_redis(port, settings.home / "logs" / "foreign.log")
            job.assert_completes(undisturbed)
            assert set(live_workers(settings)) == workers
            with Collection.open(job.name, settings) as collection:
                query = sorted(many_photographs.iterdir())[0]
                for result in (
                    collection.search(query, deadline_s=600),
                    collection.enqueue_search(query, deadline_s=600).wait(timeout=600),
                ):
                    assert result.complete
                    assert result.matches[0].locations == (str(query),)
            assert "starting it again" not in (settings.home / "logs" / "up.log").read_text()
            assert own.stop() == 0
    finally:
        redis.kill()
        redis.wait()


def _answers(address: RedisAddress) -> bool:
    with address.client() as client:
        try:
            return bool(client.ping())
        except RedisError:
            return False
