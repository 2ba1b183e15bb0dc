"""Searches by workers: their data in Redis, and how each always comes to an end.

A search is a pass over the index for one query image or a batch of them.

`workers.keys` names all of these data.

Modules that compute (numba, OpenCV) are imported where they are used, so that a process that only
watches searches stays small.

Scans never raise: their result may be an error. A late scan is sent again once; at the deadline the
answer is made from the scans that are there and says which groups are missing.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from redis import RedisError

from pipeline import errors
from pipeline.arrays import ArrayFile, arrays_to_bytes
from pipeline.columns import require, require_types
from pipeline.config import MAX_GROUPS
from pipeline.errors import (
    CorruptFileError,
    DatabaseUnavailableError,
    DeadlinePassedError,
    IndexNotBuiltError,
    OtherInstallationError,
    TransientError,
    VantageError,
)
from pipeline.metadata.engine import session_scope
from pipeline.metadata.heartbeats import groups_served
from pipeline.metadata.records import VersionRecord
from pipeline.metadata.sqlite import LOCKED, is_locked
from pipeline.records import LATE, SearchResult
from pipeline.request import SearchRequest
from workers.context import Context
from workers.keys import KEEP_S, PROTOCOL, keep_s
from workers.pace import note_pace
from workers.waiting_queries import forget_image, put_query, take_back
from workers.workflows import scan_task, search_canvas, task

if TYPE_CHECKING:
    from pipeline.retrieval.batch import Batch
    from pipeline.retrieval.blocks import GroupScan
    from pipeline.retrieval.pairs import Pairs

__all__ = [
    "Ticket",
    "begin",
    "fetch_results",
    "look_after",
    "pairs",
    "prepare",
    "rank",
    "request",
    "scan",
    "store_error",
    "tend",
    "tend_all",
]

_log = logging.getLogger(__name__)

MORE_TIME = (
    "search for fewer images at once, or give more time (--deadline, VANTAGE_SEARCH_DEADLINE_S)"
)

LOST = "Redis has lost this search with its data; search again"

RESEND_SHARE = 0.4
"""Share of the time to the deadline after which a late scan is sent again."""

LOOK_EVERY_S = 0.5
"""The longest time between two checks of a search by the supervisor, seconds."""


@dataclass(frozen=True)
class Ticket:
    """A search in flight.

    Attributes
    ----------
    id : str
    installation : str
        Identity of the installation; another one must not answer.
    version_id : int
    asked, missing : tuple of int
        Groups with a scan; groups without a live worker.
    sent_at, resend_at, deadline_at : float
        Unix seconds.
    resent : bool
        Whether late scans have been sent again.
    """

    id: str
    installation: str
    version_id: int
    asked: tuple[int, ...]
    missing: tuple[int, ...]
    sent_at: float
    resend_at: float
    deadline_at: float
    resent: bool = False

    def save(self, context: Context) -> None:
        """Write the ticket."""
        key, value = context.keys.ticket(self.id), json.dumps(asdict(self))
        context.redis.set(key, value, ex=keep_s(self.deadline_at))

    @classmethod
    def load(cls, context: Context, search_id: str) -> Ticket | None:
        """Read a ticket; None when the search was not begun or is long over.

        Raises
        ------
        CorruptFileError
            What Redis holds is no ticket of this search.
        OtherInstallationError
            It is a search of another installation.
        """
        key = context.keys.ticket(search_id)
        text = cast("bytes | None", context.redis.get(key))
        if text is None:
            return None
        values = _read_json(key, text)
        try:
            groups = {name: tuple(values[name]) for name in ("asked", "missing")}
            ticket = cls(**{**values, **groups})
        except (TypeError, KeyError) as exc:
            raise CorruptFileError(key, repr(exc)) from exc
        if not ticket._is_sound(search_id):
            raise CorruptFileError(key, "its values are not those of a search")
        if ticket.installation != context.identity:
            raise OtherInstallationError(
                f"search {search_id} is of installation {ticket.installation!r}, this is one of "
                f"{context.identity}: two databases use one identity; see `vantage doctor`"
            )
        return ticket

    def _is_sound(self, search_id: str) -> bool:
        """Say whether values that were read are those of a search."""
        times = (self.sent_at, self.resend_at, self.deadline_at)
        known = set(range(MAX_GROUPS))
        return (
            self.id == search_id
            and type(self.version_id) is int
            and all(type(group) is int for group in (*self.asked, *self.missing))
            and known >= {*self.asked, *self.missing}
            and all(type(at) in (int, float) and math.isfinite(at) for at in times)
            and type(self.resent) is bool
        )


def _read_json(key: str, text: bytes) -> dict[str, Any]:
    """Return an object that Redis holds under a key.

    Raises
    ------
    CorruptFileError
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise CorruptFileError(key, str(exc)) from exc
    if not isinstance(values, dict):
        raise CorruptFileError(key, "it is no object")
    return values


