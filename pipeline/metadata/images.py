"""Images and locations: registration, and records for answers and reports."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import ColumnElement, Row, exists, select, union_all, update
from sqlalchemy.orm import Session

from pipeline.metadata import ledger
from pipeline.metadata.models import Collection as CollectionRow
from pipeline.metadata.models import Image, Location, table
from pipeline.metadata.records import (
    FailureRow,
    FileStamp,
    ImageRecord,
    RegisterCounts,
    RegisteredFile,
)
from pipeline.metadata.sql import changed_rows, chunks, insert_into, lock_collection
from pipeline.metadata.types import signed64


def register_files(
    session: Session,
    collection_id: int,
    job_id: str | None,
    files: Iterable[RegisteredFile],
    *,
    retry_codes: Collection[str] = (),
) -> RegisterCounts:
    """Record files and their contents: one image per content, one location per path.

    - A location whose content changed moves to the new image. An image that loses its last
      location becomes ``removed``; the next version does not hold it.
    - A removed image whose content comes back gets its former state if its features are still in a
    container or in the index, else ``pending``.
    - A location that was gone is there again.
    - An unreadable file keeps the image last seen there, with the error.
    - An image that failed stays ``failed``: the same bytes fail again.

    A second call with the same files changes nothing. The collection is locked until the
    transaction ends: register many files in calls of some thousands.

    Parameters
    ----------
    job_id : str or None
        The job that registers them.
    retry_codes : collection of str
        Images that failed with one of these codes become ``pending`` again: codes about the file
        (``vanished``, ``permission-denied``), not about its content, which was read just now.

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
    ledger.add_images(session, collection_id, job_id, new)
    returned = [row.id for row in known.values() if row.state == "removed"]
    ledger.take_back(session, returned, job_id)
    again = [row.id for row in known.values() if row.error_code in retry_codes]
    ledger.try_again(session, again, job_id)
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
    unchanged = [
        path
        for path, row in before.items()
        if (sha256 := by_path[path].sha256) is not None
        and row.image_id == image_ids[sha256]
        and row.error_code is None
        and row.image_error_code not in retry_codes
    ]
    orphans = sorted({image_id for image_id in changed if image_id is not None})
    return RegisterCounts(
        new_images=len(new),
        known_images=len(known),
        new_locations=len(by_path) - len(before),
        changed_locations=len(changed),
        unreadable=sum(file.sha256 is None for file in by_path.values()),
        removed_images=ledger.remove(session, _without_location(session, orphans)),
        returned_images=len(returned),
        unchanged_locations=len(unchanged),
    )


def _images_by_hash(session: Session, collection_id: int, hashes: Sequence[str]) -> dict[str, Any]:
    """Return id, state and error of images by SHA-256."""
    images = table(Image)
    statement = select(images.c.id, images.c.sha256, images.c.state, images.c.error_code)
    return {
        row.sha256: row
        for some in chunks(hashes)
        for row in session.execute(
            statement.where(images.c.collection_id == collection_id, images.c.sha256.in_(some))
        )
    }


