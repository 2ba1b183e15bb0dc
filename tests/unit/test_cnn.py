"""CNN vectors, compared with numpy on small real networks."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cnn_models import CHANNELS, FLOAT, SIDE, relu1, save, write_network
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.config import ExtractorConfig
from pipeline.errors import ConfigError, InputError
from pipeline.extraction.cnn import CnnExtractor, CnnSettings, make_cnn, model_sha256
from pipeline.extraction.cnn.pooling import pooled, unit_rows
from pipeline.extraction.cnn.preprocess import Preprocessor
from pipeline.images import DecodedImage, from_array
from pipeline.testing.extractors import ExtractorContract

SMALL = CnnSettings(
    size=SIDE,
    channels="BGR",
    mean=(104, 117, 123),
    scale=0.02,
    output="relu1",
    pooling="average",
    normalize=False,
)


def picture(side: int = SIDE, seed: int = 1) -> DecodedImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return from_array(pixels, max_side=1024, color=True)


def vector(extractor: CnnExtractor, image: DecodedImage) -> NDArray[np.float32]:
    row: NDArray[np.float32] = extractor.extract(image, 500).descriptors[0]
    return row


def fed(image: DecodedImage) -> NDArray[np.float32]:
    """What SMALL makes of a picture of the network's size."""
    values = image.pixels.astype(np.float64) * 0.02 - np.array([104, 117, 123])
    return values.transpose(2, 0, 1).astype(np.float32)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_network(tmp_path / "small.onnx")


class TestContract(ExtractorContract):
    @pytest.fixture(params=["onnxruntime", "opencv", "whole batches"])
    def extractor(self, tmp_path: Path, request: pytest.FixtureRequest) -> CnnExtractor:
        if request.param == "whole batches":
            path = write_network(tmp_path / "small.onnx", fixed_reshape=True)
            return CnnExtractor(path, replace(SMALL, output="logits"))
        path = write_network(tmp_path / "small.onnx")
        return CnnExtractor(path, replace(SMALL, runtime=request.param, pooling="gem"))


class TestValues:
    @pytest.mark.parametrize("runtime", ["onnxruntime", "opencv"])
    @pytest.mark.parametrize("pooling", ["none", "average", "max", "gem"])
    def test_they_are_those_of_numpy(self, network: Path, pooling: Any, runtime: Any) -> None:
        image = picture()
        truth = relu1(fed(image))
        flat = truth.reshape(CHANNELS, -1)
        wanted = {
            "none": truth.ravel(),
            "average": flat.mean(axis=1),
            "max": flat.max(axis=1),
            "gem": (flat**2.5).mean(axis=1) ** 0.4,
        }[pooling]
        settings = replace(SMALL, pooling=pooling, gem_power=2.5, runtime=runtime)
        assert vector(CnnExtractor(network, settings), image) == pytest.approx(wanted, rel=1e-4)
        unit = CnnExtractor(network, replace(settings, normalize=True))
        assert vector(unit, image) == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-6)

    def test_half_precision_is_near(self, tmp_path: Path) -> None:
        image = picture()
        half = CnnExtractor(write_network(tmp_path / "half.onnx", half=True), SMALL)
        found = half.extract(image, 1).descriptors
        assert found.dtype == np.float32
        assert found[0] == pytest.approx(relu1(fed(image)).mean(axis=(1, 2)), rel=2e-3)

    def test_the_networks_own_output_is_the_default(self, network: Path) -> None:
        extractor = CnnExtractor(network, replace(SMALL, output="", pooling="none"))
        values = vector(extractor, picture()).reshape(5, SIDE, SIDE)
        assert values.sum(axis=0) == pytest.approx(1, abs=1e-5)

    def test_an_output_without_positions_is_not_pooled(self, tmp_path: Path) -> None:
        path = write_network(tmp_path / "a.onnx", flatten=True, batch="N")
        extractor = CnnExtractor(path, replace(SMALL, output="logits"))
        wanted = relu1(fed(picture())).sum() * 0.01
        assert extractor.dimensions == 5
        assert vector(extractor, picture()) == pytest.approx(wanted, rel=1e-4)

    def test_channels_last_and_whole_numbers(self, tmp_path: Path) -> None:
        inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 6, 6, 3])]
        outputs = [helper.make_tensor_value_info("out", FLOAT, [1, 6, 6, 3])]
        nodes = [helper.make_node("Cast", ["image"], ["out"], to=FLOAT)]
        path = save(helper.make_graph(nodes, "nhwc", inputs, outputs), tmp_path / "a.onnx")
        settings = CnnSettings(size=6, layout="NHWC", pooling="max", normalize=False)
        image = picture(6)
        red_first = image.pixels.reshape(-1, 3).max(axis=0)[::-1]
        assert vector(CnnExtractor(path, settings), image).tolist() == red_first.tolist()

    def test_grey_networks_get_grey_pixels(self, tmp_path: Path) -> None:
        inputs = [helper.make_tensor_value_info("image", FLOAT, ["N", 1, 6, 6])]
        outputs = [helper.make_tensor_value_info("out", FLOAT, ["N", 36])]
        nodes = [helper.make_node("Flatten", ["image"], ["out"])]
        path = save(helper.make_graph(nodes, "grey", inputs, outputs), tmp_path / "a.onnx")
        extractor = CnnExtractor(path, CnnSettings(size=6, channels="grey", normalize=False))
        assert not extractor.color
        pixels = np.arange(36, dtype=np.uint8).reshape(6, 6)
        assert vector(extractor, from_array(pixels, max_side=64)).tolist() == list(range(36))

    def test_the_keypoint_is_the_whole_picture(self, network: Path) -> None:
        image = replace(picture(), width=400, height=300)
        features = CnnExtractor(network, SMALL).extract(image, 1)
        assert features.keypoints.tolist() == [[199.5, 149.5, 400, 0, 1, 0, 0]]

    def test_nan_and_infinity_are_the_images_failure(self, tmp_path: Path) -> None:
        inputs = [helper.make_tensor_value_info("image", FLOAT, ["N", 3, 6, 6])]
        outputs = [helper.make_tensor_value_info("out", FLOAT, ["N", 3, 6, 6])]
        nodes = [helper.make_node("Log", ["image"], ["out"])]
        path = save(helper.make_graph(nodes, "log", inputs, outputs), tmp_path / "a.onnx")
        extractor = CnnExtractor(path, CnnSettings(size=6, pooling="average"))
        black = DecodedImage(np.zeros((6, 6, 3), np.uint8), 6, 6, "black.png")
        with pytest.raises(InputError, match=r"a\.onnx gives NaN or infinite.*'black\.png'"):
            extractor.extract(black, 1)


