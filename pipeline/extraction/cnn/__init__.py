"""One vector for each image, from any ONNX image network (docs/cnn.md)."""

from pipeline.extraction.cnn.extractor import MAX_DIMENSIONS, CnnExtractor, make_cnn
from pipeline.extraction.cnn.model_file import model_sha256
from pipeline.extraction.cnn.settings import CnnSettings, settings_beside

__all__ = [
    "MAX_DIMENSIONS",
    "CnnExtractor",
    "CnnSettings",
    "make_cnn",
    "model_sha256",
    "settings_beside",
]