def _locations_by_path(
    session: Session, collection_id: int, paths: Sequence[str]
) -> dict[str, Any]:
    """Return known locations by path, with the error of the file and that of its image."""
    statement = select(
        Location.path,
        Location.image_id,
        Location.size,
        Location.mtime_ns,
        Location.ctime_ns,
        Location.inode,
        Location.gone_at,
        Location.job_id,
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
            **_stored(file.stamp)._asdict(),
            "gone_at": None,
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


def _without_location(session: Session, image_ids: Sequence[int]) -> list[int]:
    """Return which of the images have no location any more."""
    located = exists().where(Location.image_id == Image.id)
    return [
        image_id
        for some in chunks(image_ids)
        for image_id in session.scalars(select(Image.id).where(Image.id.in_(some), ~located))
    ]


def _stored(stamp: FileStamp) -> FileStamp:
    """Return a stamp as the database holds it."""
    return FileStamp(
        signed64(stamp.size),
        signed64(stamp.mtime_ns),
        None if stamp.ctime_ns is None else signed64(stamp.ctime_ns),
        None if stamp.inode is None else signed64(stamp.inode),
    )


def unchanged_paths(
    session: Session,
    collection_id: int,
    files: Iterable[tuple[str, FileStamp]],
    *,
    retry_codes: Collection[str] = (),
    job_id: str | None = None,
    reread: bool = False,
) -> set[str]:
    """Return which of the files need not be hashed again.

    Parameters
    ----------
    files : iterable of (path, FileStamp)
    retry_codes : collection of str
        As for `register_files`: a file whose image failed with one of them is hashed again.
    job_id : str, optional
        A job that registers files: what it has read itself it does not read again, however young
        the file was.
    reread : bool
        Only files that this job has read.

    Returns
    -------
    set of str
        Paths known with the same stamp, with an image, without an error, and not gone.
    """
    wanted = {path: _stored(stamp) for path, stamp in files}
    known = _locations_by_path(session, collection_id, list(wanted))

    def is_unchanged(path: str, row: Any) -> bool:
        now, mine = wanted[path], job_id is not None and row.job_id == job_id
        same = row.ctime_ns is not None and not reread
        same = same and (row.ctime_ns, row.inode) == (now.ctime_ns, now.inode)
        # Of what the job has read, no inode: some file systems give another one at any time, and
        # the job would read such files again and again.
        return (
            (same or mine)
            and (row.size, row.mtime_ns) == (now.size, now.mtime_ns)
            and row.image_id is not None
            and row.error_code is None
            and row.gone_at is None
            and row.image_error_code not in retry_codes
        )

    return {path for path, row in known.items() if is_unchanged(path, row)}


def paths_below(
    session: Session, collection_id: int, folder: str, after: str, limit: int
) -> list[str]:
    """Return known paths below a folder that are not gone yet, the first ones after a path.

    The order is one of the database; give the last path to get the next ones.
    """
    path = cast("ColumnElement[str]", Location.path)
    if session.get_bind().dialect.name == "postgresql":
        path = path.collate("C")  # by bytes, as SQLite
    below = folder.rstrip("/") + "/"
    statement = (
        select(Location.path)
        .where(
            Location.collection_id == collection_id,
            path > (after or below),
            path < below[:-1] + chr(ord("/") + 1),
            Location.gone_at.is_(None),
        )
        .order_by(path)
        .limit(limit)
    )
    return list(session.scalars(statement))


def mark_gone(session: Session, collection_id: int, paths: Sequence[str], now: float) -> int:
    """Note that no file lies at these paths any more; return how many are new.

    Their images stay what they are: answers name where else they lie, and what is gone last.
    """
    lock_collection(session, collection_id)
    locations = table(Location)
    return sum(
        changed_rows(
            session,
            update(locations)
            .where(
                locations.c.collection_id == collection_id,
                locations.c.path.in_(some),
                locations.c.gone_at.is_(None),
            )
            .values(gone_at=now),
        )
        for some in chunks(paths)
    )


def image_roots(session: Session, collection_id: int) -> list[str]:
    """Return the folders and files that were given when images were indexed, by name."""
    known = Location.collection_id == collection_id, Location.image_id.is_not(None)
    return sorted(session.scalars(select(Location.root).where(*known).distinct()))


def image_records(session: Session, image_ids: Sequence[int]) -> dict[int, ImageRecord]:
    """Return images with their locations by id; unknown ids are ignored."""
    locations: dict[int, list[tuple[bool, str]]] = {}
    rows: list[Row[Any]] = []
    for some in chunks(sorted(set(image_ids))):
        rows += session.execute(
            select(Image.id, Image.sha256, Image.width, Image.height, Image.state).where(
                Image.id.in_(some)
            )
        )
        for place in session.execute(
            select(Location.path, Location.image_id, Location.gone_at).where(
                Location.image_id.in_(some)
            )
        ):
            known = (place.gone_at is not None, place.path)
            locations.setdefault(place.image_id, []).append(known)
    return {
        row.id: ImageRecord(
            id=row.id,
            sha256=row.sha256,
            width=row.width,
            height=row.height,
            state=row.state,
            locations=tuple(path for _, path in sorted(locations.get(row.id, []))),
            location_states=tuple(
                "gone" if gone else "unknown" for gone, _ in sorted(locations.get(row.id, []))
            ),
        )
        for row in rows
    }


def location_roots(
    session: Session, collections: Iterable[str], paths: Sequence[str]
) -> dict[str, str]:
    """Return the folders or files that were given when these paths were indexed, by path."""
    names = sorted(set(collections))
    return {
        row.path: row.root
        for some in chunks(paths)
        for row in session.execute(
            select(Location.path, Location.root)
            .join(CollectionRow, CollectionRow.id == Location.collection_id)
            .where(CollectionRow.name.in_(names), Location.path.in_(some))
        )
    }


def failures(
    session: Session, collection_id: int, limit: int = 100, offset: int = 0
) -> list[FailureRow]:
    """Return files that could not be read and images that failed, one row per path, by path."""
    # Two queries, because one with OR would read every location.
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
