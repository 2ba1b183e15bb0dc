"""Bookkeeping of extraction: which images to extract, the outcome, the containers."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from pipeline.metadata import ledger
from pipeline.metadata.containers import put_container
from pipeline.metadata.jobs import add_counters, get_job
from pipeline.metadata.models import Image, Location
from pipeline.metadata.parts import append_parts, finish_part, get_part, unfinished_parts
from pipeline.metadata.records import BatchImage, BatchOutcome, PartRecord
from pipeline.metadata.sql import chunks, lock_collection


def plan_extraction(session: Session, job_id: str, batch_size: int) -> int:
    """Plan the ``extract`` parts of a job.

    They cover all pending images of the collection, except those of other unfinished jobs. Existing
    parts stay, so that finished work is kept. If an image of a finished part is pending again, the
    collection has a new extractor: it gets another part.

    Parameters
    ----------
    batch_size : int
        Images of a part.

    Returns
    -------
    int
        Parts of the stage.
    """
    job = get_job(session, job_id)
    lock_collection(session, job.collection_id)
    mine = ledger.claim_pending(session, job.collection_id, job_id)
    planned = unfinished_parts(session, job_id, "extract")
    taken = {image_id for part in planned for image_id in part.args["images"]}
    open_ids = [image_id for _, image_id in mine if image_id not in taken]
    return len(append_batches(session, job_id, open_ids, batch_size))


def append_batches(
    session: Session, job_id: str, image_ids: Sequence[int], batch_size: int
) -> list[PartRecord]:
    """Plan ``extract`` parts for more images, whose ``args`` are ``{"images": [ids]}``.

    Parameters
    ----------
    image_ids : sequence of int
        By SHA-256 of the images: then the same images make the same containers.
    batch_size : int
        Images of a part.
    """
    batches = list(chunks(image_ids, batch_size))
    args = [{"images": list(batch)} for batch in batches]
    sizes = [len(batch) for batch in batches]
    return append_parts(session, job_id, "extract", args, images=sizes)


def batch_images(session: Session, image_ids: Sequence[int]) -> list[BatchImage]:
    """Return images with their locations, by SHA-256.

    An image without a location was removed after the planning: nothing to do for it. Locations that
    were readable when last seen come first.
    """
    hashes: dict[int, str] = {}
    locations: dict[int, list[tuple[bool, str, str]]] = {}
    for some in chunks(image_ids):
        for image_id, sha256 in session.execute(
            select(Image.id, Image.sha256).where(Image.id.in_(some))
        ):
            hashes[image_id] = sha256
        for row in session.execute(
            select(Location.image_id, Location.path, Location.root, Location.error_code).where(
                Location.image_id.in_(some)
            )
        ):
            place = (row.error_code is not None, row.path, row.root)
            locations.setdefault(row.image_id, []).append(place)
    return [
        BatchImage(
            image_id,
            sha256,
            tuple((path, root) for _, path, root in sorted(locations.get(image_id, []))),
        )
        for image_id, sha256 in sorted(hashes.items(), key=lambda item: item[1])
    ]


def record_extraction(
    session: Session, job_id: str, number: int, found: BatchOutcome
) -> PartRecord:
    """Record the outcome of an ``extract`` part, unless it is done already.

    Images that are no longer pending (another job has extracted them meanwhile) stay as they are.

    Returns
    -------
    PartRecord
        Not done where the collection has got another extractor meanwhile: extract once more.

    Raises
    ------
    UnknownNameError
        The job or the part is gone.
    """
    job = get_job(session, job_id)
    collection = lock_collection(session, job.collection_id)
    part = get_part(session, job_id, "extract", number)
    if part.state == "done" or found.extractor_id != collection.extractor_id:
        return part
    ids = [*(image.id for image in found.images), *(failure.id for failure in found.failures)]
    waiting = ledger.waiting_images(session, ids)
    extracted = [image for image in found.images if image.id in waiting]
    failed = [failure for failure in found.failures if failure.id in waiting]
    if found.container is not None:
        container_id = put_container(session, job, found.container, owns=bool(extracted))
        ledger.record_features(session, container_id, extracted)
    ledger.record_failures(session, failed)
    add_counters(session, job_id, images_extracted=len(extracted), images_failed=len(failed))
    return finish_part(session, job_id, "extract", number, found.result, failed=len(found.failures))
