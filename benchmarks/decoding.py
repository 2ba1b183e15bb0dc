"""What a decoder that can be killed costs: milliseconds an image beside decoding in this process.

    python -m benchmarks.decoding [--photos FOLDER] [--rounds 5]

Each image is decoded in this process and in a child process, in turns; the medians of the rounds
are added up over all images. A child gets the file's bytes and hands the pixels back through shared
memory (`pipeline.decoders`). Its start is not counted: a process starts it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import parser, photographs, show
from pipeline.config import ExtractorConfig, ImageLimits
from pipeline.decoders.decoder import decode
from pipeline.images import decode_image


def timed(work: Callable[..., Any], data: bytes) -> float:
    """Return the milliseconds of decoding an image."""
    started = time.perf_counter()
    work(data, name="image", limits=ImageLimits(), max_side=ExtractorConfig().max_side)
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Print the mean milliseconds of both ways and their difference."""
    options = parser(str(__doc__).splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    images = [Path(path).read_bytes() for path in photographs(arguments.photos)]
    timed(decode, images[0])  # starts the child
    here, there = [], []
    for data in images:
        pairs = [(timed(decode_image, data), timed(decode, data)) for _ in range(arguments.rounds)]
        here.append(median(pair[0] for pair in pairs))
        there.append(median(pair[1] for pair in pairs))
    count = len(images)
    own, child = sum(here) / count, sum(there) / count
    row = {
        "images": count,
        "in this process, ms": f"{own:.2f}",
        "in a child, ms": f"{child:.2f}",
        "difference, ms": f"{child - own:.2f}",
    }
    show("decoding an image", [row], arguments.json)


if __name__ == "__main__":
    main()
