"""Synthetic views of photographs: queries whose right answer is known.

Every transform is a pure function of the pixels: the same photograph gives the same view. A view's
file name says what was done (``coffee__rotation-30.jpg``), and `make_views` writes the ground truth
beside the views, with one subset for each transform.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import InputError, UnknownNameError
from pipeline.evaluation.dataset import GROUND_TRUTH_NAME

Pixels = NDArray[np.uint8]
"""RGB, shape (h, w, 3)."""

SEPARATOR = "__"
"""Separates the names of photograph and transform in a view's file name."""

_JPEG_QUALITY = 92  # for views that are not about JPEG: hardly any loss, small files


@dataclass(frozen=True)
class Transform:
    """One kind of change.

    Attributes
    ----------
    name : str
        Goes into file names: lower case, digits, hyphens.
    description : str
        For people, in a table.
    apply : callable
        Takes RGB pixels and returns RGB pixels, usually of another size.
    jpeg_quality : int
        Quality of the view's file, 1 to 100.
    """

    name: str
    description: str
    apply: Callable[[Pixels], Pixels]
    jpeg_quality: int = _JPEG_QUALITY


def rotate(pixels: Pixels, degrees: float) -> Pixels:
    """Turn anticlockwise about the centre; the canvas grows so that nothing is cut off."""
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    new_width = round(height * sin + width * cos)
    new_height = round(height * cos + width * sin)
    matrix[:, 2] += ((new_width - width) / 2, (new_height - height) / 2)
    view = cv2.warpAffine(
        pixels,
        matrix,
        (new_width, new_height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=_surround(pixels),
    )
    return np.asarray(view, dtype=np.uint8)


def resize(pixels: Pixels, factor: float) -> Pixels:
    """Scale both sides; the area filter when smaller, cubic when larger."""
    height, width = pixels.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    filtering = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, size, interpolation=filtering), dtype=np.uint8)


def tilt(pixels: Pixels, amount: float) -> Pixels:
    """Look from the side: the right edge shrinks by `amount` (share of the height) at each end."""
    height, width = pixels.shape[:2]
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    inset = amount * height
    right = width * (1 - amount / 2)
    seen = [(0, 0), (right, inset), (right, height - inset), (0, height)]
    matrix = cv2.getPerspectiveTransform(
        np.array(corners, dtype=np.float32), np.array(seen, dtype=np.float32)
    )
    view = cv2.warpPerspective(
        pixels,
        matrix,
        (round(right), height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=_surround(pixels),
    )
    return np.asarray(view, dtype=np.uint8)


def crop(pixels: Pixels, share: float) -> Pixels:
    """Keep `share` of each side, a little off the centre, toward the upper left."""
    height, width = pixels.shape[:2]
    new_height, new_width = max(1, round(height * share)), max(1, round(width * share))
    top, left = (height - new_height) // 4, (width - new_width) // 4
    return pixels[top : top + new_height, left : left + new_width].copy()


def blur(pixels: Pixels, sigma: float) -> Pixels:
    """Defocus: a Gaussian of `sigma` pixels."""
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), dtype=np.uint8)


def light(pixels: Pixels, gamma: float, gain: float = 1.0) -> Pixels:
    """Change the light: ``gain * value ** gamma`` on a scale of 0 to 1, clipped."""
    curve = np.clip(gain * np.linspace(0, 1, 256) ** gamma, 0, 1)
    table = np.rint(255 * curve).astype(np.uint8)
    return np.asarray(table[pixels], dtype=np.uint8)


def mirror(pixels: Pixels) -> Pixels:
    """Swap left and right."""
    return pixels[:, ::-1].copy()


def _phone(pixels: Pixels) -> Pixels:
    """A photograph of the photograph: smaller, turned, tilted, blurred, in other light."""
    return light(blur(tilt(rotate(resize(pixels, 0.8), -8), 0.08), 0.8), 1.3, 1.1)


