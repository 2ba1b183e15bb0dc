"""The tables. Only `pipeline.metadata` sees these classes; others get dataclasses.

Columns named ``job_id`` are not foreign keys, except in `Part`: they say which job made a row, and
an old job may be deleted without its results. ``collections.tree_id`` and ``current_version_id``
are not foreign keys either, because trees and versions refer to collections already, and SQLite
cannot add a constraint later.

Ids are never reused (AUTOINCREMENT), because segment files and caches hold them.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pipeline.metadata.types import PathText

SCHEMA_REVISION = "0005"
"""The migration that creates exactly these tables (a test compares)."""

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

Json = JSON(none_as_null=True)
_IDS_NEVER_REUSED = {"sqlite_autoincrement": True}


class Base(DeclarativeBase):
    """Common base: constraint names and the column types of Python types."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {float: Float(53), dict[str, Any]: Json, list[Any]: Json}  # noqa: RUF012


class Installation(Base):
    """The one row that says which installation this is.

    ``identity``: random, made with the database; a copy that is started gets one of its own and
    keeps that of the original in ``former``. ``place``: where the database was when it got the
    identity. ``store``: the store that has a marker of this installation.
    ``secret``: signs what caches hold.
    """

    __tablename__ = "installation"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    identity: Mapped[str] = mapped_column(String(32))
    former: Mapped[str | None] = mapped_column(String(32))
    place: Mapped[dict[str, Any] | None] = mapped_column(Json)
    store: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[float]
    secret: Mapped[str | None] = mapped_column(String(64))


class Collection(Base):
    """A named set of images with one index.

    Its extractor and settings are for new work; each version has its own.
    """

    __tablename__ = "collections"
    __table_args__ = (UniqueConstraint("name"), _IDS_NEVER_REUSED)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    extractor: Mapped[dict[str, Any]]
    extractor_id: Mapped[str] = mapped_column(String(128))
    index_config: Mapped[dict[str, Any]]
    tree_id: Mapped[int | None]
    current_version_id: Mapped[int | None]
    created_at: Mapped[float]


class Job(Base):
    """Work that a caller asked for.

    ``process``: the process that does a local job. ``origin``: ``request`` (by a caller) or
    ``upkeep`` (automatic).
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "collection_id", "created_at"),
        Index(None, "state"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id"))
    kind: Mapped[str] = mapped_column(String(16))
    params: Mapped[dict[str, Any]]
    process: Mapped[str | None] = mapped_column(String(512))
    origin: Mapped[str] = mapped_column(String(16), server_default="request")
    state: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int]
    broker_epoch: Mapped[str | None] = mapped_column(String(64))
    message: Mapped[str | None] = mapped_column(PathText)
    counters: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    attempt_at: Mapped[float]
    progress_at: Mapped[float]
    finished_at: Mapped[float | None]


class Part(Base):
    """One map task of a job's stage."""

    __tablename__ = "parts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    stage: Mapped[str] = mapped_column(String(16), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    args: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    images: Mapped[int]
    failed: Mapped[int]
    starts: Mapped[int] = mapped_column(server_default="0")
    suspects: Mapped[list[int] | None] = mapped_column(Json)
    worker: Mapped[str | None] = mapped_column(String(255))
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    result: Mapped[dict[str, Any] | None] = mapped_column(Json)


class Container(Base):
    """A feature container."""

    __tablename__ = "containers"
    __table_args__ = (
        UniqueConstraint("collection_id", "key"),
        Index(None, "job_id"),
        _IDS_NEVER_REUSED,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id"))
    key: Mapped[str] = mapped_column(String(255))
    checksum: Mapped[str] = mapped_column(String(64))
    image_count: Mapped[int]
    descriptor_count: Mapped[int] = mapped_column(BigInteger)
    failed_count: Mapped[int]
    job_id: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float]


