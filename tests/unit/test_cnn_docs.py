"""docs/cnn.md: its examples are valid, its table is complete."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from pipeline.extraction.cnn import CnnExtractor, CnnSettings
from pipeline.images import ImageLimits, decode_image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cnn.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
WEIGHTS = ROOT.parent / "shared" / "models" / "SqueezeNet_fp16.onnx"


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_can_be_read(example: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(example)
    assert CnnSettings.from_toml(path).size == 224


def test_the_table_has_every_key_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE, re.MULTILINE))
    fields = {field.name: field.default for field in dataclasses.fields(CnnSettings)}
    assert list(rows) != []
    assert set(rows) == set(fields)
    for name, default in fields.items():
        written = rows[name].strip("` ")
        if default is dataclasses.MISSING:
            assert written == "required"
        elif default == "":
            assert written == "the only one"
        elif isinstance(default, str):
            assert written == f'"{default}"'
        else:
            assert (
                written == f"{default:g}" if not isinstance(default, bool) else str(default).lower()
            )


@pytest.mark.shared
@pytest.mark.skipif(not WEIGHTS.is_file(), reason="needs the weights beside the checkout")
def test_the_first_example_fits_real_weights(tmp_path: Path) -> None:
    path = tmp_path / "squeezenet.toml"
    path.write_text(EXAMPLES[0])
    extractor = CnnExtractor(WEIGHTS, CnnSettings.from_toml(path))
    assert (extractor.dimensions, extractor.row_bytes) == (512, 128)
    skimage = pytest.importorskip("skimage")
    folder = Path(skimage.__file__).parent / "data"
    images = [
        decode_image(
            (folder / name).read_bytes(), name=name, limits=ImageLimits(), max_side=1024, color=True
        )
        for name in ("chelsea.png", "coffee.png", "astronaut.png")
    ]
    found = extractor.extract_many(images, 1)
    assert all(
        (one.descriptors == extractor.extract(image, 1).descriptors).all()
        for one, image in zip(found, images, strict=True)
    )
    similar = float(found[0].descriptors[0] @ found[1].descriptors[0])
    assert 0 < similar < 0.9
