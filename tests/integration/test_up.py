"""`vantage up` for real: every process of the Procfile, started, watched, killed and stopped."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from heavy import long_only
from sites import ask_flower

from pipeline.config import Settings
from pipeline.errors import ConfigError, StateError
from pipeline.metadata.engine import create_metadata_engine, session_scope, upgrade
from pipeline.metadata.heartbeats import groups_served, live_workers
from workers.cache_place import running_cache_server
from workers.cache_status import read_cache_status
from workers.doctor import checks
from workers.embedded import EmbeddedRedis, discover_redis_url
from workers.environment import environment
from workers.redis_url import RedisAddress
from workers.stack import Stack
from workers.up import find_procfile, read_procfile, run_up

Eventually = Callable[..., Any]


def _family(pid: int) -> list[psutil.Process]:
    """All that a process has started; not itself, for whose status `subprocess` waits."""
    return psutil.Process(pid).children(recursive=True)


def _left(processes: list[psutil.Process], timeout_s: float = 600) -> list[psutil.Process]:
    """Wait for processes to end; return those that have not."""
    alive = psutil.wait_procs(processes, timeout=timeout_s)[1]
    return [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _pids(settings: Settings) -> dict[str, int]:
    engine = create_metadata_engine(settings.database_url)
    try:
        with session_scope(engine, write=False) as session:
            rows = live_workers(session, time.time(), 600)
            return {role: row.pid for row in rows for role in row.roles}
    finally:
        engine.dispose()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One for the tests that leave it as it was."""
    home = tmp_path_factory.mktemp("up") / "a home"
    settings = Settings.from_env(
        {
            "VANTAGE_HOME": str(home),
            "VANTAGE_FLOWER_PORT": "0",
            "VANTAGE_EXTRACT_PROCESSES": "2",
            "VANTAGE_HEARTBEAT_S": "1",
        }
    )
    with Stack(settings) as stack:
        yield stack


def test_everything_serves_when_ready_and_nothing_is_left_when_stopped(settings: Settings) -> None:
    with Stack(settings) as stack:
        family = _family(stack.pid)
        assert set(_pids(settings)) == {"extract", "group", "reduce", "query", "supervise"}
        engine = create_metadata_engine(settings.database_url)
        with session_scope(engine, write=False) as session:
            assert set(groups_served(session, time.time(), 600)) == set(range(16))
        engine.dispose()
        url = discover_redis_url(settings)
        assert url is not None
        (password,) = RedisAddress.parse(url).passwords
        shown = [" ".join(p.cmdline()) for p in family]
        assert stack.stop() == 0
    assert _left(family, 0) == []
    assert _pids(settings) == {}
    assert list((settings.home / "run").glob("*.json")) == []
    files = [p for p in settings.home.rglob("*") if p.is_file()]
    assert [p for p in files if password.encode() in p.read_bytes()] == []
    assert [line for line in shown if password in line] == []
    log = (settings.home / "logs" / "vantage.log").read_text()
    for name in read_procfile():
        assert re.search(rf"^\d{{4}}-\d\d-\d\d [\d:]+ system +\| {name} stopped", log, re.M)


def test_nobody_else_can_use_what_lies_in_the_home(stack: Stack) -> None:
    home = stack.settings.home
    modes = {path: oct(stat.S_IMODE(path.stat().st_mode)) for path in (home, *home.rglob("*"))}
    open_to_others = {path: mode for path, mode in modes.items() if not mode.endswith("00")}
    assert open_to_others == {}
    assert {modes[path] for path in modes if path.is_file()} == {"0o600"}


def test_a_second_start_on_the_same_home_is_refused(stack: Stack) -> None:
    with pytest.raises(StateError, match=f"process {stack.pid}"):
        run_up(stack.settings)
    assert discover_redis_url(stack.settings) is not None


