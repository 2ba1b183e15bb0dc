"""Stage ``extract``: the features of one batch of images (map)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from pipeline.config import ExtractorConfig
from pipeline.containers import (
    UNREADABLE_CODES,
    Container,
    check_container,
    container_arrays,
    container_key,
)
from pipeline.errors import ImageReadError
from pipeline.extraction.features import DECODED_AT_ONCE, BatchItem, Extracted, extract_some
from pipeline.files import hash_bytes, read_location
from pipeline.indexing.unfinished_batch import UnfinishedBatch
from pipeline.metadata import collections, extraction, parts, reextraction
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import (
    BatchImage,
    BatchOutcome,
    ContainerInfo,
    ExtractedImage,
    FailedImage,
    JobRecord,
    PartRecord,
    PartResult,
)
from pipeline.records import ImageFailure
from pipeline.resources import Resources

SLICE_S = 60.0
"""Seconds after which a batch saves its progress and yields."""

SLICE_SHARE = 0.3
"""The same as a share of the broker's visibility timeout."""

FRESH_SHARE = 0.1
"""Share of a slice that may have passed when an image is tried for the second time."""

DEADLY = 2
"""An image fails when so many processes have died while working on it: one may have died of
something else."""

_KILLS_WORKER = (
    "kills-worker",
    "the process that worked on it died or ran out of time, twice; look at the file, then index "
    "its folder again",
)


def plan(resources: Resources, job: JobRecord) -> None:
    """Plan a part for each batch of pending images, including those that came meanwhile."""
    with session_scope(resources.engine) as session:
        extraction.plan_extraction(session, job.id, resources.settings.batch_size)


def plan_anew(resources: Resources, job: JobRecord) -> None:
    """Plan a part for each batch of all images, where a rebuild has another extractor."""
    if reextraction.is_reextraction(job):
        with session_scope(resources.engine) as session:
            reextraction.plan_reextraction(session, job.id, resources.settings.batch_size)


