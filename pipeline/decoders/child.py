"""The child process of `pipeline.decoders.process`: decodes one image after another.

It imports only what decoding needs, has no secrets in its environment, and only two files of the
parent: a socket for requests and replies, and shared memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.images import DecodedImage

IDLE_S = 60.0
"""Seconds without a request after which the process ends, because it takes some 60 MB."""

SLACK = 64 * 2**20
"""Address space besides the grant: for the interpreter, stacks, and unused memory of allocators."""

_KEPT_BYTES = 4 * 2**20  # shared memory above it is returned to the system after each use
_MESSAGE = 65536
_PAGE = os.sysconf("SC_PAGE_SIZE")


def main(channel: int, shared: int) -> None:
    """Serve requests until the parent is gone, or silent for a while."""
    _prepare()
    with socket.socket(fileno=channel) as requests:
        try:
            server = _Server(requests, shared)
        except BaseException as exc:
            requests.send(json.dumps({"trouble": f"{type(exc).__name__}: {exc}"}).encode())
            raise
        requests.send(b'{"ready": true}')
        requests.settimeout(IDLE_S)
        with contextlib.suppress(TimeoutError):
            while message := requests.recv(_MESSAGE):
                requests.send(json.dumps(server.serve(json.loads(message))).encode())
                if server.is_swollen():
                    break


def _prepare() -> None:
    """Die with the parent, be the first victim when memory runs out, leave no core file."""
    # Standard input is a pipe that nobody writes to: when the parent's end closes, the signal ends
    # the process, even in the middle of a decode.
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900", encoding="ascii")


def _address_space() -> int:
    """Return the bytes of address space that this process has now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * _PAGE


class _Server:
    """Answers requests."""

    def __init__(self, requests: socket.socket, shared: int) -> None:
        # Imported here, so that a failure is reported to the parent.
        import cv2
        from PIL import AvifImagePlugin, Image

        import pipeline.images

        cv2.setNumThreads(1)
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
        Image.init()
        self._images = pipeline.images
        self._requests = requests
        self._shared = shared
        self._base = _address_space()

    def is_swollen(self) -> bool:
        """Say whether earlier images left so much memory in use that a new process is better."""
        return _address_space() > self._base + SLACK

    def serve(self, request: dict[str, Any]) -> dict[str, Any]:
        """Decode one image; return a reply in every case but death."""
        from pipeline.errors import ImageReadError

        granted: list[int] = []
        try:
            self._limit(request["memory"])
            signal.setitimer(signal.ITIMER_PROF, request["seconds"])
            image = self._decode(request, granted)
            return self._hand_over(image)
        except ImageReadError as exc:
            return {"code": exc.code, "sentence": exc.sentence, "large": bool(granted)}
        except MemoryError:
            return {"code": "too-much-memory"}
        except Exception as exc:
            return {"trouble": f"{type(exc).__name__}: {exc}"}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

    def _limit(self, memory: int) -> None:
        """Limit the memory of decoding."""
        limit = self._base + SLACK + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    def _decode(self, request: dict[str, Any], granted: list[int]) -> DecodedImage:
        from pipeline.config import ImageLimits

        data = os.pread(self._shared, request["size"], 0)
        if len(data) > _KEPT_BYTES:
            os.ftruncate(self._shared, 0)

        def admit(needed: int) -> None:
            """Ask the parent before a decode that needs more than the first grant."""
            if needed > max(granted, default=request["memory"]):
                # The parent answers when other decodes leave room, which may take long.
                self._requests.settimeout(None)
                self._requests.send(json.dumps({"needs": needed}).encode())
                answer = json.loads(self._requests.recv(_MESSAGE))
                self._requests.settimeout(IDLE_S)
                granted.append(answer["memory"])
                self._limit(answer["memory"])

        return self._images.decode_image(
            data,
            name="image",
            limits=ImageLimits.from_dict(request["limits"]),
            max_side=request["max_side"],
            color=request["color"],
            admit=admit,
        )

    def _hand_over(self, image: DecodedImage) -> dict[str, Any]:
        """Put the pixels into shared memory and return their description."""
        import numpy as np

        os.pwrite(self._shared, np.ascontiguousarray(image.pixels).data, 0)
        told = [f.name for f in fields(image) if f.name not in ("pixels", "name")]
        return {
            "shape": image.pixels.shape,
            "image": {name: getattr(image, name) for name in told},
        }
