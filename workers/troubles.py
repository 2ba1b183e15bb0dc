"""What a worker could not read of the store: told with its heartbeat until it is over."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from pipeline.errors import VantageError

__all__ = ["Troubles"]

MOST_TOLD = 20
"""Sentences in a heartbeat."""


class Troubles:
    """Sentences about files, by collection and group; safe in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[tuple[str, int | None], tuple[str, ...]] = {}
        self._searches: dict[tuple[str, int], tuple[str, ...]] = {}

    def note(self, collection: str, group: int | None, errors: Sequence[VantageError]) -> None:
        """Replace what is known of the files of a group; None: of the collection's tree."""
        said = tuple(str(error).replace("COLLECTION", collection) for error in errors)
        with self._lock:
            self._files[collection, group] = said

    def knows(self, collection: str, group: int | None) -> bool:
        """Say whether there was trouble with the files of a group."""
        with self._lock:
            return bool(self._files.get((collection, group)))

    def note_search(self, collection: str, group: int, said: Sequence[str]) -> None:
        """Replace what a search of a group met; if it could read everything, all is well."""
        sentences = tuple(text.replace("COLLECTION", collection) for text in said)
        with self._lock:
            self._searches[collection, group] = sentences
            if not sentences:
                self._files[collection, group] = ()

    def met_by_searches(self) -> list[tuple[str, int]]:
        """Return the collections and groups in which a search met trouble."""
        with self._lock:
            return [place for place, said in self._searches.items() if said]

    def told(self) -> list[str]:
        """Return the sentences, each once."""
        with self._lock:
            every = [*self._files.values(), *self._searches.values()]
        return list(dict.fromkeys(text for said in every for text in said))[:MOST_TOLD]
