"""Base of `vantage.Collection` and `vantage.FusedCollection`: holds a driver until `close`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Self

from pipeline.config import Settings
from pipeline.driver import Driver
from pipeline.errors import InputError, StateError
from pipeline.resources import Resources

__all__ = ["Opened", "open_driver", "require_name"]


class Opened:
    """One collection or several, with the driver that does their work.

    A context manager. A forked child opens its own driver.
    """

    def __init__(self, names: Sequence[str], driver: Driver) -> None:
        self._names = tuple(names)
        self._pid = os.getpid()
        self._open_driver: Driver | None = driver
        self._whose = (
            f"{'in this process' if driver.local else 'by workers'}, "
            f"home {str(driver.resources.settings.home)!r}"
        )

    def close(self) -> None:
        """End the threads and close the connections; may be called twice."""
        driver, self._open_driver = self._open_driver, None
        if driver is not None and self._pid == os.getpid():
            driver.close()

    def __enter__(self) -> Self:
        _ = self._driver  # what was closed says so
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        names = self._names[0] if len(self._names) == 1 else list(self._names)
        closed = ", closed" if self._open_driver is None else ""
        return f"<{type(self).__name__} {names!r} {self._whose}{closed}>"

    @property
    def local(self) -> bool:
        """Whether this process does the work."""
        return self._driver.local

    @property
    def resources(self) -> Resources:
        """Database, store, and the files that are open."""
        return self._driver.resources

    @property
    def _driver(self) -> Driver:
        """The driver; `StateError` after `close`."""
        if self._open_driver is None:
            names = " and ".join(map(repr, self._names))
            raise StateError(f"{type(self).__name__} {names} was closed; open it again")
        if self._pid != os.getpid():
            self._open_driver.reopen()
            self._pid = os.getpid()
        return self._open_driver


def open_driver(settings: Settings, *, local: bool, threads: int | None = None) -> Driver:
    """Return a driver: this process, or workers.

    Raises
    ------
    InputError
        No such number of threads, or threads were given although workers do the work.
    BrokerUnavailableError, SchemaVersionError
        The workers cannot be reached, or the database must be migrated first.
    """
    if threads is not None and (type(threads) is not int or threads < 1):
        raise InputError(f"threads is {threads!r}: it must be a whole number above 0")
    if local:
        from pipeline.local import LocalDriver

        return LocalDriver(settings, threads)
    if threads is not None:
        raise InputError(f"threads={threads} is for local=True; workers have threads of their own")
    from workers.driver import WorkersDriver

    return WorkersDriver(settings)


def require_name(name: object) -> None:
    """Raise unless a collection is named by text."""
    if not isinstance(name, str):
        raise InputError(f"a collection is named by a str, not by {name!r}")