class TestBatches:
    @pytest.mark.parametrize("runtime", ["onnxruntime", "opencv"])
    def test_a_network_saved_for_one_image_takes_more(self, network: Path, runtime: Any) -> None:
        extractor = CnnExtractor(network, replace(SMALL, batch=4, runtime=runtime))
        assert extractor.batch == 4
        images = [picture(seed=seed) for seed in range(10)]
        together = extractor.extract_many(images, 1)
        for image, features in zip(images, together, strict=True):
            assert features.descriptors == pytest.approx(
                extractor.extract(image, 1).descriptors, rel=1e-5
            )

    @pytest.mark.parametrize("batch", [1, 3])
    def test_one_that_cannot_gets_what_it_was_saved_for(self, tmp_path: Path, batch: int) -> None:
        inputs = [helper.make_tensor_value_info("image", FLOAT, [batch, 3, 6, 6])]
        outputs = [helper.make_tensor_value_info("out", FLOAT, [batch, 108])]
        shape = numpy_helper.from_array(np.array([batch, 108], np.int64), "shape")
        nodes = [helper.make_node("Reshape", ["image", "shape"], ["out"])]
        graph = helper.make_graph(nodes, "fixed", inputs, outputs, [shape])
        extractor = CnnExtractor(
            save(graph, tmp_path / "a.onnx"),
            CnnSettings(size=6, channels="BGR", normalize=False, batch=8),
        )
        assert extractor.batch == batch
        images = [picture(6, seed) for seed in range(7)]
        for image, features in zip(images, extractor.extract_many(images, 1), strict=True):
            wanted = image.pixels.transpose(2, 0, 1).ravel()
            assert features.descriptors.ravel().tolist() == wanted.tolist()

    def test_one_that_mixes_its_images_gets_one_at_a_time(self, tmp_path: Path) -> None:
        inputs = [helper.make_tensor_value_info("image", FLOAT, ["N", 3, 6, 6])]
        outputs = [helper.make_tensor_value_info("out", FLOAT, ["N", 3, 6, 6])]
        nodes = [
            helper.make_node("ReduceMax", ["image"], ["max"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["image", "max"], ["out"]),
        ]
        path = save(helper.make_graph(nodes, "mixes", inputs, outputs), tmp_path / "a.onnx")
        extractor = CnnExtractor(path, CnnSettings(size=6, pooling="average", normalize=False))
        assert extractor.batch == 1
        for features in extractor.extract_many([picture(6, seed) for seed in range(3)], 1):
            assert not features.descriptors.any()

    def test_the_vector_does_not_depend_on_its_neighbours(self, network: Path) -> None:
        extractor = CnnExtractor(network, replace(SMALL, batch=4))
        images = [picture(seed=seed) for seed in range(4)]
        forth = extractor.extract_many(images, 1)
        back = extractor.extract_many(images[::-1], 1)[::-1]
        for one, other in zip(forth, back, strict=True):
            assert np.array_equal(one.descriptors, other.descriptors)

    def test_no_image_is_no_work(self, network: Path) -> None:
        assert CnnExtractor(network, SMALL).extract_many([], 1) == []

    def test_threads_share_it(self, network: Path) -> None:
        for runtime in ("onnxruntime", "opencv"):
            extractor = CnnExtractor(network, replace(SMALL, runtime=runtime))
            images = [picture(seed=seed) for seed in range(24)]
            alone = [vector(extractor, image) for image in images]
            with ThreadPoolExecutor(4) as pool:
                together = list(pool.map(lambda image: vector(extractor, image), images))  # noqa: B023
            assert np.array_equal(alone, together)

    def test_it_works_on_in_a_forked_process(self, network: Path) -> None:
        extractor = CnnExtractor(network, SMALL, threads=2)
        wanted = vector(extractor, picture())
        fork = multiprocessing.get_context("fork")
        receive, send = fork.Pipe(duplex=False)
        child = fork.Process(target=lambda: send.send(vector(extractor, picture())))
        child.start()
        answered = receive.poll(20)
        if not answered:
            child.kill()
        child.join(20)
        assert answered
        found = receive.recv()
        assert child.exitcode == 0
        assert np.array_equal(found, wanted)


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"output": "relu_1"}, r"small\.onnx is 'relu_1'.*did you mean 'relu1'.*probabilities"),
            ({"output": "w1"}, "no such tensor"),
            ({"input": "data"}, r"computed from image \(1 x 3 x 12 x 12\)"),
            ({"size": 16}, r"does not fit the input image \(1 x 3 x 12 x 12\).*N x 3 x 16 x 16"),
            ({"channels": "grey", "mean": 0}, "N x 1 x 12 x 12"),
            ({"layout": "NHWC"}, "N x 12 x 12 x 3"),
        ],
    )
    def test_settings_that_do_not_fit_are_refused(
        self, network: Path, changes: dict[str, Any], sentence: str
    ) -> None:
        with pytest.raises(ConfigError, match=sentence):
            CnnExtractor(network, replace(SMALL, **changes))

    @pytest.mark.parametrize("runtime", ["onnxruntime", "opencv"])
    def test_a_size_that_only_the_operations_refuse(self, tmp_path: Path, runtime: Any) -> None:
        path = write_network(tmp_path / "a.onnx", flatten=True, side="side", batch="N")
        settings = replace(SMALL, size=16, output="logits", runtime=runtime)
        with pytest.raises(ConfigError, match=r"cannot be computed from image.*given 3 x 16 x 16"):
            CnnExtractor(path, settings)

    def test_a_vector_that_is_too_long(self, tmp_path: Path) -> None:
        path = write_network(tmp_path / "a.onnx", side="side")
        with pytest.raises(ConfigError, match="8 x 64 x 64 for an image, a vector of 32,768"):
            CnnExtractor(path, replace(SMALL, size=64, pooling="none"))

    def test_a_network_of_two_inputs(self, tmp_path: Path) -> None:
        inputs = [
            helper.make_tensor_value_info(name, FLOAT, ["N", 3, 6, 6]) for name in ("left", "right")
        ]
        outputs = [helper.make_tensor_value_info("out", FLOAT, ["N", 3, 6, 6])]
        nodes = [
            helper.make_node("Relu", ["left"], ["half"]),
            helper.make_node("Add", ["half", "right"], ["out"]),
        ]
        path = save(helper.make_graph(nodes, "two", inputs, outputs), tmp_path / "a.onnx")
        with pytest.raises(ConfigError, match="one picture must be enough"):
            CnnExtractor(path, CnnSettings(size=6))
        # Its left half is a network of one.
        assert CnnExtractor(path, CnnSettings(size=6, output="half")).dimensions == 108

    def test_an_input_that_pictures_are_not(self, tmp_path: Path) -> None:
        inputs = [helper.make_tensor_value_info("image", TensorProto.INT64, ["N", 3, 6, 6])]
        outputs = [helper.make_tensor_value_info("out", TensorProto.INT64, ["N", 3, 6, 6])]
        nodes = [helper.make_node("Identity", ["image"], ["out"])]
        path = save(helper.make_graph(nodes, "ids", inputs, outputs), tmp_path / "a.onnx")
        with pytest.raises(ConfigError, match=r"a\.onnx is 7: must be float32, float16 or uint8"):
            CnnExtractor(path, CnnSettings(size=6))

    def test_an_unknown_operation(self, tmp_path: Path) -> None:
        inputs = [helper.make_tensor_value_info("image", FLOAT, ["N", 3, 6, 6])]
        outputs = [helper.make_tensor_value_info("out", FLOAT, ["N", 3, 6, 6])]
        nodes = [helper.make_node("Frobnicate", ["image"], ["out"], domain="of.nobody")]
        graph = helper.make_graph(nodes, "odd", inputs, outputs)
        path = tmp_path / "a.onnx"
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("of.nobody", 1)]
        model = helper.make_model(graph, ir_version=8, opset_imports=opsets)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ConfigError, match=r"model for a\.onnx.*Frobnicate"):
            CnnExtractor(path, CnnSettings(size=6))


