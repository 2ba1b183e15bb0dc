"""The locations of an answer: which of them exist here and now.

An answer names first what exists, then what cannot be known, and last what is gone. Whoever shows
an answer checks it: the workers that made it may see other drives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TypeVar

from sqlalchemy import Engine

from pipeline.errors import VantageError
from pipeline.existence import identity, look, shows_removals
from pipeline.metadata.engine import session_scope
from pipeline.metadata.images import location_roots
from pipeline.records import LocationState, Match, SearchResult, in_order

__all__ = ["check_locations"]

LOOK_S = 0.05
"""Seconds that drives have to answer, all together: an answer must not wait for a dead one."""

Answer = TypeVar("Answer")


def check_locations(engine: Engine, results: Sequence[Answer]) -> list[Answer]:
    """Return answers with the state of each location; what is no answer is passed on.

    A location is ``present`` if there is such a file, ``gone`` if it was removed (`shows_removals`)
    or if an index job found it gone; otherwise ``unknown``: its drive is not mounted here, or did
    not answer within `LOOK_S`.

    Parameters
    ----------
    engine : sqlalchemy.Engine
        Knows which folders were indexed.
    results : sequence of SearchResult or anything
    """
    answers = [result for result in results if isinstance(result, SearchResult)]
    paths = {path for answer in answers for match in answer.matches for path in match.locations}
    if not paths:
        return list(results)
    found = look(sorted(paths), LOOK_S, identity)
    missing = [path for path in found if found[path] is None]
    names = {answer.collection for answer in answers}
    lost = _really_gone(engine, names, missing) if missing else frozenset()
    return [
        replace(result, matches=tuple(_checked(match, found, lost) for match in result.matches))
        if isinstance(result, SearchResult)
        else result
        for result in results
    ]


def _really_gone(
    engine: Engine, collections: Iterable[str], missing: Sequence[str]
) -> frozenset[str]:
    """Return the missing files that were removed: `shows_removals`."""
    try:
        with session_scope(engine, write=False) as session:
            roots = location_roots(session, collections, missing)
    except VantageError:
        return frozenset()
    # Of a file that was given itself, the folder.
    folders = {
        path: str(PurePath(root).parent) if root == path else root for path, root in roots.items()
    }

    def removed(path: str) -> bool:
        return shows_removals(str(PurePath(path).parent), folders[path])

    there = look(sorted(folders), LOOK_S, removed)
    return frozenset(path for path in folders if there.get(path))


def _checked(
    match: Match, found: Mapping[str, tuple[int, int] | None], lost: frozenset[str]
) -> Match:
    """Return a match with the state of its locations."""
    known = dict(zip(match.locations, match.location_states, strict=False))
    listed = {found.get(path) for path in match.locations if known.get(path) != "gone"}

    def state(path: str) -> LocationState:
        if known.get(path) == "gone":
            # The drive may ignore case, or how accents are composed: one file by two names.
            alias = path not in found or found[path] is None or found[path] in listed
            return "gone" if alias else "present"
        if path in lost:
            return "gone"
        return "present" if found.get(path) is not None else "unknown"

    locations, states = in_order({path: state(path) for path in match.locations})
    return replace(match, locations=locations, location_states=states)