def test_a_killed_worker_is_started_again(stack: Stack, eventually: Eventually) -> None:
    settings = stack.settings
    before = _pids(settings)
    pool = psutil.Process(before["extract"]).children()
    assert len(pool) == 2
    cache = _cache_pid(settings)
    for pid in (before["extract"], before["group"], cache):
        os.kill(pid, signal.SIGKILL)
    assert _left(pool) == [], "the pool outlived its worker"

    def replaced() -> bool:
        now = _pids(settings)
        return all(now.get(kind) not in (None, before[kind]) for kind in ("extract", "group"))

    eventually(replaced)
    eventually(lambda: running_cache_server(settings.home) and _cache_pid(settings) != cache)
    after = _pids(settings)
    assert {kind: after[kind] for kind in ("reduce", "query")} == {
        kind: before[kind] for kind in ("reduce", "query")
    }
    console = (settings.home / "logs" / "up.log").read_text()
    assert "group ended with signal 9; starting it again" in console


def _cache_pid(settings: Settings) -> int:
    return int(json.loads((settings.home / "run" / "cache.json").read_text())["pid"])


def test_killing_it_all_leaves_no_process_and_the_next_start_works(settings: Settings) -> None:
    with Stack(settings) as stack:
        family = _family(stack.pid)
        # Redis, two processes of the extraction pool, and the lines, each a process.
        assert len(family) >= 3 + len(read_procfile())
        stack.kill()
        assert _left(family) == []
    with Stack(settings) as again:
        assert again.ready is not None
        _kill_redis_and_see_the_end(again)


def _kill_redis_and_see_the_end(stack: Stack) -> None:
    family = _family(stack.pid)
    record = json.loads((stack.settings.home / "run" / "redis.json").read_text())
    os.kill(record["pid"], signal.SIGKILL)
    assert stack.wait(600) == 1
    assert _left(family) == []
    assert "our Redis has ended" in (stack.settings.home / "logs" / "up.log").read_text()


