"""SURF's time over that of OpenCV's SIFT, stage by stage, and its memory.

    python -m benchmarks.surf [--photos FOLDER] [--count 36] [--rounds 5] [--json]

Photographs are spread over the folder and decoded as the pipeline does (grey, longer side 1024).
One thread each (``cv2.setNumThreads(1)``), processor time of the thread. On each photograph all
contestants take turns, `rounds` times; the ratio of a photograph is that of the medians, and what
is printed is the median over the photographs.

``all``      every keypoint: ``surf(image)`` over ``cv2.SIFT_create()``
``500``      the strongest: ``surf(image, max_features=500)`` over ``cv2.SIFT_create(500)``

The stages are those of ``surf(image)``, each timed alone. The limit of octave 0 is what its loads
take, if nothing else did: 21 vectors a layer for the responses, 7 an inner layer for the maxima,
two a cycle at the clock that a chain of dependent multiplications shows. One that straddles two
cache lines counts twice: every second one of 32 bytes, each one of 64.
Memory is the peak of the process beyond what it held before the call, on a large picture.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import parser, photographs, show
from benchmarks.kernels import CHAIN, CYCLES_A_LINK, chain
from pipeline.config import ExtractorConfig, ImageLimits
from pipeline.errors import ImageReadError
from pipeline.extraction.surf import describer, surf, warm_up
from pipeline.extraction.surf.descriptor import compute_descriptors
from pipeline.extraction.surf.detector import find_keypoints
from pipeline.extraction.surf.hessian import find_maxima
from pipeline.extraction.surf.integral import integral_image
from pipeline.extraction.surf.orientation import assign_orientation
from pipeline.extraction.surf.variants import Variant
from pipeline.files import read_file
from pipeline.images import decode_image

LEAST_SIDE = 300
"""Thumbnails say nothing about photographs."""

LOADS_A_LAYER, LOADS_A_MAXIMUM, LOADS_A_CYCLE = 21, 7, 2
MEMORY_SIDES = (4000, 3000)

VARIANTS: tuple[Variant, ...] = ("faithful", "interpolated")

Pixels = NDArray[np.uint8]
Step = Callable[[], object]


def spread(files: Sequence[str], count: int) -> list[Pixels]:
    """Decode `count` photographs, drawn from the whole list, the same ones every time."""
    limits, side = ImageLimits(), ExtractorConfig().max_side
    pictures: list[Pixels] = []
    for place in np.random.default_rng(0).permutation(len(files)):
        path = files[place]
        try:
            data = read_file(path, limits=limits)
            image = decode_image(data, name=path, limits=limits, max_side=side)
        except ImageReadError:
            continue
        if min(image.pixels.shape) >= LEAST_SIDE:
            pictures.append(image.pixels)
        if len(pictures) == count:
            break
    return pictures


def seconds(step: Step) -> float:
    """Return the thread's processor time of one call."""
    begun = time.thread_time()
    step()
    return time.thread_time() - begun