def begin(
    context: Context,
    search_id: str,
    version: VersionRecord,
    batch: Batch,
    deadline_at: float,
) -> Ticket:
    """Store a prepared batch and send its chord.

    Groups without a live worker get no scan; if no group has one, the answer is made at once.

    Raises
    ------
    DatabaseUnavailableError
        No worker is known to live, because nobody can write to the database.
    """
    from pipeline.searching import searched_groups

    now = time.time()
    timeout_s = context.settings.host_timeout_s
    with session_scope(context.engine, write=False) as session:
        served = groups_served(session, now, timeout_s, PROTOCOL)
    wanted = searched_groups(version, batch.plan)
    if wanted and not served and is_locked(context.engine):
        raise DatabaseUnavailableError(LOCKED)
    ticket = Ticket(
        id=search_id,
        installation=context.identity,
        version_id=version.id,
        asked=tuple(group for group in wanted if group in served),
        missing=tuple(group for group in wanted if group not in served),
        sent_at=now,
        resend_at=now + RESEND_SHARE * max(0.0, deadline_at - now),
        deadline_at=deadline_at,
    )
    arrays, meta = batch.to_arrays()
    blob = arrays_to_bytes(arrays, meta)
    context.redis.set(context.keys.batch(search_id), blob, ex=keep_s(deadline_at))
    ticket.save(context)
    if ticket.asked:
        expires_s = max(0.1, deadline_at - now)
        search_canvas(context.app, search_id, ticket.asked, expires_s).apply_async()
    else:
        rank(context, search_id)
    return ticket


def request(
    context: Context, search_id: str, collection: str, image: bytes, asked: SearchRequest
) -> None:
    """Leave a search to the workers: store the image's bytes and send ``retrieve.prepare``.

    From now on the supervisor watches the search, so nobody has to wait for it.

    Raises
    ------
    TooManyQueriesError
        Too many bytes of queries wait in Redis already.
    """
    deadline_s = asked.seconds(context.settings.search_deadline_s)
    deadline_at = time.time() + deadline_s
    wanted = {"collection": collection, "request": asked.to_dict(), "deadline_at": deadline_at}
    look_at = time.time() + RESEND_SHARE * deadline_s
    try:
        put_query(context, search_id, image, wanted, look_at)
        task(context.app, "retrieve.prepare", search_id, expires=deadline_s).apply_async()
    except BaseException:
        take_back(context, search_id)
        raise


def prepare(context: Context, search_id: str) -> dict[str, Any]:
    """Extract and plan an enqueued query and send its chord; an error becomes its result."""
    redis, keys = context.redis, context.keys
    image = cast("bytes | None", redis.get(keys.image(search_id)))
    text = cast("bytes | None", redis.get(keys.request(search_id)))
    if image is None or text is None or redis.exists(keys.result(search_id)):
        return {"error": "the search is over"}
    try:
        wanted = _read_json(keys.request(search_id), text)
        asked = SearchRequest.from_dict(wanted["request"])
        deadline_at = float(wanted["deadline_at"])
        prepared = _prepare(context, str(wanted["collection"]), image, asked)
        if isinstance(prepared, SearchResult):
            _store_result(context, search_id, {"results": [prepared.to_dict()]})
            return {"descriptors": 0}
        version, batch = prepared
        begin(context, search_id, version, batch, deadline_at)
        pipe = redis.pipeline(transaction=False)
        forget_image(context, pipe, search_id)
        pipe.execute()
    except Exception as exc:
        if not isinstance(exc, VantageError):
            _log.exception("search %s could not be prepared", search_id)
        store_error(context, search_id, _as_ours(exc))
        return {"error": str(exc)}
    return {"descriptors": len(batch.plan.codes), "plan": batch.plan.kind}


