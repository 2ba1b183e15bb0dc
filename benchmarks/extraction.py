"""Images per second through Celery over the bare loop on the same files, with as many processes.

    python -m benchmarks.extraction [--photos FOLDER] [--rounds 3]

The bare loop is a `multiprocessing` pool that reads, decodes and extracts each batch and throws the
features away. Through Celery the same batches go through ``extract.batch``, which also hashes,
writes containers and rows. The two take turns; the median ratio counts.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import cv2

from benchmarks.common import parser, photographs, running, show
from pipeline.config import ExtractorConfig, ImageLimits, Settings
from pipeline.extraction.features import extract_batch
from pipeline.extraction.registry import get_extractor
from pipeline.files import hash_bytes, read_file
from pipeline.metadata import parts
from pipeline.metadata.engine import create_metadata_engine, session_scope
from vantage import Collection


def bare_batch(paths: Sequence[str]) -> int:
    """Extract a batch and return the number of images."""
    config, limits = ExtractorConfig(), ImageLimits()
    items = []
    for path in paths:
        data = read_file(path, limits=limits)
        items.append((hash_bytes(data), lambda data=data: data, path))
    done, _ = extract_batch(items, get_extractor(config), config, limits)
    return len(done)


def bare_rate(files: Sequence[str], processes: int, batch: int) -> float:
    """Return images per second of the bare loop."""
    batches = [files[i : i + batch] for i in range(0, len(files), batch)]
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(processes, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        pool.map(bare_batch, [files[:1]] * processes)
        started = time.perf_counter()
        done = sum(pool.imap_unordered(bare_batch, batches))
        return done / (time.perf_counter() - started)


def celery_rate(files: Sequence[str], settings: Settings, name: str) -> float:
    """Return images per second of stage ``extract``, from its first start to its last end."""
    with Collection.open(name, settings) as collection:
        job = collection.index([Path(file) for file in files])
        progress = job.wait(timeout=3600)
    engine = create_metadata_engine(settings.database_url)
    with session_scope(engine, write=False) as session:
        done = parts.parts(session, job.id, "extract")
    engine.dispose()
    begun = min(part.started_at or 0.0 for part in done)
    ended = max(part.finished_at or 0.0 for part in done)
    return progress.images_done / (ended - begun)


def main() -> None:
    """Print the rates of each round and the median ratio."""
    options = parser(str(__doc__).splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    files = photographs(arguments.photos)
    rows = []
    with running() as settings:
        for number in range(arguments.rounds):
            # A new store for each round: containers are found by name otherwise.
            bare = bare_rate(files, settings.extract_processes, settings.batch_size)
            clear_store(settings)
            through = celery_rate(files, settings, f"round-{number}")
            rows.append(
                {
                    "images": len(files),
                    "bare images/s": round(bare, 1),
                    "Celery images/s": round(through, 1),
                    "ratio": round(through / bare, 3),
                }
            )
    show("extraction", rows, arguments.json)
    ratio = {"median ratio": median(row["ratio"] for row in rows)}
    show("extraction, Celery over bare loop", [ratio], arguments.json)


def clear_store(settings: Settings) -> None:
    """Remove feature containers, so that the next round extracts again."""
    for root in (Path(settings.store), settings.local):
        for file in root.glob("containers/*/*.npz"):
            file.unlink()


if __name__ == "__main__":
    main()