def take_turns(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Return the median time of each step."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step))
    return {name: median(values) for name, values in times.items()}


def contest(pictures: Sequence[Pixels], rounds: int) -> list[dict[str, Any]]:
    """Time SURF and SIFT on each picture."""
    every, strongest = cv2.SIFT.create(), cv2.SIFT.create(500)
    found = []
    for image in pictures:
        steps: dict[str, Step] = {
            "sift all": partial(every.detectAndCompute, image, None),
            "surf all": partial(surf, image),
            "surf interpolated all": partial(surf, image, variant="interpolated"),
            "sift 500": partial(strongest.detectAndCompute, image, None),
            "surf 500": partial(surf, image, max_features=500),
            "surf interpolated 500": partial(surf, image, max_features=500, variant="interpolated"),
        }
        found.append(take_turns(steps, rounds))
    rows = []
    for name in ("all", "500"):
        for kind in ("surf", "surf interpolated"):
            ratios = [times[f"{kind} {name}"] / times[f"sift {name}"] for times in found]
            rows.append(
                {
                    "keypoints": name,
                    "descriptor": "faithful" if kind == "surf" else "interpolated",
                    "SIFT ms": round(1e3 * median(t[f"sift {name}"] for t in found), 1),
                    "SURF ms": round(1e3 * median(t[f"{kind} {name}"] for t in found), 1),
                    "SURF / SIFT": round(median(ratios), 3),
                    "least": round(min(ratios), 3),
                    "most": round(max(ratios), 3),
                }
            )
    return rows


def stages(pictures: Sequence[Pixels], rounds: int) -> list[dict[str, Any]]:
    """Time each stage on each picture: nanoseconds a pixel, microseconds a keypoint."""
    pixels = keypoints = 0
    totals: dict[str, float] = {}
    threshold, octaves, layers = (
        describer.HESSIAN_THRESHOLD,
        describer.OCTAVES,
        describer.LAYERS,
    )
    for image in pictures:
        sums = integral_image(image)
        found = find_keypoints(sums, threshold, octaves, layers)
        directed = describer.with_angles(sums, found, upright=False)
        steps: dict[str, Step] = {"integral": partial(integral_image, image)}
        for octave in range(octaves):
            for name, least in (("responses", 1e30), ("with maxima", threshold)):
                steps[f"octave {octave} {name}"] = partial(find_maxima, sums, octave, layers, least)
        steps["detection"] = partial(find_keypoints, sums, threshold, octaves, layers)
        for variant in VARIANTS:
            steps[f"orientation {variant}"] = partial(
                assign_orientation, sums, found, variant=variant
            )
            steps[f"description {variant}"] = partial(
                compute_descriptors, sums, directed, variant=variant
            )
        for name, value in take_turns(steps, rounds).items():
            totals[name] = totals.get(name, 0.0) + value
        pixels += image.size
        keypoints += len(found)
    rows = []
    for name, value in totals.items():
        per_keypoint = name.split()[0] in ("orientation", "description")
        rows.append(
            {
                "stage": name,
                "ns a pixel": round(1e9 * value / pixels, 2),
                "us a keypoint": round(1e6 * value / keypoints, 2) if per_keypoint else "",
            }
        )
    return [
        *rows,
        {"stage": "keypoints a million pixels", "ns a pixel": round(1e6 * keypoints / pixels)},
    ]


def limits() -> list[dict[str, Any]]:
    """Return what the first octave's responses cost if nothing but loads took time."""
    chain(10)
    clock = CHAIN * CYCLES_A_LINK / min(seconds(lambda: chain(CHAIN)) for _ in range(3))
    lanes = 16 if llvm.get_host_cpu_features().get("avx512f") else 8
    layers = describer.LAYERS
    straddling = 2.0 if lanes == 16 else 1.5
    cycles = straddling / LOADS_A_CYCLE / lanes
    responses, maxima = (layers + 2) * LOADS_A_LAYER * cycles, layers * LOADS_A_MAXIMUM * cycles
    return [
        {
            "clock GHz": round(clock / 1e9, 2),
            "lanes": lanes,
            "octave 0 responses, ns a pixel": round(responses / clock * 1e9, 2),
            "maxima, ns a pixel": round(maxima / clock * 1e9, 2),
        }
    ]


def _status_kib(name: str) -> int:
    """Return a line of this process's memory status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def _peak(image: Pixels, threshold: float) -> tuple[float, float]:
    """Return bytes a pixel at the peak, and of the results (run in a process of its own)."""
    cv2.setNumThreads(1)
    warm_up()
    surf(image[:200, :200])
    image.sum()  # all pages of the picture are there
    before = _status_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    keypoints, descriptors = surf(image, threshold)
    peak = _status_kib("VmHWM")
    return (peak - before) * 1024 / image.size, (keypoints.nbytes + descriptors.nbytes) / image.size


def memory(picture: Pixels) -> list[dict[str, Any]]:
    """Measure the peak on an enlarged photograph and on noise."""
    width, height = MEMORY_SIDES
    noise = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    large = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, image, threshold in (
            ("photograph", large, describer.HESSIAN_THRESHOLD),
            ("noise", noise, describer.HESSIAN_THRESHOLD),
            ("no keypoint", large, 1e9),
        ):
            peak, results = pool.apply(_peak, (np.asarray(image, np.uint8), threshold))
            rows.append(
                {
                    "picture": name,
                    "bytes a pixel": round(peak, 2),
                    "of which the results": round(results, 2),
                }
            )
    return rows


def main() -> None:
    """Print ratios, stages, limits and memory."""
    options = parser(str(__doc__).splitlines()[0])
    options.add_argument("--count", type=int, default=36)
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    cv2.setNumThreads(1)
    warm_up()
    pictures = spread(photographs(arguments.photos), arguments.count)
    surf(pictures[0], variant="interpolated")
    title = f"time on {len(pictures)} photographs, one thread"
    show(title, contest(pictures, arguments.rounds), arguments.json)
    show("stages", stages(pictures, arguments.rounds), arguments.json)
    show("limits", limits(), arguments.json)
    if Path("/proc/self/clear_refs").exists():
        show("memory beside the picture", memory(pictures[0]), arguments.json)


if __name__ == "__main__":
    main()
