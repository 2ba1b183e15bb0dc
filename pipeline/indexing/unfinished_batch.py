"""The progress of an unfinished batch, kept in the store so that it outlives its process.

A failure that may pass (`UNREADABLE_CODES`) counts only for the job that met it: another job, begun
when the file is back, tries again.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence

from pipeline.arrays import ArrayFile
from pipeline.config import ExtractorConfig
from pipeline.containers import (
    UNREADABLE_CODES,
    container_arrays,
    container_key,
    read_container,
    read_failures,
)
from pipeline.errors import StorageUnavailableError
from pipeline.extraction.features import Extracted
from pipeline.records import Features, ImageFailure
from pipeline.storage import Storage

_FOLDER = "unfinished"

KEEP_EVERY_S = 10.0
"""Seconds of work that a kill may cost. A batch of ordinary photographs takes less and saves
nothing."""


STALE_S = 7 * 86400.0
"""Seconds after which nobody will go on with a batch: its images were batched in another way."""


def remove_stale(storage: Storage) -> None:
    """Remove the progress of batches that have not come back for a week."""
    with contextlib.suppress(StorageUnavailableError):  # it only takes space
        for key in storage.written_before(_FOLDER, time.time() - STALE_S):
            storage.delete(key)


class UnfinishedBatch:
    """Features and failures of a batch so far, kept in the store under the name of the batch.

    Parameters
    ----------
    storage : Storage
    job_id : str
    config : ExtractorConfig
    images : sequence of str
        SHA-256 of the batch's images.
    dimensions : int
        Length of a descriptor.

    Attributes
    ----------
    done : dict of str to Features
    failures : dict of str to ImageFailure
    exceeded : dict of str to ImageFailure
        Images to be tried again, alone.
    """

    def __init__(
        self,
        storage: Storage,
        job_id: str,
        config: ExtractorConfig,
        images: Sequence[str],
        dimensions: int,
    ) -> None:
        name = container_key(config, images).removeprefix("containers/").removesuffix(".npz")
        self._names = f"{_FOLDER}/{name}-{{}}.npz"
        self._storage = storage
        self._job_id = job_id
        self._dimensions = dimensions
        self.done: dict[str, Features] = {}
        self.failures: dict[str, ImageFailure] = {}
        self.exceeded: dict[str, ImageFailure] = {}
        self._count = 0
        self._fresh: list[Extracted] = []
        self._kept_at = time.monotonic()
        for key in self._files():
            arrays = storage.read_arrays(key)
            kept = read_container(arrays, arrays.meta)
            mine = arrays.meta.get("job") == job_id
            failures = [f for f in kept.failures if mine or f.code not in UNREADABLE_CODES]
            again = list(read_failures(arrays, arrays.meta, "exceeded"))
            self._take(Extracted(0, list(kept.items()), failures, again))
            self._count += 1

    def add(self, extracted: Extracted) -> None:
        """Take the results of some images; save them if much would be lost."""
        self._take(extracted)
        self._fresh.append(extracted)
        if time.monotonic() - self._kept_at > KEEP_EVERY_S:
            self.keep()

    def keep(self) -> None:
        """Write what is not saved yet to the store."""
        fresh, self._fresh = self._fresh, []
        self._kept_at = time.monotonic()
        done = [item for extracted in fresh for item in extracted.done]
        failures = [failure for extracted in fresh for failure in extracted.failures]
        again = [failure for extracted in fresh for failure in extracted.exceeded]
        if not (done or failures or again):
            return
        arrays, meta = container_arrays(done, failures, self._dimensions)
        meta["exceeded"] = [[f.sha256, f.code, f.sentence] for f in again]
        meta["job"] = self._job_id
        self._storage.write_arrays(self._names.format(self._count), arrays, meta)
        self._count += 1

    def drop(self) -> None:
        """Remove the saved files: the batch is finished."""
        for number in range(self._count):
            self._storage.delete(self._names.format(number))

    def _take(self, extracted: Extracted) -> None:
        self.done.update(extracted.done)
        self.exceeded.update({failure.sha256: failure for failure in extracted.exceeded})
        self.failures.update({failure.sha256: failure for failure in extracted.failures})
        for sha256 in (*self.done, *self.failures):
            self.exceeded.pop(sha256, None)

    def _files(self) -> Iterator[str]:
        """Yield the saved files, in order, up to the first damaged one."""
        keys = (self._names.format(number) for number in itertools.count())
        return itertools.takewhile(lambda key: self._storage.find(key, _check), keys)


def _check(arrays: ArrayFile) -> None:
    """Refuse a file that is not one of an unfinished batch."""
    read_container(arrays, arrays.meta)
    read_failures(arrays, arrays.meta, "exceeded")