def _prepare(
    context: Context, collection: str, image: bytes, asked: SearchRequest
) -> tuple[VersionRecord, Batch] | SearchResult:
    """Extract and plan a query, or answer at once with the same file."""
    from pipeline.searching import only, prepare_query, search_unbuilt

    try:
        version = context.resources.current_version(collection)
    except IndexNotBuiltError:
        return only(search_unbuilt(context.resources, collection, [image]))
    prepared = prepare_query(context.resources, version, image, asked)
    return prepared if isinstance(prepared, SearchResult) else (version, prepared)


def _read_batch(context: Context, search_id: str, version: VersionRecord) -> Batch | None:
    """Return a search's batch; None when it is gone.

    Raises
    ------
    CorruptFileError
        What Redis holds is no batch for this version.
    """
    key = context.keys.batch(search_id)
    blob = cast("bytes | None", context.redis.get(key))
    if blob is None:
        return None
    from pipeline.retrieval.batch import Batch

    arrays = ArrayFile(blob, key)
    batch = Batch.from_arrays(arrays, arrays.meta)
    batch.plan.require_fit(arrays, version.tree.cells, version.index.dimensions)
    return batch


def scan(context: Context, search_id: str, group: int) -> dict[str, Any]:
    """Scan one group and store what was found, or the error, in Redis (map)."""
    began = time.time()
    key = context.keys.scan(search_id, group)
    redis = context.redis
    if redis.exists(key):
        return {"group": group, "known": True}
    try:
        ticket = Ticket.load(context, search_id)
    except (CorruptFileError, OtherInstallationError) as exc:
        return {"group": group, "error": str(exc)}
    if ticket is None:
        return {"group": group, "error": "the search is over"}
    try:
        from pipeline.searching import scan_group

        version = context.resources.version(ticket.version_id)
        batch = _read_batch(context, search_id, version)
        if batch is None:
            return {"group": group, "error": "the search is over"}
        found = scan_group(context.resources, version, group, batch, ticket.deadline_at)
        context.troubles.note_search(version.collection, group, found.lost)
    except Exception as exc:
        _log.exception("search %s: group %d could not be scanned", search_id, group)
        error = f"{type(exc).__name__}: {exc}"
        redis.set(key, arrays_to_bytes({}, {"error": error}), ex=keep_s(ticket.deadline_at))
        return {"group": group, "error": error}
    blob = arrays_to_bytes(found.block.to_arrays(), found.to_meta())
    pipe = redis.pipeline(transaction=False)
    pipe.set(key, blob, ex=keep_s(ticket.deadline_at))
    note_pace(context, pipe, version, (batch, found), began - ticket.sent_at)
    pipe.execute()
    return {"group": group, "matches": len(found.block.query)}


def rank(context: Context, search_id: str) -> list[SearchResult] | None:
    """Make the answers from the available scans (reduce); the first ones stay.

    Returns None when the search is not known any more.
    """
    from pipeline.searching import finish_batch

    known = _read_search(context, search_id)
    if known is None:
        return None
    ticket, version, batch = known
    scans, missing = _read_scans(context, ticket, len(batch.plan.codes))
    results = finish_batch(
        context.resources,
        version,
        batch,
        scans,
        {**dict.fromkeys(ticket.missing, "no live worker serves it"), **missing},
        {"scan": (time.time() - ticket.sent_at) * 1e3},
    )
    _store_result(context, search_id, {"results": [result.to_dict() for result in results]})
    return results


