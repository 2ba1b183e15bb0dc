"""A Redis as an operator runs it, brought into the states in which it answers but refuses."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from workers.processes import die_with_parent, free_port, stop_process
from workers.redis_url import RedisAddress
from workers.server_programs import find_server

REFUSALS = {
    "a replica": "read only replica",
    "too few replicas": "Not enough good replicas",
    "no right to write": "no permissions",
    "a failed snapshot": "MISCONF",
    "full memory": "maxmemory",
    "loading": "loading",
    "another password": "uthenticat",
}
"""States, and a part of what Redis says in each."""

MORE_REFUSALS = (
    "a replica without a primary",
    "a script that does not end",
    "too many clients",
    "a removed user",
    "a queue of another type",
    "frozen",
    "no right to subscribe",
    "no right to run scripts",
    "no right to take a message",
)
"""Other states, tried in the long run of the tests."""

_GUARD_S = 600.0


class OperatorsRedis:
    """A server with everything allowed, on a TCP port, without persistence; a context manager.

    Parameters
    ----------
    folder : Path
        For its log and its snapshots.
    options : str
        More of the command line.
    password : str, optional
    """

    def __init__(self, folder: Path, *options: str, password: str | None = None) -> None:
        self._folder, self._options = folder, options
        if password is not None:
            self._options += ("--requirepass", password)
        self._process: subprocess.Popen[bytes] | None = None
        self._spoiled: list[bytes] = []
        self.port = free_port()
        login = "" if password is None else f":{password}@"
        self.url = f"redis://{login}127.0.0.1:{self.port}/0"
        self.client: Any = RedisAddress.parse(self.url).client(0, timeout_s=None)
        """Of the broker's database."""

    def start(self) -> None:
        """Start it, at the same port each time, and wait until it answers."""
        command = [str(find_server()), "--port", str(self.port), "--bind", "127.0.0.1"]
        with (self._folder / "operator.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--save", "", "--dir", str(self._folder), *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )
        self._wait(self._is_up)

    def kill(self) -> None:
        """End it abruptly."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> OperatorsRedis:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self.client.close()
        stop_process(self._process, 10)

    @contextlib.contextmanager
    def refusing(self, state: str) -> Iterator[None]:
        """Refuse, in one of the states of `REFUSALS`, until the block is left."""
        begin, end = {
            "a replica": (self._follow, self._lead),
            "too few replicas": (self._want_replicas, self._want_no_replicas),
            "no right to write": (self._forbid, self._allow),
            "a failed snapshot": (self._fail_to_save, self._forget_to_save),
            "full memory": (self._fill, self._drain),
            "loading": (self._load, self._have_loaded),
            "no right to send": (self._forbid_to_send, self._allow),
            "a replica without a primary": (self._follow_alone, self._lead),
            "a script that does not end": (self._run_for_ever, self._kill_script),
            "too many clients": (self._let_nobody_in, self._let_all_in),
            "a removed user": (self._remove_user, self._restore_user),
            "a queue of another type": (self._spoil_queues, self._mend_queues),
            "frozen": (self._freeze, self._thaw),
            "no right to subscribe": (lambda: self._forbid_one("psubscribe"), self._allow),
            "no right to run scripts": (lambda: self._forbid_one("evalsha"), self._allow),
            "no right to take a message": (lambda: self._forbid_one("brpop"), self._allow),
            "another password": (self._change_password, self._drop_password),
        }[state]
        begin()
        try:
            yield
        finally:
            end()

    def _follow(self) -> None:
        self.client.replicaof("127.0.0.1", "1")  # nothing listens there

    def _lead(self) -> None:
        self.client.replicaof("no", "one")

    def _want_replicas(self) -> None:
        self.client.config_set("min-replicas-to-write", 1)

    def _want_no_replicas(self) -> None:
        self.client.config_set("min-replicas-to-write", 0)

    def _forbid(self) -> None:
        self.client.execute_command("ACL", "SETUSER", "default", "-@write")

    def _forbid_to_send(self) -> None:
        self.client.execute_command("ACL", "SETUSER", "default", "-lpush")

    def _forbid_one(self, command: str) -> None:
        self.client.execute_command("ACL", "SETUSER", "default", f"-{command}")
        self._end_connections()

    def _end_connections(self) -> None:
        for kind in ("normal", "pubsub"):
            self.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    def _follow_alone(self) -> None:
        self.client.config_set("replica-serve-stale-data", "no")
        self._follow()

    def _run_for_ever(self) -> None:
        self.client.config_set("lua-time-limit", 1)
        endless = RedisAddress.parse(self.url).client(0, timeout_s=None)
        threading.Thread(target=self._endless, args=(endless,), daemon=True).start()

    @staticmethod
    def _endless(client: Any) -> None:
        with contextlib.suppress(redis.RedisError):  # it is killed
            client.eval("while true do end", 0)
        client.close()

    def _kill_script(self) -> None:
        self._wait(self._script_is_killed)

    def _script_is_killed(self) -> bool:
        try:
            return bool(self.client.script_kill())
        except redis.ResponseError:
            return False

    def _let_nobody_in(self) -> None:
        self.client.config_set("maxclients", 1)
        self._end_connections()

    def _let_all_in(self) -> None:
        self.client.config_set("maxclients", 1000)

    def _remove_user(self) -> None:
        self.client.execute_command("ACL", "SETUSER", "default", "off")
        self._end_connections()

    def _restore_user(self) -> None:
        self.client.execute_command("ACL", "SETUSER", "default", "on", "nopass")

    def _spoil_queues(self) -> None:
        """Put a text in the place of each queue from which a message was taken."""
        names = {name.removesuffix(b"_kombu.binding.extract") for name in self._names("*.extract")}
        self._spoiled = [prefix + b"extract" for prefix in names]
        for name in self._spoiled:
            self.client.set(name, "text")

    def _mend_queues(self) -> None:
        self.client.delete(*self._spoiled)

    def _names(self, pattern: str) -> list[bytes]:
        return [name for name in self.client.keys(pattern) if b"_kombu.binding." in name]

    def _freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def _thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _allow(self) -> None:
        self.client.execute_command("ACL", "SETUSER", "default", "+@all")

    def _fail_to_save(self) -> None:
        lost = self._folder / "a disk that fails"
        lost.mkdir()
        self.client.config_set("save", "3600 1")
        self.client.config_set("dir", str(lost))
        shutil.rmtree(lost)
        self.client.bgsave()
        self._wait(lambda: self.client.info()["rdb_last_bgsave_status"] == "err")

    def _forget_to_save(self) -> None:
        self.client.config_set("dir", str(self._folder))
        self.client.config_set("save", "")

    def _fill(self) -> None:
        self.client.config_set("maxmemory", 1)

    def _drain(self) -> None:
        self.client.config_set("maxmemory", 0)

    def _load(self) -> None:
        """Kill it and start it with a snapshot that it loads one key a second.

        While it loads, it answers after every 2 MB.
        """
        self.client.mset({f"large {number}": os.urandom(3 * 2**20) for number in range(30)})
        self.client.save()
        self.kill()
        self._options = ("--key-load-delay", "1000000")
        self.start()

    def _have_loaded(self) -> None:
        """Kill it; nothing else ends the loading."""
        self.kill()
        (self._folder / "dump.rdb").unlink()
        self._options = ()
        self.start()

    def _change_password(self) -> None:
        self.client.execute_command("ACL", "SETUSER", "default", "resetpass", ">changed")
        self.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def _drop_password(self) -> None:
        self.client.execute_command("ACL", "SETUSER", "default", "nopass")

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "operator.log").read_text()
        try:
            return bool(self.client.info())
        except redis.ConnectionError:
            return False

    @staticmethod
    def _wait(look: Any) -> None:
        deadline = time.monotonic() + _GUARD_S
        while not look():
            assert time.monotonic() < deadline
            time.sleep(0.02)
