"""Data of groups on this host: local copies of what the group worker serves.

Before it takes messages, the worker fetches what it does not have yet. A file that the store has
lost, or has damaged, is left out, and a store that does not answer is not waited for: everything
else is served. A thread goes on from there. It compares all copies with their SHA-256, once, and
tries again to fetch what is missing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator, Sequence

from pipeline.errors import (
    CorruptFileError,
    IndexNotBuiltError,
    StorageUnavailableError,
    TransientError,
    UnknownNameError,
    VantageError,
)
from pipeline.metadata.collections import list_collections
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import VersionRecord
from workers.context import Context

__all__ = ["compare_copies", "fetch_copies", "sync_groups", "watch_copies"]

_log = logging.getLogger(__name__)
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_TROUBLED_WAIT_S = 2.0


def sync_groups(context: Context, groups: Collection[int]) -> int:
    """Fetch what can be fetched of the current segments of some groups; return how many are here.

    It waits for the database, which alone says what is needed.
    """
    wait = _FIRST_WAIT_S
    while True:
        try:
            return fetch_copies(context, groups)
        except TransientError as error:
            _log.warning("cannot fetch groups yet, trying again in %.1f s: %s", wait, error)
            time.sleep(wait)
            wait = min(_LONGEST_WAIT_S, wait * 2)


def fetch_copies(context: Context, groups: Collection[int]) -> int:
    """Try to fetch all current files of some groups; return how many segments are here.

    What could not be fetched is noted in `Context.troubles`.

    Raises
    ------
    DatabaseUnavailableError
    """
    fetching, here = _Fetching(context), 0
    for version in _versions(context):
        fetching.fetch(version, [(version.tree.key, version.tree.checksum)], None)
        for group in sorted(groups):
            files = [(one.key, one.checksum) for one in version.group_segments(group)]
            here += fetching.fetch(version, files, group)
    return here


class _Fetching:
    """One round of fetching; a store that does not answer is asked once only.

    It may let everybody wait for a minute, and there may be thousands of files.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._away: StorageUnavailableError | None = None

    def fetch(
        self, version: VersionRecord, files: Sequence[tuple[str, str]], group: int | None
    ) -> int:
        """Fetch some files of a version; return how many are here."""
        troubles, errors = self._context.troubles, []
        for key, checksum in files:
            error = self._fetch_one(key, checksum)
            if error is not None:
                if not troubles.knows(version.collection, group):
                    _log.error("not served: %s", error)
                errors.append(error)
        troubles.note(version.collection, group, errors)
        return len(files) - len(errors)

    def _fetch_one(self, key: str, checksum: str) -> VantageError | None:
        """Return why a file is not here."""
        storage = self._context.storage
        if self._away is not None and not storage.has_copy(key, checksum):
            return StorageUnavailableError(key, self._away.args[1])
        try:
            storage.fetch(key, checksum)
        except StorageUnavailableError as error:
            self._away = error
            return error
        except CorruptFileError as error:
            return error
        return None


def _versions(context: Context) -> Iterator[VersionRecord]:
    """Yield the current version of every collection."""
    with session_scope(context.engine, write=False) as session:
        names = [collection.name for collection in list_collections(session)]
    for name in names:
        try:
            yield context.resources.current_version(name)
        except (IndexNotBuiltError, UnknownNameError):  # nothing published yet; deleted meanwhile
            continue


def compare_copies(context: Context, groups: Collection[int], stop: threading.Event) -> int:
    """Read all local copies of some groups whole; drop those that are damaged; return how many."""
    damaged = 0
    for version in _versions(context):
        files = [(one.key, one.checksum) for one in version.segments if one.group_number in groups]
        for key, checksum in [(version.tree.key, version.tree.checksum), *files]:
            if stop.is_set():
                return damaged
            found = context.storage.compare_copy(key)
            if found not in (None, checksum):
                _log.error("the local copy of %r is damaged, it is fetched again", key)
                context.storage.drop_local(key)
                context.resources.forget_file(key)
                damaged += 1
    return damaged


def watch_copies(context: Context, groups: Collection[int], stop: threading.Event) -> None:
    """Compare all copies once; look again for what is missing until `stop` is set."""
    compared = False
    while not stop.is_set():
        try:
            if not compared:
                compare_copies(context, groups, stop)
                compared = True
            _look_again(context, groups)
        except TransientError as error:
            _log.warning("local copies could not be looked after: %s", error)
        except Exception:
            _log.exception("the watch over local copies goes on")
        stop.wait(_TROUBLED_WAIT_S if context.troubles.told() else _LONGEST_WAIT_S)


def _look_again(context: Context, groups: Collection[int]) -> None:
    """Fetch what is missing, and open again what a search could not open."""
    fetch_copies(context, groups)
    for name, group in context.troubles.met_by_searches():
        try:
            version = context.resources.current_version(name)
        except (IndexNotBuiltError, UnknownNameError):
            context.troubles.note_search(name, group, ())
            continue
        lost = context.resources.group_segments(version, group).lost
        context.troubles.note_search(name, group, [str(error) for error in lost.values()])
