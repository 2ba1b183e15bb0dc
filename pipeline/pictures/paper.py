"""The paper behind transparent areas: white, unless the artwork would be invisible on it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

_PAPERS = (255, 0, 128)
_CONTRAST = 32
"""Difference in levels that makes an outline visible on the paper."""
_ENOUGH = 0.7
"""White is kept if it shows this share of the outline."""
_SIDE = 2048
"""Longer side of the examined picture, pixels."""


def on_paper(image: Image.Image, grey: int) -> Image.Image:
    """Lay a picture with transparency on grey paper; return RGB."""
    rgba = image.convert("RGBA")
    paper = Image.new("RGB", rgba.size, (grey,) * 3)
    paper.paste(rgba, mask=rgba.getchannel("A"))
    return paper


def without_empty_alpha(image: Image.Image) -> Image.Image:
    """Drop the alpha of a picture if it would hide everything.

    Some programs write BMP and TIFF with empty alpha, and viewers ignore it.
    """
    if image.mode not in ("LA", "RGBA") or image.getchannel("A").getextrema() != (0, 0):
        return image
    opaque = image.copy()
    opaque.putalpha(255)
    return opaque.convert(image.mode[:-1])


def paper_of(image: Image.Image) -> int:
    """Return the grey of the paper that shows a picture with transparency.

    Viewers use different backgrounds. White shows most artwork; if it hides the outline of the
    visible areas, black or grey is used, whichever shows most of it.
    """
    step = max(1, -(-max(image.size) // _SIDE))
    if step > 1:
        size = (max(1, image.width // step), max(1, image.height // step))
        image = image.resize(size, Image.Resampling.NEAREST)
    rgba = image.convert("RGBA")
    luma = np.asarray(rgba.convert("RGB").convert("L"))
    outline = _outline(np.asarray(rgba.getchannel("A")))
    edge = luma[outline].astype(int)
    if not edge.size:
        return 255
    shares = [float((np.abs(edge - grey) >= _CONTRAST).mean()) for grey in _PAPERS]
    return 255 if shares[0] >= _ENOUGH else _PAPERS[int(np.argmax(shares))]


def _outline(alpha: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the visible pixels next to transparent ones; if there are none, all pixels."""
    most = int(alpha.max())
    if not most:
        return np.zeros(alpha.shape, bool)
    visible = (alpha > most // 2).astype(np.uint8)
    inner = np.asarray(cv2.erode(visible, np.ones((5, 5), np.uint8)))
    outline: NDArray[np.bool_] = visible > inner
    return outline if outline.any() else visible.astype(bool)