class Image(Base):
    """One content of a collection; its identity is the SHA-256 of its bytes and the frame in them.

    `pipeline.metadata.ledger` alone changes it.
    """

    __tablename__ = "images"
    __table_args__ = (
        UniqueConstraint("collection_id", "sha256", "frame"),
        # Both cover `collection_status`, so that it does not read the wide rows.
        Index(None, "collection_id", "state", "descriptor_count"),
        Index(None, "container_id"),
        _IDS_NEVER_REUSED,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id"))
    sha256: Mapped[str] = mapped_column(String(64))
    frame: Mapped[int] = mapped_column(server_default="0")
    width: Mapped[int | None]
    height: Mapped[int | None]
    state: Mapped[str] = mapped_column(String(16))
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(PathText)
    container_id: Mapped[int | None] = mapped_column(ForeignKey("containers.id"))
    row_in_container: Mapped[int | None]
    descriptor_count: Mapped[int] = mapped_column(server_default="0")
    job_id: Mapped[str | None] = mapped_column(String(32))


class Location(Base):
    """A path where an image's content lies, or a file that could not be read.

    ``ctime_ns`` is NULL if the file was too young when it was read to notice every later change.
    ``gone_at``: when an index job found that the file is there no more.
    """

    __tablename__ = "locations"
    __table_args__ = (
        UniqueConstraint("collection_id", "path"),
        Index(None, "collection_id", "error_code"),
        Index(None, "image_id"),
        _IDS_NEVER_REUSED,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id"))
    path: Mapped[str] = mapped_column(PathText)
    root: Mapped[str] = mapped_column(PathText)
    image_id: Mapped[int | None] = mapped_column(ForeignKey("images.id"))
    size: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    ctime_ns: Mapped[int | None] = mapped_column(BigInteger)
    inode: Mapped[int | None] = mapped_column(BigInteger)
    gone_at: Mapped[float | None]
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(PathText)
    job_id: Mapped[str | None] = mapped_column(String(32))


class Tree(Base):
    """A VP-tree with its PCA."""

    __tablename__ = "trees"
    __table_args__ = (UniqueConstraint("collection_id", "key"), _IDS_NEVER_REUSED)

    id: Mapped[int] = mapped_column(primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id"))
    key: Mapped[str] = mapped_column(String(255))
    checksum: Mapped[str] = mapped_column(String(64))
    levels: Mapped[int]
    cells: Mapped[int]
    groups: Mapped[int]
    strategy: Mapped[str] = mapped_column(String(32))
    trained_on: Mapped[int] = mapped_column(BigInteger)
    target_cell_size: Mapped[int]
    job_id: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[float]


class Segment(Base):
    """An immutable file set of one group's descriptors.

    ``filled_cells``: one bit for each cell of the group: whether it has rows. NULL: not known.
    """

    __tablename__ = "segments"
    __table_args__ = (
        UniqueConstraint("collection_id", "key"),
        Index(None, "tree_id"),
        _IDS_NEVER_REUSED,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id"))
    tree_id: Mapped[int] = mapped_column(ForeignKey("trees.id"))
    group_number: Mapped[int]
    key: Mapped[str] = mapped_column(String(255))
    checksum: Mapped[str] = mapped_column(String(64))
    descriptor_count: Mapped[int] = mapped_column(BigInteger)
    image_count: Mapped[int]
    byte_count: Mapped[int] = mapped_column(BigInteger)
    job_id: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[float]
    filled_cells: Mapped[str | None] = mapped_column(Text)


class Version(Base):
    """What a search uses: a tree, segments, and how its images' features were taken."""

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("collection_id", "number"),
        Index(None, "job_id"),
        Index(None, "tree_id"),
        _IDS_NEVER_REUSED,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id"))
    number: Mapped[int]
    extractor: Mapped[dict[str, Any]]
    extractor_id: Mapped[str] = mapped_column(String(128))
    index_config: Mapped[dict[str, Any]]
    tree_id: Mapped[int] = mapped_column(ForeignKey("trees.id"))
    job_id: Mapped[str | None] = mapped_column(String(32))
    stats: Mapped[dict[str, Any]]
    created_at: Mapped[float]


class VersionSegment(Base):
    """Which segments a version has."""

    __tablename__ = "version_segments"
    __table_args__ = (Index(None, "segment_id"),)

    version_id: Mapped[int] = mapped_column(
        ForeignKey("versions.id"), primary_key=True, autoincrement=False
    )
    segment_id: Mapped[int] = mapped_column(
        ForeignKey("segments.id"), primary_key=True, autoincrement=False
    )


class Holding(Base):
    """An interval of versions whose segments have rows of an image.

    It begins with ``from_version`` and ends before ``rows_until``. Versions before
    ``until_version`` hold the image, the others skip its rows. None: no end yet.
    """

    __tablename__ = "holdings"
    __table_args__ = (Index(None, "collection_id", "until_version"),)

    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id"))
    image_id: Mapped[int] = mapped_column(
        ForeignKey("images.id"), primary_key=True, autoincrement=False
    )
    from_version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    until_version: Mapped[int | None]
    rows_until: Mapped[int | None]


class Host(Base):
    """A machine on which workers run or ran."""

    __tablename__ = "hosts"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    details: Mapped[dict[str, Any]]
    first_seen_at: Mapped[float]
    last_seen_at: Mapped[float]


class Worker(Base):
    """A worker's heartbeat."""

    __tablename__ = "workers"
    __table_args__ = (Index(None, "host"),)

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    roles: Mapped[list[Any]]
    host: Mapped[str] = mapped_column(ForeignKey("hosts.name"))
    pid: Mapped[int] = mapped_column(Integer)
    groups: Mapped[list[Any]]
    state: Mapped[str] = mapped_column(String(16))
    heartbeat_at: Mapped[float]
    started_at: Mapped[float]
    details: Mapped[dict[str, Any]]


def table(model: type[Base]) -> Table:
    """Return a model's table.

    The functions of this package use tables, not ORM objects: bulk statements bypass the identity
    map, which is faster, and nothing stale can be read.
    """
    return cast(Table, model.__table__)
