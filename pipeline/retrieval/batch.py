"""Batches: query images searched in one pass, with joined plans and data of each image."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import column, integer, plain_values, real, require
from pipeline.index.paths import PATHS
from pipeline.request import SearchRequest
from pipeline.retrieval.cost import REFERENCE, Cost, Machine, Workload, exhaustive_cost, probed_cost
from pipeline.retrieval.open_segments import ImageSet
from pipeline.retrieval.plan import MOST_QUERIES, QueryPlan, join_plans

BATCH_IMAGES = 32
"""The most query images in a pass: an answer should not wait for hundreds of others."""

BATCH_DESCRIPTORS = MOST_QUERIES
"""The most query descriptors in a pass."""

BATCH_BYTES = 1 << 25
"""The approximate limit of a joined plan, bytes: every group reads all of it."""

BATCH_SHARE = 0.5
"""Share of the deadline that the scans of a batch of several images may take on the reference
machine (`pipeline.retrieval.cost.REFERENCE`), as predicted."""


@dataclass(frozen=True)
class QueryImage:
    """One image of a batch.

    Attributes
    ----------
    digest : str
        Identifies content and extractor: equal digests mean equal features.
    width, height : int
        Pixels.
    descriptors : int
    timings : dict of str to float
        Milliseconds spent on it alone.
    same : tuple of int
        Images of the collection with the very bytes of the query.
    """

    digest: str
    width: int
    height: int
    descriptors: int
    timings: dict[str, float]
    same: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QueryImage:
        """Inverse of `dataclasses.asdict`, also after a way through JSON."""
        return cls(**{**values, "same": tuple(values.get("same", ()))})


def _no_keypoints() -> NDArray[np.float32]:
    return np.empty((0, 4), np.float32)


@dataclass(frozen=True)
class Batch:
    """Query images that are searched for together; a single search is a batch of one.

    Attributes
    ----------
    plan : QueryPlan
        Their descriptors, concatenated.
    images : tuple of QueryImage
        In the same order.
    workload : Workload
        What the plan was made for.
    request : SearchRequest
        What was asked for.
    machine : Machine
        The machine that planned, for predictions.
    keypoints : ndarray of shape (Q, 4), float32
        x, y, size (original pixels) and angle (degrees) of every query descriptor.
    filter : ImageSet, optional
        Which images may be answers. Default: all that the version holds.
    """

    plan: QueryPlan
    images: tuple[QueryImage, ...]
    workload: Workload
    request: SearchRequest
    machine: Machine
    keypoints: NDArray[np.float32] = field(default_factory=_no_keypoints, compare=False)
    filter: ImageSet | None = None

    @property
    def offsets(self) -> list[int]:
        """Image i has the query descriptors ``offsets[i]`` to ``offsets[i + 1] - 1``."""
        return [0, *itertools.accumulate(image.descriptors for image in self.images)]

    def to_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays and plain values to send to scans and ranking."""
        own: dict[str, Any] = {
            "images": [asdict(image) for image in self.images],
            "workload": asdict(self.workload),
            "request": self.request.to_dict(),
            "machine": asdict(self.machine),
        }
        arrays = {**self.plan.to_arrays(), "keypoints": self.keypoints}
        if self.filter is not None:
            arrays["filter"] = self.filter.to_array()
            own["filter_only"] = self.filter.only
        return arrays, {**self.plan.to_meta(), **own}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Batch:
        """Inverse of `to_arrays`.

        Raises
        ------
        CorruptFileError
            The values are not those of a batch.
        """
        plan = QueryPlan.from_arrays(arrays, meta)
        count = len(plan.codes)
        with plain_values(arrays):
            images = tuple(_query_image(arrays, image) for image in meta["images"])
            workload = _workload(arrays, meta["workload"], count)
            request = SearchRequest.from_dict(meta["request"])
            machine = Machine(meta["machine"]["path"], meta["machine"]["threads"])
        told = sum(image.descriptors for image in images)
        require(told == count, arrays, f"its images have {told} descriptors, not {count}")
        known = isinstance(machine.path, str) and machine.path in PATHS
        require(known, arrays, f"there is no code path {machine.path!r}")
        integer(arrays, meta["machine"], "threads", 1, 1 << 16)
        keypoints = column(arrays, "keypoints", np.float32, None, 4)
        require(len(keypoints) in (0, count), arrays, f"{len(keypoints)} keypoints, {count} rows")
        only = meta.get("filter_only")
        require(only in (None, True, False), arrays, f"filter_only is {only!r}")
        return cls(
            plan,
            images,
            workload,
            request,
            machine,
            keypoints,
            None
            if only is None
            else ImageSet.from_array(column(arrays, "filter", np.uint32, None), only),
        )

    def predicted(self, machine: Machine | None = None) -> Cost:
        """Return the predicted cost of the plan; default: on the machine that planned it."""
        machine = machine or self.machine
        if self.plan.kind == "exhaustive":
            return exhaustive_cost(self.workload, machine)
        distinct = len(np.unique(self.plan.cells))
        return probed_cost(self.workload, machine, int(self.plan.cells.shape[1]), distinct)


