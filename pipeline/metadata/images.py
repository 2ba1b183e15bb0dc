"""Images and locations: registration, and what answers and reports show of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, exists, select, union_all, update
from sqlalchemy.orm import Session

from pipeline.metadata.models import Container, Image, Location, table
from pipeline.metadata.records import FailureRow, ImageRow, RegisterCounts, RegisteredFile
from pipeline.metadata.sql import changed_rows, chunks, insert_into, lock_collection

_PENDING_AGAIN = {
    "state": "pending",
    "error_code": None,
    "error_message": None,
    "container_id": None,
    "row_in_container": None,
    "left_out": False,
}


def register_files(
    session: Session,
    collection_id: int,
    job_id: str | None,
    files: Iterable[RegisteredFile],
    *,
    retry_codes: Collection[str] = (),
) -> RegisterCounts:
    """Note files and their contents: one image per content, one location per path.

    - A location whose content changed moves to the new image. An image that loses its last
      location becomes ``removed``; its rows in the index get a tombstone with the next version.
    - A removed image whose content comes back becomes what it was (its features are still in a
      container or in the index) or, where they are not, ``pending``.
    - A file that could not be read keeps the image last seen there, beside the error.
    - An image that failed stays ``failed``: the same bytes fail again.

    The same call twice changes nothing more. The collection is locked until the transaction ends:
    register many files in calls of some thousands.

    Parameters
    ----------
    job_id : str or None
        The job that brings them.
    retry_codes : collection of str
        Make images ``pending`` again that failed with one of these codes: those that tell of the
        file (``vanished``, ``permission-denied``), not of its content, which was read just now.

    Raises
    ------
    UnknownNameError
        There is no such collection.
    """
    lock_collection(session, collection_id)
    by_path = {file.path: file for file in files}
    hashes = sorted({file.sha256 for file in by_path.values() if file.sha256 is not None})
    known = _images_by_hash(session, collection_id, hashes)
    new = [sha256 for sha256 in hashes if sha256 not in known]
    _insert_images(session, collection_id, job_id, new)
    returned = _take_back(
        session, [row for row in known.values() if row.state == "removed"], job_id
    )
    again = [row.id for row in known.values() if row.error_code in retry_codes]
    _set_images(session, again, {**_PENDING_AGAIN, "job_id": job_id})
    image_ids = {
        **{row.sha256: row.id for row in known.values()},
        **{row.sha256: row.id for row in _images_by_hash(session, collection_id, new).values()},
    }
    before = _locations_by_path(session, collection_id, list(by_path))
    _put_locations(session, collection_id, job_id, by_path.values(), image_ids)
    changed = [
        row.image_id
        for path, row in before.items()
        if (sha256 := by_path[path].sha256) is not None and row.image_id != image_ids[sha256]
    ]
    orphans = sorted({image_id for image_id in changed if image_id is not None})
    return RegisterCounts(
        new_images=len(new),
        known_images=len(known),
        new_locations=len(by_path) - len(before),
        changed_locations=len(changed),
        unreadable=sum(file.sha256 is None for file in by_path.values()),
        removed_images=_remove_orphans(session, orphans),
        returned_images=returned,
    )


def _images_by_hash(
    session: Session, collection_id: int, hashes: Sequence[str]
) -> dict[str, Row[Any]]:
    """Return image rows, with the state of their container, by SHA-256."""
    images, containers = table(Image), table(Container)
    statement = select(images, containers.c.state.label("container_state")).outerjoin(
        containers, containers.c.id == images.c.container_id
    )
    return {
        row.sha256: row
        for some in chunks(hashes)
        for row in session.execute(
            statement.where(images.c.collection_id == collection_id, images.c.sha256.in_(some))
        )
    }


def _insert_images(
    session: Session, collection_id: int, job_id: str | None, hashes: Sequence[str]
) -> None:
    """Insert pending images."""
    rows = [
        {"collection_id": collection_id, "sha256": sha256, "state": "pending", "job_id": job_id}
        for sha256 in hashes
    ]
    if rows:
        session.execute(insert_into(session, Image).on_conflict_do_nothing(), rows)


def _take_back(session: Session, removed: Sequence[Row[Any]], job_id: str | None) -> int:
    """Give removed images whose content is there again the state that fits their features."""
    by_state: dict[str, list[int]] = {}
    for row in removed:
        if row.in_index:
            # Its rows are in the segments; the next version lifts the tombstone, if it has one.
            state = "indexed"
        elif row.error_code is not None:
            state = "failed"
        elif row.container_state == "ready" and not row.left_out:
            state = "extracted"
        else:
            state = "pending"
        by_state.setdefault(state, []).append(row.id)
    for state, ids in by_state.items():
        values = {**_PENDING_AGAIN, "job_id": job_id} if state == "pending" else {"state": state}
        _set_images(session, ids, values)
    return len(removed)


def _set_images(session: Session, image_ids: Sequence[int], values: Mapping[str, Any]) -> None:
    """Set columns of images."""
    for some in chunks(image_ids):
        session.execute(update(table(Image)).where(Image.id.in_(some)).values(**values))


def _locations_by_path(
    session: Session, collection_id: int, paths: Sequence[str]
) -> dict[str, Any]:
    """Return known locations by path, with the error of the file and that of its image."""
    statement = select(
        Location.path,
        Location.image_id,
        Location.size,
        Location.mtime_ns,
        Location.error_code,
        Image.error_code.label("image_error_code"),
    ).outerjoin(Image, Image.id == Location.image_id)
    return {
        row.path: row
        for some in chunks(paths)
        for row in session.execute(
            statement.where(Location.collection_id == collection_id, Location.path.in_(some))
        )
    }


def _put_locations(
    session: Session,
    collection_id: int,
    job_id: str | None,
    files: Iterable[RegisteredFile],
    image_ids: Mapping[str, int],
) -> None:
    """Insert or update locations."""
    readable: list[dict[str, Any]] = []
    unreadable: list[dict[str, Any]] = []
    for file in files:
        row = {
            "collection_id": collection_id,
            "path": file.path,
            "root": file.root,
            "image_id": None if file.sha256 is None else image_ids[file.sha256],
            "size": file.size,
            "mtime_ns": file.mtime_ns,
            "error_code": file.error_code,
            "error_message": file.error_message,
            "job_id": job_id,
        }
        (unreadable if file.sha256 is None else readable).append(row)
    for rows, kept in ((readable, ()), (unreadable, ("image_id",))):
        if not rows:
            continue
        statement = insert_into(session, Location)
        changes = {
            name: statement.excluded[name]
            for name in rows[0]
            if name not in ("collection_id", "path", *kept)
        }
        session.execute(
            statement.on_conflict_do_update(index_elements=["collection_id", "path"], set_=changes),
            rows,
        )


def _remove_orphans(session: Session, image_ids: Sequence[int]) -> int:
    """Mark those of the images that have no location any more; return how many."""
    images = table(Image)
    located = exists().where(Location.image_id == images.c.id)
    return sum(
        changed_rows(
            session,
            update(images)
            .where(images.c.id.in_(some), images.c.state != "removed", ~located)
            .values(state="removed"),
        )
        for some in chunks(image_ids)
    )


def unchanged_paths(
    session: Session,
    collection_id: int,
    files: Iterable[tuple[str, int, int]],
    *,
    retry_codes: Collection[str] = (),
) -> set[str]:
    """Return which of the files need not be hashed again.

    Parameters
    ----------
    files : iterable of (path, size, mtime_ns)
    retry_codes : collection of str
        As for `register_files`: a file whose image failed with one of them is not left out.

    Returns
    -------
    set of str
        Paths that are known with the same size and time, with an image and without an error.
    """
    wanted = {path: (size, mtime_ns) for path, size, mtime_ns in files}
    known = _locations_by_path(session, collection_id, list(wanted))
    return {
        path
        for path, row in known.items()
        if row.image_id is not None
        and row.error_code is None
        and row.image_error_code not in retry_codes
        and (row.size, row.mtime_ns) == wanted[path]
    }


def image_rows(session: Session, image_ids: Sequence[int]) -> dict[int, ImageRow]:
    """Return images with their locations by id; ids that are not known are left out."""
    locations: dict[int, list[str]] = {}
    rows: list[Row[Any]] = []
    for some in chunks(sorted(set(image_ids))):
        rows += session.execute(
            select(Image.id, Image.sha256, Image.width, Image.height, Image.state).where(
                Image.id.in_(some)
            )
        )
        for place in session.execute(
            select(Location.path, Location.image_id).where(Location.image_id.in_(some))
        ):
            locations.setdefault(place.image_id, []).append(place.path)
    return {
        row.id: ImageRow(
            id=row.id,
            sha256=row.sha256,
            width=row.width,
            height=row.height,
            state=row.state,
            locations=tuple(sorted(locations.get(row.id, []))),
        )
        for row in rows
    }


def indexed_images(session: Session, collection_id: int, sha256s: Collection[str]) -> set[str]:
    """Return those of some contents that a collection holds and searches now."""
    found: set[str] = set()
    for some in chunks(sorted(set(sha256s))):
        found.update(
            session.scalars(
                select(Image.sha256).where(
                    Image.collection_id == collection_id,
                    Image.sha256.in_(some),
                    Image.in_index,
                    Image.state != "removed",
                )
            )
        )
    return found


def failures(
    session: Session, collection_id: int, limit: int = 100, offset: int = 0
) -> list[FailureRow]:
    """Return files that could not be read and images that failed, one row per path, by path."""
    # Two selects, because one with OR would read every location.
    unread = (
        select(Location.path, Image.sha256, Location.error_code, Location.error_message)
        .outerjoin(Image, Image.id == Location.image_id)
        .where(Location.collection_id == collection_id, Location.error_code.is_not(None))
    )
    failed = (
        select(Location.path, Image.sha256, Image.error_code, Image.error_message)
        .join(Image, Image.id == Location.image_id)
        .where(
            Image.collection_id == collection_id,
            Image.state == "failed",
            Location.error_code.is_(None),
        )
    )
    both = union_all(unread, failed).subquery()
    rows = session.execute(select(both).order_by(both.c.path).limit(limit).offset(offset))
    return [FailureRow(path, sha256, code, message or "") for path, sha256, code, message in rows]
