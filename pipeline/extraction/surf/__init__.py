"""SURF: keypoints of the box-filtered Hessian and their descriptors.

Bay, Ess, Tuytelaars and Van Gool, "Speeded-up robust features (SURF)", CVIU 2008. Usable alone::

    from pipeline.extraction.surf import surf
    keypoints, descriptors = surf(grey, hessian_threshold=500)
"""

from __future__ import annotations

from pipeline.extraction.surf.describer import describe, detect, surf
from pipeline.extraction.surf.extractor import SurfExtractor
from pipeline.extraction.surf.warm import warm_up

__all__ = ["SurfExtractor", "describe", "detect", "surf", "warm_up"]
