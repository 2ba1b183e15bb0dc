"""Feature containers: the files with the features of batches of images."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row, exists, select, update
from sqlalchemy.orm import Session

from pipeline.errors import UnknownNameError
from pipeline.metadata import ledger
from pipeline.metadata.jobs import get_job
from pipeline.metadata.models import Container, Image, Job, table
from pipeline.metadata.records import ContainerInfo, ContainerRecord, ContainerState, JobRecord
from pipeline.metadata.sql import changed_rows, chunks, insert_into, lock_collection


def put_container(
    session: Session,
    job: JobRecord,
    container: ContainerInfo,
    *,
    owns: bool,
    state: ContainerState = "ready",
) -> int:
    """Insert the container of a job, or take it over if images of this job are in it.

    In any case, the present file is recorded.

    Parameters
    ----------
    session : Session
    job : JobRecord
    container : ContainerInfo
    owns : bool
        A container that is known becomes this job's.
    state : {"ready", "rebuild"}

    Returns
    -------
    int
        Its id.
    """
    statement = insert_into(session, Container)
    values = {
        **asdict(container),
        "collection_id": job.collection_id,
        "job_id": job.id,
        "state": state,
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
            Container.collection_id == job.collection_id, Container.key == container.key
        )
    ).one()


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


def get_containers(session: Session, container_ids: Collection[int]) -> list[ContainerRecord]:
    """Return containers by their ids, by key."""
    found = [_containers(session, Container.id.in_(some)) for some in chunks(sorted(container_ids))]
    return sorted((one for some in found for one in some), key=lambda record: record.key)


def job_containers(session: Session, job_id: str) -> list[ContainerRecord]:
    """Return the containers that a job made or adopted, by key.

    Those without an image are left out: their features were of another extractor.
    """
    used = exists().where(Image.container_id == Container.id)
    return _containers(session, Container.job_id == job_id, used)


def collection_containers(session: Session, collection_id: int) -> list[ContainerRecord]:
    """Return the containers that a rebuild reads, by key: indexed ones with an image to keep."""
    kept = exists().where(Image.container_id == Container.id, Image.state != "removed")
    return _containers(
        session,
        Container.collection_id == collection_id,
        Container.state == "indexed",
        kept,
    )


def adopt_containers(session: Session, job_id: str) -> int:
    """Give a job the unpublished containers of ended jobs of its collection.

    Otherwise their extracted images would never be indexed.

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
            exists().where(Image.container_id == Container.id),
        )
        .values(job_id=job_id),
    )


def give_up_containers(session: Session, job: JobRecord, container_ids: Sequence[int]) -> None:
    """Let a job extract the images of its containers again, because the files are lost."""
    if container_ids:
        lock_collection(session, job.collection_id)
        ledger.lose_features(session, container_ids, job.id)


def correct_checksum(session: Session, container_id: int, checksum: str) -> None:
    """Note the SHA-256 of the file that a container has now."""
    mine = table(Container).c.id == container_id
    session.execute(update(table(Container)).where(mine).values(checksum=checksum))


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