class TestIdentity:
    def test_the_factory_takes_model_and_options_of_a_configuration(self, network: Path) -> None:
        sha256 = model_sha256(network)
        config = ExtractorConfig(name="cnn", model=sha256, options=SMALL.to_dict())
        asked: list[str] = []

        def open_model(model: str) -> Path:
            asked.append(model)
            return network

        extractor = make_cnn(config, open_model)
        assert asked == [sha256]
        assert vector(extractor, picture()).any()
        assert (extractor.name, extractor.one_vector, extractor.color) == ("cnn", True, True)

    def test_another_model_or_setting_is_another_extractor(self, network: Path) -> None:
        config = ExtractorConfig(name="cnn", model=model_sha256(network), options=SMALL.to_dict())
        other = replace(SMALL, pooling="max").to_dict()
        assert config.config_id() != replace(config, options=other).config_id()
        assert config.config_id() != replace(config, model="0" * 64).config_id()
        assert not config.same_extractor(replace(config, options=other))

    @pytest.mark.parametrize(
        ("dimensions", "row_bytes"),
        [(3, 64), (64, 64), (100, 128), (512, 128), (1000, 256), (2048, 512), (4096, 512)],
    )
    def test_rows_are_as_long_as_is_worth_it(
        self, tmp_path: Path, dimensions: int, row_bytes: int
    ) -> None:
        inputs = [helper.make_tensor_value_info("image", FLOAT, ["N", 3, 1, 1])]
        outputs = [helper.make_tensor_value_info("out", FLOAT, ["N", dimensions, 1, 1])]
        weight = numpy_helper.from_array(np.ones((dimensions, 3, 1, 1), np.float32), "w")
        nodes = [helper.make_node("Conv", ["image", "w"], ["out"])]
        graph = helper.make_graph(nodes, "wide", inputs, outputs, [weight])
        path = save(graph, tmp_path / "a.onnx")
        assert CnnExtractor(path, CnnSettings(size=1)).row_bytes == row_bytes
        assert CnnExtractor(path, CnnSettings(size=1, row_bytes=64)).row_bytes == 64

    def test_whitening_is_asked_of_the_index(self, network: Path) -> None:
        assert not CnnExtractor(network, SMALL).whiten
        assert CnnExtractor(network, replace(SMALL, whiten=True)).whiten


