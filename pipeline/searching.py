"""The steps of a search: where extraction, index, retrieval and metadata meet.

``prepare_query`` for every image (``extract_query``, ``plan_query``), ``join_batches`` ->
``scan_group`` for every group of the plan (map) -> ``finish_batch`` (reduce). `pipeline.local`
calls them in a loop, `workers.tasks` one a message. A search of one image is a batch of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ExtractorConfig, digest
from pipeline.decoders import QueryFile, decode_query, read_query
from pipeline.errors import IndexNotBuiltError, InputError, UnknownNameError
from pipeline.explain import explain
from pipeline.extraction.features import extract_decoded
from pipeline.index.kernels import PATH
from pipeline.metadata import identities, images
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import VersionRecord
from pipeline.records import FusedResult, SearchResult
from pipeline.request import SearchRequest
from pipeline.resources import Resources
from pipeline.retrieval.batch import BATCH_IMAGES, Batch, QueryImage, cut_batches, join_batches
from pipeline.retrieval.blocks import GroupScan, merge_blocks, split_block
from pipeline.retrieval.cost import Machine, Workload
from pipeline.retrieval.open_segments import ImageSet
from pipeline.retrieval.pairs import Pairs, pairs_of
from pipeline.retrieval.plan import QueryPlan, make_plan
from pipeline.retrieval.scan import scan_opened
from pipeline.retrieval.score import make_matches, rank_images
from pipeline.same_file import answer_same_file, answer_without_version, same_images

Answer = TypeVar("Answer", SearchResult, FusedResult)
ImageSource = str | Path | bytes | NDArray[Any]
"""A query image: a file, a file's bytes, or pixels."""


@dataclass(frozen=True)
class QueryFeatures:
    """The features of a query image, independent of any collection.

    Attributes
    ----------
    digest : str
        Identifies the image's content and its extractor.
    width, height : int
        Pixels.
    keypoints : ndarray of shape (Q, 4), float32
        x, y, size (original pixels) and angle (degrees).
    descriptors : ndarray of shape (Q, D), float32
        Normalised by their extractor.
    extract_ms : float
        Milliseconds spent.
    """

    digest: str
    width: int
    height: int
    keypoints: NDArray[np.float32]
    descriptors: NDArray[np.float32]
    extract_ms: float


def extract_query(resources: Resources, wanted: ExtractorConfig, query: QueryFile) -> QueryFeatures:
    """Extract a query image's features.

    Parameters
    ----------
    resources : Resources
    wanted : ExtractorConfig
    query : QueryFile

    Raises
    ------
    ImageReadError, NoFeaturesError, InputError
        The image cannot be used.
    """
    started = time.perf_counter()
    extractor = resources.extractor(wanted)
    limits = resources.settings.image_limits
    image = decode_query(query, limits=limits, max_side=wanted.max_side, color=extractor.color)
    features = extract_decoded(image, extractor, wanted.query_max_features)
    return QueryFeatures(
        digest(query.sha256, wanted.to_dict()),
        features.width,
        features.height,
        np.ascontiguousarray(features.keypoints[:, :4], np.float32),
        extractor.normalize(features.descriptors),
        (time.perf_counter() - started) * 1e3,
    )


def plan_query(
    resources: Resources,
    version: VersionRecord,
    query: QueryFeatures,
    request: SearchRequest,
    threads: int | None = None,
    same: Sequence[int] = (),
) -> Batch:
    """Plan the search for a query image.

    Parameters
    ----------
    resources : Resources
    version : VersionRecord
    query : QueryFeatures
        Extracted by the version's extractor.
    request : SearchRequest
    threads : int, optional
        Number of groups scanned at the same time, for the predicted time. Default: that of a group
        worker.
    same : sequence of int
        Images with the very bytes of the query (`pipeline.same_file`).

    Returns
    -------
    Batch
        With this image only.
    """
    started = time.perf_counter()
    one_vector = resources.extractor(version.extractor).one_vector
    model = resources.model(version.tree.key, version.tree.checksum)
    codes = model.quantizer.encode(query.descriptors)
    rows = _row_count(version)
    plan = make_plan(model, codes, rows, request, one_vector)
    timings = {"extract": query.extract_ms, "plan": (time.perf_counter() - started) * 1e3}
    threads = min(threads or resources.settings.group_threads, model.groups)
    return Batch(
        plan,
        (QueryImage(query.digest, query.width, query.height, len(codes), timings, tuple(same)),),
        Workload(len(codes), rows, codes.shape[1], model.tree.cells, one_vector),
        request,
        Machine(PATH, max(1, threads)),
        query.keypoints,
    )