def pairs(
    context: Context, search_id: str, chosen: Sequence[str], number: int = 0
) -> dict[str, Pairs] | None:
    """Return the pairs of one query image with chosen images, from the available scans.

    Returns None when the search is not known any more.

    Parameters
    ----------
    context : Context
    search_id : str
    chosen : sequence of str
        SHA-256 of the images.
    number : int
        Of the query image in the search.
    """
    from pipeline.searching import find_pairs

    known = _read_search(context, search_id)
    if known is None:
        return None
    ticket, version, batch = known
    scans, _ = _read_scans(context, ticket, len(batch.plan.codes))
    return find_pairs(context.resources, version, batch, scans, chosen, number)


def _read_search(context: Context, search_id: str) -> tuple[Ticket, VersionRecord, Batch] | None:
    """Return a search's ticket, version and batch; None when it is not known any more."""
    ticket = Ticket.load(context, search_id)
    if ticket is None:
        return None
    version = context.resources.version(ticket.version_id)
    batch = _read_batch(context, search_id, version)
    return None if batch is None else (ticket, version, batch)


def _read_scans(
    context: Context, ticket: Ticket, queries: int
) -> tuple[list[GroupScan], dict[int, str]]:
    """Return the available scans for so many query descriptors, and why others are missing."""
    from pipeline.retrieval.blocks import GroupScan

    scans: list[GroupScan] = []
    missing: dict[int, str] = {}
    late = f"{LATE} ({ticket.deadline_at - ticket.sent_at:.1f} s); {MORE_TIME}"
    keys = [context.keys.scan(ticket.id, group) for group in ticket.asked]
    blobs = cast("list[bytes | None]", context.redis.mget(keys)) if keys else []
    for group, key, blob in zip(ticket.asked, keys, blobs, strict=True):
        if blob is None:
            missing[group] = late
            continue
        try:
            arrays = ArrayFile(blob, key)
            if "error" in arrays.meta:
                said = str(arrays.meta["error"])
                missing[group] = late if said.startswith(DeadlinePassedError.__name__) else said
                continue
            scan = GroupScan.from_arrays(arrays, arrays.meta, queries)
            require(scan.group == group, arrays, f"it is of group {scan.group}, not {group}")
            scans.append(scan)
        except CorruptFileError as exc:
            missing[group] = f"what it found cannot be read ({exc.args[1]})"
    return scans, missing


def _store_result(context: Context, search_id: str, value: dict[str, Any]) -> None:
    """Write a search's result, once, and wake its callers."""
    redis, keys = context.redis, context.keys
    if redis.set(keys.result(search_id), json.dumps(value, default=str), ex=KEEP_S, nx=True):
        pipe = redis.pipeline(transaction=False)
        pipe.rpush(keys.reply(search_id), b"1")
        pipe.expire(keys.reply(search_id), KEEP_S)
        pipe.zrem(keys.in_flight, search_id)
        forget_image(context, pipe, search_id)
        pipe.execute()


def store_error(context: Context, search_id: str, error: VantageError) -> None:
    """End a search with an error of ours, which `fetch_results` raises again."""
    value = {"error": {"type": type(error).__name__, "args": list(error.args)}}
    _store_result(context, search_id, value)


def fetch_results(context: Context, search_id: str) -> list[SearchResult] | None:
    """Return a search's answers, in the order of its images; None before they exist.

    Raises
    ------
    VantageError
        The search ended with it.
    """
    key = context.keys.result(search_id)
    text = cast("bytes | None", context.redis.get(key))
    if text is None:
        return None
    value = _read_json(key, text)
    try:
        if "error" not in value:
            return [_read_result(result, key) for result in value["results"]]
        error = _read_error(value["error"])
    except (TypeError, KeyError, AttributeError, ValueError) as exc:
        raise CorruptFileError(key, repr(exc)) from exc
    raise error


def _read_result(value: dict[str, Any], key: str) -> SearchResult:
    """Return an answer that Redis holds."""
    result = SearchResult.from_dict(value)
    for record in (result, *result.matches):
        require_types(record, key)
    return result


