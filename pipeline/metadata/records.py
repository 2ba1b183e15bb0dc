"""Arguments and results of the metadata functions: plain frozen dataclasses, no ORM objects.

Times are unix seconds. Paths are Python strings as `os.fsdecode` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from pipeline.config import ExtractorConfig, IndexConfig
from pipeline.job_kinds import Stage, kind_of
from pipeline.job_params import JobParams

if TYPE_CHECKING:
    from pipeline.records import LocationState

ImageState = Literal["pending", "extracted", "indexed", "failed", "removed"]
ContainerState = Literal["ready", "rebuild", "indexed"]
"""Waits for an index job; was made by a rebuild that is not published; is of no job any more."""
JobKind = str
"""A name in `pipeline.job_kinds`."""
JobOrigin = Literal["request", "upkeep"]
JobState = Literal["running", "paused", "done", "failed"]
JobStage = str
"""A stage of a kind of job, or ``done``."""
PartState = Literal["planned", "running", "done"]
WorkerState = Literal["starting", "ready", "draining"]

P = TypeVar("P", bound=JobParams)

PartResult = dict[str, Any]
"""The result of a part: JSON-serialisable."""


@dataclass(frozen=True)
class CollectionRecord:
    """A collection and its settings.

    Attributes
    ----------
    tree_id : int or None
        The tree for new images; None until the first is trained.
    current_version_id : int or None
        The version that searches use; None until the first is published.
    """

    id: int
    name: str
    extractor: ExtractorConfig
    extractor_id: str
    index: IndexConfig
    tree_id: int | None
    current_version_id: int | None
    created_at: float


@dataclass(frozen=True)
class CollectionSummary:
    """One line of the list of collections. `images` counts all but the removed ones."""

    id: int
    name: str
    extractor_id: str
    images: int
    indexed: int
    locations: int
    version: int | None
    created_at: float


@dataclass(frozen=True)
class CollectionStatus:
    """What a collection holds now.

    Attributes
    ----------
    images : dict of str to int
        Number of images in every state.
    locations, unreadable_locations : int
        Known paths; those with an unreadable file.
    descriptors : int
        Descriptors of the indexed images.
    version : int or None
        Number of the current version.
    segments : dict of int to int
        Segments of the current version in each group that has any.
    jobs : tuple of JobRecord
        Running and paused jobs, oldest first.
    median_cell, target_cell : float or None
        Median number of descriptors in a cell (``stats["median_cell"]`` of the version), and the
        number that its tree was made for.
    outgrown : bool
        The median cell exceeds 4 times its target: time for a rebuild.
    """

    id: int
    name: str
    extractor_id: str
    images: dict[str, int]
    locations: int
    unreadable_locations: int
    descriptors: int
    version: int | None
    segments: dict[int, int]
    jobs: tuple[JobRecord, ...]
    median_cell: float | None
    target_cell: float | None
    outgrown: bool

    @property
    def largest_group(self) -> int:
        """Segments of the group with the most."""
        return max(self.segments.values(), default=0)


class FileStamp(NamedTuple):
    """What the file system says of a file: while it stays the same, so does the content.

    Attributes
    ----------
    size : int
        Bytes.
    mtime_ns : int
        Time of the last change of its content, as programs may set it; nanoseconds since 1970.
    ctime_ns : int or None
        Time of the last change of content or status, which no program can set. None: not to be
        relied on, because the file was changed just before it was read.
    inode : int or None
        Number of the file in its file system.
    """

    size: int
    mtime_ns: int
    ctime_ns: int | None = None
    inode: int | None = None


@dataclass(frozen=True)
class RegisteredFile:
    """A file as found and hashed; `sha256` is None if it could not be read."""

    path: str
    root: str
    sha256: str | None
    stamp: FileStamp
    error_code: str | None = None
    error_message: str | None = None


@dataclass(frozen=True)
class RegisterCounts:
    """Counts of what a registration changed.

    Attributes
    ----------
    new_images, known_images : int
        New and known contents.
    new_locations, changed_locations : int
        New paths; paths with new content.
    unreadable : int
        Files that could not be read.
    removed_images : int
        Images that lost their last location.
    returned_images : int
        Removed images whose content came back.
    unchanged_locations : int
        Known paths with the content that they had.
    """

    new_images: int = 0
    known_images: int = 0
    new_locations: int = 0
    changed_locations: int = 0
    unreadable: int = 0
    removed_images: int = 0
    returned_images: int = 0
    unchanged_locations: int = 0


@dataclass(frozen=True)
class BatchImage:
    """An image to extract; `locations` are (path, root) pairs, the most trustworthy first."""

    id: int
    sha256: str
    locations: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ImageRecord:
    """An image as answers show it; what is known to be gone comes last in `locations`."""

    id: int
    sha256: str
    width: int | None
    height: int | None
    state: ImageState
    locations: tuple[str, ...]
    location_states: tuple[LocationState, ...]


@dataclass(frozen=True)
class FailureRow:
    """A file or image that could not be used; `sha256` is None if the file was never read."""

    path: str
    sha256: str | None
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ContainerInfo:
    """A feature container: one file with the features of a batch of images."""

    key: str
    checksum: str
    image_count: int
    descriptor_count: int
    failed_count: int


class ExtractedImage(NamedTuple):
    """An image with features, and their place in its container."""

    id: int
    row: int
    width: int
    height: int
    descriptors: int


class FailedImage(NamedTuple):
    """An image without features, and why."""

    id: int
    code: str
    sentence: str


@dataclass(frozen=True)
class BatchOutcome:
    """The outcome of an ``extract`` part.

    Attributes
    ----------
    images : sequence of ExtractedImage
    failures : sequence of FailedImage
    container : ContainerInfo or None
        The file with the features; None if no image had any.
    extractor_id : str
        Settings of the extractor (`ExtractorConfig.config_id`).
    result : mapping
        JSON-serialisable result of the part.
    """

    images: Sequence[ExtractedImage]
    failures: Sequence[FailedImage]
    container: ContainerInfo | None
    extractor_id: str
    result: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ContainerRecord(ContainerInfo):
    """A feature container of a collection."""

    id: int
    collection_id: int
    job_id: str
    state: ContainerState
    created_at: float


@dataclass(frozen=True, kw_only=True)
class TreeInfo:
    """A VP-tree with its PCA: one file.

    Attributes
    ----------
    key, checksum : str
        The file in the store.
    levels, cells, groups : int
        Its shape.
    strategy : str
        How its vantage points were chosen.
    trained_on : int
        Descriptors it was made from.
    target_cell_size : int
        Target number of descriptors in a cell.
    """

    key: str
    checksum: str
    levels: int
    cells: int
    groups: int
    strategy: str
    trained_on: int
    target_cell_size: int


@dataclass(frozen=True, kw_only=True)
class TreeRecord(TreeInfo):
    """A tree of a collection."""

    id: int
    collection_id: int
    job_id: str | None
    created_at: float


@dataclass(frozen=True, kw_only=True)
class SegmentInfo:
    """An immutable file of one group's descriptors, made with a tree.

    ``filled_cells``: which cells of the group have rows (`pipeline.index.filled_cells`). None: not
    known.
    """

    tree_id: int
    group_number: int
    key: str
    checksum: str
    descriptor_count: int
    image_count: int
    byte_count: int
    filled_cells: str | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentRecord(SegmentInfo):
    """A segment of a collection."""

    id: int
    collection_id: int
    job_id: str | None
    created_at: float


@dataclass(frozen=True, kw_only=True)
class NewSegments:
    """What a job would publish.

    Attributes
    ----------
    tree_id : int
        The tree that the segments were made with.
    segment_ids : sequence of int
        Segments that the job made.
    stats : mapping
        JSON-serialisable figures of the index; ``median_cell`` is shown by the status.
    """

    tree_id: int
    segment_ids: Sequence[int]
    stats: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class MergedSegments(NewSegments):
    """What a compaction would publish.

    Attributes
    ----------
    replaced : sequence of int
        Segments that were merged.
    dropped : sequence of int
        Removed images whose rows the new segments lack; then all segments were merged.
    """

    replaced: Sequence[int]
    dropped: Sequence[int]


@dataclass(frozen=True)
class VersionRecord:
    """Everything that a search needs of a collection; it never changes once published.

    Attributes
    ----------
    segments : tuple of SegmentRecord
        By group, then in the order of their publication.
    tombstones : frozenset of int
        Ids of images whose rows in the segments must be skipped.
    stats : dict
        Figures of the index at publication (``median_cell``, ...).
    """

    id: int
    collection_id: int
    collection: str
    number: int
    tree: TreeRecord
    segments: tuple[SegmentRecord, ...]
    tombstones: frozenset[int]
    stats: dict[str, Any]
    extractor: ExtractorConfig
    index: IndexConfig
    job_id: str | None
    created_at: float

    def group_segments(self, group: int) -> tuple[SegmentRecord, ...]:
        """Return the segments of one group."""
        return tuple(s for s in self.segments if s.group_number == group)

    @property
    def groups(self) -> tuple[int, ...]:
        """Groups that have a segment, ascending."""
        return tuple(sorted({s.group_number for s in self.segments}))


@dataclass(frozen=True)
class JobRecord:
    """Work requested by a caller, or begun automatically.

    Attributes
    ----------
    params : JobParams
        An object of the kind's own class.
    process : str or None
        The process of a local job (`pipeline.abandoned_jobs`); None if workers do it.
    origin : {"request", "upkeep"}
        Whether a caller requested it.
    attempt : int
        Rises by one with every stage and every new planning: messages of an older attempt are
        void.
    broker_epoch : str or None
        The broker's epoch when the messages of this attempt were sent.
    counters : dict
        ``files_seen``, ``images_new``, ``images_known``, ``unreadable``, ``images_extracted``,
        ``images_failed`` and other counts of the stages.
    progress_at, attempt_at : float
        Time of the last progress; when this attempt began.
    """

    id: str
    collection_id: int
    kind: JobKind
    params: JobParams
    process: str | None
    origin: JobOrigin
    state: JobState
    stage: JobStage
    attempt: int
    broker_epoch: str | None
    message: str | None
    counters: dict[str, int]
    created_at: float
    attempt_at: float
    progress_at: float
    finished_at: float | None

    @property
    def finished(self) -> bool:
        """Whether the job has ended, done or failed."""
        return self.state in ("done", "failed")

    def params_as(self, wanted: type[P]) -> P:
        """Return the parameters, which must be of this class."""
        assert isinstance(self.params, wanted), f"{self.kind} jobs have no {wanted.__name__}"
        return self.params


@dataclass(frozen=True)
class PartRecord:
    """A unit of a stage's work.

    Attributes
    ----------
    images : int
        Number of its images; 0 if they are not counted.
    starts : int
        How often a worker began it.
    suspects : tuple of int
        Images that were being read when a process died with the part, once for each time.
    """

    job_id: str
    stage: JobStage
    number: int
    args: dict[str, Any]
    state: PartState
    images: int
    worker: str | None
    started_at: float | None
    finished_at: float | None
    result: dict[str, Any] | None
    starts: int = 0
    suspects: tuple[int, ...] = ()


@dataclass(frozen=True)
class JobProgress:
    """The progress of a job.

    Attributes
    ----------
    done_parts, total_parts : int
        Of the present stage.
    images_total, images_done, images_failed : int
        Images to extract; finished ones; failed ones among these.
    rate_per_s : float or None
        Units of the present stage per second since the first part of this attempt began; None
        before the first is finished.
    eta_s : float or None
        Seconds until the present stage ends at that rate.
    """

    job_id: str
    kind: JobKind
    stage: JobStage
    state: JobState
    done_parts: int
    total_parts: int
    images_total: int
    images_done: int
    images_failed: int
    rate_per_s: float | None
    eta_s: float | None
    message: str | None
    counters: dict[str, int]

    @property
    def step(self) -> Stage | None:
        """The present stage; None at the end."""
        return kind_of(self.kind).stage(self.stage)

    @property
    def done(self) -> int:
        """How much of the present stage is done, in its unit."""
        step = self.step
        if step is not None and step.counter:
            return self.counters.get(step.counter, 0)
        return self.images_done if step is not None and step.by_images else self.done_parts

    @property
    def total(self) -> int | None:
        """Total work of the present stage, in its unit; None if unknown."""
        step = self.step
        if step is None or step.counter:
            return None
        return self.images_total if step.by_images else self.total_parts


@dataclass(frozen=True)
class HostRecord:
    """A machine on which workers run or ran; the times are unix seconds.

    Attributes
    ----------
    details : mapping
        Facts from its workers: ``cores``, ``memory`` (bytes).
    """

    name: str
    first_seen_at: float
    last_seen_at: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerRecord:
    """A worker's heartbeat.

    Attributes
    ----------
    name : str
        Node name of the worker, unique.
    roles : tuple of str
        What it does: some of ``extract``, ``group``, ``query``, ``reduce`` and ``supervise``.
    host : str
        Machine it runs on.
    groups : tuple of int
        Groups it serves.
    started_at : float
        When the worker started. A part begun earlier was begun before a restart.
    """

    name: str
    roles: tuple[str, ...]
    host: str
    pid: int
    groups: tuple[int, ...]
    state: WorkerState
    heartbeat_at: float
    started_at: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """What a supervisor sees at one moment.

    Attributes
    ----------
    live_workers : sequence of WorkerRecord
        See `pipeline.metadata.heartbeats.live_workers`.
    broker_epoch : str
        The present epoch of the broker.
    now : float
        Unix seconds.
    patience_s : float
        Seconds without progress after which messages count as lost.
    """

    live_workers: Sequence[WorkerRecord]
    broker_epoch: str
    now: float
    patience_s: float
