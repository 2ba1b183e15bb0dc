r"""The ledger: the state of every image and all its transitions.

::

    pending -> extracted -> indexed
        \-> failed
    any of them -> removed -> its former state, or pending if its features are gone

The state says what should happen to an image; `pipeline.metadata.holdings` says which versions hold
it. A publication makes the two agree, in one transaction. Only this module writes to the tables
``images`` and ``holdings``. Callers must hold the collection's lock.

A rebuild with another extractor resets every image: to what it has found, or to pending.

An image without a container has no features to index: it is pending, has failed, or was removed and
its rows dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from sqlalchemy import and_, bindparam, case, or_, select, update
from sqlalchemy.orm import Session

from pipeline.metadata import holdings
from pipeline.metadata.holdings import HoldingChanges
from pipeline.metadata.models import Container, Image, Job, table
from pipeline.metadata.sql import changed_rows, chunks, insert_into

_WITHOUT_FEATURES = {"container_id": None, "row_in_container": None}
_WITHOUT_ERROR = {"error_code": None, "error_message": None}
_PENDING_AGAIN = {"state": "pending", **_WITHOUT_ERROR, **_WITHOUT_FEATURES}


def add_images(
    session: Session, collection_id: int, job_id: str | None, hashes: Sequence[str]
) -> None:
    """Insert pending images for new contents."""
    rows = [
        {"collection_id": collection_id, "sha256": sha256, "state": "pending", "job_id": job_id}
        for sha256 in hashes
    ]
    if rows:
        session.execute(insert_into(session, Image).on_conflict_do_nothing(), rows)


def try_again(session: Session, image_ids: Sequence[int], job_id: str | None) -> None:
    """Make failed images pending again."""
    _set_images(session, image_ids, {**_PENDING_AGAIN, "job_id": job_id})


def remove(session: Session, image_ids: Sequence[int]) -> int:
    """Remove images, so that the next version does not hold them; return how many were removed."""
    images = table(Image)
    return sum(
        changed_rows(
            session,
            update(images)
            .where(images.c.id.in_(some), images.c.state != "removed")
            .values(state="removed"),
        )
        for some in chunks(image_ids)
    )


def take_back(session: Session, image_ids: Sequence[int], job_id: str | None) -> None:
    """Restore removed images, according to what is left of their features.

    One with rows in the segments becomes indexed: the next version holds it again. One without rows
    and without a job that will index it becomes pending, for this job.
    """
    became = case(
        (holdings.has_rows(), "indexed"),
        (Image.error_code.is_not(None), "failed"),
        (Image.container_id.is_not(None), "extracted"),
        else_="pending",
    )
    by_state: dict[str, list[int]] = {}
    for some in chunks(image_ids):
        removed = and_(Image.id.in_(some), Image.state == "removed")
        for image_id, state in session.execute(select(Image.id, became).where(removed)):
            by_state.setdefault(state, []).append(image_id)
    for state, ids in by_state.items():
        values = {**_PENDING_AGAIN, "job_id": job_id} if state == "pending" else {"state": state}
        _set_images(session, ids, values)


def claim_pending(session: Session, collection_id: int, job_id: str) -> list[tuple[str, int]]:
    """Assign to a job the pending images that no unfinished job has.

    Returns
    -------
    list of (str, int)
        SHA-256 and id of all pending images that the job has, by SHA-256.
    """
    images, jobs = table(Image), table(Job)
    pending = and_(images.c.collection_id == collection_id, images.c.state == "pending")
    unfinished = select(jobs.c.id).where(jobs.c.state.in_(["running", "paused"]))
    free = or_(images.c.job_id.is_(None), images.c.job_id.not_in(unfinished))
    session.execute(update(images).where(pending, free).values(job_id=job_id))
    mine = select(images.c.sha256, images.c.id).where(pending, images.c.job_id == job_id)
    return sorted((row.sha256, row.id) for row in session.execute(mine))


def waits_for(session: Session, collection_id: int, job_id: str) -> bool:
    """Tell whether images of a job are pending, because they have lost their features."""
    # By the index of states: few images are pending, and a job has no index.
    pending = and_(Image.collection_id == collection_id, Image.state == "pending")
    mine = and_(pending, Image.job_id == job_id)
    return session.scalar(select(Image.id).where(mine).limit(1)) is not None


def waiting_images(session: Session, image_ids: Sequence[int]) -> set[int]:
    """Return which of the images still need features.

    That includes images removed meanwhile without features: they may come back.
    """
    waits = and_(Image.state.in_(["pending", "removed"]), Image.container_id.is_(None))
    return {
        image_id
        for some in chunks(image_ids)
        for image_id in session.scalars(select(Image.id).where(Image.id.in_(some), waits))
    }


def record_features(
    session: Session, container_id: int, extracted: Sequence[tuple[int, int, int, int, int]]
) -> None:
    """Record the containers of images' features; pending ones become extracted.

    Parameters
    ----------
    session : Session
    container_id : int
    extracted : sequence of (image id, row in container, width, height, descriptor count)
    """
    images = table(Image)
    found: dict[str, Any] = {
        "width": bindparam("new_width"),
        "height": bindparam("new_height"),
        "descriptor_count": bindparam("new_count"),
        "row_in_container": bindparam("new_row"),
        "container_id": container_id,
        **_WITHOUT_ERROR,
    }
    rows = [
        {"image": i, "new_row": row, "new_width": w, "new_height": h, "new_count": n}
        for i, row, w, h, n in sorted(extracted)
    ]
    if not rows:
        return
    session.execute(update(images).where(images.c.id == bindparam("image")).values(found), rows)
    _change_state(session, [row["image"] for row in rows], "pending", "extracted")


def record_failures(session: Session, failed: Sequence[tuple[int, str, str]]) -> None:
    """Record why images have no features: (image id, code, sentence).

    Images removed meanwhile stay as they are: that may be why they failed.
    """
    images = table(Image)
    why: dict[str, Any] = {
        "state": "failed",
        "error_code": bindparam("new_code"),
        "error_message": bindparam("new_message"),
    }
    rows = [
        {"image": image_id, "new_code": code, "new_message": message}
        for image_id, code, message in sorted(failed)
    ]
    if rows:
        pending = and_(images.c.id == bindparam("image"), images.c.state == "pending")
        session.execute(update(images).where(pending).values(why), rows)


def lose_features(session: Session, container_ids: Sequence[int], job_id: str) -> None:
    """Let images wait for their features again, because these containers are lost.

    Only a rebuild needs those of indexed images. Removed images get new ones if they come back.
    """
    images = table(Image)
    for some in chunks(container_ids):
        mine = images.c.container_id.in_(some)
        extracted, removed = (and_(mine, images.c.state == s) for s in ("extracted", "removed"))
        again = {**_PENDING_AGAIN, "job_id": job_id}
        session.execute(update(images).where(extracted).values(again))
        gone = and_(removed, ~holdings.has_rows())
        session.execute(update(images).where(gone).values(_WITHOUT_FEATURES))


def leave_out_removed(session: Session, job_id: str) -> None:
    """Take the features from removed images of a job's containers: its segments lack them.

    One that comes back is extracted again, by the job that registers it.
    """
    mine = select(Container.id).where(Container.job_id == job_id, Container.state == "ready")
    left_out = and_(Image.container_id.in_(mine), Image.state == "removed")
    session.execute(update(table(Image)).where(left_out).values(_WITHOUT_FEATURES))


def fit_to_replace(session: Session, collection_id: int, image_ids: Sequence[int]) -> bool:
    """Tell whether segments of only these images can replace all others.

    They cannot if they lack an image that was indexed or came back meanwhile, or if they have rows
    of an image that has lost its features.
    """
    images = set(image_ids)
    if not all_indexed_among(session, collection_id, images):
        return False
    given_up = (
        session.scalar(
            select(Image.id).where(Image.id.in_(some), Image.container_id.is_(None)).limit(1)
        )
        for some in chunks(sorted(images))
    )
    return not any(given_up)


def all_indexed_among(session: Session, collection_id: int, image_ids: Set[int]) -> bool:
    """Tell whether all indexed images of a collection are among some."""
    indexed = and_(Image.collection_id == collection_id, Image.state == "indexed")
    return image_ids >= set(session.scalars(select(Image.id).where(indexed)))


def forget_features(session: Session, collection_id: int) -> None:
    """Let all images of a collection wait for their features again; removed ones stay removed."""
    images = table(Image)
    became = case((images.c.state == "removed", "removed"), else_="pending")
    forgotten = {"state": became, **_WITHOUT_ERROR, **_WITHOUT_FEATURES}
    mine = images.c.collection_id == collection_id
    session.execute(update(images).where(mine).values(forgotten))


def fit_to_drop(session: Session, image_ids: Sequence[int]) -> bool:
    """Tell whether the rows of these images can be dropped: each is still removed, and has rows."""
    gone = and_(Image.state == "removed", holdings.has_rows())
    found = (
        session.scalars(select(Image.id).where(Image.id.in_(some), gone)).all()
        for some in chunks(image_ids)
    )
    return sum(map(len, found)) == len(image_ids)


def index_images(session: Session, container_ids: Sequence[int], image_ids: Sequence[int]) -> None:
    """Record that the segments of the next version have the rows of these images."""
    _change_state(session, sorted(image_ids), "extracted", "indexed")
    containers = table(Container)
    for some in chunks(sorted(container_ids)):
        session.execute(update(containers).where(containers.c.id.in_(some)).values(state="indexed"))


def enter_version(
    session: Session, collection_id: int, number: int, changed: HoldingChanges
) -> None:
    """Write which images a new version holds; those whose rows are gone lose their features."""
    holdings.apply_changes(session, collection_id, number, changed)
    _set_images(session, changed.ended, _WITHOUT_FEATURES)


def _change_state(session: Session, image_ids: Sequence[int], before: str, after: str) -> None:
    """Move images from one state to another; images in other states stay as they are."""
    images = table(Image)
    for some in chunks(image_ids):
        mine = and_(images.c.id.in_(some), images.c.state == before)
        session.execute(update(images).where(mine).values(state=after))


def _set_images(session: Session, image_ids: Sequence[int], values: Mapping[str, Any]) -> None:
    """Set columns of images."""
    for some in chunks(image_ids):
        session.execute(update(table(Image)).where(Image.id.in_(some)).values(**values))
