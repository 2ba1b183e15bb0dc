"""The two kinds of SURF descriptor."""

from __future__ import annotations

from typing import Literal

Variant = Literal["faithful", "interpolated"]
"""`faithful`: OpenCV's directions and numbers. `interpolated`: those that match better (see
`pipeline.extraction.surf.orientation` and `pipeline.extraction.surf.descriptor`)."""