STANDARD: tuple[Transform, ...] = (
    Transform("rotation-30", "turned by 30 degrees", lambda p: rotate(p, 30)),
    Transform("rotation-90", "turned by 90 degrees", lambda p: rotate(p, 90)),
    Transform("scale-50", "half the size", lambda p: resize(p, 0.5)),
    Transform("scale-150", "half as large again", lambda p: resize(p, 1.5)),
    Transform("perspective", "seen from the side", lambda p: tilt(p, 0.18)),
    Transform("crop-60", "60 % of each side", lambda p: crop(p, 0.6)),
    Transform("blur-2", "blurred by 2 pixels", lambda p: blur(p, 2.0)),
    Transform("dark", "darker (gamma 1.8)", lambda p: light(p, 1.8)),
    Transform("bright", "brighter (gamma 0.6)", lambda p: light(p, 0.6)),
    Transform("jpeg-15", "JPEG at quality 15", lambda p: p, jpeg_quality=15),
    Transform("phone", "five changes at once", _phone),
)
"""Changes that a search must survive."""

MIRROR = Transform("mirror", "left and right swapped", mirror)
"""Not in `STANDARD`: SIFT and SURF descriptors change under reflection, as the field knows."""


def get_transform(name: str) -> Transform:
    """Return a transform by name.

    Raises
    ------
    UnknownNameError
        There is none of that name.
    """
    known = {transform.name: transform for transform in (*STANDARD, MIRROR)}
    if name not in known:
        raise UnknownNameError("transform", name, sorted(known))
    return known[name]


def view_bytes(image: bytes, transform: Transform) -> bytes:
    """Return the JPEG file of one view.

    Parameters
    ----------
    image : bytes
        A photograph's file; its EXIF orientation is applied first.
    transform : Transform

    Returns
    -------
    bytes
        The same for the same input and the same libraries.

    Raises
    ------
    InputError
        The bytes are not an image that Pillow reads.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"a view needs an image: {error}") from error
    pixels = transform.apply(np.asarray(upright, dtype=np.uint8))
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "JPEG", quality=transform.jpeg_quality)
    return target.getvalue()


def make_views(
    photographs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    transforms: Sequence[Transform] = STANDARD,
    per_photograph: int | None = None,
) -> Path:
    """Make an evaluation data set of photographs and views of them.

    Parameters
    ----------
    photographs : sequence of paths
        Copied to ``output/database``; their names without suffix must differ.
    output : path
        Folder, made if necessary. Files of the same names are replaced.
    transforms : sequence of Transform
    per_photograph : int, optional
        Number of views of each photograph; `transforms` take turns, so that each is used about
        equally often. Default: all.

    Returns
    -------
    Path
        The folder, which `pipeline.evaluation.read_dataset` reads: views are queries, each
        transform is a subset.

    Raises
    ------
    InputError
        Two photographs share a name, there is none, or one is not an image.
    """
    sources = [Path(photograph) for photograph in photographs]
    _check_sources(sources)
    folder = Path(output)
    for name in ("database", "queries"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    database, relevant = [], {}
    subsets: dict[str, list[str]] = {transform.name: [] for transform in transforms}
    count = len(transforms) if per_photograph is None else min(per_photograph, len(transforms))
    turn = 0
    for source in sources:
        original = f"database/{source.name}"
        shutil.copyfile(source, folder / original)
        database.append(original)
        for _ in range(count):
            transform = transforms[turn % len(transforms)]
            turn += 1
            view = f"queries/{source.stem}{SEPARATOR}{transform.name}.jpg"
            (folder / view).write_bytes(view_bytes(source.read_bytes(), transform))
            relevant[view] = [original]
            subsets[transform.name].append(view)
    truth = {
        "images": [*database, *relevant],
        "database": database,
        "relevant": relevant,
        "parts": {name: {"queries": views} for name, views in subsets.items() if views},
    }
    (folder / GROUND_TRUTH_NAME).write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return folder


def _check_sources(sources: Sequence[Path]) -> None:
    """Refuse an empty list, and names that would overwrite each other."""
    if not sources:
        raise InputError("there is no photograph to make views of")
    seen: dict[str, Path] = {}
    for source in sources:
        if source.stem in seen:
            raise InputError(
                f"{str(source)!r} and {str(seen[source.stem])!r} share the name {source.stem!r}; "
                "rename one"
            )
        seen[source.stem] = source


def _surround(pixels: Pixels) -> tuple[float, float, float]:
    """Return the mean colour, which fills the area beside the photograph."""
    red, green, blue = pixels.reshape(-1, 3).mean(axis=0)
    return float(red), float(green), float(blue)
