"""Visible pictures have features: artwork on any paper, low contrast, frames after a blank one."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from picture_files import Tiff, coded, png
from PIL import Image, ImageDraw

from pipeline.config import ExtractorConfig, ImageLimits
from pipeline.errors import NoFeaturesError
from pipeline.extraction.features import extract_decoded
from pipeline.extraction.registry import get_extractor
from pipeline.images import DecodedImage, decode_image
from pipeline.pictures.contrast import stretched, to_8_bits
from pipeline.records import Features

SIFT = get_extractor(ExtractorConfig(name="sift"))
LIMITS = ImageLimits()


def photograph(seed: int = 3, width: int = 240, height: int = 180) -> NDArray[np.float64]:
    """Smoothed noise of several sizes, from 0 to 1: has keypoints, as photographs do."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width))
    for size in (4, 9, 20, 45):
        small = rng.normal(size=(height // size + 2, width // size + 2))
        picture += size**0.7 * cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return (picture - picture.min()) / np.ptp(picture)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(data: bytes) -> DecodedImage:
    return decode_image(data, name="x", limits=LIMITS, max_side=1024)


def features(data: bytes) -> Features:
    return extract_decoded(decode(data), SIFT, 500)


def alike(one: Features, other: Features) -> float:
    """The share of the second's keypoints that the first has with nearly the same descriptor."""
    a, b = (SIFT.normalize(each.descriptors) for each in (one, other))
    return float(((b @ a.T).max(axis=1) > 0.95).mean())


class TestPaper:
    """White artwork on a transparent ground in every format that has one."""

    def artwork(self) -> Image.Image:
        """Where ink is: letters and figures."""
        mask = Image.new("L", (240, 180), 0)
        draw = ImageDraw.Draw(mask)
        rng = np.random.default_rng(5)
        for x, y in rng.integers(10, 160, (25, 2)):
            draw.text((int(x * 1.3), int(y)), "AKR8"[x % 4], fill=255)
            draw.rectangle((x, y, x + 9 + y % 20, y + 12), outline=255)
        return mask

    def on(self, ground: int, ink: int) -> bytes:
        picture = Image.new("L", (240, 180), ground)
        picture.paste(ink, mask=self.artwork())
        return encoded(picture, "PNG")

    @pytest.mark.parametrize("ink", [255, 245, 0, 40])
    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000"])
    def test_ink_is_seen(self, kind: str, ink: int) -> None:
        picture = Image.new("RGB", (240, 180), (ink,) * 3)
        if kind == "GIF":
            # A palette of the ink twice: as the ground, which is transparent, and as itself.
            picture = Image.fromarray((np.asarray(self.artwork()) > 0).astype(np.uint8))
            picture = picture.convert("L").convert("P")
            picture.putpalette([ink] * 6)
            data = encoded(picture, "GIF", transparency=0, optimize=False)
        else:
            picture.putalpha(self.artwork())
            options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
            data = encoded(picture, kind, **options)
        ground = 90 if ink > 128 else 220
        assert alike(features(data), features(self.on(ground, ink))) > 0.5

    @pytest.mark.parametrize("mode", ["1", "L", "LA"])
    def test_white_and_alpha_of_other_modes(self, mode: str) -> None:
        mask = self.artwork()
        if mode == "LA":
            picture = Image.new("L", mask.size, 255)
            picture.putalpha(mask)
            data = encoded(picture, "PNG")
        else:
            picture = mask.convert(mode)
            data = encoded(picture, "PNG", transparency=0)
        assert alike(features(data), features(self.on(90, 255))) > 0.4

    def test_dark_and_light_ink_together_lie_on_grey(self) -> None:
        picture = Image.new("RGB", (240, 180), (255, 255, 255))
        picture.paste((0, 0, 0), (0, 0, 120, 180))
        picture.putalpha(self.artwork())
        pixels = decode(encoded(picture, "PNG")).pixels
        assert (np.median(pixels), pixels.min(), pixels.max()) == (128, 0, 255)

    def test_other_artwork_keeps_its_white_paper(self) -> None:
        picture = Image.new("RGB", (240, 180), (200, 30, 30))
        picture.putalpha(self.artwork())
        assert np.median(decode(encoded(picture, "PNG")).pixels) == 255

    @pytest.mark.parametrize("kind", ["BMP", "TIFF"])
    def test_empty_alpha_is_passed_over_where_viewers_do(self, kind: str) -> None:
        grey = np.rint(photograph() * 255).astype(np.uint8)
        picture = Image.fromarray(np.dstack([grey] * 3 + [np.zeros_like(grey)]))
        assert np.array_equal(decode(encoded(picture, kind)).pixels, grey)


class TestContrast:
    whole = encoded(Image.fromarray(np.rint(photograph() * 255).astype(np.uint8)), "PNG")

    @pytest.mark.parametrize(
        ("offset", "share"), [(0, 4), (0, 8), (0, 12), (160, 4), (180, 8), (230, 12)]
    )
    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_little_light_and_fog(self, kind: str, offset: int, share: int) -> None:
        grey = np.rint(offset + photograph() * 255 / share).astype(np.uint8)
        options = {"lossless": True} if kind == "WEBP" else {}
        found = features(encoded(Image.fromarray(grey), kind, **options))
        assert alike(found, features(self.whole)) > 0.25
        assert len(found) >= 40

    @pytest.mark.parametrize("bits", [8, 10, 12, 14])
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("base", [0, 20_000])
    def test_few_bits_in_sixteen(self, bits: int, channels: int, base: int) -> None:
        values = np.rint(base + photograph() * (2**bits - 1)).astype(np.uint64)
        samples = np.repeat(values[:, :, None], channels, axis=2)
        photometric = 1 if channels == 1 else 2
        for data in (png(samples, 16), Tiff(16, photometric=photometric).file(samples)):
            assert alike(features(data), features(self.whole)) > 0.8

    def test_a_dead_pixel_does_not_decide(self) -> None:
        values = np.rint(photograph() * 1023).astype(np.uint64)[:, :, None]
        values[5, 5] = 65535
        assert alike(features(png(values, 16)), features(self.whole)) > 0.8

    def test_a_picture_with_keypoints_stays_what_it_is(self) -> None:
        image = decode(self.whole)
        found = extract_decoded(image, SIFT, 500)
        assert np.array_equal(found.descriptors, SIFT.extract(image, 500).descriptors)
        assert stretched(image.pixels) is None

    def test_noise_is_not_stretched(self) -> None:
        noise = np.random.default_rng(1).normal(100, 3, (200, 300))
        assert stretched(noise.astype(np.uint8)) is None
        wide = (noise * 10).astype(np.uint16)
        assert np.ptp(to_8_bits(wide, (0.0, 65535.0))) <= 2

    @pytest.mark.parametrize(
        ("pixels", "words"),
        [
            (np.full((90, 90), 7), "one flat colour"),
            (np.full((90, 90), 7) + (np.arange(90) > 45), "nearly one flat colour: 1 of 255"),
            (np.arange(64).reshape(8, 8) * 3, "too small: 8 x 8"),
            (np.random.default_rng(1).normal(100, 3, (90, 90)), "nothing but noise"),
            (np.add.outer(np.arange(250.0), np.zeros(250)), "smooth"),
        ],
    )
    def test_the_cause_is_reported(self, pixels: NDArray[np.float64], words: str) -> None:
        with pytest.raises(NoFeaturesError, match=words) as caught:
            features(encoded(Image.fromarray(pixels.astype(np.uint8)), "PNG"))
        assert type(caught.value)(*caught.value.args).sentence == caught.value.sentence


class TestFrames:
    grey = np.rint(photograph() * 255).astype(np.uint8)

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
    @pytest.mark.parametrize("ground", [0, 128, 255])
    @pytest.mark.parametrize("blank", [1, 3])
    def test_blank_frames_are_passed_over(self, kind: str, ground: int, blank: int) -> None:
        frames = [Image.new("L", (240, 180), ground).convert("RGB") for _ in range(blank)]
        for number, frame in enumerate(frames):
            # Otherwise writers make one of equal frames.
            frame.putpixel((number, 0), (ground ^ 1,) * 3)
        frames.append(Image.fromarray(self.grey).convert("RGB"))
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        wanted = features(encoded(Image.fromarray(self.grey), "PNG"))
        assert alike(features(data), wanted) > 0.7

    def test_a_first_frame_with_content_is_taken(self) -> None:
        frames = [Image.fromarray(self.grey), Image.fromarray(255 - self.grey)]
        data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
        assert np.array_equal(decode(data).pixels, self.grey)

    def test_pages_of_another_size_and_flavour(self) -> None:
        cover = coded(np.ones((30, 20, 1)), 16, "u")
        page = coded(photograph()[:, :, None], 16, "u")
        image = decode(Tiff(16).file(cover, page))
        assert (image.width, image.height) == (240, 180)

    def test_a_file_of_blank_frames_gives_the_first(self) -> None:
        frames = [Image.new("L", (240, 180), value) for value in (90, 91, 92)]
        data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
        assert (decode(data).pixels == 90).all()

    def test_damage_behind_a_picture_does_not_matter(self) -> None:
        frames = [Image.fromarray(self.grey).convert("P")] * 2
        frames[1] = Image.fromarray(255 - self.grey).convert("P")
        data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert np.array_equal(decode(data[:-2000]).pixels, decode(data).pixels)
