"""The extraction's bookkeeping: which images to extract, what came of it, in which container."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, exists, select, update
from sqlalchemy.orm import Session

from pipeline.errors import UnknownNameError
from pipeline.kinds import kind_of
from pipeline.metadata import ledger
from pipeline.metadata.jobs import add_counters, get_job
from pipeline.metadata.models import Container, Image, Job, Location, table
from pipeline.metadata.parts import append_parts, create_parts, finish_part, get_part, parts
from pipeline.metadata.records import (
    BatchImage,
    ContainerInfo,
    ContainerRecord,
    JobRecord,
    PartRecord,
)
from pipeline.metadata.sql import changed_rows, chunks, insert_into, lock_collection


def plan_extraction(session: Session, job_id: str, batch_size: int) -> int:
    """Plan the ``extract`` parts of a job.

    All pending images of the collection are taken, except those of other unfinished jobs, sorted
    by SHA-256 and cut into batches. Parts that exist already stay, so that finished work is kept.
    ``args`` of a part: ``{"images": [ids]}``.

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
    planned = parts(session, job_id, "extract")
    taken = {image_id for part in planned for image_id in part.args["images"]}
    open_ids = [image_id for _, image_id in mine if image_id not in taken]
    batches = list(chunks(open_ids, batch_size))
    args = [{"images": list(batch)} for batch in batches]
    sizes = [len(batch) for batch in batches]
    return len(append_parts(session, job_id, "extract", args, images=sizes))


