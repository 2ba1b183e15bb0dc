"""What a rebuild with another extractor finds is kept in its parts until it is published.

Until then images and index are those of the former extractor, with which searches and index jobs go
on. An image that failed with one extractor may have features with the other.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from pipeline.job_kinds import kind_of
from pipeline.metadata import ledger
from pipeline.metadata.collections import get_collection_by_id, set_settings
from pipeline.metadata.containers import get_containers, put_container
from pipeline.metadata.extraction import append_batches
from pipeline.metadata.jobs import add_counters, get_job
from pipeline.metadata.models import Image
from pipeline.metadata.parts import finish_part, get_part, parts
from pipeline.metadata.records import (
    BatchOutcome,
    ContainerRecord,
    ExtractedImage,
    FailedImage,
    JobRecord,
    PartRecord,
)
from pipeline.metadata.sql import lock_collection


def is_reextraction(job: JobRecord) -> bool:
    """Tell whether a job is a rebuild with another extractor."""
    return kind_of(job.kind).replaces and job.params.extracts


def plan_reextraction(session: Session, job_id: str, batch_size: int) -> None:
    """Plan ``extract`` parts for the images of the collection that no part has yet.

    Images that wait for their features are left to their index jobs. Removed images are skipped.
    """
    job = get_job(session, job_id)
    lock_collection(session, job.collection_id)
    taken = {i for part in parts(session, job_id, "extract") for i in part.args["images"]}
    known = select(Image.sha256, Image.id).where(
        Image.collection_id == job.collection_id,
        Image.state.in_(["extracted", "indexed", "failed"]),
    )
    found = sorted((row.sha256, row.id) for row in session.execute(known))
    open_ids = [image_id for _, image_id in found if image_id not in taken]
    append_batches(session, job_id, open_ids, batch_size)


def record_reextraction(
    session: Session, job_id: str, number: int, found: BatchOutcome
) -> PartRecord:
    """Record the outcome of an ``extract`` part in the part alone; a finished part does not change.

    Raises
    ------
    UnknownNameError
        The job or the part is gone.
    """
    job = get_job(session, job_id)
    lock_collection(session, job.collection_id)
    part = get_part(session, job_id, "extract", number)
    if part.state == "done":
        return part
    container_id = None
    if found.container is not None:
        container_id = put_container(session, job, found.container, owns=False, state="rebuild")
    counts = {"images_extracted": len(found.images), "images_failed": len(found.failures)}
    add_counters(session, job_id, **counts)
    result = {
        **found.result,
        "container": container_id,
        "rows": [list(image) for image in found.images],
        "failures": [list(failure) for failure in found.failures],
    }
    return finish_part(session, job_id, "extract", number, result, failed=len(found.failures))


def extracted_images(session: Session, job_id: str) -> dict[int, list[ExtractedImage]]:
    """Return the images with features, by container."""
    found: dict[int, list[ExtractedImage]] = {}
    for part in parts(session, job_id, "extract"):
        result = part.result or {}
        if result["rows"]:
            rows = [ExtractedImage(*row) for row in result["rows"]]
            found.setdefault(result["container"], []).extend(rows)
    return found


def failed_images(session: Session, job_id: str) -> list[FailedImage]:
    """Return the images without features."""
    planned = parts(session, job_id, "extract")
    return [FailedImage(*one) for part in planned for one in (part.result or {})["failures"]]


def extracted_containers(session: Session, job_id: str) -> list[ContainerRecord]:
    """Return the containers with the features, by key."""
    return get_containers(session, extracted_images(session, job_id))


def fit_to_publish(session: Session, job: JobRecord, image_ids: Collection[int]) -> bool:
    """Tell whether segments of these images can replace all segments of the collection.

    They cannot if an image that the rebuild has not seen was indexed, or came back, meanwhile.
    """
    seen = {*image_ids, *(failure.id for failure in failed_images(session, job.id))}
    return ledger.all_indexed_among(session, job.collection_id, seen)


def take_over(session: Session, job: JobRecord, image_ids: Collection[int]) -> None:
    """Give the collection its new extractor, and its images their new features and failures.

    All other images wait for their features again.

    Parameters
    ----------
    session : Session
    job : JobRecord
    image_ids : collection of int
        Images with rows in the new segments.
    """
    collection = get_collection_by_id(session, job.collection_id)
    settings = job.params.settings(collection.extractor, collection.index)
    set_settings(session, collection.id, *settings)
    ledger.forget_features(session, collection.id)
    wanted = set(image_ids)
    for container_id, rows in extracted_images(session, job.id).items():
        ledger.record_features(session, container_id, [row for row in rows if row.id in wanted])
    ledger.record_failures(session, failed_images(session, job.id))
