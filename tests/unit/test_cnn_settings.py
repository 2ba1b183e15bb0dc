"""The TOML file beside a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.extraction.cnn import CnnSettings, settings_beside

PLAIN: dict[str, Any] = {"size": 224}


def test_a_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(
        'size = [192, 256]\nchannels = "BGR"\nmean = [104, 117, 123]\noutput = "fc6"\n'
    )
    settings = settings_beside(tmp_path / "net.onnx")
    assert (settings.height, settings.width, settings.channels) == (192, 256, "BGR")
    assert settings.mean == (104.0, 117.0, 123.0)
    assert settings.channel_values("std") == (1.0, 1.0, 1.0)
    assert (settings.output, settings.pooling, settings.normalize) == ("fc6", "none", True)


def test_plain_values_come_back_through_json() -> None:
    settings = CnnSettings(size=(8, 9), mean=(1, 2, 3), std=2, pooling="gem", gem_power=2)
    again = CnnSettings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert again == settings
    assert again.to_dict() == settings.to_dict()


def test_the_same_numbers_are_the_same_settings_however_they_are_written() -> None:
    assert CnnSettings(size=8, mean=1).to_dict() == CnnSettings(size=8, mean=1.0).to_dict()
    written = json.dumps(CnnSettings(size=8, mean=(1, 2, 3)).to_dict())
    assert written == json.dumps(CnnSettings(size=8, mean=(1.0, 2.0, 3.0)).to_dict())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"sise": 224}, "did you mean 'size'"),
        ({"zzz": 1}, "known: size, resize"),
        ({}, "size is None: is missing"),
        ({"size": 0}, "from 1 to 4096"),
        ({"size": 224.0}, "whole number"),
        ({"size": True}, "whole number"),
        ({"size": "224"}, "whole number"),
        ({"size": [1, 2, 3]}, "one number, or height and width"),
        ({"resize": "fit"}, "one of shorter, stretch, letterbox"),
        ({"resize": []}, "one of shorter"),
        ({"resize_to": 200}, "at least the size, 224"),
        ({"resize_to": 256, "resize": "stretch"}, "no meaning to 'stretch'"),
        ({"channels": "rgb"}, "one of RGB, BGR, grey"),
        ({"mean": [1, 2]}, "one number, or 3 for 'RGB'"),
        ({"mean": [1, 2, 3], "channels": "grey"}, "one number, or 1 for 'grey'"),
        ({"mean": "0.5"}, "finite number"),
        ({"scale": float("nan")}, "finite number"),
        ({"std": [1, 0, 1]}, "must not be 0"),
        ({"std": 0}, "must not be 0"),
        ({"input": 3}, "name of a tensor"),
        ({"output": None}, "name of a tensor"),
        ({"layout": "CHW"}, "one of NCHW, NHWC"),
        ({"pooling": "mean"}, "one of none, average, max, gem"),
        ({"gem_power": 0.5}, "from 1 to 100"),
        ({"normalize": 1}, "true or false"),
        ({"whiten": "yes"}, "true or false"),
        ({"row_bytes": 100}, "multiple of 64"),
        ({"row_bytes": 8192}, "from 0 to 4096"),
        ({"batch": 0}, "from 1 to 256"),
        ({"runtime": "torch"}, "one of onnxruntime, opencv"),
    ],
)
def test_wrong_values_are_refused_with_the_allowed_ones(
    values: dict[str, Any], sentence: str
) -> None:
    base = PLAIN if values and not {"sise"} & set(values) else {}
    with pytest.raises(ConfigError, match=sentence):
        CnnSettings.from_dict({**base, **values})


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    path.write_text("size = 224\npoling = 'gem'\n")
    with pytest.raises(ConfigError, match=r"poling in '.*net\.toml' is 'gem'.*mean 'pooling'"):
        CnnSettings.from_toml(path)
    path.write_text("size = = 3")
    with pytest.raises(ConfigError, match=r"net\.toml.*not TOML.*line 1"):
        CnnSettings.from_toml(path)
    with pytest.raises(ConfigError, match=r"no such file; its folder holds net\.toml"):
        settings_beside(tmp_path / "network.onnx")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        CnnSettings.from_toml(tmp_path / "folder.toml")
