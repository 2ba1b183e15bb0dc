"""Stage ``train``: give the job a tree for its descriptors (reduce)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from pipeline.config import ExtractorConfig, IndexConfig, digest
from pipeline.errors import StateError
from pipeline.extraction.base import Extractor
from pipeline.index.cells import training_rows
from pipeline.index.model import Model, train_model
from pipeline.index.rows import ROW_UNIT
from pipeline.index.sampling import draw_samples
from pipeline.index.vptree import levels_for
from pipeline.indexing.stored_features import open_container
from pipeline.job_kinds import DONE, Stage, kind_of
from pipeline.metadata import assignment, collections, parts, trees
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import (
    ContainerRecord,
    JobRecord,
    PartRecord,
    PartResult,
    TreeInfo,
)
from pipeline.resources import Resources

SAMPLES_A_DIMENSION = 4
"""The fewest rows of the training sample for each number of a descriptor."""


def train(resources: Resources, job: JobRecord, part: PartRecord) -> PartResult:
    """Give the job a tree: the collection's, or a new one trained on the job's features."""
    with session_scope(resources.engine, write=False) as session:
        collection = collections.get_collection_by_id(session, job.collection_id)
        records = assignment.containers_to_index(session, job)
    extractor, index = job.params.settings(collection.extractor, collection.index)
    tree_id = None if kind_of(job.kind).replaces else collection.tree_id
    if tree_id is None and any(record.descriptor_count for record in records):
        tree_id = _train_tree(resources, job, extractor, index, records)
    if tree_id is None and extractor != collection.extractor:
        raise StateError(
            f"no image of collection {collection.name!r} has features of {extractor.describe()}; "
            f"it keeps {collection.extractor.describe()}"
        )
    summary = {"tree": tree_id, "extractor": extractor.to_dict()}
    with session_scope(resources.engine) as session:
        parts.finish_part(session, job.id, "train", part.number, summary)
    return summary


def after(resources: Resources, job: JobRecord, stage: Stage) -> str | None:
    """End the job if there is nothing to index and nothing was indexed before."""
    with session_scope(resources.engine, write=False) as session:
        tree_id = parts.stage_result(session, job.id, stage.name)["tree"]
    return DONE if tree_id is None else None


def _train_tree(
    resources: Resources,
    job: JobRecord,
    wanted: ExtractorConfig,
    config: IndexConfig,
    records: list[ContainerRecord],
) -> int:
    """Train, store and record a tree; if another index job was first, take its tree."""
    descriptors = sum(record.descriptor_count for record in records)
    extractor_id = wanted.config_id()
    key = f"trees/{digest(extractor_id, config.to_dict(), [r.key for r in records])}.npz"
    checksum = resources.storage.find(key, Model.from_arrays)
    if checksum is None:
        trained = _train_model(resources, wanted, config, records, descriptors)
        checksum = resources.storage.write_arrays(key, trained.to_arrays(), {})
    model = resources.model(key, checksum)
    info = TreeInfo(
        key=key,
        checksum=checksum,
        levels=model.tree.levels,
        cells=model.tree.cells,
        groups=model.groups,
        strategy=config.vantage,
        trained_on=descriptors,
        target_cell_size=config.cell_size,
    )
    with session_scope(resources.engine) as session:
        tree = trees.add_tree(session, job.collection_id, info, job.id)
        if not kind_of(job.kind).replaces:
            tree = trees.adopt_tree(session, job.collection_id, tree.id, extractor_id)
        return tree.id


def _train_model(
    resources: Resources,
    wanted: ExtractorConfig,
    index: IndexConfig,
    records: list[ContainerRecord],
    descriptors: int,
) -> Model:
    """Draw the samples from the containers, one at a time, and train on them."""
    extractor = resources.extractor(wanted)

    def each_image() -> Iterator[tuple[str, NDArray[Any]]]:
        for record in records:
            container = open_container(resources, record)
            for sha256, features in container.items():
                yield sha256, features.descriptors

    count = sum(record.image_count for record in records)
    config = sample_sizes(index, extractor)
    levels = levels_for(descriptors, config.cell_size, config.groups)
    config = replace(config, sample_size=training_rows(levels, config.sample_size))
    training, background = draw_samples(each_image(), count, config)
    # Of its own: with one process this runs in a thread of the pool that does the other parts.
    with ThreadPoolExecutor(resources.settings.group_threads, "vantage-train") as pool:
        return train_model(
            training,
            background,
            descriptors,
            config,
            extractor.one_vector,
            extractor.whiten,
            extractor.normalize,
            pool.map,
        )


def sample_sizes(config: IndexConfig, extractor: Extractor) -> IndexConfig:
    """Return the settings with samples no larger than the extractor's descriptors need.

    Long descriptors have smaller samples, to save memory, but at least `SAMPLES_A_DIMENSION` times
    their length. An extractor with one vector an image needs no background sample.
    """
    length = max(extractor.dimensions, config.dimensions)
    most = max(config.sample_size * ROW_UNIT // length, SAMPLES_A_DIMENSION * length)
    background = 16 if extractor.one_vector else config.background_size
    return replace(config, sample_size=min(config.sample_size, most), background_size=background)
