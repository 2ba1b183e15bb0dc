"""Stage ``register``: walk folders, hash files, write their rows."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pipeline.containers import UNREADABLE_CODES
from pipeline.errors import ImageReadError, StateError
from pipeline.files import hash_bytes, read_file
from pipeline.job_params import IndexParams
from pipeline.metadata import containers, images, jobs, parts
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import (
    JobRecord,
    PartRecord,
    PartResult,
    RegisteredFile,
)
from pipeline.resources import Resources
from pipeline.walk import FoundFile, walk

REGISTER_CHUNK = 500
"""Files registered in one transaction: few enough for the progress to move."""

REGISTER_SLICE_S = 60.0
"""Seconds after which a registration yields: well below the broker's visibility timeout."""


def register(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Walk, hash and register the files of a job's paths.

    After `REGISTER_SLICE_S` it stops and returns ``more``: the next call quickly skips what is
    registered. So no message is held longer than the broker waits for its acknowledgement.
    """
    until = time.monotonic() + REGISTER_SLICE_S
    found = walk(job.params_as(IndexParams).paths, roots=resources.settings.image_roots)
    totals: dict[str, int] = {}
    for chunk in _chunks(found, REGISTER_CHUNK):
        for name, value in _register_chunk(resources, job, chunk).items():
            totals[name] = totals.get(name, 0) + value
        with session_scope(resources.engine) as session:
            # Set, not added: a slice that runs again counts the same files.
            jobs.set_counters(session, job.id, **totals, skipped=found.skipped)
            jobs.touch_job(session, job.id)
        # Every slice tries unreadable files again: they are no progress.
        registered = totals["files_seen"] - totals["files_unchanged"] - totals["unreadable"]
        if time.monotonic() > until and registered > 0:
            return {"more": True}
    with session_scope(resources.engine) as session:
        containers.adopt_containers(session, job.id)
        jobs.set_counters(session, job.id, skipped=found.skipped)
        parts.finish_part(session, job.id, "register", part.number, totals)
    return totals


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


def _register_chunk(resources: Resources, job: JobRecord, chunk: list[FoundFile]) -> dict[str, int]:
    """Hash new and changed files, and register all."""
    with session_scope(resources.engine, write=False) as session:
        if jobs.get_job(session, job.id).finished:
            raise StateError(f"job {job.id} was ended while its files were listed")
        known = images.unchanged_paths(
            session,
            job.collection_id,
            [(file.path, file.size, file.mtime_ns) for file in chunk if file.error is None],
            retry_codes=UNREADABLE_CODES,
        )
    fresh = [_registered(resources, file) for file in chunk if file.path not in known]
    with session_scope(resources.engine) as session:
        counts = images.register_files(
            session, job.collection_id, job.id, fresh, retry_codes=UNREADABLE_CODES
        )
    return {
        "files_seen": len(chunk),
        "files_unchanged": len(known),
        "images_new": counts.new_images + counts.returned_images,
        "images_known": counts.known_images,
        "unreadable": counts.unreadable,
        "images_removed": counts.removed_images,
    }


def _registered(resources: Resources, file: FoundFile) -> RegisteredFile:
    """Hash a file; an unreadable one is recorded, not raised."""
    error = file.error
    sha256 = None
    if error is None:
        try:
            sha256 = hash_bytes(read_file(file.path, limits=resources.settings.image_limits))
        except ImageReadError as exc:
            error = exc
    return RegisteredFile(
        file.path,
        file.root,
        sha256,
        file.size,
        file.mtime_ns,
        error.code if error else None,
        error.sentence if error else None,
    )
