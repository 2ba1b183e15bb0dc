"""The command as its users meet it: a process with arguments, output, signals, an exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from gates import EXTRACTOR, Gate
from heavy import long_only
from PIL import Image
from sqlalchemy.orm import Session

from pipeline.config import Settings
from pipeline.metadata.engine import create_metadata_engine, session_scope
from pipeline.metadata.jobs import list_jobs
from pipeline.metadata.parts import parts
from vantage import Collection

pytest.importorskip("skimage", reason="the sample photographs come with scikit-image")

Eventually = Callable[..., Any]
VANTAGE = [sys.executable, "-m", "workers.cli"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 different pictures: corners of photographs."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut.png", "coffee.png", "chelsea.png", "brick.png", "grass.png", "ihc.png"):
        data = resources.files("skimage").joinpath("data", name).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            for i, (x, y) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
                left, top = x * width // 4, y * height // 4
                corner = image.crop((left, top, left + 3 * width // 4, top + 3 * height // 4))
                corner.save(folder / f"{Path(name).stem} {i}.png")
    return folder


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """The gate of the extractor ``gated``."""
    return Gate(tmp_path / "gate")


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a user with an empty home."""
    return {**os.environ, "VANTAGE_HOME": str(home), "VANTAGE_FLOWER_PORT": "0", **more}