def gradient(height: int, width: int) -> NDArray[np.uint8]:
    """Blue grows to the right, green downwards, red is 7."""
    pixels = np.full((height, width, 3), 7, np.uint8)
    pixels[:, :, 0] = np.linspace(0, 250, width)[None, :]
    pixels[:, :, 1] = np.linspace(0, 250, height)[:, None]
    return pixels


class TestPreprocessing:
    def test_range_and_order(self) -> None:
        settings = CnnSettings(size=4, scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
        pixels = gradient(4, 4)
        values = Preprocessor(settings)(pixels)
        wanted = (pixels[:, :, ::-1] / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
        assert values == pytest.approx(wanted.transpose(2, 0, 1), abs=1e-5)
        assert values.dtype == np.float32
        assert values.flags.c_contiguous

    def test_the_shorter_side_is_resized_and_the_centre_taken(self) -> None:
        settings = CnnSettings(size=224, resize_to=256, channels="BGR")
        pixels = gradient(512, 1024)
        whole = cv2.resize(pixels, (512, 256), interpolation=cv2.INTER_AREA)
        wanted = whole[16:240, 144:368].transpose(2, 0, 1)
        assert Preprocessor(settings)(pixels) == pytest.approx(wanted, abs=1)

    def test_without_resize_to_the_picture_covers_the_input(self) -> None:
        values = Preprocessor(CnnSettings(size=(100, 200), channels="BGR"))(gradient(300, 400))
        assert values.shape == (3, 100, 200)
        # All of the width, two thirds of the height.
        assert values[0].min() < 2
        assert values[0].max() > 248
        assert values[1].min() == pytest.approx(250 / 6, abs=2)
        assert values[1].max() == pytest.approx(250 * 5 / 6, abs=2)

    def test_stretch_keeps_everything(self) -> None:
        values = Preprocessor(CnnSettings(size=50, resize="stretch", channels="BGR"))(
            gradient(300, 100)
        )
        for channel in (0, 1):
            assert values[channel].min() < 4
            assert values[channel].max() > 246

    def test_letterbox_keeps_the_shape_with_margins_of_zero(self) -> None:
        settings = CnnSettings(size=64, resize="letterbox", mean=20, channels="BGR")
        values = Preprocessor(settings)(np.full((100, 200, 3), 90, np.uint8))
        assert (values[:, 16:48] == 70).all()
        assert not values[:, :16].any()
        assert not values[:, 48:].any()

    def test_shrinking_averages(self) -> None:
        checks = np.indices((512, 512)).sum(axis=0) % 2 * 255
        pixels = np.repeat(checks.astype(np.uint8)[:, :, None], 3, axis=2)
        for resize in ("shorter", "stretch", "letterbox"):
            values = Preprocessor(CnnSettings(size=64, resize=resize))(pixels)
            assert values == pytest.approx(127.5, abs=1)

    @pytest.mark.parametrize("resize", ["shorter", "stretch", "letterbox"])
    @pytest.mark.parametrize("shape", [(1, 1), (1, 1024), (1024, 1), (3, 2), (224, 224)])
    def test_any_shape_becomes_the_inputs(self, shape: tuple[int, int], resize: Any) -> None:
        values = Preprocessor(CnnSettings(size=224, resize=resize))(gradient(*shape))
        assert values.shape == (3, 224, 224)


class TestPooling:
    def test_generalised_means_lie_between_average_and_maximum(self) -> None:
        output = np.random.default_rng(3).random((4, 5, 6)).astype(np.float32)

        def at(power: float) -> NDArray[np.float32]:
            settings = replace(SMALL, pooling="gem", gem_power=power)
            return pooled(output, settings)

        flat = output.reshape(4, -1)
        assert at(1) == pytest.approx(flat.mean(axis=1), rel=1e-5)
        assert at(100) == pytest.approx(flat.max(axis=1), rel=0.05)
        assert (at(2) < at(3)).all()

    @pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e4, 1e30])
    def test_neither_large_nor_small_values_get_lost(self, scale: float) -> None:
        output = np.random.default_rng(3).random((4, 5, 6)).astype(np.float32)
        settings = replace(SMALL, pooling="gem", gem_power=3, normalize=True)
        assert pooled(output * np.float32(scale), settings) == pytest.approx(
            pooled(output, settings), rel=1e-4
        )

    def test_zeros_stay_zeros(self) -> None:
        for pooling in ("average", "max", "gem"):
            settings = replace(SMALL, pooling=pooling, normalize=True)
            assert not pooled(np.zeros((4, 5, 6), np.float32), settings).any()
        assert not unit_rows(np.zeros((2, 3), np.float32)).any()
        assert unit_rows(np.zeros((0, 3), np.float32)).shape == (0, 3)

    def test_negative_values_count_as_zero_in_generalised_means(self) -> None:
        output = np.array([[[-4, 3]], [[-1, -2]]], np.float32)
        settings = replace(SMALL, pooling="gem", gem_power=2)
        assert pooled(output, settings) == pytest.approx([np.sqrt(4.5), 0])