def test_flower_answers_on_the_loopback_address_alone_and_changes_nothing(stack: Stack) -> None:
    assert stack.ready is not None
    url = stack.ready.flower_url
    assert url is not None
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    assert ask_flower(stack.settings, "/api/tasks") == "{}"
    for path, options, code in (
        ("/api/worker/shutdown/query@x", {"method": "POST"}, 403),
        ("/api/tasks", {"host": "photographs.example"}, 403),
        ("/", {"host": f"photographs.example:{url.rpartition(':')[2]}"}, 403),
        ("/metrics", {"host": "127.0.0.1.nip.io"}, 403),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask_flower(stack.settings, path, **options)
        assert caught.value.code == code
        caught.value.close()
    for host in ("localhost:1", "[::1]:5555", "192.0.2.1"):
        assert ask_flower(stack.settings, "/api/tasks", host=host) == "{}"
    for path in ("/", "/api/tasks", "/metrics"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(url + path, timeout=600)
        assert caught.value.code == 401, "there is no password"
        assert "Access-Control-Allow-Origin" not in caught.value.headers
        caught.value.close()


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One with a password, a Redis of others and few groups, started beside a folder of our name.

    The folder is not imported. Flower's port is in use.
    """
    folder = tmp_path_factory.mktemp("special")
    (folder / "workers").mkdir()
    (folder / "workers" / "__init__.py").write_text("raise SystemExit('theirs')")
    variables = {"VANTAGE_HOME": str(folder / "home")}
    with (
        EmbeddedRedis(folder) as server,
        pytest.MonkeyPatch.context() as patch,
        socket.socket() as taken,
    ):
        patch.chdir(folder)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = dataclasses.replace(
            Settings.from_env(variables),
            redis_url=server.url,
            serve_groups=(2, 3),
            flower_port=taken.getsockname()[1],
            flower_password="to, the: point",
        )
        with Stack(settings) as started:
            yield started
            started.stop()
        assert server.pid is not None, "a Redis that is not ours was stopped"


def test_flower_with_a_password_refuses_others(special: Stack) -> None:
    assert special.ready is not None
    url = f"{special.ready.flower_url}/api/tasks"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, timeout=600)
    assert caught.value.code == 401
    caught.value.close()
    token = base64.b64encode(b"vantage:to, the: point").decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {token}"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        assert answer.status == 200
    shown = [" ".join(p.cmdline()) for p in _family(special.pid)]
    assert [line for line in shown if "to, the" in line] == []


def test_flower_takes_a_free_port_where_its_own_is_in_use(special: Stack) -> None:
    assert special.ready is not None
    wanted = special.settings.flower_port
    url = special.ready.flower_url
    assert url is not None
    assert not url.endswith(f":{wanted}")
    console = (special.settings.home / "logs" / "up.log").read_text()
    assert f"Flower: {url} (port {wanted} is not free; user vantage" in console


def test_only_the_given_groups_are_served_with_a_redis_of_others(special: Stack) -> None:
    engine = create_metadata_engine(special.settings.database_url)
    with session_scope(engine, write=False) as session:
        assert set(groups_served(session, time.time(), 600)) == {2, 3}
    engine.dispose()
    assert not (special.settings.home / "run" / "redis.json").exists()


def test_a_redis_of_others_without_a_cache_means_that_none_is_shared(special: Stack) -> None:
    told = "o shared cache: VANTAGE_REDIS_URL is given without VANTAGE_CACHE_URL"
    assert told in (special.settings.home / "logs" / "up.log").read_text()
    assert told in read_cache_status(special.settings, []).sentences()[0]
    assert [one.ok for one in checks(special.settings) if told in one.detail] == [True]
    assert not (special.settings.home / "run" / "cache.json").exists()


def test_flower_open_to_the_network_needs_a_password(settings: Settings) -> None:
    settings = dataclasses.replace(settings, flower_address="0.0.0.0")
    with pytest.raises(ConfigError, match="VANTAGE_FLOWER_PASSWORD"):
        run_up(settings)


def test_a_wrong_password_is_found_before_anything_starts(
    settings: Settings, redis_url: str
) -> None:
    (password,) = RedisAddress.parse(redis_url).passwords
    said: list[str] = []
    settings = dataclasses.replace(settings, redis_url=redis_url.replace(password, "another"))
    with pytest.raises(ConfigError, match=r"VANTAGE_REDIS_URL .* refuses its user or password"):
        run_up(settings, say=said.append)
    assert said == []
    assert not Path(settings.home / "vantage.sqlite").exists()


@long_only
def test_honcho_by_itself_runs_the_same_lines(
    settings: Settings, redis_url: str, eventually: Eventually
) -> None:
    settings = dataclasses.replace(settings, redis_url=redis_url)
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine)
    engine.dispose()
    roles = {"extract", "group", "reduce", "query", "supervise"}
    printed = settings.home / "console"
    with printed.open("wb") as console:
        process = subprocess.Popen(
            [sys.executable, "-m", "honcho", "-f", str(find_procfile()), "start"],
            env=environment(settings) | {"PYTHON": sys.executable},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    try:
        eventually(lambda: process.poll() is not None or set(_pids(settings)) == roles)
        assert process.poll() is None, printed.read_text()
        family = _family(process.pid)
        process.send_signal(signal.SIGINT)
        process.wait(600)
        assert _left(family) == [], printed.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_starting_ends_in_order(
    settings: Settings, signum: signal.Signals, eventually: Eventually
) -> None:
    with (settings.home / "console").open("wb") as console:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.up"],
            env=environment(settings),
            cwd=settings.home,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    try:
        eventually(lambda: discover_redis_url(settings))
        family = _family(process.pid)
        process.send_signal(signum)
        assert process.wait(timeout=600) == 0
    finally:
        process.kill()
        process.wait()
    assert _left(family) == []
    assert "Traceback" not in Path(settings.home / "console").read_text()
