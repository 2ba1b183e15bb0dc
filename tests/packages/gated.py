"""SIFT behind a gate: an extractor that takes an image when a test lets it (see tests/gates.py)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from pipeline.config import ExtractorConfig
from pipeline.extraction.sift import SiftExtractor
from pipeline.images import DecodedImage
from pipeline.records import Features

DEADLY_WIDTH = 666


class GatedExtractor(SiftExtractor):
    """Waits at the gate; a picture of the deadly width kills its process."""

    name = "gated"

    def extract(self, image: DecodedImage, max_features: int) -> Features:
        if image.width == DEADLY_WIDTH:
            os.kill(os.getpid(), signal.SIGKILL)
        gate = Path(os.environ["TEST_GATE"])
        while not _lets_through(gate):
            time.sleep(0.01)
        return super().extract(image, max_features)


def _lets_through(gate: Path) -> bool:
    """Tell whether the gate is open, or take one of the tickets that lie there."""
    if (gate / "open").exists():
        return True
    for ticket in gate.glob("ticket-*"):
        try:
            ticket.unlink()
        except FileNotFoundError:
            continue  # another process was faster
        return True
    return False


def make(config: ExtractorConfig, open_model: object) -> GatedExtractor:
    return GatedExtractor()
