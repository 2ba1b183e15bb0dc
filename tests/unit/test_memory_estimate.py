"""The estimated memory of a decode is right: no picture takes much more, or less."""

from __future__ import annotations

import ctypes
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import ImageLimits
from pipeline.images import decode_image
from pipeline.pixels import pixels_of

SIDES = (3000, 2400)
LIMITS = ImageLimits(decode_memory=2**40)
CASES = [
    *(("PNG", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16")),
    *(("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    *(("WEBP", mode, {}) for mode in ("RGB", "RGBA")),
    *(("TIFF", mode, {}) for mode in ("L", "RGB", "RGBA", "CMYK", "I;16", "F", "I")),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    *((kind, "RGB", {}) for kind in ("GIF", "BMP", "PPM", "JPEG2000")),
    *(("AVIF", mode, {"speed": 10}) for mode in ("RGB", "RGBA")),
]


def encoded(kind: str, mode: str, options: dict[str, object]) -> bytes:
    width, height = SIDES
    grey = (np.add.outer(np.arange(height) // 20, np.arange(width) // 20) % 256).astype(np.uint8)
    wide = {"I;16": (np.uint16, 257), "I": (np.int32, 70_000), "F": (np.float32, 1 / 255)}
    if mode in wide:
        kind_of, factor = wide[mode]
        image = Image.fromarray((grey * np.float64(factor)).astype(kind_of))
    else:
        image = Image.fromarray(grey).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(grey[::-1].copy()))
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def resident(name: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most (VmHWM)."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
@pytest.mark.parametrize(
    ("kind", "mode", "options", "color"),
    [(*case, False) for case in CASES] + [("PNG", "RGBA", {}, True), ("JPEG", "RGB", {}, True)],
)
def test_decoding_takes_what_was_estimated(
    kind: str, mode: str, options: dict[str, object], color: bool
) -> None:
    data = encoded(kind, mode, options)
    estimates: list[int] = []
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = resident("VmRSS")
    decode_image(data, name="x", limits=LIMITS, max_side=1024, color=color, admit=estimates.append)
    taken, pixels = resident("VmHWM") - before, SIDES[0] * SIDES[1]
    print(f"{taken / pixels:.2f} of {max(estimates) / pixels:.2f} bytes a pixel")
    assert taken <= max(estimates) + (8 << 20)
    assert max(estimates) <= 3 * taken + (40 << 20)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "key", "key of P"])
@pytest.mark.parametrize("color", [False, True])
def test_strips_give_the_pixels_of_the_whole(
    mode: str, color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(2)
    image = Image.fromarray(random.integers(0, 256, (41, 30, 3), np.uint8))
    image = image.convert({"key": "RGB", "key of P": "P"}.get(mode, mode))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(random.integers(0, 256, (41, 30), np.uint8)))
    if mode.startswith("key"):
        image.info["transparency"] = image.getpixel((3, 3))
    whole = pixels_of(image, color=color)
    monkeypatch.setattr("pipeline.pixels._STRIP", 100)
    assert np.array_equal(pixels_of(image, color=color), whole)