def prepare_query(
    resources: Resources,
    version: VersionRecord,
    source: ImageSource,
    request: SearchRequest,
    threads: int | None = None,
) -> Batch | SearchResult:
    """Extract a query image's features and plan its search; see `extract_query`, `plan_query`.

    A file without features is answered at once if the collection has the same file: this is found
    out first, so that nothing that happens to the picture can hide it.

    Raises
    ------
    InputError
        The image cannot be used, and the collection does not have it.
    """
    query = read_query(source, resources.settings.image_limits)
    same = same_images(resources, version.collection_id, version.number, query)
    try:
        features = extract_query(resources, version.extractor, query)
    except UnknownNameError:
        raise  # the extractor: no image can do anything about it
    except InputError as error:
        if not same:
            raise
        return answer_same_file(resources, version, same, error)
    return plan_query(resources, version, features, request, threads, same)


def search_images(
    resources: Resources,
    version: VersionRecord,
    sources: Sequence[ImageSource],
    request: SearchRequest,
    passes: Passes,
    spread: Callable[..., Iterable[Any]] = map,
    threads: int | None = None,
) -> list[SearchResult | InputError]:
    """Search for several images in passes, as `cut_batches` divides them.

    Parameters
    ----------
    resources : Resources
    version : VersionRecord
    sources : sequence of image
    request : SearchRequest
        The deadline is that of each pass.
    passes : Passes
        Cuts and does the passes.
    spread : callable
        ``map``, or that of an executor; used to extract the images.
    threads : int, optional
        As for `prepare_query`.

    Returns
    -------
    list of SearchResult or InputError
        In the order of the images; an image that cannot be used has its error instead.
    """

    def prepare(source: ImageSource) -> Batch | SearchResult | InputError:
        try:
            return prepare_query(resources, version, source, request, threads)
        except UnknownNameError:
            raise  # the extractor: no image can do anything about it
        except InputError as error:
            return error

    found: list[SearchResult | InputError] = []
    for first in range(0, len(sources), BATCH_IMAGES):
        prepared = list(spread(prepare, sources[first : first + BATCH_IMAGES]))
        places = [i for i, one in enumerate(prepared) if isinstance(one, Batch)]
        queries = [prepared[place] for place in places]
        for place, result in zip(places, _answer_all(queries, passes), strict=True):
            prepared[place] = result
        found += prepared
    return found


class Passes:
    """How images are searched for together: which of them share a pass, and who answers one.

    Parameters
    ----------
    answer : callable
        Does a pass: returns an answer for each image of a batch.
    deadline_s : float
        Seconds until the answers of a pass are due.
    """

    def __init__(
        self, answer: Callable[[Batch], Sequence[SearchResult]], deadline_s: float
    ) -> None:
        self.answer = answer
        self.deadline_s = deadline_s

    def cut(self, queries: Sequence[Batch]) -> list[list[int]]:
        """Return which images share a pass, as `cut_batches` does."""
        return cut_batches(queries, self.deadline_s)

    def is_worth_another(self, results: Sequence[SearchResult]) -> bool:
        """Tell whether a pass of several images is done again, in smaller ones."""
        return False


def _answer_all(queries: Sequence[Batch], passes: Passes) -> list[SearchResult]:
    """Answer images by passes, cut anew before each; the better answer of an image stays."""
    found: dict[int, SearchResult] = {}
    left = list(range(len(queries)))
    while left:
        members = [left[i] for i in passes.cut([queries[number] for number in left])[0]]
        results = passes.answer(join_batches([queries[member] for member in members]))
        for member, result in zip(members, results, strict=True):
            known = found.get(member)
            if known is None or len(result.missing_groups) <= len(known.missing_groups):
                found[member] = result
        if len(members) < 2 or not passes.is_worth_another(results):
            left = [number for number in left if number not in members]
    return [found[number] for number in range(len(queries))]


def search_unbuilt(
    resources: Resources, collection: str, sources: Sequence[ImageSource]
) -> list[SearchResult | InputError]:
    """Answer in a collection without a version, which may know the files all the same.

    Parameters
    ----------
    resources : Resources
    collection : str
    sources : sequence of image

    Raises
    ------
    IndexNotBuiltError
        It does not know one of the files.
    """
    queries: list[QueryFile | InputError] = []
    for source in sources:
        try:
            queries.append(read_query(source, resources.settings.image_limits))
        except InputError as error:
            queries.append(error)
    found = answer_without_version(resources, collection, queries)
    if found is None:
        raise IndexNotBuiltError(collection)
    return found


def only(found: Sequence[Answer | InputError]) -> Answer:
    """Return the answer to a single image.

    Raises
    ------
    InputError
        The image cannot be used.
    """
    (result,) = found
    if isinstance(result, InputError):
        raise result
    return result


def scan_group(
    resources: Resources,
    version: VersionRecord,
    group: int,
    batch: Batch,
    until: float | None = None,
) -> GroupScan:
    """Scan a group's segments for a batch (map); time is measured from when they are open.

    Segments that cannot be read are left out; the scan says why.

    Parameters
    ----------
    resources : Resources
    version : VersionRecord
    group : int
    batch : Batch
    until : float, optional
        Time (as `time.time`) after which the scan is abandoned.
    """
    segments, lost = resources.group_segments(version, group)
    started = time.perf_counter()
    sets = [ImageSet(version.tombstones)]
    if batch.filter is not None:
        sets.append(batch.filter)
    blocks = [scan_opened(segment, batch.plan, sets, until) for segment in segments]
    block = blocks[0] if len(blocks) == 1 else merge_blocks(blocks, batch.plan.neighbours)
    spent_ms = (time.perf_counter() - started) * 1e3
    said = [str(error).replace("COLLECTION", version.collection) for error in lost.values()]
    return GroupScan(group, block, spent_ms, PATH, tuple(said))


