"""A decoder: a child process, and the requests to it."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecoderUnavailableError, ImageReadError

START_PATIENCE_S = 120.0
"""Seconds that a child may take to start; on an idle machine it takes half a second."""

STARVED = 20.0
"""Waiting for a decode ends after so many times its limit of processor time: then the child got no
processor, which is not the image's fault."""

_KEPT_BYTES = 4 * 2**20
_MESSAGE = 65536

# Environment variables for a child: to find Python and its libraries; no secrets.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pipeline.decoders.child import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


class BudgetExceededError(ImageReadError):
    """An image exceeded its limits, or its decoder died: worth another try, alone."""


class ChildGoneError(Exception):
    """The child ended before it took the request."""


Grant = Callable[[int], int]
"""Takes the bytes that a decode needs, returns those that it may use; may wait."""


class DecoderProcess:
    """A child process that decodes images, started here."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._shared = _shared_memory()
        self._channel = mine
        paths = [path or str(Path.cwd()) for path in sys.path]
        root = str(Path(__file__).resolve().parents[2])
        paths = paths if root in paths else [*paths, root]
        try:
            with theirs:
                self._child = subprocess.Popen(
                    [sys.executable, "-c", _CHILD, json.dumps(paths),
                     str(theirs.fileno()), str(self._shared)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # libtiff and libjpeg print messages
                    pass_fds=(theirs.fileno(), self._shared),
                    env=_environment(),
                    start_new_session=True,  # Ctrl-C is for the parent
                )  # fmt: skip
        except BaseException as exc:
            mine.close()
            os.close(self._shared)
            if isinstance(exc, OSError):
                raise DecoderUnavailableError(str(exc)) from exc
            raise
        self._ready = False

    def is_alive(self) -> bool:
        """Say whether it can take requests; a child that was idle for long has ended."""
        return self._child.poll() is None

    def ask(
        self, data: bytes, request: dict[str, Any], grant: Grant
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Decode an image; return its pixels and its description.

        Whatever interrupts the wait (a time limit of the caller's, Ctrl-C) leaves the child in an
        unknown state: close it.

        Raises
        ------
        ImageReadError
            What the decoder says of it, with the name ``image``.
        BudgetExceededError
            It exceeded its limits, or the child died.
        ChildGoneError
            The child had already ended.
        DecoderUnavailableError
            The child does not start, or gets no processor.
        """
        self._await_start()
        _write(self._shared, data)
        deadline = time.monotonic() + STARVED * request["seconds"]
        self._send({**request, "size": len(data)})
        reply = self._receive(deadline)
        while reply is not None and "needs" in reply:
            memory = grant(int(reply["needs"]))
            deadline = time.monotonic() + STARVED * request["seconds"]
            self._send({"memory": memory})
            reply = self._receive(deadline)
        if reply is None:
            self._raise_death(request)
        if "trouble" in reply:
            raise BudgetExceededError(
                "image", "kills-worker", f"its decoder failed: {reply['trouble']}"
            )
        if "code" in reply:
            _raise_reply(reply, request)
        pixels = self._pixels(reply["shape"], request)
        if max(len(data), pixels.nbytes) > _KEPT_BYTES:
            os.ftruncate(self._shared, 0)
        return pixels, dict(reply["image"])

    def close(self) -> None:
        """End the child, whatever it is doing; may be called twice."""
        if self._child.stdin is not None:
            self._child.kill()
            self._child.stdin.close()
            self._child.wait()
            self._child.stdin = None
            self._channel.close()
            os.close(self._shared)

    def forget(self) -> None:
        """Drop a child of the process that this one was forked from; it lives on there."""
        if self._child.stdin is not None:
            self._child.stdin.close()
            self._child.stdin = None
            self._channel.close()
            os.close(self._shared)
        self._child.returncode = 0  # nothing to wait for here

    def _await_start(self) -> None:
        if not self._ready:
            reply = self._receive(time.monotonic() + START_PATIENCE_S)
            if reply is None or "ready" not in reply:
                status = f"it ended with status {self._child.wait()}" if reply is None else reply
                raise DecoderUnavailableError(f"it does not start: {status}")
            self._ready = True

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except OSError as exc:  # it has ended
            raise ChildGoneError from exc

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """Return the next reply; None if the child is dead."""
        self._channel.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            message = self._channel.recv(_MESSAGE)
        except TimeoutError as exc:
            raise DecoderUnavailableError("it got too little processor time") from exc
        except ConnectionError:
            return None
        return dict(json.loads(message)) if message else None

    def _raise_death(self, request: dict[str, Any]) -> NoReturn:
        status = self._child.wait()
        if status == 0:
            raise ChildGoneError
        if status == -signal.SIGPROF:
            sentence = f"decoding it takes more than {request['seconds']:g} s of processor time"
            raise BudgetExceededError("image", "too-slow", sentence)
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        sentence = f"the process that decoded it died ({name})"
        raise BudgetExceededError("image", "kills-worker", sentence)

    def _pixels(self, shape: list[int], request: dict[str, Any]) -> NDArray[np.uint8]:
        """Copy the pixels out of shared memory."""
        wanted = 3 if request["color"] else 2
        largest = request["max_side"]
        if len(shape) != wanted or not all(0 < int(side) <= largest for side in shape):
            raise DecoderUnavailableError(f"it gave a picture of shape {shape}")
        pixels = np.empty(tuple(map(int, shape)), np.uint8)
        view, at = pixels.reshape(-1).data, 0
        while at < len(view):
            count = os.preadv(self._shared, [view[at:]], at)
            if not count:
                raise DecoderUnavailableError("it gave fewer pixels than it said")
            at += count
        return pixels


def _raise_reply(reply: dict[str, Any], request: dict[str, Any]) -> NoReturn:
    """Raise a decoder's error about an image."""
    code = str(reply["code"])
    if "sentence" not in reply:
        limit = math.ceil(request["limits"]["decode_memory"] / 2**20)
        sentence = (
            f"decoding it takes more memory than it was given, of {limit:,} MiB for all "
            "(VANTAGE_DECODE_MEMORY raises it)"
        )
        raise BudgetExceededError("image", code, sentence)
    # Without memory, libraries report all kinds of errors; with a large grant that may be the
    # cause.
    kind = BudgetExceededError if reply.get("large") and code == "corrupt" else ImageReadError
    raise kind("image", code, str(reply["sentence"]))


def _environment() -> dict[str, str]:
    """Return the child's environment: one thread each, and little reserved address space.

    The memory of a photograph is kept for the next one: returning and taking it again costs a fifth
    of the decoding time.
    """
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
    memory = {"MALLOC_MMAP_THRESHOLD_": f"{16 << 20}", "MALLOC_TRIM_THRESHOLD_": f"{32 << 20}"}
    return kept | single | memory


def _shared_memory() -> int:
    """Return an unnamed file in memory, which ends with the processes that have it open."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vantage-decoder")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(descriptor: int, data: bytes) -> None:
    """Write everything at the beginning of a file."""
    view, at = memoryview(data), 0
    while at < len(view):
        at += os.pwrite(descriptor, view[at:], at)
