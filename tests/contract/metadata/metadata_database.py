"""Helpers of the metadata tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from hashlib import sha256
from threading import Barrier
from typing import Any

from heavy import LONG
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from pipeline.config import ExtractorConfig, IndexConfig
from pipeline.job_kinds import kind_of
from pipeline.metadata import (
    assignment,
    collections,
    extraction,
    images,
    jobs,
    parts,
    reextraction,
    trees,
    versions,
)
from pipeline.metadata.engine import session_scope
from pipeline.metadata.models import Base
from pipeline.metadata.records import (
    BatchOutcome,
    CollectionRecord,
    ContainerInfo,
    ExtractedImage,
    FailedImage,
    FileStamp,
    JobRecord,
    MergedSegments,
    NewSegments,
    RegisteredFile,
    SegmentInfo,
    SegmentRecord,
    TreeInfo,
    TreeRecord,
    VersionRecord,
)

# Read when the tests are collected: while they run, they see none of the caller's settings.
POSTGRESQL_URL = os.environ.get("VANTAGE_TEST_POSTGRESQL_URL", "")
DATABASES = ["sqlite", "postgresql"] if POSTGRESQL_URL or LONG else ["sqlite"]


class Database:
    """A migrated, empty database with helpers for the tests."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def write(self) -> AbstractContextManager[Session]:
        return session_scope(self.engine)

    def read(self) -> AbstractContextManager[Session]:
        return session_scope(self.engine, write=False)

    def rows(self, *, without: Sequence[str] = ("progress_at",)) -> dict[str, list[dict[str, Any]]]:
        """All rows of all tables."""
        with self.read() as session:
            return {
                table.name: [
                    {k: v for k, v in row.items() if k not in without}
                    for row in session.execute(
                        select(table).order_by(*table.primary_key.columns)
                    ).mappings()
                ]
                for table in Base.metadata.sorted_tables
            }

    def together(self, *calls: Callable[[Session], Any]) -> list[Any]:
        """Run calls at the same time, each in its own thread and transaction."""
        barrier = Barrier(len(calls))

        def run(call: Callable[[Session], Any]) -> Any:
            barrier.wait(600)
            with self.write() as session:
                return call(session)

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(run, calls))

    def collection(self, name: str = "covers") -> CollectionRecord:
        with self.write() as session:
            return collections.get_or_create_collection(
                session, name, ExtractorConfig(), IndexConfig()
            )

    def job(
        self,
        collection: CollectionRecord,
        kind: Any = "index",
        params: Any = None,
        **options: Any,
    ) -> JobRecord:
        with self.write() as session:
            return jobs.create_job(
                session, collection.id, kind, params or kind_of(kind).params(), **options
            )

    def register(
        self,
        collection: CollectionRecord,
        job: JobRecord | None,
        *files: RegisteredFile,
        **options: Any,
    ) -> Any:
        with self.write() as session:
            return images.register_files(
                session, collection.id, None if job is None else job.id, files, **options
            )

    def image_states(self, collection: CollectionRecord) -> dict[str, str]:
        """State by SHA-256."""
        return {
            row["sha256"]: row["state"]
            for row in self.rows()["images"]
            if row["collection_id"] == collection.id
        }

    def extract(self, job: JobRecord, *, batch_size: int = 2, bad: Sequence[str] = ()) -> None:
        """Plan and do the extraction of a job; contents in `bad` fail."""
        plan, record = extraction.plan_extraction, extraction.record_extraction
        if reextraction.is_reextraction(job):
            plan, record = reextraction.plan_reextraction, reextraction.record_reextraction
        with self.write() as session:
            plan(session, job.id, batch_size)
            extractor, _ = collections.job_settings(session, job)
            todo = parts.unfinished_parts(session, job.id, "extract")
        for part in todo:
            with self.write() as session:
                batch = extraction.batch_images(session, part.args["images"])
                good = [image for image in batch if image.sha256 not in bad]
                failed = [image for image in batch if image.sha256 in bad]
                names = extractor.name + "".join(image.sha256 for image in good)
                key = sha256(names.encode()).hexdigest()
                outcome = found(
                    f"containers/{key}",
                    [image.id for image in good],
                    [FailedImage(image.id, "corrupt", "its data is damaged") for image in failed],
                    checksum=key,
                    extractor=extractor,
                )
                record(session, job.id, part.number, outcome)

    def tree(self, collection: CollectionRecord, key: str = "trees/a") -> TreeRecord:
        with self.write() as session:
            info = TreeInfo(
                key=key,
                checksum="c",
                levels=4,
                cells=16,
                groups=4,
                strategy="principal",
                trained_on=1000,
                target_cell_size=1500,
            )
            return trees.add_tree(session, collection.id, info)

    def adopted_tree(self, collection: CollectionRecord) -> TreeRecord:
        tree = self.tree(collection)
        with self.write() as session:
            return trees.adopt_tree(session, collection.id, tree.id, collection.extractor_id)

    def segment(
        self, collection: CollectionRecord, tree: TreeRecord, key: str, group: int = 0
    ) -> SegmentRecord:
        with self.write() as session:
            return trees.add_segment(session, collection.id, segment_info(tree, key, group))

    def publish(
        self,
        collection: CollectionRecord,
        job: JobRecord,
        tree: TreeRecord,
        segments: Sequence[SegmentRecord],
    ) -> VersionRecord | None:
        with self.write() as session:
            return versions.publish_version(session, job.id, new_segments(tree, segments))

    def to_stage(self, job: JobRecord, stage: Any) -> JobRecord:
        """Move a job to a stage, whatever its stage and attempt."""
        with self.write() as session:
            now = jobs.get_job(session, job.id)
            moved = jobs.advance_stage(session, job.id, now.stage, now.attempt, stage)
            assert moved is not None
            return moved

    def assign(self, job: JobRecord, tree: TreeRecord) -> dict[int, list[int]]:
        """Plan the assignment of a job; return its images by container."""
        self.to_stage(job, "assign")
        with self.write() as session:
            assignment.plan_assignment(session, job.id, tree.id)
            return assignment.assigned_images(session, job.id)

    def index(
        self, collection: CollectionRecord, *files: RegisteredFile, key: str
    ) -> VersionRecord | None:
        """Do a whole index job with one segment."""
        job = self.job(collection)
        self.register(collection, job, *files)
        self.extract(job)
        tree = self.adopted_tree(collection)
        self.assign(job, tree)
        version = self.publish(collection, job, tree, [self.segment(collection, tree, key)])
        with self.write() as session:
            jobs.finish_job(session, job.id, "done")
        return version


