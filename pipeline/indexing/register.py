"""Stage ``register``: walk folders, hash files, write their rows."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple

from pipeline.containers import UNREADABLE_CODES, check_container
from pipeline.errors import ImageReadError, StateError, VantageError
from pipeline.files import hash_bytes, read_file
from pipeline.indexing.gone import SeenFiles, mark_gone_files
from pipeline.indexing.unfinished_batch import remove_stale
from pipeline.job_params import IndexParams
from pipeline.metadata import containers, images, jobs, parts
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import (
    ContainerRecord,
    FileStamp,
    JobRecord,
    PartRecord,
    PartResult,
    RegisterCounts,
    RegisteredFile,
)
from pipeline.resources import Resources
from pipeline.walk import FoundFile, walk

_log = logging.getLogger(__name__)

REGISTER_CHUNK = 500
"""Files registered in one transaction: few enough for the progress to move."""

YOUNG_NS = 2_000_000_000
"""A file whose status changed so shortly before it was read is read again next time: a further
change may carry the same time, as file systems count in up to two seconds."""

REGISTER_SLICE_S = 60.0
"""Seconds after which a registration yields."""

SLICE_SHARE = 0.3
"""The same as a share of the broker's visibility timeout."""


def register(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Walk, hash and register the files of a job's paths; mark what is gone.

    After `REGISTER_SLICE_S` it stops and returns ``more``: the next call quickly skips what is
    registered. So no message is held longer than the broker waits for its acknowledgement.
    """
    settings = resources.settings
    until = time.monotonic() + min(REGISTER_SLICE_S, SLICE_SHARE * settings.visibility_timeout_s)
    found = walk(job.params_as(IndexParams).paths, roots=settings.image_roots)
    totals: dict[str, int] = {}
    seen = SeenFiles()
    for chunk in _chunks(found, REGISTER_CHUNK):
        counts, read = _register_chunk(resources, job, chunk)
        for name, value in counts.items():
            totals[name] = totals.get(name, 0) + value
        for file in chunk:
            seen.add(file)
        with session_scope(resources.engine) as session:
            # Set, not added: a slice that runs again counts the same files.
            jobs.set_counters(session, job.id, **totals, skipped=found.skipped)
            jobs.touch_job(session, job.id)
        # Every slice tries unreadable files again: they are no progress.
        if time.monotonic() > until and read > 0:
            return {"more": True}
    remove_stale(resources.storage)
    emptied = job.params_as(IndexParams).emptied
    missing = mark_gone_files(resources, job.collection_id, found.folders, seen, emptied)
    totals |= {"files_gone": missing.gone, "files_unknown": missing.unknown}
    _adopt_containers(resources, job)
    with session_scope(resources.engine) as session:
        jobs.set_counters(session, job.id, **totals, skipped=found.skipped)
        parts.finish_part(session, job.id, "register", part.number, totals)
    return totals


def _adopt_containers(resources: Resources, job: JobRecord) -> None:
    """Take over what ended jobs have extracted; images of lost containers are extracted again."""
    with session_scope(resources.engine) as session:
        containers.adopt_containers(session, job.id)
        adopted = containers.job_containers(session, job.id)
    lost = [one for one in adopted if not _is_sound(resources, one)]
    for one in lost:
        _log.warning("the container %s is lost or damaged; its images are read again", one.key)
    with session_scope(resources.engine) as session:
        containers.give_up_containers(session, job, [one.id for one in lost])


def _is_sound(resources: Resources, container: ContainerRecord) -> bool:
    return resources.storage.sound_checksum(container.key, check_container) is not None


def _chunks(files: Iterator[FoundFile], size: int) -> Iterator[list[FoundFile]]:
    """Split an iterator into lists."""
    chunk: list[FoundFile] = []
    for file in files:
        chunk.append(file)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _register_chunk(
    resources: Resources, job: JobRecord, chunk: list[FoundFile]
) -> tuple[dict[str, int], int]:
    """Hash new and changed files, and register all; return counts, and how many were read."""
    with session_scope(resources.engine, write=False) as session:
        if jobs.get_job(session, job.id).finished:
            raise StateError(f"job {job.id} was ended while its files were listed")
        known = images.unchanged_paths(
            session,
            job.collection_id,
            [(file.path, _stamp(file)) for file in chunk if file.error is None],
            retry_codes=UNREADABLE_CODES,
            job_id=job.id,
            reread=job.params_as(IndexParams).reread,
        )
    fresh = [_registered(resources, file) for file in chunk if file.path not in known]
    counts = _record(resources, job, fresh)
    read = len(fresh) - counts.unreadable
    return {
        "files_seen": len(chunk),
        "files_unchanged": len(known) + counts.unchanged_locations,
        "images_new": counts.new_images + counts.returned_images,
        "images_known": counts.known_images,
        "unreadable": counts.unreadable,
        "images_removed": counts.removed_images,
    }, read


def _record(
    resources: Resources, job: JobRecord, files: Sequence[RegisteredFile]
) -> RegisterCounts:
    """Register files. One that the database refuses is recorded as unreadable, the others as usual.

    Raises
    ------
    VantageError
        It is not about a file: the database does not answer, the collection is gone.
    """
    try:
        with session_scope(resources.engine) as session:
            return images.register_files(
                session, job.collection_id, job.id, files, retry_codes=UNREADABLE_CODES
            )
    except VantageError:
        raise
    except Exception as exc:
        if len(files) > 1:
            middle = len(files) // 2
            halves = [_record(resources, job, half) for half in (files[:middle], files[middle:])]
            return RegisterCounts(*map(sum, zip(*map(astuple, halves), strict=True)))
        (file,) = files
        _log.warning("%s cannot be recorded: %s", ascii(file.path), exc)
        if file.sha256 is None:
            return RegisterCounts(unreadable=1)
        sentence = f"what the file system says of it cannot be recorded ({type(exc).__name__})"
        refused = RegisteredFile(
            file.path, file.root, None, FileStamp(0, 0), "read-error", sentence
        )
        return _record(resources, job, [refused])


def _registered(resources: Resources, file: FoundFile) -> RegisteredFile:
    """Hash a file; an unreadable one is recorded, not raised."""
    error = file.error
    sha256 = None
    began_ns = time.time_ns()
    if error is None:
        try:
            limits, roots = resources.settings.image_limits, resources.settings.image_roots
            sha256 = hash_bytes(read_file(file.path, limits=limits, roots=roots))
        except ImageReadError as exc:
            error = exc
    stamp = _stamp(file)
    if file.ctime_ns > began_ns - YOUNG_NS:
        stamp = stamp._replace(ctime_ns=None)
    return RegisteredFile(
        file.path,
        file.root,
        sha256,
        stamp,
        error.code if error else None,
        error.sentence if error else None,
    )


def _stamp(file: FoundFile) -> FileStamp:
    """Return what the file system says of a file."""
    return FileStamp(file.size, file.mtime_ns, file.ctime_ns, file.inode)