def _query_image(arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> QueryImage:
    """Return an image of a batch, of plain values."""
    image = QueryImage.from_dict(values)
    known = all(type(one) is int and 0 <= one < 1 << 32 for one in image.same)
    require(known, arrays, f"same is {image.same!r}")
    require(isinstance(image.digest, str), arrays, f"digest is {image.digest!r}")
    for name in ("width", "height"):
        integer(arrays, values, name, 0, 1 << 31)
    integer(arrays, values, "descriptors", 0, MOST_QUERIES)
    for name in image.timings:
        real(arrays, image.timings, name)
    return image


def _workload(
    arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any], queries: int
) -> Workload:
    """Return the workload of a batch, of plain values."""
    found = Workload(**values)
    require(found.queries == queries, arrays, f"its workload is {found.queries!r} query rows")
    integer(arrays, values, "rows", 0, 1 << 50)
    integer(arrays, values, "row_bytes", 1, 1 << 16)
    integer(arrays, values, "cells", 1, 1 << 32)
    require(type(found.one_vector) is bool, arrays, f"one_vector is {found.one_vector!r}")
    return found


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Return one batch of all images.

    Parameters
    ----------
    batches : sequence of Batch
        At least one, with the same filter; their plans can be joined
        (`pipeline.retrieval.plan.join_plans`).
    """
    first = batches[0]
    return replace(
        first,
        plan=join_plans([batch.plan for batch in batches]),
        images=tuple(image for batch in batches for image in batch.images),
        workload=replace(first.workload, queries=sum(batch.workload.queries for batch in batches)),
        keypoints=np.concatenate([batch.keypoints for batch in batches]),
    )


def cut_batches(
    queries: Sequence[Batch], deadline_s: float, most: int = BATCH_IMAGES
) -> list[list[int]]:
    """Return which query images share a pass.

    Images with different kinds of plan do not. `BATCH_IMAGES`, `BATCH_DESCRIPTORS`, `BATCH_BYTES`
    and `BATCH_SHARE` limit a pass of several images.

    Parameters
    ----------
    queries : sequence of Batch
        Each of one image, of one collection and configuration.
    deadline_s : float
        Seconds until the answers of a pass are due.
    most : int
        Images in a pass.

    Returns
    -------
    list of list of int
        Positions of the images, each once.
    """
    made: list[list[int]] = []
    for kind in dict.fromkeys(query.plan.kind for query in queries):
        room: _Room | None = None
        for number, query in enumerate(queries):
            if query.plan.kind != kind:
                continue
            if room is None or not room.take(query):
                made.append([])
                room = _Room(deadline_s, most)
                room.take(query)
            made[-1].append(number)
    return made


class _Room:
    """The remaining room in a pass."""

    def __init__(self, deadline_s: float, most: int) -> None:
        self._images = min(most, BATCH_IMAGES)
        self._descriptors = BATCH_DESCRIPTORS
        self._bytes: float = BATCH_BYTES
        self._ms = BATCH_SHARE * deadline_s * 1e3

    def take(self, query: Batch) -> bool:
        """Add an image if it fits; return whether it did."""
        self._images -= 1
        self._descriptors -= query.workload.queries
        self._bytes -= sum(array.nbytes for array in query.plan.to_arrays().values())
        self._ms -= query.predicted(REFERENCE).wait_ms
        return min(self._images, self._descriptors, self._bytes, self._ms) >= 0
