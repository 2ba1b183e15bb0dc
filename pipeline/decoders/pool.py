"""The decoders of this process: a few, started when needed, shared by its threads."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cores import usable_cores
from pipeline.decoders.memory_budget import MemoryBudget
from pipeline.decoders.process import BudgetExceededError, ChildGoneError, DecoderProcess
from pipeline.errors import DecoderUnavailableError, ImageReadError

MOST_DECODERS = 4
"""Child processes of one process, fewer if it may use fewer cores; each takes some 60 MB."""

SMALL = 64 * 2**20
"""Bytes that a decode gets without asking: enough for a photograph of ten million pixels."""

_TRIES = 5


class DecoderPool:
    """Decoders that threads share."""

    def __init__(self, most: int | None = None) -> None:
        self._slots = threading.BoundedSemaphore(most or min(MOST_DECODERS, usable_cores()))
        self._idle: list[DecoderProcess] = []
        self._all: set[DecoderProcess] = set()
        self.memory = MemoryBudget()

    def decode(
        self, data: bytes, request: dict[str, Any], *, alone: bool
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Decode an image in one of the children; parameters and errors as `DecoderProcess.ask`.

        Alone, it gets all of the memory, and no other decode runs meanwhile.
        """
        bound = int(request["limits"]["decode_memory"])
        first = bound if alone else SMALL + 2 * len(data)
        with self._slots, self.memory.taken(first, bound) as reservation:
            request = {**request, "memory": reservation.size}
            for _ in range(_TRIES):
                try:
                    with self._decoder() as decoder:
                        return decoder.ask(data, request, reservation.resize)
                except ChildGoneError:
                    continue
        raise DecoderUnavailableError("it ends before it takes an image")

    def start_early(self) -> None:
        """Start a child if there is none; errors are reported with the first image."""
        if not self._all:
            with contextlib.suppress(DecoderUnavailableError):
                self._idle.append(self._take())

    def close(self) -> None:
        """End all children."""
        self._idle.clear()
        while self._all:
            self._all.pop().close()

    def forget(self) -> None:
        """Drop the children of the process that this one was forked from."""
        for decoder in list(self._all):
            decoder.forget()

    @contextmanager
    def _decoder(self) -> Iterator[DecoderProcess]:
        """Lend a decoder; one that was interrupted or has exceeded its budget is closed."""
        decoder = self._take()
        try:
            yield decoder
        except BaseException as exc:
            if not isinstance(exc, ImageReadError) or isinstance(exc, BudgetExceededError):
                self._drop(decoder)
            else:
                self._idle.append(decoder)
            raise
        self._idle.append(decoder)

    def _take(self) -> DecoderProcess:
        with contextlib.suppress(IndexError):
            while not (decoder := self._idle.pop()).is_alive():
                self._drop(decoder)
            return decoder
        decoder = DecoderProcess()
        self._all.add(decoder)
        return decoder

    def _drop(self, decoder: DecoderProcess) -> None:
        self._all.discard(decoder)
        decoder.close()


_pool = DecoderPool()


def pool() -> DecoderPool:
    """Return the decoders of this process."""
    return _pool


def _renew() -> None:
    """Start again in a forked process."""
    global _pool
    _pool.forget()
    _pool = DecoderPool()


def _close() -> None:
    _pool.close()


os.register_at_fork(after_in_child=_renew)
atexit.register(_close)