def vantage(home: Path, *args: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, from a folder that is not the checkout."""
    return subprocess.run(
        [*VANTAGE, *map(os.fspath, args)],
        env=environment(home, **more),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def vantage_json(home: Path, *args: str | Path, code: int = 0, **more: str) -> Any:
    """Run a command with ``--json``; all of standard output must be one document."""
    done = vantage(home, *args, "--json", **more)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def interruptible() -> None:
    """Let Ctrl-C reach a child of a test run that is in the background of a shell, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(home: Path, *args: str | Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command; it is ended afterwards in any case."""
    process = subprocess.Popen(
        [*VANTAGE, *map(os.fspath, args)],
        env=environment(home, **more),
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def database(home: Path) -> Iterator[Session]:
    """Read the database of a home."""
    engine = create_metadata_engine(Settings.from_env({"VANTAGE_HOME": str(home)}).database_url)
    try:
        with session_scope(engine, write=False) as session:
            yield session
    finally:
        engine.dispose()


def extracted(home: Path) -> list[int]:
    """Return, for each finished part of each job, how many images it extracted itself."""
    with database(home) as session:
        return [
            part.result["extracted"]
            for job in list_jobs(session)
            for part in parts(session, job.id, "extract")
            if part.result is not None
        ]


def job_states(home: Path) -> list[str]:
    """Return the states of all jobs."""
    with database(home) as session:
        return [job.state for job in list_jobs(session)]


@pytest.mark.parametrize(
    "sign", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=long_only)], ids=["Ctrl-C", "kill"]
)
def test_a_local_index_that_was_stopped_goes_on_and_extracts_nothing_twice(
    home: Path, photos: Path, eventually: Eventually, gate: Gate, sign: signal.Signals
) -> None:
    assert vantage(home, "migrate").returncode == 0
    one_by_one = {"VANTAGE_BATCH_SIZE": "1", "VANTAGE_EXTRACTOR": EXTRACTOR, **gate.variables()}
    gate.close(after=8)
    with running(home, "index", "corners", photos, "--local", **one_by_one) as process:
        eventually(lambda: extracted(home))
        process.send_signal(sign)
        if sign == signal.SIGINT:
            # What is under way is finished, and nothing is begun.
            eventually(lambda: job_states(home) == ["failed"])
        gate.open()
        out, err = process.communicate(timeout=600)
    if sign == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command continues from here" in err
        assert "Traceback" not in err
        assert out == ""
    before = sum(extracted(home))
    assert 0 < before < 24
    again = vantage_json(home, "index", "corners", photos, "--local", **one_by_one)
    assert again["state"] == "done"
    # A part that was killed between writing its file and its row is found done, but not counted.
    uncounted = (os.cpu_count() or 1) if sign == signal.SIGKILL else 0
    assert 24 - uncounted <= sum(extracted(home)) <= 24
    (status,) = vantage_json(home, "status", "corners")["collections"]
    assert status["images"] == {"indexed": 24}
    if sign == signal.SIGKILL:
        query = photos / "coffee 2.png"
        found = vantage_json(home, "search", "corners", query, "--local", **gate.variables())
        assert found["searches"][0]["matches"][0]["locations"] == [str(query)]


def test_json_stands_alone_on_standard_output_and_exit_codes_are_kept(
    home: Path, photos: Path
) -> None:
    query = photos / "coffee 0.png"
    assert vantage_json(home, "index", "corners", photos, "--local")["state"] == "done"
    assert vantage_json(home, "search", "corners", query, "--local")["searches"]
    assert vantage_json(home, "collections")["collections"][0]["name"] == "corners"
    # wrong input: 2; something that an operator must change: 1
    assert (
        "did you mean 'corners'"
        in (vantage_json(home, "search", "corner", query, "--local", code=2)["error"]["message"])
    )
    assert vantage_json(home, "search", "corners", home, "--local", code=2)["searches"]
    assert vantage_json(home, "searhc", code=2)["error"]["type"] == "UsageError"
    broker = vantage_json(home, "search", "corners", query, code=1)["error"]
    assert broker["type"] == "BrokerUnavailableError"


def test_the_installed_command_completes_names_of_collections(home: Path, photos: Path) -> None:
    script = Path(sys.executable).with_name("vantage")
    if not script.exists():
        pytest.skip("the package is not installed as a command here")
    with Collection.open("corners", Settings.from_env(environment(home)), local=True) as opened:
        opened.index(photos / "coffee 0.png")
    done = subprocess.run(
        [script],
        env=environment(
            home, _VANTAGE_COMPLETE="complete_bash", COMP_WORDS="vantage search cor", COMP_CWORD="2"
        ),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout.split() == ["corners"]


@pytest.mark.parametrize(
    ("command", "wanted"), [("--help", "workers.cli.app"), ("collections", "sqlalchemy")]
)
def test_what_a_command_does_not_need_is_not_loaded(home: Path, command: str, wanted: str) -> None:
    assert vantage(home, "migrate").returncode == 0
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "workers.cli", command],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert wanted in loaded  # the listing is what we take it for
    heavy = {"numba", "cv2", "numpy", "celery", "redis", "PIL", "jinja2", "rich", "alembic"}
    heavy |= {"sqlalchemy.dialects.postgresql", "workers.cli.search"}
    if command == "--help":
        heavy |= {"sqlalchemy", "pydantic", "pipeline.config"}
    assert not heavy & loaded


def test_a_reader_that_leaves_early_is_no_error(home: Path) -> None:
    assert vantage(home, "migrate").returncode == 0
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*VANTAGE, "status"],
            env=environment(home),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_workers_go_on_when_nobody_waits_and_the_job_can_be_followed(
    home: Path, photos: Path, gate: Gate
) -> None:
    gated = {"VANTAGE_EXTRACTOR": EXTRACTOR, **gate.variables(), "VANTAGE_SEARCH_DEADLINE_S": "600"}
    gate.close(after=8)
    with running(home, "up", "--json", **gated, VANTAGE_HOST_TIMEOUT_S="600") as up:
        assert up.stdout is not None
        document = ""
        while not document.endswith("}\n"):
            line = up.stdout.readline()
            assert line, "vantage up ended before it was ready"
            document += line
        assert json.loads(document)["home"] == str(home)
        with running(home, "index", "corners", photos, **gated, VANTAGE_BATCH_SIZE="1") as index:
            assert index.stderr is not None
            assert index.stderr.readline()  # it waits, and shows how far the job is
            index.send_signal(signal.SIGINT)
            out, err = index.communicate(timeout=600)
        assert (index.returncode, out) == (130, "")
        assert "goes on with the workers" in err
        assert job_states(home) == ["running"]
        gate.open()
        assert vantage(home, "status", "corners", "--follow").returncode == 0
        (status,) = vantage_json(home, "status", "corners")["collections"]
        assert status["images"] == {"indexed": 24}
        query = photos / "coffee 2.png"
        found = vantage_json(home, "search", "corners", query, **gated)["searches"][0]
        assert found["matches"][0]["locations"] == [str(query)]
        assert found["complete"] is True
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=600)
        assert up.returncode == 0