def _read_error(value: Mapping[str, Any]) -> VantageError:
    """Return an error of ours that `store_error` has written."""
    kind = getattr(errors, value["type"], None)
    if not (isinstance(kind, type) and issubclass(kind, VantageError)):
        return VantageError(*map(str, value["args"]))
    return kind(*value["args"])


def tend_all(context: Context) -> int:
    """Check the enqueued searches that are due; return how many.

    A search whose query was not prepared by its deadline ends with an error, and so does one that
    can no longer be answered (its collection was deleted).
    """
    redis, in_flight = context.redis, context.keys.in_flight
    now = time.time()
    due = cast("list[bytes]", redis.zrangebyscore(in_flight, "-inf", now))
    for member in due:
        search_id = member.decode("utf-8", "replace")
        next_look = look_after(context, search_id, now)
        if next_look is None:
            redis.zrem(in_flight, member)
        else:
            redis.zadd(in_flight, {member: next_look}, xx=True)
    return len(due)


def look_after(context: Context, search_id: str, now: float) -> float | None:
    """Tend one search that was left to the workers: its late parts, its ranking, its deadline.

    Called by the supervisor and by waiting callers.

    Returns
    -------
    float or None
        When to look again, in seconds since the epoch; None when the search is over.

    Raises
    ------
    TransientError, RedisError
        Database or Redis does not answer. Any other error is the outcome of the search.
    """
    try:
        return _look_after(context, search_id, now)
    except (TransientError, RedisError):
        raise
    except Exception as exc:
        # An error in one search must not stop watching the others.
        _log.exception("search %s failed", search_id)
        store_error(context, search_id, _as_ours(exc))
        return None


def _look_after(context: Context, search_id: str, now: float) -> float | None:
    redis, keys = context.redis, context.keys
    if redis.exists(keys.result(search_id)):
        return None
    ticket = Ticket.load(context, search_id)
    if ticket is not None:
        ticket = tend(context, ticket, now)
        next_step = ticket.deadline_at if ticket.resent else ticket.resend_at
        return min(max(now, next_step), now + LOOK_EVERY_S)
    text = cast("bytes | None", redis.get(keys.request(search_id)))
    if text is None:
        store_error(context, search_id, TransientError(LOST))
        return None
    wanted = _read_json(keys.request(search_id), text)
    deadline_at = float(wanted.get("deadline_at", 0.0))
    if now < deadline_at:
        return min(deadline_at, now + LOOK_EVERY_S)
    sentence = "the query was not prepared in time: no query worker is free or running"
    store_error(context, search_id, TransientError(sentence))
    return None


def _as_ours(error: Exception) -> VantageError:
    """Return an error that `fetch_results` can raise again."""
    if isinstance(error, VantageError):
        return error
    return VantageError(f"{type(error).__name__}: {error}")


def _unanswered(context: Context, ticket: Ticket) -> Sequence[int]:
    """Return the groups whose scan is missing."""
    pipe = context.redis.pipeline(transaction=False)
    for group in ticket.asked:
        pipe.exists(context.keys.scan(ticket.id, group))
    there = pipe.execute() if ticket.asked else []
    return [group for group, found in zip(ticket.asked, there, strict=True) if not found]


def tend(context: Context, ticket: Ticket, now: float) -> Ticket:
    """Do what is due for a running search: send late scans again, end it at the deadline.

    Called by waiting callers and by the supervisor, as often as they like.
    """
    late = _unanswered(context, ticket)
    if not late or now >= ticket.deadline_at:
        # Complete without an answer: the chord's ranking was lost or is about to run.
        if now >= ticket.resend_at:
            rank(context, ticket.id)
    elif now >= ticket.resend_at and not ticket.resent:
        expires_s = max(0.1, ticket.deadline_at - now)
        for group in late:
            scan_task(context.app, ticket.id, group, expires_s).apply_async()
        ticket = replace(ticket, resent=True)
        ticket.save(context)
    return ticket