def searched_groups(version: VersionRecord, plan: QueryPlan) -> list[int]:
    """Return the groups that a plan needs and that are not empty."""
    return [group for group in plan.groups if version.group_segments(group)]


def finish_batch(
    resources: Resources,
    version: VersionRecord,
    batch: Batch,
    scans: Sequence[GroupScan],
    missing: Mapping[int, str],
    timings: Mapping[str, float],
) -> list[SearchResult]:
    """Rank the images for each query image and look up their records (reduce).

    Parameters
    ----------
    resources : Resources
    version : VersionRecord
    batch : Batch
    scans : sequence of GroupScan
        One for each group that answered; their order does not matter.
    missing : mapping of int to str
        Groups that did not answer, and why.
    timings : mapping of str to float
        Milliseconds spent since the batch was prepared.
    """
    started = time.perf_counter()
    top = batch.request.top
    rankings = rank_images([scan.block for scan in scans], batch.plan.radius, batch.offsets)
    same = [_admitted(batch, image.same) for image in batch.images]
    wanted = {int(image) for ranking in rankings for image in ranking.candidates(top)}
    wanted.update(*same)
    with session_scope(resources.engine, write=False) as session:
        rows = images.image_records(session, list(wanted))
    matches = [
        make_matches(ranking, rows, top, same) for ranking, same in zip(rankings, same, strict=True)
    ]
    spent = {**timings, "rank": (time.perf_counter() - started) * 1e3}
    summary = _plan_summary(version, batch, scans)
    causes = [f"group {group}: {missing[group]}" for group in sorted(missing)]
    causes += dict.fromkeys(said for scan in scans for said in scan.lost)
    explained = explain(version, batch, scans)
    return [
        SearchResult(
            matches=found,
            complete=not causes,
            missing_groups=tuple(sorted(missing)),
            causes=tuple(causes),
            plan=summary,
            timings={k: round(v, 2) for k, v in {**image.timings, **spent}.items()},
            query={
                "descriptors": image.descriptors,
                "width": image.width,
                "height": image.height,
                "digest": image.digest,
            },
            collection=version.collection,
            version=version.number,
            extractor=version.extractor.name,
            explain=explained,
        )
        for image, found in zip(batch.images, matches, strict=True)
    ]


def find_pairs(
    resources: Resources,
    version: VersionRecord,
    batch: Batch,
    scans: Sequence[GroupScan],
    chosen: Sequence[str],
    number: int = 0,
) -> dict[str, Pairs]:
    """Return the pairs of keypoints that one query image has with chosen images.

    Parameters
    ----------
    resources : Resources
    version : VersionRecord
    batch : Batch
    scans : sequence of GroupScan
        The available ones; their order does not matter.
    chosen : sequence of str
        SHA-256 of the images, as in `pipeline.records.Match.image`. Unknown ones are ignored.
    number : int
        Number of the query image in the batch.
    """
    with session_scope(resources.engine, write=False) as session:
        known = identities.ids_of(session, version.collection_id, [(one, 0) for one in chosen])
        rows = images.image_records(session, [one for one in known if one is not None])
    start, stop = batch.offsets[number : number + 2]
    blocks = [split_block(scan.block, batch.offsets)[number] for scan in scans]
    plan = batch.plan
    found = pairs_of(blocks, plan.radius[start:stop], batch.keypoints[start:stop], rows)
    return {rows[image_id].sha256: pairs for image_id, pairs in found.items()}


def _admitted(batch: Batch, images: Sequence[int]) -> list[int]:
    """Return which images may be answers."""
    ids = np.array(images, np.uint32)
    admitted = ids if batch.filter is None else ids[batch.filter.admits(ids)]
    return [int(image) for image in admitted]


def _row_count(version: VersionRecord) -> int:
    """Return the number of rows that a version has."""
    return sum(segment.descriptor_count for segment in version.segments)


def _plan_summary(
    version: VersionRecord, batch: Batch, scans: Sequence[GroupScan]
) -> dict[str, Any]:
    """Return what an answer says about its plan."""
    plan, rows = batch.plan, _row_count(version)
    pairs = sum(scan.block.counts.pairs for scan in scans)
    probed = plan.cells.shape[1] if plan.kind == "probed" else version.tree.cells
    return {
        "kind": plan.kind,
        "cells": version.tree.cells,
        "cells_probed": int(probed),
        "groups": searched_groups(version, plan),
        "descriptors": rows,
        "scanned_share": round(pairs / max(1, rows * len(plan.codes)), 6),
    }