def extract(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Extract the features of one batch of images (map).

    After `SLICE_S` it saves its progress and returns ``more``: the next call continues there. So no
    message is held longer than the broker waits for its acknowledgement, however slow the images
    are.
    """
    with session_scope(resources.engine, write=False) as session:
        batch = extraction.batch_images(session, part.args["images"])
        config, _ = collections.job_settings(session, job)
    names = [image.sha256 for image in batch]
    key = container_key(config, names)
    checksum = resources.storage.find(key, check_container)
    if checksum is not None:
        container = resources.container(key, checksum)
        known = _outcome(batch, config, container, key, checksum, fresh=False)
        return _record(resources, job, part, known)
    extractor = resources.extractor(config)
    found = UnfinishedBatch(resources.storage, job.id, config, names, extractor.dimensions)
    if not _go_on(resources, part, batch, config, found):
        with session_scope(resources.engine) as session:
            parts.yield_part(session, part)
        return {"more": True}
    # Failures may pass, but names are for ever: name the container by the images that could be
    # read.
    failures = [found.failures[name] for name in names if name in found.failures]
    unreadable = [f for f in failures if f.code in UNREADABLE_CODES]
    lasting = [f for f in failures if f.code not in UNREADABLE_CODES]
    done = [(name, found.done[name]) for name in names if name in found.done]
    key = container_key(config, [name for name, _ in done] + [f.sha256 for f in lasting])
    arrays, meta = container_arrays(done, lasting, extractor.dimensions)
    checksum = resources.storage.write_arrays(key, arrays, meta)
    container = resources.container(key, checksum)
    container = replace(container, failures=(*container.failures, *unreadable))
    fresh = _outcome(batch, config, container, key, checksum, fresh=True)
    result = _record(resources, job, part, fresh)
    found.drop()
    return result


def _go_on(
    resources: Resources,
    part: PartRecord,
    batch: Sequence[BatchImage],
    config: ExtractorConfig,
    found: UnfinishedBatch,
) -> bool:
    """Work on a batch for at most a slice; return whether it is done.

    Images that exceeded their limits come last, each at the beginning of a slice, so that they have
    all their time.
    """
    started = time.monotonic()
    slice_s = min(SLICE_S, SLICE_SHARE * resources.settings.visibility_timeout_s)
    deadly = {image_id for image_id in part.suspects if part.suspects.count(image_id) >= DEADLY}
    killers = [ImageFailure(i.sha256, *_KILLS_WORKER) for i in batch if i.id in deadly]
    found.add(Extracted(0, [], killers, []))
    extractor, limits = resources.extractor(config), resources.settings.image_limits
    # If an image may kill the process, the one noted last must be the one being read.
    at_once = DECODED_AT_ONCE if part.starts <= 1 else 1
    known = {*found.done, *found.failures, *found.exceeded}
    items = [_batch_item(resources, part, image) for image in batch if image.sha256 not in known]
    worked = bool(items)
    while items:
        extracted = extract_some(items, extractor, config, limits, at_once)
        found.add(extracted)
        items = items[extracted.count :]
        if items and time.monotonic() - started > slice_s:
            found.keep()
            return False
    for image in [image for image in batch if image.sha256 in found.exceeded]:
        if worked and time.monotonic() - started > slice_s * FRESH_SHARE:
            found.keep()
            return False
        item = _batch_item(resources, part, image)
        found.add(extract_some([item], extractor, config, limits, alone=True))
        worked = True
    return True


def _outcome(
    batch: Sequence[BatchImage],
    config: ExtractorConfig,
    container: Container,
    key: str,
    checksum: str,
    *,
    fresh: bool,
) -> BatchOutcome:
    """Return the outcome of a batch whose container exists; *fresh*: extracted just now."""
    ids = {image.sha256: image.id for image in batch}
    rows = [
        ExtractedImage(ids[sha256], row, features.width, features.height, len(features))
        for row, (sha256, features) in enumerate(container.items())
        if sha256 in ids
    ]
    failures = [
        FailedImage(ids[f.sha256], f.code, f.sentence)
        for f in container.failures
        if f.sha256 in ids
    ]
    info = ContainerInfo(
        key=key,
        checksum=checksum,
        image_count=len(rows),
        descriptor_count=container.descriptor_count,
        failed_count=len(failures),
    )
    summary = {
        "images": len(rows),
        "failed": len(failures),
        "descriptors": container.descriptor_count,
        "extracted": len(rows) if fresh else 0,
    }
    return BatchOutcome(rows, failures, info if rows else None, config.config_id(), summary)


def _record(
    resources: Resources, job: JobRecord, part: PartRecord, found: BatchOutcome
) -> PartResult:
    """Write the rows of a batch in one transaction."""
    anew = reextraction.is_reextraction(job)
    record = reextraction.record_reextraction if anew else extraction.record_extraction
    with session_scope(resources.engine) as session:
        if record(session, job.id, part.number, found).state == "done":
            return dict(found.result)
        parts.yield_part(session, part)
    return {"more": True}


def _batch_item(resources: Resources, part: PartRecord, image: BatchImage) -> BatchItem:
    """Return how to read an image: from its first readable location.

    In a part that was begun before, whose process may have died of an image, each image is noted
    before it is read.
    """
    limits, roots = resources.settings.image_limits, resources.settings.image_roots

    def read() -> bytes:
        if part.starts > 1:
            with session_scope(resources.engine) as session:
                parts.suspect_image(session, part, image.id)
        error: ImageReadError | None = None
        for path, root in image.locations:
            try:
                data = read_location(path, root, limits=limits, roots=roots)
            except ImageReadError as exc:
                error = error or exc
                continue
            if hash_bytes(data) == image.sha256:
                return data
            sentence = "the file changed after it was listed; index its folder again"
            error = error or ImageReadError(path, "changed", sentence)
        raise error or ImageReadError(image.sha256, "vanished", "no location of it is left")

    return image.sha256, read, image.locations[0][0] if image.locations else image.sha256
