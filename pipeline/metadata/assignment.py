"""Bookkeeping of assignments: which rows of which containers a job indexes."""

from __future__ import annotations

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from pipeline.job_kinds import kind_of
from pipeline.metadata import ledger, reextraction
from pipeline.metadata.containers import collection_containers, job_containers
from pipeline.metadata.jobs import get_job
from pipeline.metadata.models import Image
from pipeline.metadata.parts import create_parts, parts
from pipeline.metadata.records import ContainerRecord, JobRecord
from pipeline.metadata.sql import chunks, lock_collection


def containers_to_index(session: Session, job: JobRecord) -> list[ContainerRecord]:
    """Return the containers that a job indexes, by key: its own, or all if it is a rebuild."""
    if reextraction.is_reextraction(job):
        return reextraction.extracted_containers(session, job.id)
    if kind_of(job.kind).replaces:
        return collection_containers(session, job.collection_id)
    return job_containers(session, job.id)


def plan_assignment(session: Session, job_id: str, tree_id: int) -> None:
    """Plan the ``assign`` parts of a job, unless it has some: one for each container.

    ``args`` of a part: ``{"container": id, "tree": id, "rows": [[row, image id], ...]}``. Planning
    fixes the rows: a part that runs twice gives the same file, whatever is removed or comes back
    meanwhile, and the publication knows which images are in the segments.
    """
    job = get_job(session, job_id)
    lock_collection(session, job.collection_id)
    if parts(session, job_id, "assign"):
        return
    if not kind_of(job.kind).replaces:
        ledger.leave_out_removed(session, job_id)
    rows = _rows_found(session, job) if reextraction.is_reextraction(job) else _rows(session, job)
    args = [{"container": i, "tree": tree_id, "rows": its_rows} for i, its_rows in rows.items()]
    create_parts(session, job_id, "assign", args)


def _rows(session: Session, job: JobRecord) -> dict[int, list[list[int]]]:
    """Return the rows of the images that a job indexes, by container."""
    rows: dict[int, list[list[int]]] = {one.id: [] for one in containers_to_index(session, job)}
    for some in chunks(sorted(rows)):
        for row in session.execute(
            select(Image.container_id, Image.row_in_container, Image.id)
            .where(Image.container_id.in_(some), Image.state != "removed")
            .order_by(Image.row_in_container)
        ):
            rows[row.container_id].append([row.row_in_container, row.id])
    return rows


def _rows_found(session: Session, job: JobRecord) -> dict[int, list[list[int]]]:
    """Return the same of a rebuild with another extractor."""
    found = reextraction.extracted_images(session, job.id)
    gone = and_(Image.collection_id == job.collection_id, Image.state == "removed")
    removed = set(session.scalars(select(Image.id).where(gone)))
    return {
        one.id: [[image.row, image.id] for image in found[one.id] if image.id not in removed]
        for one in containers_to_index(session, job)
    }


def assigned_images(session: Session, job_id: str) -> dict[int, list[int]]:
    """Return the images of a job's assignment, by container."""
    return {
        part.args["container"]: [image_id for _, image_id in part.args["rows"]]
        for part in parts(session, job_id, "assign")
    }
