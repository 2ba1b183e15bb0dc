"""Our extractors keep the contract; batches, and the registry."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import ExtractorConfig, ImageLimits
from pipeline.errors import (
    ConfigError,
    ImageReadError,
    InputError,
    MissingRootError,
    NoFeaturesError,
    UnknownNameError,
)
from pipeline.extraction.base import Extractor
from pipeline.extraction.features import extract_batch, extract_image
from pipeline.extraction.registry import get_extractor, register
from pipeline.extraction.sift import SiftExtractor
from pipeline.extraction.spec import parse_extractor
from pipeline.images import DecodedImage, decode_image, hash_bytes
from pipeline.records import Features
from pipeline.testing.extractors import ExtractorContract, same

LIMITS = ImageLimits()
PHOTOS = ("astronaut.png", "coffee.png", "chelsea.png")


@pytest.fixture(params=["sift", "surf"])
def config(request: pytest.FixtureRequest) -> ExtractorConfig:
    return ExtractorConfig(name=request.param)


@pytest.fixture
def extractor(config: ExtractorConfig) -> Extractor:
    return get_extractor(config)


def photo_bytes(name: str) -> bytes:
    return resources.files("skimage").joinpath("data", name).read_bytes()


@cache
def photo(name: str, color: bool = False) -> DecodedImage:
    data = photo_bytes(name)
    return decode_image(data, name=name, limits=LIMITS, max_side=1024, color=color)


class RealPhotographs(ExtractorContract):
    """The contract on photographs in place of drawn pictures."""

    @pytest.fixture
    def pictures(self, extractor: Extractor) -> list[DecodedImage]:
        return [photo(name, extractor.color) for name in PHOTOS]


class TestSift(RealPhotographs):
    @pytest.fixture
    def extractor(self) -> Extractor:
        return get_extractor(ExtractorConfig(name="sift"))


class TestSurf(RealPhotographs):
    @pytest.fixture(params=[{}, {"variant": "faithful", "extended": True}], ids=str)
    def extractor(self, request: pytest.FixtureRequest) -> Extractor:
        return get_extractor(ExtractorConfig(name="surf", options=request.param))


class TestImagesAndBatches:
    def test_an_image_gives_as_many_features_as_its_configuration_says(
        self, config: ExtractorConfig
    ) -> None:
        config = replace(config, max_features=50)
        data = photo_bytes("astronaut.png")
        assert 1 <= len(extract_image(data, "a", config, LIMITS)) <= 50
        more = extract_image(data, "a", config, LIMITS, max_features=200)
        assert len(more) <= 200

    def test_an_image_without_keypoints_is_an_error_that_names_it(self) -> None:
        with pytest.raises(NoFeaturesError, match=r"color\.png"):
            extract_image(photo_bytes("color.png"), "color.png", ExtractorConfig(), LIMITS)

    def test_a_batch_keeps_its_failures_as_data(self, extractor: Extractor) -> None:
        good = photo_bytes("chelsea.png")
        contents = [good, b"no image", good[: len(good) // 2], b""]
        items = [(hash_bytes(c), self.reader(c), f"file {i}") for i, c in enumerate(contents)]

        def vanished() -> bytes:
            raise ImageReadError("file 4", "vanished", "there is no such file")

        items.append(("0" * 64, vanished, "file 4"))
        config = ExtractorConfig(name=extractor.name)
        done, failures = extract_batch(items, extractor, config, LIMITS)
        assert [sha256 for sha256, _ in done] == [hash_bytes(good)]
        assert same(done[0][1], extract_image(good, "x", config, LIMITS))
        assert [(f.sha256, f.code) for f in failures] == [
            (hash_bytes(contents[1]), "not-an-image"),
            (hash_bytes(contents[2]), "truncated"),
            (hash_bytes(contents[3]), "empty-file"),
            ("0" * 64, "vanished"),
        ]
        assert all(failure.sentence for failure in failures)

    def test_a_picture_without_keypoints_is_a_failure_of_a_batch(self) -> None:
        data = photo_bytes("color.png")
        items = [(hash_bytes(data), self.reader(data), "color.png")]
        done, failures = extract_batch(items, SiftExtractor(), ExtractorConfig(), LIMITS)
        assert (done, [f.code for f in failures]) == ([], ["no-features"])

    def test_content_that_changed_since_it_was_hashed_is_not_stored_under_the_old_name(
        self, extractor: Extractor
    ) -> None:
        items = [("f" * 64, self.reader(photo_bytes("chelsea.png")), "chelsea.png")]
        config = ExtractorConfig(name=extractor.name)
        done, failures = extract_batch(items, extractor, config, LIMITS)
        assert (done, [f.code for f in failures]) == ([], ["changed"])

    def test_an_error_that_is_not_an_images_fault_stops_the_batch(
        self, extractor: Extractor
    ) -> None:
        def unmounted() -> bytes:
            raise MissingRootError("/photos")

        config = ExtractorConfig(name=extractor.name)
        with pytest.raises(MissingRootError):
            extract_batch([("0" * 64, unmounted, "a.jpg")], extractor, config, LIMITS)

    @staticmethod
    def reader(content: bytes) -> Callable[[], bytes]:
        return lambda: content


class MeanColour(Extractor):
    """Three numbers a picture, batch by batch; pictures 333 pixels wide are refused."""

    name = "mean-colour"
    dimensions = 3
    color = True
    one_vector = True

    def __init__(self) -> None:
        self.batches: list[int] = []

    def extract(self, image: DecodedImage, max_features: int) -> Features:
        if image.width == 333:
            raise InputError(f"{image.name} is 333 pixels wide")
        keypoint = np.array([[image.width / 2, image.height / 2, 1, 0, 1, 0, 0]], np.float32)
        mean = image.pixels.reshape(-1, 3).mean(axis=0, dtype=np.float32)
        return Features(keypoint, mean[None], image.width, image.height)

    def extract_many(self, images: Sequence[DecodedImage], max_features: int) -> list[Features]:
        self.batches.append(len(images))
        return super().extract_many(images, max_features)

    def normalize(self, descriptors: NDArray[np.generic]) -> NDArray[np.float32]:
        rows = descriptors.astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        unit: NDArray[np.float32] = rows / np.maximum(lengths, np.float32(1e-12))
        return unit


class TestMeanColour(ExtractorContract):
    """The contract also holds for an extractor that uses colours."""

    @pytest.fixture
    def extractor(self) -> Extractor:
        return MeanColour()

    def test_colours_come_as_blue_green_red(self, extractor: Extractor) -> None:
        red = png(Image.new("RGB", (50, 40), (200, 100, 0)))
        items = [(hash_bytes(red), lambda: red, "red.png")]
        ((_, features),), _ = extract_batch(items, extractor, ExtractorConfig(), LIMITS)
        assert features.descriptors.tolist() == [[0, 100, 200]]


class TestManyAtOnce:
    @pytest.fixture
    def files(self) -> list[bytes]:
        return [png(Image.new("RGB", (60 + i, 50), (9 * i, 90, 255 - 9 * i))) for i in range(20)]

    def extract(
        self, files: list[bytes], extractor: Extractor, at_once: int = 16
    ) -> tuple[list[tuple[str, Features]], list[tuple[str, str]]]:
        names = [f"{i}.png" for i in range(len(files))]
        items = [
            (hash_bytes(data), lambda data=data: data, name)
            for data, name in zip(files, names, strict=True)
        ]
        done, failures = extract_batch(items, extractor, ExtractorConfig(), LIMITS, at_once)
        return done, [(failure.sha256, failure.code) for failure in failures]

    def test_an_extractor_gets_the_pictures_of_a_batch_together_but_no_more_than_16(
        self, files: list[bytes]
    ) -> None:
        extractor = MeanColour()
        done, failures = self.extract(files, extractor)
        assert extractor.batches == [16, 4]
        assert failures == []
        assert [sha256 for sha256, _ in done] == [hash_bytes(data) for data in files]
        assert [features.width for _, features in done] == [60 + i for i in range(20)]

    def test_bad_files_do_not_disturb_their_batch(self, files: list[bytes]) -> None:
        extractor = MeanColour()
        files[3], files[17] = b"no image", b""
        done, failures = self.extract(files, extractor)
        assert extractor.batches == [15, 3]
        assert failures == [
            (hash_bytes(b"no image"), "not-an-image"),
            (hash_bytes(b""), "empty-file"),
        ]
        assert [features.width - 60 for _, features in done] == [
            i for i in range(20) if i not in (3, 17)
        ]

    def test_a_picture_that_the_extractor_refuses_fails_alone(self, files: list[bytes]) -> None:
        files[5] = png(Image.new("RGB", (333, 20)))
        done, failures = self.extract(files, MeanColour())
        assert failures == [(hash_bytes(files[5]), "corrupt")]
        assert [features.width for _, features in done] == [60 + i for i in range(20) if i != 5]

    def test_one_at_a_time_each_is_done_before_the_next_is_read(self) -> None:
        """So that the picture noted last is the one that killed the process."""
        order: list[str] = []

        class Noting(MeanColour):
            def extract(self, image: DecodedImage, max_features: int) -> Features:
                order.append(f"extract {image.name}")
                return super().extract(image, max_features)

        data = png(Image.new("RGB", (9, 9)))

        def reader(name: str) -> Callable[[], bytes]:
            return lambda: order.append(f"read {name}") or data  # type: ignore[func-returns-value]

        items = [(hash_bytes(data), reader(name), name) for name in "ab"]
        extract_batch(items, Noting(), ExtractorConfig(), LIMITS, 1)
        assert order == ["read a", "extract a", "read b", "extract b"]


class TestRegistry:
    def test_an_unknown_name_gets_a_suggestion(self) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'sift'"):
            get_extractor(ExtractorConfig(name="shift"))

    def test_a_name_can_be_taken_once(self) -> None:
        with pytest.raises(ValueError, match="registered already"):
            register("sift", lambda _config, _open_model: SiftExtractor())

    def test_there_is_one_object_for_one_configuration(self) -> None:
        one = get_extractor(ExtractorConfig())
        assert get_extractor(ExtractorConfig()) is one
        assert get_extractor(ExtractorConfig(max_side=512)) is not one

    def test_a_process_makes_its_own_after_a_fork(self) -> None:
        """Networks have threads, which a fork does not copy."""
        code = (
            "import os\n"
            "from pipeline.config import ExtractorConfig\n"
            "from pipeline.extraction.registry import get_extractor\n"
            "mine = get_extractor(ExtractorConfig())\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    os._exit(7 if get_extractor(ExtractorConfig()) is not mine else 8)\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=600
        )
        assert (done.stdout, done.stderr) == ("7\n", "")

    def test_a_fork_while_another_thread_makes_one_does_not_hang_the_child(self) -> None:
        code = (
            "import os, threading, time\n"
            "from pipeline.config import ExtractorConfig\n"
            "from pipeline.extraction import registry\n"
            "from pipeline.extraction.sift import SiftExtractor\n"
            "busy, go_on = threading.Event(), threading.Event()\n"
            "class Slow(SiftExtractor):\n"
            "    name = 'slow'\n"
            "    def __init__(self, config, open_model):\n"
            "        super().__init__()\n"
            "        busy.set()\n"
            "        go_on.wait()\n"
            "registry.register('slow', Slow)\n"
            "config = ExtractorConfig(name='slow')\n"
            "thread = threading.Thread(target=registry.get_extractor, args=[config])\n"
            "thread.start()\n"
            "busy.wait()\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    registry.get_extractor(ExtractorConfig())\n"
            "    os._exit(7)\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
            "go_on.set()\n"
        )
        # Python 3.12 warns of every fork beside threads: that is what is tried here.
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert (done.stdout, done.stderr) == ("7\n", "")

    @pytest.mark.parametrize("options", [{"colour": 1}, {"octaves": 0}, {"variant": "best"}])
    def test_options_that_an_extractor_does_not_know_are_refused(
        self, options: dict[str, object]
    ) -> None:
        with pytest.raises(ConfigError, match="option"):
            get_extractor(ExtractorConfig(name="surf", options=options))

    def test_a_model_without_a_store_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="works without a model"):
            get_extractor(ExtractorConfig(model="ab" * 32))
        with pytest.raises(ConfigError, match="write cnn:FILE"):
            get_extractor(ExtractorConfig(name="cnn"))


class TestSpec:
    BASE = ExtractorConfig(max_side=512, max_features=99, options={"old": 1})

    @pytest.mark.parametrize("name", ["sift", "surf"])
    def test_a_name_keeps_all_other_settings(self, name: str) -> None:
        config, model = parse_extractor(name, self.BASE)
        assert config == ExtractorConfig(name=name, max_side=512, max_features=99)
        assert model is None

    @pytest.mark.parametrize(
        ("spec", "sentence"),
        [
            ("cnn", "write cnn:FILE"),
            ("cnn:", "write cnn:FILE"),
            ("sift:net.onnx", "sift works without a model: write sift"),
            ("surf:", "surf works without a model: write surf"),
        ],
    )
    def test_a_model_where_there_is_none_and_none_where_there_is_one(
        self, spec: str, sentence: str
    ) -> None:
        with pytest.raises(ConfigError, match=sentence) as caught:
            parse_extractor(spec, self.BASE)
        assert caught.value.args[1] == spec

    def test_options_are_written_after_the_name(self) -> None:
        spec = "surf:variant=faithful,upright=true,hessian_threshold=300"
        config, model = parse_extractor(spec, self.BASE)
        wanted = {"variant": "faithful", "upright": True, "hessian_threshold": 300}
        assert (config.name, config.options, model) == ("surf", wanted, None)
        assert config.config_id() != parse_extractor("surf", self.BASE)[0].config_id()
        assert get_extractor(config) is not get_extractor(ExtractorConfig(name="surf"))

    def test_an_unknown_option_is_refused_at_once(self) -> None:
        for spec in ("surf:variantt=faithful", "surf:upright=maybe", "sift:upright=true"):
            with pytest.raises(ConfigError, match="option"):
                get_extractor(parse_extractor(spec, self.BASE)[0])

    @pytest.mark.parametrize(
        ("written", "sentence"),
        [
            ("octaves=3,upright=true,octaves=4", "option octaves twice"),
            ("octaves=99", "octaves is 99: 1 to 7"),
            ("hessian_threshold=1e30", "hessian_threshold is 1e[+]30: 0 to 65,025"),
            ("hessian_threshold=-1", "hessian_threshold is -1: 0 to 65,025"),
            ("hessian_threshold=1e400", "hessian_threshold must be a finite number"),
            ("hessian_threshold=NaN", "hessian_threshold must be a finite number"),
        ],
    )
    def test_an_option_out_of_range_or_given_twice_is_named(
        self, written: str, sentence: str
    ) -> None:
        with pytest.raises(ConfigError, match=sentence):
            get_extractor(parse_extractor(f"surf:{written}", self.BASE)[0])

    def test_an_unknown_name_gets_a_suggestion(self) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'surf'"):
            parse_extractor("surff", self.BASE)

    def test_a_missing_model_lists_the_existing_ones(self, tmp_path: Path) -> None:
        def sentence(file: Path) -> str:
            with pytest.raises(ConfigError) as caught:
                parse_extractor(f"cnn:{file}", self.BASE)
            assert caught.value.args[1] == str(file)
            return str(caught.value)

        assert f"no such file; '{tmp_path}' holds no .onnx file" in sentence(tmp_path / "a.onnx")
        for name in ("resnet50.onnx", "vgg16.onnx", "notes.txt"):
            (tmp_path / name).write_bytes(b"x")
        assert "did you mean 'resnet50.onnx'?" in sentence(tmp_path / "resnet5.onnx")
        assert "holds resnet50.onnx, vgg16.onnx" in sentence(tmp_path / "zzz")
        assert "is a folder; " in sentence(tmp_path)
        assert "holds resnet50.onnx, vgg16.onnx" in sentence(tmp_path)
        assert "no such file; name a model file" in sentence(tmp_path / "no" / "folder" / "a.onnx")


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
