"""SURF as an extractor of collections."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, InputError
from pipeline.extraction.base import Extractor
from pipeline.extraction.coordinates import in_original_pixels
from pipeline.extraction.selection import select_strongest
from pipeline.extraction.surf.describer import (
    HESSIAN_THRESHOLD,
    LAYERS,
    OCTAVES,
    check_variant,
    with_angles,
)
from pipeline.extraction.surf.descriptor import compute_descriptors
from pipeline.extraction.surf.detector import check_parameters, find_keypoints
from pipeline.extraction.surf.integral import integral_image
from pipeline.extraction.surf.variants import Variant
from pipeline.extraction.surf.warm import warm_up
from pipeline.images import DecodedImage
from pipeline.records import Features

_OPTIONS: dict[str, tuple[type, ...]] = {
    "hessian_threshold": (int, float),
    "octaves": (int,),
    "layers": (int,),
    "extended": (bool,),
    "upright": (bool,),
    "variant": (str,),
}


_WORDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "faithful or interpolated",
}


class SurfExtractor(Extractor):
    """SURF keypoints and descriptors, compared by Euclidean distance.

    Parameters
    ----------
    hessian_threshold : float
        Least determinant, grey levels squared. Default 500.
    octaves, layers : int
        Default 4 and 3.
    extended : bool
        128 numbers instead of 64. Default False.
    upright : bool
        Pictures are never turned: compute no orientations. Default False.
    variant : {"faithful", "interpolated"}
        Descriptor (see `pipeline.extraction.surf.descriptor`). Default: interpolated, which
        matches better.

    Raises
    ------
    ConfigError
        An option is out of range.
    """

    name = "surf"
    licence = "Apache-2.0"
    patents = "US 8,165,401 may still be in force in the United States: have a person check"

    def __init__(
        self,
        *,
        hessian_threshold: float = HESSIAN_THRESHOLD,
        octaves: int = OCTAVES,
        layers: int = LAYERS,
        extended: bool = False,
        upright: bool = False,
        variant: Variant = "interpolated",
    ) -> None:
        try:
            check_parameters(hessian_threshold, octaves, layers, None)
            check_variant(variant)
        except InputError as exc:
            raise ConfigError("extractor", self.name, f"its option {exc}") from exc
        self.dimensions = 128 if extended else 64
        self._threshold = hessian_threshold
        self._octaves = octaves
        self._layers = layers
        self._extended = extended
        self._upright = upright
        self._variant: Variant = variant

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> SurfExtractor:
        """Make the extractor of a stored configuration's options.

        Raises
        ------
        ConfigError
            An option is unknown, of another type or out of range.
        """
        for name, value in options.items():
            setting = f"surf's option {name}"
            if name not in _OPTIONS:
                meant = difflib.get_close_matches(name, _OPTIONS, n=1)
                hint = f"; did you mean {meant[0]!r}?" if meant else ""
                known = ", ".join(sorted(_OPTIONS))
                raise ConfigError(setting, value, f"there are {known}{hint}")
            if type(value) not in _OPTIONS[name]:
                raise ConfigError(setting, value, f"it takes {_WORDS[_OPTIONS[name][-1]]}")
        return cls(**options)

    def extract(self, image: DecodedImage, max_features: int) -> Features:
        """Return at most `max_features` keypoints, the strongest (see `select_strongest`).

        Parameters
        ----------
        image : DecodedImage
            Grey pixels.
        max_features : int

        Returns
        -------
        Features
            Keypoints in original pixels; descriptors of shape (N, 64) or (N, 128), float32.
        """
        pixels = np.ascontiguousarray(image.pixels)
        sums = integral_image(pixels)
        found = find_keypoints(sums, self._threshold, self._octaves, self._layers)
        chosen = found[select_strongest(found, max_features)]
        kept = with_angles(sums, chosen, self._upright, self._variant)
        return Features(
            in_original_pixels(kept, image),
            compute_descriptors(sums, kept, self._extended, self._upright, self._variant),
            image.width,
            image.height,
        )

    def normalize(self, descriptors: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return rows of unit length.

        Parameters
        ----------
        descriptors : ndarray of shape (N, D)

        Returns
        -------
        ndarray of shape (N, D), float32
            A row of zeros (from a patch without contrast) stays zero.
        """
        rows = descriptors.astype(np.float32)
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
        rows /= np.maximum(lengths, np.float32(1e-12))
        return rows

    def warm_up(self) -> None:
        """Compile all loops, or load them from the cache on disk."""
        warm_up()
