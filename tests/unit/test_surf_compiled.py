"""The compiled loops of SURF: one version of each, within their memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipeline.extraction import surf as package
from pipeline.extraction.surf import describe, descriptor, hessian, integral, orientation, surf
from pipeline.machine_code import CompiledLoop

MODULES = (integral, hessian, orientation, descriptor)

PEAK = """
import sys
from pathlib import Path
import numpy as np
from pipeline.extraction.surf import surf, warm_up

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024

warm_up()
rows, columns = np.mgrid[:1500, :2000]
image = (128 + 60 * np.sin(rows / 7.0) * np.sin(columns / 9.0)).astype(np.uint8)
del rows, columns
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
keypoints, descriptors = surf(image)
print((status("VmHWM") - before) / image.size, len(keypoints))
"""


def loops(module: ModuleType) -> dict[str, CompiledLoop]:
    """Return the compiled loops that a module calls."""
    return {key: value for key, value in vars(module).items() if isinstance(value, CompiledLoop)}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_nothing_is_reordered_for_speed(module: ModuleType) -> None:
    assert loops(module)
    for loop in loops(module).values():
        assert not loop.dispatcher.targetoptions.get("fastmath")


def test_no_second_version_is_compiled_for_other_inputs() -> None:
    package.warm_up()
    image = np.random.default_rng(1).integers(0, 256, (120, 130), np.uint8)
    locked = image.copy()
    locked.flags.writeable = False
    for picture in (image, locked, image[::-1], image.T, image[:, ::2], image / 255):
        keypoints, _ = surf(picture, 100, extended=True, variant="interpolated")
        surf(picture, np.float32(100), octaves=7, layers=5, upright=True)
        describe(picture, keypoints[:, :3].tolist())
    for module in MODULES:
        for name, loop in loops(module).items():
            assert loop.versions == 1, name


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_no_more_than_12_bytes_a_pixel_are_held_beside_the_picture() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    bytes_a_pixel, keypoints = done.stdout.split()
    assert int(keypoints) > 500
    assert 4 < float(bytes_a_pixel) <= 12  # the integral image alone has 4