def found(
    key: str,
    images: Sequence[int],
    failures: Sequence[FailedImage] = (),
    *,
    checksum: str = "sum",
    extractor: ExtractorConfig | None = None,
) -> BatchOutcome:
    """The outcome of a batch whose images have 100 descriptors each."""
    container = ContainerInfo(
        key=key,
        checksum=checksum,
        image_count=len(images),
        descriptor_count=100 * len(images),
        failed_count=len(failures),
    )
    rows = [ExtractedImage(image_id, row, 640, 480, 100) for row, image_id in enumerate(images)]
    made = container if images else None
    extractor_id = (extractor or ExtractorConfig()).config_id()
    return BatchOutcome(rows, failures, made, extractor_id, {"key": key})


def segment_info(
    tree: TreeRecord, key: str, group: int = 0, *, checksum: str = "c", byte_count: int = 6400
) -> SegmentInfo:
    """A segment's file."""
    return SegmentInfo(
        tree_id=tree.id,
        group_number=group,
        key=key,
        checksum=checksum,
        descriptor_count=100,
        image_count=2,
        byte_count=byte_count,
    )


def new_segments(tree: TreeRecord, segments: Sequence[SegmentRecord]) -> NewSegments:
    """What an index job or a rebuild would publish."""
    ids = [segment.id for segment in segments]
    return NewSegments(tree_id=tree.id, segment_ids=ids, stats={"median_cell": 700})


def merged_segments(
    replaced: Sequence[SegmentRecord], made: Sequence[SegmentRecord], dropped: Sequence[int] = ()
) -> MergedSegments:
    """What a compaction would publish."""
    return MergedSegments(
        tree_id=replaced[0].tree_id,
        segment_ids=[segment.id for segment in made],
        stats={"median_cell": 700},
        replaced=[segment.id for segment in replaced],
        dropped=dropped,
    )


STAMP = FileStamp(10, 1_700_000_000_123_456_789, 1_700_000_001_000_000_000, 77)
"""Of every file that is not said to have another."""


def content(name: str) -> str:
    """SHA-256 of some content."""
    return sha256(os.fsencode(name)).hexdigest()


def file(path: str, holds: str | None = None, **changes: Any) -> RegisteredFile:
    """A readable file with the named content (default: its own name)."""
    values: dict[str, Any] = {
        "path": path,
        "root": "/photos",
        "sha256": content(holds or path),
        "stamp": STAMP,
    }
    return RegisteredFile(**{**values, **changes})
