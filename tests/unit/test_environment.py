from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ExtractorConfig, IndexConfig, Settings
from workers.environment import environment

_SETTINGS = st.builds(
    Settings,
    home=st.just(Path("/data/of vantage")),
    store=st.sampled_from(["/shared/store", "s3://bucket/store"]),
    local=st.just(Path("/data/local")),
    database_url=st.just("postgresql://user:pw@db/vantage"),
    redis_url=st.none() | st.just("redis://:pw@host:6379/0"),
    image_roots=st.just(("/photos", "/more photos")),
    host=st.just("alpha"),
    serve_groups=st.sets(st.integers(0, 15), min_size=1).map(lambda s: tuple(sorted(s))),
    extract_processes=st.integers(1, 64),
    batch_size=st.integers(1, 64),
    search_deadline_s=st.floats(0.5, 100),
    heartbeat_s=st.floats(0.1, 60),
    flower_port=st.integers(0, 65535),
    flower_password=st.none() | st.just("a, b: c"),
    extractor=st.builds(
        ExtractorConfig,
        name=st.sampled_from(["sift", "surf", "cnn"]),
        max_side=st.integers(32, 5000),
    ),
    index=st.builds(IndexConfig, groups=st.sampled_from([1, 2, 4, 8, 16])),
)
_ARGUMENTS = st.sampled_from(["/models of mine/a:b.onnx", "upright=true,octaves=3"])


@given(_SETTINGS, st.none() | _ARGUMENTS)
def test_settings_survive_the_way_through_the_environment(
    settings: Settings, argument: str | None
) -> None:
    if argument is not None:
        text = f"{settings.extractor.name}:{argument}"
        settings = dataclasses.replace(settings, extractor_text=text)
    assert Settings.from_env(environment(settings, {})) == settings


def test_variables_of_the_caller_do_not_leak_in(settings: Settings) -> None:
    env = environment(settings, {"VANTAGE_MAX_SIDE": "99", "LANG": "C"})
    assert Settings.from_env(env) == settings
    assert env["LANG"] == "C"


def test_a_setting_that_no_variable_can_say_is_refused_not_lost(settings: Settings) -> None:
    odd = dataclasses.replace(settings, index=IndexConfig(seed=7))
    with pytest.raises(ValueError, match="cannot be given"):
        environment(odd)
