"""Several installations on one Redis: who is there, and which database has an identity."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sites import make_settings
from typer.testing import CliRunner

from pipeline.config import Settings
from pipeline.errors import InputError, OtherInstallationError, StateError
from pipeline.metadata.engine import create_metadata_engine, session_scope, upgrade
from pipeline.metadata.heartbeats import live_workers
from pipeline.metadata.installation import read_installation, renew
from vantage import Collection
from workers.celery_settings import NO_INSTALLATION, identity_of_environment
from workers.cli.app import app
from workers.context import Context
from workers.doctor import checks
from workers.environment import environment
from workers.heartbeat import Heartbeat
from workers.keys import INSTALLATIONS
from workers.leftovers import forget
from workers.presence import announce, announce_first, installations, require_claim


@pytest.fixture
def one(tmp_path: Path, redis_url: str) -> Settings:
    return _made(tmp_path / "one", redis_url)


def _made(home: Path, redis_url: str) -> Settings:
    settings = make_settings(home, redis_url=redis_url, host=f"host of {home.name}")
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine)
    engine.dispose()
    return settings


@pytest.fixture
def context(one: Settings) -> Iterator[Context]:
    made = Context(one)
    yield made
    made.close()


def _clone(settings: Settings, home: Path) -> Settings:
    """Copy a database so that nothing of the files tells it from the original."""
    home.mkdir()
    shutil.copy(settings.home / "vantage.sqlite", home)
    clone = make_settings(home, redis_url=settings.redis_url, host="clone")
    engine = create_metadata_engine(clone.database_url)
    with session_scope(engine) as session:
        before = renew(session).former
        session.connection().exec_driver_sql("UPDATE installation SET identity = ?", (before,))
    engine.dispose()
    return clone


def test_all_installations_of_a_redis_are_known(
    one: Settings, context: Context, tmp_path: Path, redis_url: str
) -> None:
    other = Context(_made(tmp_path / "two", redis_url))
    announce(context)
    announce(other)
    long_ago = {"database": "x", "host": "y", "protocol": 1, "seen_at": 0}
    context.redis.hset(INSTALLATIONS, "old", json.dumps(long_ago))
    context.redis.hset(INSTALLATIONS, "broken", "{")
    found = installations(context.redis)
    assert [(p.identity, p.host) for p in found] == [
        (other.identity, "host of two"),
        (context.identity, "host of one"),
    ]
    shown = [check.detail for check in checks(one) if check.name == "sharing"]
    assert [line.split(",")[0] for line in shown] == ["another installation", "this installation"]
    assert str(tmp_path / "two" / "vantage.sqlite") in shown[0]
    other.close()


def test_who_was_not_seen_for_a_day_is_forgotten_at_a_start(context: Context) -> None:
    for name, seen_at in (("old", 0.0), ("another", time.time() - 3600)):
        values = {"database": "x", "host": "y", "protocol": 1, "seen_at": seen_at}
        context.redis.hset(INSTALLATIONS, name, json.dumps(values))
    context.redis.hset(INSTALLATIONS, "broken", "{")
    announce_first(context, print)
    kept = {bytes(name).decode() for name in context.redis.hkeys(INSTALLATIONS)}
    assert kept == {"another", context.identity}


def test_what_an_installation_that_is_gone_has_left_is_removed_on_request(
    one: Settings, context: Context, tmp_path: Path, redis_url: str
) -> None:
    other = Context(_made(tmp_path / "gone", redis_url))
    for each in (context, other):
        each.app.send_task("job.register", args=("j", 1), queue="reduce")
        announce(each)
    gone, address = other.identity, context.redis_address
    context.redis.set("vantage:of another program", 1)
    with pytest.raises(StateError, match="runs, or did so"):
        forget(address, gone, context.identity)
    with pytest.raises(StateError, match="this installation"):
        forget(address, context.identity, context.identity)
    for wrong in ("*", "", gone.upper() + "x", f"{gone}:*", "probe"):
        with pytest.raises(InputError, match="no identity"):
            forget(address, wrong, context.identity)
    context.redis.delete(other.keys.claim)
    context.redis.hdel(INSTALLATIONS, gone)
    (shown,) = [check for check in checks(one) if "nobody has seen" in check.detail]
    assert shown.ok
    assert f"--forget {gone}" in shown.remedy
    command = CliRunner().invoke(app, ["doctor", "--forget", gone], env=environment(one))
    assert command.exit_code == 0, command.output
    assert f"keys of the installation {gone} were removed" in command.output
    names: set[str] = set()
    for database in (address.broker_db, address.broker_db + 1):
        with address.client(database) as client:
            names |= {bytes(name).decode() for name in client.keys("*")}
    assert not any(gone in name for name in names)
    assert context.keys.queue("reduce") in names
    assert "vantage:of another program" in names
    assert forget(address, gone, context.identity) == 0
    other.close()


def test_two_databases_with_one_identity_cannot_both_use_a_redis(
    one: Settings, context: Context, tmp_path: Path
) -> None:
    announce(context)
    clone = Context(_clone(one, tmp_path / "clone"))
    assert clone.identity == context.identity
    for refused in (announce, require_claim):
        with pytest.raises(OtherInstallationError, match="--new-identity") as caught:
            refused(clone)
        assert str(one.home / "vantage.sqlite") in str(caught.value)
    with pytest.raises(OtherInstallationError, match="--new-identity"):
        Collection.open("c", clone.settings)
    (check,) = [check for check in checks(clone.settings) if check.name == "sharing"]
    assert not check.ok
    # The original goes on; when it is gone, the claim lapses.
    announce(context)
    require_claim(context)
    assert 0 < context.redis.ttl(context.keys.claim) <= 30
    context.redis.delete(context.keys.claim)
    announce(clone)
    clone.close()


def test_the_claim_from_before_a_machine_was_started_again_is_waited_for(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, told = context.keys.claim, list[str]()
    context.redis.set(claim, "the boot before", ex=30)
    monkeypatch.setattr("workers.presence.time.sleep", lambda _: context.redis.delete(claim))
    announce_first(context, told.append)
    require_claim(context)
    assert len(told) == 1
    assert context.identity in told[0]


def test_a_claim_that_somebody_renews_is_refused_at_a_start(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, told = context.keys.claim, list[str]()
    context.redis.set(claim, "another machine", ex=20)
    monkeypatch.setattr("workers.presence.time.sleep", lambda _: context.redis.expire(claim, 30))
    with pytest.raises(OtherInstallationError, match="--new-identity"):
        announce_first(context, told.append)
    assert len(told) == 1


def test_of_many_that_start_at_once_one_database_gets_the_identity(
    one: Settings, tmp_path: Path
) -> None:
    all_of_them = [one, *(_clone(one, tmp_path / f"clone {n}") for n in range(5))]
    barrier = threading.Barrier(len(all_of_them))
    refused: list[str] = []

    def start(settings: Settings) -> None:
        context = Context(settings)
        barrier.wait(600)
        try:
            announce(context)
        except OtherInstallationError:
            refused.append(settings.host)
        context.close()

    threads = [threading.Thread(target=start, args=(settings,)) for settings in all_of_them]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert len(refused) == len(all_of_them) - 1


def test_a_client_of_a_copied_home_does_not_talk_to_the_workers_of_the_original(
    one: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(one.home, tmp_path / "copy")
    copy = make_settings(tmp_path / "copy", redis_url=one.redis_url)
    with pytest.raises(OtherInstallationError, match="is a copy"):
        Collection.open("c", copy)
    # A worker that is started by itself has no queues until the copy is started.
    monkeypatch.delenv("VANTAGE_INSTALLATION", raising=False)
    assert identity_of_environment(copy) == NO_INSTALLATION
    with Collection.open("c", copy, local=True) as collection:
        assert len(collection) == 0


def test_a_heartbeat_for_a_database_that_was_replaced_ends_the_process(
    one: Settings, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr("workers.up_watch.UpWatch.end_process", lambda _, why: ended.append(why))
    beating = Heartbeat(one, context.identity, "group@a", ("group",), (0,))
    beating._write()
    assert ended == []
    with session_scope(context.engine) as session:
        renew(session, force=True)
    beating._write()
    assert len(ended) == 1
    assert "start Vantage again" in ended[0]

    def names() -> list[str]:
        with session_scope(context.engine, write=False) as session:
            return [worker.name for worker in live_workers(session, time.time(), 600)]

    # A row of this name in the other database is that of another process.
    beating.stop()
    assert (len(ended), names()) == (1, ["group@a"])
    with session_scope(context.engine, write=False) as session:
        identity = read_installation(session).identity
    Heartbeat(one, identity, "group@a", ("group",), (0,)).stop()
    assert names() == []


def test_queues_and_keys_of_two_installations_have_no_name_in_common(
    context: Context, tmp_path: Path, redis_url: str
) -> None:
    other = Context(_made(tmp_path / "two", redis_url))
    for each in (context, other):
        each.app.send_task("job.register", args=("j", 1), queue="reduce")
        announce(each)
    address = context.redis_address
    for database in (address.broker_db, address.broker_db + 1):
        with address.client(database) as client:
            names = {bytes(name).decode() for name in client.keys("*")}
        names -= {INSTALLATIONS, "vantage:probe"}
        assert {name.split(":")[1] for name in names} == {context.identity, other.identity}
        assert {name.split(":")[0] for name in names} == {"vantage"}
    other.close()


def test_settings_in_the_environment_name_the_installation(
    one: Settings, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VANTAGE_INSTALLATION", raising=False)
    assert identity_of_environment(one) == context.identity
    nowhere = dataclasses.replace(one, database_url=f"sqlite:///{one.home}/none.sqlite")
    assert identity_of_environment(nowhere) == NO_INSTALLATION
    assert not (one.home / "none.sqlite").exists()
    monkeypatch.setenv("VANTAGE_INSTALLATION", "told")
    assert identity_of_environment(nowhere) == "told"