def batch_images(session: Session, image_ids: Sequence[int]) -> list[BatchImage]:
    """Return images with their locations, by SHA-256.

    An image without a location was removed since it was planned: nothing to do for it.
    Locations that were readable when last seen come first.
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
    session: Session,
    job_id: str,
    part_number: int,
    container: ContainerInfo | None,
    images: Sequence[tuple[int, int, int, int, int]],
    failures: Sequence[tuple[int, str, str]],
    result: Mapping[str, Any],
) -> PartRecord:
    """Note what came of an ``extract`` part; a part that is done already stays as it is.

    Images that are no longer waiting (another job has extracted them meanwhile) are left alone.

    Parameters
    ----------
    container : ContainerInfo or None
        The file with the features; None when no image had any.
    images : sequence of (image id, row in container, width, height, descriptor count)
    failures : sequence of (image id, code, sentence)
    result : mapping
        JSON-serialisable result of the part.

    Raises
    ------
    UnknownNameError
        The job or the part is gone.
    """
    job = get_job(session, job_id)
    lock_collection(session, job.collection_id)
    part = get_part(session, job_id, "extract", part_number)
    if part.state == "done":
        return part
    waiting = ledger.waiting_images(session, [i[0] for i in images] + [f[0] for f in failures])
    extracted = [image for image in images if image[0] in waiting]
    failed = [failure for failure in failures if failure[0] in waiting]
    if container is not None:
        container_id = _put_container(
            session, job.collection_id, job_id, container, len(failures), bool(extracted)
        )
        ledger.record_features(session, container_id, extracted)
    ledger.record_failures(session, failed)
    add_counters(session, job_id, images_extracted=len(extracted), images_failed=len(failed))
    return finish_part(session, job_id, "extract", part_number, result, failed=len(failures))


def _put_container(
    session: Session,
    collection_id: int,
    job_id: str,
    container: ContainerInfo,
    failed_count: int,
    owns: bool,
) -> int:
    """Insert the container, or take it over if images of this job are in it; return its id.

    Whoever has it: the file of now is the one that is noted.
    """
    statement = insert_into(session, Container)
    values = {
        "collection_id": collection_id,
        "key": container.key,
        "checksum": container.checksum,
        "image_count": container.image_count,
        "descriptor_count": container.descriptor_count,
        "failed_count": failed_count,
        "job_id": job_id,
        "state": "ready",
        "created_at": time.time(),
    }
    unique = ["collection_id", "key"]
    changed = [name for name in values if name not in unique] if owns else ["checksum"]
    changes = {name: statement.excluded[name] for name in changed}
    session.execute(
        statement.values(values).on_conflict_do_update(index_elements=unique, set_=changes)
    )
    return session.scalars(
        select(Container.id).where(
            Container.collection_id == collection_id, Container.key == container.key
        )
    ).one()


def adopt_containers(session: Session, job_id: str) -> int:
    """Give a job the unpublished containers of jobs of its collection that have ended.

    Their images are extracted, and would never be indexed otherwise.

    Returns
    -------
    int
        How many.
    """
    job = get_job(session, job_id)
    lock_collection(session, job.collection_id)
    unfinished = select(Job.id).where(Job.state.in_(["running", "paused"]))
    return changed_rows(
        session,
        update(table(Container))
        .where(
            Container.collection_id == job.collection_id,
            Container.state == "ready",
            Container.job_id.not_in(unfinished),
        )
        .values(job_id=job_id),
    )


def job_containers(session: Session, job_id: str) -> list[ContainerRecord]:
    """Return the containers that a job made or adopted, by key."""
    return _containers(session, Container.job_id == job_id)


def collection_containers(session: Session, collection_id: int) -> list[ContainerRecord]:
    """Return the containers that a rebuild reads, by key: indexed ones with an image to keep."""
    kept = exists().where(Image.container_id == Container.id, Image.state != "removed")
    return _containers(
        session,
        Container.collection_id == collection_id,
        Container.state == "indexed",
        kept,
    )


def containers_to_index(session: Session, job: JobRecord) -> list[ContainerRecord]:
    """Return the containers that a job indexes: its own, or of a rebuild all."""
    if kind_of(job.kind).replaces:
        return collection_containers(session, job.collection_id)
    return job_containers(session, job.id)


def get_container(session: Session, container_id: int) -> ContainerRecord:
    """Return a container.

    Raises
    ------
    UnknownNameError
        There is none (its collection was deleted).
    """
    found = _containers(session, Container.id == container_id)
    if not found:
        raise UnknownNameError("container id", str(container_id), [])
    return found[0]


def correct_checksum(session: Session, container_id: int, checksum: str) -> None:
    """Note the SHA-256 of the file that a container has now."""
    mine = table(Container).c.id == container_id
    session.execute(update(table(Container)).where(mine).values(checksum=checksum))


def plan_assignment(session: Session, job_id: str, tree_id: int) -> None:
    """Plan the ``assign`` parts of a job, unless it has some: one for each container.

    ``args`` of a part: ``{"container": id, "tree": id, "rows": [[row, image id], ...]}``. The rows
    are settled here: a part that runs twice gives the same file, whatever is removed or comes back
    between, and the publication knows which images are in the segments.
    """
    job = get_job(session, job_id)
    lock_collection(session, job.collection_id)
    if parts(session, job_id, "assign"):
        return
    if not kind_of(job.kind).replaces:
        ledger.leave_out_removed(session, job_id)
    containers = containers_to_index(session, job)
    rows: dict[int, list[list[int]]] = {container.id: [] for container in containers}
    for some in chunks(sorted(rows)):
        for row in session.execute(
            select(Image.container_id, Image.row_in_container, Image.id)
            .where(Image.container_id.in_(some), Image.state != "removed")
            .order_by(Image.row_in_container)
        ):
            rows[row.container_id].append([row.row_in_container, row.id])
    args = [{"container": i, "tree": tree_id, "rows": its_rows} for i, its_rows in rows.items()]
    create_parts(session, job_id, "assign", args)


def assigned_images(session: Session, job_id: str) -> dict[int, list[int]]:
    """Return the images that the parts of a job's assignment have, by container."""
    return {
        part.args["container"]: [image_id for _, image_id in part.args["rows"]]
        for part in parts(session, job_id, "assign")
    }


def _containers(session: Session, *conditions: Any) -> list[ContainerRecord]:
    """Return containers by key."""
    rows = session.execute(select(table(Container)).where(*conditions))
    return sorted((_record(row) for row in rows), key=lambda record: record.key)


def _record(row: Row[Any]) -> ContainerRecord:
    """Make the record of a row."""
    return ContainerRecord(
        id=row.id,
        collection_id=row.collection_id,
        key=row.key,
        checksum=row.checksum,
        image_count=row.image_count,
        descriptor_count=row.descriptor_count,
        failed_count=row.failed_count,
        job_id=row.job_id,
        state=row.state,
        created_at=row.created_at,
    )
